"""Poses as data sets and capture apps have them, written as their documentation says, and opened.

The opened scene must put a known point where the photos show it (see `pose_folders`).
"""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io import images
from pmsplat.io.cameras import find_cameras, read_cameras
from pmsplat.io.cameras.survey import Survey
from pmsplat.scene import PhotoOptions, Scene, open_scene
from tests.io.cameras.pose_folders import (
    CENTER,
    DEPTH,
    FOCAL,
    FORMATS,
    INTRINSICS,
    POINT,
    POSES,
    WITHOUT_DEPTH,
    H,
    W,
    blender,
    dot,
    lines,
    llff,
    polycam,
    re10k,
    replica,
    scannet,
    tum,
    write,
    write_photo,
)


def opened(folder: Path, name: str) -> Scene:
    scene = folder / "kitchen"
    scene.mkdir()
    FORMATS[name](scene)
    return open_scene(scene)


@pytest.mark.parametrize("name", FORMATS)
def test_points_are_where_the_photos_show_them(tmp_path: Path, name: str) -> None:
    scene = opened(tmp_path, name)
    assert len(scene) == 4
    views = scene.views()
    assert views.images.shape == (1, 4, 3, H, W)
    for i, pose in enumerate(POSES):
        c2w, K = (t[0, i].double().numpy() for t in (views.cameras.c2w, views.cameras.K))
        np.testing.assert_allclose(c2w, pose.matrix, atol=2e-6)
        np.testing.assert_allclose(K, np.diag([1 / W, 1 / H, 1]) @ INTRINSICS, atol=1e-6)
        cam = c2w[:3, :3].T @ (POINT - c2w[:3, 3])
        pixel = (K @ cam)[:2] / cam[2] * [W, H]
        brightness = views.images[0, i].mean(dim=0)
        row, column = divmod(int(brightness.argmax()), W)
        assert np.abs(pixel - [column + 0.5, row + 0.5]).max() <= 0.75
        np.testing.assert_allclose(pixel, dot(pose), atol=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_depth_is_in_meters_and_none_where_none_is(tmp_path: Path, name: str) -> None:
    scene = opened(tmp_path, name)
    assert scene.has_depth == (name not in WITHOUT_DEPTH)
    if scene.has_depth:
        depth = scene.views([0, 2]).depth
        assert depth is not None and depth.shape == (1, 2, H, W)
        np.testing.assert_allclose(depth[0, :, 6:], DEPTH, atol=2e-4)
        assert bool((depth[0, :, :1] == 0).all())
        assert float(scene.cameras.far.max()) == pytest.approx(DEPTH * 1.25, rel=1e-3)


def test_what_llff_says_of_near_and_far(tmp_path: Path) -> None:
    scene = opened(tmp_path, "llff")
    torch.testing.assert_close(scene.cameras.near, torch.full((1, 4), 1.25))
    torch.testing.assert_close(scene.cameras.far, torch.full((1, 4), 7.5))
    assert scene.names == tuple(f"IMG_{i}.JPG" for i in range(4))


def test_llff_with_smaller_copies_of_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Copies that are named otherwise are the same photos in order; the lens is scaled to them."""
    llff(tmp_path)
    (tmp_path / "images_4").mkdir()
    for i, photo in enumerate(sorted((tmp_path / "images").iterdir())):
        with Image.open(photo) as image:
            image.resize((W // 4, H // 4)).save(tmp_path / f"images_4/image{i:03d}.png")
    scene = open_scene(tmp_path, PhotoOptions("images_4"))
    assert scene.names[1] == "image001.png" and scene.size == (H // 4, W // 4)
    np.testing.assert_allclose(scene.cameras.K[0, 1, 0], [FOCAL / W, 0, 0.5], atol=1e-6)
    assert not caplog.records

    (tmp_path / "images/IMG_9.JPG").write_bytes((tmp_path / "images/IMG_0.JPG").read_bytes())
    assert open_scene(tmp_path).names == scene.names
    assert "has 4 rows, images has 5" in caplog.text
    (tmp_path / "images_4/image000.png").unlink()
    with pytest.raises(UserError, match="has 4 rows, but the photos there are: 5 in images, 3 in"):
        open_scene(tmp_path)


def read(folder: Path) -> Survey:
    found = find_cameras(folder)
    assert found is not None
    return read_cameras(found)


def left_out(folder: Path) -> dict[str, str]:
    return {photo.name: photo.reason for photo in read(folder).left_out}


def test_frames_without_a_pose_are_counted(tmp_path: Path) -> None:
    for name in ("scannet", "seven_scenes", "tum", "polycam", "arkitscenes", "record3d"):
        FORMATS[name](tmp_path / name)
    lost = left_out(tmp_path / "scannet")
    assert list(lost) == ["color/40.jpg"] and "is not finite" in lost["color/40.jpg"]

    (tmp_path / "seven_scenes/frame-000001.pose.txt").unlink()
    assert left_out(tmp_path / "seven_scenes") == {"frame-000001.color.png": "it has no pose"}
    truth = tmp_path / "tum/groundtruth.txt"
    truth.write_text("\n".join(truth.read_text().splitlines()[:-1]))
    ((name, reason),) = left_out(tmp_path / "tum").items()
    assert name == "rgb/10.300000.png" and "no pose within 0.02 s" in reason
    (tmp_path / "polycam/keyframes/corrected_cameras/900.json").unlink()
    assert left_out(tmp_path / "polycam") == {"900.jpg": "it has no camera"}
    home = tmp_path / "arkitscenes/41069021_frames"
    (home / "lowres_wide_intrinsics/41069021_10.101.pincam").unlink()
    ((name, reason),) = left_out(tmp_path / "arkitscenes").items()
    assert name.endswith("_10.100.png") and "no intrinsics" in reason
    write_photo(tmp_path / "record3d/rgbd/7.jpg", POSES[0])
    assert list(left_out(tmp_path / "record3d")) == ["rgbd/7.jpg"]


def test_lists_of_two_recordings_are_refused_with_one_sentence(tmp_path: Path) -> None:
    tum(tmp_path)
    truth = tmp_path / "groundtruth.txt"
    rows = [f"5{row}" for row in truth.read_text().splitlines() if not row.startswith("#")]
    truth.write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"no pose within 0.02 s of rgb.*; check that both lists"):
        open_scene(tmp_path)


def test_lenses_that_no_file_gives_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo = np.zeros((480, 640, 3), np.uint8)
    home = tmp_path / "rgbd_dataset_freiburg2_desk"
    for name, folder in (("seven_scenes", tmp_path / "chess/seq-01"), ("tum", home)):
        FORMATS[name](folder)
        for file in folder.rglob("*.png"):
            images.write_image(file, photo)
    (tmp_path / "chess/seq-01/camera-intrinsics.txt").unlink()
    (home / "calibration.txt").unlink()

    lens = read(tmp_path / "chess").shots[0].lens
    assert (lens.size, lens.focal, lens.center) == ((480, 640), (525, 525), (320, 240))
    assert "f = 525 at 640x480" in caplog.text
    lens = read(home).shots[0].lens
    assert lens.focal == (520.9, 521.0) and lens.center == (325.6, 250.2)
    assert lens.radial[:3] == (0.2312, -0.7849, 0.9172) and lens.tangential == (-0.0033, -0.0001)
    assert "Freiburg 2" in caplog.text
    home.rename(tmp_path / "desk")
    lens = read(tmp_path / "desk").shots[0].lens
    assert lens.focal == (525, 525) and lens.center == (320, 240) and lens.is_pinhole
    assert "the default of ROS" in caplog.text
    for file in (tmp_path / "chess/seq-01").glob("*.color.png"):
        images.write_image(file, photo[:400])
    with pytest.raises(UserError, match=r"no intrinsics.*camera-intrinsics\.txt"):
        read(tmp_path / "chess")


def test_lenses_that_files_give_in_their_own_way(tmp_path: Path) -> None:
    for name in ("seven_scenes", "tum", "record3d", "scannet"):
        FORMATS[name](tmp_path / name)
    K = np.eye(4)
    K[:3, :3] = INTRINSICS
    words = " ".join(map(str, (2 * K).reshape(-1).tolist()))
    info = f"m_colorWidth = {2 * W}\nm_colorHeight = {2 * H}\nm_depthShift = 5000\n"
    info += f"m_calibrationColorIntrinsic = {words}\nm_sensorName = Kinect\n"
    write(tmp_path / "seven_scenes/info.txt", info)
    survey = read(tmp_path / "seven_scenes")
    lens = survey.shots[0].lens
    assert lens.size == (2 * H, 2 * W) and lens.focal == (2 * FOCAL, 2 * FOCAL)
    assert survey.depth_scale == pytest.approx(1 / 5000)

    write(tmp_path / "tum/calibration.txt", lines(INTRINSICS))
    assert read(tmp_path / "tum").shots[0].lens.center == (40.5, 30.5)
    write(tmp_path / "tum/calibration.txt", "70 71 40 30 0.1 0.2 0.01 0.02 0.3 # k1 k2 p1 p2 k3")
    lens = read(tmp_path / "tum").shots[0].lens
    assert lens.radial == (0.1, 0.2, 0.3, 0, 0, 0) and lens.tangential == (0.01, 0.02)

    content = json.loads((tmp_path / "record3d/metadata").read_text())
    content["perFrameIntrinsicCoeffs"] = [[70 + i, 71 + i, 39, 31] for i in range(4)]
    write(tmp_path / "record3d/metadata", json.dumps(content))
    shots = read(tmp_path / "record3d").shots
    assert [shot.lens.focal for shot in shots] == [(70 + i, 71 + i) for i in range(4)]
    assert shots[2].lens.center == (39, 31) and shots[2].time == pytest.approx(2 / 60)

    K[0, :3], K[1, :3] = (1170, 0, 647.75), (0, 1171, 483.75)  # of 1296x968, photos are smaller
    write(tmp_path / "scannet/intrinsic/intrinsic_color.txt", lines(K))
    assert read(tmp_path / "scannet").shots[0].lens.size == (968, 1296)


def test_folders_like_scannets_with_other_names(tmp_path: Path) -> None:
    scannet(tmp_path)
    (tmp_path / "color").rename(tmp_path / "rgb")
    (tmp_path / "pose").rename(tmp_path / "poses")
    (tmp_path / "intrinsic/intrinsic_color.txt").unlink()
    write(tmp_path / "intrinsics.txt", lines(INTRINSICS))
    survey = read(tmp_path)
    assert [shot.file for shot in survey.shots] == [f"rgb/{10 * i}.jpg" for i in range(4)]
    np.testing.assert_allclose(survey.shots[3].c2w, POSES[3].matrix)
    assert survey.shots[0].lens.center == CENTER
    (tmp_path / "rgb/10.jpg").unlink()
    assert left_out(tmp_path)["rgb/10"] == "there is no photo of its pose"


def test_depth_of_another_camera_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scannet(tmp_path)
    K = np.diag([FOCAL, FOCAL, 1.0])
    K[:2, 2] = CENTER  # of maps of half the size: twice as near
    write(tmp_path / "intrinsic/intrinsic_depth.txt", lines(K))
    assert all(shot.depth_file is None for shot in read(tmp_path).shots)
    assert "another lens" in caplog.text


def test_lines_of_a_trajectory_by_number_and_by_order(tmp_path: Path) -> None:
    replica(tmp_path / "room")
    for i in (0, 2):
        (tmp_path / f"room/results/frame{i:06d}.jpg").unlink()
    survey = read(tmp_path / "room")
    assert [shot.file for shot in survey.shots] == [f"results/frame{i:06d}.jpg" for i in (1, 3)]
    np.testing.assert_allclose(survey.shots[1].c2w, POSES[3].matrix)
    assert [photo.name for photo in survey.left_out] == [f"line {i} of traj.txt" for i in (1, 3)]
    write_photo(tmp_path / "room/results/frame000009.jpg", POSES[0])
    assert "frame000009.jpg" in left_out(tmp_path / "room")


def test_real_estate_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    re10k(tmp_path)
    text = tmp_path / "0000cc6d8b108390.txt"
    (tmp_path / "frames/10100000.png").unlink()
    write_photo(tmp_path / "frames/77.png", POSES[0])
    survey = read(tmp_path)
    assert find_cameras(text) == text and [shot.time for shot in survey.shots] == [
        1e7,
        1.02e7,
        1.03e7,
    ]
    assert {(shot.near, shot.far) for shot in survey.shots} == {(0.5, 100.0)}
    assert left_out(tmp_path).keys() == {"frame 10100000", "77.png"}
    (tmp_path / "frames").rename(tmp_path / "cut")
    with pytest.raises(UserError, match=r"none of their photos is in .*10000000\.jpg"):
        open_scene(tmp_path)
    assert len(open_scene(tmp_path, PhotoOptions("cut"))) == 3

    for i, photo in enumerate(sorted((tmp_path / "cut").iterdir())):
        photo.rename(tmp_path / f"cut/frame_{i:05d}.png")
    caplog.clear()
    shots = read_cameras(text, "cut").shots
    assert [shot.file for shot in shots] == [f"cut/frame_{i:05d}.png" for i in range(4)]
    assert "not named by times: taken in order" in caplog.text
    (tmp_path / "other.txt").write_bytes(text.read_bytes())
    with pytest.raises(UserError, match="2 camera files of RealEstate10K"):
        find_cameras(tmp_path)


def test_a_recording_must_be_extracted(tmp_path: Path) -> None:
    (tmp_path / "kitchen.r3d").write_bytes(b"PK\5\6" + bytes(18))
    with pytest.raises(UserError, match=r"a zip file.*extract it"):
        open_scene(tmp_path / "kitchen.r3d")


def test_splits_of_a_blender_set_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blender(tmp_path)
    assert find_cameras(tmp_path) == tmp_path / "transforms_train.json"
    assert "those of transforms_val.json are left out" in caplog.text
    assert open_scene(tmp_path / "transforms_val.json").photos[0].image == tmp_path / "val/r_0.png"
    (tmp_path / "transforms_train.json").unlink()
    assert find_cameras(tmp_path) == tmp_path / "transforms_val.json"


def test_polycam_without_corrected_cameras(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    polycam(tmp_path)
    for path in (tmp_path / "keyframes/corrected_cameras").iterdir():
        path.unlink()
    shots = read(tmp_path / "keyframes").shots
    assert [shot.time for shot in shots] == [900, 1000, 1100, 1200]  # as numbers, not as text
    assert shots[0].c2w[0, 3] == pytest.approx(POSES[0].center[0] + 5)
    assert "no corrected cameras" in caplog.text


DAMAGE: dict[str, tuple[str, str, str]] = {  # file, text, message
    "llff": ("poses_bounds.npy", "no array", "cannot be read as an array"),
    "seven_scenes": ("camera-intrinsics.txt", "1 2 3", "holds 3 numbers"),
    "tum": ("groundtruth.txt", "1 2 3\n", "less than 8 numbers"),
    "scannet": ("intrinsic/intrinsic_color.txt", "a b c", "where numbers should be"),
    "replica": ("traj.txt", "1 2 3\n", "a line that is no matrix"),
    "record3d": ("metadata", '{"poses": [[1]]}', r"shape \[1\] for rgbd/0.jpg"),
    "polycam": ("keyframes/corrected_cameras/900.json", "[]", ""),
    "arkitscenes": ("41069021_frames/lowres_wide.traj", "1 2\n", "a line that is no pose"),
    "re10k": ("0000cc6d8b108390.txt", "", ""),
    "blender": ("transforms_train.json", "{", "is not JSON"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_told(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    file, text, message = DAMAGE[name]
    if name == "polycam":  # one of four: the rest is used
        write(tmp_path / file, text)
        assert list(left_out(tmp_path)) == ["900"]
        return
    if name == "re10k":
        head = (tmp_path / file).read_text().splitlines()[:2]
        text, message = "\n".join([*head, "1 2 3"]), "has the line"
    write(tmp_path / file, text)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_never_escape(tmp_path: Path, name: str) -> None:
    """Cut or changed files give a UserError or cameras, never another exception."""
    FORMATS[name](tmp_path)
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(0)
    texts = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".jpg", ".JPG")]
    texts = [p for p in texts if p.suffix != ".png"]
    assert texts
    for _ in range(int(os.environ.get("PMSPLAT_FUZZ", "60"))):
        path = texts[rng.integers(len(texts))]
        whole = path.read_bytes()
        data = bytearray(whole[: int(len(whole) * rng.uniform(0.2, 1.2))])
        for at in rng.integers(0, max(len(data), 1), 4) if data else ():
            data[at] = (int(rng.integers(256)), *b"9-e")[rng.integers(4)]
        path.write_bytes(data)
        try:
            found = find_cameras(tmp_path)
            if found is not None:
                read_cameras(found)
        except UserError:
            pass
        finally:
            path.write_bytes(whole)
    logging.disable(logging.NOTSET)

"""Camera files: two formats against each other, against pycolmap, and against files that lie."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import se3
from pmsplat.io import images
from pmsplat.io.cameras import colmap, ours, read_cameras
from pmsplat.io.cameras import transforms as transforms_json
from pmsplat.io.cameras.ours import DepthFiles, write_cameras
from pmsplat.io.cameras.survey import Lens, Shot
from tests.scenes import random_cameras

COLMAP_SCENES = ("bonsai", "fern", "south_building")

BY_PYCOLMAP = """
import sys, numpy as np, pycolmap
model = pycolmap.Reconstruction(sys.argv[1])
model.write_text(sys.argv[2])
shots = sorted(model.images.values(), key=lambda image: image.name)
w2c = np.stack([image.cam_from_world().matrix() for image in shots])
errors, pixels, worlds, owners, counts = [], [], [], [], []
for i, image in enumerate(shots):
    known = [p for p in image.points2D if p.has_point3D()]
    counts.append(len({p.point3D_id for p in known}))
    for p in known[::7]:
        world = model.points3D[p.point3D_id].xyz
        pixels.append(image.project_point(world)); worlds.append(world); owners.append(i)
        errors.append(np.linalg.norm(pixels[-1] - p.xy))
np.savez(sys.argv[3], w2c=w2c, names=[s.name for s in shots], pixels=pixels, worlds=worlds,
         owners=owners, errors=errors, counts=counts)
"""


def by_pycolmap(model: Path, out: Path) -> Any:
    """What pycolmap makes of a model, and the model as text; in a process of its own."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BY_PYCOLMAP, str(model), str(out), str(out / "its.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named 'pycolmap'" in done.stderr:
        pytest.skip("pycolmap is not installed")
    assert done.returncode == 0, done.stderr
    return np.load(out / "its.npz")


@pytest.mark.parametrize("name", COLMAP_SCENES)
def test_colmap_models_as_pycolmap_reads_them(shared: Path, tmp_path: Path, name: str) -> None:
    model = shared / "scenes" / name / "sparse" / "0"
    its = by_pycolmap(model, tmp_path / "text")
    survey = read_cameras(model)
    assert [shot.file for shot in survey.shots] == its["names"].tolist()
    c2w = np.stack([shot.c2w for shot in survey.shots])
    np.testing.assert_allclose(np.linalg.inv(c2w)[:, :3], its["w2c"], atol=1e-10)
    seen = [0 if shot.seen is None else len(shot.seen) for shot in survey.shots]
    assert seen == its["counts"].tolist()
    pixels = np.stack(
        [
            _project(survey.shots[i], world)
            for i, world in zip(its["owners"], its["worlds"], strict=True)
        ]
    )
    np.testing.assert_allclose(pixels, its["pixels"], atol=1e-6)
    assert np.median(its["errors"]) < 0.9

    text = read_cameras(tmp_path / "text")
    assert text.points is not None and survey.points is not None
    np.testing.assert_allclose(text.points, survey.points, rtol=1e-9)
    for a, b in zip(text.shots, survey.shots, strict=True):
        assert a.file == b.file and a.lens == b.lens
        np.testing.assert_allclose(a.c2w, b.c2w, atol=1e-9)
        assert a.seen is not None and b.seen is not None and np.array_equal(a.seen, b.seen)


def _project(shot: Shot, world: np.ndarray) -> np.ndarray:
    """SIMPLE_RADIAL, written out."""
    cam = shot.c2w[:3, :3].T @ (world - shot.c2w[:3, 3])
    x, y = cam[:2] / cam[2]
    stretch = 1 + shot.lens.radial[0] * (x * x + y * y)
    return np.array([x, y]) * stretch * shot.lens.focal + shot.lens.center


TEXT_MODELS = {
    "SIMPLE_PINHOLE": ("500 60 40", (500, 500), (0,) * 6, (0, 0)),
    "PINHOLE": ("500 510 60 40", (500, 510), (0,) * 6, (0, 0)),
    "SIMPLE_RADIAL": ("500 60 40 .1", (500, 500), (0.1, 0, 0, 0, 0, 0), (0, 0)),
    "RADIAL": ("500 60 40 .1 .2", (500, 500), (0.1, 0.2, 0, 0, 0, 0), (0, 0)),
    "OPENCV": ("500 510 60 40 .1 .2 .3 .4", (500, 510), (0.1, 0.2, 0, 0, 0, 0), (0.3, 0.4)),
    "FULL_OPENCV": (
        "500 510 60 40 .1 .2 .3 .4 .5 .6 .7 .8",
        (500, 510),
        (0.1, 0.2, 0.5, 0.6, 0.7, 0.8),
        (0.3, 0.4),
    ),
}


def write_text_model(folder: Path, camera: str, image: str = "1 1 0 0 0 0 0 0 1 a b.jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"# comment\n1 {camera}\n")
    (folder / "images.txt").write_text(f"# comment\n{image}\n\n")
    (folder / "points3D.txt").write_text("# comment\n7 0 0 1 9 9 9 .5\n")
    return folder


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_lens_models(tmp_path: Path, name: str) -> None:
    parameters, focal, radial, tangential = TEXT_MODELS[name]
    survey = colmap.read(write_text_model(tmp_path, f"{name} 120 80 {parameters}"))
    (shot,) = survey.shots
    assert shot.file == "a b.jpg"
    assert shot.lens == Lens((80, 120), focal, (60, 40), radial, tangential)


def test_colmap_files_that_cannot_be_used(tmp_path: Path) -> None:
    pinhole = "PINHOLE 120 80 500 510 60 40"
    cases: list[tuple[str, str, str]] = [
        ("EUCM 120 80 1 1 1 1 0 0", "", r"lens of model EUCM.*undistort"),
        ("PINHOLE 120 80 500 510 60", "", "PINHOLE with 3 parameters; wanted 4"),
        ("PINHOLE 120 80 0 510 60 40", "", "positive focal"),
        ("PINHOLE 120 80 nan 510 60 40", "", "finite numbers"),
        ("PINHOLE 0 80 500 510 60 40", "", "photos of 80x0 pixels"),
        (pinhole, "1 0 0 0 0 0 0 0 1 a.jpg", "is not finite or has no rotation"),
        (pinhole, "1 1 0 0 0 nan 0 0 1 a.jpg", "is not finite"),
        (pinhole, "1 1 0 0 0 0 0 0 9 a.jpg", "is damaged"),
        (pinhole, "1 1 0 0", "is damaged"),
    ]
    for i, (camera, image, told) in enumerate(cases):
        folder = write_text_model(tmp_path / str(i), camera, *([image] if image else []))
        with pytest.raises(UserError, match=told):
            colmap.read(folder)
    (tmp_path / "0" / "points3D.txt").write_text("-7 0 0 1 9 9 9 .5\n")
    with pytest.raises(UserError, match="is damaged"):
        colmap.read(tmp_path / "0")
    (tmp_path / "0" / "images.txt").unlink()
    with pytest.raises(UserError, match=r"there is no .*images\.txt"):
        colmap.read(tmp_path / "0")


def test_damaged_binary_models_never_escape(shared: Path, tmp_path: Path) -> None:
    """Truncation and flipped bytes (huge counts among them) give a UserError or a model."""
    source = shared / "scenes" / "fern" / "sparse" / "0"
    rng, refused = np.random.default_rng(0), 0
    for trial in range(60):
        for name in ("cameras", "images", "points3D"):
            data = bytearray((source / f"{name}.bin").read_bytes())
            if trial % 3 == 0:
                data = data[: int(len(data) * rng.random())]
            for at in rng.integers(0, min(len(data), 64), 2) if len(data) else ():
                data[at] = rng.integers(0, 256)
            (tmp_path / f"{name}.bin").write_bytes(data)
        try:
            colmap.read(tmp_path)
        except UserError:
            refused += 1
    assert refused >= 40


def transforms(folder: Path, change: Callable[[dict], object] = lambda content: None) -> Path:
    """A nerfstudio file of two photos, with what `change` does to it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(2):
        images.write_image(folder / "images" / f"{i}.png", np.zeros((8, 12, 3), np.uint8))
    matrix = np.eye(4)
    matrix[:3, 3] = 1, 2, 3
    frames = [
        {"file_path": f"images/{i}.png", "transform_matrix": matrix.tolist()} for i in range(2)
    ]
    content: dict[str, Any] = {
        "w": 12, "h": 8, "fl_x": 10.0, "fl_y": 11.0, "cx": 6.5, "cy": 4.0, "frames": frames
    }  # fmt: skip
    change(content)
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder / "transforms.json"


def test_opengl_axes_become_opencv(tmp_path: Path) -> None:
    """OpenGL looks along -z with y up: what it sees ahead and above is ahead and above here."""
    (shot, _) = transforms_json.read(transforms(tmp_path)).shots
    centre = np.array([1.0, 2, 3])
    np.testing.assert_allclose(shot.c2w[:3, 3], centre)
    np.testing.assert_allclose(shot.c2w[:3, 2], [0, 0, -1])  # forward
    np.testing.assert_allclose(shot.c2w[:3, 1], [0, -1, 0])  # down
    assert np.linalg.det(shot.c2w) == pytest.approx(1)
    assert shot.lens == Lens((8, 12), (10, 11), (6.5, 4.0))


def test_intrinsics_per_frame_by_angle_and_by_header(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
            del content[key]
        content["camera_angle_x"] = 2 * np.arctan(0.5)
        content["frames"][1] |= {"fl_x": 9.0, "fl_y": 8.0, "cx": 5.0, "k1": 0.1, "p2": 0.2}

    first, second = transforms_json.read(transforms(tmp_path, change)).shots
    assert first.lens.size == (8, 12) and first.lens.center == (6, 4)
    np.testing.assert_allclose(first.lens.focal, (12, 12))  # 12 / 2 / tan = 12
    assert second.lens.focal == (9, 8) and second.lens.center == (5, 4)
    assert second.lens.radial[0] == 0.1 and second.lens.tangential == (0.0, 0.2)


def test_depth_range_and_blender_names(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content |= {"depth_unit_scale_factor": 0.01, "applied_scale": 2.0, "near": 1, "far": 9.0}
        content["frames"][0] |= {"file_path": "images/0", "depth_file_path": "d/0.png", "far": 7}

    survey = transforms_json.read(transforms(tmp_path, change))
    assert survey.depth_scale == pytest.approx(0.02)
    first, second = survey.shots
    assert (first.file, first.depth_file, second.depth_file) == ("images/0", "d/0.png", None)
    assert (first.near, first.far, second.far) == (1, 7, 9)


BAD = {
    "no frames": (lambda c: c.pop("frames"), "has no frames"),
    "no file": (lambda c: c["frames"][1].pop("file_path"), "has no file_path"),
    "no matrix": (lambda c: c["frames"][1].pop("transform_matrix"), "a matrix of none"),
    "2x4": (
        lambda c: c["frames"][1].update(transform_matrix=c["frames"][1]["transform_matrix"][:2]),
        r"shape \[2, 4\] for images/1.png",
    ),
    "ragged": (lambda c: c["frames"][1]["transform_matrix"][1].pop(), r"shape \[0\]"),
    "nan": (lambda c: c["frames"][0]["transform_matrix"][0].__setitem__(1, float("nan")), "finite"),
    "singular": (
        lambda c: c["frames"][0]["transform_matrix"].__setitem__(1, [0.0] * 4),
        r"pose of images/0\.png .* cannot be inverted",
    ),
    "mirror": (lambda c: c["frames"][0]["transform_matrix"][0].__setitem__(0, -1.0), "mirrors"),
    "last row": (lambda c: c["frames"][0]["transform_matrix"][3].__setitem__(0, 1.0), "0 0 0 1"),
    "no focal": (lambda c: (c.pop("fl_x"), c.pop("fl_y")), "no focal length"),
    "focal": (lambda c: c.update(fl_x=-1.0), "positive focal"),
    "text": (lambda c: c.update(cx="middle"), "cx='middle'"),
    "panorama": (
        lambda c: c.update(camera_model="EQUIRECTANGULAR"),
        "panoramas.*perspective views",
    ),
}

ONE_FRAME = {"no file": 1, "no matrix": 1, "2x4": 1, "ragged": 1, "nan": 0, "singular": 0}
ONE_FRAME |= {"mirror": 0, "last row": 0}  # the frame that is bad, where the other is not


@pytest.mark.parametrize("case", BAD)
def test_bad_transforms_are_told(tmp_path: Path, case: str) -> None:
    change, told = BAD[case]
    path = transforms(tmp_path, change)
    if case in ONE_FRAME:
        found = transforms_json.read(path)
        assert len(found.shots) == len(found.left_out) == 1
        assert re.search(told, found.left_out[0].reason)
        content = json.loads(path.read_text())
        content["frames"] = [content["frames"][ONE_FRAME[case]]]
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        transforms_json.read(path)


def test_matrices_without_their_last_row(tmp_path: Path) -> None:
    whole = transforms_json.read(transforms(tmp_path / "a", lambda content: None)).shots
    cut = transforms(
        tmp_path / "b", lambda content: [f["transform_matrix"].pop() for f in content["frames"]]
    )
    for one, other in zip(transforms_json.read(cut).shots, whole, strict=True):
        assert np.array_equal(one.c2w, other.c2w)


@pytest.mark.parametrize("read", [transforms_json.read, ours.read])
def test_files_that_are_no_camera_files(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(UserError, match="there is no"):
        read(path)
    for content, told in (("{", "is not JSON"), ("[1]", "not a JSON object"), ("{}", "no frames")):
        path.write_text(content)
        with pytest.raises(UserError, match=told):
            read(path)


def test_nearly_rigid_poses_are_made_exact(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["frames"][0]["transform_matrix"][0][1] = 0.003

    shot = transforms_json.read(transforms(tmp_path, change)).shots[0]
    assert bool(se3.is_rigid(torch.from_numpy(shot.c2w), tolerance=1e-12))


def test_cameras_json_round_trip(tmp_path: Path, generator: torch.Generator) -> None:
    cameras = random_cameras(3, generator)
    write_cameras(tmp_path / "cameras.json", cameras, ["a", "b", "c"], (48, 64), scale=2.0)
    survey = ours.read(tmp_path / "cameras.json")
    assert [shot.file for shot in survey.shots] == ["a", "b", "c"]
    for i, shot in enumerate(survey.shots):
        np.testing.assert_allclose(shot.c2w, cameras.c2w[0, i], atol=1e-6)
        np.testing.assert_allclose(shot.lens.K, cameras.K[0, i], atol=1e-6)
        assert shot.near == pytest.approx(float(cameras.near[0, i]))
        assert shot.far == pytest.approx(float(cameras.far[0, i]))
        assert shot.lens.size == (48, 64)
        assert shot.depth_file is None
    assert json.loads((tmp_path / "cameras.json").read_text())["scale"] == 2.0


def test_cameras_json_names_depth_maps(tmp_path: Path, generator: torch.Generator) -> None:
    path, cameras = tmp_path / "cameras.json", random_cameras(2, generator)
    files = DepthFiles(("depth/a.png", "depth/b.png"), 0.005)
    write_cameras(path, cameras, ["a", "b"], (48, 64), depth=files)
    survey = ours.read(path)
    assert survey.depth_scale == 0.005
    assert [shot.depth_file for shot in survey.shots] == ["depth/a.png", "depth/b.png"]

"""Scenes as people keep them: layouts of COLMAP, photos that are lost, order, far places."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io.cameras import colmap, find_cameras, read_cameras
from pmsplat.io.cameras.export import Points, write_colmap, write_transforms
from pmsplat.io.cameras.survey import Lens, Shot
from pmsplat.scene import PhotoOptions, Scene, open_scene

LENS = Lens((24, 32), (30.0, 30.0), (16.0, 12.0))
FAR = np.array([441547.502, 5121946.513, 2345.087])


def shots(names: list[str]) -> list[Shot]:
    """Cameras a step apart, in the order of their names; near and far differ by camera."""
    found = []
    for i, name in enumerate(names):
        c2w = np.eye(4)
        c2w[:3, 3] = [0.25 * i, 0.1, 0.0]
        found.append(Shot(name, LENS, c2w, near=1.0 + i, far=9.0 + i))
    return found


def photos(folder: Path, names: list[str]) -> None:
    """A photo of its own brightness for each name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (20 * i, 40, 60)).save(path)


def points() -> Points:
    xyz = np.random.default_rng(0).uniform([-1, -1, 3], [2, 1, 6], (50, 3))
    return Points(xyz, np.zeros((50, 3), np.uint8))


NAMES = [f"{i}.png" for i in range(4)]


def places(scene: Scene) -> list[float]:
    """The x of each camera, in steps."""
    return [round(x / 0.25, 3) for x in scene.cameras.c2w[0, :, 0, 3].tolist()]


@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        ("sparse/0", "images"),
        ("sparse", "images"),
        ("sparse/0", "images_4"),
        ("colmap/sparse/0", "images"),
        ("distorted/sparse/0", "input"),
        ("dense/sparse", "dense/images"),
        ("dense/0/sparse", "dense/0/images"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_layouts_of_colmap(tmp_path: Path, model: str, pictures: str, text: bool) -> None:
    write_colmap(tmp_path / model, shots(NAMES), points(), text)
    photos(tmp_path / pictures, NAMES)
    for path in (tmp_path, tmp_path / model):
        scene = open_scene(path)
        assert places(scene) == [0, 1, 2, 3] and scene.names == tuple(NAMES)


def test_the_largest_of_several_models_unless_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, count in enumerate((2, 4, 3)):
        write_colmap(tmp_path / "sparse" / str(i), shots(NAMES[:count]), points())
    photos(tmp_path / "images", NAMES)
    assert find_cameras(tmp_path) == tmp_path / "sparse" / "1"
    assert "3 models" in caplog.text
    assert len(open_scene(tmp_path)) == 4
    assert len(open_scene(tmp_path / "sparse" / "2")) == 3


def test_photos_of_another_lens_are_not_taken_for_those_of_the_model(tmp_path: Path) -> None:
    """Undistorted copies have the same names: each model has its own folder of photos."""
    for model, own, other in (
        ("distorted/sparse/0", "input", "images"),
        ("dense/sparse", "dense/images", "images"),
    ):
        folder = tmp_path / own.replace("/", "-")
        write_colmap(folder / model, shots(NAMES), points())
        for name in (own, other):
            photos(folder / name, NAMES)
        for path in (folder, folder / model):
            scene = open_scene(path)
            assert scene.photos[0].image == folder / own / "0.png" and scene.name == folder.name


@pytest.mark.parametrize(
    ("model", "own", "other"),
    [
        ("sparse/0", "images", "input"),  # as convert.py of INRIA leaves it: input/ is distorted
        ("sparse/0", "images", "images_2"),
        ("distorted/sparse/0", "input", "images"),
        ("dense/sparse", "dense/images", "images"),
    ],
)
def test_deleted_photos_are_left_out_not_taken_from_another_folder(
    tmp_path: Path, model: str, own: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_colmap(tmp_path / model, shots(NAMES), points())
    photos(tmp_path / own, NAMES)
    photos(tmp_path / other, NAMES)
    (tmp_path / own / "1.png").unlink()
    scene = open_scene(tmp_path)
    assert {photo.image for photo in scene.photos} == {
        tmp_path / own / f"{i}.png" for i in (0, 2, 3)
    }
    assert [left.name for left in scene.left_out] == ["1.png"]
    assert f"there is no such photo in {tmp_path / own}" in caplog.text


def test_a_folder_with_hardly_any_of_the_photos_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_colmap(tmp_path / "sparse" / "0", shots(NAMES), points())
    photos(tmp_path / "images", NAMES[:1])
    photos(tmp_path / "images_4", NAMES)
    scene = open_scene(tmp_path)
    assert len(scene) == 4 and scene.photos[0].image == tmp_path / "images_4" / "0.png"
    assert f"{tmp_path / 'images'} has only 1 of 4 photos" in caplog.text


def test_a_model_without_observations_lines_or_points(tmp_path: Path) -> None:
    write_colmap(tmp_path / "sparse", shots(NAMES), points(), text=True)
    lines = (tmp_path / "sparse" / "images.txt").read_text().splitlines()
    (tmp_path / "sparse" / "images.txt").write_text("\n".join(filter(None, lines)) + "\n")
    (tmp_path / "sparse" / "points3D.txt").unlink()
    survey = colmap.read(tmp_path / "sparse")
    assert [shot.file for shot in survey.shots] == NAMES and survey.points is None


def test_one_lens_that_is_not_known_costs_its_photos_alone(tmp_path: Path) -> None:
    other = replace(LENS, focal=(31.0, 31.0))
    mixed = [replace(shot, lens=other) if i == 2 else shot for i, shot in enumerate(shots(NAMES))]
    write_colmap(tmp_path, mixed, points(), text=True)
    table = (tmp_path / "cameras.txt").read_text().splitlines()
    table[2] = "2 SOME_NEW_LENS 32 24 1 2 3"
    (tmp_path / "cameras.txt").write_text("\n".join(table))
    survey = read_cameras(tmp_path)
    assert [shot.file for shot in survey.shots] == ["0.png", "1.png", "3.png"]
    assert survey.left_out[0].name == "2.png" and "SOME_NEW_LENS" in survey.left_out[0].reason


def test_lost_photos_and_poses_are_named_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_transforms(tmp_path / "transforms.json", shots(NAMES), points())
    photos(tmp_path / "images", NAMES)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1]["transform_matrix"][0][3] = -np.inf
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    (tmp_path / "images" / "3.png").unlink()
    scene = open_scene(tmp_path)
    assert places(scene) == [0, 2] and scene.cameras.near.tolist() == [[1, 3]]
    assert [photo.name for photo in scene.left_out] == ["images/1.png", "images/3.png"]
    assert "2 of 4 photos" in caplog.text and "not finite" in caplog.text
    with pytest.raises(UserError, match="2 of 4 photos"):
        open_scene(tmp_path, PhotoOptions(strict=True))
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="none of the 3 photos"):
        open_scene(tmp_path)


def test_the_folder_of_photos_may_be_named(tmp_path: Path) -> None:
    write_transforms(tmp_path / "transforms.json", shots(NAMES), points())
    photos(tmp_path / "images", NAMES)
    photos(tmp_path / "other" / "half", NAMES)
    for folder in ("other", str(tmp_path / "other" / "half")):
        scene = open_scene(tmp_path, PhotoOptions(folder))
        assert scene.photos[0].image == tmp_path / "other" / "half" / "0.png"
    with pytest.raises(UserError, match="no folder"):
        open_scene(tmp_path, PhotoOptions("nowhere"))


def test_order_is_that_of_times_then_of_numbers_then_of_the_file(tmp_path: Path) -> None:
    def order(names: list[str], times: list[float] | None = None) -> tuple[str, ...]:
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        write_transforms(tmp_path / "transforms.json", shots(names), points())
        photos(tmp_path / "images", names)
        content = json.loads((tmp_path / "transforms.json").read_text())
        for frame, time in zip(content["frames"], times or [], strict=bool(times)):
            frame["timestamp"] = time
        (tmp_path / "transforms.json").write_text(json.dumps(content))
        return open_scene(tmp_path).names

    assert order(["f_10.png", "f_9.png", "f_1.png"]) == ("f_1.png", "f_9.png", "f_10.png")
    assert order(["f_1.png", "f_2.png"], [7.5, 7.25]) == ("f_2.png", "f_1.png")
    assert order(["f_2.png", "f_1.png"], [7.5, 7.5]) == ("f_1.png", "f_2.png")
    assert order(["kitchen.png", "door.png"]) == ("kitchen.png", "door.png")


def test_places_far_away_equal_those_at_the_origin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near = open_scene(_scene_at(tmp_path / "near", np.zeros(3)))
    far = open_scene(_scene_at(tmp_path / "far", FAR))
    assert near.origin == (0, 0, 0)
    assert "far from the origin" in caplog.text
    shift = torch.tensor(far.origin, dtype=torch.float64) - torch.from_numpy(FAR)
    there = far.cameras.c2w[0, :, :3, 3].double() + shift
    assert (there - near.cameras.c2w[0, :, :3, 3].double()).abs().max() < 1e-6
    assert far.points is not None and near.points is not None
    assert (far.points + shift - near.points).abs().max() < 1e-6
    assert torch.allclose(far.cameras.near, near.cameras.near, rtol=1e-6)
    assert torch.allclose(far.cameras.far, near.cameras.far, rtol=1e-6)


def _scene_at(folder: Path, place: np.ndarray) -> Path:
    moved = []
    for shot in shots(NAMES):
        c2w = shot.c2w.copy()
        c2w[:3, 3] += place
        moved.append(replace(shot, c2w=c2w, near=None, far=None))
    cloud = points()
    write_colmap(folder / "sparse" / "0", moved, replace(cloud, xyz=cloud.xyz + place))
    photos(folder / "images", NAMES)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "program"),
    [
        ("bundle.out", "# Bundle file v0.3\n1 0\n", "Bundler"),
        ("scene.nvm", "NVM_V3 \n\n2\n", "VisualSFM"),
        ("reconstruction.json", '[{"cameras": {}, "shots": {}}]', "OpenSfM"),
        ("cameras.sfm", '{"version": ["1"], "views": []}', "AliceVision"),
        ("poses.csv", "#name,x,y,alt,heading,pitch,roll\na.jpg,1,2,3,4,5,6\n", "RealityCapture"),
        ("cameras.xml", '<?xml version="1.0"?>\n<document version="2.0.0">', "Metashape"),
        ("sfm_data.json", '{"sfm_data_version": "0.3", "views": []}', "openMVG"),
        ("cams/00000000_cam.txt", "extrinsic\n1 0 0 0\n", "MVSNet"),
        ("cameras_sphere.npz", "PK\3\4 world_mat_0.npy", "IDR or NeuS"),
        ("poses.log", "0 0 0\n" + "1 0 0 0.5\n" * 4, "Tanks and Temples"),
        ("x_calibrated_camera_parameters.txt", "fileName imageWidth imageHeight\n", "Pix4D"),
    ],
)
def test_cameras_that_are_not_read_are_not_passed_over(
    tmp_path: Path, file: str, content: str, program: str
) -> None:
    photos(tmp_path, NAMES)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"cameras of {program}"):
        open_scene(tmp_path)


def test_what_is_behind_transparent_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_transforms(tmp_path / "transforms.json", shots(NAMES), points())
    for name in NAMES:
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGBA", (32, 24), (255, 0, 0, 128)).save(tmp_path / "images" / name)
    for background in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.5)):
        image = open_scene(tmp_path, PhotoOptions(background=background)).views([0]).images[0, 0]
        share = 128 / 255
        wanted = share * torch.tensor([1.0, 0, 0]) + (1 - share) * torch.tensor(background)
        assert (image[:, 5, 5] - wanted).abs().max() < 1.5 / 255
    assert "transparen" in caplog.text

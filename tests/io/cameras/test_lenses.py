"""Lens models: as pycolmap projects, and what the writers of transforms.json mean."""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pmsplat.errors import UserError
from pmsplat.io import images
from pmsplat.io.cameras import colmap, export, read_cameras
from pmsplat.io.cameras import transforms as transforms_json
from pmsplat.io.cameras.survey import Lens, Shot
from pmsplat.scene import open_scene
from pmsplat.scene.undistort import distort
from tests.io.cameras.test_survey import transforms, write_text_model

FISHEYES = {
    "SIMPLE_FISHEYE": "90 60 40",
    "FISHEYE": "90 95 60 40",
    "SIMPLE_RADIAL_FISHEYE": "90 60 40 .03",
    "RADIAL_FISHEYE": "90 60 40 .03 -.01",
    "OPENCV_FISHEYE": "90 95 60 40 .03 -.01 .004 -.001",
    "THIN_PRISM_FISHEYE": "90 95 60 40 .03 -.01 .002 .003 .004 -.001 .01 -.02",
    "FOV": "90 95 60 40 .8",
    "FULL_OPENCV": "90 95 60 40 .1 .02 .003 .004 .05 .06 .007 .008",
}
POINTS = np.array([(0.4, -0.3, 1.0), (-1.0, 0.5, 1.2), (0.0, 0.0, 3.0), (0.1, 0.9, 0.8)])

BY_PYCOLMAP = """
import sys, numpy as np, pycolmap
model = pycolmap.Reconstruction(sys.argv[1])
(image,) = model.images.values()
points = np.load(sys.argv[2])
np.save(sys.argv[3], [image.project_point(point) for point in points])
"""


@pytest.mark.parametrize("name", FISHEYES)
@pytest.mark.parametrize("rewritten", [False, True])
def test_lenses_project_as_pycolmap_does(tmp_path: Path, name: str, rewritten: bool) -> None:
    model = write_text_model(tmp_path / "model", f"{name} 120 80 {FISHEYES[name]}")
    (shot,) = colmap.read(model).shots
    if rewritten:  # by ourselves, then read by pycolmap
        model = tmp_path / "again"
        export.write_colmap(model, [shot], export.Points(np.zeros((1, 3)), np.zeros((1, 3), "u1")))
    np.save(tmp_path / "points.npy", POINTS)
    paths = [str(path) for path in (model, tmp_path / "points.npy", tmp_path / "its.npy")]
    command = [sys.executable, "-c", BY_PYCOLMAP, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named 'pycolmap'" in done.stderr:
        pytest.skip("pycolmap is not installed")
    if "is not a valid" in done.stderr or "does not exist" in done.stderr.lower():
        pytest.skip(f"this pycolmap does not know {name}")
    assert done.returncode == 0, done.stderr
    got = distort(shot.lens, POINTS[:, :2] / POINTS[:, 2:])
    np.testing.assert_allclose(got, np.load(tmp_path / "its.npy"), atol=1e-9)


def read_lens(folder: Path, change: Callable[[dict], None]) -> Lens:
    return transforms_json.read(transforms(folder, change)).shots[0].lens


def test_k4_is_a_factor_unless_the_model_is_opencvs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One file, three meanings: nerfstudio's r⁸, OpenCV's divisor, and the fisheye's θ⁸."""
    names = {"k1": 0.1, "k2": 0.02, "k3": 0.03, "k4": 0.04}
    x, r2 = 0.5, 0.25
    numerator = 1 + 0.1 * r2 + 0.02 * r2**2 + 0.03 * r2**3
    theta = math.atan(x)
    wanted = {
        "OPENCV": x * (numerator + 0.04 * r2**4),
        "FULL_OPENCV": x * numerator / (1 + 0.04 * r2),
        "OPENCV_FISHEYE": theta
        * (1 + 0.1 * theta**2 + 0.02 * theta**4 + 0.03 * theta**6 + 0.04 * theta**8),
    }
    for model, factor in wanted.items():
        caplog.clear()
        lens = read_lens(tmp_path, lambda c, m=model: c.update(names, camera_model=m))
        assert distort(lens, np.array([x, 0.0]))[0] == pytest.approx(6.5 + 10 * factor, abs=1e-12)
        assert ("factor of r^8" in caplog.text) == (model == "OPENCV")
    # k5 or k6 occur in OpenCV's model alone.
    lens = read_lens(tmp_path, lambda c: c.update(names, k5=0.05, k6=0.06))
    divisor = 1 + 0.04 * r2 + 0.05 * r2**2 + 0.06 * r2**3
    want = 6.5 + 10 * x * numerator / divisor
    assert distort(lens, np.array([x, 0.0]))[0] == pytest.approx(want, abs=1e-12)


def test_ways_to_write_a_fisheye(tmp_path: Path) -> None:
    names = {"k1": 0.1, "k2": 0.02, "k3": 0.03, "k4": 0.04}
    first = read_lens(tmp_path, lambda c: c.update(names, camera_model="OPENCV_FISHEYE"))
    assert first.projection == "fisheye" and first.radial == (0.1, 0.02, 0.03, 0.04, 0, 0)
    assert read_lens(tmp_path, lambda c: c.update(names, is_fisheye=True)) == first
    frame = {"camera_model": "opencv_fisheye", "distortion_params": [0.1, 0.02, 0.03, 0.04, 0, 0]}
    assert read_lens(tmp_path, lambda c: c["frames"][0].update(frame)) == first
    fov = read_lens(tmp_path, lambda c: c.update(camera_model="FOV", omega=0.9))
    want = math.atan(2 * 0.5 * math.tan(0.45)) / 0.9
    assert distort(fov, np.array([0.5, 0.0]))[0] == pytest.approx(6.5 + 10 * want)


def test_numbers_written_as_text(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
            content[key] = str(content[key])
        content["frames"][0] |= {"k1": "-0.0412", "p2": " 2e-4 ", "k3": "0"}

    lens = read_lens(tmp_path, change)
    assert lens == Lens((8, 12), (10.0, 11.0), (6.5, 4.0), (-0.0412, 0, 0, 0, 0, 0), (0.0, 2e-4))
    for text in ("nan", "inf", "wide", "", "1,5"):
        with pytest.raises(UserError, match=r"cx='.*a finite number"):
            read_lens(tmp_path, lambda c, t=text: c.update(cx=t))


def test_fields_of_view_in_degrees_and_radians(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        del content["fl_x"], content["fl_y"]
        content |= {"x_fov": 90, "camera_angle_y": 2 * math.atan(0.5)}

    np.testing.assert_allclose(read_lens(tmp_path, change).focal, (6.0, 8.0))

    def widen(content: dict) -> None:
        change(content)
        content["x_fov"] = 200

    with pytest.raises(UserError, match="field of view of 200 degrees"):
        read_lens(tmp_path, widen)


PANORAMAS = {
    "nerfstudio": {"camera_model": "EQUIRECTANGULAR"},
    "Metashape's word": {"camera_model": "spherical"},
    "instant-ngp": {"equirectangular": True},
    "instant-ngp, the other": {"latlong": 1},
}


@pytest.mark.parametrize("writer", PANORAMAS)
def test_panoramas_are_refused_with_what_to_do(tmp_path: Path, writer: str) -> None:
    with pytest.raises(UserError, match=r"panoramas.*--camera-type equirectangular"):
        read_lens(tmp_path, lambda c: c.update(PANORAMAS[writer]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"camera_model": "ORTHOPHOTO"}, "orthographic pictures"),
        ({"orthographic": True}, "orthographic pictures"),
        ({"ftheta_p0": 0.1}, "lens of model F-theta"),
        ({"camera_model": "FISHEYE624"}, "lens of model FISHEYE624"),
        ({"distortion_params": [0.1]}, "the six numbers k1 k2 k3 k4 p1 p2"),
    ],
)
def test_lenses_that_cannot_be_undistorted(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_lens(tmp_path, lambda c: c.update(fields))


def test_what_is_left_out_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: dict) -> None:
        content |= {"aabb_scale": 16, "rolling_shutter": [0, 1, 0, 0], "b1": 0.3, "p3": 0, "zoo": 7}
        content |= {"train_filenames": ["images/0.png"]}
        for frame in content["frames"]:
            frame |= {"mask_path": "masks/0.png", "sharpness": 30.0, "timestamp": 3.0}

    read_lens(tmp_path, change)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("masks (mask_path)", "rolling shutter", "affinity and skew (b1)", "split"):
        assert record.getMessage().count(part) == 1
    assert "its cameras are used, but not" in record.getMessage()
    assert "not known here (zoo)" in record.getMessage()
    for silent in ("aabb_scale", "sharpness", "p3", "timestamp"):
        assert silent not in record.getMessage()
    caplog.clear()
    read_lens(tmp_path, lambda c: c.update(rolling_shutter=[0, 0, 0, 0], k3="0", is_fisheye=False))
    assert not caplog.records


def test_metashapes_tangential_distortion_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    read_lens(tmp_path, lambda c: c.update(applied_transform=turned, p1=0.0, p2=0.0))
    assert not caplog.records
    read_lens(tmp_path, lambda c: c.update(applied_transform=turned, p1=1e-3))
    assert "issue 3714" in caplog.text


def test_lenses_of_every_kind_survive_a_transforms_file(tmp_path: Path) -> None:
    size, focal, center = (48, 64), (50.0, 51.0), (31.0, 25.0)
    lenses = [
        Lens(size, focal, center),
        Lens(size, focal, center, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.01, 0.02)),
        Lens(size, focal, center, (0.1, 0.2, 0.3, 0.4, 0, 0), (0, 0)),
        Lens(size, focal, center, (0.1, 0.2, 0.3, 0.4, 0, 0), (0.01, 0), "polynomial"),
        Lens(size, focal, center, (0.1, 0.2, 0.3, 0.4, 0, 0), (0, 0), "fisheye"),
        Lens(size, focal, center, (0.1, 0, 0, 0.4, 0, 0), (0, 0.1), "fisheye", (0.2, 0.3)),
        Lens(size, focal, center, (0.9, 0, 0, 0, 0, 0), (0, 0), "fov"),
    ]
    points = export.Points(np.zeros((1, 3)), np.zeros((1, 3), np.uint8))
    for chosen in (lenses, *([lens] for lens in lenses)):
        shots = [Shot(f"{i}.png", lens, np.eye(4)) for i, lens in enumerate(chosen)]
        export.write_transforms(tmp_path / "transforms.json", shots, points)
        assert [shot.lens for shot in read_cameras(tmp_path / "transforms.json").shots] == chosen
    content = json.loads((tmp_path / "transforms.json").read_text())
    assert content["camera_model"] == "FOV" and "camera_model" not in content["frames"][0]
    with pytest.raises(UserError, match="no model of COLMAP"):
        export.write_colmap(tmp_path / "model", [Shot("a.png", lenses[3], np.eye(4))], points)


def test_a_fisheye_scene_opens_as_pinholes(tmp_path: Path) -> None:
    """A point drawn where the fisheye sees it lies in the opened view where its pinhole says."""
    (height, width), focal, center = (120, 160), 60.0, (81.0, 58.0)
    k1, k2, point = 0.05, -0.01, np.array([0.7, -0.5, -1.0])  # in OpenGL's axes, before it
    x, y = point[0] / 1.0, 0.5 / 1.0  # OpenCV: y down, z forward
    r = math.hypot(x, y)
    theta = math.atan(r)
    bent = theta * (1 + k1 * theta**2 + k2 * theta**4) / r
    column, row = focal * x * bent + center[0], focal * y * bent + center[1]
    rows, columns = np.mgrid[:height, :width] + 0.5
    dot = 255 * np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 3)
    photo = np.repeat(dot[..., None], 3, axis=2).astype(np.uint8)

    def change(content: dict) -> None:
        content |= {"w": width, "h": height, "fl_x": focal, "fl_y": focal, "near": 1, "far": 9}
        content |= {"cx": center[0], "cy": center[1], "camera_model": "OPENCV_FISHEYE"}
        content |= {"k1": k1, "k2": k2, "k3": 0, "k4": 0}
        for i, frame in enumerate(content["frames"]):
            images.write_image(tmp_path / frame["file_path"], photo)
            frame["transform_matrix"] = np.eye(4).tolist()
            frame["transform_matrix"][0][3] = float(i)

    views = open_scene(transforms(tmp_path, change)).views()
    K = views.cameras.K[0, 0].numpy()
    want = np.array([K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]]) * [width, height]
    brightness = views.images[0, 0].mean(dim=0)
    got = divmod(int(brightness.argmax()), width)
    assert np.abs(want - [got[1] + 0.5, got[0] + 0.5]).max() <= 1.0
    angle = math.atan(math.hypot(0.5 / K[0, 0], 0.5 / K[1, 1]))
    assert math.radians(40) < angle < math.radians(62)

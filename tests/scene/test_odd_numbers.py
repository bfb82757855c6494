"""Numbers that mean something else than is usual: times, intrinsics, places of another world."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io.cameras import read_cameras
from pmsplat.scene import open_scene
from pmsplat.tasks.cameras import open_cameras
from tests.scene.test_brought import HEIGHT, WIDTH, depth, transforms
from tests.scene.test_found import FAR, LENS, NAMES, photos, places, shots


def test_times_are_numbers_or_dates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(times: list[str]) -> Callable[[dict[str, Any]], object]:
        return lambda c: [f.update(timestamp=t) for f, t in zip(c["frames"], times, strict=True)]

    dates = [f"2026-03-29T12:00:{59 - i}+01:00" for i in range(4)]
    scene = open_scene(transforms(tmp_path, change=change(dates)))
    assert places(scene) == [3, 2, 1, 0] and scene.order == "their times"
    scene = open_scene(transforms(tmp_path, change=change(["noon"] * 4)))
    assert places(scene) == [0, 1, 2, 3] and "times that are no numbers" in caplog.text


@pytest.mark.parametrize(("start", "second"), [(1.4e12, 1e3), (1.4e15, 1e6), (1.4e18, 1e9)])
def test_times_of_any_unit(tmp_path: Path, start: float, second: float) -> None:
    tum(tmp_path, [int(start + 0.1 * i * second) for i in range(4)], int(0.004 * second))
    assert places(open_scene(tmp_path)) == [0, 1, 2, 3]
    tum(tmp_path, [int(start + i * second) for i in range(4)], int(0.5 * second) + 1)
    with pytest.raises(UserError, match=r"no pose within 0\.02 s"):
        open_scene(tmp_path)


def tum(folder: Path, times: list[int], late: int) -> None:
    names = [f"{time}.png" for time in times]
    photos(folder, names)
    pairs = list(zip(times, names, strict=True))
    (folder / "rgb.txt").write_text("".join(f"{time} {name}\n" for time, name in pairs))
    poses = [f"{time + late} {0.25 * i} 0 0 0 0 0 1\n" for i, time in enumerate(times)]
    (folder / "groundtruth.txt").write_text("".join(poses))
    lens = f"60 60 {WIDTH - 0.5} {HEIGHT - 0.5}\n{2 * WIDTH} {2 * HEIGHT}\n"  # of twice the size
    (folder / "calibration.txt").write_text(lens)


def test_a_calibration_of_photos_of_another_size(tmp_path: Path) -> None:
    tum(tmp_path, [1_400_000_000 + i for i in range(4)], 0)
    K = open_scene(tmp_path).cameras.K[0, 0]
    np.testing.assert_allclose(K[:2], [[30 / WIDTH, 0, 0.5], [0, 30 / HEIGHT, 0.5]], rtol=1e-6)


def matrices(folder: Path, K: np.ndarray) -> Path:
    """7-Scenes' way to write poses, with intrinsics and depth of ScanNet's first release."""
    for i, shot in enumerate(shots(NAMES)):
        photos(folder, [f"frame-{i:06d}.color.png"])
        np.savetxt(folder / f"frame-{i:06d}.pose.txt", shot.c2w)
        Image.fromarray(depth(2000, np.uint16)).save(folder / f"frame-{i:06d}.depth.pgm")
    np.savetxt(folder / "camera-intrinsics.txt", K)
    return folder


def test_intrinsics_as_matrices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    K = LENS.K * [[WIDTH], [HEIGHT], [1]]
    found = open_scene(matrices(tmp_path, K)).photos[1].depth()
    assert found is not None and not caplog.text.count("skew")
    np.testing.assert_allclose(found, depth(2), rtol=1e-6)
    skewed = K.copy()
    skewed[0, 1] = 5
    open_scene(matrices(tmp_path, skewed))
    assert "skew, 5: it is left out" in caplog.text
    open_scene(matrices(tmp_path, K * [[2], [2], [1]]))
    assert "the principal point (32.0, 24.0) in photos of 24x32" in caplog.text
    with pytest.raises(UserError, match="last row is"):
        open_scene(matrices(tmp_path, K.T))


def test_focal_lengths_that_contradict_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    angle = 2 * np.arctan(WIDTH / 2 / 60)
    scene = open_scene(transforms(tmp_path, change=lambda c: c.update(camera_angle_x=angle)))
    assert scene.cameras.K[0, 0, 0, 0] == pytest.approx(30 / WIDTH)
    assert "fl_x=30, but a field of view of which it would be 60" in caplog.text
    transforms(tmp_path, change=lambda c: c["frames"][1].update(camera_angle_x=angle))
    K = open_scene(tmp_path).cameras.K[0, :, 0, 0] * WIDTH
    np.testing.assert_allclose(K, [30, 60, 30, 30], rtol=1e-5)  # the frame knows better


def test_inrias_list_with_more_than_inria_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos(tmp_path / "images", NAMES)
    entry = {"width": WIDTH, "height": HEIGHT, "fx": 30, "fy": 30, "cx": 12, "cy": 15, "k1": 0.1}
    entries = [
        entry
        | {"img_name": shot.file[:-4], "position": shot.c2w[:3, 3].tolist()}
        | {"rotation": shot.c2w[:3, :3].tolist()}
        for shot in shots(NAMES)
    ]
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    scene = open_scene(tmp_path)
    np.testing.assert_allclose(scene.cameras.K[0, 0, :2, 2], [12 / WIDTH, 15 / HEIGHT])
    assert "fields that are not known here (k1)" in caplog.text


def test_a_camera_of_another_world_is_left_out(tmp_path: Path) -> None:
    def change(content: dict[str, Any], far: int) -> None:
        content["near"] = None
        for frame in content["frames"][:far]:
            matrix = np.array(frame["transform_matrix"])
            matrix[:3, 3] += FAR
            frame["transform_matrix"] = matrix.tolist()
        del content["near"], content["far"]

    alone = open_scene(transforms(tmp_path / "alone", change=lambda c: change(c, 0)))
    scene = open_scene(transforms(tmp_path, change=lambda c: change(c, 1)))
    assert places(scene) == [1, 2, 3]
    assert "lies 5.14e+06 or more from the others" in scene.left_out[0].reason
    assert scene.cameras.far.max() <= 2 * alone.cameras.far.max()
    with pytest.raises(UserError, match=r"of 4 cameras 2 lie 5\.14e\+06 or more from the others"):
        open_scene(transforms(tmp_path, change=lambda c: change(c, 2)))


def test_verbs_that_take_cameras_alone_name_those_that_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transforms(
        tmp_path,
        change=lambda c: c["frames"][1].update(transform_matrix=[[-np.inf] * 4] * 4),
    )
    assert len(open_cameras(tmp_path)[0].shots) == 3
    assert "1 of 4 photos" in caplog.text and "1.png" in caplog.text
    assert len(read_cameras(tmp_path / "transforms.json").left_out) == 1

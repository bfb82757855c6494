"""Near and far guessed from cameras alone, and where near and far come from."""

import logging
from typing import Any

import numpy as np
import pytest

from pmsplat.errors import UserError
from pmsplat.io.cameras.survey import Lens, Shot, Survey
from pmsplat.scene.bounds import RangeSource, ranges

LENS = Lens(size=(48, 64), focal=(60.0, 60.0), center=(32.0, 24.0))
POINTS = np.stack([np.zeros(50), np.zeros(50), np.linspace(2, 8, 50)], axis=1)


def survey(centers: np.ndarray, points: np.ndarray | None = None, **more: Any) -> Survey:
    """Cameras at `centers` that all look along z."""
    poses = np.tile(np.eye(4), (len(centers), 1, 1))
    poses[:, :3, 3] = centers
    shots = tuple(Shot(f"{i}.png", LENS, pose, **more) for i, pose in enumerate(poses))
    return Survey(shots, points)


def walk(count: int, generator: np.random.Generator) -> np.ndarray:
    """A path with steps of 0.15 to 0.25 that never comes back."""
    steps = np.stack([generator.uniform(0.15, 0.25, count), *generator.normal(0, 0.02, (2, count))])
    return steps.T.cumsum(axis=0)


def test_a_guess_does_not_depend_on_the_order_of_cameras() -> None:
    generator = np.random.default_rng(0)
    centers = walk(31, generator)
    median = np.median(np.linalg.norm(np.diff(centers, axis=0), axis=1))
    found = ranges(survey(centers), None)
    assert found.source is RangeSource.CAMERAS
    assert found.bounds == [(3.0 * median, 300.0 * median)] * 31  # to the bit
    shuffled = ranges(survey(generator.permutation(centers)), None)
    np.testing.assert_allclose(shuffled.bounds, found.bounds, rtol=1e-12)


@pytest.mark.parametrize("tremble", [0.0, 1e-4])
def test_a_start_on_a_tripod_is_no_error(tremble: float, caplog: pytest.LogCaptureFixture) -> None:
    """More than half of the photos at one place, at the start or anywhere."""
    generator = np.random.default_rng(0)
    moving = walk(21, generator)
    standing = np.repeat(moving[:1], 40, axis=0) + generator.normal(size=(40, 3)) * tremble
    wanted = ranges(survey(moving), None).bounds[0]
    for centers in (
        np.concatenate([standing, moving]),
        generator.permutation(np.concatenate([standing, moving])),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = ranges(survey(centers), None).bounds[0]
        assert found == pytest.approx(wanted, rel=0.01)
        assert "40 stand where another does" in caplog.text


def test_one_place_alone_tells_no_scale() -> None:
    with pytest.raises(UserError, match="cameras stand at one place"):
        ranges(survey(np.ones((9, 3)) * [4.4e5, 5.1e6, 100] + 1e-9 * np.eye(9, 3)), None)


def test_the_source_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    centers, sensor = walk(5, np.random.default_rng(0)), np.linspace(1, 4, 100)
    assert ranges(survey(centers, near=1.0, far=9.0), sensor).source is RangeSource.FILE
    assert ranges(survey(centers, POINTS), sensor).source is RangeSource.POINTS
    assert ranges(survey(centers), sensor).source is RangeSource.SENSOR
    assert not caplog.records
    assert ranges(survey(centers), None).source is RangeSource.CAMERAS

"""Near and far: the depths that a network searches, where photographs do not say them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from ..io.cameras.survey import Shot, Survey
from .undistort import pinhole

_PERCENTILES = (1, 99)
_MARGIN = 1.25  # nearer and farther than what was seen: the percentiles cut real surfaces off
_FEWEST_POINTS = 10  # of one camera; a camera with fewer takes those of all cameras
_FOCUS = (0.25, 4.0)  # of the distance to the point that all cameras look at
_STEPS = (3.0, 300.0)  # median camera steps, where there is no such point
_STANDING = 0.01  # of the usual step: less is a camera that stands still, on a tripod say
_ROUNDING = 1e-12  # of the largest coordinate

log = logging.getLogger(__name__)

Range = tuple[float, float]
"""(near, far) in scene units"""


class RangeSource(StrEnum):
    """From what near and far were found."""

    FILE = "the file"
    POINTS = "sparse points"
    SENSOR = "sensor depth"
    CAMERAS = "a guess from the cameras"
    MODEL = "the model"
    NETWORK = "the depth of the network that found the cameras"


@dataclass(frozen=True)
class Ranges:
    """(near, far) of every camera, and where they come from."""

    bounds: list[Range]
    source: RangeSource


def central_depths(depths: Float[np.ndarray, " point"]) -> Range:
    """The 1st and 99th percentile of depths (0 = none).

    Raises ValueError where none is positive.
    """
    seen = depths[depths > 0]
    if len(seen) == 0:
        raise ValueError("no depth is positive")
    low, high = np.percentile(seen, _PERCENTILES)
    return float(low), float(high)


def depth_range(depths: Float[np.ndarray, " point"]) -> Range:
    """(near, far) around the depths that one camera sees (sensor, points or Gaussians; 0 = none).

    The 1st and 99th percentile with a margin of a quarter. Raises ValueError where none is
    positive.
    """
    low, high = central_depths(depths)
    return low / _MARGIN, high * _MARGIN


def depth_ranges(depths: Sequence[Float[np.ndarray, " point"]]) -> list[Range]:
    """`depth_range` of each camera, by what it sees itself, or, where that is less than 10 depths,
    by what all see."""
    pooled = np.concatenate(depths)
    return [depth_range(depth if len(depth) >= _FEWEST_POINTS else pooled) for depth in depths]


def ranges(survey: Survey, sensor: Float[np.ndarray, " point"] | None) -> Ranges:
    """(near, far) of every camera, from the first of these that is known.

    * What the file says, where it says both of every camera; a warning where of some.
    * The sparse points that the camera observes; all in its picture, where no camera observes any.
    * `sensor` depth of the whole scene.
    * The cameras alone: a quarter and four times the distance to the point that they all look at,
      or, where they look at none, 3 and 300 times the step from camera to camera. The order of the
      cameras does not matter. A warning.

    Raises UserError where nothing tells the scale: one camera place, and neither points nor depth.
    """
    stated = [found for found in map(stated_range, survey.shots) if found is not None]
    if len(stated) == len(survey.shots):
        return Ranges(stated, RangeSource.FILE)
    if any(shot.near is not None or shot.far is not None for shot in survey.shots):
        log.warning(
            "%d of %d cameras state near and far: those of all are estimated; give every camera "
            "both to have them used",
            len(stated),
            len(survey.shots),
        )
    if survey.points is not None and len(survey.points) >= _FEWEST_POINTS:
        return Ranges(_from_points(survey), RangeSource.POINTS)
    if sensor is not None and (sensor > 0).any():
        return Ranges([depth_range(sensor)] * len(survey.shots), RangeSource.SENSOR)
    guess = _from_cameras(np.stack([shot.c2w for shot in survey.shots]))
    return Ranges(guess, RangeSource.CAMERAS)


def stated_range(shot: Shot) -> Range | None:
    """(near, far) of a camera as its file says, None where it lacks one of them.

    Raises UserError where they are no range.
    """
    if shot.near is None or shot.far is None:
        return None
    if not 0 < shot.near < shot.far:
        raise UserError(
            f"the camera file has near={shot.near:g} and far={shot.far:g}",
            "0 < near < far",
            "correct them, or take them out to have them estimated",
        )
    return shot.near, shot.far


def _from_points(survey: Survey) -> list[Range]:
    assert survey.points is not None
    # A bare cloud, without observations: what falls into the picture counts.
    bare = not any(shot.seen is not None and len(shot.seen) for shot in survey.shots)
    straight = {lens: pinhole(lens).K for lens in {shot.lens for shot in survey.shots}}
    seen = []
    for shot in survey.shots:
        points = survey.points if bare else survey.points[shot.seen]
        cam = (points - shot.c2w[:3, 3]) @ shot.c2w[:3, :3]
        depth = cam[:, 2]
        if bare:
            xy = (cam @ straight[shot.lens].T)[:, :2] / np.where(depth > 0, depth, np.inf)[:, None]
            depth = depth[((xy > 0) & (xy < 1)).all(axis=1)]
        seen.append(depth[depth > 0])
    pooled = np.concatenate(seen)
    if len(pooled) == 0:
        raise UserError(
            "no sparse point lies in front of a camera",
            "cameras that look at the points",
            "check that the axes of the camera file are those of its format",
        )
    return depth_ranges(seen)


def _from_cameras(c2w: Float[np.ndarray, "camera 4 4"]) -> list[Range]:
    # The step from camera to camera is the only length there is.
    centers, axes = c2w[:, :3, 3], c2w[:, :3, 2]
    steps = _steps(centers)
    if len(steps) == 0:
        raise UserError(
            f"all cameras stand at one place, and there are fewer than {_FEWEST_POINTS} sparse "
            "points and no depth",
            "photos from different places, which show depth and the scale of the scene",
            "step aside between photos, do not only turn; if the places are wrong, pose the photos "
            "again; if only the scale is unknown, give 'near' and 'far' in transforms.json",
        )
    step = float(np.median(steps))
    standing = len(centers) - 1 - len(steps)
    log.warning(
        "fewer than %d sparse points and no depth: near and far are guessed from the cameras%s; "
        "'near' and 'far' in transforms.json set them",
        _FEWEST_POINTS,
        f", of which {standing} stand where another does and do not count" if standing else "",
    )
    # The point nearest to all optical axes, if it lies clearly before every camera.
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    normal = across.sum(axis=0)
    if np.linalg.cond(normal) < 1e3:
        focus = np.linalg.solve(normal, (across @ centers[:, :, None])[:, :, 0].sum(axis=0))
        distance = ((focus - centers) * axes).sum(axis=1)
        if (distance > step).all():
            return [(float(d * _FOCUS[0]), float(d * _FOCUS[1])) for d in distance]
    # They look at no point together.
    return [(_STEPS[0] * step, _STEPS[1] * step)] * len(c2w)


def _steps(centers: Float[np.ndarray, "camera 3"]) -> Float[np.ndarray, " step"]:
    """Lengths from camera place to camera place, whatever the order of the cameras.

    They are the edges of the minimum spanning tree of the places (Prim, 1957), which on a plain
    trajectory are its steps; without those of cameras that stand where another does.
    """
    nearest = np.full(len(centers), np.inf)  # of each camera to the tree
    outside = np.ones(len(centers), dtype=bool)
    edges, at = np.zeros(len(centers) - 1), 0
    for number in range(len(edges)):
        outside[at] = False
        nearest = np.minimum(nearest, np.linalg.norm(centers - centers[at], axis=1))
        at = int(np.where(outside, nearest, np.inf).argmin())
        edges[number] = nearest[at]
    # The usual step: half of the way is made in longer ones. Places in rest do not lower it.
    way = np.sort(edges)
    usual = way[np.searchsorted(way.cumsum(), way.sum() / 2)] if len(way) else 0.0
    return edges[edges > max(_STANDING * usual, _ROUNDING * np.abs(centers).max())]

"""The depth that a network searches, for photographs that do not say it."""

import logging

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from ..io.cameras.survey import Survey

_PERCENTILES = (1, 99)
_MARGIN = 1.25  # nearer and farther than what was seen: the percentiles cut real surfaces off
_FEWEST_POINTS = 10  # of one camera; with fewer, those of all cameras count
_FOCUS = (0.25, 4.0)  # of the distance to the point that all cameras look at
_STEPS = (3.0, 300.0)  # median camera steps, where there is no such point

log = logging.getLogger(__name__)

Range = tuple[float, float]
"""(near, far) in scene units"""


def depth_range(depths: Float[np.ndarray, " point"]) -> Range:
    """(near, far) around the depths seen by one camera (sensor or sparse points; 0 = none).

    The 1st and 99th percentile with a margin of a quarter. Raises ValueError where none is
    positive.
    """
    seen = depths[depths > 0]
    if len(seen) == 0:
        raise ValueError("no depth is positive")
    near, far = np.percentile(seen, _PERCENTILES)
    return float(near / _MARGIN), float(far * _MARGIN)


def ranges(survey: Survey, sensor: Float[np.ndarray, " point"] | None) -> list[Range]:
    """(near, far) of every camera, from the best that is known, in this order.

    What the file says; the sparse points that the camera observes; `sensor` depth of the whole
    scene; else the cameras alone: a quarter and four times the distance to the point that they all
    look at, or, where they look at none, 3 and 300 times the step from camera to camera.
    """
    stated = [(shot.near, shot.far) for shot in survey.shots]
    told = [(near, far) for near, far in stated if near is not None and far is not None]
    if len(told) == len(stated):
        return [_checked(near, far) for near, far in told]
    if survey.points is not None and len(survey.points) >= _FEWEST_POINTS:
        return _from_points(survey)
    if sensor is not None and (sensor > 0).any():
        return [depth_range(sensor)] * len(survey.shots)
    log.warning(
        "no sparse points and no depth: near and far are guessed from the cameras; "
        "`near` and `far` in transforms.json set them"
    )
    return _from_cameras(np.stack([shot.c2w for shot in survey.shots]))


def _checked(near: float, far: float) -> Range:
    if not 0 < near < far:
        raise UserError(
            f"the camera file has near={near:g} and far={far:g}", "0 < near < far", "correct them"
        )
    return near, far


def _from_points(survey: Survey) -> list[Range]:
    assert survey.points is not None
    seen = []
    for shot in survey.shots:
        points = survey.points if shot.seen is None else survey.points[shot.seen]
        cam = (points - shot.c2w[:3, 3]) @ shot.c2w[:3, :3]
        depth = cam[:, 2]
        if shot.seen is None:  # a bare cloud: what falls into the picture
            xy = (cam @ shot.lens.K.T)[:, :2] / np.where(depth > 0, depth, np.inf)[:, None]
            depth = depth[((xy > 0) & (xy < 1)).all(axis=1)]
        seen.append(depth[depth > 0])
    pooled = np.concatenate(seen)
    if len(pooled) == 0:
        raise UserError(
            "no sparse point lies in front of a camera",
            "cameras that look at the points",
            "check that the axes of the camera file are those of its format",
        )
    return [depth_range(depth if len(depth) >= _FEWEST_POINTS else pooled) for depth in seen]


def _from_cameras(c2w: Float[np.ndarray, "camera 4 4"]) -> list[Range]:
    centers, axes = c2w[:, :3, 3], c2w[:, :3, 2]
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    if len(steps) == 0 or np.median(steps) == 0:
        raise UserError(
            "one camera place, no sparse points and no depth",
            "something that tells the scale of the scene",
            "give `near` and `far` in transforms.json",
        )
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # nearest point to all optical axes
    normal = across.sum(axis=0)
    if np.linalg.cond(normal) < 1e3:
        focus = np.linalg.solve(normal, (across @ centers[:, :, None])[:, :, 0].sum(axis=0))
        distance = ((focus - centers) * axes).sum(axis=1)
        if (distance > np.median(steps)).all():
            return [(float(d * _FOCUS[0]), float(d * _FOCUS[1])) for d in distance]
    step = float(np.median(steps))
    return [(_STEPS[0] * step, _STEPS[1] * step)] * len(c2w)

"""A closed circle around a scene: where its middle is, what is up, and how far to stand away."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import UserError
from ..types import Gaussians
from . import trajectory

ORBIT_SIZE = (540, 960)  # (height, width) of pictures without given cameras
UPWARD = {sign + axis for sign in ("", "-") for axis in "xyz"}

_SAMPLE = 100_000  # Gaussians that tell where the scene is
_VIEW = math.radians(50), math.radians(80)  # the shorter side of the lens at most, and the longer
_SHARE, _MARGIN = 0.99, 1.1  # of the opacity is inside, and so much more has room
_FLOATERS = 0.05  # of the opacity at most: more is scenery, however far
_OUTLYING = 8.0  # deviations of the logarithm of the distance, beyond which Gaussians are floaters
_SPREAD = 0.1  # least deviation of it that counts, for scenes like a shell
_REACH = 2.0  # standard deviations of a Gaussian that are inside with it
_ELEVATION = math.radians(20)  # of the camera above the horizon
_STEEPEST = math.radians(60)  # above which a given camera does not begin an orbit
_LEVEL = 1e-3  # how little the horizon of cameras must vary before it no longer tells what is up


@dataclass(frozen=True)
class Orbit:
    """Poses once around a scene, all of one lens; `start` is the given camera it begins with."""

    c2w: Float[Tensor, "frame 4 4"]
    K: Float[Tensor, "3 3"]
    start: int | None = None


def circle_scene(
    gaussians: Gaussians, frames: int, size: tuple[int, int] = ORBIT_SIZE, up: str | None = None
) -> Orbit:
    """A circle from which pictures of `size` show nearly all of the opacity, from slightly above.

    A few Gaussians that lie far from all others do not count. `up` names an axis ("z", "-x"); by
    default it is what the file says, or -y. The lens has square pixels. Batch 1. Raises UserError
    for no frames and for an axis that is none.
    """
    _check(frames, up)
    some = _drop_floaters(sample_gaussians(gaussians))
    K, middle, sky = _lens(size), _middle(some), _sky(gaussians, up)
    ahead = axis("-y") if abs(sky[2]) > abs(sky[1]) else axis("-z")
    ahead = normalize(ahead - (ahead @ sky) * sky, dim=-1)
    away = math.cos(_ELEVATION) * ahead + math.sin(_ELEVATION) * sky
    eye = middle + _distance(some, middle, sky, K) * away
    return Orbit(trajectory.around(eye, middle, sky, frames), K)


def circle_from(
    gaussians: Gaussians,
    frames: int,
    c2w: Float[Tensor, "view 4 4"],
    K: Float[Tensor, "view 3 3"],
    up: str | None = None,
) -> Orbit:
    """The circle around the median Gaussian that the first of the given cameras begins.

    The first means the first that does not look down too steeply; its lens is that of all. Up is
    the axis `up`, or else as `upward` finds it. Batch 1. Raises UserError for no frames, for an
    axis that is none, and where all cameras look down.
    """
    _check(frames, up)
    middle = sample_gaussians(gaussians).means[0].median(dim=0).values
    sky = axis(up) if up else upward(c2w)
    slope = normalize(c2w[:, :3, 3] - middle, dim=-1) @ sky
    level = slope.abs() < math.sin(_STEEPEST)
    if not level.any():
        raise UserError(
            "cameras that all look down on the scene",
            "one beside it, to carry around it",
            "leave out the cameras for a circle around the scene",
        )
    first = int(level.int().argmax())
    return Orbit(trajectory.around(c2w[first, :3, 3], middle, sky, frames), K[first], first)


def sample_gaussians(gaussians: Gaussians) -> Gaussians:
    """Gaussians from all over the scene, a limited number, float32 on the CPU."""
    step = -(-gaussians.means.shape[1] // _SAMPLE)
    return gaussians.detach().map(lambda tensor: tensor[:, ::step].float().cpu())


def upward(c2w: Float[Tensor, "view 4 4"]) -> Float[Tensor, "3"]:
    """The direction that photographers held for up: their cameras tilt, but seldom roll.

    The mean upward direction of the pictures, less what of it lies along their horizontal axes.
    """
    right, up = c2w[:, :3, 0], -c2w[:, :3, 1].mean(dim=0)
    along = right.T @ right / len(right) + _LEVEL * torch.eye(3).to(right)
    return normalize(torch.linalg.solve(along, up), dim=-1)


def axis(name: str) -> Float[Tensor, "3"]:
    """The unit vector of an axis of the world: one of UPWARD."""
    unit = torch.eye(3)["xyz".index(name[-1])]
    return -unit if name.startswith("-") else unit


def _sky(gaussians: Gaussians, up: str | None) -> Float[Tensor, "3"]:
    """The direction that is up: the named axis, or what the file said, or -y."""
    if up is None and gaussians.up is not None:
        return normalize(torch.tensor(gaussians.up), dim=-1)
    return axis(up or "-y")


def _check(frames: int, up: str | None) -> None:
    if frames < 1:
        raise UserError(f"`orbit={frames}`", "at least one picture", "such as `orbit=120`")
    if up is not None and up not in UPWARD:
        raise UserError(f"`up={up}`", "an axis of the world", f"one of {', '.join(sorted(UPWARD))}")


def _lens(size: tuple[int, int]) -> Float[Tensor, "3 3"]:
    """The widest lens within _VIEW for square pixels."""
    sides = (min(size), max(size))
    focal = max(0.5 * n / math.tan(view / 2) for n, view in zip(sides, _VIEW, strict=True))
    K = torch.eye(3)
    K[0, 0], K[1, 1], K[:2, 2] = focal / size[1], focal / size[0], 0.5
    return K


def _middle(some: Gaussians) -> Float[Tensor, "3"]:
    """Halfway between what is left and right, above and below, before and behind."""
    ends = [
        _share(values, some.opacities[0], share)
        for values in some.means[0].unbind(dim=-1)
        for share in (1 - _SHARE, _SHARE)
    ]
    return torch.stack(ends).reshape(3, 2).mean(dim=-1)


def _drop_floaters(some: Gaussians) -> Gaussians:
    """Those that do not lie far from all others; all of them where too many do.

    The logarithm of the distance from the middle is compared with its median, in median absolute
    deviations: that follows a small object as well as a scene with a wide background.
    """
    weights, means = some.opacities[0], some.means[0]
    if not len(weights) or not weights.sum() > 0:
        return some
    middle = torch.stack([_share(values, weights, 0.5) for values in means.unbind(dim=-1)])
    away = (means - middle).norm(dim=-1).clamp_min(torch.finfo(means.dtype).tiny).log()
    usual = _share(away, weights, 0.5)
    deviation = _share((away - usual).abs(), weights, 0.5).clamp_min(_SPREAD)
    near = away <= usual + _OUTLYING * deviation
    if weights[~near].sum() > _FLOATERS * weights.sum():
        return some
    return some.map(lambda tensor: tensor[:, near])


def _distance(
    some: Gaussians, middle: Float[Tensor, "3"], sky: Float[Tensor, "3"], K: Float[Tensor, "3 3"]
) -> float:
    """How far from the middle a camera at _ELEVATION sees _SHARE of the opacity all around.

    A Gaussian, a ball here, is at height h and, as the camera goes around, anywhere on a circle of
    radius r about the axis. Its picture is inside where |x| <= z · wide and |y| <= z · high; z is
    the distance less what it is nearer than the middle, so each asks for a distance, whose largest
    value on the circle is a closed form.
    """
    wide, high = (0.5 / K[i, i].item() / _MARGIN for i in (0, 1))
    sine, cosine = math.sin(_ELEVATION), math.cos(_ELEVATION)
    ball = _REACH * some.scales[0].amax(dim=-1)
    off = some.means[0] - middle
    h = off @ sky
    r = (off - h[:, None] * sky).norm(dim=-1)
    needs = [
        h * sine + r * math.hypot(1 / wide, cosine) + ball * math.hypot(1 / wide, 1),
        *(
            h * (sine + side * cosine / high)
            + r * abs(cosine - side * sine / high)
            + ball * math.hypot(1 / high, 1)
            for side in (-1, 1)
        ),
    ]
    needed = torch.stack(needs).amax(dim=0)
    return _share(needed, some.opacities[0], _SHARE).item()


def _share(
    values: Float[Tensor, " gaussian"], weights: Float[Tensor, " gaussian"], share: float
) -> Float[Tensor, ""]:
    """The value below or at which so much of the weight is."""
    order = values.argsort()
    below = weights.double()[order].cumsum(dim=0)
    first = torch.searchsorted(below, share * below[-1]).clamp(max=len(values) - 1)
    return values[order[first]]

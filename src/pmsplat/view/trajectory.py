"""Camera paths for videos: through given cameras, around one camera, or around a point."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..geometry import gaussian, se3
from ..types import Cameras

STEPS = 32  # samples per leg of the curve, to measure its length


def through(cameras: Cameras, frames: int) -> Cameras:
    """Returns a smooth path of `frames` cameras through all given ones, at constant speed.

    Positions follow a Catmull-Rom spline with centripetal knots (Yuksel et al., "Parameterization
    and applications of Catmull-Rom curves", 2011: no loops, no overshoot); rotations are slerped
    between neighbours, the rest is interpolated linearly. Speed counts distance and rotation in
    equal shares, so a camera that only rotates also takes time. One camera gives a still.
    """
    count = cameras.c2w.shape[1]
    if count == 1:
        return cameras.at([0] * frames)
    time = torch.linspace(0, count - 1, (count - 1) * STEPS + 1).to(cameras.c2w)
    # Find the times at which the camera has covered equal lengths of the path.
    length = _measure_length(_interpolate_poses(cameras.c2w, time))
    goal = torch.linspace(0, 1, frames).to(length) * length[-1]
    after = torch.searchsorted(length, goal).clamp(1, len(length) - 1)
    share = ((goal - length[after - 1]) / (length[after] - length[after - 1])).clamp(0, 1)
    time = torch.lerp(time[after - 1], time[after], share)

    # Interpolate the cameras at these times.
    def interpolate(values: Tensor) -> Tensor:
        leg = time.floor().long().clamp(max=count - 2)
        t = (time - leg).reshape(1, -1, *[1] * (values.dim() - 2))
        return values[:, leg] * (1 - t) + values[:, leg + 1] * t

    c2w = _interpolate_poses(cameras.c2w, time)
    return Cameras(c2w, interpolate(cameras.K), interpolate(cameras.near), interpolate(cameras.far))


def around(
    eye: Float[Tensor, "3"], point: Float[Tensor, "3"], up: Float[Tensor, "3"], frames: int
) -> Float[Tensor, "frame 4 4"]:
    """Returns poses (c2w) on a circle around a point, starting at `eye` and looking at the point.

    The circle is perpendicular to `up` and closed: the frame after the last would be the first.
    `eye` must not lie straight above or below the point.
    """
    up = normalize(up, dim=-1)
    half = torch.arange(frames).to(eye)[:, None] * (math.pi / frames)
    rotation = gaussian.quat_to_rotation(torch.cat([half.cos(), half.sin() * up], dim=-1))
    return se3.look_at(point + rotation @ (eye - point), point, up)


def stabilize(cameras: Cameras, width: float) -> Cameras:
    """Removes hand tremble from a path with a Gaussian low-pass filter over frames.

    `width` is the standard deviation in frames. Positions are averaged; rotations are averaged as
    quaternions of consistent sign and normalised: the chordal mean of close rotations. At its ends
    the path is extended by its mirror image about the end point, which keeps the end in place.
    """
    c2w = cameras.c2w
    count = c2w.shape[1]
    reach = min(math.ceil(3 * width), count - 1)
    if reach < 1:
        return cameras
    # Build the filter.
    offsets = torch.arange(-reach, reach + 1, device=c2w.device, dtype=c2w.dtype)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    kernel = kernel / kernel.sum()
    # Filter positions and rotations.
    quats = _align_signs(gaussian.rotation_to_quat(c2w[..., :3, :3]))

    def smooth(values: Float[Tensor, "batch view channel"]) -> Tensor:
        head = 2 * values[:, :1] - values[:, 1 : reach + 1].flip(1)
        tail = 2 * values[:, -1:] - values[:, -reach - 1 : -1].flip(1)
        padded = torch.cat([head, values, tail], dim=1).unfold(1, 2 * reach + 1, 1)
        return padded @ kernel

    rotation = gaussian.quat_to_rotation(smooth(quats))
    smoothed = se3.compose(rotation, smooth(c2w[..., :3, 3]))
    return Cameras(smoothed, cameras.K, cameras.near, cameras.far)


def _measure_length(c2w: Float[Tensor, "batch view 4 4"]) -> Float[Tensor, " view"]:
    """Returns how far along a path each camera is: its shares of the distance and the rotation."""
    step = (c2w[0, 1:, :3, 3] - c2w[0, :-1, :3, 3]).norm(dim=-1)
    rotation = c2w[0, :, :3, :3]
    chord = (rotation[1:] - rotation[:-1]).flatten(1).norm(dim=-1)  # about the angle, scaled
    tiny = torch.finfo(step.dtype).eps
    share = step / step.sum().clamp_min(tiny) + chord / chord.sum().clamp_min(tiny)
    length = share.clamp_min(1e-9).cumsum(0)
    return torch.cat([torch.zeros_like(length[:1]), length])


def _interpolate_poses(
    c2w: Float[Tensor, "batch view 4 4"], time: Float[Tensor, " frame"]
) -> Float[Tensor, "batch frame 4 4"]:
    """Interpolates poses; at integer times the result is a given pose."""
    leg = time.floor().long().clamp(max=c2w.shape[1] - 2)
    fraction = time - leg
    rotated = se3.interpolate(c2w[:, leg], c2w[:, leg + 1], fraction[None])
    position = _catmull_rom(c2w[..., :3, 3], leg, fraction)
    return se3.compose(rotated[..., :3, :3], position)


def _catmull_rom(
    points: Float[Tensor, "batch point 3"], leg: Tensor, fraction: Float[Tensor, " frame"]
) -> Float[Tensor, "batch frame 3"]:
    """Evaluates a Catmull-Rom spline by Barry and Goldman's pyramid; the ends are mirrored."""
    first, last = 2 * points[:, :1] - points[:, 1:2], 2 * points[:, -1:] - points[:, -2:-1]
    padded = torch.cat([first, points, last], dim=1)
    p0, p1, p2, p3 = (padded[:, leg + i] for i in range(4))
    gaps = [(b - a).norm(dim=-1, keepdim=True).sqrt() for a, b in ((p0, p1), (p1, p2), (p2, p3))]
    gaps = [gap.clamp_min(1e-6) for gap in gaps]
    k0, k1, k2, k3 = -gaps[0], 0 * gaps[0], gaps[1], gaps[1] + gaps[2]
    t = fraction[None, :, None] * gaps[1]

    def lerp(a: Tensor, b: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return a + (b - a) * ((t - start) / (end - start))

    a1, a2, a3 = lerp(p0, p1, k0, k1), lerp(p1, p2, k1, k2), lerp(p2, p3, k2, k3)
    return lerp(lerp(a1, a2, k0, k2), lerp(a2, a3, k1, k3), k1, k2)


def _align_signs(quats: Float[Tensor, "batch view 4"]) -> Float[Tensor, "batch view 4"]:
    """Flips the signs of quaternions so that each is close to the one before; same rotations."""
    dots = (quats[:, 1:] * quats[:, :-1]).sum(dim=-1, keepdim=True)
    signs = torch.where(dots < 0, -1.0, 1.0).to(quats).cumprod(dim=1)
    return torch.cat([quats[:, :1], quats[:, 1:] * signs], dim=1)

"""From per-pixel numbers and depth to 3D Gaussians in the world.

Conventions follow pixelSplat (Charatan et al., CVPR 2024) and DepthSplat: the network predicts
shape and color in the camera's frame, and they are rotated into the world here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from ..geometry import camera, gaussian, sh
from ..geometry.constants import constant, keep_results
from ..geometry.products import matmul
from ..kernels import harmonics
from ..nn.maps import BorderConv
from ..types import Cameras, Gaussians
from ._depth import DepthEstimate
from ._deviations import Deviations

# channels of a pixel: opacity, offset, scale, quaternion xyzw, then SH colour by colour
OPACITY, OFFSET, SCALE, QUATERNION, SH = 0, slice(1, 3), slice(3, 6), slice(6, 10), slice(10, None)
MIN_SCALE = 1e-10
RENDERED_DEGREE = 3  # released networks give degree 4 too, which their renderer never evaluates


def channels(sh_degree: int) -> int:
    """The number of channels that describe a pixel's Gaussian."""
    return SH.start + 3 * (sh_degree + 1) ** 2


def out_convolutions(inputs: int, hidden: int, sh_degree: int) -> nn.Sequential:
    """Maps at full size -> the channels of every pixel; every Gaussian starts round, with the color
    of its pixel."""
    last = BorderConv(hidden, channels(sh_degree))
    with torch.no_grad():
        for rows in (SCALE, SH):
            last.weight[rows] = 0
            if last.bias is not None:
                last.bias[rows] = 0
    return nn.Sequential(BorderConv(inputs, hidden), nn.GELU(), last)


class PixelHead(nn.Module):
    """Image, depth and the depth network's maps -> the channels of every pixel.

    Its last layers, `out`, read maps of `inputs` channels at full size.
    """

    inputs: int
    out: nn.Module

    def maps(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        depth: Float[Tensor, "batch view height width"],
        estimate: DepthEstimate,
    ) -> Iterator[Float[Tensor, "n _ height width"]]:
        """What the last layers read, of some images after others."""
        raise NotImplementedError

    def numbers(self, maps: Iterable[Tensor]) -> Float[Tensor, "n channel height width"]:
        """What the last layers make of these maps."""
        return torch.cat(list(map(self.out, maps)))

    def forward(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        depth: Float[Tensor, "batch view height width"],
        estimate: DepthEstimate,
    ) -> Float[Tensor, "batch view channel height width"]:
        return self.numbers(self.maps(images, depth, estimate)).unflatten(0, images.shape[:2])


@dataclass(frozen=True)
class Rules:
    """How numbers become Gaussians.

    `scale` says what a Gaussian's size is: "softplus", softplus(s - 4), or "exp", exp(s - 4), in
    scene units and at most `scale_max`; or "pixel", from 0.5 to 15 tenths of a pixel's footprint at
    the Gaussian's depth. Means move within their pixel, or, with `free_offset`, by half a pixel for
    every unit of the network's output. `image_color` adds the color of the input pixel to degree 0.
    Of `deviations`, `along_ray`, `sh_basis` and `sh_signs` act here.
    """

    sh_degree: int
    scale: str
    scale_max: float
    deviations: Deviations
    free_offset: bool = False
    image_color: bool = True


def gaussians_at(
    raw: Float[Tensor, "batch view channel height width"],
    depths: tuple[Float[Tensor, "batch view height width"], ...],
    images: Float[Tensor, "batch view 3 height width"],
    cameras: Cameras,
    rules: Rules,
) -> tuple[Gaussians, ...]:
    """One set of Gaussians for each of `depths` (z in scene units), one Gaussian for each pixel.

    Everything but place (and size, where it is in pixels) is shared. Gradients flow to `raw` and to
    the depths.
    """
    height, width = images.shape[-2:]
    with torch.autocast(raw.device.type, enabled=False):
        # Rays through the pixels, each moved by the predicted offset, in the world.
        pixels = raw.float().permute(0, 1, 3, 4, 2).flatten(2, 3)
        c2w, K = cameras.c2w.float(), cameras.K.float()
        rotation = c2w[..., :3, :3]
        widths = (1, *(part.stop - part.start for part in (OFFSET, SCALE, QUATERNION)))
        rest = pixels.shape[-1] - SH.start
        opacity, offset, size, quats, harmonics = pixels.split((*widths, rest), dim=-1)
        offset = 0.5 * offset if rules.free_offset else offset.sigmoid() - 0.5
        rays = world_rays(offset, K, rotation, (height, width), unit=rules.deviations.along_ray)
        # What all levels share: opacity, orientation, color, and size up to depth.
        opacities = opacity[..., 0].sigmoid().flatten(1)
        quats = world_quats(quats, rotation).flatten(1, 2)
        colors = world_sh(harmonics, images, rotation, rules).flatten(1, 2)
        unit = world_scales(size, rules, K, (height, width))
        # One set of Gaussians for each level of depth.
        out = []
        for depth in depths:
            z = depth.flatten(2)[..., None]
            means = c2w[:, :, None, :3, 3] + z * rays
            scales = unit * z if rules.scale == "pixel" else unit
            out.append(
                Gaussians(means.flatten(1, 2), scales.flatten(1, 2), quats, opacities, colors)
            )
    return tuple(out)


def world_rays(
    offset: Float[Tensor, "batch view pixel 2"],
    K: Float[Tensor, "batch view 3 3"],
    rotation: Float[Tensor, "batch view 3 3"],
    size: tuple[int, int],
    *,
    unit: bool = False,
) -> Float[Tensor, "batch view pixel 3"]:
    """Rays through the pixels of a grid of (height, width), each `offset` by a share of a pixel, in
    the world's axes: as long as z is 1, or of `unit` length."""
    height, width = size
    grid = camera.pixel_grid(height, width, like=offset).flatten(0, 1)
    rays = camera.directions(grid + offset / constant((width, height), offset), K[:, :, None])
    return matmul(normalize(rays, dim=-1) if unit else rays, rotation.transpose(-1, -2))


def image_base(
    images: Float[Tensor, "batch view 3 height width"],
) -> Float[Tensor, "batch view pixel 3"]:
    """The harmonic of degree 0 that shows the color of each pixel."""
    return (images.flatten(3).transpose(-1, -2) - 0.5) / sh.C0


def world_scales(
    raw: Float[Tensor, "batch view pixel 3"],
    rules: Rules,
    K: Float[Tensor, "batch view 3 3"],
    size: tuple[int, int],
) -> Float[Tensor, "batch view pixel 3"]:
    """Standard deviations in scene units, or, where they are in pixels, those at depth 1."""
    if rules.scale == "softplus":
        return softplus(raw - 4).clamp(MIN_SCALE, rules.scale_max)
    if rules.scale == "exp":
        return (raw - 4).exp().clamp(max=rules.scale_max)
    # a tenth of a pixel's width plus its height at depth 1, as MVSplat has it
    across, down = torch.linalg.inv_ex(K[..., :2, :2]).inverse.sum(dim=-2).unbind(dim=-1)
    footprint = across / size[1] + down / size[0]
    return (0.5 + 14.5 * raw.sigmoid()) * (0.1 * footprint[:, :, None, None])


def world_quats(
    xyzw: Float[Tensor, "batch view pixel 4"], rotation: Float[Tensor, "batch view 3 3"]
) -> Float[Tensor, "batch view pixel 4"]:
    """Unit quaternions, scalar first, of Gaussians given in the camera's frame, scalar last.

    Turning is linear in the quaternion: one 4x4 matrix for each view, reordering included.
    """
    turn = gaussian.rotation_to_quat(rotation)
    (w, x, y, z), (_, a, b, c) = turn.unbind(dim=-1), (0 - turn).unbind(dim=-1)
    rows = [a, w, z, b, b, c, w, x, c, y, a, w, w, x, y, z]  # turn times i, j, k and 1
    matrix = torch.stack(rows, dim=-1).unflatten(-1, (4, 4))
    return normalize(matmul(xyzw, matrix), dim=-1)


def world_sh(
    raw: Float[Tensor, "batch view pixel channel"],
    images: Float[Tensor, "batch view 3 height width"],
    rotation: Float[Tensor, "batch view 3 3"],
    rules: Rules,
) -> Float[Tensor, "batch view pixel sh 3"]:
    """Harmonics in the world and the standard basis: damped by degree, rotated, with the color of
    the image added."""
    predicted = (rules.sh_degree + 1) ** 2
    sh_basis = rules.deviations.sh_basis
    degree = min(rules.sh_degree, RENDERED_DEGREE) if sh_basis else rules.sh_degree
    matrix = sh_matrix(rotation, degree, rules.deviations)
    matrix = matrix * _damping(degree, matrix.device)
    used = raw.unflatten(-1, (3, predicted))[..., : matrix.shape[-1]]
    base = image_base(images) if rules.image_color else None
    return harmonics.turn(matrix, used, base)


def sh_matrix(
    rotation: Float[Tensor, "batch view 3 3"], degree: int, deviations: Deviations
) -> Float[Tensor, "batch view sh sh"]:
    """The matrix from a pixel's coefficients, in the camera's frame, to the world's standard basis.

    Released networks predict in another basis, the standard one seen along (z, x, y) (`sh_basis`),
    and their harmonics were turned by e3nn's Wigner matrices, whose basis has the opposite sign
    where m is odd (`sh_signs`): not the exact rotation, but what the weights were trained with.
    """
    turn = sh.rotation_matrix(rotation, degree)
    if not (deviations.sh_basis or deviations.sh_signs):
        return turn
    standard, rendered, signs = _released_basis(degree, turn.dtype, turn.device)
    if deviations.sh_basis:
        turn = matmul(matmul(standard.T, turn), standard)
    if deviations.sh_signs:
        turn = signs[:, None] * turn * signs
    return matmul(rendered, turn) if deviations.sh_basis else turn


@keep_results
def _damping(degree: int, device: torch.device) -> Float[Tensor, " sh"]:
    """Factors that keep higher degrees small at first: 1, then 0.1 · 0.25^degree."""
    factors = [0.1 * 0.25**d if d else 1.0 for d in range(degree + 1) for _ in range(2 * d + 1)]
    return torch.tensor(factors, device=device)


@keep_results
def _released_basis(
    degree: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "sh sh"], Float[Tensor, "sh sh"], Float[Tensor, " sh"]]:
    """The matrix from released coefficients to the standard basis, what is rendered, and (-1)^m.

    Rendered is that matrix with a fault of the renderer that networks of degree 3 were trained
    with. It draws z(z² - x²) for coefficient 14, where its basis has y(z² - x²). On the unit sphere
    that is a sum of the standard basis functions 2, 12 and 14.
    """
    cycle = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    standard = sh.rotation_matrix(cycle, degree)
    rendered = standard.clone()
    if degree >= 3:
        fault = standard.new_tensor([1.4**0.5, 0.3 * 15**0.5, -0.5])
        rendered[:, 14] = 0
        rendered[[2, 12, 14], 14] = fault
    signs = [(-1.0) ** m for d in range(degree + 1) for m in range(-d, d + 1)]
    found = standard, rendered, torch.tensor(signs, dtype=torch.float64)
    return tuple(x.to(device, dtype) for x in found)  # pyright: ignore[reportReturnType]

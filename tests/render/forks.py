"""Stand-ins for the forks of diff-gaussian-rasterization: their calls, returns and gradients.

Dense float32 torch, written after the descriptions of the CUDA code and independent of our
projection: matrices are read from memory as the kernels read them, positions come from
`projmatrix`, z from `viewmatrix`, focal lengths from `tanfov`; Gaussians are listed in the 16x16
tiles that a square of three standard deviations touches. What a fork does not differentiate gets
zero gradients here too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class WithDebug(NamedTuple):
    """The settings of graphdeco's rasteriser and of most forks: 12 fields."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool


class WithoutDebug(NamedTuple):
    """Luiten's: 11 fields."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool


class WithAntialiasing(NamedTuple):
    """Graphdeco's of October 2024: 13 fields."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool
    antialiasing: bool


class WithPose(NamedTuple):
    """One that differentiates poses, which the adapter does not know."""

    image_height: int
    projmatrix_raw: Tensor


@dataclass(frozen=True)
class Drawn:
    """What the kernels have at hand at the end of a pass."""

    color: Tensor
    radii: Tensor
    depth: Tensor  # Σ z·weight
    depth_of_fixed_z: Tensor  # the same without gradient to z
    alpha: Tensor
    median: Tensor
    inverse: Tensor  # Σ weight / z


class _Undifferentiated(torch.autograd.Function):
    """Belongs to the graph, as every output of a fork does, and brings zeros back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return torch.zeros_like(grads[0])


def _undifferentiated(values: Tensor) -> Tensor:
    found = _Undifferentiated.apply(values)
    assert isinstance(found, Tensor)
    return found


def _graphdeco(drawn: Drawn) -> tuple[Tensor, ...]:
    return drawn.color, drawn.radii


def _leo_frank(drawn: Drawn) -> tuple[Tensor, ...]:
    weight = drawn.alpha + 1e-6
    return drawn.color, drawn.radii, drawn.depth / weight, _undifferentiated(weight)


def _ashawkey(drawn: Drawn) -> tuple[Tensor, ...]:
    return drawn.color, drawn.radii, drawn.depth[None], drawn.alpha[None]


def _ashawkey_early(drawn: Drawn) -> tuple[Tensor, ...]:
    return drawn.color, drawn.radii, drawn.depth_of_fixed_z[None], drawn.alpha[None]


def _luiten(drawn: Drawn) -> tuple[Tensor, ...]:
    return drawn.color, drawn.radii, _undifferentiated(drawn.median)[None]


def _luiten_late(drawn: Drawn) -> tuple[Tensor, ...]:
    return drawn.color, drawn.radii, _undifferentiated(drawn.depth)[None]


def _antialiasing(drawn: Drawn) -> tuple[Tensor, ...]:
    return drawn.color, drawn.radii, drawn.inverse[None]


FORKS: dict[str, tuple[type, Callable[[Drawn], tuple[Tensor, ...]]]] = {
    "graphdeco": (WithDebug, _graphdeco),
    "dcharatan": (WithDebug, _graphdeco),
    "leo-frank": (WithDebug, _leo_frank),
    "ashawkey": (WithDebug, _ashawkey),
    "ashawkey, early": (WithDebug, _ashawkey_early),
    "luiten": (WithoutDebug, _luiten),
    "luiten, late": (WithoutDebug, _luiten_late),
    "graphdeco, antialiasing": (WithAntialiasing, _antialiasing),
}


def fork(name: str, module_name: str, calls: list[dict[str, Any]]) -> ModuleType:
    """A module that speaks as the fork does; `calls` receives what each pass was given."""
    settings_type, returned = FORKS[name]

    class GaussianRasterizer(nn.Module):
        def __init__(self, raster_settings: Any) -> None:
            super().__init__()
            self.raster_settings = raster_settings

        def forward(
            self,
            means3D: Tensor,
            means2D: Tensor,
            opacities: Tensor,
            shs: Tensor | None = None,
            colors_precomp: Tensor | None = None,
            scales: Tensor | None = None,
            rotations: Tensor | None = None,
            cov3D_precomp: Tensor | None = None,
        ) -> tuple[Tensor, ...]:
            assert (shs is None) != (colors_precomp is None)
            assert (scales is None) == (rotations is None) != (cov3D_precomp is None)
            assert colors_precomp is not None and cov3D_precomp is not None
            calls.append({"settings": self.raster_settings, "colors": colors_precomp})
            drawn = _render(
                self.raster_settings, means3D, means2D, opacities, colors_precomp, cov3D_precomp
            )
            return returned(drawn)

    module = ModuleType(module_name)
    module.GaussianRasterizationSettings = settings_type  # type: ignore[attr-defined]
    module.GaussianRasterizer = GaussianRasterizer  # type: ignore[attr-defined]
    return module


def _flatten(s: Any, place: Tensor, covariances: Tensor) -> Tensor:
    """Covariances on the image, in px², before the blur; `place` is x, y, z in the camera."""
    x, y, z = place
    width, height, view = s.image_width, s.image_height, s.viewmatrix.flatten()
    limit_x, limit_y = 1.3 * s.tanfovx, 1.3 * s.tanfovy
    tx, ty = (x / z).clamp(-limit_x, limit_x), (y / z).clamp(-limit_y, limit_y)
    fx, fy, zero = width / (2 * s.tanfovx), height / (2 * s.tanfovy), torch.zeros_like(z)
    first = torch.stack([fx / z, zero, -fx * tx / z], dim=-1)
    second = torch.stack([zero, fy / z, -fy * ty / z], dim=-1)
    jacobian = torch.stack([first, second], dim=-2)
    rotation = torch.stack([view[index::4][:3] for index in range(3)])
    full = covariances[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    onto = jacobian @ rotation
    return onto @ full @ onto.mT


def _compensation(s: Any, sharp: Tensor) -> Tensor:
    """What opacities are multiplied by: where a fork has it, the root of a ratio with a floor."""
    if not getattr(s, "antialiasing", False):
        return torch.ones_like(sharp[:, 0, 0])
    share = sharp.det() / (sharp + 0.3 * torch.eye(2)).det()
    return share.clamp_min(0.000025).sqrt()


def _render(
    s: Any, means: Tensor, means2D: Tensor, opacities: Tensor, colors: Tensor, covariances: Tensor
) -> Drawn:
    assert colors.shape == means.shape == means2D.shape and opacities.shape == (len(means), 1)
    assert covariances.shape == (len(means), 6) and len(s) in (11, 12, 13)
    given = (means, means2D, opacities, colors, covariances, s.viewmatrix, s.projmatrix)
    assert all(tensor.is_contiguous() for tensor in given)
    width, height = s.image_width, s.image_height
    view, projection = s.viewmatrix.flatten(), s.projmatrix.flatten()  # column-major to a kernel
    homogeneous = torch.cat([means, torch.ones_like(means[:, :1])], dim=-1)

    def row(matrix: Tensor, index: int) -> Tensor:
        return homogeneous @ matrix[index::4]

    x, y, z = (row(view, index) for index in range(3))
    ndc = torch.stack([row(projection, 0), row(projection, 1)], dim=-1)
    ndc = ndc / (row(projection, 3) + 1e-7)[:, None] + means2D[:, :2]
    pixel = ((ndc + 1) * torch.tensor([width, height]) - 1) * 0.5

    sharp = _flatten(s, torch.stack([x, y, z]), covariances)
    flat = sharp + 0.3 * torch.eye(2)
    a, b, c = flat[:, 0, 0], flat[:, 0, 1], flat[:, 1, 1]
    determinant = a * c - b * b

    with torch.no_grad():
        middle = 0.5 * (a + c)
        largest = middle + (middle * middle - determinant).clamp_min(0.1).sqrt()
        radius = (3 * largest.sqrt()).ceil()
        low, high = (
            ((pixel - radius[:, None]) / 16).trunc(),
            ((pixel + radius[:, None] + 15) / 16).trunc(),
        )
        tiles = torch.tensor([-(-width // 16), -(-height // 16)])
        low, high = (torch.minimum(edge.clamp_min(0), tiles) for edge in (low, high))
        kept = (z > 0.2) & ((high - low).prod(dim=-1) > 0)
        order = torch.argsort(z, stable=True)
        order = order[kept[order]]
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
    grid = grid.reshape(-1, 1, 2)
    with torch.no_grad():
        listed = ((grid // 16 >= low[order]) & (grid // 16 < high[order])).all(dim=-1)
    dx, dy = (pixel[order] - grid).unbind(dim=-1)
    a, b, c, determinant = (values[order] for values in (a, b, c, determinant))
    power = -0.5 * (c * dx * dx + a * dy * dy) / determinant + b * dx * dy / determinant
    strength = opacities[:, 0] * _compensation(s, sharp)
    alpha = (strength[order] * power.exp()).clamp_max(0.99)
    alpha = torch.where(listed & (power <= 0) & (alpha >= 1 / 255), alpha, 0)
    after = (1 - alpha).cumprod(dim=-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
    weight = torch.where(after >= 1e-4, alpha * before, 0)

    def image(values: Tensor) -> Tensor:
        return (weight @ values).T.reshape(-1, height, width)

    crosses = (before > 0.5) & (after < 0.5) & (weight > 0)
    median = torch.where(crosses.any(dim=-1), (crosses * z[order]).sum(dim=-1), 15.0)
    ends = 1 - weight.sum(dim=-1).reshape(1, height, width)
    return Drawn(
        color=image(colors[order]) + ends * s.bg[:, None, None],
        radii=torch.where(kept, radius, 0).int(),
        depth=image(z[order][:, None])[0],
        depth_of_fixed_z=image(z[order].detach()[:, None])[0],
        alpha=weight.sum(dim=-1).reshape(height, width),
        median=median.reshape(height, width),
        inverse=image(1 / z[order][:, None])[0],
    )

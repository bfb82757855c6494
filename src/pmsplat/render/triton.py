"""Rasterisation on CUDA in Triton: no compiler to install, all scenes and views in one launch each.

The steps are those of 3D Gaussian Splatting (Kerbl et al., 2023): project, sort by depth, list the
Gaussians of every tile, blend. Tiles are small, and a list holds a Gaussian only where its ellipse
touches the tile (Radl et al., "StopThePop", 2024; Hanson et al., "Speedy-Splat", 2025), because
most of the work of larger tiles is for Gaussians that miss a pixel. Gradients of all views are
added up before they are written. The host never waits for the device, neither forward nor backward,
so an encoder and its drawing fit into one CUDA graph. The kernels are in `_triton_*.py`.

Where `torch.use_deterministic_algorithms` is on, gradients have the same bits in every run.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..kernels import cuda
from ..types import Cameras, DrawingRules, Gaussians, Screen
from ._projection import Blend

LICENSE = "MIT, as all of pmsplat"
LARGEST = cuda.PLACES - 1  # what an index on the device may be


@dataclass(frozen=True)
class Tuning:
    """Sizes that change the speed and, within rounding, nothing else.

    Lists are of tiles of `tile_h` by `tile_w` pixels. A tile is drawn in `parts` of equally many
    rows, each by a program of `warps` warps, `chunk` Gaussians at once, and replayed in
    `parts_back` by `warps_back`, `chunk_back` at once, a thread with at most `registers_back`.
    Products of matrices are `precise` ("tf32x3" or "ieee"). One program blends `wide` attributes
    and projects `block` Gaussians. About `listers` programs list the Gaussians of all images, fewer
    where one would have less than `segment` Gaussians, or if more than `counts` numbers would be
    needed. `per_gaussian` and `per_tile` give the entries for which there is room.
    """

    tile_h: int = 8
    tile_w: int = 8
    parts: int = 1
    parts_back: int = 2
    chunk: int = 8
    chunk_back: int = 16
    warps: int = 1
    warps_back: int = 1
    registers_back: int | None = None
    precise: str = "tf32x3"
    wide: int = 16
    block: int = 128
    listers: int = 8192
    segment: int = 128
    counts: int = 2**24
    per_gaussian: int = 4
    per_tile: int = 512


TUNING = Tuning()


def obstacle(device: torch.device) -> UserError | None:
    """Why this backend cannot draw tensors of `device`, if so."""
    return cuda.obstacle(device)


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
    rules: DrawingRules,
) -> Blend:
    """What `rasterize` wants of a backend, in float32 whatever comes in."""
    gaussians, cameras = gaussians.to(torch.float32), cameras.to(torch.float32)
    attributes = None if attributes is None else attributes.to(torch.float32)
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    plan = _Plan.of(gaussians, cameras, size, attributes, degree, median, rules)
    if plan.images * plan.count == 0:
        return _empty(plan, gaussians, attributes)
    tables = _Tables.new(plan, gaussians.means)
    xy, look = _Project.apply(
        gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.opacities, gaussians.sh,
        attributes, cameras, plan, tables,
    )  # fmt: skip
    with torch.no_grad():
        lists = _make_lists(plan, tables)
    color, depth, alpha, blended, halfway = _Composite.apply(
        xy, look, attributes, tables.place, lists, plan
    )
    radii = tables.place[..., 2:].amax(dim=-1)
    return Blend(
        color=color,
        depth=depth,
        alpha=alpha,
        attributes=None if attributes is None else blended,
        depth_median=halfway if median else None,
        screen=Screen(means=xy, radii=radii),
    )


@dataclass(frozen=True)
class _Plan:
    """What one drawing is: shapes, rules and tuning."""

    batch: int
    views: int
    count: int
    height: int
    width: int
    channels: int
    stored: int
    degree: int
    median: bool
    rules: DrawingRules
    tuning: Tuning

    @staticmethod
    def of(
        gaussians: Gaussians,
        cameras: Cameras,
        size: tuple[int, int],
        attributes: Tensor | None,
        degree: int,
        median: bool,
        rules: DrawingRules,
    ) -> "_Plan":
        """The plan of a drawing; UserError where its numbers do not fit into 32 bits."""
        (batch, count), views = gaussians.means.shape[:2], cameras.near.shape[1]
        channels = 0 if attributes is None else attributes.shape[-1]
        stored = gaussians.sh.shape[2]
        plan = _Plan(batch, views, count, *size, channels, stored, degree, median, rules, TUNING)
        each = max(plan.segments, TUNING.parts, TUNING.parts_back)
        most = max(plan.images * max(count, 1), plan.images * plan.tiles * each + 1)
        if max(most, size[0] * size[1]) > LARGEST or plan.levels > 16:
            raise UserError(
                f"{plan.images} pictures of {size[0]}x{size[1]} with {count} Gaussians each, "
                "which the renderer 'triton' cannot number in 32 bits",
                "fewer or smaller pictures in one call",
                "draw fewer scenes or cameras at once, or smaller pictures",
            )
        return plan

    @property
    def images(self) -> int:
        return self.batch * self.views

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        return -(-self.height // self.tuning.tile_h), -(-self.width // self.tuning.tile_w)

    @property
    def tiles(self) -> int:
        return math.prod(self.grid)

    @property
    def levels(self) -> int:
        """How often tiles can be doubled, plus one: then one covers the image."""
        return (max(self.grid) - 1).bit_length() + 1

    @property
    def segments(self) -> int:
        """Parts of an image's Gaussians that write their entries of the lists by themselves."""
        images, tuning = max(1, self.images), self.tuning
        room = tuning.counts // (images * self.tiles)
        return max(1, min(tuning.listers // images, room, self.count // tuning.segment))

    @property
    def budget(self) -> int:
        """Most entries of an image's lists; a list of all Gaussians always fits."""
        wanted = self.tuning.per_gaussian * self.count + self.tuning.per_tile * self.tiles
        most = min(self.count * self.tiles, LARGEST // max(self.images, 1))
        return max(self.count, min(wanted, most))

    @property
    def wide(self) -> int:
        """Attributes that one program blends: a power of two, at least 16; 0 if there are none."""
        if self.channels == 0:
            return 0
        return min(max(16, 1 << (self.channels - 1).bit_length()), self.tuning.wide)

    @property
    def chunk(self) -> int:
        """Gaussians that are drawn at once; the product with attributes needs 16."""
        return max(self.tuning.chunk, 16) if self.wide else self.tuning.chunk

    def programs(self, parts: int) -> tuple[int, int]:
        """Programs that draw tiles in parts."""
        return self.images * self.tiles * parts, -(-self.channels // self.wide) if self.wide else 1

    @property
    def tile(self) -> dict[str, int]:
        return {"TILE_W": self.tuning.tile_w, "TILE_H": self.tuning.tile_h}

    @property
    def variant(self) -> dict[str, Any]:
        """What the kernels of projection are compiled for."""
        return {
            "DEGREE": self.degree,
            "STORED": self.stored,
            "ANTIALIASED": self.rules.antialiased,
            "ABOUT_IMAGE": self.rules.clamp == "image",
        }

    def precision(self, device: torch.device) -> str:
        """How products of matrices are computed; there is no TF32 before Ampere."""
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            return "ieee"
        return self.tuning.precise


@dataclass(frozen=True)
class _Tables:
    """What projection gives of every Gaussian of every image; columns as in `_triton_projection`.

    `keys` order the Gaussians of an image; `totals` bound the entries of its lists at every level.
    """

    place: Tensor
    look: Tensor
    keys: Tensor
    totals: Tensor

    @staticmethod
    def new(plan: _Plan, like: Tensor) -> "_Tables":
        from ._triton_projection import LEVELS, LOOK, PLACE

        shape = (plan.batch, plan.views, plan.count)
        return _Tables(
            place=like.new_empty(*shape, PLACE.value),
            look=like.new_empty(*shape, LOOK.value),
            keys=like.new_empty(plan.images, plan.count),
            totals=like.new_zeros(plan.images, LEVELS.value, dtype=torch.int64),
        )


@dataclass(frozen=True)
class _Lists:
    """Gaussians of all tiles, and where each tile's begin; `totals` say how large tiles are."""

    entries: Tensor
    starts: Tensor
    totals: Tensor


class _Project(torch.autograd.Function):
    """Parameters -> means [batch, target, gaussian, 2] in pixels, and `look`; fills all tables."""

    @staticmethod
    def forward(
        ctx: Any, means, scales, quats, opacities, sh, attributes, cameras, plan, tables
    ) -> tuple[Tensor, Tensor]:
        from ._triton_projection import project

        inputs = [x.detach().contiguous() for x in (means, scales, quats, opacities, sh)]
        features = inputs[0] if attributes is None else attributes.detach().contiguous()
        views = [x.detach().contiguous() for x in (cameras.c2w, cameras.K)]
        planes = [x.detach().contiguous() for x in (cameras.near, cameras.far)]
        cuda.launch(
            project, (plan.batch * -(-plan.count // plan.tuning.block),),
            *inputs, features, *views, *planes,
            tables.place, tables.look, tables.keys, tables.totals,
            plan.count, plan.views, plan.width, plan.height, plan.channels, plan.levels,
            plan.rules.blur, plan.rules.near, plan.rules.far,
            **plan.variant, BLOCK=plan.tuning.block, **plan.tile,
        )  # fmt: skip
        ctx.save_for_backward(*inputs, *views, tables.look)
        ctx.plan = plan
        return tables.place[..., :2], tables.look

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        from ._triton_projection import project_back

        plan, saved = ctx.plan, ctx.saved_tensors
        given = [_as_rows(grad) for grad in grads]
        out = [torch.empty_like(tensor) for tensor in saved[:5]]
        cuda.launch(
            project_back, (plan.batch * -(-plan.count // plan.tuning.block),),
            *saved, *given, *out,
            plan.count, plan.views, plan.width, plan.height, *(x.stride(2) for x in given),
            plan.rules.blur,
            **plan.variant, BLOCK=plan.tuning.block,
        )  # fmt: skip
        return *out, None, None, None, None


def _as_rows(grad: Tensor) -> Tensor:
    """The same with rows at equal distances, which may be parts of longer rows."""
    *shape, width = grad.shape
    step = grad.stride(2)
    strides = (shape[1] * shape[2] * step, shape[2] * step, step, 1)
    return grad if grad.stride() == strides and step >= width else grad.contiguous()


def _make_lists(plan: _Plan, tables: _Tables) -> _Lists:
    """Lists the Gaussians of every tile, near to far, equal z by index."""
    from ._triton_lists import fill_lists

    # A stable sort of floats; Gaussians that are not drawn are last.
    order = torch.sort(tables.keys, dim=1, stable=True).indices
    size = plan.images * plan.tiles * plan.segments
    counts = torch.zeros(size + 1, dtype=torch.int32, device=order.device)
    entries = counts.new_empty(plan.images * plan.budget)

    def fill(write: bool, counts: Tensor) -> None:
        cuda.launch(
            fill_lists, (plan.images * plan.segments,),
            tables.place, tables.look, order, tables.totals, counts, entries,
            plan.count, plan.width, plan.height, plan.levels, plan.segments, plan.budget,
            WRITE=write, **plan.tile, num_warps=1,
        )  # fmt: skip

    fill(False, counts[1:])
    counts.cumsum_(0)
    starts = counts[:: plan.segments].clone()
    fill(True, counts)
    return _Lists(entries, starts, tables.totals)


class _Composite(torch.autograd.Function):
    """Splats -> color, depth, alpha, attributes and median depth; the last has no gradient.

    `xy` [batch, target, gaussian, 2] is read as part of the longer rows of `place`.
    """

    @staticmethod
    def forward(ctx: Any, xy, look, attributes, place, lists, plan) -> tuple[Tensor, ...]:
        from ._triton_blend import draw

        features = look if attributes is None else attributes.detach().contiguous()
        shape, area = (plan.batch, plan.views), (plan.height, plan.width)
        color, blended = (look.new_empty(*shape, n, *area) for n in (3, plan.channels))
        depth, alpha = look.new_empty(*shape, *area), look.new_empty(*shape, *area)
        median = look.new_empty(*shape, *area) if plan.median else look.new_empty(0)
        cuda.launch(
            draw, plan.programs(plan.tuning.parts),
            place, look, features, lists.entries, lists.starts, lists.totals,
            color, depth, alpha, blended, median,
            plan.count, plan.views, plan.width, plan.height, plan.channels, plan.budget,
            plan.rules.alpha_cap,
            WIDE=plan.wide, MEDIAN=plan.median, CHUNK=plan.chunk, **plan.tile,
            PARTS=plan.tuning.parts, PRECISION=plan.precision(look.device),
            num_warps=plan.tuning.warps,
        )  # fmt: skip
        ctx.save_for_backward(
            place, look, features, lists.entries, lists.starts, lists.totals,
            color, depth, alpha, blended,
        )  # fmt: skip
        ctx.plan = plan
        ctx.mark_non_differentiable(median)
        return color, depth, alpha, blended, median

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        plan, saved = ctx.plan, ctx.saved_tensors
        given = [grad.contiguous() for grad in grads[:4]]
        features = saved[2]
        shapes = [(plan.batch, plan.views, plan.count, 10), features.shape if plan.wide else (0,)]
        if torch.are_deterministic_algorithms_enabled():
            rows, d_features = _sum_exactly(plan, saved, given, shapes)
        else:
            rows, d_features = (features.new_zeros(shape) for shape in shapes)
            _draw_back(plan, saved, given, (rows, rows, d_features, d_features), "float")
        return rows[..., :2], rows[..., 2:], d_features if plan.wide else None, None, None, None


def _draw_back(
    plan: _Plan, saved: tuple[Tensor, ...], given: list[Tensor], sums: tuple[Tensor, ...], mode: str
) -> None:
    from ._triton_blend import draw_back

    cuda.launch(
        draw_back, plan.programs(plan.tuning.parts_back),
        *saved, *given, *sums,
        plan.count, plan.views, plan.width, plan.height, plan.channels, plan.budget,
        plan.rules.alpha_cap,
        WIDE=plan.wide, MODE=mode, CHUNK=plan.tuning.chunk_back, **plan.tile,
        PARTS=plan.tuning.parts_back, PRECISION=plan.precision(saved[0].device),
        num_warps=plan.tuning.warps_back, maxnreg=plan.tuning.registers_back,
    )  # fmt: skip


def _sum_exactly(
    plan: _Plan,
    saved: tuple[Tensor, ...],
    given: list[Tensor],
    shapes: list[tuple[int, ...]],
) -> list[Tensor]:
    """Sums of gradients as integers, which no order of the programs changes, in two rounds."""
    from ._triton_blend import round_off

    like = saved[0]
    whole = [like.new_zeros(shape, dtype=torch.int64) for shape in shapes]
    bounds = [like.new_zeros(shape, dtype=torch.int32) for shape in shapes]
    sums = (whole[0], bounds[0], whole[1], bounds[1])
    for mode in ("bound", "fixed"):
        _draw_back(plan, saved, given, sums, mode)
    out = [like.new_zeros(shape) for shape in shapes]
    for total, bound, to in zip(whole, bounds, out, strict=True):
        count = to.numel()
        if count:
            cuda.launch(round_off, (-(-count // 1024),), total, bound, to, count, BLOCK=1024)
    return out


def _empty(plan: _Plan, gaussians: Gaussians, attributes: Tensor | None) -> Blend:
    """The pictures of no Gaussians, or no pictures."""
    shape, area = (plan.batch, plan.views), (plan.height, plan.width)
    parts = [gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.opacities]
    parts += [gaussians.sh] if attributes is None else [gaussians.sh, attributes]
    nothing = 0 * torch.stack([part.sum() for part in parts]).sum()  # keeps the gradient's path
    color, blended = (nothing.expand(*shape, n, *area) for n in (3, plan.channels))
    flat = nothing.expand(*shape, *area)
    means = nothing.expand(*shape, plan.count, 2)
    return Blend(
        color=color,
        depth=flat,
        alpha=flat,
        attributes=None if attributes is None else blended,
        depth_median=flat.detach() if plan.median else None,
        screen=Screen(means=means, radii=means[..., 0].detach()),
    )

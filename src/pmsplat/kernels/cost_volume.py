"""Plane-sweep correlation that never stores the warped features.

`warped` is the definition: warp, then correlate. Every other path is tested against it; see their
files. Collins, "A space-sweep approach to true multi-image matching", CVPR 1996; Yao et al.,
"MVSNet", ECCV 2018.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grid_sample

from ..errors import UserError
from ..geometry import sweep
from . import cuda
from ._sweep import FlatSweep, Sweep, normalize

__all__ = ["PATHS", "Sweep", "choose_path", "correlation", "warped"]

PATHS = ("compiled", "direct", "tiled", "all_pairs", "sampled")
PIXELS_PER_PLANE = 32  # of maps whose correlations between all pixels cost no more than sampling


def correlation(
    features: Float[Tensor, "batch view channel height width"], where: Sweep, path: str = "auto"
) -> Float[Tensor, "batch view plane height width"]:
    """Returns, per hypothesis, the mean over other views of <feature, sampled feature>/√channel.

    Samples outside the other view count as 0. float32, summed in float32, with gradients to
    `features` only. Features of half precision stay so on CUDA devices (their products have that
    precision), and become float32 elsewhere; there must be another view to each.

    `path` is "compiled" (CPU), "direct" or "tiled" (CUDA, in Triton), "all_pairs" or "sampled" (any
    device; the work of the first grows with pixels², the second stores some warped features), or
    "auto", which is `choose_path`. Raises `UserError` for a path that is unknown or cannot run.
    """
    height, width = features.shape[-2:]
    device = features.device
    if path == "auto":
        path = choose_path(height * width, where.inv_depth.shape[2], device)
    _check(path, device)
    if where.others.shape[-1] == 0:
        raise UserError("a view alone", "at least two views", "give another view of the scene")
    if device.type != "cuda" or features.dtype not in (torch.bfloat16, torch.float16):
        features = features.float()
    out: Tensor = _Correlation.apply(features, where, path)  # pyright: ignore
    return out


def choose_path(pixels: int, planes: int, device: torch.device) -> str:
    """Returns the path of `correlation` for maps of that size on that device.

    On CPUs it is "compiled", and on CUDA devices with Triton "tiled": on an H100, 12 views of
    64x120 in bfloat16 took 1.3 ms forward by it, 2.4 by "direct" and 3.6 by "all_pairs" (measured
    for 1070c55; no file has these figures yet). `benchmarks/gpu_sweep.json` has the other two:
    forward in bfloat16 the GPU is busy with all pairs for 0.4 to 0.7 times as long as with
    "direct", at 5 to 18 times the memory; in float32, and with gradients, for 1.4 to 6 times as
    long. Elsewhere it is
    "all_pairs" for maps of at most 32 · planes pixels: correlating all pixels is then about as much
    work as sampling four features per hypothesis, and matrix products do it faster. Larger maps
    take "sampled".
    """
    if device.type == "cpu":
        return "compiled"
    if cuda.has_kernels(device):
        return "tiled"
    return "all_pairs" if pixels <= PIXELS_PER_PLANE * planes else "sampled"


def warped(
    features: Float[Tensor, "batch view channel height width"], where: Sweep
) -> Float[Tensor, "batch view plane height width"]:
    """Computes `correlation` by its definition, with warped features [b, v, o, c, d, h, w]."""
    batch, views, channels, height, width = features.shape
    others = where.others.shape[-1]
    scene = torch.arange(batch, device=features.device)[:, None, None]
    sources = features[scene, where.others].flatten(0, 2)
    with torch.no_grad():
        coordinates = sweep.source_coordinates(
            where.homographies, where.inv_depth[:, :, None], height, width, where.pixel_center
        )
        grid = normalize(coordinates, height, width).flatten(0, 2).flatten(1, 2)
    samples = grid_sample(sources, grid, padding_mode="zeros", align_corners=False)
    samples = samples.reshape(batch, views, others, channels, -1, height, width)
    product = torch.einsum("bvchw,bvocdhw->bvdhw", features, samples)
    return product / (others * channels**0.5)


class _Passes(Protocol):
    """A module that implements a path, on `tokens` [view, pixel, channel]."""

    def forward(self, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
        """Adds scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane], 0."""
        ...

    def backward(
        self, gradient: Tensor, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor
    ) -> None:
        """Adds the gradient of `tokens`, given that of the volume, to `out`, 0."""
        ...


def _passes(path: str) -> _Passes:
    if path == "compiled":
        from . import _sweep_cpu as passes
    elif path == "direct":
        from . import _sweep_triton as passes
    elif path == "tiled":
        from . import _sweep_tiled_triton as passes
    elif path == "all_pairs":
        from . import _sweep_pairs as passes
    else:
        from . import _sweep_sampled as passes
    return passes


def _check(path: str, device: torch.device) -> None:
    if path not in PATHS:
        raise UserError(f"path {path!r}", f"auto, {', '.join(PATHS)}", "leave `path` out")
    if path == "compiled" and device.type != "cpu":
        raise UserError(f"path 'compiled' on {device}", "tensors on the CPU", "leave `path` out")
    if path in ("direct", "tiled"):
        cuda.require(device)


class _Correlation(torch.autograd.Function):
    """Correlation by one of the paths; only the features are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, where: Sweep, path: str) -> Tensor:
        batch, views, channels, height, width = features.shape
        flat = where.flat(height, width)
        tokens = features.flatten(0, 1).flatten(2).transpose(1, 2).contiguous()
        ctx.save_for_backward(tokens)
        ctx.flat, ctx.path, ctx.batch = flat, path, batch
        ctx.scale = 1 / (where.others.shape[-1] * channels**0.5)
        planes = where.inv_depth.shape[2]
        out = tokens.new_zeros(batch * views, height * width, planes, dtype=torch.float32)
        _passes(path).forward(tokens, flat, ctx.scale, out)
        return out.transpose(1, 2).reshape(batch, views, planes, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (tokens,), flat = ctx.saved_tensors, ctx.flat
        incoming = gradient.flatten(0, 1).flatten(2).transpose(1, 2).contiguous()
        out = torch.zeros_like(tokens, dtype=torch.float32)
        _passes(ctx.path).backward(incoming, tokens, flat, ctx.scale, out)
        out = out.to(tokens.dtype).transpose(1, 2)
        return out.unflatten(2, (flat.height, flat.width)).unflatten(0, (ctx.batch, -1)), None, None

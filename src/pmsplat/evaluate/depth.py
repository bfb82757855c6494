"""Errors of depth maps.

The metrics of Eigen et al., "Depth Map Prediction from a Single Image using a Multi-Scale Deep
Network", NeurIPS 2014.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class DepthMetrics:
    """Means over the counted pixels.

    `abs_rel` is |pred - truth| / truth; `rmse` is in scene units; `delta1` is the share of pixels
    with max(pred / truth, truth / pred) < 1.25; `pixels` is the number of counted pixels.
    """

    abs_rel: float
    rmse: float
    delta1: float
    pixels: int


def depth_metrics(
    depth: Float[Tensor, "*shape"],
    truth: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
) -> DepthMetrics:
    """Compares z-depths where the truth is known (> 0) and the mask, if given, is True.

    Depths are not aligned. A prediction of 0 (none) counts with abs_rel 1 and as outside delta1.
    All metrics are NaN if no pixel counts.
    """
    counts = truth > 0 if mask is None else (truth > 0) & mask
    got, true = depth.detach()[counts].double(), truth[counts].double()
    ratio = torch.maximum(got / true, true / got.clamp_min(1e-12))
    return DepthMetrics(
        abs_rel=((got - true).abs() / true).mean().item(),
        rmse=(got - true).square().mean().sqrt().item(),
        delta1=(ratio < 1.25).double().mean().item(),
        pixels=int(counts.sum()),
    )


def aligned_depths(
    depth: Float[Tensor, "*batch height width"], truth: Float[Tensor, "*batch height width"]
) -> dict[str, Float[Tensor, "*batch height width"]]:
    """The prediction as methods of unknown scale are measured, each map aligned by itself.

    "median": times the ratio of the medians (Zhou et al., CVPR 2017); "affine": inverse depth times
    a scale plus a shift, by least squares (MiDaS, Ranftl et al., TPAMI 2022), where that is not
    above 0 as far as the farthest true depth. Maps without a pixel where both are known stay.
    """
    flat = [x.detach().double().reshape(-1, *x.shape[-2:]) for x in (depth, truth)]
    maps = {name: [] for name in ("median", "affine")}
    for one, true in zip(*flat, strict=True):
        known = (true > 0) & (one > 0)
        if not known.any():
            maps["median"].append(one)
            maps["affine"].append(one)
            continue
        maps["median"].append(one * median_scale(one, true))
        maps["affine"].append(_fit_inverse(one, true, known))
    return {name: torch.stack(found).reshape(depth.shape) for name, found in maps.items()}


def _fit_inverse(depth: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Scale and shift of inverse depth by least squares over the known pixels; 0 stays 0."""
    given, wanted = 1 / depth[known], 1 / truth[known]
    spread = given - given.mean()
    variance = spread.square().sum()
    scale = (spread * wanted).sum() / variance if variance > 0 else given.new_zeros(())
    inverse = wanted.mean() + scale * (1 / depth.clamp_min(1e-12) - given.mean())
    fitted = 1 / inverse.clamp_min(1 / float(truth.max()))
    return torch.where(depth > 0, fitted, depth)


def median_scale(
    depth: Float[Tensor, "*shape"],
    truth: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
) -> float:
    """Returns the factor that maps the prediction's median to the truth's, where both are known.

    For predictions of unknown scale: `depth_metrics(depth * median_scale(...), ...)`. NaN if no
    pixel counts.
    """
    counts = (truth > 0) & (depth > 0)
    counts = counts if mask is None else counts & mask
    return (truth[counts].median() / depth.detach()[counts].median()).item()

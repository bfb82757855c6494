"""Alignment of point sets in closed form, stable where singular values coincide.

Horn, "Closed-form solution of absolute orientation using unit quaternions", JOSA A 1987; Umeyama,
"Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. No
singular value decomposition is used: its gradient divides by differences of singular values, which
are zero for round and for flat sets of points although the rotation is smooth there, and on CUDA it
synchronizes with the device. All sums are in float64, whatever the dtype of the points: over 10^5
points float32 loses digits, and TF32 most of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import se3
from .constants import keep_results

UNDEFINED = 1e-6  # smallest relative spread of a set, and product of relative widths of two sets
SQUARINGS = 28  # squarings that separate eigenvalues UNDEFINED apart, to 16 digits
DRAWS = 64  # random triples: with 45 % of wrong points, all contain one in 1 of 10^5 cases
JUDGES = 1024  # points on which the triples are compared
SAMPLE = 4096  # points used while reweighting: enough for a median exact to a few percent

# source, target, weights -> the motion [*batch, 4, 4]
Fit = Callable[[Tensor, Tensor, Tensor], Tensor]
# a covariance -> the nearest rotation, and whether it is the only one
Nearest = Callable[[Tensor], tuple[Tensor, Tensor]]
# source, target, weights, squared distances, their median -> the motion, its squared distances
Refit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def umeyama(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
    nearest: Nearest | None = None,
) -> Float[Tensor, "*_ 4 4"]:
    """Returns the similarity [sR t] that maps `source` to `target` by weighted least squares.

    Weights are non-negative, uniform by default; `nearest` may do what `unique_rotation` does,
    faster. The result is never a reflection, and is differentiable in points and weights. It is
    NaN, with zero gradients, where it is undefined: the weights sum to 0; a set is constant (its
    spread is below UNDEFINED = 1e-6 of its distance from the origin); both sets are collinear (the
    product of their relative widths is below UNDEFINED: both lie within about 1e-3 of their length
    of a line); or the correlation of the sets leaves more than one best rotation.
    """
    dtype = torch.promote_types(source.dtype, target.dtype)
    # Take weighted means, spreads and the covariance.
    x, y = source.double(), target.double()
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    total = w.sum(dim=-1, keepdim=True)
    w = w / torch.where(total > 0, total, 1)
    weighted_x, weighted_y = w[..., None] * x, w[..., None] * y
    mean_x, mean_y = w[..., None, :] @ x, w[..., None, :] @ y
    square_x, square_y = mean_x.square().sum(dim=(-1, -2)), mean_y.square().sum(dim=(-1, -2))
    spread = torch.einsum("...ni,...ni->...", weighted_x, x) - square_x
    spread_y = torch.einsum("...ni,...ni->...", weighted_y, y) - square_y
    spread_out = (spread > UNDEFINED**2 * square_x) & (spread_y > UNDEFINED**2 * square_y)
    covariance = weighted_y.transpose(-1, -2) @ x - mean_y.transpose(-1, -2) @ mean_x
    # Solve for rotation, scale and translation.
    rotation, unique = (nearest or unique_rotation)(covariance)
    defined = spread_out & unique
    scale = (rotation * covariance).sum(dim=(-1, -2)) / torch.where(defined, spread, 1)
    linear = scale[..., None, None] * rotation
    translation = mean_y - mean_x @ linear.transpose(-1, -2)
    similarity = se3.compose(linear, translation[..., 0, :])
    return similarity.masked_fill(~defined[..., None, None], torch.nan).to(dtype)


def cameras(
    source: Float[Tensor, "*#batch view 4 4"], target: Float[Tensor, "*#batch view 4 4"]
) -> Float[Tensor, "*_ 4 4"]:
    """Returns the similarity [sR t] that takes cameras (c2w) to others of the same views.

    The rotation has the least squared error of the axes of the cameras (rad) and of their places
    (in root mean squares of the distances from their middle): two cameras, whose places leave a
    turn about their line open, or many on a line have a unique one. The scale is the ratio of those
    distances (Horn), which is positive, also where the places contradict each other. NaN where it
    is undefined: cameras of a set at one place (their spread is below UNDEFINED of their distance
    from the origin).
    """
    dtype = torch.promote_types(source.dtype, target.dtype)
    source, target = source.double(), target.double()
    x, y = source[..., :3, 3], target[..., :3, 3]
    middle_x, middle_y = x.mean(dim=-2, keepdim=True), y.mean(dim=-2, keepdim=True)
    spread_x, spread_y = _spread(x - middle_x), _spread(y - middle_y)
    apart = (spread_x > UNDEFINED * _spread(x)) & (spread_y > UNDEFINED * _spread(y))
    axes = torch.einsum("...vij,...vkj->...ik", target[..., :3, :3], source[..., :3, :3])
    places = torch.einsum("...vi,...vk->...ik", y - middle_y, x - middle_x)
    unit = torch.where(apart, spread_x * spread_y, 1)[..., None, None]
    similarity = by_rotation(nearest_rotation(axes + places / unit), x, y)
    return torch.where(apart[..., None, None], similarity, torch.nan).to(dtype)


def by_rotation(
    rotation: Float[Tensor, "*#batch 3 3"],
    source: Float[Tensor, "*#batch view 3"],
    target: Float[Tensor, "*#batch view 3"],
) -> Float[Tensor, "*_ 4 4"]:
    """Returns the similarity [sR t] with that rotation that takes places to others.

    It takes their middle to the middle of the others, and their root mean square distance from it
    to that of the others; places that are all in one stay as large as they are.
    """
    middle_x, middle_y = source.mean(dim=-2, keepdim=True), target.mean(dim=-2, keepdim=True)
    spread_x, spread_y = _spread(source - middle_x), _spread(target - middle_y)
    scale = torch.where(spread_x > 0, spread_y / torch.where(spread_x > 0, spread_x, 1), 1)
    linear = scale[..., None, None] * rotation
    translation = middle_y - middle_x @ linear.transpose(-1, -2)
    return se3.compose(linear, translation[..., 0, :])


def bring(
    similarity: Float[Tensor, "*#batch 4 4"], c2w: Float[Tensor, "*#batch view 4 4"]
) -> Float[Tensor, "*_ view 4 4"]:
    """Returns cameras in the world into which the similarity leads, in the dtype of `c2w`."""
    moved = similarity[..., None, :, :] @ c2w.to(similarity)
    scale = se3.similarity_scale(similarity)[..., None, None, None]
    return se3.compose(moved[..., :3, :3] / scale, moved[..., :3, 3]).to(c2w)


def _spread(places: Float[Tensor, "*batch view 3"]) -> Float[Tensor, "*batch"]:
    """Returns the root mean square of lengths."""
    return places.square().sum(dim=-1).mean(dim=-1).sqrt()


def scaling(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
) -> Float[Tensor, "*_"]:
    """Returns the factor about the origin that maps `source` to `target` with least squared error.

    NaN, with zero gradients, where it is undefined or not positive.
    """
    dtype = torch.promote_types(source.dtype, target.dtype)
    x, y = source.double(), target.double()
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    along, length = (w * (x * y).sum(dim=-1)).sum(dim=-1), (w * (x * x).sum(dim=-1)).sum(dim=-1)
    defined = (along > 0) & (length > 0)
    return torch.where(defined, along / torch.where(defined, length, 1), torch.nan).to(dtype)


def rescaling(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
) -> Float[Tensor, "*_ 4 4"]:
    """Returns `scaling` as a motion."""
    factor = scaling(source, target, weights)[..., None, None]
    eye = torch.eye(4, dtype=factor.dtype, device=factor.device)
    return torch.cat([eye[:3] * factor, eye[3:] * (factor / factor)], dim=-2)  # 1, or NaN


def trusted(
    fit: Fit,
    source: Float[Tensor, "*batch point 3"],
    target: Float[Tensor, "*batch point 3"],
    weights: Float[Tensor, "*batch point"],
    rounds: int,
    refit: Refit | None = None,
) -> Float[Tensor, "*batch point"]:
    """Returns `weights` lowered at outliers, after some `rounds` of reweighting.

    `fit(source, target, weights)` returns a [4, 4] motion, as `umeyama` does; `refit` may do what
    `_refit` does with it, faster. Each round multiplies `weights` by (m² / (m² + r²))², where r is
    the distance of a pair and m the median distance over points of positive weight: the estimator
    of Geman and McClure (1985), computed by iteratively reweighted least squares (Holland and
    Welsch, 1977), with a width that follows the residuals.
    The first round takes the distances from the fit to all points or to one of DRAWS triples,
    whichever has the least median of squares (Rousseeuw, 1984; triples: Fischler and Bolles, 1981).
    It tolerates up to about 45 % of wrong points, however far off and even if they agree with each
    other; with half or more of them wrong, it cannot tell which half is right. The rounds use
    SAMPLE points, spread over those of positive weight; the last round weights all points. The
    result is deterministic and has no gradient. Where the fit is undefined (NaN), the weights stay
    unchanged.
    """
    source, target, weights = source.detach(), target.detach(), weights.detach()
    if not rounds:
        return weights
    with torch.no_grad():
        x, y, given = _sample(source, target, weights)
        motion = _least_median(fit, x, y, given, fit(x, y, given))
        squared = _squared(motion, x, y, given)
        middle = (squared.isnan().logical_not().sum(dim=-1, keepdim=True) - 1).clamp_min(0) // 2
        width = _median(squared, middle)
        for _ in range(rounds - 1):
            motion, squared = (refit or partial(_refit, fit))(x, y, given, squared, width)
            width = _median(squared, middle)
        squared = _squared(motion, source, target, weights)
        return weights * _factor(squared, width).to(weights.dtype)


def _refit(
    fit: Fit, source: Tensor, target: Tensor, weights: Tensor, squared: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the fit to weights lowered by the estimator, and squared distances under it."""
    motion = fit(source, target, weights * _factor(squared, width).to(weights.dtype))
    return motion, _squared(motion, source, target, weights)


def _squared(motion: Tensor, source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Returns squared distances; NaN for points of weight 0."""
    squared = (se3.transform(motion, source) - target).double().square().sum(dim=-1)
    return torch.where(weights > 0, squared, torch.nan)


def _median(squared: Tensor, middle: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
    """Returns the median of those that are known, above 0: that at `middle`, as NaN comes last.

    By sorting: CUDA's median refuses to run under torch.use_deterministic_algorithms.
    """
    return squared.sort(dim=-1).values.gather(-1, middle).clamp_min(1e-300)


def _factor(squared: Tensor, width: Tensor) -> Tensor:
    """Returns the estimator's factor of each weight; 1 where the fit is undefined."""
    return (width / (width + squared)).square().nan_to_num(nan=1.0)


def _sample(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns SAMPLE points, spread over those of positive weight; all if there are no more."""
    if weights.shape[-1] <= SAMPLE:
        return source, target, weights
    index = _pick(weights, _stratify(_chances(SAMPLE, weights.device)))
    rows = index[..., None].expand(*index.shape, 3)
    return source.gather(-2, rows), target.gather(-2, rows), weights.gather(-1, index)


def _pick(weights: Tensor, chance: Float[Tensor, " draw"]) -> Int[Tensor, "*batch draw"]:
    """Returns indices of points of positive weight: those at shares 0 to 1 of all such points."""
    rank = (weights > 0).cumsum(dim=-1)
    wanted = (chance * rank[..., -1:]).floor().long() + 1  # found at the first point of this rank
    return torch.searchsorted(rank, wanted).clamp_max(rank.shape[-1] - 1)


def _stratify(chance: Float[Tensor, " draw"]) -> Float[Tensor, " draw"]:
    """Spreads n random shares evenly: one in each of n equal parts of [0, 1]."""
    return (torch.arange(len(chance), device=chance.device) + chance) / len(chance)


@keep_results
def _chances(count: int, device: torch.device) -> Float[Tensor, " draw"]:
    """Returns random numbers from 0 to 1: always the same ones, on all devices."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, dtype=torch.float64, generator=generator).to(device)


def _least_median(
    fit: Fit, source: Tensor, target: Tensor, weights: Tensor, first: Tensor
) -> Float[Tensor, "*batch 4 4"]:
    """Returns, of the motion `first` and the fits to random triples, the best on JUDGES points.

    The best has the least median of squares. Points are drawn among those of positive weight, with
    the same random numbers for every sample of the batch.
    """
    # Draw the corners of the triples, and the points to judge them on.
    chance = _chances(3 * DRAWS + JUDGES, weights.device)
    index = _pick(weights, torch.cat([chance[: 3 * DRAWS], _stratify(chance[3 * DRAWS :])]))
    index = index[..., None].expand(*index.shape, 3)
    x, y = source.gather(-2, index), target.gather(-2, index)
    # Fit a motion to each triple.
    corners_x, corners_y = (t[..., : 3 * DRAWS, :].unflatten(-2, (DRAWS, 3)) for t in (x, y))
    triples = fit(corners_x, corners_y, torch.ones_like(corners_x[..., 0]))
    motions = torch.cat([first[..., None, :, :], triples], dim=-3)
    # Choose the motion with the least median of squares.
    judges_x, judges_y = (t[..., None, 3 * DRAWS :, :] for t in (x, y))
    squared = (se3.transform(motions, judges_x) - judges_y).square().sum(dim=-1)
    median = squared.sort(dim=-1).values[..., (JUDGES - 1) // 2]  # NaN where a fit is undefined
    best = torch.where(median.isfinite(), median, torch.inf).argmin(dim=-1)
    chosen = best[..., None, None, None].expand(*best.shape, 1, 4, 4)
    return motions.gather(-3, chosen)[..., 0, :, :]


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Returns the rotation R with the largest tr(RᵀM): the nearest to M, never a reflection.

    Differentiable wherever R is unique, also at equal singular values; elsewhere the result is
    arbitrary and its gradient zero.
    """
    return _NearestRotation.apply(matrix)  # pyright: ignore[reportReturnType]


def unique_rotation(
    matrix: Float[Tensor, "*batch 3 3"],
) -> tuple[Float[Tensor, "*batch 3 3"], Bool[Tensor, "*batch"]]:
    """Returns the nearest rotation, and whether it is the only one."""
    rotation = nearest_rotation(matrix)
    return rotation, _unique(_stretch(rotation.detach(), matrix.detach()))


class _NearestRotation(torch.autograd.Function):
    """tr(RᵀM) = qᵀNq for the unit quaternion q of R; squaring N leaves its largest eigenvector.

    Backward pass: M = RS with S symmetric, so RᵀdM - dMᵀR = ΩS + SΩ for dR = RΩ. For the axial
    vector ω of Ω this reads (tr(S)·1 - S) ω, whose matrix has sums of singular values as its
    eigenvalues, never differences.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        eye = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
        trace, mirrored = _trace(matrix), matrix.transpose(-1, -2)
        axis = _axis(matrix - mirrored)[..., None]
        top = torch.cat([trace, axis.transpose(-1, -2)], dim=-1)
        rest = torch.cat([axis, matrix + mirrored - trace * eye[1:, 1:]], dim=-1)
        power = torch.cat([top, rest], dim=-2)
        size = power.square().sum(dim=(-1, -2), keepdim=True).sqrt()
        power = power / size.clamp_min(torch.finfo(matrix.dtype).tiny) + eye
        every = _squarings_at_once(matrix)
        for done in range(1, SQUARINGS + 1):
            power = power @ power
            if done % every == 0 or done == SQUARINGS:
                power = power / _trace(power)
        ww, wv, vv = power[..., :1, :1], power[..., 1:, :1], power[..., 1:, 1:]  # blocks of qqᵀ
        cross = torch.linalg.cross(wv.expand_as(vv), eye[1:, 1:].expand_as(vv), dim=-2)
        rotation = (ww - _trace(vv)) * eye[1:, 1:] + 2 * vv + 2 * cross
        ctx.save_for_backward(matrix, rotation)
        return rotation

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        matrix, rotation = ctx.saved_tensors
        stretch = _stretch(rotation, matrix)
        unique = _unique(stretch)
        inner = rotation.transpose(-1, -2) @ gradients[0]
        twist = _axis(inner - inner.transpose(-1, -2))
        eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        solvable = torch.where(unique[..., None, None], stretch, eye)
        turned = (torch.linalg.inv_ex(solvable).inverse @ twist[..., None])[..., 0]
        turned = torch.where(unique[..., None], turned, 0)
        return torch.linalg.cross(rotation, turned[..., None, :].expand_as(rotation), dim=-1)


def _squarings_at_once(matrix: Tensor) -> int:
    """Returns how many squarings are done before the result is scaled to trace 1.

    Eigenvalues are from 1/4 to 2 before: float64 has the range of eight squarings. On CUDA, where a
    launch costs more than its arithmetic, they are done; the bits are others.
    """
    return 8 if matrix.device.type == "cuda" and matrix.dtype == torch.float64 else 1


def _stretch(rotation: Tensor, matrix: Tensor) -> Tensor:
    """Returns tr(S)·1 - S, where M = RS."""
    s = rotation.transpose(-1, -2) @ matrix
    s = (s + s.transpose(-1, -2)) / 2
    eye = torch.eye(3, dtype=s.dtype, device=s.device)
    return _trace(s) * eye - s


def _unique(stretch: Tensor) -> Tensor:
    """Returns whether one rotation is best: no two singular values sum to nearly zero."""
    trace = _trace(stretch)[..., 0, 0] / 2
    return (trace > 0) & (torch.linalg.det(stretch) > UNDEFINED * trace**3)


def _axis(antisymmetric: Tensor) -> Tensor:
    """Returns v of the matrix [v]× that maps u to v × u."""
    a = antisymmetric
    return torch.stack([a[..., 2, 1], a[..., 0, 2], a[..., 1, 0]], dim=-1)


def _trace(matrix: Tensor) -> Tensor:
    """[..., 1, 1]."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]

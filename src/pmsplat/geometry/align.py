"""Alignment of points in closed form, stable where singular values meet.

Horn, "Closed-form solution of absolute orientation using unit quaternions", JOSA A 1987; Umeyama,
"Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. No
singular value decomposition: its gradient divides by differences of singular values, which are
zero for round and for flat sets of points, though the rotation there is as smooth as elsewhere;
and on CUDA it waits for the device. All sums are in float64, whatever the points are: over 10^5
points float32 loses digits and TF32 most of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import se3

UNDEFINED = 1e-6  # relative spread below which points are one point; two of 1e-3 are lines
SQUARINGS = 28  # separate eigenvalues that are UNDEFINED apart, to 16 digits
DRAWS = 64  # with 45 % of wrong points, one time in 10^5 no triple is free of them
JUDGES = 1024  # points that say which triple is best
SAMPLE = 4096  # points that rounds of reweighting look at: their median is sure to a few percent


def umeyama(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
) -> Float[Tensor, "*_ 4 4"]:
    """The similarity [sR t] that takes `source` to `target` with least weighted squared error.

    Weights are non-negative, uniform by default. NaN, with zero gradients, where it is undefined:
    weights of sum 0, a set that is constant (its spread below UNDEFINED = 1e-6 of its distance from
    the origin), two sets that are collinear (the product of their relative widths below UNDEFINED:
    both within about 1e-3 of their length of a line), sets that share no such direction. Else
    differentiable in points and weights, and never a reflection.
    """
    kind = torch.promote_types(source.dtype, target.dtype)
    x, y = source.double(), target.double()
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    total = w.sum(dim=-1, keepdim=True)
    w = w / torch.where(total > 0, total, 1)
    weighted_x, weighted_y = w[..., None] * x, w[..., None] * y
    mean_x, mean_y = w[..., None, :] @ x, w[..., None, :] @ y
    square_x, square_y = mean_x.square().sum(dim=(-1, -2)), mean_y.square().sum(dim=(-1, -2))
    spread = torch.einsum("...ni,...ni->...", weighted_x, x) - square_x
    spread_y = torch.einsum("...ni,...ni->...", weighted_y, y) - square_y
    apart = (spread > UNDEFINED**2 * square_x) & (spread_y > UNDEFINED**2 * square_y)
    covariance = weighted_y.transpose(-1, -2) @ x - mean_y.transpose(-1, -2) @ mean_x
    rotation = nearest_rotation(covariance)
    defined = apart & _unique(_stretch(rotation.detach(), covariance.detach()))
    scale = (rotation * covariance).sum(dim=(-1, -2)) / torch.where(defined, spread, 1)
    linear = scale[..., None, None] * rotation
    moved = mean_y - mean_x @ linear.transpose(-1, -2)
    similarity = se3.compose(linear, moved[..., 0, :])
    return torch.where(defined[..., None, None], similarity, torch.nan).to(kind)


def scaling(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
) -> Float[Tensor, "*_"]:
    """The factor about the origin that takes `source` to `target` with least squared error.

    NaN, with zero gradients, where it is undefined or not positive.
    """
    kind = torch.promote_types(source.dtype, target.dtype)
    x, y = source.double(), target.double()
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    along, length = (w * (x * y).sum(dim=-1)).sum(dim=-1), (w * (x * x).sum(dim=-1)).sum(dim=-1)
    defined = (along > 0) & (length > 0)
    return torch.where(defined, along / torch.where(defined, length, 1), torch.nan).to(kind)


def trusted(
    fit: Callable[[Tensor, Tensor, Tensor], Tensor],
    source: Float[Tensor, "*batch point 3"],
    target: Float[Tensor, "*batch point 3"],
    weights: Float[Tensor, "*batch point"],
    rounds: int,
) -> Float[Tensor, "*batch point"]:
    """The weights, lessened where points do not follow the rest: `rounds` of reweighting.

    `fit(source, target, weights)` gives a [4, 4] motion, as `umeyama` does. Each round multiplies
    `weights` by (m² / (m² + r²))², r the distance of a pair and m the median distance over points
    of positive weight: the estimator of Geman and McClure (1985) by iteratively reweighted least
    squares (Holland and Welsch, 1977), its width following the residuals. The first round takes
    them from the fit of all points or of one of DRAWS triples, whichever has the least median of
    squares (Rousseeuw, 1984; triples: Fischler and Bolles, 1981). So up to about 45 % of wrong
    points are withstood, however far off and even if they agree with each other; with half of them
    or more, nothing says which half is right. The rounds look at SAMPLE points, spread over those
    of positive weight; the last weighs all. Deterministic. Without gradient. Where the fit is
    undefined (NaN), the weights stay.
    """
    source, target, weights = source.detach(), target.detach(), weights.detach()
    if not rounds:
        return weights
    with torch.no_grad():
        some, goals, given = _sample(source, target, weights)
        motion = _least_median(fit, some, goals, given, fit(some, goals, given))
        squared, width = _residuals(motion, some, goals, given)
        for _ in range(rounds - 1):
            motion = fit(some, goals, given * _share(squared, width).to(given.dtype))
            squared, width = _residuals(motion, some, goals, given)
        return weights * _share(_squared(motion, source, target), width).to(weights.dtype)


def _residuals(
    motion: Tensor, source: Tensor, target: Tensor, given: Tensor
) -> tuple[Float[Tensor, "*batch point"], Float[Tensor, "*batch 1"]]:
    """Squared distances, and their median over points of positive weight."""
    squared = _squared(motion, source, target)
    known = torch.where(given > 0, squared, torch.nan)
    return squared, known.nanmedian(dim=-1, keepdim=True).values.clamp_min(1e-300)


def _squared(motion: Tensor, source: Tensor, target: Tensor) -> Tensor:
    return (se3.transform(motion, source) - target).double().square().sum(dim=-1)


def _share(squared: Tensor, width: Tensor) -> Tensor:
    share = (width / (width + squared)).square()
    return torch.where(share.isfinite(), share, 1)


def _sample(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SAMPLE points of positive weight, spread over them; all points, where there are no more."""
    if weights.shape[-1] <= SAMPLE:
        return source, target, weights
    generator = torch.Generator(weights.device).manual_seed(0)
    index = _picked(weights, _strata(torch.rand(SAMPLE, **_like(weights, generator))))
    places = index[..., None].expand(*index.shape, 3)
    return source.gather(-2, places), target.gather(-2, places), weights.gather(-1, index)


def _picked(weights: Tensor, chance: Float[Tensor, " draw"]) -> Int[Tensor, "*batch draw"]:
    """Which points have these shares, from 0 to 1, of those of positive weight before them."""
    rank = (weights > 0).cumsum(dim=-1)
    wanted = (chance * rank[..., -1:]).floor().long() + 1  # the first point of this rank
    return torch.searchsorted(rank, wanted).clamp_max(rank.shape[-1] - 1)


def _strata(chance: Float[Tensor, " draw"]) -> Float[Tensor, " draw"]:
    """Random shares spread evenly: one in each of as many equal parts."""
    return (torch.arange(len(chance), device=chance.device) + chance) / len(chance)


def _like(weights: Tensor, generator: torch.Generator) -> dict[str, Any]:
    return {"dtype": torch.float64, "device": weights.device, "generator": generator}


def _least_median(
    fit: Callable[[Tensor, Tensor, Tensor], Tensor],
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    whole: Tensor,
) -> Float[Tensor, "*batch 4 4"]:
    """Of `whole` and the fits of random triples, that with the least median on JUDGES points.

    Points are drawn among those of positive weight, the same way for each of the batch.
    """
    generator = torch.Generator(source.device).manual_seed(0)
    chance = torch.rand(3 * DRAWS + JUDGES, **_like(weights, generator))
    index = _picked(weights, torch.cat([chance[: 3 * DRAWS], _strata(chance[3 * DRAWS :])]))
    index = index[..., None].expand(*index.shape, 3)
    drawn, goals = source.gather(-2, index), target.gather(-2, index)
    corners, ends = (t[..., : 3 * DRAWS, :].unflatten(-2, (DRAWS, 3)) for t in (drawn, goals))
    triples = fit(corners, ends, torch.ones_like(corners[..., 0]))
    motions = torch.cat([whole[..., None, :, :], triples], dim=-3)
    judged, aims = (t[..., None, 3 * DRAWS :, :] for t in (drawn, goals))
    squared = (se3.transform(motions, judged) - aims).square().sum(dim=-1)
    median = squared.median(dim=-1).values  # NaN of an undefined fit
    best = torch.where(median.isfinite(), median, torch.inf).argmin(dim=-1)
    chosen = best[..., None, None, None].expand(*best.shape, 1, 4, 4)
    return motions.gather(-3, chosen)[..., 0, :, :]


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation R with the largest tr(RᵀM): the nearest to M, never a reflection.

    Differentiable wherever it is unique, equal singular values included; elsewhere the result
    means nothing and its gradient is zero.
    """
    return _NearestRotation.apply(matrix)  # pyright: ignore[reportReturnType]


class _NearestRotation(torch.autograd.Function):
    """tr(RᵀM) = qᵀNq for the unit quaternion q of R; squaring N leaves its largest eigenvector.

    Backwards: M = RS with S symmetric, so RᵀdM - dMᵀR = ΩS + SΩ for dR = RΩ; of axial vectors,
    (tr(S)·1 - S) ω, whose eigenvalues are sums of singular values and never their differences.
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
        for _ in range(SQUARINGS):
            power = power @ power
            power = power / _trace(power)
        ww, wv, vv = power[..., :1, :1], power[..., 1:, :1], power[..., 1:, 1:]  # of qqᵀ by now
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


def _stretch(rotation: Tensor, matrix: Tensor) -> Tensor:
    """tr(S)·1 - S of M = RS."""
    s = rotation.transpose(-1, -2) @ matrix
    s = (s + s.transpose(-1, -2)) / 2
    eye = torch.eye(3, dtype=s.dtype, device=s.device)
    return _trace(s) * eye - s


def _unique(stretch: Tensor) -> Tensor:
    """Whether one rotation is best: the product of the sums of two singular values is not small."""
    trace = _trace(stretch)[..., 0, 0] / 2
    return (trace > 0) & (torch.linalg.det(stretch) > UNDEFINED * trace**3)


def _axis(antisymmetric: Tensor) -> Tensor:
    """v of the matrix [v]× that takes u to v × u."""
    a = antisymmetric
    return torch.stack([a[..., 2, 1], a[..., 0, 2], a[..., 1, 0]], dim=-1)


def _trace(matrix: Tensor) -> Tensor:
    """[..., 1, 1]."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]

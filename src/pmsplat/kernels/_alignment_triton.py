"""Fits of many point sets on CUDA devices, one program each: sums, rotation, scale, residuals; and
rotations alone, with gradients.

The formulas are those of `geometry.align`, in float64. Sets are small there (a sample of points, or
triples), so that what counts is not their arithmetic but the number of launches.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..geometry.align import SQUARINGS, UNDEFINED
from . import cuda

BLOCK = 256
RESCALE = 4


def fit(source: Tensor, target: Tensor, weights: Tensor, scale_alone: bool) -> Tensor:
    """The motions [*batch, 4, 4]: of `align.umeyama`, or of `align.rescaling`."""
    return _launch(source, target, weights, None, None, scale_alone)[0]


def refit(
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    squared: Tensor,
    width: Tensor,
    scale_alone: bool,
) -> tuple[Tensor, Tensor]:
    """The same of weights lowered by the estimator, and the squared distances under it."""
    return _launch(source, target, weights, squared, width, scale_alone)


def _launch(
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    squared: Tensor | None,
    width: Tensor | None,
    scale_alone: bool,
) -> tuple[Tensor, Tensor]:
    sets, count = weights.shape[:-1].numel(), weights.shape[-1]
    cuda.check_places(
        f"{sets} sets of {count} points to align",
        "fewer than 2³¹ sets, and coordinates in one",
        sets, 3 * (count + BLOCK),
    )  # fmt: skip
    given = [x.double().contiguous() for x in (source, target, weights)]
    reweighted = squared is not None
    given += [x.contiguous() if x is not None else given[2] for x in (squared, width)]
    motions = given[2].new_empty(*weights.shape[:-1], 4, 4)
    distances = torch.empty_like(given[2]) if reweighted else given[2]
    cuda.launch(
        _fit, (sets,),
        *given, motions, distances,
        COUNT=count, REWEIGHTED=reweighted, SCALE_ALONE=scale_alone,
        UNDEFINED=UNDEFINED, SQUARINGS=SQUARINGS, RESCALE=RESCALE,
        BLOCK=min(BLOCK, triton.next_power_of_2(count)), num_warps=4 if count > BLOCK else 1,
    )  # fmt: skip
    return motions, distances


@triton.jit
def _load(points, at, inside):
    """Three coordinates of a block of points; 0 behind the last."""
    x = tl.load(points + 3 * at, mask=inside, other=0.0)
    y = tl.load(points + 3 * at + 1, mask=inside, other=0.0)
    return x, y, tl.load(points + 3 * at + 2, mask=inside, other=0.0)


@triton.jit
def _square(x, y, z):
    return x * x + y * y + z * z


@triton.jit
def _weight(given, squared, width, at, inside, REWEIGHTED: tl.constexpr):
    """A block of weights, lowered by the factor of Geman and McClure; 1 where it is undefined."""
    weight = tl.load(given + at, mask=inside, other=0.0)
    if REWEIGHTED:
        share = width / (width + tl.load(squared + at, mask=inside, other=0.0))
        weight *= tl.where(share == share, share * share, 1.0)
    return weight


@triton.jit
def _mean(sums, total):
    return tl.sum(sums, 0) / total


@triton.jit
def _determinant(a, b, c, d, e, f):
    """Of a symmetric matrix, by its upper rows."""
    return a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d)


@triton.jit
def _rotation(
    c00, c01, c02, c10, c11, c12, c20, c21, c22, SQUARINGS: tl.constexpr, RESCALE: tl.constexpr
):  # fmt: skip
    """The nearest rotation: its quaternion is the largest eigenvector of a symmetric matrix."""
    trace = c00 + c11 + c22
    p00, p01, p02, p03 = trace, c21 - c12, c02 - c20, c10 - c01
    p11, p12, p13 = 2 * c00 - trace, c01 + c10, c02 + c20
    p22, p23, p33 = 2 * c11 - trace, c12 + c21, 2 * c22 - trace
    size = p00 * p00 + p11 * p11 + p22 * p22 + p33 * p33
    size += 2 * (p01 * p01 + p02 * p02 + p03 * p03 + p12 * p12 + p13 * p13 + p23 * p23)
    by = 1 / tl.maximum(tl.sqrt(size), 2.2250738585072014e-308)
    p00, p01, p02, p03, p11 = by * p00 + 1, by * p01, by * p02, by * p03, by * p11 + 1
    p12, p13, p22, p23, p33 = by * p12, by * p13, by * p22 + 1, by * p23, by * p33 + 1
    for _ in range(SQUARINGS // RESCALE):
        for _ in tl.static_range(RESCALE):
            q00 = p00 * p00 + p01 * p01 + p02 * p02 + p03 * p03
            q01 = p00 * p01 + p01 * p11 + p02 * p12 + p03 * p13
            q02 = p00 * p02 + p01 * p12 + p02 * p22 + p03 * p23
            q03 = p00 * p03 + p01 * p13 + p02 * p23 + p03 * p33
            q11 = p01 * p01 + p11 * p11 + p12 * p12 + p13 * p13
            q12 = p01 * p02 + p11 * p12 + p12 * p22 + p13 * p23
            q13 = p01 * p03 + p11 * p13 + p12 * p23 + p13 * p33
            q22 = p02 * p02 + p12 * p12 + p22 * p22 + p23 * p23
            q23 = p02 * p03 + p12 * p13 + p22 * p23 + p23 * p33
            q33 = p03 * p03 + p13 * p13 + p23 * p23 + p33 * p33
            p00, p01, p02, p03, p11 = q00, q01, q02, q03, q11
            p12, p13, p22, p23, p33 = q12, q13, q22, q23, q33
        by = 1 / (p00 + p11 + p22 + p33)
        p00, p01, p02, p03, p11 = by * p00, by * p01, by * p02, by * p03, by * p11
        p12, p13, p22, p23, p33 = by * p12, by * p13, by * p22, by * p23, by * p33
    rest = p00 - p11 - p22 - p33
    r00, r01, r02 = rest + 2 * p11, 2 * (p12 - p03), 2 * (p13 + p02)
    r10, r11, r12 = 2 * (p12 + p03), rest + 2 * p22, 2 * (p23 - p01)
    r20, r21, r22 = 2 * (p13 - p02), 2 * (p23 + p01), rest + 2 * p33
    return r00, r01, r02, r10, r11, r12, r20, r21, r22


@triton.jit
def _stretch(
    r00, r01, r02, r10, r11, r12, r20, r21, r22, c00, c01, c02, c10, c11, c12, c20, c21, c22
):  # fmt: skip
    """The upper rows of S, where C = RS."""
    s00, s11 = r00 * c00 + r10 * c10 + r20 * c20, r01 * c01 + r11 * c11 + r21 * c21
    s22 = r02 * c02 + r12 * c12 + r22 * c22
    s01 = (r00 * c01 + r10 * c11 + r20 * c21 + r01 * c00 + r11 * c10 + r21 * c20) / 2
    s02 = (r00 * c02 + r10 * c12 + r20 * c22 + r02 * c00 + r12 * c10 + r22 * c20) / 2
    s12 = (r01 * c02 + r11 * c12 + r21 * c22 + r02 * c01 + r12 * c11 + r22 * c21) / 2
    return s00, s01, s02, s11, s12, s22


@triton.jit
def _is_unique(s00, s01, s02, s11, s12, s22, UNDEFINED: tl.constexpr):
    """Whether no two singular values sum to nearly 0: by the determinant of tr(S)·1 - S."""
    trace = s00 + s11 + s22
    product = _determinant(trace - s00, -s01, -s02, trace - s11, -s12, trace - s22)
    return (trace > 0) & (product > UNDEFINED * trace * trace * trace)


@triton.jit
def _turn_and_scale(
    c00, c01, c02, c10, c11, c12, c20, c21, c22, spread, spread_y, mean_x, mean_y,
    UNDEFINED: tl.constexpr, SQUARINGS: tl.constexpr, RESCALE: tl.constexpr,
):  # fmt: skip
    """Rotation and scale of a covariance C, and whether they are defined, for second moments and
    squared means of both sets."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(
        c00, c01, c02, c10, c11, c12, c20, c21, c22, SQUARINGS, RESCALE
    )
    s00, s01, s02, s11, s12, s22 = _stretch(
        r00, r01, r02, r10, r11, r12, r20, r21, r22, c00, c01, c02, c10, c11, c12, c20, c21, c22
    )
    trace = s00 + s11 + s22
    spread, spread_y = spread - mean_x, spread_y - mean_y
    least = UNDEFINED * UNDEFINED
    defined = _is_unique(s00, s01, s02, s11, s12, s22, UNDEFINED)
    defined = defined & (spread > least * mean_x) & (spread_y > least * mean_y)
    scale = trace / tl.where(defined, spread, 1.0)
    return r00, r01, r02, r10, r11, r12, r20, r21, r22, scale, defined


@triton.jit
def _store_row(motions, a, b, c, d):
    tl.store(motions, a)
    tl.store(motions + 1, b)
    tl.store(motions + 2, c)
    tl.store(motions + 3, d)


@triton.jit
def _measure(
    source, target, given, distances, m00, m01, m02, m03, m10, m11, m12, m13, m20, m21, m22, m23,
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores how far a motion leaves the points, squared; NaN for those of weight 0."""
    for first in range(0, COUNT, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < COUNT
        x, y, z = _load(source, at, inside)
        u, v, w = _load(target, at, inside)
        away = _square(
            m00 * x + m01 * y + m02 * z + m03 - u,
            m10 * x + m11 * y + m12 * z + m13 - v,
            m20 * x + m21 * y + m22 * z + m23 - w,
        )
        counts = tl.load(given + at, mask=inside, other=0.0) > 0
        tl.store(distances + at, tl.where(counts, away, float("nan")), mask=inside)


@triton.jit
def _fit(
    source, target, given, squared, width, motions, distances,
    COUNT: tl.constexpr, REWEIGHTED: tl.constexpr, SCALE_ALONE: tl.constexpr,
    UNDEFINED: tl.constexpr, SQUARINGS: tl.constexpr, RESCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores the motion of one set and, where weights are lowered, its squared distances."""
    sample, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    source, target = source + sample * 3 * COUNT, target + sample * 3 * COUNT
    given, squared = given + sample * COUNT, squared + sample * COUNT
    distances, motions = distances + sample * COUNT, motions + sample * 16
    wide = tl.load(width + (sample if REWEIGHTED else 0))

    # Sum weights, weighted points, and weighted products of their coordinates.
    o = tl.zeros((BLOCK,), tl.float64)
    w, x0, x1, x2, y0, y1, y2, xx, yy = o, o, o, o, o, o, o, o, o
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = o, o, o, o, o, o, o, o, o
    for first in range(0, COUNT, BLOCK):
        at = first + lane
        inside = at < COUNT
        weight = _weight(given, squared, wide, at, inside, REWEIGHTED)
        a0, a1, a2 = _load(source, at, inside)
        b0, b1, b2 = _load(target, at, inside)
        xx, yy = xx + weight * _square(a0, a1, a2), yy + weight * _square(b0, b1, b2)
        x0, x1, x2 = x0 + weight * a0, x1 + weight * a1, x2 + weight * a2
        b0, b1, b2, w = weight * b0, weight * b1, weight * b2, w + weight
        y0, y1, y2 = y0 + b0, y1 + b1, y2 + b2
        m00, m01, m02 = m00 + b0 * a0, m01 + b0 * a1, m02 + b0 * a2
        m10, m11, m12 = m10 + b1 * a0, m11 + b1 * a1, m12 + b1 * a2
        m20, m21, m22 = m20 + b2 * a0, m21 + b2 * a1, m22 + b2 * a2
    total = tl.sum(w, 0)
    total = tl.where(total > 0, total, 1.0)
    n, spread, spread_y = total * 0.0, _mean(xx, total), _mean(yy, total)
    c00, c01, c02 = _mean(m00, total), _mean(m01, total), _mean(m02, total)
    c10, c11, c12 = _mean(m10, total), _mean(m11, total), _mean(m12, total)
    c20, c21, c22 = _mean(m20, total), _mean(m21, total), _mean(m22, total)

    # Solve for rotation, scale and translation.
    if SCALE_ALONE:
        along = c00 + c11 + c22
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = n + 1, n, n, n, n + 1, n, n, n, n + 1
        t0, t1, t2, defined = n, n, n, (along > 0) & (spread > 0)
        scale = along / tl.where(defined, spread, 1.0)
    else:
        u0, u1, u2 = _mean(x0, total), _mean(x1, total), _mean(x2, total)
        v0, v1, v2 = _mean(y0, total), _mean(y1, total), _mean(y2, total)
        r00, r01, r02, r10, r11, r12, r20, r21, r22, scale, defined = _turn_and_scale(
            c00 - v0 * u0, c01 - v0 * u1, c02 - v0 * u2,
            c10 - v1 * u0, c11 - v1 * u1, c12 - v1 * u2,
            c20 - v2 * u0, c21 - v2 * u1, c22 - v2 * u2,
            spread, spread_y, _square(u0, u1, u2), _square(v0, v1, v2),
            UNDEFINED, SQUARINGS, RESCALE,
        )  # fmt: skip
        t0 = v0 - scale * (r00 * u0 + r01 * u1 + r02 * u2)
        t1 = v1 - scale * (r10 * u0 + r11 * u1 + r12 * u2)
        t2 = v2 - scale * (r20 * u0 + r21 * u1 + r22 * u2)

    # Store the motion, NaN where it is undefined.
    scale = tl.where(defined, scale, float("nan"))
    n = scale - scale
    r00, r01, r02, t0 = scale * r00, scale * r01, scale * r02, t0 + n
    r10, r11, r12, t1 = scale * r10, scale * r11, scale * r12, t1 + n
    r20, r21, r22, t2 = scale * r20, scale * r21, scale * r22, t2 + n
    _store_row(motions, r00, r01, r02, t0)
    _store_row(motions + 4, r10, r11, r12, t1)
    _store_row(motions + 8, r20, r21, r22, t2)
    _store_row(motions + 12, n, n, n, n + 1)

    if REWEIGHTED:
        _measure(
            source, target, given, distances, r00, r01, r02, t0, r10, r11, r12, t1,
            r20, r21, r22, t2, COUNT, BLOCK,
        )  # fmt: skip


class UniqueRotation(torch.autograd.Function):
    """`align.unique_rotation` of float64 matrices, by a launch forward and one backward."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        matrix = matrix.contiguous()
        rotation = torch.empty_like(matrix)
        unique = matrix.new_empty(matrix.shape[:-2], dtype=torch.bool)
        _turn(_forward, matrix, rotation, unique)
        ctx.save_for_backward(matrix, rotation)
        ctx.mark_non_differentiable(unique)
        ctx.set_materialize_grads(False)  # a launch, for `unique`
        return rotation, unique

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> Tensor:
        matrix, rotation = ctx.saved_tensors
        out = torch.empty_like(matrix)
        _turn(_backward, matrix, rotation, gradients[0].contiguous(), out)
        return out


def _turn(kernel: Any, *tensors: Tensor) -> None:
    """Launches a kernel with a program for each matrix of the first tensor."""
    count = tensors[0].shape[:-2].numel()
    cuda.check_places(f"{count} matrices", "fewer than 2²⁷", 9 * count)
    if count:
        cuda.launch(
            kernel, (count,),
            *tensors, UNDEFINED=UNDEFINED, SQUARINGS=SQUARINGS, RESCALE=RESCALE, num_warps=1,
        )  # fmt: skip


@triton.jit
def _matrix(at):
    """The nine numbers of a matrix."""
    m00, m01, m02 = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    m10, m11, m12 = tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)
    return m00, m01, m02, m10, m11, m12, tl.load(at + 6), tl.load(at + 7), tl.load(at + 8)


@triton.jit
def _store_three(at, x, y, z):
    tl.store(at, x)
    tl.store(at + 1, y)
    tl.store(at + 2, z)


@triton.jit
def _forward(
    matrices, rotations, unique,
    UNDEFINED: tl.constexpr, SQUARINGS: tl.constexpr, RESCALE: tl.constexpr,
):  # fmt: skip
    """Stores the rotation of one matrix, and whether it is the only one."""
    sample = tl.program_id(0)
    c00, c01, c02, c10, c11, c12, c20, c21, c22 = _matrix(matrices + 9 * sample)
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(
        c00, c01, c02, c10, c11, c12, c20, c21, c22, SQUARINGS, RESCALE
    )
    s00, s01, s02, s11, s12, s22 = _stretch(
        r00, r01, r02, r10, r11, r12, r20, r21, r22, c00, c01, c02, c10, c11, c12, c20, c21, c22
    )
    _store_three(rotations + 9 * sample, r00, r01, r02)
    _store_three(rotations + 9 * sample + 3, r10, r11, r12)
    _store_three(rotations + 9 * sample + 6, r20, r21, r22)
    tl.store(unique + sample, _is_unique(s00, s01, s02, s11, s12, s22, UNDEFINED))


@triton.jit
def _backward(
    matrices, rotations, gradients, out,
    UNDEFINED: tl.constexpr, SQUARINGS: tl.constexpr, RESCALE: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of one matrix: see `align.nearest_rotation`; 0 where it is not unique."""
    sample = tl.program_id(0)
    c00, c01, c02, c10, c11, c12, c20, c21, c22 = _matrix(matrices + 9 * sample)
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _matrix(rotations + 9 * sample)
    g00, g01, g02, g10, g11, g12, g20, g21, g22 = _matrix(gradients + 9 * sample)
    s00, s01, s02, s11, s12, s22 = _stretch(
        r00, r01, r02, r10, r11, r12, r20, r21, r22, c00, c01, c02, c10, c11, c12, c20, c21, c22
    )
    # The axis of RᵀG - GᵀR
    t0 = r02 * g01 + r12 * g11 + r22 * g21 - r01 * g02 - r11 * g12 - r21 * g22
    t1 = r00 * g02 + r10 * g12 + r20 * g22 - r02 * g00 - r12 * g10 - r22 * g20
    t2 = r01 * g00 + r11 * g10 + r21 * g20 - r00 * g01 - r10 * g11 - r20 * g21
    # It is (tr(S)·1 - S) w: solve for w by cofactors
    trace = s00 + s11 + s22
    a, d, f, b, c, e = trace - s00, trace - s11, trace - s22, -s01, -s02, -s12
    unique = _is_unique(s00, s01, s02, s11, s12, s22, UNDEFINED)
    by = tl.where(unique, 1 / tl.where(unique, _determinant(a, b, c, d, e, f), 1.0), 0.0)
    w0 = by * ((d * f - e * e) * t0 + (c * e - b * f) * t1 + (b * e - c * d) * t2)
    w1 = by * ((c * e - b * f) * t0 + (a * f - c * c) * t1 + (b * c - a * e) * t2)
    w2 = by * ((b * e - c * d) * t0 + (b * c - a * e) * t1 + (a * d - b * b) * t2)
    # Rows of R, times w
    out += 9 * sample
    _store_three(out, r01 * w2 - r02 * w1, r02 * w0 - r00 * w2, r00 * w1 - r01 * w0)
    _store_three(out + 3, r11 * w2 - r12 * w1, r12 * w0 - r10 * w2, r10 * w1 - r11 * w0)
    _store_three(out + 6, r21 * w2 - r22 * w1, r22 * w0 - r20 * w2, r20 * w1 - r21 * w0)

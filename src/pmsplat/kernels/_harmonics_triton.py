"""One small matrix times many vectors on CUDA devices: every number is read and written once."""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda

BLOCK = 64


class Turn(torch.autograd.Function):
    """[n, row, term], [n, pixel, 3, term] -> [n, pixel, row, 3]; `base` is added to row 0.

    Gradients go to the vectors alone. Their memory may lie in any order.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, vectors: Tensor, base: Tensor | None) -> Tensor:
        ctx.save_for_backward(matrix)
        count, pixels = vectors.shape[:2]
        out = vectors.new_empty(count, pixels, matrix.shape[1], 3)
        _multiply(matrix, vectors, base, out.transpose(2, 3))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (matrix,) = ctx.saved_tensors
        given = gradients[0].transpose(2, 3)
        planes = given.new_empty(len(given), 3, matrix.shape[2], given.shape[1])  # as maps are
        found = planes.permute(0, 3, 1, 2)
        _multiply(matrix.transpose(1, 2), given, None, found)
        return None, found, None


def _multiply(matrix: Tensor, vectors: Tensor, base: Tensor | None, out: Tensor) -> None:
    count, pixels = vectors.shape[:2]
    rows, terms = matrix.shape[1:]
    if not vectors.numel():
        return
    cuda.check_places(
        f"harmonics of {count} views of {pixels} pixels",
        "fewer than 2³¹ numbers in one view",
        cuda.extent(vectors[0]), cuda.extent(out[0]),
    )  # fmt: skip
    tensors = (matrix, vectors, vectors if base is None else base, out)
    for part in cuda.parts(count):
        cuda.launch(
            _turn, (triton.cdiv(pixels, BLOCK), part.stop - part.start, 3),
            *(x[part] for x in tensors), pixels,
            *matrix.stride(), *vectors.stride(), *(3 * (0,) if base is None else base.stride()),
            *out.stride(),
            ROWS=rows, TERMS=terms, HEIGHT=triton.next_power_of_2(rows), ADDS=base is not None,
            BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit
def _turn(
    matrix, vectors, base, out, pixels, mn, mr, mt, vn, vp, vc, vt, bn, bp, bc, on, op, oc, orow,
    ROWS: tl.constexpr, TERMS: tl.constexpr, HEIGHT: tl.constexpr, ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of pixels in one color; strides are named by tensor and axis."""
    n, color = tl.program_id(1).to(tl.int64), tl.program_id(2)
    pixel, row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HEIGHT)
    known, inside = row < ROWS, pixel < pixels
    pixel = pixel.to(tl.int64)
    matrix += n * mn
    vectors += n * vn + color * vc + pixel * vp
    sums = tl.zeros((HEIGHT, BLOCK), vectors.dtype.element_ty)
    for term in range(TERMS):
        column = tl.load(matrix + row * mr + term * mt, mask=known, other=0.0)
        sums += column[:, None] * tl.load(vectors + term * vt, mask=inside, other=0.0)[None, :]
    if ADDS:
        first = tl.load(base + n * bn + color * bc + pixel * bp, mask=inside, other=0.0)
        sums += tl.where(row[:, None] == 0, first[None, :], 0.0)
    places = out + n * on + color * oc + pixel[None, :] * op + row[:, None] * orow
    tl.store(places, sums, mask=known[:, None] & inside[None, :])

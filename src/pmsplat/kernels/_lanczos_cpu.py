"""Pillow's LANCZOS on 8-bit RGB for CPUs, compiled, and only where its result is wanted.

The arithmetic is Pillow's (libImaging/Resample.c): along rows first, then along columns, weights of
22 bits, 8 bits between the two. For the first pass a block of rows is turned into columns, so that
either pass runs over numbers that lie side by side, which LLVM vectorizes.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

BITS = 22  # of the fraction of a weight (PRECISION_BITS)
HALF = np.int32(1 << (BITS - 1))
LOBES = 3
ROWS = 64  # of a block
TOGETHER = 3  # taps that are added at a time: sums are loaded and stored a third as often

Array = np.ndarray[Any, np.dtype[Any]]

serial: Any = njit(cache=True, error_model="numpy", nogil=True)


@dataclass(frozen=True)
class _Taps:
    """For each pixel that is made: the first that it is made of, and weights, 0 at the end."""

    first: Array  # int64 [pixel]
    weights: Array  # int32 [pixel, tap]
    end: int  # behind the last pixel that is used


@lru_cache(maxsize=64)
def _find_taps(before: int, after: int, start: int, count: int) -> _Taps:
    """The taps of `count` pixels from `start` on, where `before` pixels become `after`."""
    scale = before / after
    stretched = max(scale, 1.0)
    support = LOBES * stretched
    first, rows = [], []
    for i in range(start, start + count):
        center = (i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), before)
        row = np.array([_lanczos((x - center + 0.5) / stretched) for x in range(low, high)])
        row = row / sum(row.tolist()) * (1 << BITS)
        first.append(low)
        rows.append(np.trunc(row + np.copysign(0.5, row)))
    taps = -(-max(map(len, rows)) // TOGETHER) * TOGETHER
    weights = np.zeros((count, taps), np.int32)
    for i, row in enumerate(rows):
        weights[i, : len(row)] = row
    return _Taps(
        np.array(first), weights, max(f + len(r) for f, r in zip(first, rows, strict=True))
    )


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / LOBES) if -LOBES <= x < LOBES else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


def resize(
    image: Array, size: tuple[int, int], start: tuple[int, int], window: tuple[int, int]
) -> Array:
    """uint8 [height, width, 3] -> [3, h, w]: a window, from `start` on, of the image at `size`."""
    rows = _find_taps(image.shape[0], size[0], start[0], window[0])
    columns = _find_taps(image.shape[1], size[1], start[1], window[1])
    top, left = int(rows.first[0]), int(columns.first[0])
    used = image[top : rows.end, left : columns.end]
    # Behind the last row there are more, for weights of 0.
    narrow = np.zeros((3, len(used) + rows.weights.shape[1], window[1]), np.uint8)
    _resize_rows(used, columns.first - left, columns.weights, narrow)
    out = np.empty((3, *window), np.uint8)
    _resize_columns(narrow, rows.first - top, rows.weights, out)
    return out


@serial
def _resize_rows(image: Array, first: Array, weights: Array, out: Array) -> None:
    height, width, taps = image.shape[0], image.shape[1], weights.shape[1]
    block = np.zeros(3 * (width + taps) * ROWS, np.uint8)
    sums = np.empty(ROWS, np.int32)
    step = np.uint64(3 * ROWS)
    for start in range(0, height, ROWS):
        rows = min(ROWS, height - start)
        _turn(image, start, rows, block)
        for x in range(len(first)):
            for c in range(3):
                sums[:] = HALF
                for k in range(0, taps, TOGETHER):
                    at = np.uint64((3 * (first[x] + k) + c) * ROWS)
                    _add(block, at, step, weights[x, k : k + TOGETHER], sums)
                for r in range(rows):
                    out[c, start + r, x] = np.uint8(min(max(sums[r] >> BITS, 0), 255))


@serial
def _turn(image: Array, start: int, rows: int, block: Array) -> None:
    for x in range(image.shape[1]):
        for r in range(rows):
            for c in range(3):
                block[(3 * x + c) * ROWS + r] = image[start + r, x, c]


@serial
def _resize_columns(image: Array, first: Array, weights: Array, out: Array) -> None:
    width, taps = image.shape[2], weights.shape[1]
    sums = np.empty(width, np.int32)
    for c in range(3):
        plane = image[c].reshape(-1)
        for y in range(len(first)):
            sums[:] = HALF
            for k in range(0, taps, TOGETHER):
                at = np.uint64((first[y] + k) * width)
                _add(plane, at, np.uint64(width), weights[y, k : k + TOGETHER], sums)
            for x in range(width):
                out[c, y, x] = np.uint8(min(max(sums[x] >> BITS, 0), 255))


@njit(inline="always", error_model="numpy")
def _add(numbers: Array, at: Any, step: Any, weights: Array, sums: Array) -> None:
    """Adds rows of numbers, which begin at `at` and `step` apart, times their weights.

    All in 32 bits: numba's own choice for a product of two would be 64.
    """
    one, two, three = weights[0], weights[1], weights[2]
    for i in range(len(sums)):
        place = at + np.uint64(i)
        a = np.int32(np.int32(numbers[place]) * one)
        b = np.int32(np.int32(numbers[place + step]) * two)
        c = np.int32(np.int32(numbers[place + step + step]) * three)
        sums[i] = np.int32(sums[i] + a + b + c)

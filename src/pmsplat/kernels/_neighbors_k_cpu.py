"""Several nearest neighbours for CPUs, compiled: each point traverses a tree of boxes.

Both sets come in an order in which neighbours in space are near each other. Every sixteen
consecutive reference points share a box, every sixteen boxes a larger box, and so on. Siblings lie
side by side, one array for each coordinate, so that a point is compared with all of them at once.
It visits boxes nearest first (Roussopoulos, Kelley and Vincent, "Nearest Neighbor Queries", SIGMOD
1995), within a distance that follows from the list of the point before it. Lists are sorted by
distance, then by index; a box is visited while it may hold something before the end of the list, so
that ties are broken by index and equal points do not make the search visit all of them. The
distance to a box is rounded like that to a point in it and is never greater, so lists are exact.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..geometry.neighbors import MIN_Z
from ._neighbors_cpu import inlined, parallel, serial
from ._tracing import untraced

FAN = 16  # points or boxes in a box: LLVM vectorises loops over them
BLOCK = 256  # points per job of a thread
NONE = np.iinfo(np.int32).max  # index in places of a list that are not taken yet
SLACK = 1e-4  # of a bound, relative: more than its rounding
WAITING = 9 * FAN  # boxes at most that a search has yet to visit: those of every level
X0, Y0, Z0, X1, Y1, Z1 = (np.uint64(i) for i in range(6))  # unsigned, or LLVM does not vectorise

Array = np.ndarray[Any, np.dtype[Any]]


@untraced
def search(points: Tensor, reference: Tensor, index: Tensor, k: int) -> Tensor:
    """Returns the indices [batch, n, k] of the nearest, nearest first, ties by lower index.

    Both sets ([batch, n or m, 3]) are in order; `index` [batch, m] numbers the reference points.
    """
    keys, numbers = _group(reference.numpy(), np.inf), _group(index.int().numpy(), NONE)
    # Boxes of points, then boxes of boxes. Leaves are numbered first, then their boxes by sixteens.
    low, high = keys.min(axis=2), _group(reference.numpy(), -np.inf).max(axis=2)
    least = numbers.min(axis=2)
    boxes, lowest, children, first = [], [], [], 0
    while not boxes or boxes[-1].shape[1] > 1:
        low, high, least = _group(low, np.inf), _group(high, -np.inf), _group(least, NONE)
        children.append(first + FAN * np.arange(low.shape[1], dtype=np.int32))
        first += boxes[-1].shape[1] if boxes else keys.shape[1]
        boxes.append(np.concatenate([low, high], axis=3).swapaxes(2, 3))
        lowest.append(least)
        low, high, least = low.min(axis=2), high.max(axis=2), least.min(axis=2)
    found = np.empty((*points.shape[:2], k), np.int64)
    _search(
        points.numpy(), np.concatenate(boxes, axis=1), np.concatenate(lowest, axis=1),
        np.concatenate(children), keys.swapaxes(2, 3).copy(), numbers, found,
    )  # fmt: skip
    return torch.from_numpy(found)


def _group(array: Array, fill: float) -> Array:
    """Returns [batch, m, ...] as [batch, m / 16, 16, ...], filled up with `fill`."""
    batch, m, *rest = array.shape
    missing = np.full((batch, -m % FAN, *rest), fill, array.dtype)
    return np.concatenate([array, missing], axis=1).reshape(batch, -1, FAN, *rest)


@inlined
def _insert(distances: Array, indices: Array, squared: float, index: int) -> None:
    """Puts a point that comes before the last of a sorted list into it."""
    place = np.uint64(len(distances) - 1)
    one = np.uint64(1)
    while place > 0:
        before = distances[place - one]
        if before < squared or (before == squared and indices[place - one] < index):
            break
        distances[place], indices[place] = before, indices[place - one]
        place -= one
    distances[place], indices[place] = squared, index


@inlined
def _measure_boxes(
    boxes: Array, sample: int, group: int, x: float, y: float, z: float, squared: Array
) -> None:
    """Fills squared distances to the boxes of a group."""
    zero, s, g = boxes.dtype.type(0), np.uint64(sample), np.uint64(group)
    for sibling in range(FAN):
        i = np.uint64(sibling)
        dx = max(boxes[s, g, X0, i] - x, x - boxes[s, g, X1, i])
        dy = max(boxes[s, g, Y0, i] - y, y - boxes[s, g, Y1, i])
        dz = max(boxes[s, g, Z0, i] - z, z - boxes[s, g, Z1, i])
        dx, dy, dz = max(dx, zero), max(dy, zero), max(dz, zero)
        squared[i] = dx * dx + dy * dy + dz * dz


@inlined
def _measure_points(
    keys: Array, sample: int, leaf: int, x: float, y: float, z: float, squared: Array
) -> None:
    """Fills squared distances to the points of a leaf."""
    s, g = np.uint64(sample), np.uint64(leaf)
    for sibling in range(FAN):
        i = np.uint64(sibling)
        dx, dy, dz = x - keys[s, g, X0, i], y - keys[s, g, Y0, i], z - keys[s, g, Z0, i]
        squared[i] = dx * dx + dy * dy + dz * dz


@inlined
def _push(
    waiting: Array, nodes: Array, bottom: int, top: int, least: float, node: int, first: int
) -> None:
    """Puts a box into the sorted part of the stack, nearest on top, then by lowest index."""
    while top > bottom and (
        waiting[top - 1] < least or (waiting[top - 1] == least and nodes[top - 1, 1] < first)
    ):
        waiting[top] = waiting[top - 1]
        nodes[top, 0], nodes[top, 1] = nodes[top - 1, 0], nodes[top - 1, 1]
        top -= 1
    waiting[top], nodes[top, 0], nodes[top, 1] = least, node, first


@inlined
def _find(
    boxes: Array, lowest: Array, children: Array, keys: Array, numbers: Array, sample: int,
    x: float, y: float, z: float, bound: float, squared: Array, waiting: Array, nodes: Array,
    distances: Array, found: Array,
) -> None:  # fmt: skip
    """Fills the list of a point, all of which is known to be within `bound`.

    `waiting` and `nodes` are a stack of boxes to visit: the distance of each, its number (leaves,
    then groups of boxes), and the lowest index in it.
    """
    distances[:], found[:] = np.inf, NONE
    end, leaves = len(distances) - 1, keys.shape[1]
    waiting[0], nodes[0, 0], nodes[0, 1] = 0, leaves + boxes.shape[1] - 1, 0
    count = 1
    while count > 0:
        count -= 1
        least, node, first = waiting[count], nodes[count, 0], nodes[count, 1]
        if least > distances[end] or (least == distances[end] and first >= found[end]):
            continue
        if node < leaves:
            _measure_points(keys, sample, node, x, y, z, squared)
            for i in range(FAN):
                least, first = squared[i], numbers[sample, node, i]
                if least <= bound and (
                    least < distances[end] or (least == distances[end] and first < found[end])
                ):
                    _insert(distances, found, least, first)
            continue
        group, bottom = node - leaves, count
        _measure_boxes(boxes, sample, group, x, y, z, squared)
        for i in range(FAN):
            least, first = squared[i], lowest[sample, group, i]
            if least <= bound and (
                least < distances[end] or (least == distances[end] and first < found[end])
            ):
                _push(waiting, nodes, bottom, count, least, children[group] + i, first)
                count += 1


@parallel
def _search(
    queries: Array, boxes: Array, lowest: Array, children: Array, keys: Array, numbers: Array,
    places: Array,
) -> None:  # fmt: skip
    """Fills `places` with the indices of each query's nearest keys."""
    batch, n, k = places.shape
    jobs, raised = (n + BLOCK - 1) // BLOCK, queries.dtype.type(1 + SLACK)
    tiny = np.finfo(queries.dtype).tiny
    for job in prange(batch * jobs):
        sample, start = job // jobs, job % jobs * BLOCK
        distances, found = np.empty(k, queries.dtype), np.empty(k, np.int32)
        squared = np.empty(FAN, queries.dtype)
        waiting, nodes = np.empty(WAITING, queries.dtype), np.empty((WAITING, 2), np.int32)
        x, y, z = queries[sample, start, 0], queries[sample, start, 1], queries[sample, start, 2]
        distances[k - 1] = np.inf
        for i in range(start, min(start + BLOCK, n)):
            # As many as are wanted lie as far as the last of the point before, and its distance.
            dx, dy, dz = (
                x - queries[sample, i, 0],
                y - queries[sample, i, 1],
                z - queries[sample, i, 2],
            )
            reach = np.sqrt(distances[k - 1]) + np.sqrt(dx * dx + dy * dy + dz * dz)
            bound = reach * reach * raised + tiny
            x, y, z = queries[sample, i, 0], queries[sample, i, 1], queries[sample, i, 2]
            _find(
                boxes, lowest, children, keys, numbers, sample, x, y, z, bound, squared, waiting,
                nodes, distances, found,
            )  # fmt: skip
            for j in range(k):
                places[sample, i, j] = found[j]


@untraced
def search_windows(
    points: Tensor, others: Tensor, w2c: Tensor, K: Tensor, k: int, radius: int
) -> Tensor:
    """Returns `geometry.neighbors.k_nearest_in_windows`, [batch, view, pixel, k]."""
    batch, views, height, width, _ = points.shape
    places = np.empty((batch, views, height * width, k), np.int64)
    arrays = (x.contiguous().numpy() for x in (points, others, w2c, K))
    _search_windows(*arrays, radius, places)
    return torch.from_numpy(places)


@serial
def _project(point: Array, w2c: Array, K: Array, height: int, width: int, margin: int) -> Any:
    """Returns `geometry.neighbors.project_to_pixels` of one point."""
    least = point.dtype.type(MIN_Z)
    half = point.dtype.type(0.5)
    x = w2c[0, 0] * point[0] + w2c[0, 1] * point[1] + w2c[0, 2] * point[2] + w2c[0, 3]
    y = w2c[1, 0] * point[0] + w2c[1, 1] * point[1] + w2c[1, 2] * point[2] + w2c[1, 3]
    z = w2c[2, 0] * point[0] + w2c[2, 1] * point[1] + w2c[2, 2] * point[2] + w2c[2, 3]
    if not z > 0:
        return -margin - 1, -margin - 1
    x, y = x / max(z, least), y / max(z, least)
    row = (K[1, 1] * y + K[1, 2]) * point.dtype.type(height) - half
    column = (K[0, 0] * x + K[0, 1] * y + K[0, 2]) * point.dtype.type(width) - half
    row, column = np.rint(row), np.rint(column)
    row = min(max(row, -margin - 1), height + margin)
    return int(row), int(min(max(column, -margin - 1), width + margin))


@parallel
def _search_windows(
    points: Array, others: Array, w2c: Array, K: Array, radius: int, places: Array
) -> None:
    """Fills `places`; one job to a row of pixels."""
    batch, views, height, width = points.shape[:4]
    k, end = places.shape[3], places.shape[3] - 1
    for job in prange(batch * views * height):
        scene, view, row = job // (views * height), job // height % views, job % height
        distances, found = np.empty(k, points.dtype), np.empty(k, np.int32)
        for column in range(width):
            point = points[scene, view, row, column]
            itself = (view * height + row) * width + column
            distances[:], found[:] = np.inf, NONE
            for source in range(others.shape[2] + 1):
                seen, y, x = view, row, column
                if source > 0:
                    seen = others[scene, view, source - 1]
                    y, x = _project(point, w2c[scene, seen], K[scene, seen], height, width, radius)
                for v in range(max(0, y - radius), min(height, y + radius + 1)):
                    for u in range(max(0, x - radius), min(width, x + radius + 1)):
                        index = (seen * height + v) * width + u
                        key = points[scene, seen, v, u]
                        dx, dy, dz = point[0] - key[0], point[1] - key[1], point[2] - key[2]
                        squared = dx * dx + dy * dy + dz * dz
                        before = squared < distances[end]
                        before |= (squared == distances[end]) & (index < found[end])
                        if before and index != itself:
                            _insert(distances, found, squared, np.int32(index))
            for j in range(k):
                taken = found[j] != NONE
                places[scene, view, row * width + column, j] = found[j] if taken else itself

"""Several nearest neighbours for CPUs, compiled: `_neighbors_cpu` with a list for each point.

The tree and the packets are the same. A point's list is sorted by distance, then by index; a box is
visited while it may hold something before the end of a list, so that ties are broken by index and
equal points do not make the search visit all of them.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..geometry.neighbors import MIN_Z
from ._neighbors_cpu import (
    FAN,
    FAN_BITS,
    LANES,
    LEAF,
    PACKETS,
    PLANE,
    X,
    Y,
    Z,
    _enclose,
    _leaf_below,
    _pad,
    parallel,
    serial,
)  # fmt: skip

# Planes of a packet besides the coordinates: the last distance of each list, and a scratch
LAST, SQUARED, PLANES = np.uint64(3) * PLANE, np.uint64(4) * PLANE, 5
NONE = np.iinfo(np.int32).max  # index in places of a list that are not taken yet

Array = np.ndarray[Any, np.dtype[Any]]


def search(points: Tensor, reference: Tensor, index: Tensor, k: int) -> Tensor:
    """Returns the indices [batch, n, k] of the nearest, nearest first, ties by lower index.

    Both sets ([batch, n or m, 3]) are in order; `index` [batch, m] numbers the reference points.
    """
    n = points.shape[1]
    queries, keys = _pad(points, LANES), _pad(reference, LEAF)
    missing = -index.shape[1] % LEAF
    numbers = torch.cat([index, index[:, -1:].expand(-1, missing)], dim=1).int().numpy()
    sizes = [keys.shape[1] // LEAF]
    lowest = [numbers.reshape(len(numbers), -1, LEAF).min(axis=2)]
    while sizes[-1] > FAN:
        sizes.append(-(-sizes[-1] // FAN))
        gap = sizes[-1] * FAN - lowest[-1].shape[1]
        whole = np.pad(lowest[-1], ((0, 0), (0, gap)), constant_values=NONE)
        lowest.append(whole.reshape(len(numbers), -1, FAN).min(axis=2))
    sizes = np.array(sizes)
    starts = np.cumsum(sizes) - sizes
    boxes = np.empty((len(keys), sizes.sum(), 6), keys.dtype)
    found = np.empty((*queries.shape[:2], k), np.int64)
    _enclose(keys, boxes, starts, sizes)
    _search(queries, keys, numbers, boxes, np.concatenate(lowest, axis=1), starts, sizes, found)
    return torch.from_numpy(found)[:, :n]


@serial
def _insert(distances: Array, indices: Array, squared: float, index: int) -> None:
    """Puts a point that comes before the last of a sorted list into it, unless it is there."""
    place = len(distances) - 1
    while place > 0 and (
        distances[place - 1] > squared
        or (distances[place - 1] == squared and indices[place - 1] > index)
    ):
        place -= 1
    if place > 0 and indices[place - 1] == index:
        return
    for i in range(len(distances) - 1, place, -1):
        distances[i], indices[i] = distances[i - 1], indices[i - 1]
    distances[place], indices[place] = squared, index


@serial
def _scan(
    keys: Array, numbers: Array, leaf: int, packet: Array, last: Array, lists: Array, found: Array
) -> None:
    """Compares every point of the packet with every point of the leaf."""
    end = lists.shape[1] - 1
    for j in range(leaf * LEAF, leaf * LEAF + LEAF):
        x, y, z, index = keys[j, 0], keys[j, 1], keys[j, 2], numbers[j]
        hits = np.int32(0)
        for lane in range(LANES):
            i = np.uint64(lane)
            dx, dy, dz = packet[X + i] - x, packet[Y + i] - y, packet[Z + i] - z
            squared = dx * dx + dy * dy + dz * dz
            packet[SQUARED + i] = squared
            hits |= np.int32(squared <= packet[LAST + i])
        if hits == 0:
            continue
        for lane in range(LANES):
            i = np.uint64(lane)
            squared, worst = packet[SQUARED + i], packet[LAST + i]
            if squared < worst or (squared == worst and index < last[lane]):
                _insert(lists[lane], found[lane], squared, index)
                packet[LAST + i], last[lane] = lists[lane, end], found[lane, end]


@serial
def _within_reach(box: Array, lowest: int, packet: Array, last: Array) -> bool:
    """Returns whether the box may hold something before the end of a list."""
    x0, y0, z0, x1, y1, z1 = box[0], box[1], box[2], box[3], box[4], box[5]
    zero = packet.dtype.type(0)
    hits = np.int32(0)
    for lane in range(LANES):
        i = np.uint64(lane)
        x, y, z = packet[X + i], packet[Y + i], packet[Z + i]
        dx, dy, dz = max(x0 - x, x - x1), max(y0 - y, y - y1), max(z0 - z, z - z1)
        dx, dy, dz = max(dx, zero), max(dy, zero), max(dz, zero)
        least, worst = dx * dx + dy * dy + dz * dz, packet[LAST + i]
        hits |= np.int32((least < worst) | ((least == worst) & (lowest < last[lane])))
    return hits != 0


@serial
def _walk(
    keys: Array, numbers: Array, boxes: Array, lowest: Array, starts: Array, sizes: Array,
    packet: Array, last: Array, lists: Array, found: Array,
) -> None:  # fmt: skip
    """Scans, in order, every leaf within reach."""
    top = len(sizes) - 1
    leaf, level = 0, top
    while leaf < sizes[0]:
        node = starts[level] + (leaf >> (FAN_BITS * level))
        if _within_reach(boxes[node], lowest[node], packet, last):
            if level > 0:
                level -= 1
                continue
            _scan(keys, numbers, leaf, packet, last, lists, found)
        leaf = ((leaf >> (FAN_BITS * level)) + 1) << (FAN_BITS * level)
        while level < top and (leaf >> (FAN_BITS * level)) % FAN == 0:
            level += 1


@parallel
def _search(
    queries: Array, keys: Array, numbers: Array, boxes: Array, lowest: Array, starts: Array,
    sizes: Array, places: Array,
) -> None:  # fmt: skip
    """Fills `places` with the indices of each query's nearest keys."""
    packets, k = queries.shape[1] // LANES, places.shape[2]
    parts = (packets + PACKETS - 1) // PACKETS
    span = k // LEAF + 1  # leaves to each side of the nearest that fill a list
    for job in prange(queries.shape[0] * parts):
        sample, part = job // parts, job % parts
        packet = np.empty(PLANES * LANES, queries.dtype)
        last = np.empty(LANES, np.int32)
        lists, found = np.empty((LANES, k), queries.dtype), np.empty((LANES, k), np.int32)
        for p in range(part * PACKETS, min(packets, (part + 1) * PACKETS)):
            first = p * LANES
            # Load the packet.
            lists[:], found[:], last[:] = np.inf, NONE, NONE
            for i in range(LANES):
                for c in range(3):
                    packet[c * LANES + i] = queries[sample, first + i, c]
                packet[3 * LANES + i] = np.inf
            # Fill the lists from likely leaves, then scan every leaf within reach.
            middle = queries[sample, first + LANES // 2]
            near = _leaf_below(boxes[sample], starts, sizes, middle[0], middle[1], middle[2])
            for leaf in range(max(0, near - span), min(sizes[0], near + span + 1)):
                _scan(keys[sample], numbers[sample], leaf, packet, last, lists, found)
            _walk(
                keys[sample], numbers[sample], boxes[sample], lowest[sample], starts, sizes,
                packet, last, lists, found,
            )  # fmt: skip
            for i in range(LANES):
                for j in range(k):
                    places[sample, first + i, j] = found[i, j]


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

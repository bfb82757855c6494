"""Nearest neighbours for CPUs, compiled: packets of points traverse a tree of boxes.

Both sets come in an order in which neighbours in space are near each other. Every eight consecutive
reference points share a box, every eight boxes a larger box, and so on; nothing else is built. A
packet of sixteen points first scans the leaf where its predecessor ended and the leaf that a greedy
descent finds, then visits every box that is nearer than its best distances so far. The distance to
a box is rounded like the distance to a point in it and is never greater, so the result is exact.
Packets: Wald et al., "Interactive Rendering with Coherent Ray Tracing", 2001. Trees from an order
of the points: Lauterbach et al., "Fast BVH Construction on GPUs", 2009.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from . import compiled
from ._tracing import untraced

LEAF, FAN, FAN_BITS = 8, 8, 3  # points per leaf; boxes per larger box, and its logarithm to base 2
LANES = 16  # points per packet: LLVM vectorises loops over them
PACKETS = 64  # packets per job of a thread

# A packet is one array of planes with one number per point. Plane addresses differ by constants, so
# LLVM can prove that planes do not overlap.
PLANE = np.uint64(LANES)
X, Y, Z, BEST, PLANES = np.uint64(0), PLANE, np.uint64(2) * PLANE, np.uint64(3) * PLANE, 4

Array = np.ndarray[Any, np.dtype[Any]]

# Without "contract": distances to boxes and to points must be rounded alike
FAST = {"nnan", "nsz"}
serial: Any = njit(cache=True, fastmath=FAST, error_model="numpy")
inlined: Any = njit(inline="always", fastmath=FAST, error_model="numpy")
parallel: Any = compiled.parallel(fastmath=FAST, error_model="numpy")


@untraced
def search(points: Tensor, reference: Tensor) -> Tensor:
    """Returns positions [batch, n] of the nearest; both sets ([batch, n or m, 3]) are in order."""
    batch, n, m = *points.shape[:2], reference.shape[1]
    queries, keys = _pad(points, LANES), _pad(reference, LEAF)
    sizes = [keys.shape[1] // LEAF]
    while sizes[-1] > FAN:
        sizes.append(-(-sizes[-1] // FAN))
    sizes = np.array(sizes)
    starts = np.cumsum(sizes) - sizes
    boxes = np.empty((batch, sizes.sum(), 6), keys.dtype)
    places = np.empty(queries.shape[:2], np.int64)
    _enclose(keys, boxes, starts, sizes)
    _search(queries, keys, boxes, starts, sizes, places)
    return torch.from_numpy(places)[:, :n].clamp(max=m - 1)


def _pad(points: Tensor, multiple: int) -> Array:
    """Repeats the last point until the count is a multiple."""
    missing = -points.shape[1] % multiple
    return torch.cat([points, points[:, -1:].expand(-1, missing, -1)], dim=1).numpy()


@parallel
def _enclose(keys: Array, boxes: Array, starts: Array, sizes: Array) -> None:
    """Fills the low and high corners of every box, level after level, leaves first."""
    batch = keys.shape[0]
    for level in range(len(sizes)):
        start, size = starts[level], sizes[level]
        for job in prange(batch * size):
            sample, i = job // size, job % size
            box = boxes[sample, start + i]
            if level == 0:
                first, last = i * LEAF, i * LEAF + LEAF
                low = high = keys[sample]
            else:
                first = starts[level - 1] + i * FAN
                last = min(first + FAN, start)
                low, high = boxes[sample, :, :3], boxes[sample, :, 3:]
            for c in range(3):
                box[c], box[3 + c] = low[first, c], high[first, c]
                for k in range(first + 1, last):
                    box[c] = min(box[c], low[k, c])
                    box[3 + c] = max(box[3 + c], high[k, c])


@serial
def _scan(keys: Array, leaf: int, packet: Array, found: Array) -> None:
    """Compares every point of the packet with every point of the leaf."""
    for j in range(leaf * LEAF, leaf * LEAF + LEAF):
        x, y, z = keys[j, 0], keys[j, 1], keys[j, 2]
        for lane in range(LANES):
            i = np.uint64(lane)
            dx, dy, dz = packet[X + i] - x, packet[Y + i] - y, packet[Z + i] - z
            squared = dx * dx + dy * dy + dz * dz
            best = packet[BEST + i]
            nearer = squared < best
            packet[BEST + i] = squared if nearer else best
            found[i] = np.int32(j) if nearer else found[i]


@serial
def _within_reach(box: Array, packet: Array) -> bool:
    """Returns whether the box is nearer to some point of the packet than that point's best."""
    x0, y0, z0, x1, y1, z1 = box[0], box[1], box[2], box[3], box[4], box[5]
    zero = packet.dtype.type(0)
    hits = np.int32(0)
    for lane in range(LANES):
        i = np.uint64(lane)
        x, y, z = packet[X + i], packet[Y + i], packet[Z + i]
        dx, dy, dz = max(x0 - x, x - x1), max(y0 - y, y - y1), max(z0 - z, z - z1)
        dx, dy, dz = max(dx, zero), max(dy, zero), max(dz, zero)
        hits |= np.int32(dx * dx + dy * dy + dz * dz < packet[BEST + i])
    return hits != 0


@serial
def _leaf_below(boxes: Array, starts: Array, sizes: Array, x: float, y: float, z: float) -> int:
    """Returns a leaf near (x, y, z), descending from the top into the nearest box each time."""
    node = 0
    for level in range(len(sizes) - 1, -1, -1):
        nearest, chosen = np.inf, node
        for k in range(node, min(node + FAN, sizes[level])):
            box = boxes[starts[level] + k]
            dx = x - min(max(x, box[0]), box[3])
            dy = y - min(max(y, box[1]), box[4])
            dz = z - min(max(z, box[2]), box[5])
            squared = dx * dx + dy * dy + dz * dz
            if squared < nearest:
                nearest, chosen = squared, k
        node = chosen * FAN
    return node // FAN


@serial
def _walk(
    keys: Array, boxes: Array, starts: Array, sizes: Array, packet: Array, found: Array
) -> None:
    """Scans, in order, every leaf that may hold a nearer point."""
    top = len(sizes) - 1
    leaf, level = 0, top
    while leaf < sizes[0]:
        node = leaf >> (FAN_BITS * level)
        if _within_reach(boxes[starts[level] + node], packet):
            if level > 0:
                level -= 1
                continue
            _scan(keys, leaf, packet, found)
        leaf = (node + 1) << (FAN_BITS * level)
        while level < top and (leaf >> (FAN_BITS * level)) % FAN == 0:
            level += 1


@parallel
def _search(
    queries: Array, keys: Array, boxes: Array, starts: Array, sizes: Array, places: Array
) -> None:
    """Fills `places` with the position of each query's nearest key."""
    packets = queries.shape[1] // LANES
    parts = (packets + PACKETS - 1) // PACKETS
    for job in prange(queries.shape[0] * parts):
        sample, part = job // parts, job % parts
        packet = np.empty(PLANES * LANES, queries.dtype)
        found = np.zeros(LANES, np.int32)
        previous = -1  # leaf where the previous packet ended
        for p in range(part * PACKETS, min(packets, (part + 1) * PACKETS)):
            first = p * LANES
            # Load the packet.
            for i in range(LANES):
                for c in range(3):
                    packet[c * LANES + i] = queries[sample, first + i, c]
                packet[3 * LANES + i] = np.inf
                found[i] = 0
            # Scan two likely leaves, then every leaf within reach.
            middle = queries[sample, first + LANES // 2]
            near = _leaf_below(boxes[sample], starts, sizes, middle[0], middle[1], middle[2])
            _scan(keys[sample], near, packet, found)
            if previous >= 0:
                _scan(keys[sample], previous, packet, found)
            _walk(keys[sample], boxes[sample], starts, sizes, packet, found)
            previous = found[LANES - 1] // LEAF
            for i in range(LANES):
                places[sample, first + i] = found[i]

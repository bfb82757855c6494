"""Ray tracing of simple bodies with textures, compiled: exact depth, color with smooth edges.

Arrays are float32; world axes as OpenCV's. A body is a row of `Bodies`: a unit shape (square, disc,
box, ball, cylinder) under an affine map. Surfaces are Lambertian under one lamp and ambient light,
without shadows. Textures are squares of SIDE texels with halved copies, laid out by mirroring.
Williams, "Pyramidal Parametrics", SIGGRAPH 1983.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numba import njit

SQUARE, DISC, BOX, BALL, CYLINDER = range(5)
SIDE, LEVELS = 256, 8  # texels of a texture's side, and its copies down to 2 x 2
TEXELS = sum((SIDE >> level) ** 2 for level in range(LEVELS))
OFFSETS = np.cumsum([0, *((SIDE >> level) ** 2 for level in range(LEVELS - 1))]).astype(np.int64)
NOTHING = np.float32(np.inf)
TILE = 8  # pixels of the side of a tile, for which bodies are listed

Array = np.ndarray[Any, np.dtype[Any]]
compiled: Any = njit(fastmath={"contract", "arcp", "nsz"}, cache=True, nogil=True)
inlined: Any = njit(fastmath={"contract", "arcp", "nsz"}, cache=True, nogil=True, inline="always")


@dataclass(frozen=True)
class Bodies:
    """Bodies of a scene.

    `to_local` takes world axes to those of the unit shape, which reaches from -1 to 1 (squares and
    discs lie in its x and y); `half` are its half sizes, `radius` that of a ball around it. Its
    texture has `texels` per unit of length, begins at `shift` and is turned by `turn`; its color is
    gain * texel + offset. `plain` bodies are not shaded. Faces of a box have textures one after
    the other.
    """

    kind: Array  # body, int64
    center: Float[np.ndarray, "body 3"]
    to_local: Float[np.ndarray, "body 3 3"]
    half: Float[np.ndarray, "body 3"]
    radius: Float[np.ndarray, " body"]
    texture: Array  # body, int64
    texels: Float[np.ndarray, " body"]
    shift: Float[np.ndarray, "body 2"]
    turn: Float[np.ndarray, " body"]
    gain: Float[np.ndarray, "body 3"]
    offset: Float[np.ndarray, "body 3"]
    plain: Array  # body, bool


@dataclass(frozen=True)
class Light:
    """A lamp at a place, bright where it is `reach` away, beside ambient light of this share."""

    lamp: Float[np.ndarray, "3"]
    reach: float
    ambient: float


@dataclass(frozen=True)
class Picture:
    """Color in [0, 1], not rounded, and the exact z at each pixel's center, infinite for none."""

    color: Float[np.ndarray, "height width 3"]
    depth: Float[np.ndarray, "height width"]


def halve(image: UInt8[np.ndarray, "side side 3"]) -> UInt8[np.ndarray, "texel 3"]:
    """A texture: the image, then copies of half the size, one after the other."""
    parts, level = [], image.astype(np.float32)
    for _ in range(LEVELS):
        parts.append((level + 0.5).astype(np.uint8).reshape(-1, 3))
        level = level.reshape(len(level) // 2, 2, len(level) // 2, 2, 3).mean(axis=(1, 3))
    return np.concatenate(parts)


def trace(
    bodies: Bodies,
    textures: UInt8[np.ndarray, "texture texel 3"],
    light: Light,
    c2w: Float[np.ndarray, "4 4"],
    K: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
) -> Picture:
    """What a pinhole camera sees; K is divided by (width, height). Black where nothing is hit."""
    height, width = size
    color = np.zeros((height, width, 3), np.float32)
    depth = np.full((height, width), NOTHING, np.float32)
    lens = np.array([K[0, 0] * width, K[1, 1] * height, K[0, 2] * width, K[1, 2] * height])
    lamp = np.array([*light.lamp, light.reach, light.ambient], np.float32)
    _trace(
        tuple(vars(bodies).values()), textures, lamp, c2w.astype(np.float32),
        lens.astype(np.float32), color, depth,
    )  # fmt: skip
    return Picture(color, depth)


@inlined
def _hit_slabs(o: Any, d: Any, flat: bool) -> Any:
    """(distance, face) at the unit box; of a square, face 4 or 5 at its plane."""
    if flat:
        t = -o[2] / d[2] if abs(d[2]) > 1e-12 else NOTHING
        inside = abs(o[0] + t * d[0]) < 1 and abs(o[1] + t * d[1]) < 1
        return (t if inside and t > 0 else NOTHING), (5 if d[2] > 0 else 4)
    low, high, face, back = np.float32(-1e30), np.float32(1e30), 0, 0
    for i in range(3):
        slope = d[i] if abs(d[i]) > 1e-12 else np.float32(1e-12)
        a, b = (-1 - o[i]) / slope, (1 - o[i]) / slope
        near, far = min(a, b), max(a, b)
        if near > low:
            low, face = near, 2 * i + (1 if a > b else 0)
        if far < high:
            high, back = far, 2 * i + (1 if b > a else 0)
    if low > high or high <= 0:
        return NOTHING, 0
    return (low, face) if low > 0 else (high, back)


@inlined
def _hit_disc(o: Any, d: Any) -> Any:
    t = -o[2] / d[2] if abs(d[2]) > 1e-12 else NOTHING
    x, y = o[0] + t * d[0], o[1] + t * d[1]
    return (t if x * x + y * y < 1 and t > 0 else NOTHING), (5 if d[2] > 0 else 4)


@inlined
def _roots(a: Any, b: Any, c: Any) -> Any:
    """The two roots of a t² + 2 b t + c, the second below the first where there is none."""
    inner = b * b - a * c
    if inner <= 0 or a < 1e-20:
        return np.float32(1), np.float32(-1)
    root = np.sqrt(inner)
    return (-b - root) / a, (-b + root) / a


@inlined
def _hit_ball(o: Any, d: Any) -> Any:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    along = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2]) / a
    x, y, z = o[0] + along * d[0], o[1] + along * d[1], o[2] + along * d[2]
    inner = 1 - (x * x + y * y + z * z)  # not b² - ac, which cancels
    if inner <= 0:
        return NOTHING, 0
    step = np.sqrt(inner / a)
    t = along - step if along - step > 0 else along + step
    return (t if t > 0 else NOTHING), 0


@inlined
def _hit_cylinder(o: Any, d: Any) -> Any:
    """The side of a cylinder along y, face 0, and its caps, faces 2 and 3."""
    best, face = NOTHING, 0
    first, second = _roots(
        d[0] * d[0] + d[2] * d[2], o[0] * d[0] + o[2] * d[2], o[0] * o[0] + o[2] * o[2] - 1
    )
    if second >= first:
        for t in (first, second):
            if t > 0 and t < best and abs(o[1] + t * d[1]) < 1:
                best = t
    if abs(d[1]) > 1e-12:
        for side in (-1, 1):
            t = (side - o[1]) / d[1]
            x, z = o[0] + t * d[0], o[2] + t * d[2]
            if t > 0 and t < best and x * x + z * z < 1:
                best, face = t, 2 + (side + 1) // 2
    return best, face


@compiled
def _nearest(bodies: Any, near: Any, o: Any, d: Any, local: Any, slope: Any) -> Any:
    """(body, face, distance) of the first hit among the bodies `near` a ray; body -1 for none."""
    kinds, centers, to_local, radii = bodies[0], bodies[1], bodies[2], bodies[4]
    squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    best, owner, on = NOTHING, -1, 0
    for i in near:
        x, y, z = o[0] - centers[i, 0], o[1] - centers[i, 1], o[2] - centers[i, 2]
        along = x * d[0] + y * d[1] + z * d[2]
        apart = x * x + y * y + z * z - radii[i] * radii[i]
        if apart > 0 and (along > 0 or along * along < apart * squared):
            continue  # the ray misses the ball around it
        m = to_local[i]
        for r in range(3):
            local[r] = m[r, 0] * x + m[r, 1] * y + m[r, 2] * z
            slope[r] = m[r, 0] * d[0] + m[r, 1] * d[1] + m[r, 2] * d[2]
        kind = kinds[i]
        if kind == BALL:
            t, face = _hit_ball(local, slope)
        elif kind == CYLINDER:
            t, face = _hit_cylinder(local, slope)
        elif kind == DISC:
            t, face = _hit_disc(local, slope)
        else:
            t, face = _hit_slabs(local, slope, kind == SQUARE)
        if t < best:
            best, owner, on = t, i, face
    return owner, on, best


@inlined
def _fold(x: Any) -> Any:
    """A texel's coordinate under endless mirroring, in [0, 1)."""
    y = x - 2 * np.floor(x * np.float32(0.5))
    return y if y < 1 else 2 - y


@inlined
def _sample(texture: Any, u: Any, v: Any, level: int, out: Any, share: Any) -> None:
    """Adds a share of the bilinear color at (u, v), in textures' sides."""
    side, first = SIDE >> level, OFFSETS[level]
    x = min(max(_fold(u) * side - np.float32(0.5), np.float32(0)), np.float32(side - 1.001))
    y = min(max(_fold(v) * side - np.float32(0.5), np.float32(0)), np.float32(side - 1.001))
    j, i = int(x), int(y)
    a, b = x - j, y - i
    at = first + i * side + j
    for c in range(3):
        top = texture[at, c] * (1 - a) + texture[at + 1, c] * a
        low = texture[at + side, c] * (1 - a) + texture[at + side + 1, c] * a
        out[c] += share * (top * (1 - b) + low * b)


@compiled
def _shade(
    bodies: Any, textures: Any, lamp: Any, owner: int, face: int, o: Any, d: Any, t: Any,
    pixel: Any, scratch: Any, out: Any,
) -> None:  # fmt: skip
    """The color of a hit, into `out`; `pixel` is the width of a pixel at distance 1."""
    kinds, centers, to_local, halves, _, first, texels, shift, turn, gain, offset, plain = bodies
    m, half, kind = to_local[owner], halves[owner], kinds[owner]
    wx, wy, wz = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
    p, n, albedo = scratch[0], scratch[1], scratch[2]
    for r in range(3):
        p[r] = (
            m[r, 0] * (wx - centers[owner, 0])
            + m[r, 1] * (wy - centers[owner, 1])
            + m[r, 2] * (wz - centers[owner, 2])
        )
        n[r] = albedo[r] = 0
    # the place on the surface in units of length, and the normal of the unit shape
    if kind == BALL:
        u, v = np.arctan2(p[0], p[2]) * half[0], np.arcsin(min(max(p[1], -1), 1)) * half[1]
        n[0], n[1], n[2] = p[0], p[1], p[2]
    elif kind == CYLINDER and face == 0:
        u, v = np.arctan2(p[0], p[2]) * half[0], p[1] * half[1]
        n[0], n[2] = p[0], p[2]
    elif kind == CYLINDER:
        u, v = p[0] * half[0], p[2] * half[2]
        n[1] = 1 if face == 3 else -1
    else:
        axis = face // 2
        a, b = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
        u, v = p[a] * half[a], p[b] * half[b]
        n[axis] = 1 if face % 2 else -1
    # to_local takes points, so its transpose takes normals back
    nx = m[0, 0] * n[0] + m[1, 0] * n[1] + m[2, 0] * n[2]
    ny = m[0, 1] * n[0] + m[1, 1] * n[1] + m[2, 1] * n[2]
    nz = m[0, 2] * n[0] + m[1, 2] * n[1] + m[2, 2] * n[2]
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    facing = -(nx * d[0] + ny * d[1] + nz * d[2])
    slant = abs(facing) / length / np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    toward = np.float32(1) if facing > 0 else np.float32(-1)

    # the texture, at the copy whose texels are as large as the pixel on the surface
    scale = texels[owner] / SIDE
    c, s = np.cos(turn[owner]) * scale, np.sin(turn[owner]) * scale
    x, y = c * u - s * v + shift[owner, 0], s * u + c * v + shift[owner, 1]
    across = t * pixel * texels[owner] / np.sqrt(max(slant, np.float32(0.05)))
    level = min(max(np.log2(max(across, np.float32(1e-6))), np.float32(0)), np.float32(LEVELS - 1))
    low = min(int(level), LEVELS - 2)
    share = level - low
    index = (first[owner] + (face if kind == BOX else 0)) % len(textures)
    _sample(textures[index], x, y, low, albedo, 1 - share)
    _sample(textures[index], x, y, low + 1, albedo, share)

    # light
    bright = np.float32(1)
    if not plain[owner]:
        x, y, z = lamp[0] - wx, lamp[1] - wy, lamp[2] - wz
        squared = x * x + y * y + z * z
        cosine = (nx * x + ny * y + nz * z) * toward
        cosine = max(cosine / (length * np.sqrt(squared)), np.float32(0))
        reach = lamp[3] * lamp[3]
        bright = lamp[4] + (1 - lamp[4]) * cosine * 2 * reach / (reach + squared)
    for i in range(3):
        color = gain[owner, i] * albedo[i] / 255 + offset[owner, i]
        out[i] += min(max(color, np.float32(0.01)), np.float32(1)) * bright


@compiled
def _list_bodies(bodies: Any, c2w: Any, lens: Any, i: int, j: int, out: Any) -> int:
    """Lists in `out` the bodies that rays through the tile at row i, column j may meet; how many.

    The balls around them that meet the cone around the tile.
    """
    centers, radii = bodies[1], bodies[4]
    half = np.float32(TILE / 2)
    x, y = (j + half - lens[2]) / lens[0], (i + half - lens[3]) / lens[1]
    length = np.sqrt(x * x + y * y + 1)
    width = np.arctan(np.sqrt((half / lens[0]) ** 2 + (half / lens[1]) ** 2))  # at most
    axis = (c2w[:3, 0] * x + c2w[:3, 1] * y + c2w[:3, 2]) / length
    count = 0
    for k in range(len(radii)):
        away = centers[k] - c2w[:3, 3]
        apart = np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2)
        if apart > radii[k]:
            cosine = (away[0] * axis[0] + away[1] * axis[1] + away[2] * axis[2]) / apart
            angle = np.arccos(min(max(cosine, np.float32(-1)), np.float32(1)))
            if angle > width + np.arcsin(radii[k] / apart) + np.float32(1e-3):
                continue
        out[count] = k
        count += 1
    return count


@compiled
def _is_edge(owners: Any, i: int, j: int) -> bool:
    """Whether a pixel and one beside it, above or below show different faces."""
    here, there = max(i - 1, 0), min(i + 1, owners.shape[0] - 1)
    left, right = max(j - 1, 0), min(j + 1, owners.shape[1] - 1)
    own = owners[i, j]
    return (
        owners[here, j] != own
        or owners[there, j] != own
        or owners[i, left] != own
        or owners[i, right] != own
    )


@compiled
def _trace(
    bodies: Any, textures: Any, lamp: Any, c2w: Any, lens: Any, color: Any, depth: Any
) -> None:
    """One ray through the center of each pixel, and five where bodies or faces meet."""
    height, width = depth.shape
    owners = np.empty((height, width), np.int32)
    o = c2w[:3, 3].copy()
    d, cam = np.empty(3, np.float32), np.ones(3, np.float32)
    local, slope = np.empty(3, np.float32), np.empty(3, np.float32)
    pixel, scratch = 1 / lens[0], np.empty((3, 3), np.float32)
    across = (width + TILE - 1) // TILE
    near = np.empty(((height + TILE - 1) // TILE * across, len(bodies[0])), np.int32)
    counts = np.empty(len(near), np.int32)
    for tile in range(len(near)):
        i, j = tile // across * TILE, tile % across * TILE
        counts[tile] = _list_bodies(bodies, c2w, lens, i, j, near[tile])
    for refined in range(2):
        for i in range(height):
            for j in range(width):
                if refined and not _is_edge(owners, i, j):
                    continue
                tile = i // TILE * across + j // TILE
                chosen = near[tile, : counts[tile]]
                for k in range(4 if refined else 1):
                    a = np.float32(0.25 + 0.5 * (k % 2) if refined else 0.5)
                    b = np.float32(0.25 + 0.5 * (k // 2) if refined else 0.5)
                    cam[0], cam[1] = (j + a - lens[2]) / lens[0], (i + b - lens[3]) / lens[1]
                    for r in range(3):
                        d[r] = c2w[r, 0] * cam[0] + c2w[r, 1] * cam[1] + c2w[r, 2]
                    owner, face, t = _nearest(bodies, chosen, o, d, local, slope)
                    if not refined:
                        depth[i, j], owners[i, j] = t, owner * 8 + face
                    if owner >= 0:
                        _shade(
                            bodies, textures, lamp, owner, face, o, d, t, pixel, scratch,
                            color[i, j],
                        )  # fmt: skip
                if refined:
                    for r in range(3):
                        color[i, j, r] /= 5

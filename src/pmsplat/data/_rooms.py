"""Rooms to train and test on: textured walls, boxes and spheres, ray-traced exactly.

Arrays are numpy float32. World axes as OpenCV's: x right, y down (the floor is y = 0, the ceiling
above it negative), z forward; units are metres. Surfaces are Lambertian, lit once by one lamp:
the color of a point is the same from everywhere, up to the fading of detail finer than a pixel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..geometry import camera, se3

_NEAR_CLEARANCE = 1.0  # no object comes nearer to a camera than this
_BEND = 2.0  # each wave is bent by the coarser one before it: no two places look alike
_PLAIN, _PLAIN_CONTRAST = 0.5, 0.1  # share of surfaces that are nearly plain, as painted walls are
_EPSILON = np.float32(1e-9)  # keeps slopes of axis-parallel rays finite

Points = Float[np.ndarray, "3 point"]
Row = Float[np.ndarray, " point"]


@dataclass(frozen=True)
class Rays:
    """The rays of every pixel: `direction` has length 1 in the camera's z, so distance is depth."""

    origin: Float[np.ndarray, "3 frame 1"]
    direction: Float[np.ndarray, "3 frame pixel"]


@dataclass(frozen=True)
class Surface:
    """What light meets at points of an object."""

    albedo: Points
    normal: Points


@dataclass(frozen=True)
class Texture:
    """Two colors in a pattern of stripes or checks, under bent waves of many frequencies."""

    colors: Float[np.ndarray, "2 3"]
    pattern: Float[np.ndarray, "2 2"]  # wave vectors in cycles per metre; the second 0 for stripes
    waves: Float[np.ndarray, "wave 2"]
    phases: Float[np.ndarray, " wave"]
    tints: Float[np.ndarray, "wave 3"]

    def __call__(self, uv: Float[np.ndarray, "2 point"], footprint: Row) -> Points:
        """Albedo at surface coordinates in metres; detail finer than `footprint` fades away."""
        turns = np.float32(2 * np.pi)
        sign = np.sin(turns * (self.pattern[0] @ uv))
        if self.pattern[1].any():
            sign *= np.sin(turns * (self.pattern[1] @ uv))
        frequency = np.linalg.norm(self.pattern[0])
        sharp = sign / np.sqrt(sign**2 + (np.float32(0.05) + (frequency * footprint) ** 2))
        share = np.float32(0.5) + np.float32(0.5) * sharp
        color = self.colors[1][:, None] + (self.colors[0] - self.colors[1])[:, None] * share
        bent = np.float32(0)
        for wave, phase, tint in zip(self.waves, self.phases, self.tints, strict=True):
            bent = np.sin(turns * (wave @ uv) + phase + np.float32(_BEND) * bent)
            faded = np.exp(-((3 * np.linalg.norm(wave) * footprint) ** 2))
            color += tint[:, None] * (faded * bent)
        return color


@dataclass(frozen=True)
class Box:
    """A box turned about the vertical; seen from within (a room) or from without."""

    center: Float[np.ndarray, "3"]
    half: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]  # rows: the box's own axes in the world
    textures: tuple[Texture, ...]  # one for each face: -x +x -y +y -z +z
    inside: bool = False

    def hit(self, rays: Rays) -> Float[np.ndarray, "frame pixel"]:
        """Depth of the first point on each ray; infinite where it misses."""
        origin = np.einsum("ij,jfp->ifp", self.axes, rays.origin - self.center[:, None, None])
        slope = np.einsum("ij,jfp->ifp", self.axes, rays.direction)
        inverse = 1 / np.where(np.abs(slope) < _EPSILON, _EPSILON, slope)
        middle, reach = -origin * inverse, self.half[:, None, None] * np.abs(inverse)
        enter, leave = (middle - reach).max(axis=0), (middle + reach).min(axis=0)
        if self.inside:
            return leave
        return np.where((enter > 0) & (enter < leave), enter, np.float32(np.inf))

    def surface(self, points: Points, footprint: Row) -> Surface:
        """Albedo and outward (a room's: inward) normal of points on the box."""
        local = self.axes @ (points - self.center[:, None])
        axis = (np.abs(local) / self.half[:, None]).argmax(axis=0)
        side = np.take_along_axis(local, axis[None], axis=0)[0] > 0
        face = 2 * axis + side
        albedo = np.empty_like(points)
        for i, texture in enumerate(self.textures):
            on = np.flatnonzero(face == i)
            albedo[:, on] = texture(np.delete(local, i // 2, axis=0)[:, on], footprint[on])
        sign = np.where(side != self.inside, np.float32(1), np.float32(-1))
        return Surface(albedo, self.axes.T[:, axis] * sign)


@dataclass(frozen=True)
class Sphere:
    """A ball, its texture thrown on by parallel light along its z axis."""

    center: Float[np.ndarray, "3"]
    radius: float
    texture: Texture

    def hit(self, rays: Rays) -> Float[np.ndarray, "frame pixel"]:
        """Depth of the first point on each ray; infinite where it misses."""
        to = self.center[:, None, None] - rays.origin
        squared = (rays.direction**2).sum(axis=0)
        nearest = (to * rays.direction).sum(axis=0) / squared
        miss = ((to - nearest * rays.direction) ** 2).sum(axis=0)  # no b² - ac: it cancels
        inner = np.float32(self.radius**2) - miss
        depth = nearest - np.sqrt(np.maximum(inner, 0) / squared)
        return np.where((inner > 0) & (depth > 0), depth, np.float32(np.inf))

    def surface(self, points: Points, footprint: Row) -> Surface:
        """Albedo and outward normal of points on the ball."""
        local = points - self.center[:, None]
        return Surface(self.texture(local[:2], footprint), local / np.float32(self.radius))


@dataclass(frozen=True)
class Room:
    """A furnished room; the first object is the room itself."""

    objects: tuple[Box | Sphere, ...]
    lamp: Float[np.ndarray, "3"]
    ambient: float


@dataclass(frozen=True)
class Path:
    """Cameras along a path: OpenCV camera-to-world, normalised K."""

    c2w: Float[torch.Tensor, "frame 4 4"]
    K: Float[torch.Tensor, "frame 3 3"]


@dataclass(frozen=True)
class Pictures:
    """Every frame of a scene: 8-bit color, and the exact z at each pixel's center."""

    images: UInt8[np.ndarray, "frame height width 3"]
    depth: Float[np.ndarray, "frame height width"]


def furnish(rng: np.random.Generator, path: Path, extent: np.ndarray) -> Room:
    """A room of the given size (width, height, length) whose objects leave the path free."""
    eyes = path.c2w[:, :3, 3].numpy()
    half = (extent / 2).astype(np.float32)
    center = np.array([0, -half[1], half[2]], np.float32)
    walls = tuple(_texture(rng, 1.0) for _ in range(6))
    objects: list[Box | Sphere] = [Box(center, half, np.eye(3, dtype=np.float32), walls, True)]
    wanted = int(rng.integers(4, 8))
    while len(objects) <= wanted:
        body = _box(rng, extent) if rng.random() < 0.6 else _sphere(rng, extent)
        reach = float(np.linalg.norm(body.half)) if isinstance(body, Box) else body.radius
        if np.linalg.norm(eyes - body.center, axis=1).min() > reach + _NEAR_CLEARANCE:
            objects.append(body)
    lamp = np.array([rng.uniform(-0.5, 0.5) * half[0], -0.9 * extent[1], half[2]], np.float32)
    return Room(tuple(objects), lamp, float(rng.uniform(0.45, 0.6)))


def walk(rng: np.random.Generator, extent: np.ndarray, frames: int, aspect: float) -> Path:
    """A smooth path of 5 cm steps, mostly sideways, looking at the far half of the room.

    `aspect` is width / height of the pictures.
    """
    s = torch.linspace(-0.5, 0.5, frames, dtype=torch.float64)[:, None]
    length = 0.05 * (frames - 1)
    heading, bend = rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3)
    along = torch.tensor([np.cos(heading) * rng.choice([-1, 1]), 0.0, np.sin(heading)])
    across = torch.tensor([0.0, rng.uniform(-0.5, 0.5), 1.0])
    start = torch.tensor([rng.uniform(-0.4, 0.4), -rng.uniform(1.1, 1.7), rng.uniform(1.0, 1.4)])
    eye = start + length * (s * along + bend * (s**2) * across)
    goal = torch.tensor(
        [rng.uniform(-0.8, 0.8), -rng.uniform(0.7, 1.3), extent[2] - rng.uniform(0.5, 1.5)]
    )
    goal = goal + torch.tensor([rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2), 0.0]) * s
    K = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
    K[:, 0, 0] = rng.uniform(0.8, 1.0) / min(aspect, 1.0)
    K[:, 1, 1] = K[0, 0, 0] * aspect
    K[:, :2, 2] = 0.5
    up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    return Path(se3.look_at(eye, goal, up).float(), K.float())


def trace(room: Room, path: Path, size: tuple[int, int]) -> Pictures:
    """Every frame of the path, each pixel's color and z along the ray through its center."""
    directions = camera.rays(path.c2w, path.K, *size).flatten(1, 2)
    rays = Rays(
        origin=path.c2w[:, :3, 3].T[..., None].contiguous().numpy(),
        direction=directions.permute(2, 0, 1).contiguous().numpy(),
    )
    depth = room.objects[0].hit(rays)
    owner = np.zeros(depth.shape, np.int8)
    for i, body in enumerate(room.objects[1:], start=1):
        hit = body.hit(rays)
        owner[hit < depth] = i
        depth = np.minimum(depth, hit)
    points = (rays.origin + depth * rays.direction).reshape(3, -1)
    pixel = depth.reshape(-1) / (path.K[0, 0, 0] * size[1]).numpy()  # its width out there
    color = np.empty_like(points)
    for i, body in enumerate(room.objects):
        on = np.flatnonzero(owner == i)
        color[:, on] = _shade(room, body.surface(points[:, on], pixel[on]), points[:, on])
    images = (np.clip(color, 0, 1) * 255 + 0.5).astype(np.uint8)
    frames = len(path.c2w)
    return Pictures(
        np.ascontiguousarray(images.T).reshape(frames, *size, 3), depth.reshape(frames, *size)
    )


def _shade(room: Room, surface: Surface, points: Points) -> Points:
    """The lit color of points; light falls off from the lamp and casts no shadow."""
    to_lamp = room.lamp[:, None] - points
    squared = (to_lamp**2).sum(axis=0)
    slope = np.maximum((surface.normal * to_lamp).sum(axis=0), 0) / np.sqrt(squared)
    ambient = np.float32(room.ambient)
    return surface.albedo * (ambient + (1 - ambient) * slope * 8 / (6 + squared))


def _box(rng: np.random.Generator, extent: np.ndarray) -> Box:
    half = rng.uniform([0.15, 0.15, 0.15], [0.5, 0.7, 0.5])
    turn = rng.uniform(0, np.pi / 2)
    c, s = np.cos(turn), np.sin(turn)
    axes = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)
    place = _place(rng, extent, margin=0.7)
    center = np.array([place[0], -half[1], place[1]], np.float32)
    return Box(center, half.astype(np.float32), axes, tuple(_texture(rng, 2.0) for _ in range(6)))


def _sphere(rng: np.random.Generator, extent: np.ndarray) -> Sphere:
    radius = float(rng.uniform(0.2, 0.45))
    place = _place(rng, extent, margin=0.5)
    height = radius + rng.choice([0.0, rng.uniform(0.3, 1.2)])
    return Sphere(np.array([place[0], -height, place[1]], np.float32), radius, _texture(rng, 2.5))


def _place(rng: np.random.Generator, extent: np.ndarray, margin: float) -> np.ndarray:
    half = extent[0] / 2 - margin
    return rng.uniform([-half, 2.0], [half, extent[2] - margin])


def _texture(rng: np.random.Generator, detail: float) -> Texture:
    """A random texture; `detail` multiplies all its frequencies."""
    base = rng.uniform(0.25, 0.9, 3)
    other = np.clip(
        base + rng.uniform(0.12, 0.4) * rng.choice([-1, 1]) + rng.uniform(-0.15, 0.15, 3), 0.05, 1
    )
    turn = rng.choice([0.0, np.pi / 4, rng.uniform(0, np.pi)])
    frequency = detail * rng.uniform(0.6, 1.6)
    along = frequency * np.array([np.cos(turn), np.sin(turn)])
    across = np.array([-along[1], along[0]]) * rng.choice([0.0, 1.0])
    octaves = detail * 0.5 * 2.0 ** np.arange(6) * rng.uniform(0.8, 1.3, 6)
    angles = rng.uniform(0, 2 * np.pi, 6)
    waves = octaves[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    tints = rng.uniform(0.02, 0.07, (6, 1)) * rng.uniform(0.5, 1.0, (6, 3))
    if rng.random() < _PLAIN:
        other, tints = base + _PLAIN_CONTRAST * (other - base), _PLAIN_CONTRAST * tints
    arrays = (
        np.stack([base, other]),
        np.stack([along, across]),
        waves,
        rng.uniform(0, 6.28, 6),
        tints,
    )
    return Texture(*(array.astype(np.float32) for array in arrays))

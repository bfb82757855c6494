"""Procedural scenes far from the rooms of `_rooms`: rooms, tables, streets and clutter.

World axes are OpenCV's (y down); the cameras are near the origin and look about along z. Units are
those of the scene: `Cameras.subject` is how far away lies what they look at.
"""

from dataclasses import dataclass
from math import exp, log, radians, tan

import numpy as np
from jaxtyping import Float

from ._tracer import BALL, BOX, CYLINDER, DISC, SIDE, SQUARE, Bodies, Light

FOV = (18.0, 95.0)  # degrees, across the longer side
PARALLAX = (4.0, 110.0)  # of the subject between the outer context views, in 256ths of the width
WIDE = 40 / 256  # parallax from which on cameras turn to the subject
SKY = 60.0  # how far the sky is, in distances of the subject
CLEAR = 0.25  # nothing comes nearer to a camera than this share of the subject's distance
WHITE = np.ones(3, np.float32)

Rng = np.random.Generator


@dataclass(frozen=True)
class Cameras:
    """One for each context view, then one for each target: camera-to-world and normalised K."""

    c2w: Float[np.ndarray, "view 4 4"]
    K: Float[np.ndarray, "3 3"]
    subject: float


@dataclass(frozen=True)
class Scene:
    """Bodies and light; `sky` says whether the last body is one, which has no depth."""

    bodies: Bodies
    light: Light
    sky: bool


class Builder:
    """Gathers bodies; places are drawn in what the cameras see."""

    def __init__(self, rng: Rng, cameras: Cameras, textures: int) -> None:
        self.rng, self.cameras, self.textures = rng, cameras, textures
        self.eyes = cameras.c2w[:, :3, 3]
        self.rows: list[tuple] = []

    def add(
        self,
        kind: int,
        center: np.ndarray,
        axes: np.ndarray,
        half: np.ndarray,
        detail: float = 1.0,
        plain: bool = False,
        forced: bool = False,
    ) -> bool:
        """Adds a body unless it comes too near to a camera; rows of `axes` are its own.

        `detail`: how many textures lie along its largest side, about.
        """
        rng = self.rng
        half = np.maximum(half, 1e-4 * self.cameras.subject)
        reach = float(np.linalg.norm(half if kind != BALL else half.max()))
        if not forced:
            local = np.abs((self.eyes - center) @ axes.T) - half
            apart = np.linalg.norm(np.maximum(local, 0), axis=1).min()
            if apart < CLEAR * self.cameras.subject:
                return False
        contrast = rng.uniform(0.4, 1.1) if rng.random() < 0.8 else rng.uniform(0.05, 0.5)
        tint = rng.uniform(0.75, 1.0, 3)
        gain = contrast * tint
        offset = (1 - contrast) * rng.uniform(0.05, 0.9) * tint
        to_local = axes / half[:, None]
        wide = self.cameras.subject / self.cameras.K[0, 0] * exp(rng.uniform(log(0.2), log(1.3)))
        texels = SIDE / min(2 * float(half.max()) / detail * exp(rng.uniform(-0.7, 0.7)), wide)
        self.rows.append(
            (
                kind, center, to_local, half, reach, int(rng.integers(self.textures)), texels,
                rng.uniform(0, 2, 2), _any_turn(rng), gain, offset, plain,
            )
        )  # fmt: skip
        return True

    def seen(self, near: float, far: float) -> np.ndarray:
        """A place in the picture of a random camera, `near` to `far` subject distances away."""
        rng, cameras = self.rng, self.cameras
        c2w, K = cameras.c2w[rng.integers(len(cameras.c2w))], cameras.K
        z = cameras.subject * exp(rng.uniform(log(near), log(far)))
        x, y = rng.uniform(-0.1, 1.1, 2)
        cam = np.array([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], 1.0]) * z
        return c2w[:3, :3] @ cam + c2w[:3, 3]

    def width_at(self, place: np.ndarray) -> float:
        """How wide the picture is at the distance of a place."""
        return float(np.linalg.norm(place - self.eyes[0])) / self.cameras.K[0, 0]

    def finish(self, light: Light, sky: bool) -> Scene:
        columns = list(zip(*self.rows, strict=True))
        types = {0: np.int64, 5: np.int64, 11: np.bool_}
        arrays = [np.array(c, types.get(i, np.float32)) for i, c in enumerate(columns)]
        return Scene(Bodies(*arrays), light, sky)


def draw_cameras(rng: Rng, aspect: float, context: int, targets: int) -> Cameras:
    """A short hand-held path: sideways, up, forward or around; looking about the subject.

    `aspect` is width / height. Context views are spread over the path, targets lie between, a few
    of them a little outside.
    """
    fov = radians(_toward_middle(rng, *FOV))
    long = 1 / (2 * tan(fov / 2))
    K = np.eye(3)
    K[0, 0] = long * max(1.0, 1 / aspect)
    K[1, 1] = K[0, 0] * aspect
    K[:2, 2] = 0.5 + rng.normal(0, 0.01, 2)
    subject = exp(rng.uniform(log(0.5), log(6.0)))
    low, high = PARALLAX
    parallax = exp(rng.uniform(log(low), log(high))) / 256
    length = parallax * subject / K[0, 0]
    # where the path leads; ahead the pictures change less, so it may be longer
    kind = rng.choice(4, p=[0.5, 0.12, 0.18, 0.2])
    along = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], float)[kind]
    along = along * rng.choice([-1, 1], 3) + rng.normal(0, 0.25, 3)
    along /= np.linalg.norm(along)
    if kind == 2:
        length = min(3 * length, 0.35 * subject)
    ends = np.linspace(0, 1, context) + rng.uniform(-0.2, 0.2, context) / context
    ends[0], ends[-1] = 0, 1
    outside = rng.random(targets) < 0.12
    between = np.where(
        outside, rng.choice([-0.15, 1.15], targets), rng.uniform(0.05, 0.95, targets)
    )
    s = np.concatenate([ends, between]) - 0.5
    bend = rng.normal(0, 0.3, 3)
    shake = rng.normal(0, 0.03, (len(s), 3))
    eyes = length * (s[:, None] * along + (s**2)[:, None] * bend + shake)
    # where it looks: at the subject, or ahead, or between; with unsteady hands
    follow = rng.choice([0.0, 1.0, rng.uniform(0, 1)], p=[0.3, 0.4, 0.3])
    if parallax > WIDE:  # else the views would have too little in common
        follow = rng.uniform(0.7, 1.0)
    turned = np.arctan2(eyes[:, :2], subject - eyes[:, 2:]) * follow
    turn = rng.normal(0, 0.03, 3) * s[:, None] + rng.normal(0, 0.004, (len(s), 3))
    pitch = rng.normal(0.12, 0.2)
    roll = rng.normal(0, 0.03)
    c2w = np.tile(np.eye(4), (len(s), 1, 1))
    for i in range(len(s)):
        c2w[i, :3, :3] = _turned(turn[i, 0] - turned[i, 0], turn[i, 1] + turned[i, 1], turn[i, 2])
        c2w[i, :3, 3] = eyes[i]
    tilt = np.eye(4)
    tilt[:3, :3] = _turned(0, -pitch, roll)
    return Cameras((tilt @ c2w).astype(np.float64), K, subject)


def draw_scene(rng: Rng, cameras: Cameras, textures: int) -> Scene:
    """A scene for these cameras; textures are numbered from 0 to `textures`."""
    builder = Builder(rng, cameras, textures)
    kind = rng.choice(4, p=[0.42, 0.22, 0.22, 0.14])
    return (_room, _table, _street, _clutter)[kind](builder)


def _room(b: Builder) -> Scene:
    rng, subject = b.rng, b.cameras.subject
    floor = subject * rng.uniform(0.25, 0.7)
    turn = _turned(rng.uniform(-0.8, 0.8), 0, 0)
    ahead = subject * rng.uniform(1.1, 2.6)
    side = subject * rng.uniform(0.8, 2.0)
    top = subject * rng.uniform(0.3, 1.0)
    axes = turn.T
    middle = turn @ np.array([rng.uniform(-0.3, 0.3) * side, (floor - top) / 2, 0])
    half = np.array([side, (floor + top) / 2, ahead])
    for axis in range(3):
        for sign in (-1, 1):
            order = np.roll(np.arange(3), 2 - axis)
            away = np.zeros(3)
            away[axis] = sign * half[axis]
            b.add(
                SQUARE, middle + axes.T @ away, axes[order], half[order],
                rng.uniform(0.6, 4), forced=True,
            )  # fmt: skip
            if axis != 1 and rng.random() < 0.7:  # posters, windows, doors on the wall
                for _ in range(rng.integers(1, 4)):
                    flat = rng.uniform(0.05, 0.4, 3) * half
                    flat[axis] = 0.002 * subject
                    place = away * 0.998 + rng.uniform(-0.8, 0.8, 3) * (half - flat)
                    place[axis] = away[axis] * 0.997
                    b.add(BOX, middle + axes.T @ place, axes, flat, rng.uniform(0.5, 1.2))
    _furnish(b, floor, axes, int(rng.integers(8, 22)))
    _hang(b, int(rng.integers(0, 6)))
    lamp = middle + np.array([0, -0.85 * half[1], 0])
    return b.finish(Light(lamp, subject * rng.uniform(0.8, 2.5), rng.uniform(0.3, 0.7)), False)


def _table(b: Builder) -> Scene:
    """Things on a table, the room behind it out of reach."""
    rng, subject = b.rng, b.cameras.subject
    c2w = b.cameras.c2w[0]
    target = c2w[:3, 3] + c2w[:3, 2] * subject
    floor = max(target[1], 0.12 * subject) + 0.05 * subject
    turn = _turned(rng.uniform(-3, 3), 0, 0).T
    half = subject * np.array([rng.uniform(0.4, 3), rng.uniform(0.01, 0.05), rng.uniform(0.4, 3)])
    place = np.array([target[0], floor + half[1], target[2]])
    b.add(BOX, place, turn, half, rng.uniform(1, 6), forced=True)
    for _ in range(rng.integers(4, 16)):
        size = b.width_at(target) * exp(rng.uniform(log(0.03), log(0.3)))
        spot = target + b.width_at(target) * rng.normal(0, 0.3, 3)
        _stand(b, spot, floor, size)
    _furnish(b, floor + subject * rng.uniform(0.3, 0.8), np.eye(3), int(rng.integers(2, 8)), far=4)
    big = subject * rng.uniform(3, 8)
    shell = np.array([big, big * 0.5, big])
    b.add(BOX, np.zeros(3), turn, shell, rng.uniform(1, 5), forced=True)
    lamp = subject * np.array([rng.normal(0, 0.7), -rng.uniform(0.5, 1.4), rng.uniform(0, 1)])
    return b.finish(Light(lamp, subject * rng.uniform(0.8, 2.5), rng.uniform(0.35, 0.75)), False)


def _street(b: Builder) -> Scene:
    rng, subject = b.rng, b.cameras.subject
    floor = subject * exp(rng.uniform(log(0.1), log(1.2)))
    wide = subject * 40
    turn = _turned(rng.uniform(-0.6, 0.6), 0, 0).T
    ground = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], float)
    b.add(
        SQUARE, np.array([0, floor, 0]), ground @ turn, np.array([wide, wide, 1]),
        rng.uniform(20, 120), forced=True,
    )  # fmt: skip
    for _ in range(rng.integers(2, 9)):  # houses
        half = subject * rng.uniform(0.2, 1.4, 3)
        place = b.seen(0.9, 8)
        place[1] = floor - half[1]
        b.add(BOX, place, turn, half, rng.uniform(0.6, 3))
    for _ in range(rng.integers(0, 7)):  # trees and poles
        _tree(b, floor)
    for _ in range(rng.integers(0, 4)):  # hills
        place = b.seen(8, 30)
        half = subject * rng.uniform(3, 12) * np.array([1, rng.uniform(0.1, 0.4), 1])
        place[1] = floor
        b.add(BALL, place, np.eye(3), half, rng.uniform(1, 5))
    _furnish(b, floor, turn, int(rng.integers(2, 9)))
    sky = np.full(3, SKY * subject)
    b.add(BALL, np.zeros(3), np.eye(3), sky, rng.uniform(0.3, 1.5), plain=True, forced=True)
    lamp = subject * np.array([rng.normal(0, 30), -rng.uniform(10, 40), rng.normal(0, 30)])
    return b.finish(Light(lamp, 60 * subject, rng.uniform(0.4, 0.75)), True)


def _clutter(b: Builder) -> Scene:
    """Things of any kind anywhere, before a slanted wall."""
    rng, subject = b.rng, b.cameras.subject
    for _ in range(rng.integers(6, 26)):
        place = b.seen(0.6, 3)
        size = b.width_at(place) * exp(rng.uniform(log(0.02), log(0.3)))
        _thing(b, place, size, _turned(*rng.uniform(-3, 3, 3)))
    _hang(b, int(rng.integers(2, 12)))
    away = subject * rng.uniform(1.2, 4)
    axes = _turned(rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.7), 0)
    c2w = b.cameras.c2w[0]
    wall = np.array([12.0, 12.0, 1]) * away
    b.add(
        SQUARE, c2w[:3, 3] + c2w[:3, 2] * away, axes @ c2w[:3, :3].T, wall, rng.uniform(6, 30),
        forced=True,
    )  # fmt: skip
    b.add(BALL, np.zeros(3), np.eye(3), np.full(3, 30 * subject), 1.0, plain=True, forced=True)
    lamp = subject * np.array([rng.normal(0, 1), -rng.uniform(0.5, 2), rng.normal(0, 1)])
    return b.finish(Light(lamp, subject * rng.uniform(1, 4), rng.uniform(0.35, 0.8)), True)


def _furnish(b: Builder, floor: float, axes: np.ndarray, count: int, far: float = 2.2) -> None:
    """Boxes and other things that stand on the floor, most of them along the axes."""
    for _ in range(count):
        place = b.seen(0.6, far)
        size = b.width_at(place) * exp(b.rng.uniform(log(0.03), log(0.3)))
        _stand(b, place, floor, size, axes)


def _stand(
    b: Builder, place: np.ndarray, floor: float, size: float, axes: np.ndarray | None = None
) -> None:
    rng = b.rng
    if axes is None or rng.random() < 0.4:
        axes = _turned(rng.uniform(-3, 3), 0, 0)
    half = size * rng.uniform(0.3, 1.2, 3)
    kind = rng.choice([BOX, BALL, CYLINDER], p=[0.6, 0.15, 0.25])
    if kind == CYLINDER:
        half[2] = half[0]
    place = place.copy()
    place[1] = floor - half[1]
    if b.add(kind, place, axes, half, rng.uniform(0.4, 2)) and rng.random() < 0.4:
        top = place - np.array([0, half[1], 0])
        _stand(b, top + 0.3 * half * rng.normal(0, 0.5, 3), top[1], size * rng.uniform(0.2, 0.6))


def _thing(b: Builder, place: np.ndarray, size: float, axes: np.ndarray) -> None:
    rng = b.rng
    half = size * rng.uniform(0.3, 1.2, 3)
    kind = rng.choice([SQUARE, DISC, BOX, BALL, CYLINDER], p=[0.15, 0.1, 0.35, 0.2, 0.2])
    if kind == CYLINDER:
        half[2] = half[0]
    b.add(kind, place, axes, half, rng.uniform(0.4, 2))


def _hang(b: Builder, count: int) -> None:
    """Thin rods: cables, legs, frames."""
    rng = b.rng
    for _ in range(count):
        place = b.seen(0.6, 2)
        thin = b.width_at(place) * exp(rng.uniform(log(0.002), log(0.02)))
        half = np.array([thin, b.width_at(place) * rng.uniform(0.1, 0.8), thin])
        turn = _turned(rng.uniform(-3, 3), rng.normal(0, 0.3), rng.choice([0, 1.57]))
        b.add(rng.choice([BOX, CYLINDER]), place, turn, half, rng.uniform(0.5, 3))


def _tree(b: Builder, floor: float) -> None:
    """A stem, and discs and balls for its leaves."""
    rng = b.rng
    place = b.seen(0.8, 4)
    size = b.width_at(place) * rng.uniform(0.1, 0.5)
    stem = np.array([size * rng.uniform(0.02, 0.12), size, 0])
    stem[2] = stem[0]
    place[1] = floor - size
    if not b.add(CYLINDER, place, np.eye(3), stem, 2.0) or rng.random() < 0.3:
        return
    crown = place - np.array([0, size, 0])
    for _ in range(rng.integers(4, 14)):
        spot = crown + size * rng.normal(0, 0.35, 3)
        half = size * rng.uniform(0.05, 0.3) * np.array([1, rng.uniform(0.4, 1), 1])
        b.add(rng.choice([DISC, BALL]), spot, _turned(*rng.uniform(-3, 3, 3)), half, 1.0)


def _toward_middle(rng: Rng, low: float, high: float) -> float:
    """A number between two, on a scale of ratios, more often in the middle."""
    return exp(log(low) + rng.beta(2.2, 1.6) * (log(high) - log(low)))


def _any_turn(rng: Rng) -> float:
    return float(rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)], p=[0.4, 0.3, 0.3]))


def _turned(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """The rotation about y, then x, then z, in radians."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z

"""Textures to put on bodies: families of noise and pattern, and pieces of photographs.

Each is a square of SIDE x SIDE, 8-bit RGB. Leaves that cover each other have the statistics of
natural pictures: Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numba import njit

from ..errors import UserError
from ..io import images
from ._tracer import SIDE, halve

SUFFIXES = (".jpg", ".jpeg", ".png")
LEAVES = 700

Rng = np.random.Generator
Image = Float[np.ndarray, "side side 3"]
compiled: Any = njit(fastmath=True, cache=True, nogil=True)


def read_photos(folder: Path) -> list[Path]:
    """The photographs under a folder, in order; UserError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = [path for path in found if "depth" not in path.parts]
    if not found:
        raise UserError(
            f"no photograph under {folder}",
            f"a folder with files {', '.join(SUFFIXES)}",
            "correct dataset.photos, or leave it out for textures of noise alone",
        )
    return found


def make_textures(
    rng: Rng, count: int, photos: list[Path], share: float
) -> UInt8[np.ndarray, "texture texel 3"]:
    """`count` textures with their smaller copies; about this `share` are pieces of photographs."""
    made = []
    for _ in range(count):
        if photos and rng.random() < share:
            image = _piece(rng, photos[rng.integers(len(photos))])
        else:
            image = FAMILIES[rng.choice(len(FAMILIES), p=SHARES)](rng)
        made.append(halve((image * 255 + 0.5).clip(0, 255).astype(np.uint8)))
    return np.stack(made)


def _piece(rng: Rng, path: Path) -> Image:
    """A square of a photograph, from a third of its shorter side to all of it."""
    photo = images.read_image(path)
    pixels = np.asarray(photo, np.float32)
    if pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels / 255 if pixels.max() > 1.5 else pixels
    height, width = pixels.shape[:2]
    side = int(min(height, width) * rng.uniform(0.35, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    at = (np.arange(SIDE) + 0.5) * side / SIDE - 0.5
    low = at.astype(int).clip(0, side - 2)
    share = (at - low).clip(0, 1).astype(np.float32)
    cut = pixels[top : top + side, left : left + side]
    rows = cut[low] * (1 - share)[:, None, None] + cut[low + 1] * share[:, None, None]
    out = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
    return np.rot90(out, int(rng.integers(4))).copy()


def _noise(rng: Rng, power: float) -> Float[np.ndarray, "side side"]:
    """Noise whose amplitude falls with frequency^power, of mean 0 and deviation 1."""
    across = np.fft.rfftfreq(SIDE)
    down = np.fft.fftfreq(SIDE)
    stretch = rng.uniform(0.4, 2.5) if rng.random() < 0.4 else 1.0
    frequency = np.hypot(across, down[:, None] * stretch)
    frequency[0, 0] = 1
    phase = rng.normal(size=(2, *frequency.shape))
    spectrum = (phase[0] + 1j * phase[1]) / frequency**power
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (SIDE, SIDE)).astype(np.float32)
    return noise / noise.std()


def _palette(rng: Rng, count: int) -> Float[np.ndarray, "color 3"]:
    """Colors that lie near one, more apart in brightness than in hue."""
    base = rng.uniform(0.1, 0.9, 3) * 0.5 + rng.uniform(0.1, 0.8) * 0.5
    bright = rng.normal(0, rng.uniform(0.05, 0.3), (count, 1))
    hue = rng.normal(0, rng.uniform(0.01, 0.12), (count, 3))
    return np.clip(base + bright + hue, 0.02, 0.98).astype(np.float32)


def _clouds(rng: Rng) -> Image:
    colors = _palette(rng, 3)
    first, second = _noise(rng, rng.uniform(0.7, 1.7)), _noise(rng, rng.uniform(0.7, 1.7))
    image = colors[0] + 0.35 * first[..., None] * (colors[1] - colors[0])
    return image + 0.35 * second[..., None] * (colors[2] - colors[0])


def _plain(rng: Rng) -> Image:
    """A painted wall: one color, slow changes and a little grain."""
    color = _palette(rng, 1)[0]
    slow, fast = _noise(rng, 2.0), _noise(rng, rng.uniform(0.2, 0.8))
    return color + (rng.uniform(0, 0.04) * slow + rng.uniform(0, 0.03) * fast)[..., None]


def _grid(rng: Rng) -> Image:
    """Bricks, tiles, checks or stripes, their lines bent and each with a color of its own."""
    cells = rng.integers(2, 14, 2)
    if rng.random() < 0.35:
        cells[rng.integers(2)] = 1
    v, u = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    bend = rng.uniform(0, 0.01)
    u, v = u + bend * _noise(rng, 1.8), v + bend * _noise(rng, 1.8)
    y = v * cells[1]
    x = u * cells[0] + (0.5 if rng.random() < 0.4 else 0.0) * np.floor(y)
    colors = _palette(rng, 64)
    cell = (np.floor(x).astype(int) * 7 + np.floor(y).astype(int) * 13) % 64
    if rng.random() < 0.3:
        cell = (np.floor(x) + np.floor(y)).astype(int) % 2
    joint = rng.uniform(0.0, 0.12)
    edge = np.minimum(np.abs(x - np.round(x)) / cells[0], np.abs(y - np.round(y)) / cells[1])
    line = edge * cells.max() < joint
    image = np.where(line[..., None], _palette(rng, 1)[0], colors[cell])
    return image + (rng.uniform(0, 0.08) * _noise(rng, rng.uniform(0.4, 1.2)))[..., None]


def _leaves(rng: Rng) -> Image:
    """Discs and boxes that cover each other, of sizes by a power law."""
    colors = _palette(rng, LEAVES) * 0.5 + _palette(rng, LEAVES) * 0.5
    size = 3.0 * rng.uniform(0.001, 1, LEAVES) ** -0.6
    shapes = np.stack(
        [
            rng.uniform(0, SIDE, LEAVES),
            rng.uniform(0, SIDE, LEAVES),
            size.clip(2, 60),
            size.clip(2, 60) * rng.uniform(0.25, 1, LEAVES),
            rng.uniform(0, np.pi, LEAVES),
            rng.random(LEAVES) < rng.choice([0.0, 0.5, 1.0]),
        ],
        axis=1,
    ).astype(np.float32)
    image = np.ones((SIDE, SIDE, 3), np.float32) * _palette(rng, 1)[0]
    _cover(shapes[np.argsort(-shapes[:, 2] * rng.uniform(0.5, 2, LEAVES))], colors, image)
    return image + (rng.uniform(0, 0.06) * _noise(rng, rng.uniform(0.4, 1.2)))[..., None]


@compiled
def _cover(shapes: Any, colors: Any, image: Any) -> None:
    side = image.shape[0]
    for k in range(len(shapes)):
        x, y, a, b = shapes[k, 0], shapes[k, 1], shapes[k, 2], shapes[k, 3]
        c, s, box = np.cos(shapes[k, 4]), np.sin(shapes[k, 4]), shapes[k, 5] > 0
        reach = a * 1.5
        for i in range(max(0, int(y - reach)), min(side, int(y + reach) + 1)):
            for j in range(max(0, int(x - reach)), min(side, int(x + reach) + 1)):
                u, v = (j - x) * c + (i - y) * s, (i - y) * c - (j - x) * s
                inside = abs(u) < a and abs(v) < b if box else (u / a) ** 2 + (v / b) ** 2 < 1
                if inside:
                    image[i, j, 0], image[i, j, 1] = colors[k, 0], colors[k, 1]
                    image[i, j, 2] = colors[k, 2]


def _wood(rng: Rng) -> Image:
    colors = _palette(rng, 2)
    v, u = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    rings = rng.uniform(4, 20) * u + rng.uniform(0.3, 1.5) * _noise(rng, 1.9) + v
    share = 0.5 + 0.5 * np.sin(2 * np.pi * rings)
    image = colors[0] + share[..., None] ** rng.uniform(0.5, 3) * (colors[1] - colors[0])
    return image + (0.05 * _noise(rng, 0.6))[..., None]


def _page(rng: Rng) -> Image:
    """Rows of short dark strokes on a bright ground, as of a page, a keyboard or a shelf."""
    paper, ink = _palette(rng, 1)[0] * 0.4 + 0.55, _palette(rng, 8) * 0.6
    image = np.ones((SIDE, SIDE, 3), np.float32) * paper
    height = int(rng.integers(3, 28))
    y = int(rng.integers(2, 10))
    while y + height < SIDE:
        x = int(rng.integers(2, 20))
        while x < SIDE:
            length = int(rng.integers(2, 6 + 2 * height))
            image[y : y + height, x : x + length] = ink[rng.integers(8)]
            x += length + int(rng.integers(1, 4 + height))
        y += height + int(rng.integers(1, 3 + height))
    return image + (0.02 * _noise(rng, 0.5))[..., None]


FAMILIES: list[Callable[[Rng], Image]] = [_clouds, _plain, _grid, _leaves, _wood, _page]
SHARES = [0.25, 0.16, 0.2, 0.24, 0.08, 0.07]

"""Gaussians from anywhere, and cameras: colour, depth, alpha, normals and attributes of them."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, name_some
from ..io.files import write_array
from ..io.gaussians import load_gaussians
from ..progress import Track, silently
from ..render import obstacle, rasterize
from ..types import DrawingRules, Gaussians, Rendering
from ..view.orbit import ORBIT_SIZE
from ..zoo import memory
from .cameras import OWN_CAMERAS, Picture, bounded, from_file, on_orbit, resized
from .options import follow_rules, format_size, pick_device
from .results import pictures as drawn
from .results.folder import make_whole, name_files

log = logging.getLogger(__name__)

CHANNELS = 16  # attributes that are drawn at a time, which bounds memory
FPS = {"orbit": 30.0, "file": 4.0}  # of the video: an orbit is smooth, photos jump
PROBED = 20_000, 5  # Gaussians and pictures from which the memory needed is estimated
BLOCK = 1 << 20  # numbers of attributes that are looked at at a time
SMALL = 0.5  # of the side of photos: smaller pictures are not what they were trained for
TILE = 16  # pixels per side of what rasterisers take at a time
GAUSSIAN_BYTES, PAIR_BYTES, PIXEL_BYTES = 150, 48, 300  # measured: of the cpu backend, rounded up


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `render`.

    `orbit` is how many pictures to take from a circle around the scene, and `up` the axis that is
    up then ("z", "-x"; see `on_orbit`). `photos` is a folder of photos to compare with,
    `attributes` a .npy file [gaussian, channel]; `median` adds the median depth. Of the cameras of
    a file every `every`-th is drawn, at most `limit`. `size` is (height, width), `background` RGB
    in [0, 1]. `rules` is "classic", "mip" (antialiased) or "resplat", not the Gaussians' own.
    """

    orbit: int | None = None
    up: str | None = None
    photos: Path | None = None
    attributes: Path | None = None
    median: bool = False
    every: int = 1
    limit: int | None = None
    size: tuple[int, int] | None = None
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rules: str | None = None
    video: bool = True
    fps: float | None = None
    backend: str = "auto"
    device: str = "auto"
    overwrite: bool = False


def render(
    scene: str | Path | Gaussians,
    cameras: str | Path | None,
    output: str | Path,
    options: Options | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> drawn.Summary:
    """Draws trained Gaussians into cameras, with depth, and writes what is seen to `output`.

    `scene` is a file of Gaussians, or Gaussians (batch 1); `cameras` is INRIA's or our
    cameras.json, transforms.json, a COLMAP model, or anything that `open_scene` opens; lenses with
    distortion become the pinholes that their photos are undistorted to. Depth is z in the unit of
    the scene; VIEW is the name of the camera's photo, or a number on an orbit.

        color/VIEW.png                  over the background
        depth/VIEW.npy, .png            expected depth Σzαt / Σαt; 16 bits, count * depth_scale
        depth_median/VIEW.npy, .png     where transmittance falls to one half; 0 = none (if wanted)
        depth_color/VIEW.png            expected depth where alpha is one half or more, one range
        alpha/VIEW.npy, .png            16 bits, count / 65535
        normals/VIEW.npy, .png          of the expected depth: float16 [height, width, 3], camera
                                        axes (x right, y down, z forward), 0 = none; and as colour
        attributes/VIEW.npy             [channel, height, width], weights of the colour
        sheet.png, video.mp4            some at a glance; all, colour beside depth
        metrics.json                    `Summary`
        cameras.json                    of the pictures: the folder opens as a scene with depth

    Each picture is drawn and written by itself. `tell` gets what was decided, a sentence at a time.
    Raises UserError where the files, the options, the free memory or the output folder will not do,
    or where no camera sees the scene. The folder appears whole or not at all.
    """
    chosen = options or Options()
    device = pick_device(chosen.device)
    with make_whole(output, chosen.overwrite) as folder:
        # Gaussians, pictures and attributes; all that can be refused is refused here
        given = scene if isinstance(scene, Gaussians) else load_gaussians(scene)
        gaussians = follow_rules(given.detach().to("cpu"), chosen.rules, tell)
        _check_backend(chosen.backend, device, chosen.median, gaussians.rules)
        pictures = choose_pictures(gaussians, cameras, chosen)
        attributes = None
        if chosen.attributes is not None:
            attributes = read_attributes(chosen.attributes, gaussians.means.shape[1])
        channels = 0 if attributes is None else attributes.shape[1]
        check_memory(gaussians, pictures, channels, device)
        tell(_describe(gaussians, pictures, device))
        _report_small(pictures, gaussians.rules, tell)
        # Draw picture by picture; numbers go to disk at once
        gaussians = gaussians.to(device)
        stems = name_files([picture.name for picture in pictures])
        drawings, start = [], time.perf_counter()
        for picture, stem in track(zip(pictures, stems, strict=True), "drawing", len(pictures)):
            rendering = draw(gaussians, picture, chosen, median=chosen.median)
            drawings.append(drawn.write_drawing(folder, picture, stem, rendering))
            if attributes is not None:
                blended = draw_attributes(gaussians, attributes, picture, chosen)
                write_array(folder / "attributes" / f"{stem}.npy", blended.numpy())
        tell(f"{(time.perf_counter() - start) / len(pictures):.2f} s per picture.")
        _report_empty(drawings, _choose_remedy(chosen), tell)
        # One scale for the depth of all, a sheet, a video
        fps = chosen.fps or FPS["orbit" if chosen.orbit else "file"]
        count = gaussians.means.shape[1]
        fps = fps if chosen.video else 0
        return drawn.write_results(folder, drawings, count, fps, track, gaussians.origin)


def choose_pictures(
    gaussians: Gaussians, cameras: str | Path | None, options: Options
) -> list[Picture]:
    """What to draw, of one size, with near and far; UserError for what cannot be."""
    if cameras is None and options.orbit is None:
        raise UserError(
            "neither cameras nor an orbit",
            "somewhere to look from",
            "give `cameras`, or an orbit of pictures: `orbit=120`",
        )
    if cameras is None and (options.every != 1 or options.limit is not None):
        raise UserError(
            "`every` or `limit` without cameras to choose from",
            "cameras of a file",
            "leave them out: `orbit=120` says how many pictures there are",
        )
    if options.orbit is not None and options.photos is not None:
        raise UserError(
            "`photos` together with `orbit`",
            "cameras that took the photos",
            "leave out one of the two",
        )
    if gaussians.means.shape[:2].numel() == 0 or len(gaussians.means) != 1:
        raise UserError(
            f"{gaussians.means.shape[0]} scenes of {gaussians.means.shape[1]} Gaussians",
            "one scene with at least one",
            "draw them one at a time, and none that is empty",
        )
    if options.fps is not None and not 0 < options.fps < math.inf:
        raise UserError(
            f"`fps={options.fps:g}`", "a positive number", "leave out the video with `video=False`"
        )
    if options.size is not None and min(options.size) < 1:
        raise UserError(f"`size={format_size(options.size)}`", "at least 1x1", "such as 540x960")
    pictures = []
    if cameras is not None:
        every, limit = options.every, options.limit
        pictures = from_file(cameras, options.photos, every, limit, gaussians.origin)
    if options.orbit is not None:
        size = options.size or ORBIT_SIZE
        pictures = on_orbit(gaussians, options.orbit, pictures, options.up, size)
    if options.size is not None:
        pictures = resized(pictures, options.size)
    return bounded(pictures, gaussians, _choose_remedy(options))


def _choose_remedy(options: Options) -> str:
    """What to do where nothing is seen."""
    if options.orbit is None:
        return f"{OWN_CAMERAS}, or `orbit=120`"
    return "look at sizes and opacities of the scene, or give the cameras that it was made with"


def _check_backend(name: str, device: torch.device, median: bool, rules: DrawingRules) -> None:
    """UserError, in the words of `Options`, for a rasteriser that cannot draw there, or so."""
    problem = None if name == "auto" else obstacle(name, device, median, rules)
    if problem is None:
        return
    if median and obstacle(name, device, rules=rules) is None:
        raise UserError(
            f"`median=True` with `backend={name}`, which draws no median depth",
            "a renderer that does",
            "drop `backend`, or `median=True`",
        )
    if device.type == "cpu":
        raise UserError(
            f"`backend={name}` on the CPU", "a CUDA device", "add `device=cuda`, or drop `backend`"
        )
    raise problem


def read_attributes(path: Path, gaussians: int) -> Float[np.ndarray, "gaussian channel"]:
    """A .npy file of numbers for every Gaussian, mapped, not read; UserError for anything else."""
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as an array ({error})",
            "a .npy file [gaussian, channel]",
            "write it with numpy.save",
        ) from error
    fits = isinstance(table, np.ndarray) and table.ndim in (1, 2) and table.dtype.kind in "fiub"
    if not fits or len(table) != gaussians or table.size == 0:
        got = f"shape {list(table.shape)} and type {table.dtype}" if fits else "something else"
        raise UserError(
            f"{path} holds {got}",
            f"numbers [gaussian, channel] for {gaussians} Gaussians",
            "write one row for each Gaussian that is read, in the order of the scene's file",
        )
    table = table.reshape(gaussians, -1)
    step = max(1, BLOCK // table.shape[1])
    if not all(np.isfinite(table[i : i + step]).all() for i in range(0, gaussians, step)):
        raise UserError(
            f"{path} holds numbers that are not finite", "finite numbers", "replace them, by 0 say"
        )
    return table


@torch.no_grad()
def draw(
    gaussians: Gaussians, picture: Picture, options: Options, median: bool = False
) -> Rendering:
    """One picture, drawn once, and brought to the CPU; with its median depth if wanted."""
    return rasterize(
        gaussians,
        picture.camera.to(gaussians.means.device),
        picture.size,
        options.backend,
        options.background,
        extras=("depth_median",) if median else (),
    ).to("cpu")


@torch.no_grad()
def draw_attributes(
    gaussians: Gaussians,
    table: Float[np.ndarray, "gaussian channel"],
    picture: Picture,
    options: Options,
) -> Float[Tensor, "channel height width"]:
    """Attributes blended with the weights of the colour, CHANNELS at a time, on the CPU."""
    device, parts = gaussians.means.device, []
    for first in range(0, table.shape[1], CHANNELS):
        some = np.array(table[:, first : first + CHANNELS], dtype=np.float32)
        drawn = rasterize(
            gaussians,
            picture.camera.to(device),
            picture.size,
            options.backend,
            attributes=torch.from_numpy(some)[None].to(device),
            sh_degree=0,
        )
        assert drawn.attributes is not None
        parts.append(drawn.attributes[0, 0].cpu())
    return torch.cat(parts)


def check_memory(
    gaussians: Gaussians, pictures: list[Picture], channels: int, device: torch.device
) -> None:
    """Raises UserError where a picture with so many attributes will not fit into free memory.

    What a picture takes grows with its pixels, with the Gaussians, and with how many squares of
    TILE pixels they touch, which is counted on a sample, for pictures spread over all.
    """
    free = memory.free_bytes(device)
    if free is None:
        return
    count, size = gaussians.means.shape[1], pictures[0].size

    def fit(need: float) -> None:
        if need > memory.SPARE * free:
            raise UserError(
                f"{count} Gaussians in pictures of {format_size(size)} need about "
                f"{need / 2**30:.1f} GiB",
                f"at most the {free / 2**30:.1f} GiB that are free on {device}",
                "use a smaller `size`, fewer Gaussians, or a machine with more memory",
            )

    need = count * GAUSSIAN_BYTES + size[0] * size[1] * (PIXEL_BYTES + 8 * channels)
    fit(need)  # before a picture of that size is drawn to count tiles
    some = gaussians.map(lambda tensor: tensor[:, :: -(-count // PROBED[0])])
    spread = torch.linspace(0, len(pictures) - 1, min(PROBED[1], len(pictures))).long().tolist()
    tiles = max(_count_tiles(some, pictures[i]) for i in spread) / some.means.shape[1]
    at_once = min(channels, CHANNELS)
    fit(need + count * tiles * (PAIR_BYTES + 4 * at_once))


@torch.no_grad()
def _count_tiles(gaussians: Gaussians, picture: Picture) -> float:
    """How many (Gaussian, tile) pairs a picture has."""
    screen = rasterize(gaussians, picture.camera, picture.size, extras=("screen",)).screen
    assert screen is not None
    seen = screen.radii[0, 0] > 0
    means, radii = screen.means[0, 0, seen], screen.radii[0, 0, seen, None]
    image = means.new_tensor(picture.size).flip(0)
    low = torch.minimum((means - radii).clamp_min(0), image)
    high = torch.minimum((means + radii).clamp_min(0), image)
    return ((high - low) / TILE + 1).prod(dim=-1).sum().item()


def _describe(gaussians: Gaussians, pictures: list[Picture], device: torch.device) -> str:
    with_photo = sum(picture.photo is not None for picture in pictures)
    beside = f", {with_photo} of them beside their photo" if with_photo else ""
    antialiased = ", antialiased," if gaussians.rules.antialiased else ""
    return (
        f"Drawing {gaussians.means.shape[1]} Gaussians of SH degree {gaussians.sh_degree}"
        f"{antialiased} into "
        f"{len(pictures)} pictures of {format_size(pictures[0].size)} (height x width) on {device}"
        f"{beside}."
    )


def _report_small(
    pictures: list[Picture], rules: DrawingRules, tell: Callable[[str], None]
) -> None:
    """Says where photos are compared with at a size that splats were not trained for.

    Antialiased splats cover as much at every size.
    """
    if rules.antialiased:
        return
    small = [p for p in pictures if p.photo and max(p.size) < SMALL * max(p.photo.size)]
    if small and small[0].photo is not None:
        size, photo = format_size(small[0].size), format_size(small[0].photo.size)
        tell(
            f"Pictures of {size} are small beside photos of {photo}:"
            f" splats are drawn fatter and brighter there (each is blurred by {rules.blur:g} px²), "
            "and PSNR falls; compare at the size of the photos. The rules 'mip' make up for the "
            "blur: that is right for Gaussians trained so, and thins out the smallest of others."
        )


def _report_empty(drawings: list[drawn.Drawing], remedy: str, tell: Callable[[str], None]) -> None:
    """Says which pictures are empty; UserError where all are."""
    empty = [drawing.picture.name for drawing in drawings if drawing.metrics["covered"] == 0]
    if len(empty) == len(drawings):
        raise UserError(
            f"nothing is visible in any of the {len(drawings)} pictures",
            "cameras that see the scene",
            remedy,
        )
    if empty:
        tell(f"Nothing of the scene is visible in {len(empty)} pictures: {name_some(empty)}.")

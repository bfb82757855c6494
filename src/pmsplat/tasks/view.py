"""Files of Gaussians and folders of results, opened for the page that shows them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..io.cameras import find_cameras
from ..io.gaussians import META, load_gaussians
from ..io.images import read_image
from ..types import CLASSIC, NO_OFFSET, Cameras, Direction, Gaussians, Origin
from ..view.orbit import axis, upward
from ..view.server import Page, Setting
from ..view.stage import Exhibit, Stage
from .cameras import Picture, bounded, from_file, on_orbit, resized
from .options import follow_rules, format_rules, format_size, pick_device
from .render import check_memory
from .results.folder import name_files

log = logging.getLogger(__name__)

GAUSSIANS = "gaussians.ply"  # of a folder of results
DRAWN = ("color", "render")  # folders of results in which a camera's picture may be
VIDEO = "view.mp4"
MOST_CAMERAS = 300  # of a scene: more hide each other, and slow a browser down
THUMBNAIL = (160, 160)  # pixels that a photo on a camera may have at most
LONGEST = 8192  # pixels of a side of a video: players take no more
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `view`.

    `cameras` (a file or folder, see `render`) are those of scenes that bring none, and `photos` is
    a folder of the photos of any; `up` is the axis that is up ("z", "-x"). `output` is the video
    that the page records, `size` its (height, width). At most `most` Gaussians of a scene go to the
    browser. `rules` is "classic", "mip" (antialiased) or "resplat", in place of the Gaussians' own.
    """

    cameras: str | None = None
    photos: Path | None = None
    up: str | None = None
    output: Path | None = None
    size: tuple[int, int] = (720, 1280)
    most: int = 2_000_000
    rules: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    backend: str = "auto"
    device: str = "auto"


def view(
    scenes: Sequence[str | Path],
    options: Options | None = None,
    tell: Callable[[str], None] = log.info,
) -> Page:
    """Serves a page that shows scenes of Gaussians, until it is closed.

    A scene is a file of Gaussians, or a folder that `predict` or `refine` wrote, with its cameras
    if it has some. The page shows the splats, the cameras with their photos or what they see, and
    colour, depth and alpha as `rasterize` draws them, and confidence where all scenes have it; it
    records videos of a way through chosen views, and several scenes can be moved beside each other.
    `tell` gets what was decided, a sentence at a time. Raises UserError for scenes, cameras, an
    address or a machine that will not do, and where viser is not installed.
    """
    chosen = options or Options()
    device = pick_device(chosen.device)
    if chosen.most < 1 or not 1 <= min(chosen.size) <= max(chosen.size) <= LONGEST:
        raise UserError(
            f"`most={chosen.most}` and `size={format_size(chosen.size)}`",
            f"numbers from 1, and sides of at most {LONGEST} pixels",
            "leave out what does not fit",
        )
    if not scenes:
        raise UserError("no scene to show", "a file of Gaussians or a folder", "name one")
    # What to show
    names = name_files([Path(scene).resolve().name for scene in scenes])
    opened: list[tuple[Gaussians, list[Picture]]] = []
    for scene in scenes:
        first = opened[0][0].origin if opened else NO_OFFSET
        opened.append(open_shown(Path(scene), chosen, tell, first))
    _check_rules(names, [gaussians for gaussians, _ in opened], tell)
    unsure = [
        n for n, (gaussians, _) in zip(names, opened, strict=True) if not _is_rated(gaussians)
    ]
    if 0 < len(unsure) < len(names):
        tell(f"Confidence is not shown: it is not known of {', '.join(unsure)}.")
    exhibits = [
        _make_exhibit(name, gaussians, pictures, Path(scene), tell)
        for name, scene, (gaussians, pictures) in zip(names, scenes, opened, strict=True)
    ]
    # Where to look from first
    everything = [picture for _, pictures in opened for picture in pictures]
    gaussians, pictures = opened[0]
    start = bounded(on_orbit(gaussians, 1, [], chosen.up), gaussians)[0]
    up = _find_upward(chosen.up, gaussians.up, everything)
    if pictures:
        start = pictures[0]
    # Does that fit into memory, and into a browser?
    biggest = max((gaussians for gaussians, _ in opened), key=lambda one: one.means.shape[1])
    channels = 0 if unsure else 1  # of confidence
    check_memory(biggest, resized([start], chosen.size), channels, device)
    for exhibit in exhibits:
        count = exhibit.gaussians.means.shape[1]
        if count > chosen.most:
            tell(
                f"The browser shows the {chosen.most} of the {count} Gaussians of {exhibit.name} "
                "that cover most; pictures drawn here show all."
            )
    # The page
    page = Page(
        Stage(exhibits, chosen.backend, device),
        Setting(
            start=start.camera,
            up=up,
            video=chosen.output or _choose_folder(Path(scenes[0])) / VIDEO,
            size=chosen.size,
            most=chosen.most,
            host=chosen.host,
            port=chosen.port,
        ),
    )
    if chosen.host not in LOOPBACK:
        tell(f"Whoever reaches {chosen.host} can see these scenes, and there is no password.")
    return page


def _is_rated(gaussians: Gaussians) -> bool:
    """Whether their confidence is known."""
    return gaussians.confidence is not None


def _find_upward(
    named: str | None, said: Direction | None, pictures: list[Picture]
) -> Float[Tensor, "3"]:
    """The axis that was named, or what the file says, or what photographers held for up, or -y."""
    if named is None and said is not None:
        return torch.tensor(said)
    if named is not None or not pictures:
        return axis(named or "-y")
    return upward(torch.cat([picture.camera.c2w[0] for picture in pictures]))


def _check_rules(
    names: Sequence[str], shown: Sequence[Gaussians], tell: Callable[[str], None]
) -> None:
    """Raises UserError for scenes with different rules; says what the browser does not follow."""
    rules = [gaussians.rules for gaussians in shown]
    if len(set(rules)) > 1:
        each = ", ".join(f"{n} {format_rules(r)}" for n, r in zip(names, rules, strict=True))
        raise UserError(
            f"scenes that are drawn by different rules ({each})",
            "one kind of rules for all that is shown together",
            "add `rules=classic`, `mip` or `resplat`, or show one at a time",
        )
    if rules[0] != CLASSIC:
        antialiased = ", antialiased," if rules[0].antialiased else ""
        tell(
            f"Pictures drawn here{antialiased} follow the rules {format_rules(rules[0])}; the "
            "browser's own splats follow 'classic'."
        )


def open_shown(
    scene: Path,
    options: Options,
    tell: Callable[[str], None] = log.info,
    origin: Origin = NO_OFFSET,
) -> tuple[Gaussians, list[Picture]]:
    """The Gaussians of a file or folder, and what its cameras, or those of `options`, look at.

    Where they count from an origin, it becomes `origin`, that of what is shown beside them, if any.
    """
    inside = scene.is_dir() and not (scene / META).is_file()
    file = scene / GAUSSIANS if inside else scene
    if inside and not file.is_file():
        raise UserError(
            f"{scene} holds no {GAUSSIANS}",
            "a folder of `pmsplat predict` or `pmsplat refine`, or a file of Gaussians",
            "show pictures of `pmsplat render` as `cameras` of the scene that they show",
        )
    gaussians = follow_rules(load_gaussians(file), options.rules, tell)
    if NO_OFFSET not in (origin, gaussians.origin):
        gaussians = gaussians.at_origin(origin)
    if not gaussians.means.isfinite().all(dim=-1).any():
        raise UserError(f"{file} holds no Gaussians", "one at least", "choose another scene")
    source = find_cameras(scene) if scene.is_dir() else None
    if source is None:
        source = options.cameras
    if source is None:
        return gaussians, []
    pictures = from_file(source, options.photos, every=1, limit=None, origin=gaussians.origin)
    spread = np.linspace(0, len(pictures) - 1, min(MOST_CAMERAS, len(pictures))).round()
    return gaussians, bounded([pictures[int(i)] for i in spread], gaussians)


def _make_exhibit(
    name: str,
    gaussians: Gaussians,
    pictures: list[Picture],
    scene: Path,
    tell: Callable[[str], None],
) -> Exhibit:
    tell(f"{name}: {gaussians.means.shape[1]} Gaussians, {len(pictures)} cameras.")
    if not pictures:
        return Exhibit(name, gaussians)
    stems = name_files([picture.name for picture in pictures])
    return Exhibit(
        name,
        gaussians,
        Cameras.joined([picture.camera for picture in pictures]),
        names=tuple(stems),
        sizes=tuple(picture.size for picture in pictures),
        thumbnails=tuple(
            _make_thumbnail(picture, scene, stem)
            for picture, stem in zip(pictures, stems, strict=True)
        ),
    )


def _make_thumbnail(picture: Picture, scene: Path, stem: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """The photo of a camera, or what was drawn of it before, small; None where neither is here."""
    if picture.photo is not None:
        pixels = picture.photo.pixels()
    else:
        drawn = [scene / folder / f"{stem}.png" for folder in DRAWN] if scene.is_dir() else []
        found = next((path for path in drawn if path.is_file()), None)
        if found is None:
            return None
        pixels = read_image(found)
    image = Image.fromarray(pixels)
    image.thumbnail(THUMBNAIL)
    return np.array(image)


def _choose_folder(scene: Path) -> Path:
    return scene if scene.is_dir() else scene.parent

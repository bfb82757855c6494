"""Scenes that turn, and videos between their views, of one model or of several."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...view.pages.markup import Markup, escape, join, tag
from ...view.pages.splats import Model, write_viewer
from ..pictures import Pictures
from ..runs import Run
from ..tours import SCENE, START, VIDEO, Tour
from ._tables import named

EQUAL = 60.0  # dB: pictures that nobody tells apart
HELD = 15_000_000  # bytes of scenes and videos that a page holds, as they are written into it


@dataclass(frozen=True)
class Tours:
    """Which runs have tours on a page: the first that there is room for, by number.

    `absent`: whose pictures have none, `crowded`: for whose there is no room.
    """

    held: tuple[int, ...]
    absent: tuple[int, ...]
    crowded: tuple[int, ...]


def choose_tours(pictures: Sequence[Mapping[int, Pictures]]) -> Tours:
    """What a page holds of the scenes that it shows, each by the number of the run."""
    runs = sorted({i for by_run in pictures for i in by_run})
    held, absent, crowded, taken = [], [], [], 0
    for i in runs:
        sizes = [_count_bytes(by_run[i]) for by_run in pictures if i in by_run]
        if not sum(sizes):
            absent.append(i)
        elif taken + sum(sizes) > HELD:
            crowded.append(i)
        else:
            held.append(i)
            taken += sum(sizes)
    return Tours(tuple(held), tuple(absent), tuple(crowded))


def say_what_is_left_out(tours: Tours, runs: Sequence[Run]) -> Markup | None:
    """Whose scenes do not turn, why, and how they would."""
    said = []
    if tours.absent:
        names = " and ".join(runs[i].name for i in tours.absent)
        said.append(
            tag("p", f"No scenes to turn and no videos of {names}: they were not saved with these ",
                "results, or the model predicts no Gaussians. ",
                tag("code", "pmsplat evaluate … --report DIR"), " saves them.", class_="empty")
        )  # fmt: skip
    if tours.crowded:
        names = " and ".join(runs[i].name for i in tours.crowded)
        said.append(
            tag("p", f"Scenes to turn and videos of {names} are left out: with them this page ",
                f"would hold more than {HELD // 10**6} MB. A report of that run alone has them.",
                class_="empty")
        )  # fmt: skip
    return join(said) if said else None


def write_tours(
    scene: str, pictures: Mapping[int, Pictures], runs: Sequence[Run], held: Sequence[int]
) -> Markup | None:
    """The viewer and the videos of one scene, of the runs that have them; None without any."""
    found = {i: p for i, p in pictures.items() if p.tour and i in held}
    if not found:
        return None
    return tag(
        "div",
        tag("div", tag("h4", "Turn this scene"), _write_viewer(scene, found, runs)),
        _write_videos(scene, found, runs),
        class_="tour",
    )


def _write_viewer(scene: str, found: Mapping[int, Pictures], runs: Sequence[Run]) -> Markup:
    models = [
        Model(runs[i].name, (pictures.folder / SCENE).read_bytes()) for i, pictures in found.items()
    ]
    first = next(iter(found.values()))
    assert first.tour is not None
    notes = [
        _say_count(runs[i].name if len(found) > 1 else "", pictures.tour)
        for i, pictures in found.items()
        if pictures.tour is not None
    ]
    note = (
        f"It starts at target {first.tour.view}, with the colors seen from there. {' '.join(notes)}"
    )
    poster = f"data:image/webp;base64,{_encode(first, START)}"
    return write_viewer(models, first.tour.start, poster, f"scene {scene}", escape(note))


def _say_count(name: str, tour: Tour) -> str:
    """How many Gaussians a viewer has, and what is lost with the others."""
    kept = f"{name}: " if name else ""
    if tour.gaussians == tour.of:
        kept += f"{'all' if name else 'All'} {tour.of:,} Gaussians"
    else:
        kept += f"{tour.gaussians:,} of {tour.of:,} Gaussians"
    same = tour.gaussians == tour.of and tour.psnr > EQUAL
    return f"{kept}." if same else f"{kept}, {tour.psnr:.1f} dB to the model's own picture."


def _write_videos(scene: str, found: Mapping[int, Pictures], runs: Sequence[Run]) -> Markup | None:
    videos = []
    for i, pictures in found.items():
        if pictures.tour is None or not pictures.tour.seconds:
            continue
        video = tag(
            "video",
            src=f"data:video/mp4;base64,{_encode(pictures, VIDEO)}",
            poster=f"data:image/webp;base64,{_encode(pictures, START)}",
            controls=True, muted=True, loop=True, playsinline=True, preload="metadata",
            width=str(pictures.size[1]), height=str(pictures.size[0]),
            aria_label=f"Video of scene {scene} by {runs[i].name}, between its context views",
        )  # fmt: skip
        videos.append(tag("figure", video, tag("figcaption", named(i, runs[i].name))))
    if not videos:
        return None
    both = tag("button", "Play all", type="button", class_="play-all", hidden=True)
    return tag(
        "div",
        tag("h4", "Between the context views"),
        tag("div", *videos, class_="videos"),
        tag("p", both, class_="turn-bar") if len(videos) > 1 else None,
        tag(
            "p", "From the first view to the last and back, drawn by all Gaussians.", class_="hint"
        ),
        class_="flight",
    )


def _count_bytes(pictures: Pictures) -> int:
    """As base64."""
    names = pictures.tour.files if pictures.tour else ()
    return sum(-(-(pictures.folder / name).stat().st_size // 3) * 4 for name in names)


def _encode(pictures: Pictures, name: str) -> str:
    return base64.b64encode((pictures.folder / name).read_bytes()).decode()

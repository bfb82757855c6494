"""Scenes to look at: photograph, rendering, error and depth, and a slider between any two."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...io.files import write_bytes
from ...view import figures
from ...view.pages.markup import Markup, escape, join, tag
from ..pictures import FOLDER, Pictures
from ..runs import Run
from ._metrics import MAIN, METRICS, UNITS
from ._tables import named, say_count, scrolling
from ._tours import write_tours

EMBEDDED = 12_000_000  # bytes of pictures up to which a page holds them itself
SMALL = 200  # pixels: narrower pictures are enlarged with sharp pixels
PHOTO = "photograph"


@dataclass(frozen=True)
class Exhibit:
    """A scene with the pictures that runs have of it, by the number of the run."""

    scene: str
    rank: str
    id: str
    pictures: Mapping[int, Pictures]

    @property
    def first(self) -> Pictures:
        return next(iter(self.pictures.values()))


class Images:
    """Where a page finds its pictures: in itself, or copied into a folder beside it."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self.folder = folder
        self.embed = sum(path.stat().st_size for path in paths) <= EMBEDDED

    def address(self, path: Path, run: int) -> str:
        if self.embed:
            return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
        place = Path(FOLDER, f"{run + 1}", path.parent.name, path.name)
        write_bytes(self.folder / place, path.read_bytes())
        return quote(place.as_posix())


def choose_exhibits(
    runs: Sequence[Run], pictures: Sequence[Mapping[str, Pictures]]
) -> list[Exhibit]:
    """The scenes with pictures by all runs that have any, else by some; from worst to best.

    The order and the ranks are those of the first run by PSNR, where it has it.
    """
    key = MAIN[0]
    ranked = sorted(runs[0].rows, key=lambda row: row.values.get(key, float("inf")))
    having = [found for found in pictures if found]
    shared = set.intersection(*map(set, having)) if having else set()
    shared &= {row.scene for row in ranked}
    chosen = shared or set().union(*map(set, having)) if having else set()
    exhibits = []
    for place, row in enumerate(ranked):
        if row.scene in chosen:
            by_run = {i: p[row.scene] for i, p in enumerate(pictures) if row.scene in p}
            rank = _name_rank(place, len(ranked))
            exhibits.append(Exhibit(row.scene, rank, f"scene-{len(exhibits) + 1}", by_run))
    return exhibits


def write_exhibit(
    exhibit: Exhibit, runs: Sequence[Run], images: Images, held: Sequence[int] = ()
) -> Markup:
    """A scene: the slider and the numbers, then all of its pictures.

    It turns, and has videos, for the runs that are `held`."""
    pictures = exhibit.first
    small = pictures.size[1] < SMALL
    views = [
        _write_view(exhibit, runs, images, number, target.view)
        for number, target in enumerate(pictures.targets)
    ]
    more = views[1:]
    rest = None
    if more:
        rest = tag("details", tag("summary", f"{say_count(len(more), 'more view')}"), *more)
    context = [
        _figure(images, pictures.path("context", view), next(iter(exhibit.pictures)),
                f"Context view {view} of scene {exhibit.scene}", Markup(escape(view)))
        for view in pictures.context
    ]  # fmt: skip
    shown = f"{len(context)} of {pictures.views}" if pictures.views > len(context) else "all"
    return tag(
        "article",
        tag("p", exhibit.rank, class_="eyebrow"),
        tag("h3", exhibit.scene),
        tag(
            "div",
            _write_slider(exhibit, runs),
            tag(
                "div",
                _write_numbers(exhibit, runs),
                tag("h4", f"What the model saw ({shown})"),
                tag("div", *context, class_="seen"),
                class_="beside",
            ),
            class_="top",
        ),
        views[0],
        rest,
        write_tours(exhibit.scene, exhibit.pictures, runs, held),
        id=exhibit.id,
        class_="scene small" if small else "scene",
    )


def list_paths(exhibits: Sequence[Exhibit]) -> list[Path]:
    """The files of all pictures that a page shows."""
    paths = []
    for exhibit in exhibits:
        paths += [exhibit.first.path("context", view) for view in exhibit.first.context]
        for target in exhibit.first.targets:
            paths.append(exhibit.first.path("target", target.view))
            for pictures in exhibit.pictures.values():
                kinds = ("render", "error", "depth")
                paths += [pictures.path(kind, target.view) for kind in kinds]
    return [path for path in paths if path.is_file()]


def _write_slider(exhibit: Exhibit, runs: Sequence[Run]) -> Markup:
    """The frame of the slider; the script fills it from the figures, and shows it."""
    pictures, first = exhibit.first, next(iter(exhibit.pictures))
    kinds = [
        (f"{i}-{kind}", f"{runs[i].name}{'' if kind == 'render' else f', {kind}'}")
        for kind in ("render", "error", "depth")
        for i in exhibit.pictures
    ]
    pictured = [(PHOTO, PHOTO), *kinds]
    left = f"{first}-render" if len(exhibit.pictures) > 1 else PHOTO
    right = f"{list(exhibit.pictures)[-1]}-render"
    views = [(str(n), target.view) for n, target in enumerate(pictures.targets)]
    select = tag(
        "div",
        _select("view", "View", views, "0") if len(views) > 1 else None,
        _select("left", "Left", pictured, left),
        _select("right", "Right", pictured, right),
        class_="choices",
    )
    split = tag(
        "input", type="range", min="0", max="100", value="50", class_="split",
        aria_label=f"Boundary between the two pictures of scene {exhibit.scene}",
    )  # fmt: skip
    ratio = f"{pictures.size[1]} / {pictures.size[0]}"
    stage = tag(
        "div",
        tag("img", class_="under", alt=""),
        tag("img", class_="over", alt=""),
        tag("span", class_="name at-left"),
        tag("span", class_="name at-right"),
        tag("span", class_="handle", aria_hidden="true"),
        class_="stage",
        style=f"aspect-ratio: {ratio}",
    )
    return tag("div", stage, split, select, class_="compare", hidden=True)


def _select(name: str, label: str, options: Sequence[tuple[str, str]], chosen: str) -> Markup:
    listed = [tag("option", text, value=key, selected=key == chosen) for key, text in options]
    return tag("label", tag("span", label), tag("select", *listed, class_=f"pick-{name}"))


def _write_numbers(exhibit: Exhibit, runs: Sequence[Run]) -> Markup:
    """The metrics of the scene by every run."""
    rows = [run.by_scene[exhibit.scene] for run in runs]
    metrics = [METRICS[key] for key in MAIN if any(key in row.values for row in rows)]
    best = {m.key: m.best(row.values.get(m.key) for row in rows) for m in metrics}
    lines = []
    for i, (run, row) in enumerate(zip(runs, rows, strict=True)):
        cells = []
        for metric in metrics:
            value = row.values.get(metric.key)
            marked = len(runs) > 1 and metric.is_best(value, best[metric.key])
            text = metric.write(value)
            cells.append(tag("td", tag("strong", text) if marked else text))
        lines.append(tag("tr", tag("th", named(i, run.name), scope="row"), *cells))
    head = [tag("td"), *(tag("th", metric.heading, scope="col") for metric in metrics)]
    caption = f"Means over {say_count(rows[0].targets, 'target')}"
    table = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", *head)),
        tag("tbody", *lines),
        class_="numbers",
    )
    return scrolling(table, caption)


def _write_view(
    exhibit: Exhibit, runs: Sequence[Run], images: Images, number: int, view: str
) -> Markup:
    """One target: the photograph, then a row of rendering, error and depth for each run."""
    first, scene = next(iter(exhibit.pictures)), exhibit.scene
    figures_ = [
        _figure(images, exhibit.first.path("target", view), first,
                f"Photograph of target {view} of scene {scene}", escape("Photograph"),
                f"{number}/{PHOTO}", "target", f"grid-row: 1 / span {len(exhibit.pictures)}")
    ]  # fmt: skip
    for i, pictures in exhibit.pictures.items():
        values = {target.view: target.values for target in pictures.targets}.get(view)
        if values is None:
            continue
        said = _say_values(values)
        name, (near, far), most = runs[i].name, pictures.depth, pictures.error
        drawn = join([named(i, name), tag("br"), said])
        shown = {
            "render": (f"Target {view} drawn by {name}, {said}", drawn),
            "error": (f"Error of {name} in target {view}", escape(f"Error, 0 to {most:g}")),
            "depth": (
                f"Depth by {name} in target {view}",
                escape(f"Depth, {near:.3g} to {far:.3g}"),
            ),
        }
        figures_ += [
            _figure(
                images, pictures.path(kind, view), i, alt, caption, f"{number}/{i}-{kind}", kind
            )
            for kind, (alt, caption) in shown.items()
        ]
    return tag(
        "section",
        tag("h4", f"Target {view}"),
        tag("div", *figures_, class_="pictures many" if len(exhibit.pictures) > 1 else "pictures"),
        class_="view",
    )


def _figure(
    images: Images, path: Path, run: int, alt: str, caption: Markup, key: str | None = None,
    kind: str = "context", style: str | None = None,
) -> Markup:  # fmt: skip
    image = tag(
        "img", src=images.address(path, run), alt=alt, loading="lazy", decoding="async",
        data_key=key,
    )  # fmt: skip
    return tag("figure", image, tag("figcaption", caption), class_=kind, style=style)


def write_legend() -> Markup:
    """What the colors of errors and depth mean."""
    most = figures.MOST_DIFFERENCE
    return tag(
        "div",
        _write_scale(
            "Error", figures.DIFFERENCE_COLORMAP, "none", f"{most:g} or more",
            "absolute difference to the photograph, mean of three colors in [0, 1]",
        ),
        _write_scale(
            "Depth", figures.COLORMAP, "far", "near",
            "expected depth, in even steps of inverse depth; black where nothing was drawn",
        ),
        class_="legend",
    )  # fmt: skip


def _write_scale(name: str, colormap: str, low: str, high: str, meaning: str) -> Markup:
    colors = ", ".join(figures.sample_colormap(colormap))
    bar = tag("span", class_="bar", style=f"background: linear-gradient(90deg, {colors})")
    ends = tag("span", tag("span", low), bar, tag("span", high), class_="scale")
    return tag("p", tag("strong", name), " ", ends, " ", tag("span", meaning, class_="quiet"))


def _say_values(values: Mapping[str, float]) -> str:
    parts = [
        f"{METRICS[key].label} {METRICS[key].write(values[key])}{UNITS.get(key, '')}"
        for key in MAIN
        if key in values
    ]
    return ", ".join(parts)


def _name_rank(place: int, count: int) -> str:
    """Of the scene at a place from the worst, 0, to the best."""
    if count == 1:
        return "The only scene"
    names = {0: "Worst scene", count - 1: "Best scene", (count - 1) // 2: "Median scene"}
    if count == 2:
        names = {0: "Worst scene", 1: "Best scene"}
    return names.get(place, f"Scene {place + 1} of {count} from the worst")

"""What a visitor gets: a scene to turn, depth, comparisons, a video, and files to keep."""

import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import count_of
from ...io.gaussians import load_gaussians, save_gaussians
from ...io.images import read_image, to_uint8
from ...render import rasterize
from ...scene import Scene
from ...types import Cameras, Gaussians
from ...view.figures import COLORMAP, sample_colormap
from ...view.orbit import upward
from ...view.pages.frame import Page, Section, render_fragment, write_page
from ...view.pages.markup import Markup, tag
from ...view.pages.splats import SCRIPTS, Model, Start, flatten, pack, write_viewer
from ..results.folder import name_files
from ..results.prediction import Summary
from ._pictures import embed

BUDGET = 150_000  # Gaussians that a browser gets: 3.2 MB
POSTER = 640  # pixels of the longer side of the picture before a scene is started, about
COMPARED = 6  # photos that are shown beside what is drawn
KEPT = ("gaussians.ply", "gaussians.spz", "scene.html", "video.mp4", "sheet.png")
ALL = "everything.zip"
REPHRASED = (
    (r"use `size=\w+`", "choose another size in the options"),
    (r"(use|try) `(?:views|group)=(\d+)`", r"let the network see \2 photos: see the options"),
    (r", or (?:leave|name)[^,;]*`context`( out)?", ""),
)


@dataclass(frozen=True)
class Results:
    """Fragments of the page, and files: `files` are to be kept, the video among them."""

    viewer: Markup
    depth: Markup
    compared: Markup | None
    advice: Markup
    video: Path
    files: tuple[Path, ...]


def collect(folder: Path, scene: Scene, summary: Summary) -> Results:
    """Makes the rest of what a visitor gets of a folder that `predict` wrote, in that folder."""
    gaussians = load_gaussians(folder / "gaussians.ply")
    context = [scene.names.index(name) for name in summary.context]
    viewer, start = _make_viewer(gaussians, scene.cameras.at(context), summary)
    write_page(
        folder / "scene.html",
        Page(
            kind="pmsplat",
            title="A scene to turn",
            intro=tag("p", f"Made of {count_of(len(context), 'photo')}.", class_="lead"),
            sections=[Section("scene", "The scene", viewer)],
            scripts=SCRIPTS,
            closing="Made by pmsplat. Everything is in this file.",
        ),
    )
    save_gaussians(gaussians, folder / "gaussians.spz")
    return Results(
        viewer=_frame(viewer, start),
        depth=_draw_depth(folder, scene, context, summary),
        compared=_draw_compared(folder, scene, summary),
        advice=_describe_findings(summary),
        video=folder / "video.mp4",
        files=(*(folder / name for name in KEPT), _pack_all(folder)),
    )


def _make_viewer(gaussians: Gaussians, context: Cameras, summary: Summary) -> tuple[Markup, Start]:
    """The viewer, from the first context view on."""
    first = context.at([0])
    start = _find_start(gaussians, first, context, summary.size)
    flat = flatten(gaussians, start, BUDGET)
    larger = max(1, round(POSTER / max(summary.size)))
    size = (summary.size[0] * larger, summary.size[1] * larger)
    with torch.no_grad():
        poster = to_uint8(rasterize(flat, first, size).color[0, 0])
    count = flat.means.shape[1]
    note = None
    if count < summary.gaussians:
        note = Markup(f"The {count:,} of {summary.gaussians:,} Gaussians that cover most.")
    models = [Model("Gaussians", pack(flat.to("cpu")))]
    return write_viewer(models, start, embed(poster), "the scene", note), start


def _find_start(
    gaussians: Gaussians, first: Cameras, context: Cameras, size: tuple[int, int]
) -> Start:
    """At the first view, turning about what is in the middle of its depths."""
    with torch.no_grad():
        drawn = rasterize(gaussians, first, size)
    solid = drawn.alpha[0, 0] > 0.5
    near, far = first.near.item(), first.far.item()
    focus = drawn.depth[0, 0][solid].median().item() if solid.any() else math.sqrt(near * far)
    return Start(
        c2w=tuple(map(tuple, first.c2w[0, 0].double().tolist())),
        K=tuple(map(tuple, first.K[0, 0].double().tolist())),
        size=size,
        near=near,
        focus=focus,
        up=tuple(upward(context.c2w[0]).tolist()),
    )


def _frame(viewer: Markup, start: Start) -> Markup:
    """The viewer in a frame of its own, which neither reaches this page nor a network."""
    height, width = start.size
    return tag(
        "div",
        tag(
            "iframe",
            srcdoc=render_fragment("The scene", viewer, SCRIPTS),
            sandbox="allow-scripts",
            title="The scene, to turn",
            style=f"--shape: {height / width:.4f}",
        ),
        class_="pm-frame",
    )


def _draw_depth(folder: Path, scene: Scene, context: list[int], summary: Summary) -> Markup:
    """Photos that the network saw, beside their depth."""
    shown = [i for i in context if summary.anchors is None or scene.names[i] in summary.anchors]
    views = scene.views(shown, summary.size)
    names = name_files([*summary.context, *summary.held_out])
    pairs = []
    for row, i in enumerate(shown):
        name = scene.names[i]
        depth = read_image(folder / "depth" / f"{names[summary.context.index(name)]}.png")
        pairs += [
            _figure(embed(to_uint8(views.images[0, row])), f"Photo {name}", name),
            _figure(embed(depth), f"Depth of {name}", "depth"),
        ]
    colors = ", ".join(sample_colormap(COLORMAP)[::-1])
    bar = tag("span", class_="pm-bar", style=f"background: linear-gradient(90deg, {colors})")
    legend = tag("p", "near ", bar, " far", class_="pm-quiet")
    return tag("div", legend, tag("div", *pairs, class_="pm-pairs"))


def _draw_compared(folder: Path, scene: Scene, summary: Summary) -> Markup | None:
    """Photos that the network did not see, beside what is drawn from their cameras."""
    held = list(summary.held_out)
    if not held:
        return None
    names = name_files([*summary.context, *held])[len(summary.context) :]
    views = scene.views([scene.names.index(name) for name in held[:COMPARED]], summary.size)
    pairs = []
    for i, name in enumerate(held[:COMPARED]):
        drawn = read_image(folder / "render" / f"{names[i]}.png")
        said = f"drawn, {summary.held_out[name]['psnr']:.1f} dB"
        pairs += [
            _figure(embed(to_uint8(views.images[0, i])), f"Photo {name}", name),
            _figure(embed(drawn), f"What is drawn from the place of {name}", said),
        ]
    mean = "The network did not see these photos. On average the drawings reach "
    mean += f"{summary.means['psnr']:.1f} dB (PSNR: the higher, the closer)."
    return tag("div", tag("p", mean, class_="pm-quiet"), tag("div", *pairs, class_="pm-pairs"))


def _figure(address: str, about: str, caption: str) -> Markup:
    image = tag("img", src=address, alt=about, decoding="async")
    return tag("figure", image, tag("figcaption", caption))


def _describe_findings(summary: Summary) -> Markup:
    """What seems to be wrong with the photos, and what would help."""
    findings = summary.report.findings
    if not findings:
        return tag("p", "Nothing looks wrong with these photos.", class_="pm-quiet")
    rows = [
        tag("li", tag("strong", f"{found.problem}."), f" {rephrase(found.remedy)}.")
        for found in findings
    ]
    return tag("div", tag("h3", "What would help"), tag("ul", *rows), class_="pm-warning")


def rephrase(remedy: str) -> str:
    """A remedy for those who have a page, not the parameters of `predict`."""
    for pattern, said in REPHRASED:
        remedy = re.sub(pattern, said, remedy)
    text = remedy.replace("`", "")
    return text[:1].upper() + text[1:]


def _pack_all(folder: Path) -> Path:
    """All files of the folder in one .zip beside them."""
    path = folder / ALL
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in files:
            archive.write(file, Path("pmsplat-scene", file.relative_to(folder)))
    return path

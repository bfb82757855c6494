"""Many views: one pass, groups that are fused, and anchors, on scenes that no model has seen.

python benchmarks/run.py many_views hall/ garden/ --models base-0 base-1 --gathering six-0 six-1 \\
    --size 96 128 --output many/

Of each scene every so many-th photo is kept to compare with; from the others, views are chosen by
what they cover. PSNR, the mean of drawn minus photographed luminance (in 1/255: over-brightness
where it is positive), Gaussians and seconds of:

    one pass    all views at once through a model
    union       groups of a few views, one after another, and all their Gaussians
    shares      the same, with what several groups depict divided among them
    voxels      that, merged in voxels as large as a pixel
    anchors     all views at once through a model that gathers them (model.anchors)

Models of one kind are seeds of the same training: means over them, behind ± their deviation.
many_views.png is the curves, SCENE.png what is drawn of the first photo.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .measure import spread

FUSED = ("union", "shares", "voxels")
WAYS = ("one pass", *FUSED, "anchors")
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
PHOTOS = 80  # of a scene that count, at most, evenly spread


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="posed photos")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME|PATH")
    parser.add_argument("--gathering", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8, 16, 32], metavar="N")
    parser.add_argument("--group", type=int, default=4, help="views of a group (default: 4)")
    parser.add_argument("--held-out", type=int, default=8, help="photos to compare (default: 8)")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"))
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the table, draws; gives every value."""
    from pmsplat.zoo.load import load

    found: dict[str, Any] = {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(arguments.models):
        gathering = arguments.gathering[seed] if seed < len(arguments.gathering) else None
        models = load(name), None if gathering is None else load(gathering)
        for path in arguments.scenes:
            pictures = []
            for count in arguments.views:
                row = []
                for way, gaussians, seconds, photos in predictions(path, models, count, arguments):
                    value, drawn = compare(gaussians, photos)
                    value["seconds"] = round(seconds, 3)
                    views = found.setdefault(way, {}).setdefault(str(count), {})
                    views.setdefault(path.name, []).append(value)
                    row += [photos.images[0, 0], drawn] if not row else [drawn]
                pictures.append((f"{count} views: photo | {' | '.join(found)}", row))
            if seed == 0:
                write_pictures(arguments.output / f"{path.name}.png", pictures)
    print(table(found))
    draw_curves(found, arguments.output / "many_views.png")
    return found


def predictions(
    path: Path, models: tuple[Any, Any], count: int, options: argparse.Namespace
) -> Iterator[tuple[str, Any, float, Any]]:
    """Way, Gaussians, seconds and held-out photos, way after way."""
    import time

    import torch

    from pmsplat.scene import open_scene
    from pmsplat.scene.coverage import choose_context, look_around
    from pmsplat.scene.overlap import group_views, overlaps
    from pmsplat.zoo.fusion import fuse, predict_groups
    from pmsplat.zoo.infer import reconstruct

    scene = open_scene(path)
    kept = torch.linspace(0, len(scene) - 1, min(PHOTOS, len(scene))).round().long().tolist()
    step = len(kept) // options.held_out
    held_out = kept[step // 2 :: step][: options.held_out]
    others = [photo for photo in kept if photo not in held_out]
    cameras = scene.cameras.at(others)
    chosen = choose_context(look_around(cameras), overlaps(cameras), min(count, len(others)))
    size = tuple(options.size)
    views, photos = scene.views([others[i] for i in chosen], size), scene.views(held_out, size)
    model, gathering = models

    began = time.perf_counter()
    whole = reconstruct(model, views).prediction.gaussians[-1]
    yield "one pass", whole, time.perf_counter() - began, photos
    began = time.perf_counter()
    groups = group_views(overlaps(views.cameras), options.group)
    parts = list(predict_groups(model, views, groups))
    passed = time.perf_counter() - began
    for how in FUSED:
        began = time.perf_counter()
        with torch.no_grad():
            fused = fuse(parts, how)
        yield how, fused, passed + time.perf_counter() - began, photos
    if gathering is not None:
        began = time.perf_counter()
        whole = reconstruct(gathering, views).prediction.gaussians[-1]
        yield "anchors", whole, time.perf_counter() - began, photos


def compare(gaussians: Any, photos: Any) -> tuple[dict[str, float], Any]:
    """The means over the photos, and the picture of the first."""
    import torch

    import pmsplat
    from pmsplat.evaluate.metrics import psnr

    with torch.no_grad():
        drawn = pmsplat.rasterize(gaussians, photos.cameras, photos.size).color[0]
    gray = torch.tensor(LUMINANCE)[:, None, None]
    brighter = ((drawn.clamp(0, 1) - photos.images[0]) * gray).sum(dim=1).mean()
    value = {
        "psnr": round(float(psnr(drawn, photos.images[0]).mean()), 4),
        "luminance": round(255 * float(brighter), 3),
        "gaussians": gaussians.means.shape[1],
    }
    return value, drawn[0]


def seeds_of(found: dict[str, Any], way: str, count: str, what: str) -> list[float]:
    """The mean over scenes, seed by seed."""
    from statistics import mean

    scenes = found[way][count].values()
    return [mean(values) for values in zip(*([v[what] for v in s] for s in scenes), strict=True)]


def table(found: dict[str, Any]) -> str:
    """A line for each number of views and way."""
    lines = [f"{'views':>5} {'way':10}{'PSNR':>14}{'luminance':>14}{'Gaussians':>12}{'s':>8}"]
    for count in found["one pass"]:
        for way in found:
            psnr, bright, number, seconds = (
                seeds_of(found, way, count, what)
                for what in ("psnr", "luminance", "gaussians", "seconds")
            )
            lines.append(
                f"{count:>5} {way:10}{spread(psnr):>14}{spread(bright, sign='+'):>14}"
                f"{sum(number) / len(number):>12,.0f}{sum(seconds) / len(seconds):>8.2f}"
            )
    return "\n".join(lines)


def draw_curves(found: dict[str, Any], path: Path) -> None:
    """PSNR, luminance and Gaussians against the number of views."""
    from statistics import mean

    from matplotlib.figure import Figure

    labels = {
        "psnr": "PSNR, dB", "luminance": "drawn - photographed luminance, 1/255",
        "gaussians": "Gaussians",
    }  # fmt: skip
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, len(labels))
    for axis, (what, label) in zip(axes, labels.items(), strict=True):
        for way in found:
            counts = [int(count) for count in found[way]]
            axis.plot(
                counts, [mean(seeds_of(found, way, c, what)) for c in found[way]], "o-", label=way
            )
        axis.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="views", ylabel=label)
        axis.minorticks_off()
    axes[0].legend()
    axes[1].axhline(0, color="gray", linewidth=0.8)
    axes[2].set_yscale("log")
    figure.savefig(path, dpi=100)


def write_pictures(path: Path, rows: Sequence[tuple[str, list[Any]]]) -> None:
    """A row for each number of views."""
    from pmsplat.view import figures

    figures.contact_sheet(list(rows), path, height=192)

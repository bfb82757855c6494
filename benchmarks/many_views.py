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
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
PHOTOS = 80  # of a scene that count, at most, evenly spread


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="posed photos")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME|PATH")
    parser.add_argument("--gathering", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument(
        "--views", type=int, nargs="+", default=[2, 4, 8, 16, 32], metavar="N",
        help="numbers of context views (default: 2 4 8 16 32)",
    )  # fmt: skip
    parser.add_argument("--group", type=int, default=4, help="views of a group (default: 4)")
    parser.add_argument("--held-out", type=int, default=8, help="photos to compare (default: 8)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"),
        help="of the photographs (default: 256 256)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the table, draws; gives every value."""
    from pmsplat.scene import open_scene
    from pmsplat.zoo.load import load

    scenes = [open_scene(path) for path in arguments.scenes]
    found: dict[str, Any] = {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(arguments.models):
        gathering = arguments.gathering[seed] if seed < len(arguments.gathering) else None
        models = load(name), None if gathering is None else load(gathering)
        for path, scene in zip(arguments.scenes, scenes, strict=True):
            held_out, others = divide(len(scene), arguments.held_out)
            photos, pictures = scene.views(held_out, tuple(arguments.size)), []
            for count in arguments.views:
                row = [photos.images[0, 0]]
                views = choose(scene, others, count, arguments)
                for way, gaussians, seconds in predictions(views, models, arguments.group):
                    value, drawn = compare(gaussians, photos)
                    value["seconds"] = round(seconds, 3)
                    measured = found.setdefault(way, {}).setdefault(str(count), {})
                    measured.setdefault(path.name, []).append(value)
                    row.append(drawn)
                pictures.append((f"{count} views: photo | {' | '.join(found)}", row))
            if seed == 0:
                write_pictures(arguments.output / f"{path.name}.png", pictures)
    print(table(found))
    draw_curves(found, arguments.output / "many_views.png")
    return found


def divide(photos: int, held_out: int) -> tuple[list[int], list[int]]:
    """Photos to compare with, evenly spread over those that count, and the others."""
    import torch

    kept = torch.linspace(0, photos - 1, min(PHOTOS, photos)).round().long().tolist()
    step = len(kept) // held_out
    apart = kept[step // 2 :: step][:held_out]
    return apart, [photo for photo in kept if photo not in apart]


def choose(scene: Any, others: list[int], count: int, options: argparse.Namespace) -> Any:
    """So many views of the others, by what they cover."""
    from pmsplat.scene.coverage import choose_context, look_around
    from pmsplat.scene.overlap import overlaps

    cameras = scene.cameras.at(others)
    chosen = choose_context(look_around(cameras), overlaps(cameras), min(count, len(others)))
    return scene.views([others[i] for i in chosen], tuple(options.size))


def predictions(
    views: Any, models: tuple[Any, Any], group: int
) -> Iterator[tuple[str, Any, float]]:
    """Way, Gaussians and seconds, way after way."""
    import time

    import torch

    from pmsplat.scene.overlap import group_views, overlaps
    from pmsplat.zoo.fusion import fuse, predict_groups
    from pmsplat.zoo.infer import reconstruct

    model, gathering = models
    began = time.perf_counter()
    whole = reconstruct(model, views).prediction.gaussians[-1]
    yield "one pass", whole, time.perf_counter() - began
    began = time.perf_counter()
    groups = group_views(overlaps(views.cameras), group)
    parts = list(predict_groups(model, views, groups))
    passed = time.perf_counter() - began
    for how in FUSED:
        began = time.perf_counter()
        with torch.no_grad():
            fused = fuse(parts, how)
        yield how, fused, passed + time.perf_counter() - began
    if gathering is not None:
        began = time.perf_counter()
        whole = reconstruct(gathering, views).prediction.gaussians[-1]
        yield "anchors", whole, time.perf_counter() - began


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
    counts = [int(count) for count in found["one pass"]]
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, len(labels))
    for axis, (what, label) in zip(axes, labels.items(), strict=True):
        for way in found:
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

"""Optimising one scene from SfM points, from random points, and from a model's prediction.

python benchmarks/run.py refine SCENE --model NAME|PATH --output starts/ --steps 1000 --size 96 128
    starts/START/ as `pmsplat refine` leaves it, of each start that is possible, and curves.png:
    PSNR of the held-out photos over the steps and over the seconds

Seconds count the making of the start (loading a model and predicting included) and the steps, but
not the comparisons, nor what found the cameras and the sparse points. A start that is not possible
(points: the scene has none; prediction: no --model) is left out, which is said.
"""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("scene", metavar="SCENE", help="posed photos, as for `pmsplat refine`")
    parser.add_argument("--model", metavar="NAME|PATH", help="whose prediction to start from")
    parser.add_argument("--weights", metavar="FILE", help="the file of a published model")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path)
    parser.add_argument("--steps", type=int, default=1000, help="of each start (default: 1000)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[96, 128], help="height width (default: 96 128)"
    )
    parser.add_argument("--strategy", metavar="NAME", help="as for `pmsplat refine`")
    parser.add_argument("--most", type=int, metavar="N", help="bound of the number of Gaussians")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the summary of each start."""
    from dataclasses import asdict

    from rich.console import Console

    from pmsplat.tasks.refine import Options, refine

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    common = Options(
        steps=arguments.steps,
        size=tuple(arguments.size),
        strategy=arguments.strategy,
        most=arguments.most,
        overwrite=arguments.overwrite,
    )
    summaries = {}
    for start, options in starts(arguments.scene, arguments.model, arguments.weights, common):
        if isinstance(options, str):
            print(f"{start:10}  left out: {options}")
            continue
        summaries[start] = refine(
            arguments.scene, arguments.output / start, options, tell=console.print
        )
        print(f"{start:10}  {said(summaries[start])}")
    plot(arguments.output / "curves.png", Path(arguments.scene).name, summaries)
    return {start: asdict(summary) for start, summary in summaries.items()}


def starts(
    scene: str, model: str | None, weights: str | None, common: Any
) -> list[tuple[str, Any]]:
    """Each start with its options, or with the reason why it is left out."""
    from dataclasses import replace

    from pmsplat.scene import open_scene

    points = open_scene(scene).points
    predicted = replace(common, start="prediction", model=model, weights=weights)
    return [
        ("prediction", "no --model" if model is None else predicted),
        (
            "points",
            "the scene has no sparse points" if points is None else replace(common, start="points"),
        ),
        ("random", replace(common, start="random")),
    ]


def said(summary: Any) -> str:
    """One start in a line."""
    seconds = summary.start_seconds + summary.after.seconds
    return (
        f"{summary.before.gaussians:6} -> {summary.after.gaussians:6} Gaussians, held-out PSNR "
        f"{summary.before.psnr:5.2f} -> {summary.after.psnr:5.2f} dB in {seconds:.1f} s "
        f"({summary.start_seconds:.1f} s to start), strategy {summary.strategy}"
    )


def plot(path: Path, title: str, summaries: dict[str, Any]) -> None:
    """PSNR over the steps and over the seconds, one line for each start."""
    from matplotlib.figure import Figure

    from pmsplat.io.files import atomic

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for start, summary in summaries.items():
        psnr = [moment.psnr for moment in summary.history]
        steps = [moment.step for moment in summary.history]
        seconds = [summary.start_seconds + moment.seconds for moment in summary.history]
        left.plot(steps, psnr, marker="o", markersize=3, label=f"from {start}")
        right.plot(seconds, psnr, marker="o", markersize=3, label=f"from {start}")
    left.set(xlabel="steps", ylabel="PSNR of held-out photos, dB")
    right.set(xlabel="seconds, the start included")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend()
    figure.suptitle(title)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

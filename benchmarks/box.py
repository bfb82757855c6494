"""The small encoder that ships: what it is worth on scenes it never saw, against training time.

python benchmarks/run.py box datasets/held --models pretrained/pmsplat-small-v1.safetensors
python benchmarks/run.py box datasets/val --models snapshots/*.safetensors --plot curve.png

The folder has chunks in test/ and an evaluation index, index.json. Each model is measured beside
the nearest photo and the plane sweep: PSNR and SSIM of held-out photographs, AbsRel of the depth of
the context views where there is a sensor's. Scenes whose keys are NAME-NUMBER are windows of one
place, NAME: means are over the windows of a place, then over places. --plot draws the mean PSNR of
every model against the seconds of training that its file is named by (00600.safetensors).
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

METRICS = ("psnr", "ssim", "abs_rel")

Values = dict[str, float]


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("data", type=Path, metavar="FOLDER", help="test/ and index.json")
    parser.add_argument(
        "--models",
        nargs="*",
        default=[],
        type=Path,
        metavar="PATH",
        help="checkpoints beside the baselines (default: none)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[192, 256],
        metavar=("H", "W"),
        help="of the photographs (default: 192 256)",
    )
    parser.add_argument(
        "--known", type=Path, metavar="JSON", help="an earlier --json: what it has is kept"
    )
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="PSNR against training time")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables, draws; gives every value."""
    from pmsplat import registry
    from pmsplat.evaluate import baselines, protocol
    from pmsplat.zoo.load import load

    root = arguments.data
    settings = {"root": str(root), "index": str(root / "index.json"), "size": arguments.size}
    data = registry.build("data", "folder", registry.make_config("data", "folder", settings))
    runs: dict[str, Any] = dict(baselines.BASELINES)
    for path in arguments.models:
        runs[path.stem] = protocol.pipeline(load(path), scale_near=True)
    found: dict[str, Any] = read_known(arguments.known, arguments.size)
    for name, measured in runs.items():
        if name in found:
            continue
        result = protocol.evaluate(measured, data.evaluation())
        places = by_place({row.scene: row.values for row in result.rows})
        found[name] = {"mean": _mean(places.values()), "places": places}
        print(f"{name:32}", *(f"{k} {v:.3f}" for k, v in found[name]["mean"].items()), flush=True)
    _print_places(found)
    if arguments.plot is not None:
        plot({k: v["mean"]["psnr"] for k, v in found.items()}, arguments.plot)
    return {"size": arguments.size, "runs": found}


def read_known(path: Path | None, size: list[int]) -> dict[str, Any]:
    """What an earlier run measured; UserError where that was at another size."""
    from pmsplat.errors import UserError

    if path is None:
        return {}
    figures = json.loads(path.read_text())["figures"]
    if figures["size"] != list(size):
        raise UserError(
            f"{path}, measured at {figures['size']}", f"one of {list(size)}", "leave --known out"
        )
    return figures["runs"]


def by_place(scenes: dict[str, Values]) -> dict[str, Values]:
    """Means over the windows of each place."""
    places: dict[str, list[Values]] = {}
    for key, values in scenes.items():
        places.setdefault(key.rpartition("-")[0] or key, []).append(values)
    return {place: _mean(rows) for place, rows in places.items()}


def _mean(rows: Iterable[Values]) -> Values:
    rows = list(rows)
    return {
        name: mean(row[name] for row in rows if name in row)
        for name in METRICS
        if any(name in row for row in rows)
    }


def _print_places(found: dict[str, Any]) -> None:
    names = list(found)
    print("\nPSNR of each place:", ", ".join(names))
    for place in found[names[0]]["places"]:
        values = [f"{found[name]['places'][place]['psnr']:7.2f}" for name in names]
        print(f"{place:24}", *values)


def plot(psnr: Values, out: Path) -> None:
    """Mean PSNR against the minutes that a model's name says, and the baselines as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    curve = sorted((int(name) / 60, value) for name, value in psnr.items() if name.isdecimal())
    axes.plot([x for x, _ in curve], [y for _, y in curve], marker="o", label="small encoder")
    for name, value in psnr.items():
        if not name.isdecimal():
            axes.axhline(value, linestyle="--", color="gray")
            axes.annotate(name, (0, value), va="bottom")
    axes.set(xlabel="minutes of training", ylabel="PSNR of held-out views, dB")
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)

"""Seconds and memory of one forward pass of every published architecture.

python benchmarks/run.py published --size 256 256 --views 2
    with random weights, which do not change the speed, so nothing is downloaded

Models that differ in weights or settings alone share a row, under the name of the first. Each is
measured in a process of its own; peak memory is what stands above the loaded model. Of models that
work in steps, `forward` has all their steps, `initial` none.

With --peer, the official encoder of the same settings is measured in the same process, a pass of it
after each of ours: neighbors on a machine and its clock change both alike.
"""

import argparse
from pathlib import Path
from typing import Any

from pmsplat.errors import UserError
from pmsplat.registry import suggest

from . import peer
from .measure import at_least


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument(
        "--models", nargs="*", metavar="NAME", help="only these (default: one of each architecture)"
    )
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        default=[256, 256],
        help="height width (default: 256 256)",
    )
    parser.add_argument("--views", type=at_least(2), default=2, help="context views (default: 2)")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed calls (default: 5)")
    parser.add_argument(
        "--peer",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="checkouts of cvg/depthsplat (as of 2025, of October 2024) and donydchen/mvsplat",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a row per architecture; gives the figures by name."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from pmsplat.zoo.load import ZOO

    names = arguments.models or architectures()
    if unknown := [name for name in names if name not in ZOO]:
        raise UserError(
            f"--models {unknown[0]}",
            "names of published models, which `pmsplat models` lists",
            suggest(unknown[0], list(ZOO)),
        )
    with peer.wanted():
        official = {peer.model_of(checkout): checkout for checkout in arguments.peer}
    found = {}
    spawning = multiprocessing.get_context("spawn")
    print(f"{'model':52} parameters  forward s  peak MiB above the model")
    for name in names:
        with ProcessPoolExecutor(1, mp_context=spawning) as alone:
            figures = alone.submit(forward, name, arguments, official.get(ZOO[name].model)).result()
        count = f"{ZOO[name].parameters / 1e6:.1f} M"
        seconds = figures["forward"]["median_ms"] / 1000
        print(f"{name:52} {count:>10}  {seconds:9.2f}  {figures['peak_mib']}{_more(figures)}")
        found[name] = {"parameters": ZOO[name].parameters, **figures}
    return {"size": arguments.size, "views": arguments.views, "models": found}


def _more(figures: dict[str, Any]) -> str:
    """What the row says of the official code and of steps."""
    words = ""
    if "official" in figures:
        theirs = figures["official"]
        share = figures["forward"]["median_ms"] / theirs["forward"]["median_ms"]
        seconds = theirs["forward"]["median_ms"] / 1000
        words += f"; official {seconds:.2f} s ({share:.2f} of it), {theirs['peak_mib']} MiB"
        words += f", {theirs['gflop']} GFLOP"
    if "initial" in figures:
        initial = figures["initial"]["forward"]["median_ms"]
        step = (figures["forward"]["median_ms"] - initial) / figures["steps"]
        peak = figures["initial"]["peak_mib"]
        words += f"; initial {initial / 1000:.2f} s, {peak} MiB, a step {step / 1000:.2f} s"
    return words


def forward(name: str, arguments: argparse.Namespace, checkout: Path | None) -> dict[str, Any]:
    """Time and memory of one model, and of the official one where there is a checkout of it."""
    import torch

    from pmsplat import registry
    from pmsplat.cli import _heap
    from pmsplat.contracts import encoder_traits, take_steps
    from pmsplat.zoo.load import ZOO

    from .encoder import photographs
    from .measure import use_threads

    _heap.keep()
    use_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = registry.build("models", ZOO[name].model, ZOO[name].settings | {"published": True})
    views = photographs(arguments.views, *arguments.size).to(device)
    model = model.to(device).eval()
    if checkout is not None:
        try:
            official = peer.encoder(
                checkout, ZOO[name].model, ZOO[name].settings, arguments.views
            ).to(device)
        except peer.Missing as reason:
            print(f"{name}: no official model: {reason}")
        else:
            return beside(model, official, views, arguments.repeats)
    figures = measure(model, views, arguments.repeats)
    if steps := encoder_traits(model).steps:
        initial = measure(take_steps(model, 0), views, arguments.repeats)
        figures |= {"steps": steps, "initial": initial}
    return figures


def measure(model: Any, views: Any, repeats: int) -> dict[str, Any]:
    """Time and memory of forward passes of one model."""
    import torch

    from .measure import figures, peak_mib, timed

    with torch.inference_mode():
        timing = timed(lambda _: model(views), repeats)
        return figures({"forward": timing}, peak_mib=peak_mib(lambda: model(views)))


def beside(model: Any, official: Any, views: Any, repeats: int) -> dict[str, Any]:
    """Both models by turns; they must have equally many parameters.

    `gflop`: operations of the official one's products, convolutions and attention.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .measure import alternately, figures, peak_mib

    ours, theirs = (sum(p.numel() for p in each.parameters()) for each in (model, official))
    assert ours == theirs, f"{ours} parameters, but {theirs} of the official model"
    with torch.inference_mode():
        calls = {"ours": lambda: model(views), "official": lambda: peer.predict(official, views)}
        times = alternately(calls, repeats)
        rows = {
            name: figures({"forward": times[name]}, peak_mib=peak_mib(call))
            for name, call in calls.items()
        }
        with FlopCounterMode(display=False) as counter:
            calls["official"]()
    gflop = round(counter.get_total_flops() / 1e9)
    return rows["ours"] | {"official": rows["official"] | {"gflop": gflop}}


def architectures() -> list[str]:
    """The first published name of each architecture."""
    from pmsplat.zoo.load import ZOO

    first: dict[int, str] = {}
    for name, published in ZOO.items():
        first.setdefault(published.parameters, name)
    return list(first.values())

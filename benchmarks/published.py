"""Seconds and memory of one forward pass of every published architecture.

python benchmarks/run.py published --size 256 256 --views 2
    with random weights, which do not change the speed, so nothing is downloaded

Models that differ in weights or settings alone share a row, under the name of the first. Each is
measured in a process of its own; peak memory is what stands above the loaded model. Of models that
work in steps, `forward` has all their steps, `initial` none.
"""

import argparse
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], help="height width")
    parser.add_argument("--views", type=int, default=2, help="context views (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default: 5)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a row per architecture; gives the figures by name."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from pmsplat.zoo.load import ZOO

    found = {}
    spawning = multiprocessing.get_context("spawn")
    print(f"{'model':52} parameters  forward s  peak MiB above the model")
    for name in arguments.models or architectures():
        with ProcessPoolExecutor(1, mp_context=spawning) as alone:
            figures = alone.submit(forward, name, arguments).result()
        count = f"{ZOO[name].parameters / 1e6:.1f} M"
        seconds = figures["forward"]["median_ms"] / 1000
        print(f"{name:52} {count:>10}  {seconds:9.2f}  {figures['peak_mib']}{_steps(figures)}")
        found[name] = {"parameters": ZOO[name].parameters, **figures}
    return {"size": arguments.size, "views": arguments.views, "models": found}


def _steps(figures: dict[str, Any]) -> str:
    if "initial" not in figures:
        return ""
    initial = figures["initial"]["forward"]["median_ms"]
    step = (figures["forward"]["median_ms"] - initial) / figures["steps"]
    peak = figures["initial"]["peak_mib"]
    return f"; initial {initial / 1000:.2f} s, {peak} MiB, a step {step / 1000:.2f} s"


def forward(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of one model."""
    import torch

    from pmsplat import registry
    from pmsplat.cli import _heap
    from pmsplat.contracts import encoder_traits, take_steps
    from pmsplat.zoo.load import ZOO

    from .encoder import measure, photographs
    from .measure import use_threads

    _heap.keep()
    use_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = registry.build("models", ZOO[name].model, ZOO[name].settings | {"published": True})
    views = photographs(arguments.views, *arguments.size).to(device)
    model = model.to(device).eval()
    figures = measure(model, views, "float32", arguments.repeats)
    if steps := encoder_traits(model).steps:
        initial = measure(take_steps(model, 0), views, "float32", arguments.repeats)
        figures |= {"steps": steps, "initial": initial}
    return figures


def architectures() -> list[str]:
    """The first published name of each architecture."""
    from pmsplat.zoo.load import ZOO

    first: dict[int, str] = {}
    for name, published in ZOO.items():
        first.setdefault(published.parameters, name)
    return list(first.values())

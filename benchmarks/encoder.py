"""Seconds and memory of an encoder: forward passes by precision, and a training step.

python benchmarks/run.py encoder --settings lowest=4 scales=1 --size 256 256 --views 2
    the small DepthSplat on two views of 256x256, with random weights: they do not change the speed

"bfloat16" is `pmsplat.compile(model, precision="bf16")`, whose weights are cast once; "autocast" is
torch's, which casts them in every pass. Both are fast on a CPU only where it multiplies bfloat16
itself; their error is that of the depth, in the mean, relative to float32. The training step is a
forward pass and the gradients of its weights, without a renderer. All are measured by turns; peak
memory is what stands above the loaded model. With --peer, the official encoder of the same settings
is measured too.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .measure import at_least


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--model", default="depthsplat", help="a component (default: depthsplat)")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of the model's Config"
    )
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        default=[256, 256],
        help="height width (default: 256 256)",
    )
    parser.add_argument("--views", type=at_least(2), default=2, help="context views (default: 2)")
    parser.add_argument("--repeats", type=at_least(1), default=7, help="timed calls (default: 7)")
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a checkout of the official code")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the figures by what was measured."""
    import torch

    import pmsplat
    from pmsplat import registry

    from . import peer
    from .measure import alternately, figures, peak_mib

    settings = {name: value for name, value in map(setting, arguments.settings)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    official = None
    if arguments.peer is not None:
        with peer.wanted():
            official = peer.encoder(arguments.peer, arguments.model, settings, arguments.views)
        official = official.to(device)
    torch.manual_seed(0)
    model = registry.build("models", arguments.model, settings).to(device).eval()
    views = photographs(arguments.views, arguments.size[0], arguments.size[1]).to(device)
    half = pmsplat.compile(model, precision="bf16")
    calls = ways(lambda: model(views), device) | {"bfloat16": lambda: half(views)}
    calls["training step"] = lambda: step(model, model(views))
    if official is not None:
        theirs = ways(lambda: peer.predict(official, views), device)
        theirs["training step"] = lambda: step(official, peer.predict(official, views))
        calls |= {f"official {name}": call for name, call in theirs.items()}
    exact = calls["float32"]().depths[-1]
    times = alternately(calls, arguments.repeats)
    found = {}
    print(f"{'':24} ms (quartiles)                peak MiB above the model  error of depth")
    for name, call in calls.items():
        error = {}
        if name in ("autocast", "bfloat16"):
            error["depth_error"] = float((call().depths[-1] / exact - 1).abs().mean())
        found[name] = figures({"time": times[name]}, peak_mib=peak_mib(call), **error)
        said = f"{error['depth_error']:.1e}" if error else ""
        print(f"{name:24} {times[name]!s:29} {found[name]['peak_mib']!s:25} {said}")
    return {
        "model": arguments.model,
        "settings": settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "size": arguments.size,
        "views": arguments.views,
        **found,
    }


def ways(predict: Callable[[], Any], device: str) -> dict[str, Callable[[], Any]]:
    """A forward pass in float32, and under autocast to bfloat16."""
    import torch

    def within(half: bool) -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, half):
            return predict()

    return {"float32": lambda: within(False), "autocast": lambda: within(True)}


def step(model: Any, output: Any) -> None:
    """The gradients of all weights: of the mean of all floating tensors of the output."""
    import torch

    from . import peer

    means = [each.float().mean() for each in peer.predicted(output)]
    torch.stack(means).sum().backward()
    model.zero_grad(set_to_none=True)


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as a number or truth value where it is one.

    Raises UserError where there is no equals sign.
    """
    import ast

    from pmsplat.errors import UserError

    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--settings {text!r}", "NAME=VALUE", "write for instance scales=2")
    words = {"true": True, "false": False}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def photographs(count: int, height: int, width: int) -> Any:
    """Noise seen by cameras side by side."""
    import torch

    from pmsplat.types import Cameras, Views

    generator = torch.Generator().manual_seed(0)
    c2w = torch.eye(4).repeat(1, count, 1, 1)
    c2w[0, :, 0, 3] = 0.2 * torch.arange(count)
    K = torch.tensor([[0.9, 0, 0.5], [0, 0.9 * width / height, 0.5], [0, 0, 1]])
    near = torch.full((1, count), 0.5)
    cameras = Cameras(c2w, K.repeat(1, count, 1, 1), near, 200 * near)
    return Views(torch.rand(1, count, 3, height, width, generator=generator), cameras)

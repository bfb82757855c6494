"""Milliseconds and memory of one forward pass of an encoder, in float32 and bfloat16.

python benchmarks/run.py encoder --settings lowest=4 scales=1 --size 256 256 --views 2
    the small DepthSplat on two views of 256x256, with random weights: they do not change the speed

Peak memory is what stands above the loaded model. On the CPU, bfloat16 is autocast and is fast only
where the processor multiplies bfloat16 itself.
"""

import argparse
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--model", default="depthsplat", help="a component (default: depthsplat)")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of the model's Config"
    )
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], help="height width")
    parser.add_argument("--views", type=int, default=2, help="context views (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls (default: 7)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the figures by precision."""
    import torch

    from pmsplat import registry

    settings = {name: value for name, value in map(setting, arguments.settings)}
    torch.manual_seed(0)
    model = registry.build("models", arguments.model, settings).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    views = photographs(arguments.views, arguments.size[0], arguments.size[1]).to(device)
    found = {}
    print("precision  forward ms (quartiles)      peak MiB above the model")
    for precision in ("float32", "bfloat16"):
        found[precision] = measure(model.to(device), views, precision, arguments.repeats)
        time = "{median_ms:8.1f} ({low_ms:.1f}-{high_ms:.1f})".format(**found[precision]["forward"])
        print(f"{precision:9}  {time:26}  {found[precision]['peak_mib']}")
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "model": arguments.model,
        "settings": settings,
        "parameters": parameters,
        "size": arguments.size,
        "views": arguments.views,
        **found,
    }


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


def measure(model: Any, views: Any, precision: str, repeats: int) -> dict[str, Any]:
    """Forward time and peak memory in one precision."""
    import torch

    from .measure import figures, peak_mib, timed

    def forward() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(views.images.device.type, torch.bfloat16, precision == "bfloat16"),
        ):
            return model(views)

    timing = timed(lambda _: forward(), repeats)
    return figures({"forward": timing}, peak_mib=peak_mib(forward))

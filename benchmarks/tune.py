"""Which way of a product, a convolution or an attention is fastest on this CPU: renews its rules.

python benchmarks/run.py tune
    measures every way of every class of shapes, and writes the row of this machine's instruction
    set into src/pmsplat/kernels/cpu_rules.json: about five minutes on two cores

Run it where nothing else runs. The ways of a shape are timed in turns, so that they suffer alike
from what else the machine does. A way replaces the default where it takes at most 90 % of its time,
in the geometric mean over the shapes of a class, which are those of the published encoders, and
saves 0.1 ms of a call; one that rounds more, as Winograd's transforms do, where it takes at most
80 %.
Afterwards a forward pass and a training step of the small encoder are timed with and without the
rules. Commit the table: other machines with these instructions follow it then.

A processor stands in for lesser ones of its maker where the libraries are kept from some of its
instructions. The row then names what kept them:
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
    NUMBA_CPU_NAME=haswell python benchmarks/run.py tune
"""

import argparse
import json
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pmsplat.errors import UserError

from .measure import at_least

WORTH_IT = 0.9  # share of the default's time up to which a way is chosen: two runs differ by less
WORTH_ROUNDING = 0.8  # the same for a way of ROUNDS_MORE
ROUNDS_MORE = {"winograd"}
WORTH_MS = 0.1  # of a call, saved at least
# Shapes of the published encoders on two views of 256x256, those with the most products of each
# class. Convolutions: n, inputs, outputs, height and width, kernel, stride. Products: tokens,
# inputs, outputs. Attention: batch, heads, tokens, channels of a head.
CONVOLUTIONS = (
    (2, 96, 96, 128, 3, 1), (1, 256, 256, 128, 3, 1), (2, 128, 128, 64, 3, 1),
    (2, 384, 384, 32, 3, 1), (2, 64, 64, 128, 3, 1), (1, 32, 32, 256, 3, 1), (2, 64, 64, 64, 3, 1),
    (1, 132, 37, 256, 3, 1), (1, 64, 64, 256, 3, 1), (2, 32, 32, 64, 3, 1), (2, 32, 32, 64, 1, 1),
    (2, 32, 32, 256, 1, 1),
    (2, 384, 384, 32, 3, 2), (2, 96, 128, 128, 3, 2), (2, 384, 384, 32, 1, 1),
    (2, 512, 128, 64, 1, 1), (2, 320, 96, 128, 1, 1), (2, 64, 64, 128, 1, 1),
)  # fmt: skip
LINEAR = (
    (650, 384, 1152), (650, 384, 1536), (650, 1536, 384), (650, 768, 3072), (650, 1024, 4096),
    (650, 4096, 1024), (8192, 256, 1024), (8192, 1024, 128), (8192, 128, 128), (8192, 128, 256),
    (512, 128, 128),
)  # fmt: skip
PRODUCTS = ((256, 128, 1024), (256, 1024, 128), (325, 64, 325), (325, 325, 64), (128, 64, 128))
ATTENTIONS = ((8, 1, 1024, 128), (2, 16, 325, 64), (2, 12, 325, 64), (8, 1, 64, 128),
              (1, 4, 512, 32), (1, 4, 128, 32))  # fmt: skip
GELU = tuple(shape for shape in LINEAR if shape[2] == 4 * shape[1])
WHERE = {"linear": LINEAR, "linear gelu": GELU, "product": PRODUCTS, "conv": CONVOLUTIONS,
         "attention": ATTENTIONS}  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """A way beside the default on the shapes of a class."""

    share: float  # of the default's time, geometric mean
    saved_ms: float  # of a call, mean


@dataclass(frozen=True)
class Trial:
    """One shape of a class, and a call that computes it by the rules that are followed."""

    operation: str
    shape: str
    call: Callable[[], None]


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*WHERE],
        metavar="OPERATION",
        help=f"of {', '.join(WHERE)} (default: all)",
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=5, help="timed calls of each (default: 5)"
    )
    parser.add_argument("--table", type=Path, help="the table to renew (default: the shipped one)")
    parser.add_argument(
        "--smaller",
        type=int,
        choices=(1, 2, 4, 8),
        default=1,
        help="divides all sizes, for a trial, which renews no table but a named one (default: 1)",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a line for each class; gives the times, and writes the rules."""
    from pmsplat.kernels import cpu_rules

    name, table = cpu_rules.instruction_set(), find_table(arguments)
    if table is None:
        print("A trial at smaller sizes: no table is renewed, as none is named with --table.")
    rules, found = cpu_rules.Rules(name), {}
    print(f"{name}: operation and class of shapes, the way, its time / that of the default")
    for operation in arguments.only or WHERE:
        timings = measure(operation, rules, arguments)
        for shape, by_way in timings.items():
            usual = cpu_rules.WAYS[operation][0]
            chosen = choose(by_way) or usual
            if chosen != usual:
                rules = rules.having(operation, shape, chosen)
            others = ", ".join(f"{way} {by_way[way].share:.2f}" for way in sorted(by_way))
            print(f"{operation:9} {shape:42} {chosen:8} {others}", flush=True)
        found[operation] = {
            shape: {way: asdict(timing) for way, timing in by_way.items()}
            for shape, by_way in timings.items()
        }
    if table is not None:
        write(table, rules, [*(arguments.only or WHERE)])
    return {"instruction_set": name, "ways": found, "encoder": compare(rules, arguments)}


def choose(timings: dict[str, Timing]) -> str | None:
    """The fastest way that is worth it; None where none is."""
    worth = {
        way: timing.share
        for way, timing in timings.items()
        if timing.share <= (WORTH_ROUNDING if way in ROUNDS_MORE else WORTH_IT)
        and timing.saved_ms >= WORTH_MS
    }
    return min(worth, key=lambda way: worth[way], default=None)


def find_table(arguments: argparse.Namespace) -> Path | None:
    """The table to renew: the named one, else the shipped one; in a trial none but a named one.

    Raises UserError for a table in a folder that does not exist, and for a file that holds none.
    """
    from pmsplat.kernels import cpu_rules

    if arguments.table is None:
        return cpu_rules.TABLE if arguments.smaller == 1 else None
    if not arguments.table.parent.is_dir():
        raise UserError(
            f"--table {arguments.table}, whose folder does not exist",
            "a file in a folder that does",
            "correct the path, or make the folder",
        )
    if arguments.table.exists():
        cpu_rules.read(arguments.table)
    return arguments.table


def measure(
    operation: str, rules: Any, arguments: argparse.Namespace
) -> dict[str, dict[str, Timing]]:
    """The time of each way beside the default's, by class of shapes."""
    from pmsplat.kernels import cpu_rules

    seconds: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for trial in trials(operation, arguments.smaller):
        ways = possible(operation, trial.shape)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(arguments.rounds + 1):
            for way in ways:
                with cpu_rules.use(rules.having(operation, trial.shape, way)):
                    start = time.perf_counter()
                    trial.call()
                    if turn:  # the first one warms up
                        times[way].append(time.perf_counter() - start)
        usual = statistics.median(times[ways[0]])
        for way in ways:
            seconds[trial.shape][way].append((statistics.median(times[way]), usual))
    return {
        shape: {way: compared(pairs) for way, pairs in by_way.items()}
        for shape, by_way in seconds.items()
    }


def compared(seconds: list[tuple[float, float]]) -> Timing:
    """Of seconds of a way and of the default, for each shape of a class."""
    share = math.exp(statistics.mean(math.log(way / usual) for way, usual in seconds))
    saved = statistics.mean(usual - way for way, usual in seconds)
    return Timing(round(share, 3), round(1000 * saved, 3))


def possible(operation: str, shape: str) -> list[str]:
    """The ways that differ from others on a class of shapes, the default first."""
    from pmsplat.kernels import cpu_rules

    ways = list(cpu_rules.WAYS[operation])
    if shape.endswith("training"):
        ways = [way for way in ways if way not in cpu_rules.FORWARD_ONLY]
    if operation == "conv":
        others = {"product"} if shape.startswith("3x3") else {"taps", "winograd"}
        others |= {"last"} if "last" in shape else {"first"}  # the default's layout
        others |= {"taps", "product", "winograd"} if "/" in shape else set()
        ways = [way for way in ways if way not in others]
    return ways


def trials(operation: str, smaller: int) -> Iterator[Trial]:
    """Every shape, without gradients and with them."""
    make = {"conv": _convolutions, "attention": _attentions}.get(operation)
    for shape in WHERE[operation]:
        for training in (False, True):
            if make is not None:
                yield from make(shape, training, smaller)
            elif operation != "product" or not training:
                yield _product(operation, shape, training, smaller)


def _product(operation: str, shape: tuple[int, ...], training: bool, smaller: int) -> Trial:
    import torch

    from pmsplat.kernels import cpu_rules
    from pmsplat.kernels import linear as door

    tokens, inputs, outputs = shape
    x = torch.randn(max(1, tokens // smaller), inputs, requires_grad=training)
    weight = torch.randn(outputs, inputs, requires_grad=training)
    compute: Any = getattr(door, operation.replace(" ", "_"))
    name = cpu_rules.product_class(len(x), inputs, outputs, training)
    return Trial(operation, name, _calling(lambda: compute(x, weight), (x, weight), training))


def _convolutions(shape: tuple[int, ...], training: bool, smaller: int) -> Iterator[Trial]:
    """Of maps with channels first, and with channels last."""
    import torch

    from pmsplat.kernels import cpu_rules
    from pmsplat.kernels.convolution import FORMATS, conv2d

    n, inputs, outputs, side, kernel, stride = shape
    side = max(kernel, side // smaller)
    for form in FORMATS.values():
        x = torch.randn(n, inputs, side, side).contiguous(memory_format=form)
        weight = torch.randn(outputs, inputs, kernel, kernel).contiguous(memory_format=form)
        x, weight = x.requires_grad_(training), weight.requires_grad_(training)
        name = cpu_rules.conv_class(x, weight, stride, training)

        def compute(x: Any = x, weight: Any = weight) -> Any:
            return conv2d(x, weight, None, stride, kernel // 2)

        yield Trial("conv", name, _calling(compute, (x, weight), training))


def _attentions(shape: tuple[int, ...], training: bool, smaller: int) -> Iterator[Trial]:
    import torch

    from pmsplat.kernels import cpu_rules
    from pmsplat.kernels.attention import WIDE, WORTHWHILE, attention

    batch, heads, tokens, channels = shape
    for dtype in (torch.float32, torch.bfloat16):
        size = (batch, heads, max(2, tokens // smaller), channels)
        given = tuple(torch.randn(size, dtype=dtype, requires_grad=training) for _ in range(3))
        large = size[2] ** 2 >= WORTHWHILE
        half = dtype == torch.bfloat16
        name = cpu_rules.attention_class(channels >= WIDE, large, half, training)

        def compute(given: tuple[torch.Tensor, ...] = given) -> torch.Tensor:
            q, k, v = given
            return attention(q, k, v)

        yield Trial("attention", name, _calling(compute, given, training))


def _calling(compute: Callable[[], Any], leaves: tuple[Any, ...], training: bool) -> Any:
    """Computes, and with gradients goes back too."""
    import torch

    def call() -> None:
        with torch.set_grad_enabled(training):
            out = compute()
            if training:
                torch.autograd.grad(out, leaves, torch.ones_like(out))

    return call


def write(table: Path, rules: Any, operations: list[str]) -> None:
    """Renews the row of these instructions: the rules of the operations that were measured."""
    import torch

    from pmsplat.io.files import write_text
    from pmsplat.kernels import cpu_rules

    from .measure import conditions

    rows = json.loads(table.read_text()) if table.exists() else {}
    kept = rows.get(rules.name, {}).get("rules", {})
    kept = {operation: rows for operation, rows in kept.items() if operation not in operations}
    for (operation, shape), way in sorted(rules.ways.items()):
        kept.setdefault(operation, {})[shape] = way
    said = conditions()
    rows[rules.name] = {
        "measured": {
            "processor": said["processor"] if "processor" in said else said["device"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": said["date"],
            **{name: os.environ[name] for name in cpu_rules.LIMITS if name in os.environ},
        },
        "rules": kept,
    }
    write_text(table, json.dumps(dict(sorted(rows.items())), indent=2) + "\n")
    print(f"wrote the row {rules.name} of {table}")


def compare(rules: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the small encoder without rules and with them, in turns."""
    import torch

    from pmsplat import registry
    from pmsplat.kernels import cpu_rules

    from .encoder import photographs

    torch.manual_seed(0)
    tiny = {"vit": "none", "width": 32, "planes": 8} if arguments.smaller > 1 else {}
    model = registry.build("models", "depthsplat", tiny).eval()
    side = 256 // arguments.smaller
    views = photographs(2, side, side)

    def predict() -> None:
        with torch.inference_mode():
            model(views)

    def learn() -> None:
        found = model(views)
        total = found.depths[-1].mean() + found.gaussians[-1].sh.square().mean()
        total.backward()

    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(arguments.rounds // 2 + 2):
        for label, followed in (("default", cpu_rules.DEFAULTS), ("rules", rules)):
            for job in (predict, learn):
                with cpu_rules.use(followed):
                    start = time.perf_counter()
                    job()
                    if turn:
                        seconds[f"{job.__name__}, {label}"].append(time.perf_counter() - start)
    found = {name: round(statistics.median(some), 3) for name, some in seconds.items()}
    print(f"{'small encoder, s':20} {'default':>9} {'rules':>9}")
    for job in ("predict", "learn"):
        print(f"{job:20} {found[f'{job}, default']:9.3f} {found[f'{job}, rules']:9.3f}")
    return found

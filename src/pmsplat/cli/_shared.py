"""What verbs share: how they speak and show progress, and options that mean the same in each."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console

    from ..scene import PhotoOptions

T = TypeVar("T", bound="DataclassInstance")

UNBOUNDED = 1000  # columns of an output that is no terminal: tables are as wide as they need


def output() -> "Console":
    """Standard output, for results."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    return console


class Served(Protocol):
    """A page that is served."""

    @property
    def address(self) -> str: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Terminal:
    """Standard error: `tell` prints a line, `track` is a task's progress, a bar where one looks."""

    tell: Callable[[str], None]
    track: Any


def terminal(arguments: argparse.Namespace | None = None) -> Terminal:
    """The terminal of this run; `tell` prints text as it is, brackets included.

    With the arguments of a verb, parameters in backticks become its flags: see `cli.name_flags`.
    """
    from functools import partial

    from rich.console import Console
    from rich.progress import track

    from . import name_flags

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    hidden = not console.is_terminal

    def tell(text: str) -> None:
        console.print(text if arguments is None else name_flags(text, arguments))

    return Terminal(tell, partial(track, console=console, transient=True, disable=hidden))


def serve_until_ctrl_c(page: "Served", tell: Callable[[str], None]) -> None:
    """Says where a page is, and closes it after Ctrl-C."""
    import contextlib
    import threading

    try:
        tell(f"Open {page.address} in a browser; Ctrl-C ends.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        page.close()


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the work is done."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model predicts; `chosen_model` reads it."""
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="published model, or your checkpoint (default: the small one that ships)",
    )
    parser.add_argument("--weights", metavar="FILE", help="the file of a published model")


def chosen_model(arguments: argparse.Namespace, tell: Callable[[str], None]) -> str:
    """What `add_model` added, or the model that ships, which is said."""
    from ..errors import UserError
    from ..zoo.shipped import DEFAULT

    if arguments.model is not None:
        return arguments.model
    if arguments.weights is not None:
        raise UserError("`weights` alone", "the model that they belong to", "add `model`")
    tell(f"The model is {DEFAULT}, a small one that ships; `pmsplat models` lists larger ones.")
    return DEFAULT


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Which scenes of an evaluation index are measured, and whether all must be."""
    parser.add_argument(
        "--strict", action="store_true", help="stop where a scene of the index cannot be measured"
    )
    parser.add_argument(
        "--limit", type=int, help="only the first so many scenes of the index (default: all)"
    )


def add_graph(parser: argparse.ArgumentParser) -> None:
    """How the network runs on a GPU."""
    parser.add_argument(
        "--graph",
        action="store_true",
        help="run the network as CUDA graphs, which is faster from some ten passes on",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """How exactly the network computes."""
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bf16"),
        default="float32",
        help="of the network: tf32 is for GPUs, see docs/performance.md (default: float32)",
    )


def add_passes(parser: argparse.ArgumentParser) -> None:
    """How a model that has a choice goes through its views."""
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of a model that works in steps (default: its own)"
    )
    parser.add_argument(
        "--anchors",
        type=int,
        metavar="N",
        help="views in which a model with anchors gathers all, at most (default: its own number)",
    )


def add_photos(parser: argparse.ArgumentParser) -> None:
    """How photos are found."""
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the photos, such as images_4 (default: found)"
    )
    parser.add_argument(
        "--background",
        type=rgb,
        metavar="R,G,B",
        help="what is behind transparent photos, or a name: black, white (default: black)",
    )
    parser.add_argument(
        "--poses",
        metavar="da3|vggt|colmap|auto",
        help="what finds the cameras: a network (da3, da3-small or vggt) or pycolmap, also where "
        "the input has some; auto: of photos without, the first network that can be had, else "
        "pycolmap (default: the input's, else pycolmap)",
    )
    lost = parser.add_mutually_exclusive_group()
    lost.add_argument(
        "--strict", action="store_true", help="stop where a photo or its camera cannot be used"
    )
    lost.add_argument(
        "--skip-missing",
        action="store_false",
        dest="strict",
        help="go on without it and say so (default)",
    )


def photo_options(arguments: argparse.Namespace) -> "PhotoOptions":
    """What `add_photos` added."""
    from ..scene import PhotoOptions

    background = arguments.background or (0.0, 0.0, 0.0)
    return PhotoOptions(arguments.images, arguments.strict, background, arguments.poses)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """What draws."""
    parser.add_argument("--backend", metavar="NAME", help="the rasteriser (default: auto)")


def add_rules(parser: argparse.ArgumentParser) -> None:
    """How Gaussians are drawn."""
    parser.add_argument(
        "--rules",
        metavar="NAME",
        help="classic, mip (antialiased) or resplat, instead of what the file of Gaussians says",
    )


def add_overwrite(parser: argparse.ArgumentParser, what: str = "write among other files") -> None:
    """What happens to a folder that is not empty."""
    parser.add_argument("--overwrite", action="store_true", help=what)


def build_options(kind: type[T], arguments: argparse.Namespace, **more: Any) -> T:
    """A task's dataclass of options from the arguments of the same names.

    Defaults are the dataclass's: an option that was not given is None or False in the arguments.
    """
    given = {field.name: getattr(arguments, field.name, None) for field in fields(kind)}
    named = {name: value for name, value in given.items() if value is not None}
    return kind(**named | more)


def indices(text: str) -> tuple[int, ...]:
    """0,5,9: numbers of photos, as an option has them."""
    return _whole_numbers(text, "numbers with commas, such as 0,5,9")


def counts(text: str) -> tuple[int, ...]:
    """100000,50000: how many of something, as an option has them."""
    return _whole_numbers(text, "whole numbers with commas, such as 100000,50000")


def numbers(text: str) -> tuple[float, ...]:
    """0,2.5,10: numbers from 0 on, as an option has them."""
    if not re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted numbers with commas, such as 0,2.5,10")
    return tuple(map(float, text.split(",")))


def pose_noise(text: str) -> tuple[float, ...]:
    """5 or 5,0.05: degrees, and a share of the longest baseline, as an option has them."""
    found = numbers(text)
    if len(found) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted DEGREES or DEGREES,SHARE, as 5,0.05")
    return found


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """256x448,512x960: several of (height, width), as an option has them."""
    return tuple(size(part) for part in text.split(","))


def _whole_numbers(text: str, wanted: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted {wanted}")
    return tuple(int(part) for part in text.split(","))


def context(text: str) -> tuple[int, ...] | None:
    """auto, which is None: the verb chooses; or 0,5,9: numbers of photos."""
    return None if text == "auto" else indices(text)


def views(text: str) -> int | str:
    """8, or all: how many photos."""
    if text != "all" and not re.fullmatch(r"-?\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a number of photos, or all")
    return text if text == "all" else int(text)


def size(text: str) -> tuple[int, int]:
    """256x448: (height, width), as an option has them; neither is 0."""
    found = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    if not found or 0 in (int(found[1]), int(found[2])):
        raise argparse.ArgumentTypeError(
            f"{text!r}; wanted HEIGHTxWIDTH, both at least 1, such as 256x448"
        )
    return int(found[1]), int(found[2])


def rgb(text: str) -> tuple[float, float, float]:
    """black, white, or 0.2,0.4,1: RGB in [0, 1], as an option has it."""
    named = {"black": "0,0,0", "white": "1,1,1"}.get(text, text)
    try:
        red, green, blue = (float(part) for part in named.split(","))
    except ValueError as error:
        wanted = "black, white, or three numbers such as 0.2,0.4,1"
        raise argparse.ArgumentTypeError(f"{text!r}; wanted {wanted}") from error
    if not all(0 <= part <= 1 for part in (red, green, blue)):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted numbers from 0 to 1")
    return red, green, blue


def shard(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted I/N with I from 1 to N, such as 3/16")
    return int(found[1]), int(found[2])

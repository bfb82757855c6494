"""Which way a CPU computes an operation: a table of measured rules, by instruction set and shape.

Equal results can be had in several ways (a convolution through oneDNN or as matrix products, a
matrix product through oneDNN or the BLAS), and which is fastest depends on the processor. The
table beside this file says it. It was made by measuring (`python benchmarks/run.py tune`) and
nothing is measured in a run: one machine gives the same bits every day. What the table does not
name is computed as `DEFAULTS` says.

$PMSPLAT_CPU_RULES overrides it: the name of an instruction set of the table, "default", or the path
of a table that `tune` wrote.
"""

import functools
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError

TABLE = Path(__file__).with_name("cpu_rules.json")
OVERRIDE = "PMSPLAT_CPU_RULES"
LIMITS = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_NAME"
"""Variables that keep torch, oneDNN, MKL and numba from instructions that the processor has."""
INSTRUCTION_SETS = ("intel-amx", "intel-avx512", "amd-avx512", "avx2", "neon", "other")
# The ways of an operation; the first is the default. Those in FORWARD_ONLY have no gradients, or
# keep all scores of an attention for them.
WAYS = {
    "linear": ("conv", "blas", "onednn"),
    "linear gelu": ("conv", "blas", "onednn"),
    "product": ("conv", "blas", "onednn"),
    "conv": ("direct", "first", "last", "taps", "product", "winograd"),
    "attention": ("default", "fused", "plain", "blocked"),
}
FORWARD_ONLY = {"onednn", "blocked", "plain", "winograd"}
FEW, NARROW = 1024, 256  # tokens, and channels, up to which a matrix product counts as such
THIN, SMALL = 32, 4096  # channels and pixels of a map up to which a convolution counts as such
RENEW = "remove it, and write it anew: python benchmarks/run.py tune --table FILE"


@dataclass(frozen=True)
class Rules:
    """The way of each (operation, class of shape); `name` says whose rules they are."""

    name: str
    ways: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def way(self, operation: str, shape: str) -> str:
        """How an operation is computed on shapes of a class."""
        return self.ways.get((operation, shape)) or WAYS[operation][0]

    def having(self, operation: str, shape: str, way: str) -> "Rules":
        """The same rules with one more."""
        return replace(self, ways={**self.ways, (operation, shape): way})

    def without(self, way: str) -> "Rules":
        """The same rules, with the default of each operation in place of one of the ways."""
        return replace(self, ways={k: v for k, v in self.ways.items() if v != way})


DEFAULTS = Rules("default")


def way(operation: str, shape: str) -> str:
    """How this processor computes `operation` on shapes of the class `shape`."""
    chosen = _CHOSEN.get()
    return (_shipped() if chosen is None else chosen).way(operation, shape)


def current() -> Rules:
    """The rules that are followed here."""
    return _CHOSEN.get() or _shipped()


@contextmanager
def use(rules: Rules) -> Iterator[None]:
    """Follows other rules inside the block (of this thread): to measure and to test them."""
    token = _CHOSEN.set(rules)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def without_transforms() -> AbstractContextManager[object]:
    """The rules that are followed here, but for Winograd's convolutions, which round more."""
    if torch.compiler.is_dynamo_compiling():  # where no rule applies
        return nullcontext()
    return use(current().without("winograd"))


def on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether rules apply: float32 on a CPU, not under autocast, and not nothing.

    Nor in a network that torch compiles, which chooses itself how to compute.
    """
    single = x.dtype == weight.dtype == torch.float32
    return (
        x.device.type == "cpu"
        and single
        and x.numel() > 0
        and weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_dynamo_compiling()
    )


def product_class(tokens: int, inputs: int, outputs: int, trains: bool) -> str:
    """The class of a matrix product of many tokens with one matrix."""
    many = "few tokens" if tokens <= FEW else "many tokens"
    wide = "narrow" if max(inputs, outputs) <= NARROW else "wide"
    return f"{many}, {wide}{_mode(trains)}"


def conv_class(x: Tensor, weight: Tensor, stride: int, trains: bool) -> str:
    """The class of a convolution: kernel, stride, channels, size of the map, layout of the map."""
    kernel = f"{weight.shape[-2]}x{weight.shape[-1]}" + (f"/{stride}" if stride > 1 else "")
    thin = "thin" if max(weight.shape[0], weight.shape[1]) <= THIN else "wide"
    small = "small" if x.shape[-2] * x.shape[-1] <= SMALL else "large"
    return f"{kernel}, {thin}, {small}, {layout(x)}{_mode(trains)}"


def attention_class(wide: bool, large: bool, half: bool, trains: bool) -> str:
    """The class of an attention: channels of a head, scores of a head, precision."""
    heads = "wide heads" if wide else "narrow heads"
    size = "large" if large else "small"
    return f"{heads}, {size}{', half' if half else ''}{_mode(trains)}"


def layout(x: Tensor) -> str:
    """ "last" for a map whose channels are last in memory, else "first"."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return "last" if last else "first"


def trains(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of them will be asked for."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _mode(trains: bool) -> str:
    return ", training" if trains else ""


def instruction_set() -> str:
    """One of INSTRUCTION_SETS: the widest vectors that torch uses here, and whose they are.

    A processor that is kept from its instructions (`LIMITS`) counts as one that lacks them.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "neon"
    if not capability.startswith("AVX512"):
        return "avx2" if capability == "AVX2" else "other"
    info = _cpu_info()
    if "AuthenticAMD" in info:
        return "amd-avx512"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    tiles = re.search(r"\bamx_tile\b", info) and (limit == "ALL" or "AMX" in limit)
    return "intel-amx" if tiles else "intel-avx512"


def _cpu_info() -> str:
    """What Linux says of the first processor; "" on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text().partition("\n\n")[0] if path.exists() else ""


@functools.cache
def _shipped() -> Rules:
    """The rules for this processor, or those that the environment asks for."""
    asked = os.environ.get(OVERRIDE)
    if asked is None:
        return read(TABLE).get(instruction_set(), DEFAULTS)
    if asked in INSTRUCTION_SETS:
        return read(TABLE).get(asked, DEFAULTS)
    if asked == DEFAULTS.name:
        return DEFAULTS
    if not Path(asked).is_file():
        raise UserError(
            f"${OVERRIDE} is {asked!r}",
            f"one of default, {', '.join(INSTRUCTION_SETS)}, or a file that `tune` wrote",
            "correct it or unset it",
        )
    found = read(Path(asked))
    if instruction_set() not in found:
        raise UserError(
            f"${OVERRIDE} is {asked!r}, which has no row {instruction_set()}, as this processor is",
            "a table that was measured on such a processor",
            f"write one: python benchmarks/run.py tune --table {asked}",
        )
    return found[instruction_set()]


def read(path: Path) -> dict[str, Rules]:
    """The rules of a table by instruction set.

    UserError for a file that holds no such table, and where one names an unknown way.
    """
    try:
        rows = {
            name: {
                (operation, shape): way
                for operation, shapes in row["rules"].items()
                for shape, way in shapes.items()
            }
            for name, row in json.loads(path.read_text()).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}, which holds no table of rules ({error!r})",
            "a file that `tune` wrote",
            RENEW,
        ) from error
    found = {}
    for name, ways in rows.items():
        for (operation, shape), chosen in ways.items():
            if chosen not in WAYS.get(operation, ()):
                raise UserError(
                    f"{path} has {chosen!r} for {operation} ({shape})",
                    f"one of {', '.join(WAYS.get(operation, ('no such operation',)))}",
                    RENEW,
                )
        found[name] = Rules(name, ways)
    return found


_CHOSEN: ContextVar[Rules | None] = ContextVar("cpu_rules", default=None)

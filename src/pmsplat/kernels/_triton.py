"""What the Triton kernels share: whether they can run, and what there is to compile."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import UserError


def is_installed() -> bool:
    """Returns whether Triton can be imported; torch brings it along on Linux only."""
    return find_spec("triton") is not None


def require() -> None:
    """Raises `UserError` where Triton is missing."""
    if not is_installed():
        raise UserError("a CUDA device without Triton", "the package triton", "install triton")


@dataclass(frozen=True)
class Build:
    """A kernel with the types and constants it is compiled for, as `triton.compile` wants them."""

    kernel: Any  # a triton.JITFunction
    types: dict[str, str]  # of every argument that is no constant
    constants: dict[str, Any]
    options: dict[str, Any]

"""What the Triton kernels share: whether they can run."""

from importlib.util import find_spec

from ..errors import UserError


def is_installed() -> bool:
    """Returns whether Triton can be imported; torch brings it along on Linux only."""
    return find_spec("triton") is not None


def require() -> None:
    """Raises `UserError` where Triton is missing."""
    if not is_installed():
        raise UserError("a CUDA device without Triton", "the package triton", "install triton")

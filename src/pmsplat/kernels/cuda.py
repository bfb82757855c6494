"""Whether the kernels for CUDA, which are Triton's, can run on a device, and what they can number.

Each has a twin of torch's own operators, which is taken where it cannot run, and that is said.
"""

import functools
import subprocess
import warnings
from importlib.util import find_spec
from typing import Any

import torch

from ..errors import UserError

CAPABILITY = (7, 5)  # of the oldest device for which the kernels are compiled in tests
PLACES = 2**31  # what the kernels' 32-bit integers can number
ROW = 65_535  # programs along an axis of a grid, but for the first axis


def obstacle(device: torch.device) -> UserError | None:
    """Why the kernels cannot run on `device`, if so; on a CPU Triton can interpret them."""
    if find_spec("triton") is None:
        return UserError(
            "triton is not installed",
            "triton, in which the kernels for CUDA are written",
            "install it with `pip install triton`, on Windows `pip install triton-windows`",
        )
    if device.type == "cuda":
        return _broken(device)
    if device.type == "cpu" and interprets():
        return None
    return UserError(
        f"kernels for CUDA were given tensors on {device}",
        "tensors on a CUDA device",
        "move them with .to('cuda'), or leave the choice to 'auto'",
    )


def has_kernels(device: torch.device) -> bool:
    """Whether `device` is one of CUDA on which the kernels run; says once for it where not."""
    if device.type != "cuda":
        return False
    problem = obstacle(device)
    if problem is not None:
        _warn_slow(problem.got, problem.remedy)
    return problem is None


def can_take(*tensors: torch.Tensor) -> bool:
    """Whether the kernels run where the tensors lie, and can number their places."""
    return all(x.numel() < PLACES for x in tensors) and all(has_kernels(x.device) for x in tensors)


def require(device: torch.device) -> None:
    """Raises UserError where the kernels cannot run on `device`."""
    problem = obstacle(device)
    if problem is not None:
        raise problem


def check_places(what: str, wanted: str, *counts: int) -> None:
    """Raises UserError for `what` if one of `counts` is more than 32-bit integers can number."""
    if max(counts) >= PLACES:
        raise UserError(
            f"{what}, which the kernels for CUDA cannot number in 32 bits",
            wanted,
            "use fewer or smaller ones in one call",
        )


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Runs a kernel on the device of its first argument, a tensor.

    A product and a sum may become one operation, rounded once, unless `enable_fp_fusion=False`:
    the default of Triton differs by version. An explicit `fma` always is one.
    """
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **{"enable_fp_fusion": True, **options})


def parts(count: int, each: int = 1) -> list[slice]:
    """What one launch takes of `count` scenes that lie along the second axis of a grid, where each
    is so many programs."""
    step = max(1, ROW // each)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def extent(tensor: torch.Tensor) -> int:
    """How many places lie between the first and the last number of a tensor, both included."""
    return 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def interprets() -> bool:
    """Whether Triton runs its kernels on the CPU, as tests do (TRITON_INTERPRET=1)."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


@functools.cache
def _broken(device: torch.device) -> UserError | None:
    """Why the installed Triton cannot be used on a CUDA device, if so."""
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, capability))}",
            f"{'.'.join(map(str, CAPABILITY))} or newer for the kernels of pmsplat",
            "use a newer device",
        )
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return UserError(
            f"triton cannot use {device} ({error})",
            "a CUDA driver, and a C compiler such as gcc with the headers of Python, with which "
            "triton starts its kernels",
            "install what is missing",
        )
    return None


@functools.cache
def _warn_slow(got: str, remedy: str) -> None:
    """Warns, once for each obstacle."""
    text = f"{got}; computing with torch's own operators, which is slower; {remedy}"
    warnings.warn(text, stacklevel=4)

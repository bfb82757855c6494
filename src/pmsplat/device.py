"""The device that computes: whether torch can use the GPU that is there, how, and how exactly.

Which precision holds where is decided here and in `trainer.precision` alone: training follows the
setting, and everything else (predictions, evaluation, refinement) computes in float32 proper.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import UserError

FULL = (  # what errors of a full GPU say
    "CUDA out of memory",  # torch
    "CUDA error: out of memory",  # the runtime
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Inside, matrix products and convolutions of float32 on CUDA take their inputs as TF32 or not.

    TF32 keeps 10 of the 23 bits of a fraction and is several times as fast. Without this, torch
    computes products in float32 and convolutions in TF32. The CPU always computes in float32.
    """
    # torch's newer settings (`fp32_precision`) make every reader of these older ones fail
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU was full: as torch says it, CUDA, its libraries, or Triton.

    torch has a class for its own allocations alone; all others are a RuntimeError with a text.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in FULL)


@contextmanager
def explain_full(explain: Callable[[RuntimeError], UserError]) -> Iterator[None]:
    """Inside, the error of a full GPU becomes what `explain` makes of it.

    What the calls held that led to it is given up before, so that `explain` may compute.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise explain(error) from error


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the host goes on while a GPU copies it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def cuda_obstacle() -> UserError | None:
    """Why torch cannot use the NVIDIA GPU of this machine, as where its driver is too old, if so.

    None where it can, where there is no such GPU, and where CUDA_VISIBLE_DEVICES hides it.
    """
    if torch.cuda.is_available() or not torch.cuda.device_count():  # the latter asks the driver
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
    else:
        reason = "CUDA finds no device"
    return UserError(
        f"an NVIDIA GPU that torch {torch.__version__} cannot use ({reason})",
        f"a driver for CUDA {torch.version.cuda}, or a torch for the driver that is installed",
        "update the driver, or install another build of torch",
    )

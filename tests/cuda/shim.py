"""Loads the stand-in for the CUDA driver (shim.c), which must be in the process before torch is.

Without it a backward pass on fake CUDA tensors ends in "no CUDA driver": autograd's engine asks the
driver how many devices there are and whether they have contexts. Symbols of the library come before
those of torch's own, because it is loaded first, for all, and under the name of the driver.
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
MANY = 127  # devices: torch's guard is asked for fewer, but never for as many


def obstacle() -> str | None:
    """Why the stand-in cannot be used on this machine, if so."""
    if not sys.platform.startswith("linux"):
        return "the stand-in for the CUDA driver is for Linux"
    return None if _compiler() else "no C compiler to build the stand-in for the CUDA driver"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@cache
def load() -> ctypes.CDLL:
    """Builds and loads it; call this before anything imports torch."""
    assert "torch" not in sys.modules, "torch is there already"
    compiler = _compiler()
    assert compiler is not None, obstacle()
    folder = Path(tempfile.mkdtemp())
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([compiler, *flags, str(SOURCE)], check=True)
    loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    shutil.rmtree(folder)
    return loaded


def arm() -> None:
    """Puts torch's no-op guard in place; from here on there are devices."""
    import torch

    torch._C._ensureCUDADeviceGuardSet()
    ctypes.c_int8.in_dll(load(), "fake_count").value = MANY

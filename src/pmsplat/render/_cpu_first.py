"""The first drawing on a CPU: a process of its own compiles the kernels, while the caller goes on.

numba compiles for half a minute, and keeps the result beside the source for all later processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from numba.core.dispatcher import Dispatcher

from ..types import Cameras, Gaussians
from . import _cpu_blend

_started: list[subprocess.Popen[bytes]] = []


def compile_beside() -> None:
    """Starts that process, where nothing is compiled yet and there is a core for it."""
    if is_compiled() or _started or (os.cpu_count() or 1) < 2:
        return
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", __name__]
    _started.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))


def wait() -> None:
    """Until that process has ended, if it was started; where it failed, the caller compiles."""
    while _started:
        _started.pop().wait()


def is_compiled() -> bool:
    """Whether there are compiled kernels, of this version or another."""
    if not isinstance(_cpu_blend.draw, Dispatcher):  # they are not to be compiled
        return True
    folder, module = _cpu_blend.draw.stats.cache_path, _cpu_blend.__name__.rpartition(".")[2]
    return folder is None or any(Path(folder).glob(f"{module}.draw-*.nbi"))


def main() -> None:
    """Draws one Gaussian, and its gradients."""
    from . import rasterize

    one = torch.ones(1, 1)
    scene = Gaussians(
        means=torch.tensor([[[0.0, 0, 2]]]),
        scales=0.1 * torch.ones(1, 1, 3),
        quats_wxyz=torch.tensor([[[1.0, 0, 0, 0]]]),
        opacities=0.5 * one.requires_grad_(),
        sh=torch.ones(1, 1, 1, 3),
    )
    K = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])[None, None]
    cameras = Cameras(torch.eye(4)[None, None], K, 0.1 * one.detach(), 10 * one.detach())
    rasterize(scene, cameras, (16, 16), "cpu").color.sum().backward()


if __name__ == "__main__":
    main()

"""Where Triton's kernels cannot run, and where there is more than an axis of a grid may hold."""

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pmsplat import train
from pmsplat.errors import UserError
from pmsplat.kernels import harmonics
from pmsplat.kernels import neighbors as search
from pmsplat.kernels.neighbor_attention import attend_neighbors
from pmsplat.kernels.norm import group_norm

from .device import FakeDevice
from .jobs import experiment
from .scenarios import SIZE, Scenario, predict, published

NO_TRITON = "no triton, "  # how scenarios begin that want a process without it
MANY = 70_000


def limits() -> dict[str, Scenario]:
    """All of them, by name."""
    small, compact = published()["depthsplat-gs-small-re10k-256x256-view2"], ("compact", {})
    return {
        f"{NO_TRITON}predict small": partial(predict_slowly, small, 2, SIZE),
        f"{NO_TRITON}predict 65 views": partial(predict_slowly, small, 65, (64, 128)),
        f"{NO_TRITON}predict compact": partial(predict_slowly, compact, 2, SIZE),
        f"{NO_TRITON}run": refused_run,
        "old device, predict small": partial(predict_on_old_device, small),
        "many scenes": many,
    }


def predict_slowly(
    model: tuple[str, dict[str, Any]],
    views: int,
    size: tuple[int, int],
    device: FakeDevice,
    why: str = "triton is not installed",
) -> None:
    """A prediction by torch's own operators, which is said once.

    65 views of 64x128 pixels are 65,536 images to sample at a time, more than cuDNN takes.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predict(device, *model, views, size)
    slow = [str(line.message) for line in said if "torch's own operators" in str(line.message)]
    assert len(slow) == 1 and slow[0].startswith(why), slow


def predict_on_old_device(model: tuple[str, dict[str, Any]], device: FakeDevice) -> None:
    """The same where Triton is installed, and compiles for newer devices only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
        predict_slowly(model, 2, (64, 64), device, "fake has compute capability 6.1")


def refused_run(device: FakeDevice) -> None:
    """`pmsplat train` without Triton: nothing is launched or written."""
    with tempfile.TemporaryDirectory() as folder, device.ledger.stage("run"):
        with pytest.raises(UserError, match=r"^triton is not installed.*or train on the CPU"):
            train.run(experiment(Path(folder)), tell=lambda line: None)
        assert not any(Path(folder).iterdir())


def many(device: FakeDevice) -> None:
    """More scenes than 65,535, the most along any axis of a grid but the first."""

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return device.empty((MANY, *shape), dtype).requires_grad_(dtype.is_floating_point)

    for _ in range(2):
        device.ledger.forget()
        with device.ledger.stage("neighbors"):
            points = drawn(8, 3).detach()
            search.nearest_of_sane(points, points)
            search.k_nearest_of_sane(points, points, 4)
            others, c2w, K = drawn(1, 1, dtype=torch.int64), drawn(1, 4, 4), drawn(1, 3, 3)
            search.k_nearest_in_windows(drawn(1, 2, 2, 3), others, c2w, K, k=2)
        with device.ledger.stage("layers"):
            group_norm(drawn(2, 2, 8).permute(0, 3, 1, 2), 2).sum().backward()
            table = drawn(8, 4, dtype=torch.int64)
            attend_neighbors(drawn(8, 16), drawn(8, 16), drawn(8, 16), table).sum().backward()
            harmonics.turn(drawn(1, 4, 4).detach(), drawn(1, 8, 3, 4)).sum().backward()

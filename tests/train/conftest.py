"""Runs of training on small images: one thread is fastest, and does not wait for a busy machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import pytest
import torch

from pmsplat import config
from pmsplat.train import Experiment


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    numba.set_num_threads(numba_threads)


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural dataset, made once."""
    return tmp_path_factory.mktemp("rooms")


@pytest.fixture
def setting(rooms: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """A run of a small encoder on small images, with overrides."""

    def make(*overrides: str) -> Experiment:
        return config.compose(
            [
                "+experiment=demo_tiny",
                "model=tests.lab.encoder",
                f"dataset.root={rooms}",
                "dataset.scenes=6",
                "dataset.test_scenes=2",
                "dataset.frames=10",
                "dataset.size=[32,32]",
                "trainer.batch_size=2",
                "trainer.log_every=1",
                "trainer.validate_every=0",
                "trainer.loggers=[csv]",
                "optimizer.lr=5e-3",
                f"output={tmp_path / 'out'}",
                *overrides,
            ]
        )

    return make

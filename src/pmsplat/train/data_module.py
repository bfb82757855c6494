"""Streams of a dataset -> loaders, the same examples after a resumption as without one."""

import signal
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from ..contracts import Dataset, list_skips
from ..data import Skip, collate
from ..types import Batch
from .packing import Packed, collate_packed
from .settings import Experiment
from .start import open_splits


class DataModule(LightningDataModule):
    """The training stream from where the trainer stands, and the head of the evaluation index.

    `step` is the trainer's step, in memory that worker processes share. Checkpoints hold how many
    examples were consumed, so that a run goes on with the next one on any number of devices.
    """

    def __init__(self, dataset: Dataset, experiment: Experiment) -> None:
        super().__init__()
        self.dataset, self.experiment = dataset, experiment
        self.step = torch.zeros((), dtype=torch.int64).share_memory_()
        self._streams: dict[str, Any] = {}
        self._before = _Consumed()

    def prepare_data(self) -> None:
        open_splits(self.dataset, self.experiment, self.step)

    def train_dataloader(self) -> DataLoader[Batch | Packed]:
        cfg, trainer = self.experiment.trainer, self.trainer
        assert trainer is not None
        self.step.fill_(trainer.global_step)
        stream = self.dataset.train(
            self.experiment.seed, self.step, skip=self._consumed(), batch_size=cfg.batch_size
        )
        self._streams["train"] = stream
        return self._loader(stream, cfg.batch_size, cfg.workers)

    def take_skips(self) -> list[Skip]:
        """What training and validation have left out since the last call, where they say so."""
        return [skip for stream in self._streams.values() for skip in list_skips(stream)]

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"step": self.trainer.global_step, "examples": self._consumed()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._before = _Consumed(**state_dict)

    def _consumed(self) -> int:
        """How many examples the steps so far have taken, on all devices together."""
        trainer = self.trainer
        assert trainer is not None
        steps = trainer.global_step - self._before.step
        batch = self.experiment.trainer.batch_size * trainer.world_size
        return self._before.examples + steps * batch

    def val_dataloader(self) -> DataLoader[Batch | Packed]:
        cfg = self.experiment.trainer
        stream = self.dataset.evaluation(cfg.validate_scenes)
        self._streams["validation"] = stream
        return self._loader(stream, 1, min(cfg.workers, 1))

    def transfer_batch_to_device(
        self, batch: Batch | Packed, device: torch.device, dataloader_idx: int
    ) -> Batch:
        return batch.unpack(device) if isinstance(batch, Packed) else batch.to(device)

    def _loader(self, stream: Any, batch_size: int, workers: int) -> DataLoader[Batch | Packed]:
        """Workers are spawned, not forked: the process has threads and perhaps a CUDA context."""
        trainer = self.trainer
        assert trainer is not None
        on_cuda = trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            stream,
            batch_size=batch_size,
            collate_fn=collate_packed if on_cuda else collate,
            pin_memory=on_cuda,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_ctrl_c,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator().manual_seed(0),  # of worker seeds, which streams do not use
        )


@dataclass(frozen=True)
class _Consumed:
    """The examples that were consumed up to a step; those of a run's first part, resumed from."""

    step: int = 0
    examples: int = 0


def _ignore_ctrl_c(worker: int) -> None:
    """The training process alone handles it, after the current step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

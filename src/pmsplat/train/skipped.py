"""Says what scenes training leaves out."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ..data import Skip
from ..errors import UserError, count_of
from .data_module import DataModule

SKIPPED = "skipped.csv"


class SkippedScenes(Callback):
    """Names each scene that training leaves out, once, and lists them in FOLDER/skipped.csv.

    Scenes that cannot be read are named one by one as they are met, or end the run where it is
    `strict`; of those that the settings rule out, the first for each reason. Totals come at the
    end. Where there are several devices, the first tells what it meets itself.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None], strict: bool = False) -> None:
        self.folder, self.tell, self.strict = folder, tell, strict
        self.known: set[Skip] = set()
        self.reasons: Counter[str] = Counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        damaged = [skip for skip in self._take(trainer) if skip.damaged]
        if damaged and self.strict:
            raise UserError(
                f"{describe_skip(damaged[0])}, and trainer.strict=true",
                "scenes that can all be read",
                "repair or remove it, or leave trainer.strict out",
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(trainer)
        if number := self.reasons.total():
            were = "was" if number == 1 else "were"
            counts = [f"{reason} ({count})" for reason, count in self.reasons.most_common()]
            self.tell(
                f"{count_of(number, 'scene')} {were} left out, see {self.folder / SKIPPED}: "
                f"{'; '.join(counts)}."
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._take(trainer)

    def _take(self, trainer: Trainer) -> list[Skip]:
        """Tells what is new, and returns it."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, DataModule) or not trainer.is_global_zero:
            return []
        new = [skip for skip in dict.fromkeys(data.take_skips()) if skip not in self.known]
        for skip in new:
            if skip.damaged:
                self.tell(f"Left out: {describe_skip(skip)}.")
            elif skip.reason not in self.reasons:
                self.tell(f"Left out: {describe_skip(skip)}; others like it are counted.")
            self.reasons[skip.reason] += len(skip.scenes)
        self._write(new)
        self.known |= set(new)
        return new

    def _write(self, new: list[Skip]) -> None:
        if not new:
            return
        with (self.folder / SKIPPED).open("a" if self.known else "w", newline="") as file:
            rows = csv.writer(file)
            if not self.known:
                rows.writerow(["chunk", "scene", "reason", "damaged"])
            for skip in new:
                rows.writerows([skip.chunk, key, skip.told, skip.damaged] for key in skip.scenes)


def describe_skip(skip: Skip) -> str:
    """What was left out and why, as a part of a sentence."""
    if len(skip.scenes) == 1:
        return f"scene {skip.scenes[0]!r} of {skip.chunk}: {skip.told}"
    return f"all {len(skip.scenes)} scenes of {skip.chunk}: {skip.told}"

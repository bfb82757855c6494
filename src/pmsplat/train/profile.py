"""What the operators of some training steps take: a trace to look at, and a table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerAction, ProfilerActivity, profile, schedule

from ..errors import count_of
from ..io.files import atomic, write_text

UNSEEN = 5  # steps before: kernels are compiled, memory is taken, workers begin
WARM_UP = 2  # more steps, watched and not kept
ROWS = 40  # operators of the table


class Profile(Callback):
    """Writes FOLDER/trace.json.gz and FOLDER/operators.txt of `steps` steps of this process.

    The steps after the first UNSEEN + WARM_UP of a run, or of its resumption; of a run that is too
    short for that, its last steps, which `tell` is told. Each begins after the one before, so the
    wait for data counts. The first process writes. What the steps compute is not changed, but each
    takes longer.
    """

    def __init__(self, folder: Path, steps: int, tell: Callable[[str], None]) -> None:
        self.folder, self.steps, self.tell = folder, steps, tell
        self._watch: profile | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kinds = [ProfilerActivity.CPU]
        kinds += [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
        self._watch = profile(
            activities=kinds,
            schedule=self._plan(trainer.max_steps - trainer.global_step),
            on_trace_ready=self._write,
        )
        self._watch.start()

    def _plan(self, left: int) -> Callable[[int], ProfilerAction]:
        """What is done in each of the steps that are left; says where fewer pass than usual."""
        active = min(self.steps, left)
        passed = min(UNSEEN + WARM_UP, left - active)
        if passed < UNSEEN + WARM_UP:
            self.tell(
                f"trainer.profile={self.steps} with {count_of(left, 'step')} to go: the last "
                f"{active} are watched, after {passed} instead of {UNSEEN + WARM_UP}; the first "
                "steps take longer than others."
            )
        warm_up = min(WARM_UP, passed)
        return schedule(wait=passed - warm_up, warmup=warm_up, active=active, repeat=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is not None:
            self._watch.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """A run that ends within the steps leaves those that it did."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def _write(self, watch: profile) -> None:
        with atomic(self.folder / "trace.json.gz") as temporary:
            plain = temporary.with_suffix(".json.gz")  # the name decides whether it is compressed
            try:
                watch.export_chrome_trace(str(plain))
                plain.replace(temporary)
            finally:
                plain.unlink(missing_ok=True)
        averages = watch.key_averages()
        on_gpu = any(event.self_device_time_total for event in averages)
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        write_text(self.folder / "operators.txt", table + "\n")

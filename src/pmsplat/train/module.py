"""The training step and its optimizer, as Lightning wants them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from ..errors import UserError, name_some
from ..evaluate import protocol
from ..foundation.lpips import LPIPS
from ..losses import Term
from ..nn.half import CastTogether
from ..types import Batch, Prediction, Views
from ..zoo.infer import model_frame
from . import average, optim
from .average import Average
from .callbacks import TERM
from .data_module import DataModule
from .failure import NOT_FINITE, Failure, write_failure
from .settings import Experiment
from .sharding import Sharded, full
from .step import Outcome, draw_anchors, draw_steps, step_generator, training_step

BAD_STEPS = 20  # in a row without a finite gradient, or a sample that a loss counts: it has failed


class TrainingModule(LightningModule):
    """Trains `model`; its checkpoints hold the weights of `model` and nothing else that learns.

    A step whose loss or gradients are not finite is skipped on all devices alike and counted
    ("train/skipped"), and so are samples that a loss skips ("train/skipped/NAME"), since the
    process began. Counters stay on the device and are read only at steps that are logged: there,
    UserError is raised where the last BAD_STEPS steps, or all their samples, were skipped. The last
    batch whose loss or gradients were not finite is then in OUTPUT/not_finite.pt (see `failure`).

    `shown` is the model that is validated and exported: `model`, or the running mean of its weights
    where the settings want one.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: nn.Module,
        terms: Mapping[str, Term],
        lpips: LPIPS | None = None,
        add_pointmap: Callable[[Batch, int], Batch] | None = None,
        scale_near: bool = False,
    ) -> None:
        super().__init__()
        self.experiment, self.model, self.terms = experiment, model, terms
        self.add_pointmap = add_pointmap
        self.lpips = [lpips]  # in a list: measured with, not trained and not saved
        decay, renderer = experiment.trainer.ema, experiment.renderer
        self.average = Average(model, decay) if decay else None
        self.shown = [model if self.average is None else self.average.model]  # in a list, likewise
        self.scale_near = scale_near  # scenes come in units of their own
        self.encode: Callable[..., Prediction] = CastTogether(model)
        self.sharded: list[Sharded] = []  # of the model, then of that which is shown
        self.whole = ExitStack()  # while it is validated, where it is sharded
        self.pipeline = protocol.pipeline(
            self.predict,
            renderer.name,
            renderer.background,
            drawn=protocol.Drawn(renderer.keep, self.make_generator),
        )
        self.validation = protocol.pipeline(
            self.shown[0],
            renderer.name,
            renderer.background,
            scale_near=scale_near,
            drawn=protocol.Drawn(renderer.keep),
        )
        self.rows: list[protocol.Row] = []  # of the validation at hand
        self.skipped = self.skipped_in_a_row = torch.zeros(())  # steps; on the device
        self.before: Batch | None = None  # the batch before one that is logged
        self.gradient_norm = torch.zeros(())  # of the step before, unclipped; on the device
        self.zeros: dict[str, Tensor] = {}  # by loss and level, of all steps; on the device
        self.skipped_samples: dict[str, Tensor] = {}  # samples, by loss; on the device
        self.steps_without_samples: dict[str, Tensor] = {}  # in a row, by loss; on the device

    def configure_model(self) -> None:
        """Shards the model where the strategy has devices that share it."""
        if self.device_mesh is None or self.sharded:
            return
        models = dict.fromkeys([self.model, *self.shown])
        self.sharded = [Sharded(model, self.device_mesh["data_parallel"]) for model in models]
        self.encode = self.sharded[0].predict

    def configure_optimizers(self) -> Any:
        cfg = self.experiment
        optimizer, schedule = optim.build(self.model, cfg.optimizer, cfg.trainer.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        if self.average is not None:
            self.average.begin(self.device)
        if self.global_step:  # the checkpoint has brought its own settings
            (optimizer,), (schedule,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
            cycle = schedule.scheduler
            assert isinstance(cycle, OneCycleLR)
            optim.adopt(optimizer, cycle, self.experiment.optimizer, self.experiment.trainer.steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            checkpoint[average.KEY] = self.average.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run without a mean may go on with one, and the other way round."""
        if self.average is not None and average.KEY in checkpoint:
            self.average.load(checkpoint[average.KEY])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, DataModule)
        data.step.fill_(self.global_step)
        if self.global_step + 1 == self.experiment.trainer.steps:
            # Lightning itself passes over a last step that is not due
            self.trainer.log_every_n_steps = 1  # pyright: ignore[reportAttributeAccessIssue]

    def predict(self, views: Views) -> Prediction:
        """The prediction for views in the world of the model, of all levels.

        After as many update steps, and in as many anchors, as the settings draw for this training
        step and device.
        """
        cfg = self.experiment.trainer
        moment = self.experiment.seed, self.global_rank, self.global_step
        drawn: dict[str, int] = {}
        if cfg.update_steps is not None:
            drawn["steps"] = draw_steps(cfg.update_steps, *moment)
        if cfg.anchors is not None:
            drawn["anchors"] = draw_anchors(cfg.anchors, views.images.shape[1], *moment)
        return self.encode(views, **drawn)

    def make_generator(self, device: torch.device) -> torch.Generator:
        """What this training step draws from, besides its update steps."""
        return step_generator(device, self.experiment.seed, self.global_rank, self.global_step)

    def compute(self, batch: Batch) -> Outcome:
        """The outcome of one batch, with gradients: what a step minimizes."""
        if self.add_pointmap is not None:
            batch = self.add_pointmap(batch, self.global_step)
        frame = model_frame(self.model, batch.context.cameras, scale=self.scale_near)
        batch = frame.to_model(batch)  # losses look at the world of the model
        return training_step(self.pipeline, batch, self.terms, self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outcome = self.compute(batch)

        # Collect what is logged, and count the samples that losses skipped.
        shown = {"loss": outcome.loss.detach(), **outcome.quality}
        terms = {f"{TERM}{name}": value for name, value in outcome.terms.items()}
        fresh = {name: torch.zeros_like(terms[name]) for name in terms if name not in self.zeros}
        self.zeros |= fresh
        terms = self.zeros | terms  # levels that other steps had add nothing to this one
        shown |= terms
        shown["skipped"], shown["gradient_norm"] = self.skipped, self.gradient_norm
        for name, samples in outcome.skipped.items():
            self.skipped_samples[name] = self.skipped_samples.get(name, 0) + samples.float()
            shown[f"skipped/{name}"] = self.skipped_samples[name]
            self.steps_without_samples[name] = (self.steps_without_samples.get(name, 0) + 1) * (
                samples == len(batch.scene)
            )
        if self._is_logged(self.global_step + 1):
            self._check_steps()  # waits for the device, as writing the log does
            for group in self.trainer.optimizers[0].param_groups:
                shown[f"lr/{group['name']}"] = torch.tensor(group["lr"])
            values = {f"train/{name}": value for name, value in shown.items()}
            self._log(values, self.global_step + 1, batch_size=len(batch.scene))
        self.before = batch if self._is_logged(self.global_step + 2) else None

        # Where the loss is not finite, make every gradient NaN, so that all devices skip the step.
        finite = outcome.loss.detach().isfinite()
        loss = outcome.loss * torch.where(finite, 1.0, torch.nan)
        return {"loss": loss, **terms, **outcome.quality}

    def _is_logged(self, step: int) -> bool:
        """Whether the logs have a step: every so many, and the last."""
        cfg = self.experiment.trainer
        return step % cfg.log_every == 0 or step == cfg.steps

    def _check_steps(self) -> None:
        if self.skipped_in_a_row.item() >= BAD_STEPS:
            raise UserError(
                f"the loss or its gradients of {int(self.skipped_in_a_row)} steps in a row, up to "
                f"step {self.global_step}, were not finite{self._keep_batch()}",
                "a run that converges",
                "lower optimizer.lr, or use trainer.precision=float32, and resume",
            )
        for name, steps in self.steps_without_samples.items():
            if steps.item() >= BAD_STEPS:
                loss = name.partition("/")[0]
                raise UserError(
                    f"loss.{loss} skipped every sample of the last {int(steps)} steps, up to "
                    f"step {self.global_step}",
                    "samples on which it is defined",
                    f"check its input (a teacher's points and confidence), or drop it: "
                    f"~loss.{loss}",
                )

    def _keep_batch(self) -> str:
        """Writes the batch of the step before; where it is, as a part of a sentence."""
        if self.before is None:
            return ""
        name = NOT_FINITE if self.global_rank == 0 else f"{self.global_rank}-{NOT_FINITE}"
        path = Path(self.experiment.output) / name
        weights = {name: full(value) for name, value in self.model.state_dict().items()}
        write_failure(path, Failure(self.global_step, self.before, weights))
        return f"; the last batch, of {name_some(self.before.scene)}, is in {path}"

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        limit = self.experiment.trainer.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.gradient_norm = full(norm.detach())
        bad = (~self.gradient_norm.isfinite()).float()
        self.trainer.optimizers[0].found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        self.skipped = self.skipped + bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad

    def on_validation_epoch_start(self) -> None:
        self.rows.clear()
        if self.average is not None:
            self.average.refresh()
        for sharded in self.sharded[-1:]:
            self.whole.enter_context(sharded.whole())

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        step = self.validation(batch)
        network = self.lpips[0]
        self.rows.append(
            protocol.measure(step, None if network is None else network.to(self.device))
        )
        return step

    def on_validation_epoch_end(self) -> None:
        """The means over the scenes of all devices; not every scene has every metric."""
        rows = [self.rows]
        if self.trainer.world_size > 1:
            rows = [self.rows for _ in range(self.trainer.world_size)]
            distributed.all_gather_object(rows, self.rows)
        means = protocol.Result([row for some in rows for row in some]).means
        self._log({f"val/{name}": value for name, value in means.items()}, self.global_step)
        self.whole.close()

    def _log(self, values: Mapping[str, Any], done: int, **how: Any) -> None:
        """Logs under the number of the steps that are done then, as screen and pictures count."""
        step = torch.tensor(float(done))  # which Lightning takes for the place of the others
        self.log_dict({**values, "step": step}, **how)

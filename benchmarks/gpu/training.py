"""A training step: two context views and four targets of 256x256, mse + LPIPS + PM-Loss, AdamW.

All weights are random, those of LPIPS too: they do not change the time of a step, but the Gaussians
of an untrained encoder are drawn faster than those of a trained one.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pmsplat import registry
from pmsplat.evaluate import protocol
from pmsplat.losses import Term
from pmsplat.nn.half import CastTogether
from pmsplat.train import optim
from pmsplat.train.step import training_step
from pmsplat.types import Batch, Views

from .. import peer
from . import room
from .clock import free_gib, measured, precision, waits
from .encoders import (
    BASE,
    SMALL,
    SMALL_2,
    SMALLEST,
    TINY,
    Subject,
    make_encoder,
    official_encoder,
)
from .process import Case, Run, Skipped
from .rasterizers import require

WEIGHTS = {"mse": 1.0, "lpips": 0.05, "pointmap": 0.005}
SHARE = 0.85  # of the free memory that the largest batch may take, by what a smaller one took
SMALLER = 0.8  # of that batch, where it did not fit
MULTIPLE = 4  # largest batches are multiples of it
SEARCHED_FROM = 8  # the batch whose memory the largest is computed from


@dataclass(frozen=True)
class Job:
    """What is trained; a batch of None is the largest that fits."""

    name: str
    model: str
    settings: tuple[tuple[str, Any], ...]
    batch: int | None
    precision: str
    renderer: str

    @property
    def label(self) -> str:
        batch = "largest" if self.batch is None else self.batch
        return f"{self.name} batch {batch} {self.precision} {self.renderer}"


def job(
    name: str, settings: dict[str, Any], batch: int | None, precision: str, renderer: str = "triton"
) -> Job:
    """One of the jobs below; MVSplat is the only one of another component."""
    model = "mvsplat" if name == "mvsplat" else "depthsplat"
    return Job(name, model, tuple(settings.items()), batch, precision, renderer)


JOBS = (  # in order of value per second
    job("small", SMALL, 1, "tf32"),
    job("small", SMALL, 8, "tf32"),
    job("small", SMALL, 8, "bf16"),
    job("small", SMALL, 1, "bf16"),
    job("small", SMALL, 8, "tf32", "gsplat"),
    job("small", SMALL, 1, "tf32", "gsplat"),
    job("small", SMALL, None, "bf16"),
    job("small", SMALL, None, "tf32"),
    job("mvsplat", {}, 1, "tf32"),
    job("base", BASE, 1, "tf32"),
    job("base", BASE, 1, "bf16"),
    job("mvsplat", {}, 1, "bf16"),
)
TINY_JOBS = (job("tiny", TINY, 1, "bf16"), job("tiny", TINY, 2, "tf32", "cpu"))


def cases(run: Run) -> Iterator[Case]:
    """Every job, after the second the encoder alone, ours and the official one; the memory of batch
    8 says which batch is the largest."""
    taken: dict[str, float] = {}  # GiB of a sample, by precision
    for index, one in enumerate(TINY_JOBS if run.tiny else JOBS):
        if index == 2 or run.tiny:
            subject = SMALLEST if run.tiny else SMALL_2
            for name, make in (("", make_encoder), ("official ", official_encoder)):

                def alone(make: Any = make, subject: Subject = subject) -> dict[str, Any]:
                    return encoder_step(make(subject, run), subject, run)

                yield Case(f"{name}encoder of {subject.label} alone, tf32", alone, 6.0)
        if one.batch is not None:
            yield Case(one.label, lambda one=one: step_of(one, run, taken), 6.0)
            continue
        for share in (1.0, SMALLER):
            fitted: list[bool] = []

            def largest(one: Job = one, share: float = share, fitted: list[bool] = fitted) -> Any:
                return _largest(one, run, taken, share, fitted)

            label = one.label if share == 1.0 else f"{one.label}, smaller"
            yield Case(label, largest, 12.0)
            if fitted != [False]:
                break


def _largest(
    one: Job, run: Run, taken: dict[str, float], share: float, fitted: list[bool]
) -> dict[str, Any]:
    """The step at the largest batch that should fit; notes in `fitted` whether it did."""
    if one.precision not in taken:
        raise Skipped(f"needs the memory of batch {SEARCHED_FROM} at {one.precision}")
    room_for = share * SHARE * free_gib() / taken[one.precision]
    batch = max(1, int(room_for) // MULTIPLE * MULTIPLE)
    try:
        found = step_of(replace(one, batch=batch), run, taken)
    except torch.cuda.OutOfMemoryError as error:
        fitted.append(False)
        raise Skipped(f"batch {batch} does not fit") from error
    fitted.append(True)
    return {"batch": batch} | found


def step_of(one: Job, run: Run, taken: dict[str, float]) -> dict[str, Any]:
    """Time, launches, memory and host waits of a step."""
    require(one.renderer, run.device)
    assert one.batch is not None
    size = (32, 32) if run.tiny else (256, 256)
    with precision("tf32" if one.precision == "bf16" else one.precision, run.device):
        step = _make_step(one, batch_of(one.batch, size, run.device), run.device)
        found = measured(lambda _: step(), seconds=2.0, kernels=one.batch == SEARCHED_FROM)
        found["samples/s"] = round(1000 * one.batch / found["ms"], 2)
        if run.device == "cuda":
            if one.batch == SEARCHED_FROM and one.name == "small":
                taken[one.precision] = found["peak_mib"] / 2**10 / one.batch
            found["peak GiB"] = round(found["peak_mib"] / 2**10, 2)
            places = waits(step)
            found |= {"host waits": sum(places.values()), "waits": places}
    return found


def take_step(one: Job, run: Run) -> None:
    """One step of a job, without measuring."""
    size = (32, 32) if run.tiny else (256, 256)
    with precision("tf32" if one.precision == "bf16" else one.precision, run.device):
        _make_step(one, batch_of(one.batch or 1, size, run.device), run.device)()


def encoder_step(model: nn.Module, one: Subject, run: Run) -> dict[str, Any]:
    """A step of an encoder without drawing: the mean square of all that it predicts is the loss,
    so that the official one can be measured by the same."""
    views = batch_of(1, one.size, run.device).context
    views = Views(views.images, views.cameras)
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-6)
    encode = partial(peer.predict, model) if run.peer and _is_official(model) else model

    def step(_: Any) -> None:
        loss = sum(x.float().square().mean() for x in peer.predicted(encode(views)))
        assert isinstance(loss, Tensor)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with precision("tf32", run.device):
        return measured(step, seconds=2.0, kernels=True)


def _is_official(model: nn.Module) -> bool:
    return not type(model).__module__.startswith("pmsplat")


def batch_of(samples: int, size: tuple[int, int], device: str) -> Batch:
    """Context views with exact pointmaps, and four targets half a step aside."""
    context = room.views(samples, 2, *size, device, between=False)
    target = room.views(samples, 4, *size, device, between=True)
    return Batch(context, replace(target, pointmap=None), ["room"] * samples)


def _make_step(one: Job, batch: Batch, device: str) -> Callable[[], None]:
    """A function that takes one step of the optimizer, as the training loop does."""
    torch.manual_seed(0)
    with torch.device(device):
        model = registry.build("models", one.model, dict(one.settings))
    model = model.to(device).train()
    optimizer, schedule = optim.build(model, optim.Config(), 100_000)
    pipeline = protocol.pipeline(CastTogether(model), one.renderer)
    terms = {name: Term(loss(name), weight) for name, weight in WEIGHTS.items()}

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=one.precision == "bf16"):
            outcome = training_step(pipeline, batch, terms, 0)
        outcome.loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.found_inf = (~norm.isfinite()).float()  # pyright: ignore
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@cache
def loss(name: str) -> Any:
    """A loss by its name; LPIPS over random features."""
    if name != "lpips":
        return registry.build("losses", name)
    from torchvision import models

    from pmsplat.foundation.lpips import TAPS

    features: Any = models.vgg16(weights=None).features
    kept = features[: TAPS["vgg16"][-1] + 1].state_dict()
    arrays: dict[str, Any] = {f"features.{key}": value.numpy() for key, value in kept.items()}
    for i, width in enumerate((64, 128, 256, 512, 512)):
        arrays[f"lin{i}.model.1.weight"] = np.full((1, width, 1, 1), 1 / width, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.npz"
        np.savez(path, **arrays)
        return registry.build("losses", name, {"weights": str(path)})

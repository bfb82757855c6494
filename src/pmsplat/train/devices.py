"""The devices and the processes of a run."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..device import cuda_obstacle
from ..errors import UserError
from ..kernels import cuda
from ..render import fast_backend, obstacle
from .settings import Trainer

if TYPE_CHECKING:
    from pytorch_lightning.strategies import Strategy

# Where every view is an anchor, a step leaves the weights for other views without a gradient
UNEVEN = "ddp_find_unused_parameters_true"


def is_first() -> bool:
    """Whether this process is the one that writes; the others follow it.

    Asked before they know each other: those that Lightning starts itself have no RANK yet, so this
    is no question for `data.rank_of_ranks`.
    """
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def check_devices(cfg: Trainer) -> bool:
    """Whether the run uses CUDA; UserError where its devices are not there, or cannot be used.

    So it is without Triton: torch's own operators are too slow to train with.
    """
    problem = None if cfg.accelerator == "cpu" else cuda_obstacle()
    if problem is not None:
        raise _or_on_cpu(problem)
    there = torch.cuda.device_count()
    if cfg.accelerator == "gpu" and not there:
        raise UserError(
            "trainer.accelerator=gpu without a CUDA device",
            "auto or cpu",
            "set trainer.accelerator=auto",
        )
    on_gpu = cfg.accelerator == "gpu" or (cfg.accelerator == "auto" and there > 0)
    if on_gpu and cfg.devices != "auto" and int(cfg.devices) > there:
        raise UserError(
            f"trainer.devices={cfg.devices} where there are {there}",
            f"at most {there}",
            "set trainer.devices=auto",
        )
    problem = cuda.obstacle(torch.device("cuda")) if on_gpu else None
    if problem is not None:
        raise _or_on_cpu(problem)
    return on_gpu


def _or_on_cpu(problem: UserError) -> UserError:
    remedy = f"{problem.remedy}, or train on the CPU: trainer.accelerator=cpu"
    return UserError(problem.got, problem.wanted, remedy)


def count_devices(cfg: Trainer, on_gpu: bool) -> int:
    """How many devices of all nodes train together."""
    there = torch.cuda.device_count() if on_gpu else 1
    return cfg.nodes * (there if cfg.devices == "auto" else int(cfg.devices))


def check_renderer(
    name: str, on_gpu: bool, otherwise: str = "train on a GPU: trainer.accelerator=gpu"
) -> None:
    """UserError where the chosen renderer does not draw on the CPU, on which the run computes.

    On CUDA, to know that may take a first build: see `prepare_renderer`.
    """
    problem = None if on_gpu or name == "auto" else obstacle(name, torch.device("cpu"))
    if problem is not None:
        raise UserError(
            f"renderer.name={name} for a run on the CPU",
            "a renderer that draws there: auto, cpu or reference",
            f"set renderer.name=auto, or {otherwise}",
        )


def prepare_renderer(name: str) -> None:
    """Builds the renderer where it was never used; UserError where it cannot draw on CUDA.

    Every process comes here before its first step, and "auto" refuses to draw on the CPU.
    """
    device = torch.device("cuda")
    problem = obstacle(fast_backend(device) if name == "auto" else name, device)
    if problem is not None:
        raise problem


def choose_strategy(
    cfg: Trainer, on_gpu: bool, gathers: bool, tell: Callable[[str], None]
) -> "str | Strategy":
    """How the devices train together, as Lightning wants it.

    `gathers`: whether the model has anchors. UserError for such a model in parts.
    """
    from . import sharding

    devices = count_devices(cfg, on_gpu)
    if devices == 1:
        if cfg.strategy == "fsdp":
            tell("trainer.strategy=fsdp with one device: it has the whole model.")
        return "auto"
    if cfg.strategy == "ddp":
        return UNEVEN if gathers else "auto"
    if gathers:
        raise UserError(
            "trainer.strategy=fsdp for a model with anchors, of whose weights each device uses "
            "others in a step",
            "a model that always uses all of its weights",
            "set trainer.strategy=ddp, or model.anchors=0",
        )
    return sharding.strategy(devices)

"""A batch whose loss or gradients were not finite, kept to find out why."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..io.files import atomic
from ..io.tensors import save_torch
from ..types import Batch, Cameras, Pointmap, Views

NOT_FINITE = "not_finite.pt"


@dataclass(frozen=True)
class Failure:
    """The batch of a training step, in the unit of the data, and the weights that met it."""

    step: int
    batch: Batch
    weights: dict[str, Tensor]


def write_failure(path: Path, failure: Failure) -> None:
    """Writes a failure, all or nothing."""
    content = {
        "step": failure.step,
        "batch": asdict(failure.batch.to("cpu")),
        "weights": {name: value.cpu() for name, value in failure.weights.items()},
    }
    with atomic(path) as temporary:
        save_torch(content, temporary)


def read_failure(path: str | Path) -> Failure:
    """Reads what `write_failure` wrote; UserError for another file.

    After `model.load_state_dict(failure.weights)` the batch gives what it gave in training, but for
    what a step draws at random.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        batch = content["batch"]
        views = {side: _views(batch[side]) for side in ("context", "target")}
        return Failure(content["step"], Batch(**views, scene=batch["scene"]), content["weights"])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is not a batch that training kept", NOT_FINITE, "check the path"
        ) from error


def _views(content: dict[str, Any]) -> Views:
    pointmap = content["pointmap"]
    return Views(
        **{
            **content,
            "cameras": Cameras(**content["cameras"]),
            "pointmap": None if pointmap is None else Pointmap(**pointmap),
        }
    )

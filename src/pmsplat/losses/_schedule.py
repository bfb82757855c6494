"""The weighted sum of losses: weights, first steps and intermediate supervision, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..contracts import Loss, Partial
from ..types import StepOutput

DECAY = 0.9  # a level that is n refinements from the answer counts 0.9^n (DepthSplat, ReSplat)


@dataclass(frozen=True)
class Term:
    """A loss, its weight, and the first optimizer step at which it counts."""

    loss: Loss
    weight: float = 1.0
    start_step: int = 0


@dataclass(frozen=True)
class Total:
    """The scalar to minimize; what each term adds to it (weighted, detached); samples it skipped.

    The answer's share is under the name of the term, that of an earlier level under "name/level".
    """

    loss: Tensor
    terms: dict[str, Tensor]
    skipped: dict[str, Tensor]


def total(step: StepOutput, terms: Mapping[str, Term], global_step: int) -> Total:
    """The weighted sum of all terms.

    Every term is computed at every level of the prediction as if refinement had stopped there;
    level i of n counts 0.9^(n-1-i). Levels that cannot learn are left out: those without gradient,
    of a frozen initial model, where others have one. Terms with a later first step, or weight 0,
    are not computed.
    """
    levels = step.prediction.levels
    loss: Tensor | None = None
    values: dict[str, Tensor] = {}
    skipped: dict[str, Tensor] = {}
    views = [step.up_to(level) for level in range(levels)]
    learning = [_has_gradient(view) for view in views]
    for level, view in enumerate(views):
        if any(learning) and not learning[level]:
            continue
        for name, term in terms.items():
            if global_step < term.start_step or term.weight == 0:
                continue
            found = term.loss(view)
            if found is None:
                continue
            label = name if level == levels - 1 else f"{name}/{level}"
            if isinstance(found, Partial):
                skipped[label] = found.skipped
                found = found.value
            value = term.weight * DECAY ** (levels - 1 - level) * found
            loss = value if loss is None else loss + value
            values[label] = value.detach()
    if loss is None:
        loss = step.prediction.depths[-1].new_zeros(())
    return Total(loss, values, skipped)


def _has_gradient(view: StepOutput) -> bool:
    """Whether anything that the last level predicts, or its rendering, wants a gradient."""
    outputs = [*view.prediction.gaussians[-1:], *view.renderings[-1:]]
    tensors = [value for output in outputs for value in vars(output).values()]
    return any(isinstance(x, Tensor) and x.requires_grad for x in [view.depth, *tensors])

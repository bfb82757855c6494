"""The weighted sum of losses: weights, first steps and intermediate supervision, once for all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..types import StepOutput

DECAY = 0.9  # a level that is n refinements from the answer counts 0.9^n (DepthSplat)

Loss = Callable[[StepOutput], Tensor]


@dataclass(frozen=True)
class Term:
    """A loss, its weight, and the first optimiser step at which it counts."""

    loss: Loss
    weight: float = 1.0
    start_step: int = 0


def total(
    step: StepOutput, terms: Mapping[str, Term], global_step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to minimise, and what each term adds to it (weighted, detached).

    Every term looks at every level of the prediction as if refinement had stopped there; level i
    of n counts 0.9^(n-1-i). Values of the answer carry the name of the term, those of an
    earlier level "name/level". Terms with a later first step, or weight 0, are not computed.
    """
    levels = len(step.prediction.depths)
    values: dict[str, Tensor] = {}
    loss = step.prediction.depths[-1].new_zeros(())
    for level in range(levels):
        view = step.up_to(level)
        for name, term in terms.items():
            if global_step < term.start_step or term.weight == 0:
                continue
            value = term.weight * DECAY ** (levels - 1 - level) * term.loss(view)
            loss = loss + value
            values[name if level == levels - 1 else f"{name}/{level}"] = value.detach()
    return loss, values

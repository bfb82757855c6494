"""A running mean of the weights, which usually predicts better than the last ones.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; here values
count less the older they are (Tarvainen and Valpola, "Mean teachers are better role models", 2017).
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import gather_state, local_part, set_state

KEY = "ema"  # of a checkpoint


class Average:
    """`model` is a copy of another one with the mean of the weights that this had after its steps.

    A step replaces each trainable weight w̄ by d·w̄ + (1 - d)·w. Here d is `decay`, but at most
    (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten. What does not
    train is that of the other model.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        frozen = {id(weight): weight for weight in source.parameters() if not weight.requires_grad}
        self.source, self.decay, self.steps = source, decay, 0
        self.model = deepcopy(source, frozen).requires_grad_(False).eval()

    def begin(self, device: torch.device) -> None:
        """Moves the copy to the other's device; where it is new, it starts from its weights."""
        self.model.to(device)
        if not self.steps:
            self._copy(list(self.source.parameters()), list(self.model.parameters()))
        self.refresh()

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after one more step into the mean, in a few launches of the device."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.model.parameters(), self.source.parameters(), strict=True)
        pairs = [pair for pair in pairs if pair[1].requires_grad]
        means, weights = (
            [local_part(weight) for weight in some] for some in zip(*pairs, strict=True)
        )
        torch._foreach_lerp_(means, weights, 1 - decay)
        self.steps += 1

    def refresh(self) -> None:
        """Brings what changes without being trained, as the statistics of a layer, up to date."""
        self._copy(list(self.source.buffers()), list(self.model.buffers()))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: weights, whole in the first process, and the number of steps."""
        weights = {f"model.{name}": value for name, value in gather_state(self.model).items()}
        return {"state_dict": weights, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.steps = state["steps"]
        weights = {name.removeprefix("model."): x for name, x in state["state_dict"].items()}
        set_state(self.model, weights)

    @staticmethod
    @torch.no_grad()
    def _copy(given: list[Tensor], places: list[Tensor]) -> None:
        for value, place in zip(given, places, strict=True):
            if place is not value:
                local_part(place).copy_(local_part(value))

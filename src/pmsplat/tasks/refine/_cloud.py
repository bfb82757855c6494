"""Gaussians while they are optimised: free parameters, each with its moments of Adam.

Learning rates, Adam's epsilon and the ranges of scale and opacity: Kerbl et al., "3D Gaussian
Splatting for Real-Time Radiance Field Rendering", 2023, and its code.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ...types import CLASSIC, Bundle, DrawingRules, Gaussians

MEANS, MEANS_AT_END = 1.6e-4, 1.6e-6  # learning rates, times the extent of the scene
LOG_SCALES, QUATS, LOGITS, SH_DC, SH_REST = 5e-3, 1e-3, 5e-2, 2.5e-3, 2.5e-3 / 20
EPSILON = 1e-15
MARGIN = 1e-4  # opacities start so far from 0 and 1, or their logits would be infinite


@dataclass(frozen=True)
class Parameters(Bundle):
    """What Adam moves, one scene: anything here is a Gaussian, so nothing needs a bound."""

    means: Float[Tensor, "gaussian 3"]
    log_scales: Float[Tensor, "gaussian 3"]
    quats_wxyz: Float[Tensor, "gaussian 4"]
    logits: Float[Tensor, " gaussian"]
    sh_dc: Float[Tensor, "gaussian 1 3"]
    sh_rest: Float[Tensor, "gaussian rest 3"]

    @classmethod
    def of(cls, gaussians: Gaussians) -> "Parameters":
        """The parameters of Gaussians, batch 1."""
        one = gaussians.detach().to(torch.float32)
        return cls(
            means=one.means[0],
            log_scales=one.scales[0].clamp_min(torch.finfo(torch.float32).tiny).log(),
            quats_wxyz=normalize(one.quats_wxyz[0], dim=-1),
            logits=one.opacities[0].clamp(MARGIN, 1 - MARGIN).logit(),
            sh_dc=one.sh[0, :, :1],
            sh_rest=one.sh[0, :, 1:],
        )

    def gaussians(self, rules: DrawingRules = CLASSIC) -> Gaussians:
        """Batch 1, with gradients to the parameters."""
        return Gaussians(
            means=self.means[None],
            scales=self.log_scales.exp()[None],
            quats_wxyz=normalize(self.quats_wxyz, dim=-1)[None],
            opacities=self.logits.sigmoid()[None],
            sh=torch.cat([self.sh_dc, self.sh_rest], dim=1)[None],
            rules=rules,
        )


class Cloud:
    """Parameters and their optimiser. All of ours that changes their number is `take`.

    `extent` is the size of the scene, in its unit, by which the steps of the means are measured;
    they shrink exponentially over `steps`. `rules` is how they are drawn.
    """

    def __init__(
        self, parameters: Parameters, extent: float, steps: int, rules: DrawingRules = CLASSIC
    ) -> None:
        self.extent, self.steps, self.rules = extent, steps, rules
        self.parameters = parameters.map(lambda tensor: tensor.clone().requires_grad_())
        rates = (MEANS * extent, LOG_SCALES, QUATS, LOGITS, SH_DC, SH_REST)
        groups = [
            {"params": [getattr(self.parameters, field.name)], "lr": rate}
            for field, rate in zip(fields(Parameters), rates, strict=True)
        ]
        self.adam = torch.optim.Adam(groups, eps=EPSILON, fused=True)

    def __len__(self) -> int:
        return len(self.parameters.means)

    def gaussians(self) -> Gaussians:
        """Batch 1, with gradients to the parameters."""
        return self.parameters.gaussians(self.rules)

    @property
    def means_rate(self) -> float:
        """The learning rate of the means, in scene units."""
        return self.adam.param_groups[0]["lr"]

    def update(self, step: int) -> None:
        """One step of Adam along the gradients, which are gone afterwards; `step` counts from 0."""
        done = min(step / self.steps, 1.0)
        rate = math.exp((1 - done) * math.log(MEANS) + done * math.log(MEANS_AT_END))
        self.adam.param_groups[0]["lr"] = rate * self.extent
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def take(self, rows: Int[Tensor, " taken"], fresh: Bool[Tensor, " taken"]) -> None:
        """Gaussian i becomes what Gaussian `rows[i]` was: rows may be dropped and repeated.

        The moments of Adam go along, but are 0 where `fresh`.
        """
        taken = []
        for group in self.adam.param_groups:
            (old,) = group["params"]
            new = old.detach()[rows].requires_grad_()
            state = self.adam.state.pop(old, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = state[name][rows]
                    state[name][fresh] = 0
            group["params"] = [new]
            if state:
                self.adam.state[new] = state
            taken.append(new)
        self.parameters = Parameters(*taken)

    @torch.no_grad()
    def cap_opacities(self, most: float) -> None:
        """No opacity above `most`; their moments are forgotten, so that they stay down a while."""
        logits = self.parameters.logits
        logits.clamp_(max=math.log(most / (1 - most)))
        for name in ("exp_avg", "exp_avg_sq"):
            if name in self.adam.state.get(logits, {}):
                self.adam.state[logits][name].zero_()

    def state(self) -> dict[str, Any]:
        """What `restore` wants, for a file."""
        tensors = {f.name: getattr(self.parameters, f.name).detach() for f in fields(Parameters)}
        return {"parameters": tensors, "adam": self.adam.state_dict(), "extent": self.extent}

    def restored(self, state: dict[str, Any]) -> "Cloud":
        """The cloud that `state` tells of, of the same run: with these steps, rules and device."""
        parameters = Parameters(**state["parameters"]).to(self.parameters.means.device)
        cloud = Cloud(parameters, state["extent"], self.steps, self.rules)
        cloud.adam.load_state_dict(state["adam"])
        return cloud

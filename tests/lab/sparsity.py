"""A loss of somebody else's: pushes opacities towards zero or one."""

from dataclasses import dataclass

from pmsplat.contracts import Loss
from pmsplat.types import StepOutput


@dataclass
class Config:
    power: int = 1


def build(cfg: Config) -> Loss:
    def sparsity(step: StepOutput):
        opacity = step.prediction.gaussians[-1].opacities
        return (opacity * (1 - opacity)).pow(cfg.power).mean()

    return sparsity

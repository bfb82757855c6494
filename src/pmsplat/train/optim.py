"""The optimiser of the published models: AdamW with one cycle, and a slow pretrained backbone."""

from dataclasses import dataclass

from torch import nn, optim

FOUNDATION = "pmsplat.foundation."  # where other people's pretrained networks live


@dataclass
class Config:
    lr: float = 2e-4  # the peak
    backbone_lr: float = 2e-6  # the peak of pretrained networks (every module of `foundation`)
    weight_decay: float = 0.01
    warm_up: float = 0.01  # share of the steps that climb from lr/25 to the peak


def parameter_groups(model: nn.Module, cfg: Config) -> list[dict]:
    """Trainable parameters in two groups, "new" and "backbone" (left out where empty)."""
    pretrained = {
        id(parameter)
        for module in model.modules()
        if type(module).__module__.startswith(FOUNDATION)
        for parameter in module.parameters()
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in pretrained], "lr": cfg.lr},
        {"params": [p for p in trainable if id(p) in pretrained], "lr": cfg.backbone_lr},
    ]
    named = zip(groups, ("new", "backbone"), strict=True)
    return [group | {"name": name} for group, name in named if group["params"]]


def build(
    model: nn.Module, cfg: Config, steps: int
) -> tuple[optim.AdamW, optim.lr_scheduler.OneCycleLR]:
    """The optimiser and its schedule, to be stepped once per optimiser step.

    Each group climbs by a cosine from lr/25 to its lr and falls by a cosine towards lr/25e4, which
    it would reach 10 steps after the last (as published); momentum stays.
    """
    groups = parameter_groups(model, cfg)
    optimizer = optim.AdamW(groups, weight_decay=cfg.weight_decay)
    schedule = optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=steps + 10,
        pct_start=cfg.warm_up,
        cycle_momentum=False,
        anneal_strategy="cos",
    )
    return optimizer, schedule

"""What stops a training."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pmsplat import config
from pmsplat.errors import UserError
from pmsplat.train.module import TrainingModule
from pmsplat.train.step import Outcome
from tests.losses.test_depth import depth_only, random_depths


def test_a_loss_that_passes_over_every_sample_for_long_stops_the_run(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth, _ = random_depths(generator, dtype=torch.float32)
    step = depth_only(depth, None)
    batch = replace(step.batch, scene=["one", "two"])
    experiment = config.compose(["+experiment=depth_tiny", "trainer.log_every=5"])
    module = TrainingModule(experiment, torch.nn.Identity(), {})
    trainer = SimpleNamespace(global_step=0, optimizers=[SimpleNamespace(param_groups=[])])
    module._trainer = trainer  # pyright: ignore
    monkeypatch.setattr(module, "log_dict", lambda values, batch_size: None)
    zero = torch.zeros(())

    def steps(first: int, last: int, skipped: int) -> None:
        told = Outcome(zero, {}, {"pointmap": torch.tensor(skipped)}, {}, step)
        monkeypatch.setattr("pmsplat.train.module.training_step", lambda *_: told)
        for trainer.global_step in range(first, last):
            module.training_step(batch, 0)

    steps(0, 18, skipped=2)
    steps(18, 19, skipped=1)  # one sample was taught: the count begins anew
    steps(19, 38, skipped=2)
    steps(38, 39, skipped=2)  # 20 in a row, told where the log is written
    with pytest.raises(UserError, match=r"loss\.pointmap passed over every .* 21 steps.*~loss\.po"):
        steps(39, 40, skipped=2)

"""The running mean of the weights: its formula, what holds it, and how it goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import pmsplat
from pmsplat import train
from pmsplat.errors import UserError
from pmsplat.train import Experiment, module
from pmsplat.train.average import Average
from tests.train.test_loop import interrupt_at

Setting = Callable[..., Experiment]


def test_it_is_the_sum_with_weights_that_fall(generator: torch.Generator) -> None:
    """In float64, of 200 steps: (1 - d) of each step times the d of those after it."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    model[1].bias.requires_grad_(False)  # type: ignore[union-attr]
    mean, weights = Average(model, 0.95), [model[0].weight.detach().clone()]  # type: ignore[union-attr]
    mean.begin(torch.device("cpu"))
    for _ in range(200):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator, dtype=torch.double)
                )
        weights.append(model[0].weight.detach().clone())  # type: ignore[union-attr]
        mean.update()
    decays = torch.tensor([min(0.95, (1 + n) / (10 + n)) for n in range(200)], dtype=torch.double)
    after = decays.flip(0).cumprod(0).flip(0)  # of a step and all later ones
    shares = torch.cat([after[:1], (1 - decays) * torch.cat([after[1:], after.new_ones(1)])])
    wanted = (shares[:, None, None] * torch.stack(weights)).sum(0)
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)
    first, norm = mean.model.children()
    torch.testing.assert_close(first.weight, wanted, atol=1e-12, rtol=0)  # type: ignore[arg-type]
    assert norm.bias is model[1].bias  # type: ignore[union-attr]
    model[1].running_mean.fill_(3)  # type: ignore[union-attr,operator]
    mean.refresh()
    assert torch.equal(norm.running_mean, model[1].running_mean)  # type: ignore[arg-type,union-attr]


def averages(output: str | Path) -> dict[str, torch.Tensor]:
    saved = torch.load(Path(output) / "last.ckpt", weights_only=True)["ema"]
    return {name.removeprefix("model."): value for name, value in saved["state_dict"].items()}


def test_it_changes_no_step_and_goes_on_bit_for_bit(setting: Setting, tmp_path: Path) -> None:
    words = ("trainer.workers=0", "trainer.steps=8")
    outputs = [str(tmp_path / name) for name in ("off", "on", "again")]
    train.run(setting(*words, f"output={outputs[0]}"))
    exported = train.run(setting(*words, "trainer.ema=0.9", f"output={outputs[1]}"))
    interrupt_at(3, setting(*words, "trainer.ema=0.9", f"output={outputs[2]}"))
    train.run(setting(*words, "trainer.ema=0.9", "trainer.resume=true", f"output={outputs[2]}"))
    off, on, again = (torch.load(Path(p) / "last.ckpt", weights_only=True) for p in outputs)
    assert "ema" not in off and on["ema"]["steps"] == again["ema"]["steps"] == 8
    for name, value in off["state_dict"].items():
        assert torch.equal(value, on["state_dict"][name])
        assert torch.equal(on["ema"]["state_dict"][name], again["ema"]["state_dict"][name])
    # Exported is the mean, and not the last weights
    mean, last = averages(outputs[1]), off["state_dict"]
    for name, value in pmsplat.load(exported).state_dict().items():
        assert torch.equal(value, mean[name]) and not torch.equal(value, last[f"model.{name}"])
    with pytest.raises(UserError, match=r"last\.ckpt, of a training that goes on.*model\.safe"):
        pmsplat.load(Path(outputs[1]) / "last.ckpt")


def test_validation_looks_through_the_mean(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    step = module.TrainingModule.validation_step

    def watched(self: module.TrainingModule, batch: object, batch_idx: int) -> object:
        assert self.average is not None
        seen.append([x.clone() for x in self.average.model.parameters()])
        out = step(self, batch, batch_idx)  # type: ignore[arg-type]
        told = self.average.model(batch.context)  # type: ignore[attr-defined]
        assert torch.equal(out.prediction.depths[-1], told.depths[-1])
        return out

    monkeypatch.setattr(module.TrainingModule, "validation_step", watched)
    words = ("trainer.workers=0", "trainer.steps=4", "trainer.ema=0.9", "trainer.validate_every=4")
    experiment = setting(*words, "trainer.validate_scenes=1")
    train.run(experiment)
    best = pmsplat.load(Path(experiment.output) / "best.safetensors")
    (parameters,) = seen
    assert all(torch.equal(x, y) for x, y in zip(best.parameters(), parameters, strict=True))


def test_a_run_may_go_on_with_it_or_without(setting: Setting) -> None:
    words = ("trainer.workers=0", "trainer.steps=8", "trainer.resume=auto")
    interrupt_at(2, setting(*words))
    interrupt_at(2, setting(*words, "trainer.ema=0.9"))
    saved = torch.load(Path(setting().output) / "last.ckpt", weights_only=True)
    assert saved["ema"]["steps"] == 2 and saved["global_step"] == 4
    told: list[str] = []
    train.run(setting(*words), told.append)
    assert any("trainer.ema=0.0 (was 0.9)" in line for line in told)
    with pytest.raises(UserError, match=r"trainer\.ema=1"):
        setting("trainer.ema=1")

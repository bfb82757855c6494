"""What is kept of a run: the last checkpoints, the best model, and nothing that is damaged."""

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning
import torch

import pmsplat
from pmsplat import train
from pmsplat.train import Experiment, checkpoints
from pmsplat.train.checkpoints import Checkpoints

Setting = Callable[..., Experiment]


def test_the_last_checkpoints_are_kept_and_resume(setting: Setting) -> None:
    words = ("trainer.workers=0", "trainer.steps=7", "trainer.checkpoint_every=2")
    experiment = setting(*words, "trainer.keep_checkpoints=2")
    train.run(experiment)
    output = Path(experiment.output)
    kept = sorted((output / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step_0000006.ckpt", "step_0000007.ckpt"]
    end, before = (torch.load(path, weights_only=True)["state_dict"] for path in reversed(kept))
    last = torch.load(output / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in end.items())
    assert not all(torch.equal(value, last[name]) for name, value in before.items())
    (output / "last.ckpt").write_bytes(kept[0].read_bytes())
    train.run(setting(*words, "trainer.resume=true"))
    again = torch.load(output / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in again.items())


def test_the_best_model_is_that_of_the_best_validation(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of PSNR 20, 25 and 22 the second, which the checkpoint remembers."""
    values = {2: 20.0, 4: 25.0, 6: 22.0}
    measured = property(lambda self: {"val/psnr": torch.tensor(values[self.global_step])})
    monkeypatch.setattr(pytorch_lightning.Trainer, "callback_metrics", measured)
    words = ("trainer.workers=0", "trainer.steps=6", "trainer.validate_scenes=1")
    experiment = setting(*words, "trainer.validate_every=2", "trainer.checkpoint_every=4")
    seen = {}
    save = Checkpoints._save

    def saved(self: Checkpoints, trainer: object) -> None:
        save(self, trainer)  # type: ignore[arg-type]
        step = trainer.global_step  # type: ignore[attr-defined]
        seen[step] = (self.folder / "model.safetensors").read_bytes()

    monkeypatch.setattr(checkpoints.Checkpoints, "_save", saved)
    train.run(experiment)
    best = Path(experiment.output) / "best.safetensors"
    assert best.read_bytes() == seen[4] != seen[6]
    assert pmsplat.load(best) is not None
    state = torch.load(Path(experiment.output) / "last.ckpt", weights_only=True)["callbacks"]
    assert state["Checkpoints"] == {"best": 25.0}


def test_a_checkpoint_that_is_damaged_on_its_way_replaces_none(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = setting("trainer.workers=0", "trainer.steps=4", "trainer.checkpoint_every=2")
    read_again = checkpoints._read_again

    def damaged(path: Path) -> None:
        if (path.parent / "last.ckpt").exists():  # the second
            with zipfile.ZipFile(path) as archive:
                largest = max(archive.infolist(), key=lambda part: part.file_size)
            content = bytearray(path.read_bytes())
            content[largest.header_offset + largest.file_size // 2 + 100] ^= 1
            path.write_bytes(content)
        read_again(path)

    monkeypatch.setattr(checkpoints, "_read_again", damaged)
    with pytest.raises(OSError, match="is not what was written"):
        train.run(experiment)
    last = Path(experiment.output) / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert not list(last.parent.glob("*.tmp")) and not list(last.parent.glob(".*.tmp"))


def test_the_norm_of_the_gradients_is_logged(setting: Setting) -> None:
    """Unclipped, of the step before."""
    experiment = setting("trainer.workers=0", "trainer.steps=3", "trainer.gradient_clip=1e-6")
    train.run(experiment)
    with next(Path(experiment.output).glob("csv/*/metrics.csv")).open() as file:
        norms = [float(row["train/gradient_norm"]) for row in csv.DictReader(file)]
    assert norms[0] == 0 and all(norm > 1e-4 for norm in norms[1:])

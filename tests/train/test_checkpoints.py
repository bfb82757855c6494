"""What is kept of a run: the last checkpoints, the best model, and nothing that is damaged."""

import csv
import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning
import torch

import pmsplat
from pmsplat import train
from pmsplat.errors import UserError
from pmsplat.train import Experiment, checkpoints
from pmsplat.train.checkpoints import Checkpoints, kept_bytes
from tests.lab.encoder import Encoder

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


def test_a_damaged_checkpoint_names_the_newest_that_can_be_read(setting: Setting) -> None:
    words = ("trainer.workers=0", "trainer.steps=6", "trainer.checkpoint_every=2")
    experiment = setting(*words, "trainer.keep_checkpoints=3")
    train.run(experiment)
    last = Path(experiment.output) / "last.ckpt"
    second, newest = (last.parent / "checkpoints" / f"step_000000{n}.ckpt" for n in (4, 6))
    assert last.samefile(newest)  # which is damaged together with it
    last.write_bytes(last.read_bytes()[:-100])
    for how in ("auto", "true"):
        with pytest.raises(UserError, match=rf"last\.ckpt is not .*copy {second}, the newest"):
            train.run(setting(*words, f"trainer.resume={how}"))
    last.unlink()
    shutil.copy(second, last)
    told: list[str] = []
    train.run(setting(*words, "trainer.resume=auto"), told.append)
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert told[-1] == f"trained: {last.with_name('model.safetensors')}"


def test_a_finished_run_is_left_as_it_is(setting: Setting) -> None:
    words = ("trainer.workers=0", "trainer.steps=2")
    output = Path(setting().output)
    train.run(setting(*words))
    before = content_of(output)
    told: list[str] = []
    for how in ("auto", "true"):
        resumed = setting(*words, f"trainer.resume={how}", "trainer.batch_size=1")
        assert train.run(resumed, told.append) == output / "model.safetensors"
    assert content_of(output) == before
    assert len(told) == 2 and all("All 2 steps (trainer.steps) were done" in it for it in told)


def test_a_run_that_was_killed_before_its_model_was_written_writes_it(setting: Setting) -> None:
    words = ("trainer.workers=0", "trainer.steps=2")
    train.run(setting(*words))
    model = Path(setting().output) / "model.safetensors"
    wanted = model.read_bytes()
    model.write_bytes(b"of an earlier step")
    os.utime(model, (0, 0))
    train.run(setting(*words, "trainer.resume=auto"))
    assert model.read_bytes() == wanted


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_a_disk_without_room_is_told_before_the_first_step(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one byte less than what the checkpoints and models of the run take."""
    experiment = setting("trainer.workers=0", "trainer.steps=4", "trainer.keep_checkpoints=3")
    model = Encoder(experiment.model.settings)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    needed = 4 * numbers * (3 * (3 + 1) + 3)
    usage = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr("pmsplat.io.files.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"MB free in .*, where checkpoints and models take"):
        train.run(experiment)
    assert not list(Path(experiment.output).iterdir())
    usage.free = needed
    train.run(experiment)
    left = sum(path.stat().st_size for path in (Path(experiment.output) / "checkpoints").iterdir())
    assert kept_bytes(Path(experiment.output)) > left > 0


def test_a_disk_that_fills_leaves_the_checkpoint_before(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = 0
    whole = checkpoints.save_torch

    def fill(content: object, path: Path) -> None:
        nonlocal saved
        saved += 1
        whole(content, path)
        if saved == 2:
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    experiment = setting("trainer.workers=0", "trainer.steps=6", "trainer.checkpoint_every=2")
    straight = setting("trainer.workers=0", "trainer.steps=6", f"output={experiment.output}2")
    train.run(straight)
    monkeypatch.setattr(checkpoints, "save_torch", fill)
    said = r"after 4 steps: No space left.*last\.ckpt, which is of step 2, by trainer"
    with pytest.raises(UserError, match=said):
        train.run(experiment)
    output = Path(experiment.output)
    assert torch.load(output / "last.ckpt", weights_only=True)["global_step"] == 2
    assert pmsplat.load(output / "model.safetensors") is not None
    assert not list(output.rglob("*.tmp"))
    for name in (".model-1.tmp", ".last.ckpt.tmp"):  # as a killed run leaves them
        (output / name).write_bytes(b"half")
    again = ("trainer.workers=0", "trainer.steps=6", "trainer.resume=true")
    train.run(setting(*again))
    ours, theirs = (
        torch.load(Path(folder) / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (output, straight.output)
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not list(output.rglob("*.tmp"))


def test_the_norm_of_the_gradients_is_logged(setting: Setting) -> None:
    """Unclipped, of the step before."""
    experiment = setting("trainer.workers=0", "trainer.steps=3", "trainer.gradient_clip=1e-6")
    train.run(experiment)
    with next(Path(experiment.output).glob("csv/*/metrics.csv")).open() as file:
        norms = [float(row["train/gradient_norm"]) for row in csv.DictReader(file)]
    assert norms[0] == 0 and all(norm > 1e-4 for norm in norms[1:])

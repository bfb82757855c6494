"""`python benchmarks/run.py updates`: figures of an update are those of the model that it left."""

import json
from pathlib import Path

import pytest
from benchmarks.run import main

from benchmarks import updates
from pmsplat import registry
from pmsplat.evaluate import protocol
from pmsplat.zoo.load import load


@pytest.mark.slow
def test_a_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(updates, "ROOMS", (3, 3))
    monkeypatch.setattr(updates, "SCENES", 2)
    monkeypatch.setattr(updates, "MOMENTS", (0, 1, 8))
    words = ["updates", "--output", str(tmp_path), "--kinds", "resplat", "--seeds", "1"]
    words += ["--steps", "2", "2", "--size", "32", "32", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    (figures,) = json.loads((tmp_path / "out.json").read_text())["figures"]["resplat"]
    # PSNR of the initial Gaussians and of the last is that of an evaluation with so many steps
    plan = updates.Plan(tmp_path, None, (), (32, 32), (2, 2))
    run = updates.experiment(plan, "resplat", 1, 0)
    data = registry.build("data", run.dataset.name, run.dataset.settings)
    model = load(plan.folder("resplat", 1, 0) / "model.safetensors").eval()
    for steps in (0, updates.STEPS):
        pipeline = protocol.pipeline(model, scale_near=True, passes=protocol.Passes(steps))
        means = protocol.evaluate(pipeline, data.evaluation()).means
        assert figures["psnr"][steps] == pytest.approx(means["psnr"], abs=1e-3)
    # Both rates start from the same Gaussians, and Adam lowers the error
    slow, fast = figures["optimised"].values()
    assert slow[0][0] == fast[0][0] < min(slow[2][0], fast[2][0])
    assert (tmp_path / "resplat.png").is_file()
    # A run that is done is read, not repeated
    monkeypatch.setattr("pmsplat.train.run", lambda _: pytest.fail("trained again"))
    assert main(words) == 0
    assert "Adam, 4 x the rates" in capsys.readouterr().out


def test_scenes_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "hall").mkdir(parents=True)
    words = ["updates", "--output", str(tmp_path / "out"), "--scenes", str(tmp_path / "photos")]
    assert main([*words, "--unseen", "garden"]) == 2
    assert "choose some of hall" in capsys.readouterr().err

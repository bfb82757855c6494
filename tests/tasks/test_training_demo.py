"""The training demo leaves what it promises; its numbers are those of the protocol."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import pmsplat
from pmsplat import config, registry
from pmsplat.errors import UserError
from pmsplat.evaluate import baselines, protocol
from pmsplat.io.video import read_frames
from pmsplat.tasks import training_demo as demo
from pmsplat.tasks.results import prediction
from pmsplat.train import Experiment


def tiny(folder: Path) -> Experiment:
    """The demo's own experiment, cut to seconds."""
    return config.compose(
        [
            "+experiment=demo_tiny",
            f"dataset.root={folder}/data",
            "dataset.scenes=2",
            "dataset.test_scenes=2",
            "dataset.frames=8",
            "dataset.size=[32,48]",
            "dataset.gap=[3,5]",
            "model.width=16",
            "model.planes=8",
            "model.head_width=16",
            "trainer.steps=2",
            "trainer.batch_size=1",
            "trainer.validate_every=0",
            "trainer.loggers=[csv]",
        ]
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> demo.Outcome:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "LEAST_SIDE", 32)  # the video as small as the photos: quicker
        return demo.train_demo(tiny(folder), folder / "out", tell=lambda text: None)


def test_everything_is_where_it_says(outcome: demo.Outcome) -> None:
    assert outcome.checkpoint.is_file() and pmsplat.load(outcome.checkpoint)
    assert pmsplat.load_ply(outcome.gaussians).means.shape == (1, 2 * 32 * 48, 3)
    assert len(read_frames(outcome.video)) > 30
    with Image.open(outcome.picture) as picture:
        columns = 3 + 4  # two photos, the target, four methods
        assert picture.width >= columns * demo.PICTURE_HEIGHT
        assert picture.height >= 2 * 2 * demo.PICTURE_HEIGHT  # two rooms, two rows each
    table = (outcome.folder / "table.txt").read_text()
    for name in (demo.NEAREST, demo.SWEEP, demo.BEFORE, demo.AFTER):
        assert name in table and f"{outcome.results[name].means['psnr']:.2f}" in table


def test_numbers_are_those_of_the_protocol(outcome: demo.Outcome) -> None:
    written = json.loads((outcome.folder / "results.json").read_text())
    experiment = json.loads((outcome.folder / demo.MARK).read_text())
    settings = experiment["dataset"]["settings"]
    batches = list(registry.build("data", "synthetic", settings).evaluation())
    assert len(batches) == 2
    after = protocol.evaluate(protocol.pipeline(pmsplat.load(outcome.checkpoint)), batches)
    assert written[demo.AFTER]["means"] == pytest.approx(after.means, rel=1e-4)
    nearest = protocol.evaluate(baselines.nearest_view, batches)
    assert written[demo.NEAREST]["means"] == pytest.approx(nearest.means, rel=1e-6)
    assert set(written[demo.SWEEP]["means"]) >= {"psnr", "ssim", "abs_rel", "delta1"}
    assert written[demo.BEFORE]["means"] != written[demo.AFTER]["means"]


def test_before_is_what_training_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step at a learning rate of nothing changes nothing."""
    experiment = tiny(tmp_path)
    frozen = replace(
        experiment,
        optimizer=replace(experiment.optimizer, lr=1e-12, weight_decay=0.0),
        trainer=replace(experiment.trainer, steps=1),
    )
    monkeypatch.setattr(prediction, "LEAST_SIDE", 32)
    outcome = demo.train_demo(frozen, tmp_path / "out", tell=lambda text: None)
    before, after = (outcome.results[name].means for name in (demo.BEFORE, demo.AFTER))
    assert after == pytest.approx(before, rel=1e-4)


def test_a_second_demo_replaces_the_first_but_nothing_else(
    outcome: demo.Outcome, tmp_path: Path
) -> None:
    (outcome.folder / "training" / "stale").write_text("x")
    demo._claim_folder(outcome.folder, tiny(tmp_path))
    assert not (outcome.folder / "training").exists()
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        demo.train_demo(tiny(tmp_path), tmp_path, tell=lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        demo.train_demo(tiny(tmp_path), tmp_path / "thesis.tex", tell=lambda text: None)


def test_torch_is_left_alone(outcome: demo.Outcome) -> None:
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()

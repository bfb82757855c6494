"""Training on damaged data: the rest is used, every fault is named once, and totals add up."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmsplat import config, train
from pmsplat.data import Frames, write_index
from pmsplat.errors import UserError
from pmsplat.io import chunks
from pmsplat.train import Experiment
from tests.io.test_chunks import ours
from tests.train.test_loop import losses

DAMAGE = {  # scene: reason
    "cut": "cannot be read",
    "empty": "no list 'images' of encoded photos",
    "torn": "an unreadable image",
    "nan": "cameras that are not finite",
    "twin": "another scene of the same key in its chunk",
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Two good scenes, five damaged ones, and one that is too short for the gap."""
    split = tmp_path / "data" / "train"
    torn = ours("torn", 6)
    torn = replace(torn, images=tuple(image[:50] for image in torn.images))
    nan = ours("nan", 6)
    nan.c2w[2, 0, 3] = torch.nan
    names = ["good", "fine", "twin", "twim", "empty", "short"]
    scenes = [ours(name, 2 if name == "short" else 6) for name in names]
    chunks.append(split, [*scenes, torn, nan])
    path = split / "000000.torch"
    entries = torch.load(path, weights_only=True)
    entries[3]["key"] = "twin"
    entries[4]["images"] = []
    torch.save(entries, path)
    chunks.write_index(split)
    cut = chunks.append(split, [ours("cut", 6), ours("off", 6)])
    cut.write_bytes(cut.read_bytes()[:-100])
    return split.parent


def settings(data: Path, *more: str) -> Experiment:
    return config.compose(
        [
            "+experiment=demo_tiny",
            "dataset=folder",
            "model=tests.lab.encoder",
            f"dataset.root={data}",
            "dataset.size=[8,8]",
            "dataset.gap=[3,4]",
            "dataset.scale_near=false",
            "~loss.log_depth",
            "trainer.steps=6",
            "trainer.batch_size=2",
            "trainer.log_every=1",
            "trainer.validate_every=0",
            "trainer.loggers=[csv]",
            f"output={data.parent / 'out'}",
            *more,
        ]
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_damage_is_named_once_and_the_rest_is_used(damaged: Path, workers: int) -> None:
    said: list[str] = []
    experiment = settings(damaged, f"trainer.workers={workers}", "trainer.steps=20")
    train.run(experiment, said.append)
    assert len(losses(experiment.output)) == 20
    for scene, reason in DAMAGE.items():
        what = "all 2 scenes of 000001.torch" if scene == "cut" else f"scene {scene!r} of"
        (line,) = [text for text in said if what in text]
        assert reason in line
    (line,) = [text for text in said if "too few frames" in text and "Left out" in text]
    assert "'short'" in line
    (line,) = [text for text in said if "7 scenes were left out" in text]
    assert line.count("(1)") == 5
    with (Path(experiment.output) / "skipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["scene"] for row in rows} == {*DAMAGE, "off", "short"} and len(rows) == 7
    assert {row["scene"] for row in rows if row["damaged"] == "True"} == {*DAMAGE, "off"}


def test_strict_ends_at_the_first_damage(damaged: Path) -> None:
    experiment = settings(damaged, "trainer.workers=0", "trainer.strict=true")
    with pytest.raises(UserError, match=r"scenes? .*of 00000.*trainer\.strict"):
        train.run(experiment, lambda text: None)


def test_whole_data_say_nothing(tmp_path: Path) -> None:
    chunks.append(tmp_path / "data" / "train", [ours("good", 6), ours("fine", 6)])
    said: list[str] = []
    experiment = settings(tmp_path / "data", "trainer.workers=0", "trainer.strict=true")
    train.run(experiment, said.append)
    assert not [text for text in said if "eft out" in text]
    assert not (Path(experiment.output) / "skipped.csv").exists()


def test_data_without_a_test_split_train_without_validation(tmp_path: Path) -> None:
    """And are refused, with the remedy, where the split is there and its index is not."""
    data = tmp_path / "data"
    chunks.append(data / "train", [ours("good", 6), ours("fine", 6)])
    said: list[str] = []
    validated = ("trainer.workers=0", "trainer.validate_every=3", "dataset.size=[12,12]")
    trained = train.run(settings(data, *validated), said.append)
    assert trained.is_file()
    assert len([text for text in said if "There is no validation" in text]) == 1
    chunks.append(data / "test", [ours("other", 6)])
    with pytest.raises(UserError, match=r"no evaluation index .*trainer\.validate_every=0"):
        train.run(settings(data, *validated, f"output={tmp_path / 'again'}"), said.append)


def test_what_validation_leaves_out_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "test"):
        chunks.append(data / split, [ours("good", 6), ours("fine", 6)])
    index = data / "index.json"
    write_index(index, {"good": Frames((0, 4), (2,)), "fine": Frames((0, 4), (6,))})
    said: list[str] = []
    validated = ("trainer.workers=0", "trainer.validate_every=3", "dataset.size=[12,12]")
    train.run(settings(data, *validated, f"dataset.index={index}"), said.append)
    (line,) = [text for text in said if text.startswith("Left out")]
    assert "scene 'fine' of 000000.torch" in line and "frame 6 of 0 to 5" in line
    assert [text for text in said if text.startswith("1 scene was left out")]

"""The demo reconstructs the photographs that ship, better than showing one of them."""

import json
import re
from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat import shipped_files
from pmsplat.cli import main, parser
from pmsplat.errors import UserError
from pmsplat.evaluate.metrics import psnr
from pmsplat.io.video import read_frames
from pmsplat.scene import open_scene
from pmsplat.tasks import demo
from pmsplat.zoo.shipped import DEFAULT


def test_the_photographs_are_few_small_and_posed() -> None:
    folder = demo.sample_photos()
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 3e6
    scene = open_scene(folder)
    assert len(scene) == 5 and scene.ranged  # the sensor's depth gives near and far
    assert "MIT License" in (folder / "README.md").read_text()


def test_it_leaves_results_and_beats_the_nearest_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--output", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    for name in ("sheet.png", "gaussians.ply", "video.mp4", "depth"):
        assert (out / name).exists() and str(out / name) in said
    (command,) = re.findall(r"were 144x192 in training: run `pmsplat (predict [^`]*)`", said)
    advised = parser().parse_args(command.split())
    assert advised.size == (144, 192) and tuple(advised.context) == demo.CONTEXT
    height, width = demo.SIZE
    assert pmsplat.load_ply(out / "gaussians.ply").means.shape == (1, 3 * height * width, 3)
    assert len(read_frames(out / "video.mp4")) > 30
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["model"] == DEFAULT and len(metrics["held_out"]) == 2
    views = open_scene(demo.sample_photos()).views(range(5), demo.SIZE)
    held = [index for index in range(5) if index not in demo.CONTEXT]
    distance = torch.cdist(views.cameras.c2w[0, held, :3, 3], views.cameras.c2w[0, :, :3, 3])
    nearest = [min(demo.CONTEXT, key=lambda view: row[view].item()) for row in distance]
    copied = psnr(views.images[0, nearest], views.images[0, held]).mean().item()
    assert metrics["means"]["psnr"] > copied + 3


def test_options_of_the_other_demo_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--steps", "3"], ["--seed", "3"], ["--train", "--device", "cpu"]):
        assert main(["demo", *words]) == 2
        assert words[0] in capsys.readouterr().err


def test_photographs_that_were_removed_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped_files, "PACKAGE", tmp_path / "a")
    monkeypatch.setattr(shipped_files, "CLONE", tmp_path / "b")
    with pytest.raises(UserError, match=r"git checkout assets/office/transforms\.json"):
        demo.sample_photos()

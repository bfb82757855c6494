"""`python benchmarks/run.py refine`: three starts of one scene, one from a trained model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.run import main
from PIL import Image

import pmsplat
from pmsplat.evaluate.metrics import psnr
from pmsplat.models import depthsplat
from pmsplat.scene import open_scene
from pmsplat.scene.overlap import group_views, overlaps
from pmsplat.zoo.infer import reconstruct
from pmsplat.zoo.load import load, save

HELD, REST = [0, 8], [1, 2, 3, 4, 5, 6, 7, 9]
SIZE = (32, 48)


@pytest.fixture(scope="module")
def checkpoint(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder, trained for seconds on photos of the scene that are not held out."""
    torch.manual_seed(0)
    settings = {"vit": "none", "width": 16, "planes": 16, "transformer_layers": 1}
    model = depthsplat.build(depthsplat.Config(**settings, head_width=16, sh_degree=1))
    views = open_scene(model_folder).views(REST, SIZE)
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(40):
        first = step % (len(REST) - 2)
        context, target = views.at([first, first + 2]), views.at([first + 1])
        drawn = pmsplat.rasterize(model(context).gaussians[-1], target.cameras, SIZE)
        loss = (drawn.color - target.images).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(model, path, "depthsplat")
    return path


@pytest.mark.slow
def test_three_starts_and_their_curves(
    checkpoint: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    words = ["refine", str(model_folder), "--model", str(checkpoint), "--output",
             str(out), "--steps", "40", "--size", "32", "48"]  # fmt: skip
    assert main([*words, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["figures"]
    assert list(found) == ["prediction", "points", "random"]
    lines = capsys.readouterr().out.splitlines()
    for line, (start, summary) in zip(lines, found.items(), strict=True):
        assert line.startswith(start) and f"strategy {summary['strategy']}" in line
        history = summary["history"]
        assert [moment["step"] for moment in history] == list(range(0, 41, 2))
        assert history[-1]["psnr"] > history[0]["psnr"] + 0.5
        assert summary["start_seconds"] > 0
        assert (out / start / "gaussians.ply").is_file()
    first = {start: summary["history"][0]["psnr"] for start, summary in found.items()}
    assert first["prediction"] > max(first["points"], first["random"]) + 0.5

    # it starts where the model's own prediction is
    scene = open_scene(model_folder)
    train, held = scene.views(REST, SIZE), scene.views(HELD, SIZE)
    model, pixels, parts = load(checkpoint), SIZE[0] * SIZE[1], []
    for group in group_views(overlaps(train.cameras), 4):
        whole = reconstruct(model, train.at(group.views)).prediction.gaussians[-1]
        for i in group.fresh:
            first_pixel = group.views.index(i) * pixels
            parts.append(whole.map(lambda t, at=first_pixel: t[:, at : at + pixels]))
    whole = pmsplat.Gaussians.joined(parts)
    assert whole.means.shape[1] == len(REST) * pixels
    drawn = pmsplat.rasterize(whole, held.cameras, SIZE)
    value = psnr(drawn.color, held.images).mean().item()
    assert first["prediction"] == pytest.approx(value, abs=0.02)

    with Image.open(out / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # a line of each start
        assert (pixels == color).all(axis=-1).sum() > 200
    assert main(words) == 2
    assert "holds a run" in capsys.readouterr().err


def test_what_is_not_possible_is_left_out_and_said(
    room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"refine {room} --output {tmp_path / 'out'} --steps 2 --size 24 32"
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("left out: no --model")
    assert lines[1].endswith("left out: the scene has no sparse points")
    assert lines[2].startswith("random") and "strategy default" in lines[2]

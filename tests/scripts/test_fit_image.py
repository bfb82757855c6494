"""The example script: more splats come closer to a picture; a mistake gets one sentence."""

from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat.evaluate.metrics import psnr
from pmsplat.io.images import write_image
from pmsplat.scene import open_scene
from scripts import fit_image


def test_more_splats_come_closer_to_a_picture(
    room: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = open_scene(room).views([3]).images[0, 0]
    write_image(tmp_path / "picture.png", target)
    words = ["picture.png", "out", "--steps", "40", "--counts", "16", "64", "256"]
    monkeypatch.chdir(tmp_path)
    assert fit_image.main(words) == 0
    found = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert found[1] > found[0] + 1 and found[2] > found[1] + 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["gaussians.ply", "sheet.png"]
    splats = pmsplat.load_ply("out/gaussians.ply")
    assert splats.means.shape == (1, 256, 3)
    torch.testing.assert_close(splats.means[..., 2], torch.ones(1, 256))
    drawn = pmsplat.rasterize(splats, fit_image.look_at_plane(54, 70), (54, 70)).color[0, 0]
    assert psnr(drawn, target).item() == pytest.approx(found[2], abs=0.05)


def test_a_mistake_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent, out = str(tmp_path / "absent.jpg"), str(tmp_path / "out")
    cases = (([absent, out], absent), ([absent, out, "--counts", "0"], "--counts"))
    for words, part in cases:
        assert fit_image.main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith("pmsplat: ") and part in told and told.count("\n") == 1

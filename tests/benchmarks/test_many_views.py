"""`python benchmarks/run.py many_views`: figures are those of the Gaussians that each way gives."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.run import main

import pmsplat
from benchmarks import many_views
from pmsplat.data import synthetic
from pmsplat.evaluate.metrics import psnr
from pmsplat.scene import open_scene
from pmsplat.zoo.load import save
from tests.models.tiny import shaken, tiny


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write(tmp_path, 1, 12, (32, 32), 0, "test")
    plain, gathering = shaken(tiny()), shaken(tiny(anchors=3))
    save(plain, tmp_path / "plain.safetensors", "depthsplat")
    save(gathering, tmp_path / "gathering.safetensors", "depthsplat")
    words = ["many_views", str(tmp_path / "test"), "--models", str(tmp_path / "plain.safetensors")]
    words += ["--gathering", str(tmp_path / "gathering.safetensors"), "--views", "2", "6"]
    words += ["--group", "3", "--held-out", "3", "--size", "32", "32"]
    words += ["--output", str(tmp_path / "out"), "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    found = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert list(found) == ["one pass", "union", "shares", "voxels", "anchors"]
    # The held-out photos are not shown, and one pass is what the model itself predicts
    scene = open_scene(tmp_path / "test")
    held_out, others = many_views.divide(len(scene), 3)
    assert held_out == [2, 6, 10] and sorted(held_out + others) == list(range(12))
    options = many_views.argparse.Namespace(size=[32, 32])
    views = many_views.choose(scene, others, 6, options)
    photos = scene.views(held_out, (32, 32))
    with torch.no_grad():
        gaussians = pmsplat.infer(plain, views).gaussians[-1]
        drawn = pmsplat.rasterize(gaussians, photos.cameras, photos.size).color
    wanted = psnr(drawn[0], photos.images[0]).mean().item()
    (value,) = found["one pass"]["6"]["test"]
    assert value["psnr"] == pytest.approx(wanted, abs=1e-3)
    assert value["gaussians"] == 6 * 32 * 32
    assert found["anchors"]["6"]["test"][0]["gaussians"] == 3 * 32 * 32
    assert (
        found["voxels"]["6"]["test"][0]["gaussians"] < found["union"]["6"]["test"][0]["gaussians"]
    )
    assert (tmp_path / "out/many_views.png").is_file() and (tmp_path / "out/test.png").is_file()
    assert "voxels" in capsys.readouterr().out

"""`python benchmarks/run.py rasterizers`: a row for each renderer, usable or not."""

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.run import main

from benchmarks import rasterizers
from pmsplat.kernels import cuda
from pmsplat.render import backends, diff_gaussian
from tests.render.forks import fork

WORDS = "rasterizers --size 16 --repeats 2 --json"


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run Triton's kernels in its interpreter; nobody measures that."""
    monkeypatch.setattr(cuda, "interprets", lambda: False)


def test_a_row_for_every_renderer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main([*WORDS.split(), str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    assert figures["gaussians"] == 512 and list(figures["renderers"]) == backends()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(backends())
    for line, (name, row) in zip(lines[1:], figures["renderers"].items(), strict=True):
        assert line.startswith(name) and row["license"] in line
        if row["obstacle"] is None:
            assert row["error"] < 1e-3 and row["gradient_error"] < 1e-2
            assert set(row["errors"]) == {
                "color", "depth", "alpha", "d means", "d scales", "d quats_wxyz", "d opacities",
                "d sh",
            }  # fmt: skip
            assert row["error"] == max(row["errors"][name] for name in rasterizers.IMAGES)
            assert row["forward"]["median_ms"] > 0 and row["backward"]["calls"] == 2
        else:
            assert "not usable here" in line and "wanted" in row["obstacle"]
    for name in ("cpu", "reference"):
        assert figures["renderers"][name]["obstacle"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_reason_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS.split()[:-1]) == 0
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(("gsplat", "diff_gaussian")):
            assert "not usable here" in line and "wanted tensors on a CUDA device" in line


def test_a_renderer_that_errs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that forgets the gradient of its colours, and one that does not."""
    monkeypatch.setattr(rasterizers, "device_for", lambda backend: torch.device("cpu"))
    monkeypatch.setattr(diff_gaussian, "obstacle", lambda device: None)
    good = rasterizers.measure("cpu", 16, 1, 1)
    assert good["error"] < 1e-5 and good["gradient_error"] < 1e-3

    module = fork("graphdeco", diff_gaussian.MODULES[0], [])
    whole = module.GaussianRasterizer.forward

    def dull(self: torch.nn.Module, **given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given["colors_precomp"] = given["colors_precomp"].detach()
        color, radii = whole(self, **given)
        return color * 0.99, radii

    monkeypatch.setattr(module.GaussianRasterizer, "forward", dull)
    monkeypatch.setitem(sys.modules, diff_gaussian.MODULES[0], module)
    with pytest.warns(UserWarning, match="Inria"):
        bad = rasterizers.measure("diff_gaussian", 16, 1, 1)
    assert bad["error"] == pytest.approx(0.01, rel=0.05) and bad["gradient_error"] > 0.5

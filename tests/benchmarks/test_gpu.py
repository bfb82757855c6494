"""`python benchmarks/run.py gpu`: no trouble of one case loses another, and its parts are right."""

import argparse
import importlib
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.gpu import ask, clock, process, room, tests, warm
from benchmarks.gpu.rows import read
from benchmarks.gpu.table import WIDTH, table
from benchmarks.run import main

from benchmarks import gpu
from pmsplat.geometry import camera
from pmsplat.render import rasterize

LOG = """\
collected 4 items
tests/render/test_a.py::test_one PASSED                                  [ 25%]
tests/render/test_a.py::test_two[1-float32] FAILED                       [ 50%]
tests/render/test_a.py::test_three FAILED                                [ 75%]
tests/render/test_b.py::test_four SKIPPED (no nvcc)                      [100%]
=========================== short test summary info ============================
FAILED tests/render/test_a.py::test_two[1-float32] - torch.AcceleratorError: CUDA error: misaligned
FAILED tests/render/test_a.py::test_three - torch.AcceleratorError: CUDA error: misaligned
=================== 2 failed, 1 passed, 1 skipped in 3.00s =====================
"""


def test_no_case_loses_another() -> None:
    """A process that a case kills is replaced, one that does not end is killed in time."""
    arguments = argparse.Namespace(tiny=True, peer=None, threads=1)
    seen: list[int] = []
    began = time.monotonic()
    answer = ask(
        "tests.benchmarks.troubles", began + 40, arguments, lambda so_far: seen.append(len(so_far))
    )
    assert time.monotonic() - began < 45 and seen
    cases = answer["cases"]
    assert cases["good"] == {"ms": 1.5} and cases["last"] == {"ms": 2.5}
    assert cases["missing"] == {"skipped": "there is none"}
    assert re.match(r"IndexError \(troubles.py:\d+\): list index", cases["wrong"]["failed"])
    assert "illegal memory access" in cases["broken card"]["failed"]
    assert "ended its process with -6" in cases["killed"]["failed"]
    assert re.match(r"\d+ s were left", cases["long"]["skipped"])
    assert "its time was over" in cases["endless"]["failed"] and "never" not in cases


def test_a_question_that_does_not_start_says_why() -> None:
    arguments = argparse.Namespace(tiny=True, peer=None, threads=None)
    answer = ask("no.such.question", time.monotonic() + 60, arguments, lambda _: None)
    assert "ModuleNotFoundError" in answer["failed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_figures_are_kept(tmp_path: Path) -> None:
    cases = _measure("neighbors", tmp_path)
    wrong = [case["wrong"] for name, case in cases.items() if "noise" in name]
    assert len(wrong) == 4 and not any(wrong)
    assert cases["1k 16 nearest"]["ms"] > 0
    near = [row["wrong"] for name, row in cases.items() if "windows" in name]
    assert near == [0, 0, 0] and cases["1k nearest, brute force"]["ms"] > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_sweep_is_measured(tmp_path: Path) -> None:
    cases = _measure("sweep", tmp_path)
    assert cases["tiny tiled fp16 fwd"]["ms"] > 0
    errors = cases["all_pairs float32 errors"]
    assert 0 < errors["values"] < 1e-5 and 0 < errors["gradient"] < 1e-4
    assert cases["tiny torch float32 f+b"]["ms"] > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_single_kernels_are_measured_beside_their_twins(tmp_path: Path) -> None:
    cases = _measure("kernels", tmp_path)
    assert len(cases) == 16 and all(row["ms"] > 0 for row in cases.values())
    exact = [row for name, row in cases.items() if name.endswith("float32")]
    assert all(row["values"] < 1e-5 and row.get("gradient", 0) < 1e-5 for row in exact)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_kernels_are_compiled_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be done here is named, and loses no other."""
    some = {name: warm.CHORES[name] for name in ("draw by gsplat", "kernels")}
    monkeypatch.setattr(warm, "CHORES", some)
    rows = tmp_path / "rows"
    rows.touch()
    assert process.answer("warm", process.Run("cpu", True, time.monotonic() + 300), rows) == 0
    found = read(rows)["cases"]
    assert found["kernels"]["s"] > 0 and "gsplat" in found["draw by gsplat"]["skipped"]


@pytest.mark.parametrize(
    ("question", "missing", "case"),
    [
        ("sweep", "triton", "direct fp16 errors"),
        ("rasterizers", "gsplat", "gsplat errors"),
        ("training", "torchvision", "tiny batch 1 bf16 triton"),
    ],
)
def test_a_missing_package_is_the_reason_of_its_rows(
    question: str,
    missing: str,
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What does not need it is measured without."""
    for name in [n for n in sys.modules if n.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    chosen = importlib.import_module(f"benchmarks.gpu.{question}")
    every = chosen.cases
    rows, run = tmp_path / "rows", process.Run("cpu", True, math.inf)
    rows.touch()
    only = [one for one in every(run) if one.name == case]
    monkeypatch.setattr(chosen, "cases", lambda run: iter(only))
    assert process.answer(question, run, rows) == 0
    found = read(rows)["cases"]
    assert found.keys() == {case} and missing in found[case]["skipped"]


def test_a_run_that_is_cut_leaves_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole after every case, in whatever way the run then ends."""

    def cut(name: str, ends: float, arguments: Any, on_case: Callable[[Any], None]) -> Any:
        on_case({"cases": {"first": {"ms": 1.0}}})
        on_case({"cases": {"first": {"ms": 1.0}, "second": {}}})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "ask", cut)
    out = tmp_path / "gpu.json"
    assert main(["gpu", "--tiny", "--only", "sweep", "--json", str(out)]) != 0
    cases = json.loads(out.read_text())["figures"]["sweep"]["cases"]
    assert cases == {"first": {"ms": 1.0}, "second": {}} and list(tmp_path.iterdir()) == [out]


def _measure(question: str, folder: Path) -> dict[str, Any]:
    """The cases of a question at tiny sizes, as the file has them."""
    out = folder / "gpu.json"
    words = ["gpu", "--tiny", "--only", question, "--minutes", "3", "--json", str(out)]
    assert main(words) == 0
    return json.loads(out.read_text())["figures"][question]["cases"]


def test_a_run_without_time_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--tiny", "--minutes", "0"]) == 2
    assert "--minutes 0; wanted a positive number" in capsys.readouterr().err
    assert main(["gpu", "--tiny", "--minutes", "0.2"]) == 0
    assert capsys.readouterr().out.count("s were left of 0.2 minutes") == len(gpu.SECONDS) - 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_no_process_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "ask", None)
    assert main(["gpu"]) == 2
    assert capsys.readouterr().err.count("no CUDA device") == 1


def test_failures_of_pytest_are_read() -> None:
    found = tests.summary(LOG)
    assert (found["passed"], found["failed tests"], found["skipped tests"]) == (1, 2, 1)
    assert "misaligned" in found["failures"]["tests/render/test_a.py::test_two[1-float32]"]
    assert "did not end" not in found
    again = ["tests/render/test_a.py::test_three", "tests/render/test_b.py::test_four"]
    assert tests.after_fault(LOG) == []  # CUDA's other errors leave the context whole
    assert (
        tests.after_fault(LOG.replace("CUDA error: mis", "an illegal memory access: mis")) == again
    )
    cut = LOG[: LOG.index(" SKIPPED")]
    assert tests.summary(cut)["did not end"] == "tests/render/test_b.py::test_four"


def test_the_table_fits_and_names_what_is_missing() -> None:
    rows = {f"case {i}": {"ms": 1234.5678, "busy_ms": 0.12345, "launches": 7} for i in range(30)}
    skipped = {f"other {i}": {"skipped": "no gsplat"} for i in range(9)}
    found = {
        "one": {"cases": rows | skipped, "seconds": 3.2},
        "two": {"cases": {"a": {"failed": "RuntimeError: wrong"}}},
        "three": {"cases": {}, "skipped": "no CUDA device"},
    }
    text = table(found)
    assert re.search(r"^  case 29 +1235 +0.123 +7$", text, re.MULTILINE)
    assert "skipped other 0, other 1, other 2, other 3 and 5 more: no gsplat" in text
    assert "a FAILED RuntimeError: wrong" in text and "not measured: no CUDA device" in text
    assert len(table({"one": {"cases": {f"{i}": {"ms": 1.0} for i in range(999)}}})) < WIDTH + 50


def test_the_room_is_what_it_says() -> None:
    """Depths of 1 to 20, one surface from every view, Gaussians that cover the pictures."""
    size = height, width = 96, 128
    at = room.cameras(3, *size, "cpu")
    depth, color = room.depth_and_color(at, *size)
    assert 1 < depth.min() < 6 and 12 < depth.max() < 21
    assert (depth[:, 1:] - depth[:, :-1]).abs().max() > 1  # edges of boxes
    assert color.min() >= 0 and color.max() <= 1 and color.std() > 0.1
    points = camera.unproject_depth(depth, at.c2w[0], at.K[0])
    seen = camera.project_world(points[0].flatten(0, 1), at.c2w[0, 1], at.K[0, 1])
    grid = (2 * seen[:, :2] - 1)[None, None]
    other = torch.nn.functional.grid_sample(depth[1][None, None], grid, align_corners=False)[
        0, 0, 0
    ]
    inside = (seen[:, :2] > 0.05).all(-1) & (seen[:, :2] < 0.95).all(-1)
    error = (other - seen[:, 2])[inside].abs() / seen[inside, 2]
    assert error.median() < 1e-3 and (error < 0.01).float().mean() > 0.85  # but for occlusions
    gaussians = room.gaussians(2, 3, *size, "cpu")
    assert gaussians.means.shape == (2, 3 * height * width, 3) and gaussians.sh_degree == 2
    pixels = gaussians.scales[0].view(3, *size, 3) * at.K[0, 0, 0, 0] * width / depth[..., None]
    assert pixels.min() > 0.45 and pixels.max() < 1.55
    assert gaussians.opacities.min() >= 0.3 and gaussians.opacities.max() <= 0.9
    own = camera.project_world(gaussians.means[1].view(3, -1, 3), at.c2w[0], at.K[0])[..., :2]
    aside = own.view(3, *size, 2) - camera.pixel_grid(*size, like=own)
    assert (aside.abs() * torch.tensor([width, height])).max() < 0.51  # each in its pixel
    assert not gaussians.means[0].equal(gaussians.means[1])
    drawn = rasterize(gaussians, at.map(lambda x: x.repeat(2, *[1] * (x.dim() - 1))), size, "cpu")
    assert drawn.alpha.mean() > 0.97
    assert (drawn.depth[0] / depth - 1).abs().median() < 0.08  # slanted surfaces are blurred
    assert (drawn.color[0] - color).abs().mean() < 0.13  # of random harmonics; unrelated: 0.2


def test_precision_is_given_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with clock.precision("bf16", "cpu"):
        assert torch.is_autocast_enabled("cpu") and torch.backends.cudnn.allow_tf32
    with clock.precision("float32", "cpu"):
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_autocast_enabled("cpu")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before

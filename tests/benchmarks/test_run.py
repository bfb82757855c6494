"""The verb `benchmark`: its figures, and how it measures."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.run import main

from benchmarks import encoder, measure, peer, published, run

JOBS = ("write", "read")


def test_rasterize_leaves_figures_and_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    words = "rasterize --size 16 --views 1 2 --backend reference --repeats 2 --json"
    assert main([*words.split(), str(out)]) == 0
    whole = json.loads(out.read_text())
    assert whole["question"] == "rasterize" and whole["figures"]["gaussians"] == 512
    for views in ("1 views", "2 views"):
        assert whole["figures"][views]["forward"]["median_ms"] > 0
        assert whole["figures"][views]["backward"]["calls"] == 2
    assert whole["conditions"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_published_architectures_have_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    names = published.architectures()
    assert len(names) == 23 and "pmloss" not in names  # which is gs-base-dl3dv with other weights
    words = "published --models mvsplat-re10k --size 32 32 --repeats 1"
    assert main(words.split()) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:3] == ["mvsplat-re10k", "12.0", "M"] and float(row[3]) > 0


def test_an_encoder_is_measured_in_every_precision(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = "encoder --size 32 32 --repeats 1 --settings vit=none width=32 planes=8 head_width=16"
    assert main([*words.split(), "--json", str(out)]) == 0
    found = json.loads(out.read_text())["figures"]
    for name in ("float32", "autocast", "bfloat16", "training step"):
        assert found[name]["time"]["median_ms"] > 0
    assert 1e-6 < found["bfloat16"]["depth_error"] < 0.05  # eight bits, and not the same pass


def test_a_step_needs_all_weights_of_whatever_is_predicted() -> None:
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    model = torch.nn.ModuleList(layers)
    given, names = torch.ones(2), [["a", 1], None]
    output = SimpleNamespace(a=layers[0](given), b={"c": [layers[1](given), names]}, d=3)
    assert len(peer.predicted(output)) == 2
    reached: list[int] = []
    for i, layer in enumerate(layers):
        layer.weight.register_hook(lambda _, i=i: reached.append(i))
    encoder.step(model, output)
    assert sorted(reached) == [0, 1]
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.slow
def test_files_have_a_row_each_and_their_true_size(tmp_path: Path) -> None:
    """62 float32 of a Gaussian in a .ply, of degree 3, and its header; 32 bytes in a .splat."""
    out = tmp_path / "figures.json"
    words = "files --count 500 --formats .ply .splat --size 32 48 --repeats 1 --json"
    assert main([*words.split(), str(out)]) == 0
    formats = json.loads(out.read_text())["figures"]["formats"]
    assert formats[".splat"]["bytes"] == 32 * 500
    assert 62 * 4 * 500 < formats[".ply"]["bytes"] < 62 * 4 * 500 + 4096
    assert all(formats[f][job]["median_ms"] > 0 for f in (".ply", ".splat") for job in JOBS)
    assert formats["draw"]["draw"]["median_ms"] > 0


def test_every_question_explains_itself() -> None:
    for name, module in run.questions().items():
        assert f"python benchmarks/run.py {name}" in (module.__doc__ or ""), name


def test_too_many_threads_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rasterize", "--threads", "100000"]) == 2
    assert "--threads is 100000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("encoder --peer /nonexistent", "--peer: /nonexistent has no config/model/encoder"),
        ("published --peer /nonexistent", "--peer: /nonexistent has no config/model/encoder"),
        ("published --models mvsplat", "did you mean 'mvsplat-re10k'?"),
        ("gpu --tiny --peer /nonexistent", "--peer: /nonexistent has no config/model/encoder"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_measured(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out


@pytest.mark.parametrize("question", ["encoder", "published"])
def test_no_repeats_are_refused(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([question, "--repeats", "0"])
    assert "--repeats: '0'; wanted a whole number from 1" in capsys.readouterr().err


def test_times_are_of_the_call_alone() -> None:
    timing = measure.timed(lambda _: time.sleep(0.01), 3, prepare=lambda: time.sleep(0.05))
    assert 10 <= timing.median_ms < 50 and timing.low_ms <= timing.median_ms <= timing.high_ms


@pytest.mark.skipif(not measure.CLEAR.exists(), reason="no /proc/self/clear_refs")
def test_peak_memory_is_that_of_the_call() -> None:
    if torch.cuda.is_available():
        pytest.skip("measures the GPU here")
    peak = measure.peak_mib(lambda: float(np.ones(64 * 2**17).sum()))
    assert peak is not None and 60 <= peak <= 80


def test_reading_data_is_measured_beside_a_plain_reader(tmp_path: Path) -> None:
    """Of 6 photographs, and of whole chunks: about 100 photographs for each of their scenes."""
    out = tmp_path / "figures.json"
    words = "data --scenes 3 --frames 100 --stored 48 64 --size 16 16 --samples 4 --json"
    assert main([*words.split(), str(out)]) == 0
    found = json.loads(out.read_text())["figures"]
    assert all(milliseconds > 0 for milliseconds in found.pop("decoders").values())
    assert all(row["samples_per_second"] > 0 and row["cpu_seconds"] > 0 for row in found.values())
    assert 5 * found["exact"]["bytes"] < found["plain"]["bytes"]

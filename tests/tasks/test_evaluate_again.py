"""An evaluation that is interrupted, or shared by processes, gives what one in peace gives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pmsplat import config
from pmsplat.cli import main
from pmsplat.data import synthetic
from pmsplat.evaluate import protocol
from pmsplat.evaluate.journal import shard_folder
from pmsplat.io.files import one_of_writers, sole_writer
from pmsplat.tasks.evaluate import Options, evaluate
from pmsplat.zoo.load import save
from tests.models.tiny import shaken, tiny

TIMES = ("seconds", "seconds_with_warm_up", "cost")  # of results: no two runs have the same
SCRIPT = """
import os, signal, sys
from pmsplat.cli import main
from pmsplat.evaluate import protocol

protocol.find_lpips = lambda: (None, ("no weights of LPIPS",))
measure, last = protocol.measure, int(os.environ.get("LAST", "0"))
seen = []

def watched(step, *rest):
    seen.append(step.batch.scene[0])
    if len(seen) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(step, *rest)

protocol.measure = watched
code = main(sys.argv[1:])
print("rank", os.environ.get("RANK"), "measured", *seen, flush=True)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ("no weights of LPIPS",)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rooms, a model, a script that can be killed, and the results of one in peace."""
    path = tmp_path_factory.mktemp("again")
    synthetic.make(config.compose(overrides(path)).dataset.settings)
    save(shaken(tiny("mvsplat")), path / "model.safetensors", "mvsplat")
    (path / "script.py").write_text(SCRIPT)
    done = run(path, "whole", "--baselines", "--report", str(path / "page of 1"))
    assert done.returncode == 0, done.stderr
    return path


def overrides(folder: Path) -> list[str]:
    counts = ["dataset.scenes=1", "dataset.test_scenes=5", "dataset.frames=6", "dataset.gap=[4,4]"]
    return ["+experiment=demo_tiny", "dataset.size=[32,48]", f"dataset.root={folder}", *counts]


def run(
    folder: Path, output: str, *more: str, ranks: int = 0, last: int = 0
) -> subprocess.CompletedProcess[str]:
    """`pmsplat evaluate` in a process of its own, killed at scene `last`; or in `ranks`."""
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    words = ["evaluate", *overrides(folder), "--model", str(folder / "model.safetensors")]
    words += ["--output", str(folder / output), "--device", "cpu", *more]
    environment = os.environ | {"LAST": str(last), "OMP_NUM_THREADS": "1"}
    command = [*start, str(folder / "script.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def results(folder: Path, output: str, file: str = "results.json") -> dict[str, Any]:
    """What must be equal, except the command."""
    content = json.loads((folder / output / file).read_text())
    command = content["identity"].pop("command")
    assert command is None or "script.py evaluate" in command
    return {name: value for name, value in content.items() if name not in TIMES}


def measured(done: subprocess.CompletedProcess[str]) -> list[set[str]]:
    """The scenes that each process measured."""
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    return [set(line.split()[3:]) for line in lines]


def test_a_killed_evaluation_goes_on_after_the_scenes_that_are_done(folder: Path) -> None:
    for _ in range(2):
        done = run(folder, "killed", last=3)
        assert done.returncode == -signal.SIGKILL
        assert not (folder / "killed" / "results.json").exists()
    done = run(folder, "killed")
    assert done.returncode == 0, done.stderr
    assert "4 scenes of the earlier evaluation" in done.stderr.replace("\n", " ")
    (scenes,) = measured(done)
    assert len(scenes) == 1
    assert results(folder, "killed") == results(folder, "whole")
    csv = [(folder / name / "scenes.csv").read_text() for name in ("killed", "whole")]
    assert csv[0] == csv[1]
    names = {path.name for path in (folder / "killed").iterdir()}
    assert names == {"results.json", "scenes.csv"}


def test_shards_are_joined(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order; what they lack is measured, and nothing twice."""
    words = ["evaluate", *overrides(folder), "--model", str(folder / "model.safetensors")]
    words += ["--output", str(folder / "sharded"), "--device", "cpu", "--baselines"]
    assert main([*words, "--shard", "2/3"]) == 0
    assert "Shard 2/3: 2 scenes measured" in capsys.readouterr().err.replace("\n", " ")
    with (
        sole_writer(shard_folder(folder / "sharded", (1, 3))),
        one_of_writers(folder / "sharded"),
    ):
        for shard in (["--shard", "1/3"], []):
            assert main([*words, *shard]) == 2
            assert "another process is writing into" in capsys.readouterr().err.replace("\n", " ")
    for _ in range(2):
        assert main([*words, "--shard", "1/3"]) == 0
    files = sorted((folder / "sharded").glob("*/*"))
    assert len(files) == 6 and sum(len(file.read_bytes().splitlines()) for file in files) == 18
    assert not (folder / "sharded" / "results.json").exists()
    assert main(words) == 0
    assert "4 scenes of the earlier evaluation" in capsys.readouterr().err.replace("\n", " ")
    for file in ("results.json", "nearest_view.json"):
        rows = json.loads((folder / "sharded" / file).read_text())["per_scene"]
        assert len({row["scene"] for row in rows}) == len(rows) == 5
    wanted = results(folder, "whole")["means"]["psnr"]
    assert json.loads((folder / "sharded" / "results.json").read_text())["means"][
        "psnr"
    ] == pytest.approx(wanted, abs=1e-4)
    names = {path.name for path in (folder / "sharded").iterdir()}
    assert names == {"results.json", "scenes.csv", "nearest_view.json", "plane_sweep.json"}


@pytest.mark.slow
def test_an_interrupted_evaluation_of_another_index_is_begun_anew(folder: Path) -> None:
    assert run(folder, "other", last=3).returncode == -signal.SIGKILL
    index = json.loads((folder / "evaluation_index.json").read_text())
    fewer = {key: frames | {"target": frames["target"][:1]} for key, frames in index.items()}
    (folder / "fewer.json").write_text(json.dumps(fewer))
    experiment = config.compose([*overrides(folder), f"dataset.index={folder / 'fewer.json'}"])
    model, options, told = folder / "model.safetensors", Options(device="cpu"), []
    found = evaluate(experiment, model, folder / "other", options, tell=told.append)
    assert [row.targets for row in found.model.rows] == [1] * 5
    assert "differs in settings and index: it is begun anew" in " ".join(told)


def test_ranks_share_the_scenes_and_write_the_same_once(folder: Path) -> None:
    page = folder / "page of 2"
    done = run(folder, "shared", "--baselines", "--report", str(page), ranks=2)
    assert done.returncode == 0, done.stderr
    for file in ("results.json", "nearest_view.json", "plane_sweep.json"):
        assert results(folder, "shared", file) == results(folder, "whole", file)
    one, other = measured(done)
    assert len(one) == 3 and len(other) == 2 and not one & other
    assert done.stdout.count("PSNR") == 1 and done.stdout.count("written to") == 1
    assert not list((folder / "shared").glob("*.jsonl"))
    shown, wanted = (
        {file.relative_to(folder / name): file.read_bytes() for file in found}
        for name in ("shared", "whole")
        if (found := sorted((folder / name).glob("pictures/*/*")))
    )
    assert shown == wanted and len({file.parent for file in shown}) == 3
    assert (page / "index.html").is_file()


@pytest.mark.slow
def test_other_ranks_go_on_after_a_killed_one(folder: Path) -> None:
    assert run(folder, "fewer", ranks=2, last=2).returncode
    kept = sum(len(p.read_text().splitlines()) - 1 for p in (folder / "fewer").glob("*.jsonl"))
    assert 1 <= kept <= 2
    done = run(folder, "fewer")
    assert done.returncode == 0, done.stderr
    assert len(measured(done)[0]) == 5 - kept
    assert results(folder, "fewer") == results(folder, "whole")


@pytest.mark.slow
def test_more_ranks_than_scenes(folder: Path) -> None:
    done = run(folder, "few", "--limit", "1", ranks=2)
    assert done.returncode == 0, done.stderr
    assert [len(scenes) for scenes in sorted(measured(done), key=len)] == [0, 1]
    assert len(results(folder, "few")["per_scene"]) == 1

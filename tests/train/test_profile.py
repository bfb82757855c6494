"""The trace of some steps: what is in it, and that it changes nothing."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmsplat import train
from pmsplat.errors import UserError
from pmsplat.train import Experiment
from tests.train.test_loop import interrupt_at, losses


def test_steps_after_the_first_are_traced(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    words = ("trainer.workers=0", "trainer.steps=11")
    traced = setting(*words, "trainer.profile=2", f"output={tmp_path / 'traced'}")
    train.run(traced)
    folder = Path(traced.output) / "profile"
    assert {path.name for path in folder.iterdir()} == {"trace.json.gz", "operators.txt"}
    assert traced_steps(traced) == 2
    table = (folder / "operators.txt").read_text()
    (row,) = [line for line in table.splitlines() if " aten::convolution_backward " in line]
    assert row.split()[-1] == "4"  # of two layers
    straight = setting(*words, f"output={tmp_path / 'straight'}")
    train.run(straight)
    assert losses(traced.output) == losses(straight.output)


@pytest.mark.parametrize(("asked", "watched"), [(2, 2), (50, 4)])
def test_a_short_run_traces_its_last_steps_and_says_so(
    setting: Callable[..., Experiment], asked: int, watched: int
) -> None:
    told: list[str] = []
    experiment = setting("trainer.workers=0", "trainer.steps=4", f"trainer.profile={asked}")
    train.run(experiment, told.append)
    assert traced_steps(experiment) == watched
    (line,) = [line for line in told if f"trainer.profile={asked}" in line]
    assert f"the last {watched} are watched, after {4 - watched}" in line


def test_a_run_that_is_interrupted_leaves_what_there_is(
    setting: Callable[..., Experiment],
) -> None:
    experiment = setting("trainer.workers=0", "trainer.steps=60", "trainer.profile=50")
    interrupt_at(9, experiment)
    assert traced_steps(experiment) == 2
    assert "aten::" in (Path(experiment.output) / "profile" / "operators.txt").read_text()
    with pytest.raises(UserError, match=r"trainer\.profile=-1"):
        setting("trainer.profile=-1")
    assert torch.autograd.profiler._is_profiler_enabled is False


def traced_steps(experiment: Experiment) -> int:
    """How many steps of the optimizer are in the trace."""
    trace = Path(experiment.output) / "profile" / "trace.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "cpu_op"]
    return names.count("aten::_fused_adamw_")

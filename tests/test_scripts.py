"""scripts/slurm.sh: what it runs, with commands of SLURM that print what they are asked."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm.sh"


def run(folder: Path, *words: str, **variables: str) -> list[str]:
    """The words that `srun` is given."""
    for name, text in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "printf 'n7\\nn8\\n'")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    given = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder)}
    given |= {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[7-8]", **variables}
    done = subprocess.run(
        ["bash", SCRIPT, *words], env=given, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("nodes, gpus", [("1", "8"), ("2", "4")])
def test_training_uses_every_gpu_and_goes_on(tmp_path: Path, nodes: str, gpus: str) -> None:
    words = ["train", "+experiment=re10k_small", "output=a b"]
    found = run(tmp_path, *words, SLURM_NNODES=nodes, SLURM_GPUS_ON_NODE=gpus)
    assert found[0] == "torchrun" and f"--nnodes={nodes}" in found
    assert f"--nproc-per-node={gpus}" in found and "--rdzv-endpoint=n7:29500" in found
    settings = ["trainer.resume=auto", f"trainer.nodes={nodes}", f"trainer.devices={gpus}"]
    assert found[found.index("pmsplat") :] == ["pmsplat", *words, *settings]


def test_a_training_that_is_stopped_is_queued_again(tmp_path: Path) -> None:
    """The step gets the signal once, and time to end; one that fails by itself is not."""
    log = tmp_path / "log"
    step = "trap 'echo stopped >> LOG; sleep 0.3; exit 1' TERM; echo begun >> LOG; sleep 20 & wait"
    calls = {"srun": step, "scontrol": '[ "$1" = requeue ] && echo "$@" >> LOG || echo n7'}
    for name, text in calls.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text.replace('LOG', str(log))}\n")
        (tmp_path / name).chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    given |= {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n7"}
    job = subprocess.Popen(["bash", SCRIPT, "train", "+experiment=re10k_small"], env=given)
    while not log.is_file():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(10) == 1
    assert log.read_text().split("\n") == ["begun", "stopped", "requeue 42", ""]
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 3\n")
    done = subprocess.run(["bash", SCRIPT, "train"], env=given, check=False)
    assert done.returncode == 3 and log.read_text().count("requeue") == 1


def test_evaluation_is_given_as_it_is(tmp_path: Path) -> None:
    words = ["evaluate", "+experiment=re10k_small", "--model", "x"]
    assert run(tmp_path, *words, SLURM_GPUS_ON_NODE="2")[-5:] == ["pmsplat", *words]


def test_an_array_of_trainings_is_refused(tmp_path: Path) -> None:
    given = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_COUNT": "4"}
    done = subprocess.run(["bash", SCRIPT, "train"], env=given, capture_output=True, text=True)
    assert done.returncode == 2 and "use --nodes" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["data", "convert", "raw", "out"], ["teacher", "cache", "+x=y"], ["evaluate", "--model", "x"]],
)
def test_each_job_of_an_array_takes_its_shard(tmp_path: Path, words: list[str]) -> None:
    called = ["pmsplat", *words]
    assert run(tmp_path, *words)[-len(called) :] == called
    array = {"SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_MIN": "0"}
    first, last = (run(tmp_path, *words, SLURM_ARRAY_TASK_ID=i, **array)[-1] for i in ("0", "15"))
    assert (first, last) == ("1/16", "16/16")

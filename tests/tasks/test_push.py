"""Models pushed to, and loaded from, a local server with the hub's protocol, each time by a process
of its own, since the hub's client reads its settings when it is imported."""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pmsplat import cli
from pmsplat.errors import UserError
from pmsplat.io.weights import sha256
from pmsplat.tasks.push import Options, pack
from pmsplat.zoo.load import open_model, save
from pmsplat.zoo.trained import TrainedOn, trained_on
from tests.hub_server import TOKEN, ModelHub, Stored
from tests.models.tiny import tiny
from tests.servers import running

NAME = "me/rooms"
SECRET = "/home/somebody/private"

processes = multiprocessing.get_context("forkserver")  # forked once torch is imported, so quick
processes.set_forkserver_preload(["tests.tasks.test_push", "pmsplat.zoo.load"])


@dataclass(frozen=True)
class Opened:
    """What a process found in a model: its settings, what it learned from, a sum of its weights."""

    settings: dict[str, Any]
    trained: TrainedOn | None
    total: float
    commit: str


def read(name: str) -> Opened | str:
    """Loads a model; the sentence where that fails."""
    try:
        found = open_model(name)
    except UserError as error:
        return str(error)
    assert found.path is not None
    commit = found.path.parent.name
    return Opened(asdict(found.settings), trained_on(name), total(found.model), commit)


def total(model: torch.nn.Module) -> float:
    return sum(value.double().abs().sum().item() for value in model.state_dict().values())


def command(words: Sequence[str]) -> tuple[int, str]:
    """Runs the command line: its exit code, and all that it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return cli.main(list(words)), said.getvalue()


def work(
    answer: Connection, settings: dict[str, str], job: Callable[..., Any], given: list[Any]
) -> None:
    """Answers with `job` of each of `given`, where `settings` say which hub there is."""
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ.update(settings)
    logs = io.StringIO()
    logging.getLogger("pmsplat").addHandler(logging.StreamHandler(logs))
    answer.send(([job(item) for item in given], logs.getvalue()))


@dataclass(frozen=True)
class Machine:
    """A machine with a cache of its own that knows `hub`."""

    home: Path
    hub: ModelHub

    def run(self, job: Callable[..., Any], given: list[Any], **settings: str) -> tuple[list, str]:
        """What `job` answers for each of `given` in one process, and its log."""
        settings = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.home)} | settings
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        answer, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=work, args=(theirs, settings, job, given))
        process.start()
        theirs.close()
        try:
            assert answer.poll(120), "no answer"
            return answer.recv()
        finally:
            process.kill()
            process.join()

    def read(self, *names: str, **settings: str) -> list[Any]:
        return self.run(read, list(names), **settings)[0]

    def push(self, *words: object, **settings: str) -> tuple[int, str]:
        line = ["models", "push", *map(str, words)]
        return self.run(command, [line], **({"HF_TOKEN": TOKEN} | settings))[0][0]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with running(ModelHub()) as hub:
        yield Machine(tmp_path / "home", hub)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training and an evaluation leave, with paths of this machine in it."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny(init_from=[f"{SECRET}/dino.safetensors"])
    save(model, folder / "model.safetensors", "depthsplat")
    dataset = {"root": f"{SECRET}/rooms", "size": [48, 64], "views": [2, 3]}
    experiment = {
        "name": "rooms",
        "model": {"name": "depthsplat", "settings": asdict(model.cfg)},
        "dataset": {"name": "re10k", "settings": dataset},
        "loss": {"mse": {"name": "mse", "weight": 1.0}},
        "trainer": {"steps": 1000, "batch_size": 2, "precision": "tf32", "initial": None},
        "seed": 7,
    }
    (folder / "config.json").write_text(json.dumps(experiment))
    results = {
        "model": str(folder / "model.safetensors"),
        "means": {"psnr": 21.25},
        "per_scene": [{"scene": s, "targets": 1, "psnr": p} for s, p in (("a", 21), ("b", 21.5))],
        "experiment": {
            "dataset": {"name": "re10k", "settings": dataset | {"index": f"{SECRET}/few.json"}}
        },
        "identity": {
            "weights": sha256(folder / "model.safetensors"),
            "version": "0.1.0",
            "commit": "c" * 40,
            "command": f"pmsplat evaluate dataset.limit=2 --output {SECRET}/out",
        },
    }
    for name, changes in (("evaluation", {}), ("older", {"weights": "0" * 64})):
        (folder / name).mkdir()
        content = results | {"identity": results["identity"] | changes}
        (folder / name / "results.json").write_text(json.dumps(content))
    return folder


def test_a_pushed_model_is_loaded_by_its_name(machine: Machine, run: Path) -> None:
    code, said = machine.push(run, NAME, "--license", "mit")
    assert code == 0, said
    assert "older/results.json, which is of other weights" in said
    stored = machine.hub.repositories[NAME]
    commit = stored.branches["main"]
    assert f'pmsplat.load("{NAME}@{commit}")' in said and not stored.private

    # What is on the hub: nothing of this machine, and a card that its reader understands.
    files = stored.commits[commit]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "training.json"}
    assert [name for name, content in files.items() if SECRET.encode() in content] == []
    text = files["README.md"].decode().split("---")[1]
    head: Any = OmegaConf.to_container(OmegaConf.create(text))
    assert head["license"] == "mit" and head["library_name"] == "pmsplat"
    assert head["pipeline_tag"] == "image-to-3d" and head["datasets"] == ["lhmd/re10k_torch"]
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "few.json (2 scenes, 48x64)"
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("psnr", 21.25)]
    card = files["README.md"].decode()
    assert f'pmsplat.load("{NAME}")' in card and "| few.json (2 scenes, 48x64) | 21.250 |" in card
    assert "dataset.limit=2 --output out" in card and "Context views: 2 to 3" in card

    # Another machine has the same model; a commit is asked for once, a branch each time.
    given = open_model(run)
    pinned = f"{NAME}@{commit}"
    first, second = machine.read(NAME, f"hf://{NAME}")
    assert first == second and first.commit == commit
    assert first.total == total(given.model)
    assert first.settings == asdict(given.settings) | {"init_from": ["dino.safetensors"]}
    assert first.trained == trained_on(run) == TrainedOn((2, 3), (48, 64), "re10k")
    machine.hub.asked.clear()
    assert machine.read(pinned) == [first] and machine.hub.asked == []


def test_branches_and_private_repositories(machine: Machine, run: Path) -> None:
    code, said = machine.push(run, NAME, "--private", "--revision", "wide")
    assert code == 0, said
    stored = machine.hub.repositories[NAME]
    assert stored.private and stored.branches["wide"] in stored.commits
    assert (
        f'pmsplat.load("{NAME}@wide")'
        in stored.commits[stored.branches["wide"]]["README.md"].decode()
    )
    (found,) = machine.read(f"{NAME}@wide", HF_TOKEN=TOKEN)
    assert found.commit == stored.branches["wide"]
    (told,) = Machine(machine.home / "b", machine.hub).read(f"{NAME}@wide")
    assert "none of that name, or it is private" in told and "HF_TOKEN" in told


def test_without_the_hub_the_cache_is_used_and_named(machine: Machine, run: Path) -> None:
    assert machine.push(run, NAME)[0] == 0
    (first,) = machine.read(NAME)
    machine.hub.down = 503
    (found,), log = machine.run(read, [NAME])
    assert found == first and f"taken from the cache, at commit {first.commit}" in log
    (told,) = Machine(machine.home / "b", machine.hub).read(NAME)
    assert "which is no path here" in told and "status 503" in told
    machine.hub.asked.clear()
    offline = {"HF_HUB_OFFLINE": "1"}
    found, told = machine.read(NAME, "me/other", **offline)
    assert found == first and machine.hub.asked == []
    assert "not in the cache" in told and "unset HF_HUB_OFFLINE" in told


def test_what_cannot_be_loaded_is_told(machine: Machine, run: Path, tmp_path: Path) -> None:
    hub, weights = machine.hub, (run / "model.safetensors").read_bytes()
    hub.add("a/gated", {"model.safetensors": weights}, gated=True)
    hub.add("a/pickles", {"pytorch_model.bin": b"\x80\x02"})
    hub.add("a/branches", {"model.safetensors": weights})
    code = tmp_path / "code.safetensors"
    save(tiny(), code, "code_of.others", tiny().cfg)
    hub.add("a/code", {"model.safetensors": code.read_bytes()})
    told = machine.read("a/none", "a/gated", "a/pickles", "a/branches@x", "a/code", "a--b/c")
    sentences = (
        "check the spelling",
        "accept their terms on https://huggingface.co/a/gated",
        "without model.safetensors (pytorch_model.bin)",
        "it has no revision x",
        "built by the module 'code_of.others'",
        "no name of a repository",
    )
    for sentence, answer in zip(sentences, told, strict=True):
        assert isinstance(answer, str) and sentence in answer and "\n" not in answer
    assert not any("pytorch_model.bin" in path for path in hub.asked)


def test_what_cannot_be_pushed_is_told(machine: Machine, run: Path) -> None:
    hub = machine.hub
    hub.add("me/data", {"model.onnx": b"x"})
    hub.add("me/seen", {"README.md": b"library_name: pmsplat\n", "model.safetensors": b""})
    before = {name: list(stored.commits) for name, stored in hub.repositories.items()}
    lines = {
        ("you/rooms",): "no right to write there",
        ("me/data",): "which has other files (model.onnx)",
        ("me/seen", "--private"): "exists and is public",
        (NAME, "--license", "nonsense"): '"license" must be one of many',
        ("rooms",): "names no repository",
        (NAME, "--results", "nowhere.json"): "no file nowhere.json",
    }
    words = [["models", "push", str(run), *line] for line in lines]
    answers, _ = machine.run(command, words, HF_TOKEN=TOKEN)
    for sentence, (code, said) in zip(lines.values(), answers, strict=True):
        assert code == 2 and sentence in said and "Traceback" not in said
    for token, sentence in ({}, "no login"), ({"HF_TOKEN": "hf_old"}, "does not know this login"):
        (answer,), _ = machine.run(command, [words[-3][:4]], **token)
        assert answer[0] == 2 and sentence in answer[1]
    after = {name: list(hub.repositories[name].commits) for name in before}
    assert after == before


def test_a_verb_takes_the_name_of_a_repository(
    machine: Machine, run: Path, room: str, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    machine.hub.repositories[NAME] = Stored()
    machine.hub.repositories[NAME].commit("main", files)
    out = tmp_path / "depth"
    line = ["depth", room, "--model", NAME, "--output", str(out), "--size", "32x48"]
    ((code, said),), _ = machine.run(command, [line])
    assert code == 0 and len(list(out.glob("*/*.npy"))) >= 2, said


def test_what_would_be_pushed_can_be_looked_at(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card"
    assert cli.main(["models", "push", str(run), NAME, "--output", str(out)]) == 0
    told = capsys.readouterr()
    assert "model.safetensors" in told.out and "Nothing was pushed" in told.err
    assert "No --license" in told.err
    assert sorted(path.name for path in out.iterdir())[0] == "README.md"
    assert cli.main(["models", "push", str(run), NAME, "--output", str(out)]) == 2
    assert cli.main(["models", "push", str(run), NAME, "--dry-run"]) == 0
    assert re.search(r"^library_name: pmsplat$", capsys.readouterr().out, re.M)
    again = pack(out, Options("mit"), tell=lambda _: None)  # a folder of ours can be pushed again
    assert again.trained == trained_on(run) and "training.json" in again.extra

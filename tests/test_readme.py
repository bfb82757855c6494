"""What README.md shows is run: its Python against the package, its three files in a training."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pmsplat
from pmsplat import config
from pmsplat.cli import main, parser
from pmsplat.data import synthetic

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every `pmsplat …` line of the shell blocks, comments and environment taken off."""
    found = []
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "pmsplat" in words:
                found.append(words[words.index("pmsplat") + 1 :])
    return found


def test_every_command_is_one_that_the_parser_knows() -> None:
    assert len(commands()) > 8
    for words in commands():
        parser().parse_args(words)


def test_every_override_of_the_table_is_a_setting() -> None:
    """The right column of "Coming from …" composes; left alone are placeholders of values."""
    values = {"N": "2", "X": "0.5", "F": "f.json", "D": "d", "STEPS": "9", "[A,B]": "[3,4]"}
    values |= {"[H,W]": "[64,64]"}
    overrides = []
    for row in re.findall(r"^\|.*\|(.*)\|$", TEXT, flags=re.MULTILINE):
        for code in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*=[^`]+)`", row):
            key, _, value = code.partition("=")
            overrides.append(f"{key}={values.get(value, value)}")
    assert len(overrides) > 25
    experiment = config.compose([*overrides, "+experiment=re10k_base"])
    assert experiment.model.settings.vit == "vitb" and experiment.trainer.batch_size == 2


def test_public_names_of_the_examples_exist() -> None:
    names = set(re.findall(r"pmsplat\.(\w+)\(", "".join(blocks("python"))))
    assert names >= {"read_views", "load", "infer", "save_gaussians", "load_gaussians", "rasterize"}
    assert all(hasattr(pmsplat, name) for name in names)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """The three files of "One file per idea", and a folder of posed photographs."""
    for block in blocks("python"):
        if block.startswith("# lab/"):
            first, _, code = block.partition("\n")
            file = tmp_path / first.removeprefix("# ")
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
    assert len(list((tmp_path / "lab").glob("*.py"))) == 3
    synthetic.write(tmp_path / "rooms", 1, 12, (64, 64), 0, "train")
    return tmp_path


def test_a_loss_an_encoder_and_a_dataset_from_outside_the_repository(lab: Path) -> None:
    words = next(w for w in commands() if "model=lab.flat" in w)
    photos = lab / "rooms" / "train" / "000000.torch"
    changed = {"dataset.folder": str(photos), "trainer.steps": "3", "output": str(lab / "out")}
    overrides = [
        f"{key}={changed.get(key, value)}"
        for key, _, value in (w.partition("=") for w in words[1:])
    ]
    training = [sys.executable, "-m", "pmsplat", "train", *overrides, "trainer.log_every=1"]
    done = subprocess.run(training, cwd=lab, env={"PYTHONPATH": str(lab)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (lab / "out" / "model.safetensors").is_file()
    assert "loss/lab.sparsity" in next((lab / "out").rglob("metrics.csv")).read_text()


def test_a_mistyped_verb_is_refused_by_the_parser() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["predcit"])
    assert stopped.value.code == 2

"""What README.md and docs/ show is true: commands, Python, settings, figures, names and links."""

import ast
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.teaching import COLUMNS

import pmsplat
from benchmarks import run as benchmarks
from pmsplat import config
from pmsplat.cli import main, parser
from pmsplat.data import synthetic
from pmsplat.zoo.published import ZOO
from tests.models.tiny import tiny

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
OTHERS = ("CONTRIBUTING.md", "datasets/README.md", "pretrained/README.md", "benchmarks/README.md")
PAGES = [README, *sorted(DOCS.rglob("*.md")), *(ROOT / name for name in OTHERS)]
IDEAS = DOCS / "extending.md"


def blocks(language: str, *pages: Path) -> list[str]:
    """The code blocks of one language."""
    texts = (page.read_text() for page in pages or PAGES)
    found = (re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL) for text in texts)
    return [block for of_page in found for block in of_page]


def lines(*pages: Path) -> Iterator[list[str]]:
    """The words of every shell command, comments taken off."""
    for block in blocks("sh", *pages):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def commands(*pages: Path) -> list[list[str]]:
    """The words behind every `pmsplat`."""
    return [w[w.index("pmsplat") + 1 :] for w in lines(*pages) if "pmsplat" in w]


def rows(page: Path) -> list[list[str]]:
    """The cells of every row of the tables, heads and rules left out."""
    found = re.findall(r"^\|(.*)\|$", page.read_text(), flags=re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in found]
    rules = [i for i, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def test_readme_is_a_front_page() -> None:
    assert len(README.read_text().splitlines()) < 200


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_that_the_parser_knows(words: list[str]) -> None:
    arguments = parser().parse_args(words)
    assert arguments.verb == words[0]
    overrides = getattr(arguments, "overrides", [])
    if not any("lab." in word for word in overrides):  # those are run below
        config.compose(overrides)


def test_every_script_and_every_benchmark_exists() -> None:
    scripts = [w for words in lines() for w in words if w.startswith(("scripts/", "benchmarks/"))]
    assert "scripts/bootstrap.py" in scripts
    assert [name for name in scripts if name.endswith(".py") and not (ROOT / name).is_file()] == []
    questions = [words[2:] for words in lines() if words[1:2] == ["benchmarks/run.py"]]
    for words in questions:
        benchmarks.parser().parse_args(words)
    assert len(questions) > 1


def test_every_override_of_the_table_is_a_setting() -> None:
    """The right column of coming-from.md composes; capital letters stand for values."""
    values = {"N": "2", "X": "0.5", "F": "f.json", "D": "d", "STEPS": "9", "[A,B]": "[3,4]"}
    values |= {"[H,W]": "[64,64]", "[F,G]": "[f,g]", "[F]": "[f]"}
    overrides = []
    for row in rows(DOCS / "coming-from.md"):
        for code in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*=[^`]+)`", row[-1]):
            key, _, value = code.partition("=")
            if key != "model.offsets":  # of another model
                overrides.append(f"{key}={values.get(value, value)}")
    assert len(overrides) > 25
    experiment = config.compose([*overrides, "+experiment=re10k_base"])
    assert experiment.model.settings.vit == "vitb" and experiment.trainer.batch_size == 2


def test_python_compiles_and_its_public_names_exist() -> None:
    for block in blocks("python"):
        ast.parse(block)
    names = set(re.findall(r"pmsplat\.(\w+)\(", "".join(blocks("python"))))
    assert names >= {"read_views", "load", "infer", "save_gaussians", "load_gaussians", "rasterize"}
    assert [name for name in names if not hasattr(pmsplat, name)] == []


def test_the_outputs_in_readme_have_the_shapes_that_it_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One letter, one number: `[1, view, 3, height, width]` binds each name once."""
    synthetic.write(tmp_path, 1, 12, (64, 64), 0, "kitchen")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pmsplat, "load", lambda name: tiny().eval())
    example, stated = blocks("python", README)[:2]
    namespace: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), namespace)
    sizes: dict[str, int] = {"height": 256, "width": 256, "view": 2, "gaussian": 2 * 256 * 256}
    for line in stated.splitlines():
        expression, shape = re.fullmatch(r"(\S+)  # \[(.*?)\]: .*", line).groups()  # pyright: ignore
        value = eval(expression, namespace)
        for axis, length in zip(shape.split(", "), value.shape, strict=True):
            assert length == (int(axis) if axis.isdigit() else sizes.setdefault(axis, length)), line
        assert value.dtype == torch.float32
    assert (tmp_path / "kitchen.ply").is_file()


def test_the_tables_of_models_are_those_of_the_zoo() -> None:
    def facts(page: Path) -> dict[str, tuple[str, str, str, str]]:
        models = (row for row in rows(page) if row[0].strip("`") in ZOO)
        return {
            row[0].strip("`"): (row[1], row[-3], row[-2].rstrip(" ¹²³⁴⁵"), row[-1])
            for row in models
        }

    listed = facts(DOCS / "models.md")
    assert list(listed) == list(ZOO)
    for name, published in ZOO.items():
        parameters = f"{published.parameters / 1e6:.1f} M"
        psnr = published.psnr or "–"
        assert listed[name] == (parameters, published.data, psnr, published.license)
    front = facts(README)
    assert len(front) > 8 and all(listed[name] == front[name] for name in front)


def test_the_figures_of_pm_loss_are_those_of_the_benchmarks() -> None:
    table = iter(row for row in rows(DOCS / "pm-loss.md") if len(row) == 1 + len(COLUMNS))
    for place in ("office", "rooms"):
        figures = json.loads((ROOT / f"benchmarks/teaching_{place}.json").read_text())["figures"]
        for model in ("depthsplat", "mvsplat"):
            for variant in ("colour", "term"):
                runs, cells = figures[f"{model}/{variant}"], next(table)[1:]
                for (metric, (_, digits)), cell in zip(COLUMNS.items(), cells, strict=True):
                    values = [run[metric] for run in runs]
                    mean, deviation = map(float, cell.split(" ±"))
                    half = 0.500001 * 10**-digits
                    assert mean == pytest.approx(statistics.mean(values), abs=half)
                    assert deviation == pytest.approx(statistics.stdev(values), abs=half)


def test_the_figures_of_updates_are_those_of_the_benchmarks() -> None:
    table = [row for row in rows(DOCS / "training.md") if len(row) == 6 and "±" in row[1]]
    names = ("rooms", "photos", "depthsplat")
    for row, name in zip(table, names, strict=True):
        figures = json.loads((ROOT / f"benchmarks/updates_{name}.json").read_text())["figures"]
        (runs,) = figures.values()
        for step, cell in enumerate(row[1:]):
            gains = [run["psnr"][step] - (run["psnr"][0] if step else 0) for run in runs]
            mean, deviation = map(float, cell.split(" ±"))
            assert mean == pytest.approx(statistics.mean(gains), abs=0.00501)
            assert deviation == pytest.approx(statistics.stdev(gains), abs=0.00501)


def test_the_figures_of_speed_are_those_of_the_benchmarks() -> None:
    table = rows(DOCS / "performance.md")
    shown = [row for row in table if len(row) == 6 and row[1].endswith(" s")]
    for row, measured in zip(shown, [*speeds("published"), *speeds("official")], strict=True):
        assert is_of([row[1], row[4]], measured)
        if "official" not in measured:
            assert not any((row[2], row[3], row[5]))
            continue
        assert is_of([row[2], row[5]], measured["official"])
        share = measured["forward"]["median_ms"] / measured["official"]["forward"]["median_ms"]
        assert float(row[3]) == pytest.approx(share, abs=0.00501)


def speeds(question: str) -> list[dict[str, Any]]:
    """The models of a JSON that `benchmarks/run.py published` wrote."""
    whole = json.loads((ROOT / f"benchmarks/{question}.json").read_text())
    return [*whole["figures"]["models"].values()]


def is_of(said: list[str], measured: dict[str, Any]) -> bool:
    """Whether a time and a peak are those that were measured, as rounded."""
    seconds, peak = float(said[0].removesuffix(" s")), int(said[1].removesuffix(" MiB"))
    time = measured["forward"]["median_ms"] / 1000
    return abs(seconds - time) <= 0.00501 and abs(peak - measured["peak_mib"]) <= 0.51


def test_every_public_name_has_a_place_in_the_reference() -> None:
    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert [name for name in pmsplat.__all__ if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text())
    assert [name for name in targets if not (page.parent / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_in_inline_code_exists(page: Path) -> None:
    words = " ".join(re.findall(r"`([^`\n]+)`", page.read_text())).split()
    folders = ("tests/", "src/", "scripts/", "benchmarks/", "docs/")
    paths = [word for word in words if word.startswith(folders)]
    assert [name for name in paths if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    names = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert [name for name in names if f": {name}\n" not in navigation] == []


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """The three files of extending.md, and a folder of posed photographs."""
    for block in blocks("python", IDEAS):
        first, _, code = block.partition("\n")
        file = tmp_path / first.removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    assert len(list((tmp_path / "lab").glob("*.py"))) == 3
    synthetic.write(tmp_path / "rooms", 1, 12, (64, 64), 0, "train")
    return tmp_path


def test_a_loss_an_encoder_and_a_dataset_from_outside_the_repository(lab: Path) -> None:
    words = next(w for w in commands(IDEAS) if "model=lab.flat" in w)
    photos = lab / "rooms" / "train" / "000000.torch"
    changed = {"dataset.folder": str(photos), "trainer.steps": "3", "output": str(lab / "out")}
    overrides = [
        f"{key}={changed.get(key, value)}"
        for key, _, value in (w.partition("=") for w in words[1:])
    ]
    training = [sys.executable, "-m", "pmsplat", "train", *overrides, "trainer.log_every=1"]
    path = f"{lab}:{Path(pmsplat.__file__).parents[1]}"
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(training, cwd=lab, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (lab / "out" / "model.safetensors").is_file()
    assert "loss/lab.sparsity" in next((lab / "out").rglob("metrics.csv")).read_text()


def test_the_loss_of_readme_is_that_of_the_page() -> None:
    (loss,) = (block for block in blocks("python", README) if block.startswith("# lab/"))
    assert loss in blocks("python", IDEAS)


def test_a_mistyped_verb_is_refused_by_the_parser() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["predcit"])
    assert stopped.value.code == 2

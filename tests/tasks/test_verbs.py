"""What predict, depth and render have in common: refusals, and a folder that appears whole."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmsplat import cli
from pmsplat.io.gaussians import save_gaussians
from pmsplat.models import depthsplat
from pmsplat.tasks.results.folder import FILES, FOLDERS, MARK
from pmsplat.zoo import memory
from pmsplat.zoo.load import save
from tests.scenes import random_gaussians

VERBS = ("predict", "depth", "render")
WRITTEN = {
    "predict": "cameras.json confidence depth gaussians.ply metrics.json render sheet.png "
    "video.mp4",
    "depth": "cameras.json color confidence depth metrics.json sheet.png",
    "render": "alpha cameras.json color depth depth_color metrics.json normals sheet.png video.mp4",
}

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def words(room: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A quick call of every verb, without its output."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    config = depthsplat.Config(
        vit="none", width=16, planes=8, transformer_layers=1, head_width=16, sh_degree=1
    )
    save(depthsplat.build(config).eval(), folder / "tiny.safetensors", "depthsplat")
    save_gaussians(random_gaussians(200, torch.Generator().manual_seed(0)), folder / "some.ply")
    model = ["--model", str(folder / "tiny.safetensors"), "--device", "cpu"]
    few = ["--views", "2", "--size", "48x64"]
    return {
        "predict": ["predict", room, *model, *few, "--held-out", "1", "--fps", "1"],
        "depth": ["depth", room, *model, *few],
        "render": [
            "render", str(folder / "some.ply"), "--orbit", "2", "--size", "24x32",
            "--device", "cpu", "--backend", "cpu",
        ],
    }  # fmt: skip


@pytest.fixture
def run(words: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb into tmp_path/out: (exit code, what it said)."""

    def run_verb(verb: str, *more: str, source: str | None = None) -> tuple[int, str]:
        called = list(words[verb])
        called[1] = source or called[1]
        code = cli.main([*called, "--output", str(tmp_path / "out"), *more])
        return code, capsys.readouterr().err.strip()

    return run_verb


@pytest.mark.parametrize("verb", VERBS)
def test_the_folder_holds_what_is_promised_and_is_a_result(
    verb: str, run: Run, tmp_path: Path
) -> None:
    """All of it is on the list of what a later result takes away."""
    code, said = run(verb)
    assert code == 0, said
    assert said.endswith(f"{tmp_path / 'out'}/.")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == set(WRITTEN[verb].split())
    assert names <= {*FOLDERS, *FILES, MARK}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("verb", "option", "value", "wanted"),
    [
        *[(verb, "--device", "tpu", "auto, cpu, cuda or cuda:N") for verb in VERBS],
        *[(verb, "--views", "11", "from 2 to 10 views") for verb in ("predict", "depth")],
        ("predict", "--views", "1", "from 2 to 10 views"),
        ("depth", "--views", "1", "two or more"),
        *[(verb, "--context", "0,17", "numbers from 0 to 9") for verb in ("predict", "depth")],
        *[(verb, "--size", "50x8", "at least 16") for verb in ("predict", "depth")],
    ],
)
def test_options_that_do_not_fit(
    verb: str, option: str, value: str, wanted: str, run: Run, tmp_path: Path
) -> None:
    code, said = run(verb, option, value)
    assert code == 2 and said.count("\n") <= 2
    assert f"{option} {value}" in said.splitlines()[-1]
    assert wanted in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_options_that_do_not_parse(verb: str, run: Run) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(verb, "--size", "64")
    assert stopped.value.code == 2


@pytest.mark.parametrize("verb", VERBS)
def test_input_that_is_not_there(verb: str, run: Run, tmp_path: Path) -> None:
    code, said = run(verb, source=str(tmp_path / "absent.ply"))
    assert code == 2 and "absent.ply" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_too_little_memory(
    verb: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 16)
    code, said = run(verb)
    assert code == 2 and "need about" in said and "free on cpu" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "wanted"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "m"), 2, "cannot write at m: No space"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_an_end_before_the_end_leaves_nothing(
    verb: str,
    error: BaseException,
    code: int,
    wanted: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C and a full disk, when all but the last file is written."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pmsplat.tasks.results.summary.write_text", fail)
    found, said = run(verb)
    assert found == code and wanted in said.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.tex", "cameras.json"])
@pytest.mark.parametrize("verb", VERBS)
def test_an_output_that_holds_something_else(
    verb: str, name: str, run: Run, tmp_path: Path
) -> None:
    """A scene of one's own, whose cameras.json does not make it a result, too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    code, said = run(verb)
    assert code == 2 and "holds other files" in said and "--overwrite" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_that_cannot_be_written(
    verb: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr("pmsplat.tasks.results.folder.tempfile.mkdtemp", forbid)
    code, said = run(verb)
    assert code == 2 and "cannot write at out: Permission denied" in said

import hashlib
import json
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import torch

import pmsplat
from pmsplat.cli import main, models
from pmsplat.errors import UserError
from pmsplat.io import weights
from pmsplat.zoo.load import ZOO, save

NAME = "mvsplat-re10k"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `pretrained/`."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    monkeypatch.setattr(weights, "pretrained_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def official(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the keys and shapes of the released MVSplat, wrapped as Lightning does."""
    described = json.loads((shared / "reference" / f"{NAME}.keys.json").read_text())
    generator = torch.Generator().manual_seed(0)
    state = {
        key: 0.05 * torch.randn(shape, generator=generator)
        for key, (shape, _) in described["keys"].items()
    }
    path = tmp_path_factory.mktemp("official") / "re10k.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"out": PurePosixPath("x")}}, path)
    return path


def test_the_list_has_every_model_on_a_line_of_at_most_100_characters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ZOO["pmloss"].source.name).write_bytes(bytes(3_000_000))
    assert main(["models"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 100 or str(folder) in lines[-1]
    rows = {line.split()[0]: line for line in lines}
    assert len(ZOO) == 35 and set(ZOO) <= set(rows)
    for name, published in ZOO.items():
        assert f"{published.parameters / 1e6:.1f} M" in rows[name] and published.data in rows[name]
        size = 3e6 if name == "pmloss" else published.bytes
        here = "yes" if name == "pmloss" else "-"
        assert f"{size / 1e6:,.0f} MB {here} " in rows[name]
        assert rows[name].endswith((published.psnr or "-").split()[-1])
        place = f"huggingface.co/{published.source.repository}, {published.license}"
        assert place in lines[: lines.index(rows[name])]


def test_fetch_verifies_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b"weights"
    source = replace(ZOO[NAME].source, sha256=hashlib.sha256(content).hexdigest()[:8])
    monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], source=source))
    path = folder / source.name
    path.write_bytes(content)
    assert main(["models", "fetch", NAME, NAME]) == 0
    assert capsys.readouterr().out == f"{NAME}: {path}\n"
    path.write_bytes(b"damaged")
    assert main(["models", "fetch", NAME]) == 2
    assert str(path) in capsys.readouterr().err and path.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fetch"], "no model; wanted its name, or --all"),
        (["fetch", NAME, "mvsplat-re10"], "did you mean 'mvsplat-re10k'?"),
        (["fetch", NAME], "put https://huggingface.co/dylanebert/mvsplat/resolve/124fd69"),
        (["fetch", "--all"], "downloads are switched off by HF_HUB_OFFLINE"),
        (["convert", "x.ckpt", "out.pth"], "wanted a .safetensors file"),
        (["convert", "x.ckpt", "out.safetensors"], "'x.ckpt', which is neither"),
        (["convert", "x.ckpt", "out.safetensors", "--name", "x"], "which is no published model"),
        (["convert", "x.ckpt", "out.safetensors", "--name", NAME], "no file at x.ckpt"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_converted_file_loads_without_a_name(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    assert main(["models", "convert", str(official), str(out)]) == 2
    told = capsys.readouterr().err
    assert told.rstrip().endswith("with --name") and "--weights" not in told and not out.exists()
    assert main(["models", "convert", str(official), str(out), "--name", NAME]) == 0
    ours, theirs = pmsplat.load(out), pmsplat.load(NAME, weights=official)
    assert type(ours) is type(theirs) and ours.cfg == theirs.cfg
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items())
    with pytest.raises(UserError, match="which exists"):
        models.convert(official, out, NAME)


def test_one_of_ours_is_converted_too(tmp_path: Path) -> None:
    from pmsplat.models import mvsplat

    model = mvsplat.build(mvsplat.Config())
    save(model, tmp_path / "a.safetensors", "mvsplat")
    models.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert weights.read_header(tmp_path / "b.safetensors") == weights.read_header(
        tmp_path / "a.safetensors"
    )

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pmsplat
from pmsplat.errors import UserError
from pmsplat.io.hub_models import Repository
from pmsplat.io.weights import read_header
from pmsplat.zoo.share import without_folders
from pmsplat.zoo.trained import TrainedOn, trained_on
from tests.models.tiny import shaken, tiny

LEARNED = TrainedOn((2, 4), (48, 64), "rooms", (0.25, 1.5))


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("name", ["depthsplat", "mvsplat", "updated"])
def test_a_saved_model_is_the_same_again(name: str, tmp_path: Path) -> None:
    model = shaken(tiny(name))
    folder = pmsplat.save_pretrained(model, tmp_path / "model", LEARNED)
    again = pmsplat.from_pretrained(folder)
    assert same(again, model) and again.cfg == model.cfg and not again.training
    assert trained_on(folder) == trained_on(folder / "model.safetensors") == LEARNED
    assert "(height x width)" in (folder / "README.md").read_text()


def test_weights_without_a_header_are_built_by_the_settings_beside_them(tmp_path: Path) -> None:
    model = tiny()
    pmsplat.save_pretrained(model, tmp_path)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    assert read_header(tmp_path / "model.safetensors") is None
    assert same(pmsplat.load(tmp_path), model)
    content = json.loads((tmp_path / "config.json").read_text())
    content["settings"]["width"] = 64
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="as in the model"):  # strict
        pmsplat.load(tmp_path)


def test_a_path_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny()
    pmsplat.save_pretrained(model, "me/rooms")
    assert same(pmsplat.load("me/rooms"), model)
    (tmp_path / "me" / "empty").mkdir()
    with pytest.raises(UserError, match="hf://me/empty"):
        pmsplat.load("me/empty")
    for name in ("hf://me/rooms", "me/rooms@main"):
        with pytest.raises(UserError, match="cannot be had from the hub"):
            pmsplat.load(name)
    with pytest.raises(UserError, match="hub: it is not in the cache"):
        pmsplat.from_pretrained("me/rooms", revision="main")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("me/rooms", Repository("me/rooms")),
        ("me/rooms@v1.0", Repository("me/rooms", "v1.0")),
        ("hf://me/rooms@refs/pr/1", Repository("me/rooms", "refs/pr/1")),
        (str(Path("hf://me/rooms")), Repository("me/rooms")),
        ("rooms", None),
        ("./me/rooms", None),
        ("/me/rooms", None),
        ("a/b/c", None),
        ("outputs/model.safetensors", None),
        ("me/rooms@", None),
    ],
)
def test_what_names_a_repository(text: str, wanted: Repository | None) -> None:
    assert Repository.parse(text) == wanted


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`revision=v1`"):
        pmsplat.from_pretrained("rooms", revision="v1")
    with pytest.raises(UserError, match="class Linear without the Config"):
        pmsplat.save_pretrained(nn.Linear(1, 1), tmp_path)
    with pytest.raises(UserError, match="names no repository"):
        pmsplat.push_to_hub(tiny(), "rooms")
    with pytest.raises(UserError, match=r"switched off|no login"):
        pmsplat.push_to_hub(tiny(), "me/rooms")


def test_paths_lose_their_folders() -> None:
    given = {"root": "/home/me/data", "init_from": ["dinov2", "C:\\me\\w.pt"], "size": (1, 2)}
    wanted = {"root": "data", "init_from": ["dinov2", "w.pt"], "size": [1, 2]}
    assert without_folders(given) == wanted

import json
import os
from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat.errors import UserError
from pmsplat.io import weights
from pmsplat.models import _convert, _zoo
from pmsplat.models.depthsplat import Config, DepthSplat

TINY = Config(vit="none", width=32, planes=16, transformer_layers=2, head_width=16)


def test_our_checkpoint_brings_the_model_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DepthSplat(TINY)
    _zoo.save(model, tmp_path / "tiny.safetensors", "depthsplat")
    found = pmsplat.load(tmp_path / "tiny.safetensors")
    assert isinstance(found, DepthSplat) and found.cfg == TINY and not found.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True)
    )
    assert all(p.requires_grad for p in found.parameters())


def test_a_checkpoint_that_does_not_fit_its_settings_is_told(tmp_path: Path) -> None:
    state = DepthSplat(TINY).state_dict()
    header = weights.Header("depthsplat", {**vars(TINY), "planes": 32})
    weights.save_checkpoint(tmp_path / "wrong.safetensors", state, header)
    with pytest.raises(UserError, match=r"does not fit.*'depth\.regressors\.0\."):
        pmsplat.load(tmp_path / "wrong.safetensors")


def test_unknown_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'depthsplat-gs-small-re10k-256x256-view2'"):
        pmsplat.load("depthsplat-gs-small-re10k-256x256")
    torch.save({"a": torch.zeros(1)}, tmp_path / "some.pth")
    with pytest.raises(UserError, match=r"load\(NAME, weights="):
        pmsplat.load(tmp_path / "some.pth")
    with pytest.raises(UserError, match="two checkpoints"):
        pmsplat.load(tmp_path / "some.pth", weights=tmp_path / "some.pth")


def official(model: DepthSplat) -> dict[str, torch.Tensor]:
    """The model's own parameters under the official names, joined ones taken apart."""
    names = _convert.depthsplat(model.layout)
    out = {}
    for name, value in model.state_dict().items():
        keys = _convert.official_keys(name, names)
        out |= dict(zip(keys, value.chunk(len(keys)), strict=True))
    return out


@pytest.fixture(scope="module")
def small() -> tuple[DepthSplat, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = DepthSplat(Config(published=True, transformer_layers=2))
    return model, official(model)


def test_conversion_is_strict_both_ways(
    small: tuple[DepthSplat, dict[str, torch.Tensor]],
) -> None:
    model, state = small
    names = _convert.depthsplat(model.layout)

    def convert(changed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return _convert.convert(changed, model, names, model.layout)

    found = convert(state)
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())
    key = "encoder.gaussian_head.2.bias"
    with pytest.raises(
        UserError, match=r"without 'encoder\.gaussian_head\.2\.bias'.*another model"
    ):
        convert({k: v for k, v in state.items() if k != key})
    with pytest.raises(UserError, match=r"'encoder\.extra' in the checkpoint; wanted no such"):
        convert({**state, "encoder.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"gaussian_head\.2\.bias' of shape \[36\]; wanted \[37\]"):
        convert({**state, key: torch.zeros(36)})


@pytest.mark.parametrize("name", _zoo.ZOO)
def test_every_published_model_has_a_rule_for_every_official_key(name: str, shared: Path) -> None:
    files = sorted((shared / "reference").glob(f"{name}*.keys.json"))
    if not files:
        pytest.skip(f"no key list of {name}")
    keys = json.loads(files[0].read_text())["keys"]
    with torch.device("meta"):
        model = DepthSplat(Config(**_zoo.ZOO[name].settings, published=True))
        state = {key: torch.empty(shape) for key, (shape, _) in keys.items()}
        names = _convert.depthsplat(model.layout)
        found = _convert.convert(state, model, names, model.layout)
    assert len(found) == len(model.state_dict())


def test_a_model_that_is_not_there_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(weights, "pretrained_folder", lambda: tmp_path)
    with pytest.raises(
        UserError, match=r"depthsplat-gs-small.*cfeab6b1\.pth.*huggingface\.co/haofeixu"
    ):
        pmsplat.load("depthsplat-gs-small-re10k-256x256-view2")

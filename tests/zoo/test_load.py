import math
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import pmsplat
from pmsplat import registry
from pmsplat.contracts import encoder_traits
from pmsplat.errors import UserError
from pmsplat.io import weights
from pmsplat.models.depthsplat import Config, DepthSplat
from pmsplat.zoo.convert import convert, names_of, official_keys
from pmsplat.zoo.load import ZOO, open_model, save
from tests.models.official import key_shapes

TINY = Config(vit="none", width=32, planes=16, transformer_layers=2, head_width=16)


def test_our_checkpoint_brings_the_model_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DepthSplat(TINY)
    save(model, tmp_path / "tiny.safetensors", "depthsplat")
    found = pmsplat.load(tmp_path / "tiny.safetensors")
    assert isinstance(found, DepthSplat) and found.cfg == TINY and not found.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True)
    )
    assert all(p.requires_grad for p in found.parameters())


def test_a_checkpoint_that_does_not_fit_its_settings_is_told(tmp_path: Path) -> None:
    state = DepthSplat(TINY).state_dict()
    header = weights.Header("depthsplat", {**asdict(TINY), "planes": 32})
    weights.save_checkpoint(tmp_path / "wrong.safetensors", state, header)
    with pytest.raises(UserError, match=r"\[32, 80, 3, 3\] at 'depth\.regressors\.0\.stem"):
        pmsplat.load(tmp_path / "wrong.safetensors")


def test_what_stands_beside_the_weights_of_a_training_names_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a checkpoint"):
        pmsplat.load(tmp_path)
    with pytest.raises(UserError, match="neither a published model nor a file"):
        pmsplat.load(tmp_path / "nothing")
    state = {f"model.{name}": value for name, value in DepthSplat(TINY).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="is neither a pmsplat checkpoint"):
        pmsplat.load(tmp_path / "last.ckpt")
    save(DepthSplat(TINY), tmp_path / "model.safetensors", "depthsplat")
    with pytest.raises(UserError, match=f"give {re.escape(str(tmp_path))}/model.safetensors"):
        pmsplat.load(tmp_path / "last.ckpt")


def test_the_folder_of_a_training_run_opens_its_weights(tmp_path: Path) -> None:
    model = DepthSplat(TINY)
    save(model, tmp_path / "model.safetensors", "depthsplat")
    found = open_model(tmp_path)
    assert (found.component, found.settings) == ("depthsplat", TINY)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(UserError, match="two checkpoints"):
        pmsplat.load(tmp_path, weights=tmp_path / "model.safetensors")


def test_unknown_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'depthsplat-gs-small-re10k-256x256'"):
        pmsplat.load("depthsplat-gs-smal-re10k-256x256")
    torch.save({"a": torch.zeros(1)}, tmp_path / "some.pth")
    with pytest.raises(UserError, match="no model that pmsplat knows"):
        pmsplat.load(tmp_path / "some.pth")
    with pytest.raises(UserError, match="two checkpoints"):
        pmsplat.load(tmp_path / "some.pth", weights=tmp_path / "some.pth")


def official(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's own parameters under the official names, joined ones taken apart."""
    names, out = names_of(model), {}
    for name, value in model.state_dict().items():
        keys = official_keys(name, names)
        out |= dict(zip(keys, value.chunk(len(keys)), strict=True))
    return out


@pytest.fixture(scope="module", params=["depthsplat", "depthsplat2024", "mvsplat", "resplat"])
def small(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    tiny = {"width": 32, "planes": 16, "transformer_layers": 2, "published": True}
    if request.param != "mvsplat":
        tiny |= {"vit": "none"}
    return registry.build("models", request.param, tiny)


def test_conversion_is_strict_both_ways(small: nn.Module) -> None:
    state = official(small)
    found = convert(state, small)
    assert all(torch.equal(found[k], v) for k, v in small.state_dict().items())
    key = max(k for k in state if k.endswith("2.bias"))
    shape = len(state[key])
    with pytest.raises(UserError, match=f"without '{re.escape(key)}'; wanted that parameter"):
        convert({k: v for k, v in state.items() if k != key}, small)
    with pytest.raises(UserError, match=r"'encoder\.extra' in the checkpoint; wanted no such"):
        convert({**state, "encoder.extra": torch.zeros(1)}, small)
    wrong = rf"'{re.escape(key)}' of shape \[{shape - 1}\]; wanted \[{shape}\]"
    with pytest.raises(UserError, match=wrong):
        convert({**state, key: torch.zeros(shape - 1)}, small)


@pytest.mark.parametrize("prefix", ["model.", "net.model.", "encoder.", "ema_model.", "x.y.z."])
def test_anything_may_stand_before_the_official_names(small: nn.Module, prefix: str) -> None:
    state, wanted = official(small), small.state_dict()
    bare = {key.removeprefix("encoder."): value for key, value in state.items()}
    for given in (state, bare):
        wrapped = {prefix + key: value for key, value in given.items()}
        found = convert({**wrapped, "step": torch.zeros(())}, small)
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    more = {f"{prefix}encoder.extra": torch.ones(1)}
    with pytest.raises(UserError, match=r"'encoder\.extra' in the checkpoint"):
        convert({prefix + key: value for key, value in state.items()} | more, small)


def test_networks_of_losses_beside_the_encoder_are_not_looked_at(small: nn.Module) -> None:
    found = convert({**official(small), "losses.1.lpips.scale": torch.zeros(1)}, small)
    assert found.keys() == small.state_dict().keys()


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        published = ZOO[name]
        return registry.build("models", published.model, published.settings | {"published": True})


def test_thirty_five_models_are_published() -> None:
    assert len(ZOO) == 35


@pytest.mark.parametrize("name", ZOO)
def test_every_official_key_has_a_place_and_every_place_a_key(name: str, shared: Path) -> None:
    keys = key_shapes(shared / "reference", name)
    model = on_meta(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
    found = convert(state, model)
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    counted = ("running_mean", "running_var", "num_batches_tracked")  # are no parameters
    shapes = [shape for key, shape in keys.items() if not key.endswith(counted)]
    count = sum(map(math.prod, shapes))
    assert count == sum(p.numel() for p in model.parameters()) == ZOO[name].parameters
    key = sorted(state)[len(state) // 2]
    with pytest.raises(UserError, match=re.escape(key)):
        convert({k: v for k, v in state.items() if k != key}, model)


# What the shapes of a file cannot tell, and its authors' pages do.
HIDDEN = {
    "depthsplat-gs-small-re10kdl3dv-448x768-randview4-10": {"scale_max": 0.1},
    "depthsplat-gs-base-re10kdl3dv-448x768-randview2-6": {"scale_max": 0.1},
    "depthsplat-gs-small-re10k-256x256": {"scale_max": 0.3, "neighbors": 0, "offsets": "bounded"},
    "depthsplat-gs-base-dl3dv-256x448": {"scale_max": 0.3, "neighbors": 2, "offsets": "bounded"},
    "pmloss": {"neighbors": 2, "offsets": "free"},
    "ori_depthsplat_tuned": {"neighbors": 2, "offsets": "bounded"},
    "depthsplat-gs-base-re10k-256x256-view2": {"scale_max": 3.0, "scale_unit": "world"},
    "resplat-base-dl3dv-512x960-view8": {"scale_max": 1.0, "half_depth": False, "far": 200.0},
    "resplat-base-dl3dv-540x960-view16": {"scale_max": 3.0, "half_depth": True, "steps": 2},
    "resplat-base-re10k-256x256-view2": {"near": 0.01, "far": 100.0, "steps": 2},
    "resplat-base-re10k-256x256-view2-init16": {"near": 0.01, "far": 100.0, "steps": None},
    "resplat-depth-base-352x640": {"near": 0.01, "far": 200.0, "depth_space": "log"},
}


@pytest.mark.parametrize("name", HIDDEN)
def test_settings_that_no_shape_tells_are_the_authors(name: str) -> None:
    settings = vars(on_meta(name).cfg)
    assert settings | HIDDEN[name] == settings


# Estimates: the authors publish no usual depth of their scenes.
@pytest.mark.parametrize("name", [name for name in ZOO if name.startswith("resplat-")])
def test_models_of_resplat_see_scenes_at_the_depth_of_their_data(name: str) -> None:
    traits = encoder_traits(on_meta(name))
    far, typical_depth = (100.0, 2.1) if "re10k" in name else (200.0, 5.0)
    assert traits.searched == (0.01, far) and traits.typical_depth == typical_depth


@pytest.mark.parametrize("form", [0, 1])
def test_the_shapes_of_the_re10k_file_of_resplat_tell_its_form(
    form: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("resplat-base-re10k-256x256-view2", "resplat-base-re10k-256x256-view2-init16")
    small = {"vit": "vits", "point_width": 8, "transformer_layers": 0, "planes": 4}
    for name in names:
        monkeypatch.setitem(ZOO, name, replace(ZOO[name], settings=ZOO[name].settings | small))
    model = registry.build("models", "resplat", ZOO[names[form]].settings)
    counts = {f"encoder.update_feature.bn{i}.num_batches_tracked": torch.tensor(7) for i in (1,)}
    wrapped = {"state_dict": official(model) | ({} if form else counts)}
    torch.save(wrapped, tmp_path / "re10k.pth")
    found = pmsplat.load(names[0], weights=tmp_path / "re10k.pth")
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in model.state_dict().items())
    assert ("is loaded as that" in caplog.text) == bool(form)
    with pytest.raises(UserError, match=f"load it as {names[form]}"):
        pmsplat.load("resplat-small-dl3dv-256x448-view8", weights=tmp_path / "re10k.pth")


def test_a_model_that_is_not_there_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(weights, "pretrained_folder", lambda: tmp_path)
    with pytest.raises(
        UserError, match=r"depthsplat-gs-small.*cfeab6b1\.pth.*huggingface\.co/haofeixu"
    ):
        pmsplat.load("depthsplat-gs-small-re10k-256x256-view2")

"""Training of an update on an encoder of ours that stays as it is, and what it leaves."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pmsplat
from pmsplat import config, train
from pmsplat.errors import UserError
from pmsplat.io.weights import Header, save_checkpoint
from pmsplat.train import Experiment
from pmsplat.zoo import load as zoo_load
from pmsplat.zoo.init import initialize
from tests.models.tiny import shaken, tiny, views

OWN = {"near": None, "planes": 8, "sh_degree": 0, "scale_unit": "pixel"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of an encoder with settings of its own."""
    model = tiny("depthsplat", **OWN)
    path = tmp_path / "base.safetensors"
    save_checkpoint(path, model.state_dict(), Header("depthsplat", asdict(model.cfg)))
    return path


@pytest.fixture
def stage(setting: Callable[..., Experiment], base: Path) -> Callable[..., Experiment]:
    def make(*overrides: str) -> Experiment:
        return setting(
            "model=updated", "model.base=depthsplat_tiny",
            f"model.base_weights={base}", "model.init_from=[]", "model.state_width=16",
            "loss=l1", "~loss.log_depth", "trainer.update_steps=[1,2]", "trainer.batch_size=1",
            *overrides,
        )  # fmt: skip

    return make


def test_a_run_changes_the_update_alone_and_its_checkpoint_stands_alone(
    stage: Callable[..., Experiment], base: Path
) -> None:
    told: list[str] = []
    before = load_file(base)
    path = train.run(stage("trainer.steps=3", "trainer.validate_every=3"), told.append)
    base.unlink()
    loaded = zoo_load.open_model(path)
    after = load_file(path)
    theirs = {name.removeprefix("base."): v for name, v in after.items() if "base." in name}
    assert theirs.keys() == before.keys()
    assert all(torch.equal(theirs[name], value) for name, value in before.items())
    assert after["update.head.6.weight"].any()  # zero in the beginning
    assert any("settings of" in line and "planes" in line for line in told)
    assert OWN.items() <= loaded.settings.base.items() and loaded.component == "updated"
    given = views(torch.Generator().manual_seed(2), 2, (32, 32))
    every = [pmsplat.infer(loaded.model, given, steps=n).gaussians[-1] for n in (0, 2)]
    plain = pmsplat.infer(loaded.model.get_submodule("base"), given).gaussians[-1]
    torch.testing.assert_close(every[0].means, plain.means, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(every[0].means, every[1].means)


def test_a_base_without_weights_or_with_those_of_another_is_told(
    stage: Callable[..., Experiment],
) -> None:
    with pytest.raises(UserError, match=r"a base without weights.*set model\.base_weights"):
        train.run(stage("model.base_weights=null", "model.base.near=null"))
    with pytest.raises(UserError, match="of a model depthsplat; wanted weights of mvsplat"):
        train.run(stage("model.base=mvsplat"))


def test_an_update_without_its_encoder_is_told(tmp_path: Path) -> None:
    model = tiny("updated")
    update = {k: v for k, v in model.state_dict().items() if k.startswith("update.")}
    path = tmp_path / "update.safetensors"
    save_checkpoint(path, update, Header("updated", asdict(model.cfg)))
    with pytest.raises(UserError, match="an update without the encoder that it was trained on"):
        pmsplat.load(path)
    official = tmp_path / "update.pth"
    torch.save({"encoder.update_proj.weight": torch.zeros(2, 2)}, official)
    for words in ((official,), ("resplat-small-dl3dv-256x448-view8", official)):
        with pytest.raises(UserError, match="an update without the encoder"):
            pmsplat.load(*words)


def test_an_update_starts_from_that_of_another_encoder_where_shapes_fit(tmp_path: Path) -> None:
    other = shaken(tiny("resplat"))
    path = tmp_path / "resplat.safetensors"
    save_checkpoint(path, other.state_dict(), Header("resplat", asdict(other.cfg)))
    model, told = tiny("updated"), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize(model, [f"{path}:update"], told.append)
    after: dict[str, Any] = model.state_dict()
    theirs = other.state_dict()
    for name, value in after.items():
        taken = name.startswith("update.") and name != "update.condition.weight"
        assert torch.equal(value, theirs[name] if taken else before[name]), name
    assert told[0].endswith("; 1 of update stay, which it has not or in other shapes")


def test_the_base_is_named_by_a_file_or_a_component() -> None:
    small = config.compose(["model=updated", "model.base=depthsplat_base", "model.base.planes=64"])
    settings = small.model.settings
    assert settings.base["name"] == "depthsplat" and settings.base["vit"] == "vitb"
    assert (settings.base["planes"], settings.base["width"]) == (64, 128)
    plain = config.compose(["model=updated", "model.base=mvsplat"]).model.settings.base
    assert plain["name"] == "mvsplat" and plain["sh_degree"] == 4
    for override, sentence in (
        ("model.base=depthsplat_smal", "no model 'depthsplat_smal'.*'depthsplat_small'"),
        ("model.base.plnes=3", "no setting 'plnes'.*did you mean 'planes'"),
        ("model.base.planes=many", "setting 'planes' is wrong"),
        ("model.base=3", "setting 'base' is wrong"),
    ):
        with pytest.raises(UserError, match=sentence):
            config.compose(["model=updated", override])

"""Each fault of the released networks is a switch of its own, whatever says so."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat import config, registry
from pmsplat.errors import UserError
from pmsplat.io import weights
from pmsplat.models import Deviations
from pmsplat.types import Prediction
from tests.models.tiny import RELEASED, SETTINGS, shaken, tiny, views

every_model = pytest.mark.parametrize("name", RELEASED)


def predict(name: str, **deviations: bool) -> Prediction:
    given = views(torch.Generator().manual_seed(0), 3)
    given.cameras.K[:, 1, :2, :2] *= 1.3
    with torch.no_grad():
        degree = {} if name == "resplat" else {"sh_degree": 3}
        return shaken(tiny(name, **degree, deviations=deviations))(given)


@every_model
@pytest.mark.parametrize(
    ("deviation", "changed"),
    [
        ("reference_K", {"depth", "means"}),
        ("pixel_corners", {"depth", "means"}),
        ("mask_by_view", {"depth", "means"}),
        ("along_ray", {"means"}),
        ("sh_basis", {"sh"}),
        ("sh_signs", {"sh"}),
        ("hard_clamp", set()),  # acts on gradients alone: see tests/nn/test_cost_volume.py
    ],
)
def test_each_acts_alone(name: str, deviation: str, changed: set[str]) -> None:
    found = []
    for answer in (predict(name), predict(name, **{deviation: True})):
        gaussians = answer.gaussians[-1]
        found.append({"depth": answer.depths[-1], "means": gaussians.means, "sh": gaussians.sh})
    plain, faulty = found
    if name == "resplat" and deviation in ("along_ray", "sh_basis", "sh_signs"):
        changed = set()  # it has neither such rays nor harmonics of a camera
    differ = {part for part in plain if not torch.equal(plain[part], faulty[part])}
    assert differ - {"sh"} == changed - {"sh"}  # maps that a sweep informs reach the colors too
    assert ("sh" in differ) >= ("sh" in changed)


def test_every_deviation_is_tested() -> None:
    assert all(asdict(Deviations.released(along_ray=True)).values())


@every_model
def test_published_is_the_preset_of_the_release(name: str) -> None:
    released = registry.module("models", name).RELEASED
    expected = Deviations.released(along_ray=name not in ("depthsplat", "resplat"))
    if name == "resplat":
        expected = replace(expected, sh_basis=False, sh_signs=False)
    assert released == expected
    assert tiny(name, published=True).cfg.deviations == released
    assert tiny(name, published=False).cfg.deviations == Deviations()
    but = tiny(name, published=True, deviations={"sh_signs": False}).cfg.deviations
    assert asdict(but) == {**asdict(released), "sh_signs": False}


def test_the_command_line_sets_all_or_single_ones() -> None:
    released = registry.module("models", "mvsplat").RELEASED
    small = ["model=mvsplat", "model.published=true"]
    assert config.compose(small).model.settings.deviations == released
    one = config.compose([*small, "model.deviations.hard_clamp=false"]).model.settings
    assert asdict(one.deviations) == {**asdict(released), "hard_clamp": False}
    alone = config.compose(["model=mvsplat", "model.deviations.reference_K=true"]).model.settings
    assert alone.deviations == Deviations(reference_K=True)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.published=3", "published=3; wanted true or false"),
        ("model.deviations.reference_k=true", "did you mean 'reference_K'"),
        ("model.deviations.sh_signs=maybe", "setting .*sh_signs.* is wrong"),
        ("model.deviations=true", "setting is wrong.*Deviations"),
    ],
)
def test_each_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config.compose(["model=mvsplat", override])


@every_model
@pytest.mark.parametrize("published", [False, True])
def test_checkpoints_from_before_the_switches_load(
    name: str, published: bool, tmp_path: Path
) -> None:
    model = tiny(name, published=published)
    settings = asdict(model.cfg) | {"published": published}
    del settings["deviations"]
    path = tmp_path / "old.safetensors"
    weights.save_checkpoint(path, model.state_dict(), weights.Header(name, settings))
    assert pmsplat.load(path).cfg == model.cfg
    assert SETTINGS[name].items() <= settings.items()

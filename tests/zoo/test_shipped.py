"""The model that comes with pmsplat: found by its name, and worth having on scenes it never saw."""

from itertools import islice
from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat import registry, shipped_files
from pmsplat.errors import UserError
from pmsplat.evaluate import baselines, protocol
from pmsplat.zoo import shipped
from pmsplat.zoo.trained import trained_on


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_it_loads_by_its_name_and_draws_better_than_the_baselines(name: str) -> None:
    """On procedural scenes of another seed than any that it was trained with."""
    path = shipped.shipped_file(name)
    assert path.stat().st_size < 20e6
    model = pmsplat.load(name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    settings = {"sizes": [[96, 128]], "textures": 8, "drift": 0.0}
    data = registry.build("data", "scenery", registry.make_config("data", "scenery", settings))
    scenes = list(islice(data.evaluation(), 8))
    runs = baselines.BASELINES | {name: protocol.pipeline(model, scale_near=True)}
    means = {key: protocol.evaluate(run, scenes).means for key, run in runs.items()}
    assert means[name]["psnr"] > 2 + max(means[key]["psnr"] for key in baselines.BASELINES)
    assert means[name]["abs_rel"] < 0.2


def test_what_it_learned_from_is_said() -> None:
    for name in shipped.SHIPPED:
        known = trained_on(name)
        assert known is not None and known.views is not None and known.views[0] == 2


def test_a_missing_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_files, "PACKAGE", tmp_path / "a")
    monkeypatch.setattr(shipped_files, "CLONE", tmp_path / "b")
    with pytest.raises(UserError, match="install pmsplat again") as caught:
        pmsplat.load(shipped.DEFAULT)
    file = f"{shipped.DEFAULT}.safetensors"
    places = tmp_path / "a/weights" / file, tmp_path / "b/pretrained" / file
    assert caught.value.got == f"there is neither {places[0]} nor {places[1]}"

"""Our plug-in for ffgs: with it where it is installed, else with a stand-in of its contract."""

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pmsplat
from pmsplat.types import Cameras, Gaussians
from pmsplat.zoo.trained import TrainedOn
from tests.models.tiny import tiny
from tests.zoo import ffgs_stand_in

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = importlib.util.find_spec("ffgs") is not None
LEARNED = TrainedOn((2, 2), (32, 48), "rooms")


@pytest.fixture
def ffgs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if INSTALLED:
        yield importlib.import_module("ffgs")
        return
    monkeypatch.setitem(sys.modules, "ffgs", ffgs_stand_in.module())
    yield sys.modules["ffgs"]
    sys.modules.pop("pmsplat.zoo.ffgs_plugin", None)  # it was made for the stand-in


@pytest.fixture
def plugin(ffgs: ModuleType) -> ModuleType:
    """The module that the entry point names."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    ((name, place),) = points["ffgs.models"].items()
    module, _, attribute = place.partition(":")
    found = importlib.import_module(module)
    assert getattr(found, attribute).model_type == name == "pmsplat"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pmsplat.save_pretrained(tiny(), tmp_path / "model", LEARNED)


@pytest.fixture
def shots(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images, K, c2w with a batch axis."""
    c2w = torch.eye(4).repeat(1, 2, 1, 1)
    c2w[0, 1, 0, 3] = 0.3
    K = torch.tensor([[1.0, 0, 0.5], [0, 1.5, 0.5], [0, 0, 1]]).repeat(1, 2, 1, 1)
    return torch.rand(1, 2, 3, 32, 48, generator=generator), K, c2w


def ours(folder: Path, shots: tuple[torch.Tensor, ...], near: float, far: float) -> Gaussians:
    images, K, c2w = shots
    cameras = Cameras(c2w, K, torch.full((1, 2), near), torch.full((1, 2), far))
    return pmsplat.infer(pmsplat.load(folder), pmsplat.Views(images, cameras)).gaussians[-1]


@pytest.mark.parametrize(("near", "far"), [(None, None), (2.0, 40.0)])
def test_it_predicts_what_infer_does(
    ffgs: ModuleType, plugin: ModuleType, folder: Path, shots, near, far
) -> None:
    spec = plugin.SPEC
    model = spec.model_cls.from_pretrained(str(folder)).eval()
    processor = spec.processor_cls.from_pretrained(folder)
    assert processor.config.image_shape == [32, 48] and processor.config.num_input_views == 2
    views = ffgs.Views(*shots, normalized_intrinsics=True)
    prepared = processor.preprocess(views, torch.device("cpu"), near=near, far=far)
    assert prepared.frame.scale == 1 and torch.equal(prepared.frame.anchor_c2w[0], torch.eye(4))
    found = processor.postprocess(model(prepared.model_input))
    wanted = ours(folder, shots, near or 0.5, far or 100.0)  # 0.5: the near of the model
    for name, value in {"means": "means", "scales": "scales", "colors": "sh"}.items():
        torch.testing.assert_close(getattr(found, name), getattr(wanted, value))
    assert found.sh_degree == 2 and found.quats.shape[-1] == 4


def test_views_without_range_are_refused_where_a_model_needs_one(
    ffgs: ModuleType, plugin: ModuleType, tmp_path: Path, shots
) -> None:
    folder = pmsplat.save_pretrained(tiny(near=None), tmp_path / "any", LEARNED)
    processor = plugin.PhotoProcessor.from_pretrained(folder)
    views = ffgs.Views(*shots, normalized_intrinsics=True)
    model = plugin.Model.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"near=0\.5, far=100"):
        model(processor.preprocess(views, torch.device("cpu")).model_input)
    with pytest.raises(ValueError, match="both or none"):
        processor.preprocess(views, torch.device("cpu"), near=1.0)
    depth = pmsplat.save_pretrained(tiny(gaussians=False), tmp_path / "depth")
    with pytest.raises(ValueError, match="depth alone"):
        plugin.Model.from_pretrained(depth)


@pytest.mark.skipif(not INSTALLED, reason="ffgs is not installed")
def test_its_pipeline_loads_runs_and_saves_our_models(
    ffgs: ModuleType, folder: Path, shots, tmp_path: Path
) -> None:
    ffgs.register_model(
        importlib.import_module("pmsplat.zoo.ffgs_plugin").SPEC
    )  # also from a clone
    pipe = ffgs.GSPipeline.from_pretrained(folder)
    views = ffgs.Views(*shots, normalized_intrinsics=True)
    out = pipe(views, near=2.0, far=40.0).to_world()
    torch.testing.assert_close(out.gaussians.means, ours(folder, shots, 2.0, 40.0).means)
    pipe.save_pretrained(tmp_path / "again")
    again = ffgs.GSPipeline.from_pretrained(tmp_path / "again")(views, near=2.0, far=40.0)
    torch.testing.assert_close(again.gaussians.means, out.gaussians.means)
    out.gaussians.save_ply(tmp_path / "x.ply", prune=False)
    torch.testing.assert_close(pmsplat.load_ply(tmp_path / "x.ply").means, out.gaussians.means)

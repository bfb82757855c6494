"""Gradients of a whole training step against the official implementation's."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import pmsplat
from pmsplat.models import _convert
from pmsplat.models.depthsplat import DepthSplat

CASE = "grads_ds_gs_base_re10k_v2_64x96_train"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def published_outputs(prediction: pmsplat.Prediction, folder: Path) -> list[torch.Tensor]:
    """In the order and the shapes of the reference's rule; harmonics in the official basis."""
    to_standard = torch.from_numpy(np.load(folder / "sh_convert.npz")["A"]).float()
    splats = prediction.gaussians
    harmonics = [torch.linalg.solve(to_standard, g.sh).transpose(-1, -2) for g in splats]
    return [
        torch.cat([1 / depth for depth in prediction.depths]),
        torch.cat([g.means for g in splats]),
        torch.cat([g.covariances for g in splats]),
        torch.cat(harmonics),
        torch.cat([g.opacities for g in splats]),
    ]


@pytest.mark.slow
def test_gradients_equal_the_official_ones(shared: Path, tmp_path: Path) -> None:
    folder = shared / "reference"
    golden = np.load(folder / f"{CASE}.npz")
    meta = json.loads(str(golden["meta"]))
    weights = tmp_path / "weights.pth"
    keys = str(folder / f"{meta['model']}.keys.json")
    module(folder / "make_weights.py").main(["", keys, str(weights)])
    model = pmsplat.load(meta["model"], weights=weights).train()
    assert isinstance(model, DepthSplat)
    given = module(folder / "golden_inputs.py").make(**meta["inputs"][0])
    cameras = pmsplat.Cameras(
        *(torch.from_numpy(given[k]) for k in ("extrinsics", "intrinsics", "near", "far"))
    )
    views = pmsplat.Views(torch.from_numpy(given["images_u8"]).float() / 255, cameras)
    loss = torch.zeros(())
    for index, output in enumerate(published_outputs(model(views), folder)):
        generator = np.random.Generator(np.random.PCG64(5000 + index))
        weight = generator.standard_normal(tuple(output.shape)).astype(np.float32)
        loss = loss + (torch.from_numpy(weight) * output).mean()
    loss.backward()
    assert loss.item() == pytest.approx(meta["loss"], rel=1e-3)

    norms = dict(zip(golden["names"].tolist(), golden["norms"].tolist(), strict=True))
    names = _convert.depthsplat(model.layout)
    noise = 1e-6 * max(norms.values())  # of parameters that a norm makes meaningless
    compared = 0
    for name, parameter in model.named_parameters():
        official = _convert.official_keys(name, names)
        assert parameter.grad is not None
        for key, gradient in zip(official, parameter.grad.chunk(len(official)), strict=True):
            expected = pytest.approx(norms.pop(key), rel=5e-3, abs=noise)
            assert gradient.norm().item() == expected, key
            compared += 1
    assert norms == {} and compared > 700

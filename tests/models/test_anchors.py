"""Encoders that gather many views in a few, against the official ZPressor and themselves."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pmsplat
from pmsplat.contracts import encoder_traits
from pmsplat.errors import UserError
from pmsplat.nn.anchors import Anchors, Compress
from tests.models.official import checker, script
from tests.models.test_updated import updated
from tests.models.tiny import shaken, tiny, views

MODELS = ["depthsplat", "depthsplat2024", "mvsplat", "resplat"]
SIZE = (64, 96)
CASES = [
    "zp_dl3dv_v3_96x128",
    "zp_dl3dv_v6_64x96",
    "zp_dl3dv_b2_v8_64x96",
    "zp_dl3dv_v12_96x128",
    "zp_dl3dv_b2_v12_64x64_train",
    "zp_baseline_v5_64x96",
]
every_model = pytest.mark.parametrize("name", MODELS)


def gathering(name: str, anchors: int = 3, **changes: Any) -> Any:
    """A model whose parameters, but for the block's, are those of the model without anchors."""
    with_anchors, without = tiny(name, anchors=anchors, **changes), shaken(tiny(name, **changes))
    missing = with_anchors.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing and all("compress" in key for key in missing)
    return with_anchors.eval(), without


@every_model
@pytest.mark.parametrize("train", [False, True])
def test_a_new_block_is_the_encoder_on_the_anchors(
    name: str, train: bool, generator: torch.Generator
) -> None:
    model, plain = gathering(name)
    given = views(generator, 5, SIZE, batch=2)
    with torch.no_grad():
        found = model.train(train)(given)
        chosen = Anchors.of(given.cameras.c2w, 3).index
        expected = plain.train(train)(given.gather(chosen))
    assert torch.equal(found.views, chosen)
    assert len(found.depths) == len(expected.depths)
    for ours, wanted in zip(found.depths, expected.depths, strict=True):
        assert ours.shape == (2, 3, *SIZE)
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-3, rtol=1e-4)
    for part in ("means", "opacities", "sh"):
        ours, wanted = (getattr(it.gaussians[-1], part) for it in (found, expected))
        torch.testing.assert_close(ours, wanted, atol=1e-2, rtol=1e-3)


@every_model
def test_supports_matter(name: str, generator: torch.Generator) -> None:
    model = shaken(gathering(name)[0])
    given = views(generator, 5, SIZE)
    rest = Anchors.of(given.cameras.c2w, 3).rest[0]
    images = given.images.clone()
    images[:, rest[0]] = 1 - images[:, rest[0]]
    with torch.no_grad():
        before = model(given)
        after = model(pmsplat.Views(images, given.cameras))
    assert not torch.allclose(before.depths[-1], after.depths[-1])


@every_model
def test_the_caller_may_choose_how_many(name: str, generator: torch.Generator) -> None:
    model = shaken(gathering(name)[0])
    given = views(generator, 4, SIZE)
    with torch.no_grad():
        assert model(given, anchors=2).depths[-1].shape[1] == 2
        everything = model(given, anchors=9)
    assert sorted(everything.views[0].tolist()) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"`anchors=1`; wanted a whole number from 2"):
        model(given, anchors=1)
    with pytest.raises(UserError, match="each view speaks for itself"):
        tiny(name)(given, anchors=2)


@every_model
def test_one_anchor_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="at least 2"):
        tiny(name, anchors=1)


@every_model
def test_sizes_that_are_padded(name: str, generator: torch.Generator) -> None:
    model = shaken(gathering(name)[0])
    given = views(generator, 5, (50, 70))
    with torch.no_grad(), pytest.warns(UserWarning, match="padded"):
        found = model(given)
    assert found.depths[-1].shape == (1, 3, 50, 70) == found.confidence.shape
    assert found.gaussians[-1].means.shape == (1, 3 * 50 * 70, 3)


@every_model
def test_everything_learns(name: str, generator: torch.Generator) -> None:
    model = shaken(gathering(name)[0]).train()
    found = model(views(generator, 5, SIZE))
    loss = found.depths[-1].sum()
    for level in found.gaussians:
        loss = loss + level.opacities.sum() + level.sh.square().sum()
    loss.backward()
    for key, parameter in model.named_parameters():
        if "compress" in key and ".cross_kv" in key:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_an_update_looks_at_the_anchors(generator: torch.Generator) -> None:
    model = shaken(tiny("resplat", anchors=3, steps=2))
    given = views(generator, 5, SIZE)
    seen: list[int] = []

    def draw(gaussians: pmsplat.Gaussians, cameras: pmsplat.Cameras, size: Any) -> Any:
        seen.append(cameras.c2w.shape[1])
        return pmsplat.rasterize(gaussians, cameras, size)

    model.draw = draw
    with torch.no_grad():
        found = model(given)
    assert seen == [3, 3] and found.views.shape == (1, 3)


@every_model
def test_an_update_passes_anchors_on_to_its_base(name: str, generator: torch.Generator) -> None:
    model = updated(name, anchors=3)
    given = views(generator, 5, SIZE)
    assert encoder_traits(model).anchors == 3
    for anchors, count in ((None, 3), (2, 2), (9, 5)):
        with torch.no_grad():
            found = model(given, anchors=anchors)
            expected = model.base(given, anchors=anchors)
        assert torch.equal(found.views, expected.views) and found.views.shape == (1, count)
        torch.testing.assert_close(found.depths[-1], expected.depths[-1])
    with pytest.raises(UserError, match="each view speaks for itself"):
        tiny("updated", steps=1)(given, anchors=2)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_depthsplat_equals_the_official_code(case: str, shared: Path) -> None:
    with tempfile.TemporaryDirectory() as workdir:
        folder = shared / "reference"
        assert checker(folder).run(folder / f"{case}.npz", Path(workdir)) <= 1


def test_mvsplat_equals_the_official_code(shared: Path) -> None:
    """The whole encoder, and of its inside the anchors, their groups and the compressed maps."""
    folder = shared / "reference"
    case = folder / "zp_mvsplat_v9_64x96.npz"
    data = np.load(case)
    meta = json.loads(str(data["meta"]))
    with tempfile.TemporaryDirectory() as workdir:
        assert checker(folder).run(case, Path(workdir)) <= 1
        weights = f"{workdir}/weights.pth"
        keys = str(folder / f"{meta['model']}.keys.json")
        script(folder / "make_weights.py").main(["", keys, weights])
        model = pmsplat.load(meta["model"], weights=weights)
    inside: list[Any] = []
    for part in model.modules():
        if isinstance(part, Compress):
            part.register_forward_hook(lambda _part, _given, found: inside.append(found))
    read = {key: torch.from_numpy(np.asarray(data[f"in/{key}"])) for key in
            ("images_u8", "extrinsics", "intrinsics", "near", "far")}  # fmt: skip
    cameras = pmsplat.Cameras(read["extrinsics"], read["intrinsics"], read["near"], read["far"])
    with torch.no_grad():
        found = model(pmsplat.Views(read["images_u8"].float() / 255, cameras))
    assert found.views.tolist() == data["out/anchors"].tolist()
    chosen = Anchors.of(cameras.c2w, meta["anchors"])
    owners = np.take_along_axis(data["out/assignment"], chosen.rest.numpy(), axis=1)
    assert chosen.owner.tolist() == owners.tolist()
    official = torch.from_numpy(data["out/zp_features"])
    ours = inside[0][:, :, :: meta["zp_features_channel_stride"]]
    assert (ours - official).abs().max() < 2e-5 * official.std()


def test_every_case_is_listed(shared: Path) -> None:
    found = {f.stem for f in (shared / "reference").glob("zp_*.npz")}
    assert found == {*CASES, "zp_mvsplat_v9_64x96"}

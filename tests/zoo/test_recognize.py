"""Which published model a file is of: by its hash, and in words by its shapes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pmsplat
from pmsplat.errors import UserError
from pmsplat.models.depthsplat import RELEASED, Config, DepthSplat
from pmsplat.models.mvsplat import Config as MVSplatConfig
from pmsplat.models.mvsplat import MVSplat
from pmsplat.zoo._shapes import recognize_shapes
from pmsplat.zoo.convert import names_of, official_keys
from pmsplat.zoo.load import load
from pmsplat.zoo.published import MARCH_2025, RESPLAT_FORMS, ZOO, Published, recognize_hash
from tests.models.official import key_shapes

NAME = "depthsplat-gs-small-re10k-256x256-view2"
TINY = {"vit": "none", "width": 32, "planes": 16, "transformer_layers": 0, "head_width": 16}
ALIKE = [
    {"depthsplat-gs-base-re10k-256x448-view2", "depthsplat-gs-base-dl3dv-256x448-randview2-6",
     "depthsplat-gs-base-re10kdl3dv-448x768-randview2-6"},
    {"depthsplat-depth-small-352x640-randview2-8", "depthsplat-depth-small",
     "resplat-depth-small-352x640"},
    {"depthsplat-depth-base-352x640-randview2-8", "depthsplat-depth-base"},
    {"depthsplat-gs-base-dl3dv-256x448", "pmloss", "ori_depthsplat_tuned"},
    {"mvsplat-re10k", "mvsplat-re10k-baseline-n200-256x256"},
    {"resplat-base-dl3dv-256x448-view8", "resplat-base-dl3dv-256x448-view16",
     "resplat-base-dl3dv-256x448-view32", "resplat-base-dl3dv-512x960-view8",
     "resplat-base-dl3dv-540x960-view16"},
]  # fmt: skip


def key_list(shared: Path, name: str) -> dict[str, Tensor]:
    """An official file of that name, without its numbers."""
    shapes = key_shapes(shared / "reference", name)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An official file of a released model that the zoo takes for a tiny one."""
    torch.manual_seed(0)
    model = DepthSplat(Config(**TINY, deviations=RELEASED))  # pyright: ignore[reportArgumentType]
    official = {}
    for key, value in model.state_dict().items():
        parts = official_keys(key, names_of(model))
        official |= dict(zip(parts, value.chunk(len(parts)), strict=True))
    path = tmp_path / f"{NAME}-20f39ed8.pth"
    torch.save({"state_dict": official}, path)
    entry = ZOO[NAME]
    small = Published(entry.model, TINY, entry.source, entry.parameters, entry.data)
    monkeypatch.setitem(ZOO, NAME, small)
    return path


@pytest.mark.parametrize("name", ZOO)
def test_shapes_name_the_models_that_have_them(name: str, shared: Path) -> None:
    alike = next((names for names in ALIKE if name in names), {name})
    found = recognize_shapes(key_list(shared, name))
    assert set(found.names) == alike
    kinds = {"mvsplat": "MVSplat", "resplat": "ReSplat"}
    assert found.text.startswith(kinds.get(ZOO[name].model, "DepthSplat"))


def test_a_file_without_a_published_hash_is_known_by_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, settings = "mvsplat-re10k-zpressor-n200-256x256", {"width": 32, "anchors": 6}
    monkeypatch.setitem(ZOO, name, replace(ZOO[name], settings=settings))
    torch.manual_seed(0)
    model = MVSplat(MVSplatConfig(width=32, anchors=6))
    official = {}
    for key, value in model.state_dict().items():
        parts = official_keys(key, names_of(model))
        official |= dict(zip(parts, value.chunk(len(parts)), strict=True))
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": official}, path)
    found = pmsplat.load(path)
    assert found.cfg.anchors == 6 and f"is taken for {name}" in caplog.text
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    plain = {key: value for key, value in official.items() if "zipmatch" not in key}
    torch.save({"state_dict": plain}, path)
    with pytest.raises(UserError, match="name its model, mvsplat-re10k or mvsplat-re10k-baseline"):
        pmsplat.load(path)


def test_other_files_look_like_nothing() -> None:
    found = recognize_shapes({"conv.weight": torch.zeros(3, 2), "conv.bias": torch.zeros(3)})
    assert found.names == () and "the first of 2 tensors is 'conv.weight' [3, 2]" in found.text


def test_the_hash_alone_tells_the_files_of_march_2025(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = pmsplat.load(NAME, weights=tiny)
    assert later.cfg == Config(**TINY, deviations=RELEASED)  # pyright: ignore[reportArgumentType]
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    monkeypatch.setitem(MARCH_2025, digest[:8], NAME)
    for model in (pmsplat.load(NAME, weights=tiny), pmsplat.load(tiny)):
        assert isinstance(model, DepthSplat)
        assert model.cfg.scale_unit == "pixel" and model.cfg.deviations == RELEASED


def test_every_release_is_known_by_its_hash() -> None:
    for start, name in MARCH_2025.items():
        found = recognize_hash(start + "0" * 56)
        assert found == (name, ZOO[name].settings | {"scale_unit": "pixel"})
    for name, published in ZOO.items():
        if name in RESPLAT_FORMS.values():
            continue  # the file of another name, whose shapes tell which form it has
        start = published.source.sha256[:8]
        assert not start or recognize_hash(start + "0" * 56) == (name, published.settings)
    assert recognize_hash("0" * 64) is None


def test_an_unknown_official_file_asks_for_its_name(tiny: Path) -> None:
    official = torch.load(tiny, weights_only=True)["state_dict"]
    fake = {"encoder.depth_predictor.corr_refine_net.0.weight": torch.zeros(1)}
    torch.save(fake, tiny.with_name("mv.ckpt"))
    with pytest.raises(UserError, match=r"looks like MVSplat.*name its model, mvsplat-re10k"):
        pmsplat.load(tiny.with_name("mv.ckpt"))
    with pytest.raises(UserError, match="looks like no model that pmsplat knows"):
        pmsplat.load(tiny)
    official |= {"encoder.extra": torch.zeros(1), "losses.lpips.weight": torch.zeros(1)}
    torch.save(official, tiny)
    with pytest.raises(UserError, match=r"'encoder\.extra' in the checkpoint; wanted no such"):
        load(NAME, weights=tiny)
    del official["encoder.extra"]
    torch.save(official, tiny)
    assert isinstance(load(NAME, weights=tiny), DepthSplat)  # losses' networks are passed over


def test_copies_of_an_official_file_load_by_its_name(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    official = torch.load(tiny, weights_only=True)["state_dict"]
    wanted = load(NAME, weights=tiny).state_dict()
    folder = tmp_path / "parts"
    folder.mkdir()
    names = sorted(official)
    halves = {"model-00001-of-00002.safetensors": names[::2],
              "model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for name, keys in halves.items():
        save_file({f"model.{key}": official[key].contiguous() for key in keys}, folder / name)
    places = {f"model.{key}": name for name, keys in halves.items() for key in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for weights in (folder, index):
        found = load(NAME, weights=weights).state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    for kind, exact in ((torch.bfloat16, False), (torch.float16, False), (torch.float64, True)):
        cast = {f"module._orig_mod.{key}": value.to(kind) for key, value in official.items()}
        path = tmp_path / "cast.pth"
        torch.save({"state_dict": cast}, path)
        caplog.clear()
        found = load(NAME, weights=path).state_dict()
        assert "is taken for a copy of" in caplog.text and "April 2025" in caplog.text
        for key, value in wanted.items():
            assert found[key].dtype == torch.float32
            assert torch.equal(found[key], value if exact else value.to(kind).float())
        with pytest.raises(UserError, match="that was cast, wrapped or saved again has another"):
            pmsplat.load(path)

"""Other networks' weights -> ours: every tensor of files made here by their authors' key names."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pmsplat.errors import UserError
from pmsplat.foundation.resnet import ResNet
from pmsplat.io.weights import Header, save_checkpoint
from pmsplat.models.depthsplat import Config, DepthSplat
from pmsplat.models.mvsplat import Config as MVSplatConfig
from pmsplat.models.mvsplat import MVSplat
from pmsplat.zoo.convert import convert, names_of, official_keys
from pmsplat.zoo.init import SOURCES, initialize
from tests.lab.encoder import Config as ForeignConfig
from tests.lab.encoder import Encoder
from tests.models.tiny import tiny

TINY = Config(vit="none", width=32, planes=16, transformer_layers=1, head_width=16)


def unimatch(width: int = 128, layers: int = 6) -> dict[str, Tensor]:
    """Random tensors with the keys and shapes of a flow network of one scale."""
    w1, w2, w3 = width // 2, width * 3 // 4, width
    shapes: dict[str, tuple[int, ...]] = {"backbone.conv1.weight": (w1, 3, 7, 7)}
    for stage, (inputs, outputs) in enumerate(((w1, w1), (w1, w2), (w2, w3)), 1):
        for block, first in enumerate((inputs, outputs)):
            at = f"backbone.layer{stage}.{block}"
            shapes[f"{at}.conv1.weight"] = (outputs, first, 3, 3)
            shapes[f"{at}.conv2.weight"] = (outputs, outputs, 3, 3)
        if stage > 1:
            shapes[f"backbone.layer{stage}.0.downsample.0.weight"] = (outputs, inputs, 1, 1)
            shapes[f"backbone.layer{stage}.0.downsample.0.bias"] = (outputs,)
    shapes |= {"backbone.conv2.weight": (w3, w3, 1, 1), "backbone.conv2.bias": (w3,)}
    for layer in range(layers):
        for block, norms in (("self_attn", ("norm1",)), ("cross_attn_ffn", ("norm1", "norm2"))):
            at = f"transformer.layers.{layer}.{block}"
            linear = ("q_proj", "k_proj", "v_proj", "merge")
            shapes |= {f"{at}.{name}.weight": (width, width) for name in linear}
            shapes |= {f"{at}.{norm}.{x}": (width,) for norm in norms for x in ("weight", "bias")}
        shapes[f"{at}.mlp.0.weight"] = (8 * width, 2 * width)
        shapes[f"{at}.mlp.2.weight"] = (width, 8 * width)
    shapes |= {"feature_flow_attn.q_proj.weight": (width, width)}
    shapes |= {"upsampler.0.weight": (256, width + 2, 3, 3), "upsampler.0.bias": (256,)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def depth_anything(width: int = 384, blocks: int = 12) -> dict[str, Tensor]:
    """The same for a Depth Anything V2."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1370, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(blocks):
        at = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
        shapes |= {f"{at}.ls1.gamma": (width,), f"{at}.ls2.gamma": (width,)}
        for name, (rows, columns) in linear.items():
            shapes[f"{at}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"{at}.{name}.bias"] = (rows * width,)
    head = {"depth_head.projects.0.weight": (48, width, 1, 1), "depth_head.scratch.b": (1,)}
    shapes = {f"pretrained.{key}": shape for key, shape in shapes.items()} | head
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def written(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a UniMatch file becomes, by our names within the encoder, said once more by hand."""
    ours = {}
    for key in state:
        name = re.sub(r"^backbone\.conv1", "cnn.stem", key)
        name = re.sub(r"^backbone\.conv2", "cnn.out", name)
        name = re.sub(r"^backbone\.layer(\d)", lambda m: f"cnn.stages.{int(m[1]) - 1}", name)
        ours[name.replace("downsample.0", "shortcut")] = state[key]
    for layer in range(sum(key.endswith("cross_attn_ffn.merge.weight") for key in state)):
        at = f"transformer.layers.{layer}"
        for block, short, joined in (("self_attn", "self", "qkv"), ("cross_attn_ffn", "cross", "")):
            q, k, v = (ours.pop(f"{at}.{block}.{x}_proj.weight") for x in "qkv")
            if joined:
                ours[f"{at}.self_qkv.weight"] = torch.cat([q, k, v])
            else:
                ours |= {
                    f"{at}.cross_q.weight": q,
                    f"{at}.cross_kv.weight": torch.cat([k, v]),
                }
            ours[f"{at}.{short}_merge.weight"] = ours.pop(f"{at}.{block}.merge.weight")
            for x in ("weight", "bias"):
                ours[f"{at}.{short}_norm.{x}"] = ours.pop(f"{at}.{block}.norm1.{x}")
        for x in ("weight", "bias"):
            ours[f"{at}.mlp_norm.{x}"] = ours.pop(f"{at}.cross_attn_ffn.norm2.{x}")
        for i in (0, 2):
            ours[f"{at}.mlp.{i}.weight"] = ours.pop(f"{at}.cross_attn_ffn.mlp.{i}.weight")
    return {name: v for name, v in ours.items() if name.startswith(("cnn.", "transformer."))}


def blank(kind: type, cfg: Any) -> Any:
    """A model of zeros, which takes no time to make."""
    with torch.device("meta"):
        model = kind(cfg)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def changed(model: nn.Module, names: list[str], told: list[str]) -> dict[str, Tensor]:
    """The parameters that initialising changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize(model, names, told.append)
    after = model.state_dict()
    return {name: after[name] for name in after if not torch.equal(after[name], before[name])}


def check_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_depthsplat_takes_the_vit_the_cnn_and_the_transformer(tmp_path: Path) -> None:
    mono, flow = depth_anything(), unimatch()
    names = [
        written(tmp_path / "depth_anything_v2_vits.pth", mono),
        written(tmp_path / "gmflow.pth", {"model": flow}),
    ]
    told: list[str] = []
    found = changed(blank(DepthSplat, Config()), names, told)
    kept = {k: v for k, v in mono.items() if k.startswith("pretrained.") and "mask" not in k}
    vit = {f"depth.vit.vit.{key.removeprefix('pretrained.')}": kept[key] for key in kept}
    check_same(found, vit | {f"depth.{name}": value for name, value in copied(flow).items()})
    assert told == [
        f"{names[0]}: 174 parameters of depth.vit",
        f"{names[1]}: 19 parameters of depth.cnn, 78 parameters of depth.transformer",
    ]


def test_mvsplat_takes_the_cnn_and_the_transformer(tmp_path: Path) -> None:
    flow = unimatch()
    name = written(tmp_path / "gmdepth.pth", {"model": flow})
    check_same(changed(blank(MVSplat, MVSplatConfig()), [name], []), copied(flow))


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if "blocks.11" not in key}


def broken(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"transformer.layers.0.self_attn.k_proj.weight": torch.zeros(64, 128)}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: depth_anything(width=768, blocks=1),
            r"fits depth\.vit only in part: it has \[1, 1, 768\] at 'encoder\..*pretrained\."
            r"cls_token'; wanted \[1, 1, 384\]",
        ),
        (
            lambda: half(depth_anything()),
            r"only in part: it has nothing at '.*blocks\.11\.norm1\.weight'; wanted \[384\]",
        ),
        (
            lambda: unimatch(layers=5),
            r"fits depth\.transformer only in part: it has nothing at .*layers\.5",
        ),
        (
            lambda: broken(unimatch()),
            r"has \[128, 128\] and \[64, 128\] and \[128, 128\] at .*wanted \[384, 128\]",
        ),
    ],
    ids=["another ViT", "half a ViT", "another transformer", "broken"],
)
def test_a_part_comes_whole_or_not_at_all(
    tmp_path: Path, make: Callable[[], dict[str, Tensor]], sentence: str
) -> None:
    model = blank(DepthSplat, Config(planes=16))
    with pytest.raises(UserError, match=sentence):
        initialize(model, [written(tmp_path / "x.pth", make())])
    assert not any(value.any() for value in model.state_dict().values())


def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(source: object) -> Path:
        raise AssertionError(f"{source} was fetched before all names were looked at")

    monkeypatch.setattr("pmsplat.zoo.init.fetch", unwanted)
    model, name = DepthSplat(TINY), written(tmp_path / "x.pth", depth_anything(blocks=1))
    with pytest.raises(UserError, match=r"has no part of this model.*'pretrained\.cls_token'"):
        initialize(model, [name])
    with pytest.raises(UserError, match=r"neither a name nor a file.*did you mean 'gmflow'"):
        initialize(model, ["depth-anything-v2-small", "gmflw"])
    for without in (model, MVSplat(MVSplatConfig(width=32, planes=16))):
        with pytest.raises(UserError, match=r"'dinov2' in model\.init_from; wanted a model with a"):
            initialize(without, ["dinov2"])
    for without in (model, tiny("resplat", steps=None)):
        with pytest.raises(UserError, match=r"'resnet18' in .*; wanted a model with an update"):
            initialize(without, ["resnet18"])
    with pytest.raises(UserError, match=r"init_from for a Encoder.*trainer\.initial"):
        initialize(Encoder(ForeignConfig()), ["gmflow"])


def test_dinov2_comes_as_timm_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = timm.create_model, []

    def create(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if not pretrained:
            return original(name, **settings)
        with torch.device("meta"):
            made = original(name, **settings).to_empty(device="cpu")
        for parameter in made.parameters():
            nn.init.normal_(parameter)
        asked.append(made)
        return made

    monkeypatch.setattr(timm, "create_model", create)
    told: list[str] = []
    model = blank(DepthSplat, Config(planes=16))
    assert not asked
    found = changed(model, ["dinov2"], told)
    check_same(found, {f"depth.vit.vit.{k}": v for k, v in asked[0].state_dict().items()})
    assert told == ["dinov2: 174 parameters of depth.vit"]


def test_resnet_comes_as_torchvision_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {f"{name}": torch.randn(value.shape) for name, value in ResNet().state_dict().items()}
    monkeypatch.setattr("pmsplat.foundation.resnet.released", lambda: made)
    told: list[str] = []
    found = changed(tiny("resplat"), ["resnet18"], told)
    check_same(found, {f"update.features.{name}": value for name, value in made.items()})
    assert told == [f"resnet18: {len(made)} parameters of update.features"]


def test_resplat_takes_a_depth_network(tmp_path: Path) -> None:
    model, prefix = tiny("resplat"), "encoder.depth_predictor."
    whole = official(model)
    depth = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    found = changed(model, [written(tmp_path / "depth.pth", {"model": depth})], [])
    wanted = convert(whole, model)
    check_same(found, {k: v for k, v in wanted.items() if k.startswith("depth.")})


def test_names_are_fetched_and_licenses_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, fetched = unimatch(width=32, layers=1), []

    def fetch(source: object) -> Path:
        fetched.append(source)
        return Path(written(tmp_path / "x.pth", flow))

    monkeypatch.setattr("pmsplat.zoo.init.fetch", fetch)
    told: list[str] = []
    initialize(DepthSplat(TINY), ["gmflow", "depth-anything-v2-large"], told.append)
    assert fetched == [SOURCES["gmflow"], SOURCES["depth-anything-v2-large"]]
    assert ["CC-BY-NC" in sentence for sentence in told] == [False, True, False]


def test_sources_are_pinned() -> None:
    for source in SOURCES.values():
        assert re.fullmatch("[0-9a-f]{40}", source.revision)
        assert re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert SOURCES["gmflow"].sha256.startswith(
        SOURCES["gmflow"].file.rpartition("-")[2].removesuffix(".pth")
    )


def official(model: nn.Module) -> dict[str, Tensor]:
    """Random tensors under the official keys of a model."""
    names = names_of(model)
    out = {}
    for name, value in model.state_dict().items():
        keys = official_keys(name, names)
        out |= {
            key: torch.randn_like(part)
            for key, part in zip(keys, value.chunk(len(keys)), strict=True)
        }
    return out


def test_released_encoders_give_their_depth_network_or_all(tmp_path: Path) -> None:
    cfg = replace(TINY, vit="vits", scales=2)
    model, depth_only = (blank(DepthSplat, replace(cfg, gaussians=g)) for g in (True, False))
    whole = official(model)
    prefix = "encoder.depth_predictor."
    depth = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    name = written(tmp_path / "depth.pth", {"model": depth})
    found = changed(model, [name], [])
    check_same(found, convert(depth, depth_only))
    name = written(tmp_path / "all.ckpt", {"state_dict": whole})
    changed(model, [name], [])
    check_same(model.state_dict(), convert(whole, model))


def test_a_checkpoint_of_ours_gives_the_parts_that_it_has(tmp_path: Path) -> None:
    depth_only = DepthSplat(replace(TINY, gaussians=False))
    for parameter in depth_only.parameters():
        nn.init.normal_(parameter)
    path = tmp_path / "depth.safetensors"
    save_checkpoint(path, depth_only.state_dict(), Header("depthsplat", asdict(depth_only.cfg)))
    model = DepthSplat(TINY)
    check_same(changed(model, [str(path)], []), depth_only.state_dict())


def released_resplat(tmp_path: Path, **settings: Any) -> tuple[str, dict[str, Tensor]]:
    """A file of a ReSplat by its authors' keys, and what of it a model of that kind takes."""
    whole = official(tiny("resplat", **settings))
    return written(tmp_path / "resplat.pth", whole), convert(whole, tiny("resplat", **settings))


def test_a_chosen_part_of_a_file_is_all_that_is_taken(tmp_path: Path) -> None:
    name, theirs = released_resplat(tmp_path)
    told: list[str] = []
    found = changed(tiny("resplat"), [f"{name}:update"], told)
    update = {k: v for k, v in theirs.items() if k.startswith("update.")}
    assert found.keys() <= update.keys() and len(found) > 50
    check_same(found, {k: update[k] for k in found})
    (sentence,) = told
    assert sentence.startswith(f"{name}: ") and "depth" not in sentence and "stay" not in sentence
    assert "parameters of update.blocks" in sentence
    inner = changed(tiny("resplat"), [f"{name}:update.head"], [])
    assert inner and all(k.startswith("update.head.") for k in inner)


def test_of_a_chosen_part_comes_what_fits_and_the_rest_is_counted(tmp_path: Path) -> None:
    """The condition of an update is as wide as the points that it was trained on."""
    name, theirs = released_resplat(tmp_path, point_width=24)
    told: list[str] = []
    found = changed(tiny("resplat"), [f"{name}:update"], told)
    assert {"update.join.weight", "update.views.proj1.weight"} & found.keys()
    assert "update.condition.weight" not in found
    check_same(found, {k: theirs[k] for k in found})
    assert told[0].endswith("; 1 of update stay, which it has not or in other shapes")
    with pytest.raises(UserError, match="has no part of this model"):
        initialize(tiny("resplat"), [f"{name}:update.condition.weight"])


def test_an_initial_model_of_ours_and_an_update_of_others_make_one(tmp_path: Path) -> None:
    start = tiny("resplat", steps=None)
    for parameter in start.parameters():
        nn.init.normal_(parameter)
    path = tmp_path / "start.safetensors"
    save_checkpoint(path, start.state_dict(), Header("resplat", asdict(start.cfg)))
    name, theirs = released_resplat(tmp_path)
    model = tiny("resplat")
    initialize(model, [str(path), f"{name}:update"])
    update = {k: v for k, v in theirs.items() if k.startswith("update.")}
    check_same(model.state_dict(), start.state_dict() | update)


def test_a_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    name, _ = released_resplat(tmp_path)
    with pytest.raises(UserError, match=r"'updat' of .*resplat\.pth .*did you mean 'update'\?"):
        initialize(tiny("resplat"), [f"{name}:updat"])
    with pytest.raises(UserError, match=r"'update' of gmflow in .*a part that this model has not"):
        initialize(DepthSplat(TINY), ["gmflow:update"])
    with pytest.raises(UserError, match=r"'gmflw' in model\.init_from, which is neither"):
        initialize(DepthSplat(TINY), ["gmflw:depth"])


def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    flow = unimatch(width=32, layers=1)
    found = changed(DepthSplat(TINY), [written(tmp_path / "x:head", flow)], [])
    assert found.keys() == {f"depth.{name}" for name in copied(flow)}

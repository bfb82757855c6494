"""The depth network of ReSplat against the official one, inside and out, and sizes of images."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.models._depth import DepthNetwork, Layout, choose_others
from pmsplat.nn.maps import resize
from pmsplat.types import Cameras
from pmsplat.zoo.convert import DEPTH, ENCODER, convert
from pmsplat.zoo.published import ZOO
from tests.models.official import script
from tests.models.tiny import tiny, views

QUICK = [
    "resplat_small_b2_v2_64x64_r2",
    "resplat_small_v8_64x96_r1",
    "resplat_small_v2_64x800",
    "resplat_small_localknn_v4_64x96_r1",
    "resplat_base_v3_64x64_r4",
    "resplat_base_halfres_v4_64x128_r2",
    "resplat_re10k_init16_v2_64x96",
    "resplat_re10k_v2_64x96_r2",
]
SLOW = ["resplat_large_v2_64x96"]
SIZES = {"vits": "small", "vitb": "base", "vitl": "large"}
MAX, MEAN = 5e-4, 1e-5  # tolerated errors, in standard deviations of what is compared


@lru_cache(maxsize=1)
def network(folder: Path, vit: str, lowest: int) -> DepthNetwork:
    """The published depth network of that size with the reference's stand-in weights."""
    settings = ZOO[f"resplat-depth-{SIZES[vit]}-352x640"].settings
    settings = settings | {"lowest": lowest, "published": True}
    name = "base-re10k-256x256-view2" if lowest == 4 else f"{SIZES[vit]}-dl3dv-256x448-view8"
    described = json.loads((folder / f"resplat-{name}.keys.json").read_text())["keys"]
    own = {key: x for key, x in described.items() if key.startswith(ENCODER + DEPTH)}
    arrays = script(folder / "make_weights.py").build(own)
    with torch.device("meta"):
        model = registry.build("models", "depthsplat", settings)
        found = DepthNetwork(replace(model.layout, taps=True))
    state = convert({key: torch.from_numpy(x) for key, x in arrays.items()}, model)
    found.load_state_dict({k.removeprefix("depth."): v for k, v in state.items()}, assign=True)
    return found.eval()


@contextmanager
def watched(model: DepthNetwork) -> Iterator[dict[str, list[Tensor]]]:
    """What goes into the regressor, its logits and the residual, while the network runs."""
    seen: dict[str, list[Tensor]] = {"regressor_in_0": [], "depth_logits_0": [], "residual": []}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen[name].append(output)

    def keep_input(module: torch.nn.Module, inputs: tuple[list[Tensor], ...]) -> None:
        seen["regressor_in_0"].append(torch.cat(inputs[0], dim=1))

    first: Any = model.regressors[0]
    hooks = [
        first.register_forward_pre_hook(keep_input),
        first.logits.register_forward_hook(keep("depth_logits_0")),
        model.residual.register_forward_hook(keep("residual")),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def compare(what: str, ours: Tensor, reference: np.ndarray, deviation: float) -> None:
    error = (ours.double() - torch.from_numpy(reference).double()).abs() / deviation
    assert error.max() <= MAX and error.mean() <= MEAN, (what, error.max(), error.mean())


def check(case: str, folder: Path) -> None:
    golden = np.load(folder / f"{case}.npz")
    meta = json.loads(str(golden["meta"]))
    config = str(meta["config"])
    vit = next(name for name in SIZES if f"'{name}'" in config)
    model = network(folder, vit, 4 if "re10k" in case else 8)
    given = {k: torch.from_numpy(golden[f"in/{k}"]) for k in ("extrinsics", "intrinsics")}
    cameras = Cameras(
        given["extrinsics"],
        given["intrinsics"],
        torch.from_numpy(golden["in/near"]),
        torch.from_numpy(golden["in/far"]),
    )
    images = torch.from_numpy(golden["in/images_u8"]).float() / 255
    size = images.shape[-2], images.shape[-1]
    if "halfres" in case:
        half = resize(images.flatten(0, 1), (size[0] // 2, size[1] // 2))
        images = half.unflatten(0, images.shape[:2])
    with torch.no_grad(), watched(model) as seen:
        estimate = model(images, cameras, choose_others(cameras.c2w, 2))
    features, (match,) = estimate.features, estimate.matches
    found = {
        "regressor_in_0": seen["regressor_in_0"][0],
        "depth_logits_0": seen["depth_logits_0"][0],
        "match_prob_0": match.probability.permute(0, 3, 1, 2),
        "log_depth_residual": torch.cat(seen["residual"]),
        "features_mv_0": features.matched[0],
        "depth_full": estimate.depth,
    }
    found |= {f"raw_mono_{i}": x for i, x in enumerate(features.taps)}
    found |= {f"features_cnn_lowtohigh_{i}": x for i, x in enumerate(reversed(features.cnn))}
    assert len(features.taps) == 4 and len(features.cnn) == 3
    for name, ours in found.items():
        assert list(ours.shape) == list(golden[f"mid/{name}/shape"]), name
        sampled = ours.flatten()[torch.from_numpy(golden[f"mid/{name}/idx"]).long()]
        expected, deviation = golden[f"mid/{name}/val"], golden[f"mid/{name}/stats"][1]
        if name == "depth_full":
            sampled, expected = sampled.log(), np.log(expected)
            deviation = expected.std()
        compare(name, sampled, expected, deviation)
    stride = 1 if "out/depth" in golden else 4
    expected = np.log(golden["out/depth" if stride == 1 else "out/depth_stride4"])
    whole = resize(estimate.depth.flatten(0, 1)[:, None], size)[:, 0, ::stride, ::stride]
    compare("log depth", whole.unflatten(0, images.shape[:2]).log(), expected, expected.std())


@pytest.mark.parametrize("case", QUICK)
def test_resplats_depth_networks_are_the_official_ones(case: str, shared: Path) -> None:
    check(case, shared / "reference")


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_resplats_large_depth_network_is_the_official_one(case: str, shared: Path) -> None:
    check(case, shared / "reference")


def test_every_case_with_a_depth_network_is_listed(shared: Path) -> None:
    found = {f.stem for f in (shared / "reference").glob("resplat_*.npz")}
    assert {case for case in found if "refine_only" not in case} == {*QUICK, *SLOW}


def test_log_depth_moves_with_the_scale_of_the_scene(generator: torch.Generator) -> None:
    """Where the network ignores its inputs, depth is the geometric mean of near and far."""
    model = tiny(depth_space="log").eval()
    with torch.no_grad():
        for scale in model.depth.regressors:
            for parameter in scale.logits.parameters():
                parameter.zero_()
    given = views(generator)
    cameras = replace(
        given.cameras,
        near=torch.full_like(given.cameras.near, 0.5),
        far=torch.tensor([[8.0, 32.0]]),
    )
    with torch.no_grad():
        depth = model(replace(given, cameras=cameras)).depths[-1]
    torch.testing.assert_close(depth[0, :, 0, 0], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(depth, depth[..., :1, :1].expand_as(depth))


def test_coarse_levels_of_log_depth_are_depths(generator: torch.Generator) -> None:
    model = tiny(depth_space="log", scales=2, width=64).train()
    given = views(generator)
    coarse, fine = model(given).depths
    near, far = (x[..., None, None] for x in (given.cameras.near, given.cameras.far))
    assert ((coarse >= near) & (coarse <= far)).all()
    # the fine scale searches a few steps around the coarse one
    step = (far / near).log() / 15
    assert ((coarse.log() - fine.log()).abs() <= 9 * step).all()


def test_few_views_are_matched_with_all_others_and_many_with_the_nearest() -> None:
    c2w = torch.eye(4).repeat(1, 5, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 3.0, 1.0, 7.0, 12.0])
    assert choose_others(c2w[:, :3], 1)[0].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert choose_others(c2w, 1)[0].tolist() == [[2], [2], [0], [1], [3]]


def layout(**changes: object) -> Layout:
    return replace(tiny().layout, **changes)  # pyright: ignore[reportArgumentType]


def test_wide_images_need_larger_multiples() -> None:
    wide = layout(lowest=8, windows="by_width")
    assert [wide.multiple_at(w) for w in (448, 1536, 1537, 1600)] == [32, 32, 64, 64]
    assert [layout(lowest=8).multiple_at(w) for w in (448, 1600)] == [32, 32]


def test_wide_images_that_do_not_fit_are_padded(generator: torch.Generator) -> None:
    model = tiny(windows="by_width", transformer_layers=1).eval()
    given = views(generator, size=(16, 784))  # 196 columns: 8x8 windows
    with torch.no_grad(), pytest.warns(UserWarning, match="are padded to 32x800"):
        assert model(given).depths[-1].shape == (1, 2, 16, 784)
        with pytest.raises(UserError, match="16x784 pixels; wanted multiples of 32 at this width"):
            model.depth(given.images, given.cameras, choose_others(given.cameras.c2w, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth_space": "linear"}, "depth_space = 'linear'; wanted one of inverse, log"),
        ({"windows": "4x4"}, "windows = '4x4'; wanted one of 2x2, by_width"),
        ({"vit_limit": -1}, "vit_limit=-1; wanted a whole number of at least 0"),
    ],
)
def test_settings_that_no_network_has(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.make_config("models", "depthsplat", settings)

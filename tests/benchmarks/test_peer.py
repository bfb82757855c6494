"""Official encoders from a checkout; those here are stand-ins with the official file names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.encoder import photographs
from benchmarks.measure import alternately
from torch import nn

from benchmarks import peer, published

ENCODER = """
import torch
from ...global_cfg import get_cfg

class {name}(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.views = cfg, get_cfg().dataset.view_sampler.num_context_views
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, context, step):
        return sum(value.sum() for value in context.values()) * self.weight.sum()
"""


def checkout(folder: Path, file: str, name: str, settings: str) -> Path:
    """A project with the names that the official ones have."""
    for path, text in {
        f"config/model/encoder/{file}.yaml": settings,
        "config/experiment/re10k.yaml": "model: {encoder: {depth_unet_feat_dim: 32}}",
        "dinov2/hubconf.py": "",
        "src/__init__.py": "",
        "src/global_cfg.py": "def set_cfg(new):\n    global cfg\n    cfg = new\n\n\n"
        "def get_cfg():\n    return cfg\n",
        "src/model/__init__.py": "",
        "src/model/encoder/__init__.py": "raise AssertionError('imports the whole project')",
        f"src/model/encoder/encoder_{file}.py": ENCODER.format(name=name),
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture
def of_2025(tmp_path: Path) -> Path:
    settings = "{local_mv_match: 2, num_scales: 1, gaussian_adapter: {sh_degree: 2}}"
    return checkout(tmp_path, "depthsplat", "EncoderDepthSplat", settings)


def test_settings_of_ours_become_the_official_ones(of_2025: Path) -> None:
    official: Any = peer.encoder(
        of_2025, "depthsplat", {"vit": "vitb", "scales": 2, "lowest": 8}, views=3
    )
    assert (official.cfg.num_scales, official.cfg.upsample_factor) == (2, 4)
    assert (official.cfg.lowest_feature_resolution, official.cfg.monodepth_vit_type) == (8, "vitb")
    assert official.cfg.gaussian_adapter.sh_degree == 2 and not official.training
    assert official.views == 3


def test_the_generation_is_told_by_content(tmp_path: Path, of_2025: Path) -> None:
    assert peer.model_of(of_2025) == "depthsplat"
    of_2024 = checkout(tmp_path / "a", "depthsplat", "EncoderDepthSplat", "num_scales: 1")
    assert peer.model_of(of_2024) == "depthsplat2024"
    official: Any = peer.encoder(
        of_2024, "depthsplat2024", {"unet_width": 32, "neighbors": 2}, views=2
    )
    assert official.cfg.gaussian_regressor_channels == 32
    assert official.cfg.costvolume_nearest_n_views == 3  # the view itself counts
    mvsplat = checkout(tmp_path / "b", "costvolume", "EncoderCostVolume", "num_surfaces: 1")
    official = peer.encoder(mvsplat, "mvsplat", {}, views=2)
    assert official.cfg.depth_unet_feat_dim == 32


def test_what_a_checkout_lacks_is_named(tmp_path: Path, of_2025: Path) -> None:
    with pytest.raises(peer.Missing, match=r"config/model/encoder/depthsplat\.yaml"):
        peer.model_of(tmp_path / "elsewhere")
    with pytest.raises(peer.Missing, match="not of mvsplat"):
        peer.encoder(of_2025, "mvsplat", {}, views=2)
    with pytest.raises(peer.Missing, match="anchors"):
        peer.encoder(of_2025, "depthsplat", {"anchors": 6}, views=2)
    (of_2025 / "src/model/encoder/encoder_depthsplat.py").write_text("import no_such_package")
    with pytest.raises(peer.Missing, match="no_such_package"):
        peer.encoder(of_2025, "depthsplat", {}, views=2)
    (of_2025 / "dinov2/hubconf.py").unlink()
    with pytest.raises(peer.Missing, match="hubconf"):
        peer.model_of(of_2025)


def test_both_are_measured_on_the_same_photographs(of_2025: Path) -> None:
    official = peer.encoder(of_2025, "depthsplat", {}, views=2)
    views = photographs(2, 16, 16)
    with torch.inference_mode():
        cameras = views.cameras
        given = (views.images, cameras.c2w, cameras.K, cameras.near, cameras.far)
        assert peer.predict(official, views) == pytest.approx(3 * sum(x.sum() for x in given))
    found = published.beside(Ours(), official, views, repeats=2)
    assert found["forward"]["calls"] == found["official"]["forward"]["calls"] == 2
    assert found["official"]["gflop"] == 0  # of a stand-in that multiplies no matrices
    with pytest.raises(AssertionError, match="3 of the official"):
        published.beside(nn.Linear(1, 1), official, views, repeats=1)


class Ours(nn.Module):
    """As many parameters as the stand-in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, views: object) -> torch.Tensor:
        return self.weight


def test_calls_are_made_by_turns() -> None:
    order = []
    times = alternately({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 1)
    assert order == ["a", "b"] * 3 and times["a"].calls == times["b"].calls == 2

"""Pictures by the rules of ReSplat against what its official decoder drew, settings included."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.geometry import gaussian
from pmsplat.render import rasterize
from pmsplat.types import CLASSIC, MIP, RESPLAT, Cameras, DrawingRules, Gaussians

# The one case that holds all Gaussians of a picture; others need the model that makes them.
GIVEN = "resplat_refine_only_v2_64x64_r3"


@pytest.fixture
def case(shared: Path) -> dict[str, torch.Tensor]:
    path = shared / "reference" / f"{GIVEN}.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as stored:
        names = [name for name in stored.files if name.startswith(("in/", "render/"))]
        return {name: torch.from_numpy(stored[name]) for name in names}


def read(case: dict[str, torch.Tensor]) -> tuple[Gaussians, Cameras]:
    """What was drawn: rotations are (x, y, z, w) and lie in the frame of each Gaussian's view."""
    cameras = Cameras(case["in/extrinsics"], case["in/intrinsics"], case["in/near"], case["in/far"])
    views = cameras.c2w.shape[1]
    turns = gaussian.rotation_to_quat(cameras.c2w[..., :3, :3])
    own = case["in/init/rotations_unnorm"].roll(1, dims=-1)
    own = torch.nn.functional.normalize(own, dim=-1).unflatten(1, (views, -1))
    world = gaussian.quat_multiply(turns[:, :, None].expand_as(own), own).flatten(1, 2)
    gaussians = Gaussians(
        means=case["in/init/means"],
        scales=case["in/init/scales"],
        quats_wxyz=world,
        opacities=case["in/init/opacities"],
        sh=case["in/init/harmonics"].mT,
        rules=RESPLAT,
    )
    return gaussians, cameras


def errors(
    case: dict[str, torch.Tensor], backend: str, rules: DrawingRules = RESPLAT
) -> torch.Tensor:
    """Absolute differences of all colors, in standard deviations of the picture."""
    gaussians, cameras = read(case)
    wanted = case["render/0"]
    height, width = wanted.shape[-2:]
    drawn = rasterize(gaussians, cameras, (height, width), backend, rules=rules).color
    return (drawn - wanted).abs() / wanted.std()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_picture_is_that_of_the_official_decoder(
    case: dict[str, torch.Tensor], backend: str
) -> None:
    """But for single pixels, where a threshold falls on the other side."""
    error = errors(case, backend)
    assert error.mean() <= 2e-5
    assert error.flatten().quantile(0.99) <= 2e-4


@pytest.mark.parametrize("rules", [CLASSIC, MIP])
def test_other_rules_draw_another_picture(
    case: dict[str, torch.Tensor], rules: DrawingRules
) -> None:
    assert errors(case, "cpu", rules).mean() > 1e-3

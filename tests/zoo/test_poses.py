"""Cameras found again in scenes where they are known: of other photos, and of the context."""

from dataclasses import replace

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.evaluate import metrics
from pmsplat.evaluate.baselines import pixel_splats
from pmsplat.evaluate.poses import pose_errors
from pmsplat.geometry import gaussian, se3
from pmsplat.render import rasterize
from pmsplat.scene import open_scene
from pmsplat.types import Cameras, Gaussians, Prediction, Views
from pmsplat.zoo import poses
from tests.lab.cameras import Known, disturb

SIZE = (40, 56)


@pytest.fixture(scope="module")
def furnished(room: str) -> tuple[Gaussians, Views]:
    """Splats of two exact depth maps of a room, and their pictures from three places between."""
    scene = open_scene(room)
    context = scene.views([0, 4], SIZE)
    assert context.depth is not None
    gaussians = pixel_splats(context, context.depth)
    cameras = scene.views([1, 2, 3], SIZE).cameras
    return gaussians, Views(rasterize(gaussians, cameras, SIZE, "cpu").color, cameras)


def offsets(cameras: Cameras, others: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrees and distances between cameras, [view]."""
    apart = (se3.invert(others.c2w.double()) @ cameras.c2w.double())[0]
    quat = gaussian.rotation_to_quat(apart[:, :3, :3])
    angle = 2 * torch.atan2(quat[:, 1:].norm(dim=-1), quat[:, 0])
    return angle.rad2deg(), apart[:, :3, 3].norm(dim=-1)


def test_the_search_finds_cameras_again(furnished: tuple[Gaussians, Views]) -> None:
    gaussians, views = furnished
    depth = rasterize(gaussians, views.cameras, SIZE, "cpu").depth.median().item()
    start = disturb(views.cameras, 0.5, 0.01 * depth)
    found = poses.search_cameras(gaussians, replace(views, cameras=start), 100, "cpu")
    for before, after in zip(
        offsets(start, views.cameras), offsets(found, views.cameras), strict=True
    ):
        assert (after < 0.1 * before).all()
    drawn = [rasterize(gaussians, c, SIZE, "cpu").color for c in (start, found)]
    before, after = (metrics.psnr(color, views.images).min() for color in drawn)
    assert after > before + 10


@pytest.fixture(scope="module")
def context(room: str) -> Views:
    return open_scene(room).views([0, 4, 8], SIZE)


def start_from(context: Views, degrees: float = 1.5, share: float = 0.02) -> Views:
    """The views with cameras that are wrong by so much; the depth is that of the middle."""
    assert context.depth is not None
    depth = context.depth.median().item()
    return replace(context, cameras=disturb(context.cameras, degrees, share * depth))


def test_refinement_finds_the_cameras_of_the_context_again(context: Views) -> None:
    assert context.depth is not None
    start, model = start_from(context), Known(context.depth)
    found = poses.refine_cameras(model, start, 20)
    before, after = (
        pose_errors(cameras.c2w[0], context.cameras.c2w[0])
        for cameras in (start.cameras, found.cameras)
    )
    assert after["rotation_deg"] < before["rotation_deg"] / 2
    assert after["translation_deg"] < before["translation_deg"] / 3
    assert found.by.error_after < 0.5 * found.by.error_before and found.by.round > 0
    assert model.calls == poses.ROUNDS + 1 and found.still == ()
    # The scene as a whole stays where it was, and as large; it is not turned
    now, then = (c.c2w[0, :, :3].double() for c in (found.cameras, start.cameras))
    torch.testing.assert_close(now[..., 3].mean(0), then[..., 3].mean(0), atol=1e-5, rtol=0)
    spreads = [(c[..., 3] - c[..., 3].mean(0)).norm().item() for c in (now, then)]
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-5)
    axes = (then[..., :3] @ now[..., :3].mT).sum(0)  # symmetric where no turn fits better
    torch.testing.assert_close(axes, axes.mT, atol=1e-5, rtol=0)
    assert found.by.degrees < 2
    for name in ("K", "near", "far"):
        assert torch.equal(getattr(found.cameras, name), getattr(start.cameras, name))
    # What it says of itself: the turn of each camera, from a rotation matrix's trace
    turn = start.cameras.c2w[0, :, :3, :3].mT.double() @ found.cameras.c2w[0, :, :3, :3].double()
    angles = ((turn.diagonal(dim1=-1, dim2=-2).sum(-1) - 1) / 2).acos().rad2deg()
    assert found.by.degrees == pytest.approx(angles.median().item(), rel=1e-3)
    again = poses.refine_cameras(model, start, 20)
    assert torch.equal(again.cameras.c2w, found.cameras.c2w) and again.by == found.by


class Worse(Known):
    """Splats that turn black once the cameras are not those of its first call."""

    def forward(self, views: Views) -> Prediction:
        found = super().forward(views)
        gaussians = found.gaussians[-1]
        dark = replace(gaussians, sh=gaussians.sh * (1.0 if self.calls == 1 else 0.0) - 9.0)
        return replace(found, gaussians=(gaussians if self.calls == 1 else dark,))


def test_where_no_round_is_better_cameras_stay_to_the_bit(context: Views) -> None:
    assert context.depth is not None
    start = start_from(context)
    found = poses.refine_cameras(Worse(context.depth), start, 1)
    assert torch.equal(found.cameras.c2w, start.cameras.c2w)
    assert (found.by.round, found.by.degrees, found.by.share_of_depth) == (0, 0, 0)
    assert found.by.error_after == found.by.error_before


def test_a_view_that_sees_something_else_is_named_and_the_rest_refined(context: Views) -> None:
    assert context.depth is not None
    start = start_from(context)
    c2w = start.cameras.c2w.clone()
    c2w[0, 2, :3, :3] = c2w[0, 2, :3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1]))  # looks back
    alone = replace(start, cameras=replace(start.cameras, c2w=c2w))
    assert poses.refine_cameras(Known(context.depth), alone, 1).still == (2,)
    lonely = replace(alone.at([0, 2]), depth=None)
    with pytest.raises(UserError, match="share too little"):
        poses.refine_cameras(Known(context.depth[:, [0, 2]]), lonely, 1)


def test_what_cannot_be_refined_is_refused(context: Views) -> None:
    assert context.depth is not None
    model = Known(context.depth)
    for steps in (0, -3, True):
        with pytest.raises(UserError, match=f"`refine_poses={steps}`"):
            poses.refine_cameras(model, context, steps)
    c2w = context.cameras.c2w.clone()
    c2w[:, :, :3, 3] = c2w[:, :1, :3, 3]
    still = replace(context, cameras=replace(context.cameras, c2w=c2w))
    with pytest.raises(UserError, match="all taken from one place"):
        poses.refine_cameras(model, still, 1)
    assert model.calls == 0

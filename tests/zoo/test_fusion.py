"""Fusing predictions of one scene: what it does to pictures, and what it refuses."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import pmsplat
from pmsplat.errors import UserError
from pmsplat.geometry import camera
from pmsplat.scene.overlap import Group
from pmsplat.types import MIP, Cameras, Gaussians, Prediction, Views
from pmsplat.zoo.fusion import HOW, Part, fuse, fuse_parts, limit, predict_groups
from pmsplat.zoo.infer import predict_views
from tests.models.tiny import shaken, tiny
from tests.models.tiny import views as random_views
from tests.scenes import are_equal

WALL = 3.0
SIZE = (24, 32)


class Wall(nn.Module):
    """An encoder that knows: all is a wall at z = WALL, in the unit in which `near` is 1.

    Each Gaussian stands for a block of pixels; its colour depends on where it is on the wall. The
    confidence is that which is given, of all pixels.
    """

    near = 1.0

    def __init__(self, block: int = 1, opacity: float = 0.8, sure: float | None = None) -> None:
        super().__init__()
        self.block, self.opacity, self.sure = block, opacity, sure
        self.calls = 0

    def forward(self, views: Views) -> Prediction:
        self.calls += 1
        cameras, (height, width) = views.cameras, views.size
        rows, columns = -(-height // self.block), -(-width // self.block)
        grid = camera.pixel_grid(rows, columns, cameras.K)
        grid = grid * grid.new_tensor([columns / width, rows / height]) * self.block
        away = (WALL - cameras.c2w[..., 2, 3])[..., None, None]
        depth = away.expand(-1, -1, height, width).clone()
        points = camera.unproject(
            grid, away.expand(-1, -1, rows, columns), cameras.K[:, :, None, None]
        )
        means = torch.einsum("bvij,bvhwj->bvhwi", cameras.c2w[..., :3, :3], points)
        means = (means + cameras.c2w[:, :, None, None, :3, 3]).flatten(1, 3)
        spacing = self.block * away / (cameras.K[:, :, 0, 0, None, None] * width)
        scales = spacing.expand(-1, -1, rows, columns).flatten(1)[..., None].expand(-1, -1, 3) * 0.7
        color = torch.sin(2 * means + torch.tensor([0.0, 1.0, 2.0]))
        gaussians = Gaussians(
            means=means,
            scales=scales * torch.tensor([1.0, 0.9, 0.05]),
            quats_wxyz=torch.tensor([1.0, 0, 0, 0]).expand(*means.shape[:2], 4),
            opacities=torch.full(means.shape[:2], self.opacity),
            sh=color[:, :, None],
        )
        confidence = None if self.sure is None else torch.full_like(depth, self.sure)
        return Prediction((depth,), (gaussians,), confidence)


def look(*places: tuple[float, float, float], back: bool = False) -> Views:
    """Views from these places, all along +z, or along -z; of no matter what."""
    c2w = torch.eye(4).repeat(1, len(places), 1, 1)
    c2w[0, :, :3, 3] = torch.tensor(places)
    if back:
        c2w[:, :, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    K = torch.tensor([[0.8, 0, 0.5], [0, 0.8 * SIZE[1] / SIZE[0], 0.5], [0, 0, 1]])
    near = torch.ones(1, len(places))
    cameras = Cameras(c2w, K.repeat(1, len(places), 1, 1), near, 10 * near)
    return Views(torch.zeros(1, len(places), 3, *SIZE), cameras)


FRONT = look((0.0, 0, 0), (0.3, 0, 0))
ASIDE = look((0.2, 0.1, 0), (-0.1, 0, 0.1))


def draw(gaussians: Gaussians) -> torch.Tensor:
    """From between the views, and a little behind them."""
    return pmsplat.rasterize(gaussians, look((0.1, 0.05, -0.4)).cameras, SIZE).color


def test_identical_groups_composite_as_one() -> None:
    """Exactly at the centre of a splat, nearly beside it; as they are, they are much brighter."""
    apart = look((-1.9, 0, 0), (1.9, 0, 0))  # which see two halves of the wall
    between = look((1.8, 0.05, -0.2)).cameras
    for opacity, most, least in ((0.3, 0.01, 0.1), (0.6, 0.015, 0.03)):
        prediction = Wall(opacity=opacity)(apart)
        one = pmsplat.rasterize(prediction.gaussians[-1], between, SIZE).color
        three = [(prediction, apart)] * 3
        wrong = {
            how: (pmsplat.rasterize(fuse(three, how), between, SIZE).color - one).abs().mean()
            for how in HOW
        }
        assert max(wrong["shares"], wrong["voxels"]) < most < least < wrong["union"]
    count = 2 * SIZE[0] * SIZE[1]
    assert fuse(three, "shares").means.shape[1] == 3 * count
    assert fuse(three, "voxels").means.shape[1] <= count


def test_without_overlap_nothing_changes() -> None:
    """Of groups that look away from each other."""
    there = look((0.0, 0, 0), (0.2, 0, 0), back=True)
    parts = [(Wall()(views), views) for views in (FRONT, there)]
    fused = fuse_parts(parts, "shares")
    whole = Gaussians.joined([prediction.gaussians[-1] for prediction, _ in parts])
    assert are_equal(fused.gaussians, whole) and fused.floaters == 0
    assert fused.full == fused.given == whole.means.shape[1]


@pytest.mark.parametrize("how", HOW)
def test_a_single_prediction_stays_as_it_is(how: str) -> None:
    prediction = Wall()(FRONT)
    assert are_equal(fuse([(prediction, FRONT)], how), prediction.gaussians[-1])


def test_shares_follow_confidence() -> None:
    """Of two groups that see the same, the surer one has more of the optical depth."""
    sure, unsure = Wall(sure=0.9)(FRONT), Wall(sure=0.3)(FRONT)
    opacities = fuse([(sure, FRONT), (unsure, FRONT)], "shares").opacities[0]
    parts = -torch.log1p(-opacities.unflatten(0, (2, -1)))
    whole = -torch.log1p(-torch.tensor(0.8))
    torch.testing.assert_close(parts[0], (0.75 * whole).expand_as(parts[0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(parts[1], (0.25 * whole).expand_as(parts[1]), rtol=1e-4, atol=0)
    plain = [(replace(found, confidence=None), FRONT) for found in (sure, unsure)]
    halves = fuse(plain, "shares").opacities  # without confidence both count the same
    torch.testing.assert_close(halves, 1 - (1 - torch.full_like(halves, 0.8)).sqrt())


def test_what_others_see_through_is_left_out() -> None:
    """Another group sees the wall behind some Gaussians, and nobody agrees with them."""
    bad = Wall()(FRONT)
    means = bad.gaussians[-1].means.clone()
    means[:, 400:450, 2] = 1.5  # nearer on their rays, in the middle of the first picture
    means[:, 400:450, :2] *= 0.5
    depth = bad.depths[-1].clone()
    depth[0, 0].view(-1)[400:450] = 1.5
    floating = Prediction((depth,), (replace(bad.gaussians[-1], means=means),))
    seeing = (Wall()(ASIDE), ASIDE)
    assert fuse_parts([(floating, FRONT), seeing], "shares").floaters == 0  # one against one
    fused = fuse_parts([(floating, FRONT), seeing, seeing], "shares")
    assert fused.floaters == fused.contradicted == 50 and (fused.gaussians.means[..., 2] > 2).all()
    assert fused.given - 50 == fused.gaussians.means.shape[1]
    # Another group that depicts them outvotes three that see through, and not four
    three = fuse_parts([(floating, FRONT)] * 2 + [seeing] * 3, "shares")
    assert three.floaters == 0 and three.contradicted == 100
    assert fuse_parts([(floating, FRONT)] * 2 + [seeing] * 4, "shares").floaters == 100
    assert fuse_parts([(floating, FRONT)], "shares").floaters == 0


@pytest.mark.parametrize("size", [(24, 32), (23, 30)])
def test_gaussians_of_blocks(size: tuple[int, int]) -> None:
    """As of ReSplat: where the image ends within a block, its Gaussian stands for the rest."""
    views = replace(FRONT, images=torch.zeros(1, 2, 3, *size))
    found = Wall(block=4, sure=0.5)(views)
    confidence = torch.rand(found.depths[0].shape, generator=torch.Generator().manual_seed(0))
    part = Part.of(replace(found, confidence=confidence), views)
    assert part.prediction.block == 4
    for view in (0, 1):
        for row in range(6):
            for column in range(8):
                block = confidence[0, view, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                mean = part.sureness.view(2, 6, 8)[view, row, column]
                torch.testing.assert_close(mean, block.mean())
    focal = (0.8 * size[1] * 0.8 * SIZE[1] / SIZE[0] * size[0]) ** 0.5
    torch.testing.assert_close(part.footprints, torch.full((96,), 4 * WALL / focal))
    assert fuse([part, part]).means.shape[1] <= 96


def test_the_tiny_resplat_has_blocks(generator: torch.Generator) -> None:
    model = shaken(tiny("resplat", lowest=8, latent=4, gaussians_per_point=1))
    parts = list(predict_groups(model, random_views(generator, 4, (64, 64)), groups(2)))
    assert [part.prediction.block for part in parts] == [4, 4]
    fused = fuse(parts, "shares")
    assert fused.rules == parts[0].gaussians.rules != pmsplat.DrawingRules()


def groups(count: int, size: int = 2) -> list[Group]:
    views = [list(range(start, start + size)) for start in range(0, count * size, size)]
    return [Group(of_each, of_each) for of_each in views]


def test_groups_have_the_unit_of_the_whole_scene() -> None:
    """The second group is twice as far from the wall, by near; its depth is right all the same."""
    views = look((0.0, 0, 0), (0.3, 0, 0), (0.0, 0.2, 0), (0.3, 0.2, 0)).scaled(5.0)
    nears = torch.tensor([[5.0, 5.0, 10.0, 10.0]])
    views = replace(views, cameras=replace(views.cameras, near=nears))
    model = Wall()
    parts = predict_groups(model, views, groups(2))
    assert model.calls == 0  # one after another, when it is asked for
    first = next(parts)
    assert model.calls == 1 and first.views == (0, 1)
    second = next(parts)
    assert second.views == (2, 3)
    for part in (first, second):
        torch.testing.assert_close(part.depth, torch.full_like(part.depth, 5 * WALL))
    alone = predict_views(model, views.at([2, 3])).depths[-1]
    torch.testing.assert_close(alone, torch.full_like(alone, 10 * WALL))


def test_views_that_a_prediction_speaks_of() -> None:
    """Of three views, an encoder with anchors speaks of two, out of order."""
    three = look((0.0, 0, 0), (0.1, 0, 0), (0.3, 0, 0.2))

    class Anchored(Wall):
        def forward(self, views: Views) -> Prediction:
            chosen = [2, 0] if views.images.shape[1] == 3 else [0, 1]
            return replace(super().forward(views.at(chosen)), views=torch.tensor([chosen]))

    (part,) = predict_groups(Anchored(), three, [Group([0, 1, 2], [0, 1, 2])])
    assert part.views == (2, 0)
    torch.testing.assert_close(part.cameras.c2w, three.cameras.c2w[:, [2, 0]])
    fused = fuse_parts([part, (Wall()(FRONT), FRONT)], "shares")
    assert fused.floaters == 0  # as there would be with the depth of another view
    shared = fused.gaussians.opacities < 0.7
    assert shared.float().mean() > 0.5


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("count", [1, 100, 1000, 1536])
def test_a_budget_is_kept(how: str, count: int) -> None:
    parts = [(Wall()(FRONT), FRONT), (Wall()(ASIDE), ASIDE)]
    free = fuse(parts, how)
    fused = fuse(parts, how, count)
    assert fused.means.shape[1] <= count
    if count >= free.means.shape[1]:
        assert are_equal(fused, free)
    else:
        assert fused.means.shape[1] >= min(count, 8)


@pytest.mark.parametrize("how", HOW)
def test_a_budget_is_met_as_for_any_gaussians(how: str) -> None:
    parts = [(Wall()(FRONT), FRONT), (Wall()(ASIDE), ASIDE)]
    for given in (parts, parts[:1]):
        assert are_equal(fuse(given, how, 300), limit(fuse(given, how), 300))


def test_a_budget_is_met_exactly_where_depths_differ(generator: torch.Generator) -> None:
    """And what is left shows more of the scene than as many chosen at random."""
    model = shaken(tiny())
    parts = list(predict_groups(model, random_views(generator, 6, (32, 48)), groups(3)))
    for count in (500, 2000):
        fused = fuse_parts(parts, gaussians=count)
        assert fused.gaussians.means.shape[1] == count
        assert fused.full > count and fused.given == 6 * 32 * 48


def test_a_thinner_wall_looks_alike() -> None:
    whole = Wall(opacity=0.9)(FRONT).gaussians[-1]
    seen = draw(whole)
    thin = limit(whole, 500)
    assert 100 <= thin.means.shape[1] <= 500  # all of one depth grow at once
    assert (draw(thin) - seen).abs().mean() < 0.05
    step = -(-whole.means.shape[1] // thin.means.shape[1])
    some = whole.map(lambda tensor: tensor[:, ::step])
    assert (draw(some) - seen).abs().mean() > 0.1


def test_a_limit_of_more_changes_nothing() -> None:
    whole = Wall()(FRONT).gaussians[-1]
    assert limit(whole, whole.means.shape[1]) is whole


def test_twins_become_one_of_the_same_picture() -> None:
    """Two Gaussians in one place hide as much as one of their optical depths together."""
    one = Wall(opacity=0.5)(FRONT).gaussians[-1].map(lambda tensor: tensor[:, ::17])
    twice = Gaussians.joined([one, one])
    merged = limit(twice, one.means.shape[1])
    assert merged.means.shape[1] == one.means.shape[1]
    torch.testing.assert_close(merged.opacities, torch.full_like(merged.opacities, 0.75))
    torch.testing.assert_close(merged.means, one.means)


def test_rules_origin_and_up_survive() -> None:
    found = Wall()(FRONT).gaussians[-1]
    marked = replace(found, rules=MIP, origin=(100.0, 0.0, -7.0), up=(0.0, 0.0, 1.0))
    part = Part.of(replace(Wall()(FRONT), gaussians=(marked,)), FRONT)
    for fused in (*(fuse([part, part], how, 300) for how in HOW), limit(marked, 100)):
        assert (fused.rules, fused.origin, fused.up) == (MIP, marked.origin, marked.up)


@pytest.mark.parametrize("how", ["shares", "voxels"])
def test_gradients_reach_every_part(how: str) -> None:
    found = [Wall()(views) for views in (FRONT, ASIDE)]
    leaves = [
        one.gaussians[-1].map(lambda tensor: tensor.clone().requires_grad_()) for one in found
    ]
    parts = [
        (replace(one, gaussians=(leaf,)), views)
        for one, leaf, views in zip(found, leaves, (FRONT, ASIDE), strict=True)
    ]
    draw(fuse(parts, how)).square().sum().backward()
    for leaf in leaves:
        for tensor in (leaf.means, leaf.scales, leaf.quats_wxyz, leaf.opacities, leaf.sh):
            assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


def test_confidence_of_gaussians_rides_along() -> None:
    """Averaged by mass where Gaussians are merged, here of equal mass."""
    parts = [Part.of(Wall(sure=sure)(FRONT), FRONT).with_confidence() for sure in (0.2, 0.8)]
    assert fuse(parts, "union").confidence is not None
    low, high = fuse(parts, "shares").confidence.unflatten(1, (2, -1)).unbind(1)  # pyright: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(low, torch.full_like(low, 0.2))
    torch.testing.assert_close(high, torch.full_like(high, 0.8))
    merged = fuse(parts, "voxels")
    assert merged.confidence is not None and merged.confidence.shape == merged.opacities.shape
    weighted = (0.2 * 0.2 + 0.8 * 0.8) * torch.ones_like(merged.confidence)  # mass is shared so
    torch.testing.assert_close(merged.confidence, weighted)
    fewer = limit(merged, 100).confidence
    assert fewer is not None and len(fewer[0]) <= 100
    torch.testing.assert_close(fewer, torch.full_like(fewer, 0.2 * 0.2 + 0.8 * 0.8))
    unknown = Part.of(Wall()(FRONT), FRONT).with_confidence()
    assert fuse([unknown, parts[0]], "voxels").confidence is None


def test_the_same_every_time(generator: torch.Generator) -> None:
    parts = [(Wall(sure=0.4)(FRONT), FRONT), (Wall(sure=0.6)(ASIDE), ASIDE)]
    for how in HOW:
        assert are_equal(fuse(parts, how, 700), fuse(parts, how, 700))


def test_it_is_public() -> None:
    assert pmsplat.fuse is fuse


def test_what_is_refused() -> None:
    found = Wall()(FRONT)
    part = Part.of(found, FRONT)
    moved = replace(part, gaussians=replace(part.gaussians, origin=(1.0, 0.0, 0.0)))
    ruled = replace(part, gaussians=replace(part.gaussians, rules=MIP))
    fewer = replace(part, gaussians=part.gaussians.map(lambda tensor: tensor[:, 1:]))
    broken = part.gaussians.means.clone()
    broken[0, 3, 1] = float("nan")
    for call, wanted in (
        (partial(fuse, []), "no prediction to fuse; wanted one or more"),
        (partial(fuse, [part], "voxel"), "`how=voxel`; wanted one of .*; did you mean 'voxels'"),
        (partial(fuse, [found]), "a prediction without the views"),
        (partial(fuse, [part], "voxels", 0), "`gaussians=0`; wanted a whole number from 1"),
        (partial(fuse, [part], gaussians=True), "`gaussians=True`; wanted a whole number"),
        (partial(limit, part.gaussians, -1), "`gaussians=-1`; wanted a whole number from 1"),
        (partial(fuse, [part, moved]), "different origins"),
        (partial(fuse, [part, ruled]), "drawn by different rules"),
        (partial(fuse, [part, fewer]), "1535 Gaussians of 2 views of 24x32 pixels; wanted one"),
        (
            partial(fuse, [replace(part, gaussians=replace(part.gaussians, means=broken))]),
            "not finite",
        ),
        (partial(fuse, [(replace(found, gaussians=()), FRONT)]), "a prediction of depth alone"),
    ):
        with pytest.raises(UserError, match=wanted):
            call()
    assert fuse([part, fewer], "union").means.shape[1] == 2 * 1536 - 1
    twice = found.map(lambda tensor: torch.cat([tensor, tensor]))
    for count in (10, 10_000):
        with pytest.raises(UserError, match="Gaussians of 2 scenes; wanted those of one"):
            limit(twice.gaussians[-1], count)
    with pytest.raises(UserError, match="a prediction of 2 scenes"):
        fuse([(twice, FRONT)])

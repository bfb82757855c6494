import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import camera, gaussian, se3
from pmsplat.render import rasterize
from pmsplat.types import (
    MIP,
    Batch,
    Cameras,
    Gaussians,
    Pointmap,
    Prediction,
    Rendering,
    StepOutput,
    Views,
)
from tests.scenes import random_cameras, random_gaussians


def views(count: int, generator: torch.Generator) -> Views:
    return Views(
        images=torch.rand(1, count, 3, 4, 5, generator=generator),
        cameras=random_cameras(count, generator),
        names=(tuple(f"{i}.jpg" for i in range(count)),),
    )


def test_to_reaches_every_tensor_and_leaves_names(generator: torch.Generator) -> None:
    batch = Batch(views(2, generator), views(3, generator), ["a"]).to(torch.float64)
    assert batch.context.images.dtype == torch.float64
    assert batch.target.cameras.K.dtype == torch.float64
    assert batch.scene == ["a"] and batch.context.names == (("0.jpg", "1.jpg"),)


def test_at_takes_views_in_the_order_asked(generator: torch.Generator) -> None:
    all_views = views(4, generator)
    taken = all_views.at([3, 1])
    torch.testing.assert_close(taken.images, all_views.images[:, [3, 1]])
    torch.testing.assert_close(taken.cameras.c2w[:, 0], all_views.cameras.c2w[:, 3])
    assert taken.names == (("3.jpg", "1.jpg"),)
    assert all_views.at(slice(1, 3)).names == (("1.jpg", "2.jpg"),)


def test_a_scaled_world_looks_the_same(generator: torch.Generator) -> None:
    cameras, gaussians = random_cameras(2, generator), random_gaussians(5, generator)
    grown = cameras.scaled(3.0)
    seen = camera.project_world(gaussians.means[:, None], cameras.c2w, cameras.K)
    again = camera.project_world(gaussians.scaled(3.0).means[:, None], grown.c2w, grown.K)
    torch.testing.assert_close(again[..., :2], seen[..., :2])
    torch.testing.assert_close(again[..., 2], 3 * seen[..., 2])
    torch.testing.assert_close(grown.near, 3 * cameras.near)


def test_up_to_makes_an_earlier_level_the_answer(generator: torch.Generator) -> None:
    levels = tuple(random_gaussians(3, generator) for _ in range(2))
    depths = (torch.ones(1, 2, 4, 5), torch.full((1, 2, 4, 5), 2.0))
    flat = torch.zeros(1, 3, 4, 5)
    renderings = tuple(
        Rendering(torch.full((1, 3, 3, 4, 5), float(i)), flat, flat) for i in range(2)
    )
    batch = Batch(views(2, generator), views(3, generator), ["a"])
    step = StepOutput(batch, Prediction(depths, levels), renderings)
    coarse = step.up_to(0)
    assert coarse.prediction.gaussians[-1] is levels[0]
    assert len(coarse.renderings) == len(coarse.prediction.depths) == 1
    assert step.up_to(1).renderings[-1] is renderings[1]


def test_a_transformed_scene_looks_the_same_from_transformed_cameras(
    generator: torch.Generator,
) -> None:
    """Means, shapes and harmonics of degree 3 follow one similarity, cameras the same one."""
    cameras = random_cameras(2, generator, dtype=torch.float64)
    gaussians = random_gaussians(40, generator, degree=3, dtype=torch.float64)
    quat = torch.nn.functional.normalize(torch.randn(4, generator=generator).double(), dim=0)
    turn = se3.compose(
        gaussian.quat_to_rotation(quat), torch.randn(3, generator=generator).double()
    )
    grown = cameras.scaled(1.7)
    moved = Cameras(turn @ grown.c2w, grown.K, grown.near, grown.far)
    similarity = turn @ torch.diag(torch.tensor([1.7, 1.7, 1.7, 1.0], dtype=torch.float64))
    before = rasterize(gaussians, cameras, (24, 32), backend="reference")
    after = rasterize(gaussians.transformed(similarity), moved, (24, 32), backend="reference")
    torch.testing.assert_close(after.color, before.color, rtol=0, atol=1e-9)
    torch.testing.assert_close(after.depth, 1.7 * before.depth, rtol=1e-9, atol=1e-9)


def test_half_turns_are_exact(generator: torch.Generator) -> None:
    gaussians = random_gaussians(50, generator, degree=4)
    for signs in ([1.0, -1, -1, 1], [-1.0, 1, -1, 1], [-1.0, -1, 1, 1]):
        turn = torch.diag(torch.tensor(signs))
        there = gaussians.transformed(turn)
        assert torch.equal(there.sh.abs(), gaussians.sh.abs())
        assert torch.equal(there.quats_wxyz.abs().sort()[0], gaussians.quats_wxyz.abs().sort()[0])
        back = there.transformed(turn)
        assert torch.equal(back.sh, gaussians.sh) and torch.equal(back.means, gaussians.means)
        assert torch.equal(back.quats_wxyz, -gaussians.quats_wxyz)  # the same rotation


def test_similarities_are_told_from_other_matrices() -> None:
    eye = torch.eye(4)
    stretched, mirrored, broken = eye.clone(), eye.clone(), eye.clone()
    stretched[0, 0], mirrored[0, 0], broken[0, 3] = 2.0, -1.0, float("nan")
    scaled = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))
    given = torch.stack([eye, scaled, stretched, mirrored, broken, torch.zeros(4, 4)])
    assert se3.is_similarity(given).tolist() == [True, True, False, False, False, False]
    torch.testing.assert_close(se3.similarity_scale(scaled), torch.tensor(3.0))


def test_a_pointmap_follows_its_views(generator: torch.Generator) -> None:
    """It is taken, moved, scaled and mirrored with the images that it belongs to."""
    points = torch.randn(1, 3, 4, 5, 3, generator=generator)
    pointmap = Pointmap(points, torch.rand(1, 3, 4, 5, generator=generator))
    all_views = replace(views(3, generator), pointmap=pointmap)
    taken = all_views.at([2, 0]).to(torch.float64).scaled(2.0).pointmap
    assert taken is not None and taken.confidence.dtype == torch.float64
    assert torch.equal(taken.points, 2.0 * points[:, [2, 0]].double())
    assert torch.equal(taken.confidence, pointmap.confidence[:, [2, 0]].double())
    mirrored = pointmap.flip()
    assert torch.equal(mirrored.points[..., 0], -points[..., 0].flip(-1))
    assert torch.equal(mirrored.points[..., 1:], points[..., 1:].flip(-2))
    assert torch.equal(mirrored.flip().confidence, pointmap.confidence)


def test_views_refuse_bare_points_as_a_pointmap(generator: torch.Generator) -> None:
    construct: Any = inspect.unwrap(Views.__init__)  # the tests check annotations first
    given, points = views(3, generator), torch.randn(1, 3, 4, 5, 3, generator=generator)
    with pytest.raises(UserError, match=r"pmsplat\.Pointmap\(points, confidence\)") as error:
        construct(Views.__new__(Views), given.images, given.cameras, pointmap=points)
    assert "Tensor" in error.value.got


def _cloud(place: tuple[float, float, float]) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    return Gaussians(
        means=torch.randn(1, 50, 3, generator=generator),
        scales=torch.rand(1, 50, 3, generator=generator),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).expand(1, 50, 4),
        opacities=torch.rand(1, 50, generator=generator),
        sh=torch.randn(1, 50, 4, 3, generator=generator),
        origin=place,
    )


def test_a_similarity_moves_origin_and_means_as_float64_does() -> None:
    given = _cloud((441547.5, 5121946.5, 2345.0))
    turn = torch.tensor([[0.0, -2, 0, 7], [2, 0, 0, 8], [0, 0, 2, 9], [0, 0, 0, 1]]).double()
    world = given.means.double() + torch.tensor(given.origin).double()
    expected = world @ turn[:3, :3].T + turn[:3, 3]
    moved = given.transformed(turn)
    there = moved.means.double() + torch.tensor(moved.origin, dtype=torch.float64)
    assert (there - expected).abs().max() < 1e-6
    assert moved.means.abs().max() < 20


def test_moving_to_the_origin_and_away_from_it_keeps_means_fine() -> None:
    given = _cloud((0.0, 0.0, 0.0))
    away = torch.eye(4, dtype=torch.float64)
    away[:3, 3] = torch.tensor([431234.567, 5412345.678, 512.25])
    there = given.transformed(away)
    assert there.origin != (0, 0, 0)
    back = there.transformed(torch.linalg.inv(away))
    assert back.origin == (0, 0, 0)
    assert (back.means - given.means).abs().max() < 1e-6


def test_parts_of_one_scene_share_origin_and_rules() -> None:
    one, other = _cloud((1000.0, 0.0, 0.0)), _cloud((1001.0, 0.0, 0.0))
    both = Gaussians.joined([one, other])
    assert both.origin == one.origin
    assert torch.allclose(both.means[:, 50:, 0], other.means[..., 0] + 1, atol=1e-6)
    with pytest.raises(UserError, match="different rules"):
        Gaussians.joined([one, replace(one, rules=MIP)])


def test_up_turns_with_the_scene() -> None:
    given = replace(_cloud((0.0, 0.0, 0.0)), up=(0.0, 0.0, 1.0))
    turn = torch.tensor([[2.0, 0, 0, 7], [0, 0, -2, 8], [0, 2, 0, 9], [0, 0, 0, 1]])
    assert given.transformed(turn).up == pytest.approx((0, -1, 0))
    assert given.at_origin((1.0, 2.0, 3.0)).up == given.up == Gaussians.joined([given] * 2).up
    assert replace(given, up=None).transformed(turn).up is None


def test_taken_gaussians_are_those_of_each_scene_with_gradients(generator: torch.Generator) -> None:
    gaussians = replace(random_gaussians(9, generator, batch=2), rules=MIP, origin=(1.0, 2.0, 3.0))
    leaves = [
        value.requires_grad_() for value in vars(gaussians).values() if torch.is_tensor(value)
    ]
    index = torch.tensor([[4, 0, 8], [1, 1, 2]])
    taken = gaussians.take(index)
    assert taken.rules == MIP and taken.origin == (1.0, 2.0, 3.0)
    for leaf, found in zip(
        leaves, (v for v in vars(taken).values() if torch.is_tensor(v)), strict=True
    ):
        for scene, row in enumerate(index.tolist()):
            assert torch.equal(found[scene], leaf[scene][row])
    total = sum(value.sum() for value in vars(taken).values() if torch.is_tensor(value))
    assert isinstance(total, torch.Tensor)
    total.backward()
    counts = torch.tensor([[1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 2, 1, 0, 0, 0, 0, 0, 0]])
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.equal(
            leaf.grad.flatten(2).amax(-1) if leaf.ndim > 2 else leaf.grad, counts.float()
        )


def _rated(parts: int = 1) -> Gaussians:
    generator = torch.Generator().manual_seed(parts)
    return replace(_cloud((0.0, 0.0, 0.0)), confidence=torch.rand(1, 50, generator=generator))


def test_confidence_stays_with_its_gaussians() -> None:
    given, turn = _rated(), torch.diag(torch.tensor([2.0, -2, -2, 1]))
    motion = torch.diag(torch.tensor([1.0, -1, -1, 1])).expand(1, 4, 4)
    for same in (
        given.transformed(turn), given.scaled(3.0), given.moved(motion), given.detach(),
        given.at_origin((1.0, 2.0, 3.0)), Gaussians.joined([given]),
    ):  # fmt: skip
        assert same.confidence is not None and given.confidence is not None
        assert torch.equal(same.confidence, given.confidence)
    few = given.map(lambda tensor: tensor[:, 7:9]).to(torch.float64).confidence
    assert few is not None and given.confidence is not None
    assert torch.equal(few, given.confidence[:, 7:9].double())
    assert _cloud((0.0, 0.0, 0.0)).confidence is None


def test_joined_parts_have_confidence_where_each_has() -> None:
    one, other = _rated(1), _rated(2)
    both = Gaussians.joined([one, other]).confidence
    assert both is not None and one.confidence is not None and other.confidence is not None
    assert both.tolist() == [one.confidence[0].tolist() + other.confidence[0].tolist()]
    for parts in ([one, _cloud((0.0, 0.0, 0.0))], [_cloud((0.0, 0.0, 0.0)), one]):
        assert Gaussians.joined(parts).confidence is None


def _predicted(confidence: torch.Tensor | None, count: int) -> Prediction:
    gaussians = random_gaussians(count, torch.Generator().manual_seed(0), batch=2)
    return Prediction((torch.ones(2, 3, 10, 14),), (gaussians,), confidence)


@pytest.mark.parametrize(
    ("block", "grid"), [(1, (10, 14)), (2, (5, 7)), (4, (3, 4)), (8, (2, 2)), (16, (1, 1))]
)
def test_gaussians_have_the_confidence_of_their_pixels(
    block: int, grid: tuple[int, int], generator: torch.Generator
) -> None:
    """View after view, row by row; in a block that the image cuts, the mean over what is there."""
    sure = torch.rand(2, 3, 10, 14, generator=generator, dtype=torch.float64)
    found = _predicted(sure, 3 * grid[0] * grid[1]).gaussian_confidence()
    assert found is not None
    places = ((b, v, y, x) for b in range(2) for v in range(3)
              for y in range(grid[0]) for x in range(grid[1]))  # fmt: skip
    wanted = [
        sure[b, v, block * y : block * (y + 1), block * x : block * (x + 1)].mean().item()
        for b, v, y, x in places
    ]
    assert found.shape == (2, 3 * grid[0] * grid[1])
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_confidence_of_gaussians_is_none_where_nobody_knows(generator: torch.Generator) -> None:
    sure = torch.rand(2, 3, 10, 14, generator=generator)
    assert _predicted(None, 420).gaussian_confidence() is None
    assert Prediction((torch.ones(2, 3, 10, 14),), (), sure).gaussian_confidence() is None
    for count in (0, 2, 300, 421):  # some were left out, or added
        with pytest.raises(UserError, match=f"{count} Gaussians of 3 views of 10x14 pixels"):
            _predicted(sure, count).gaussian_confidence()

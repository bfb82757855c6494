"""The world of a model beside that of the scenes: there, back, and as if it had been the same."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pmsplat
from pmsplat.errors import UserError
from pmsplat.geometry import gaussian, se3
from pmsplat.render import rasterize
from pmsplat.types import Batch, Bundle, Cameras, Gaussians, Pointmap, Prediction, Views
from pmsplat.zoo.compile import _tensors
from pmsplat.zoo.infer import Frame, fill_range, middle_depth, model_frame, reconstruct
from tests.models.stepped import STEP, stepped
from tests.models.tiny import shaken, tiny, views
from tests.scenes import random_cameras, random_gaussians


def random_motion(generator: torch.Generator, batch: int = 1) -> Tensor:
    """Turns by any angle, and moves, each scene on its own."""
    quats = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    place = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return se3.compose(gaussian.quat_to_rotation(quats), place)


def assert_close(found: Bundle, expected: Bundle, atol: float = 2e-5) -> None:
    """All tensors; quaternions up to their sign."""
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        if one.shape[-1] == 4 and one.ndim == 3:
            other = torch.where((one * other).sum(-1, keepdim=True) < 0, -other, other)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


def scene(views: Views, number: int) -> Views:
    return views.map(lambda tensor: tensor[number : number + 1])


def test_a_prediction_turns_with_its_scene(generator: torch.Generator) -> None:
    """Each scene of a batch by a motion of its own; against the similarity of a single scene."""
    model, given = stepped(generator), views(generator, 3, (8, 12), batch=2)
    motion = random_motion(generator, 2)
    found = pmsplat.infer(model, given)
    turned = pmsplat.infer(model, given.moved(motion))
    torch.testing.assert_close(turned.depths[-1], found.depths[-1], rtol=1e-5, atol=1e-5)
    for i in range(2):
        expected = found.gaussians[-1].map(lambda tensor, i=i: tensor[i : i + 1])
        ours = turned.gaussians[-1].map(lambda tensor, i=i: tensor[i : i + 1])
        assert_close(ours, expected.transformed(motion[i]))
        assert_close(pmsplat.infer(model, scene(given, i)).gaussians[-1], expected)
    # Without its frame it does not
    model.frame = "given"
    still = pmsplat.infer(model, given.moved(motion)).gaussians[-1]
    torch.testing.assert_close(still.means, pmsplat.infer(model, given).gaussians[-1].means)


def test_resplat_turns_with_its_scene(generator: torch.Generator) -> None:
    """The real one, whose update depends on the world that it is shown."""
    model = shaken(tiny("resplat", steps=2, scale_max=0.3))
    given, motion = views(generator, 3), random_motion(generator)
    found = pmsplat.infer(model, given).gaussians[-1].transformed(motion[0])
    turned = pmsplat.infer(model, given.moved(motion)).gaussians[-1]
    with torch.no_grad():
        plain = model(given.moved(motion)).gaussians[-1]
    for name in ("means", "scales", "opacities", "sh"):
        ours, wanted = getattr(turned, name), getattr(found, name)
        assert (ours - wanted).abs().mean() < 1e-4 * wanted.std()
    assert (plain.sh - found.sh).abs().mean() > 0.05 * found.sh.std()


@pytest.mark.parametrize(("count", "middle"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_the_model_sees_its_middle_view_at_the_origin(
    count: int, middle: int, generator: torch.Generator
) -> None:
    model, given = stepped(generator, near=None), views(generator, count, (8, 12), batch=2)
    pmsplat.infer(model, given)
    (seen,) = model.seen
    inverse = torch.linalg.inv(given.cameras.c2w.double()[:, middle : middle + 1])
    wanted = (inverse @ given.cameras.c2w.double()).float()
    torch.testing.assert_close(seen.cameras.c2w, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.cameras.c2w[:, middle], torch.eye(4).expand(2, 4, 4))
    assert torch.equal(seen.cameras.near, given.cameras.near)


def test_there_and_back(generator: torch.Generator) -> None:
    """Everything that knows the world, in float64 to its last digits."""

    def noise(*shape: int) -> Tensor:
        return torch.rand(2, 3, *shape, generator=generator, dtype=torch.float64)

    motion, factor = random_motion(generator, 2), torch.tensor([0.3, 7.0], dtype=torch.float64)
    frame = Frame(factor, motion)
    gaussians = random_gaussians(20, generator, 2, 3, torch.float64)
    prediction = Prediction((noise(2, 4), noise(2, 4)), (gaussians,))
    again = frame.to_scene(prediction.moved(motion).scaled(factor))
    assert_close(again, prediction, atol=1e-12)

    cameras = random_cameras(3, generator, 2, torch.float64)
    pointmap = Pointmap(noise(2, 4, 3), noise(2, 4))
    given = Views(noise(3, 2, 4), cameras, noise(2, 4), pointmap)
    batch = Batch(given, given.at([2, 0]), ["a", "b"])
    seen = frame.to_model(batch)
    again = seen.scaled(1 / factor).moved(se3.invert(motion))
    assert_close(again, batch, atol=1e-12)

    # Points went where the cameras went.
    points = [in_cameras(views) for views in (given, seen.context)]
    torch.testing.assert_close(points[0] * factor[:, None, None, None], points[1])


def in_cameras(views: Views) -> Tensor:
    """The points of a pointmap in the axes of the cameras."""
    assert views.pointmap is not None
    return se3.transform(se3.invert(views.cameras.c2w), views.pointmap.points.flatten(2, 3))


def test_the_picture_is_the_same_in_both_worlds(generator: torch.Generator) -> None:
    """Harmonics included: drawn in the world of the model, and brought back and drawn there."""
    cameras, gaussians = random_cameras(2, generator, 2), random_gaussians(40, generator, 2, 3)
    motion, factor = random_motion(generator, 2), torch.tensor([2.0, 0.5])
    frame = Frame(factor, motion)
    seen = frame.to_model(cameras)
    placed = gaussians.moved(motion).scaled(factor)
    there = frame.to_scene(rasterize(placed, seen, (24, 32), "reference"))
    here = rasterize(gaussians, cameras, (24, 32), "reference")
    assert here.alpha.max() > 0.5
    torch.testing.assert_close(there.color, here.color, rtol=0, atol=1e-3)
    torch.testing.assert_close(there.depth, here.depth, rtol=1e-3, atol=1e-3)
    assert (placed.sh - gaussians.sh).abs().max() > 0.1


def test_a_model_that_wants_nothing_gets_what_is_given(generator: torch.Generator) -> None:
    given = views(generator, batch=2)
    frame = model_frame(tiny(near=None), given.cameras)
    assert frame.to_model(given) is given and frame.find_range(given.cameras) is given.cameras
    prediction = Prediction((given.images[:, :, 0],), ())
    assert frame.to_scene(prediction) is prediction
    frame = model_frame(tiny(near=2.0), given.cameras)
    assert frame.motion is None and frame.searched is None
    assert torch.equal(frame.to_model(given).cameras.near, torch.full((2, 2), 2.0))
    assert torch.equal(frame.to_model(given).cameras.c2w, given.scaled(4.0).cameras.c2w)
    assert model_frame(tiny(near=2.0), given.cameras, scale=False) == Frame()


def with_range(cameras: Cameras, near: float, far: float) -> Cameras:
    return cameras.with_range(near, far)


@pytest.mark.parametrize("unit", [1000.0, 9e-6, 1.0])  # millimetres, degrees of latitude, metres
def test_the_unit_of_a_scene_does_not_matter(unit: float, generator: torch.Generator) -> None:
    model, given = stepped(generator), views(generator, 3, (8, 12))
    given = replace(given, cameras=with_range(given.cameras, 1.0, 9.0))
    found = reconstruct(model, replace(given, cameras=given.cameras.scaled(unit)))
    assert found.scale == pytest.approx(5 / 3 / unit)
    (seen,) = model.seen
    assert (seen.cameras.near == 0.01).all() and (seen.cameras.far == 200).all()
    expected = pmsplat.infer(model, given)
    assert_close(found.prediction.scaled(1 / unit), expected)


def test_a_range_of_the_model_says_that_the_scene_is_in_its_unit(
    generator: torch.Generator,
) -> None:
    model, given = stepped(generator), random_cameras(3, generator, 2)
    own = given.with_range(0.01, 200.0)
    factor = model_frame(model, own).factor
    assert factor is not None and torch.equal(factor, torch.ones(2))
    factor = model_frame(model, own.scaled(torch.tensor([4.0, 0.5]))).factor
    torch.testing.assert_close(factor, torch.tensor([0.25, 2.0]))
    # What `fill_range` finds is such a range: in one unit for all, whatever some of them see
    far = torch.tensor([2.0, 4.0, 8.0])
    varied = replace(given, near=torch.ones(2, 3), far=far.expand(2, 3))
    filled = fill_range(model, varied, [0, 2])
    wanted = 5 / (2 * 8) ** 0.25
    torch.testing.assert_close(filled.near, torch.full((2, 3), 0.01 / wanted))
    torch.testing.assert_close(filled.far, torch.full((2, 3), 200 / wanted))
    torch.testing.assert_close(model_frame(model, filled.at([1])).factor, torch.full((2,), wanted))
    # A scene without a range is in the unit of the model
    filled = fill_range(model, varied, [0, 1], ranged=False)
    assert (filled.near == 0.01).all() and (filled.far == 200).all()


def test_models_without_a_range_of_their_own_go_by_near(generator: torch.Generator) -> None:
    cameras = random_cameras(3, generator)
    assert middle_depth(tiny(), cameras) is None
    assert fill_range(tiny(), cameras, [0, 1]) is cameras
    filled = fill_range(tiny(near=2.0), cameras, [0, 1], ranged=False)
    assert (filled.near == 2).all() and filled.far is cameras.far
    model = stepped(generator, typical_depth=None)
    torch.testing.assert_close(model_frame(model, cameras).factor, torch.tensor([0.02]))
    assert middle_depth(model, cameras) is None
    assert middle_depth(stepped(generator), cameras) == pytest.approx(0.5 * 200**0.5)


def test_steps(generator: torch.Generator) -> None:
    model, given = stepped(generator, near=None, frame="given"), views(generator, 2, (8, 12))
    start = model.gaussians.means
    for encoder in (model, pmsplat.compile(model)):
        for steps, taken in ((None, 2), (0, 0), (5, 5)):
            found = pmsplat.infer(encoder, given, steps).gaussians[-1].means
            torch.testing.assert_close(found[..., 0], start[..., 0] + STEP * taken)
    levels = pmsplat.compile(model)(given, 3, all_levels=True).gaussians
    assert len(levels) == 4 and isinstance(levels[0], Gaussians)
    with pytest.raises(UserError, match="`steps=-1`; wanted a whole number from 0"):
        pmsplat.infer(model, given, -1)
    for encoder in (tiny(), pmsplat.compile(tiny())):
        with pytest.raises(UserError, match="`steps=1` for a model that predicts in a single pass"):
            pmsplat.infer(encoder, given, 1)

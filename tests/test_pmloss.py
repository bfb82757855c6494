import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn

from pmsplat.errors import UserError
from pmsplat.losses.pointmap import pointmap_loss
from pmsplat.pmloss import PointmapLoss
from pmsplat.types import Pointmap, Views
from tests.foundation.teachers.scene import known_views, world_points

TURN = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])


class Stand(nn.Module):
    """A teacher that is a module with weights: the points it was told, in another frame."""

    name, revision = "stand", "1"

    def __init__(self, points: Tensor, posed: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.points, self.posed = points, posed

    def forward(self, views: Views) -> Pointmap:
        self.seen = views
        self.graph = torch.is_grad_enabled()
        points, weight = self.points.to(views.images), self.weight.to(views.images)
        return Pointmap(
            0.3 * weight * points @ TURN.to(points).T + 1, torch.ones_like(points[..., 0])
        )


@pytest.fixture
def views(generator: torch.Generator) -> Views:
    return known_views(14, 28, generator, views=2)


@pytest.fixture
def points(views: Views, generator: torch.Generator) -> Tensor:
    exact = world_points(views).flatten(1, 3)
    return exact + 0.05 * torch.randn(exact.shape, generator=generator)


def test_a_perfect_prediction_costs_nothing(views: Views) -> None:
    exact = world_points(views)
    loss = PointmapLoss(Stand(exact))(exact.flatten(1, 3), views.images)
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-9, rtol=0)


def test_the_published_call_is_the_published_loss(views: Views, points: Tensor) -> None:
    """Its keywords; Umeyama with an SVD and every nearest neighbour, in float64."""
    taught = world_points(views)
    criterion = PointmapLoss(Stand(taught), "cpu")
    found = criterion(
        predict_points=points, context_images=views.images, loss_mode="3d", ignore_large_loss=100.0
    )
    for scene in range(2):
        source = (0.3 * taught[scene].flatten(0, 2) @ TURN.T + 1).double().numpy()
        target = points[scene].double().numpy()
        x, y = source - source.mean(0), target - target.mean(0)
        u, s, vt = np.linalg.svd(y.T @ x / len(x))
        assert np.linalg.det(u) * np.linalg.det(vt) > 0
        scale = s.sum() / x.var(0).sum()
        aligned = scale * x @ (u @ vt).T + target.mean(0)
        expected = (KDTree(aligned).query(target)[0] ** 2).mean()
        assert found[scene].item() == pytest.approx(expected, rel=1e-4)
    far = criterion(100 * points, views.images)
    torch.testing.assert_close(
        criterion(100 * points, views.images, ignore_large_loss=far.min().item() / 2),
        1e-5 * far,
    )


def test_gradients_reach_the_points_and_nothing_of_the_teacher_leaks(
    views: Views, points: Tensor
) -> None:
    """A trainer that keeps the loss neither saves nor trains nor moves the teacher."""
    teacher = Stand(world_points(views))
    trainer = nn.Module()
    trainer.criterion = PointmapLoss(teacher)
    assert not [*trainer.parameters()] and not trainer.state_dict()
    assert trainer.double().train() and teacher.weight.dtype == torch.float32
    guess = points.clone().requires_grad_()
    images = views.images.clone().requires_grad_()
    trainer.criterion(guess, images).sum().backward()
    assert guess.grad is not None and guess.grad.abs().sum() > 0
    assert images.grad is None and teacher.weight.grad is None and not teacher.graph

    class Insistent(Stand):
        def forward(self, views: Views) -> Pointmap:
            with torch.enable_grad():
                return super().forward(views)

    teacher = Insistent(world_points(views))
    PointmapLoss(teacher)(guess, images).sum().backward()
    assert teacher.graph and teacher.weight.grad is None


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_precisions(kind: torch.dtype, views: Views, points: Tensor) -> None:
    criterion = PointmapLoss(Stand(world_points(views)))
    found = criterion(points.to(kind), views.images.to(kind))
    expected = criterion(points.to(kind).double(), views.images)
    assert found.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert criterion.teacher.seen.images.dtype == torch.float32  # pyright: ignore


def test_options_are_those_of_the_function(views: Views, points: Tensor) -> None:
    teacher = Stand(world_points(views), posed=True)
    options = {"robust": 2, "detach": True, "trim": 0.1}
    answer = teacher(views)
    found = PointmapLoss(teacher, confidence=True, **options)(
        points, views.images, cameras=views.cameras
    )
    assert torch.equal(teacher.seen.cameras.c2w, views.cameras.c2w)
    expected = pointmap_loss(
        points, answer.points.flatten(1, 3), answer.confidence.flatten(1), **options
    )
    torch.testing.assert_close(found, expected)


def test_scale_alignment_takes_the_cameras(views: Views) -> None:
    """Depth along the rays, half as long: one scale about the camera centres mends it."""

    exact = world_points(views)

    @dataclass
    class Halved:
        name, revision, posed = "halved", "1", True

        def __call__(self, views: Views) -> Pointmap:
            centres = views.cameras.c2w[:, :, None, None, :3, 3]
            short = centres + 0.5 * (exact - centres)
            return Pointmap(short, torch.ones_like(short[..., 0]))

    told = exact.flatten(1, 3)
    by_scale = PointmapLoss(Halved(), alignment="scale")(told, views.images, cameras=views.cameras)
    torch.testing.assert_close(by_scale, torch.zeros(2), atol=1e-9, rtol=0)
    by_similarity = PointmapLoss(Halved())(told, views.images, cameras=views.cameras)
    assert (by_similarity > 1e-4).all()


def test_what_the_teacher_does_not_know_gets_no_pull(views: Views, points: Tensor) -> None:
    taught = world_points(views)

    class Holes(Stand):
        def forward(self, views: Views) -> Pointmap:
            answer = super().forward(views)
            known = torch.ones_like(answer.confidence)
            known[:, :, :5] = 0
            return Pointmap(torch.where(known[..., None] > 0, answer.points, 0), known)

    guess = points.clone().requires_grad_()
    PointmapLoss(Holes(taught))(guess, views.images).sum().backward()
    assert guess.grad is not None
    pull = guess.grad.view(*taught.shape).abs().sum(-1)
    assert not pull[:, :, :5].any() and pull[:, :, 5:].all()


def test_distrusted_pixels_and_borders_are_masked(
    views: Views, points: Tensor, generator: torch.Generator
) -> None:
    taught = world_points(views)
    trust = 0.1 + torch.rand(taught.shape[:-1], generator=generator)

    class Doubting(Stand):
        def forward(self, views: Views) -> Pointmap:
            return Pointmap(super().forward(views).points, trust)

    guess = points.clone().requires_grad_()
    PointmapLoss(Doubting(taught), distrust=0.25, border=2)(guess, views.images).sum().backward()
    assert guess.grad is not None
    pulled = guess.grad.view(*taught.shape).abs().sum(-1) > 0
    for scene in range(2):
        lowest = trust[scene].flatten().sort().values[trust[scene].numel() // 4]
        inside = torch.zeros_like(pulled[scene])
        inside[:, 2:-2, 2:-2] = True
        assert torch.equal(pulled[scene], inside & (trust[scene] >= lowest))


def test_a_teacher_by_name_and_the_published_name_of_the_argument(
    views: Views, points: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("somebodys.teacher")

    @dataclass
    class Config:
        factor: float = 1.0

    exact = world_points(views)
    monkeypatch.setattr(module, "Config", Config, raising=False)
    monkeypatch.setattr(module, "build", lambda cfg: Stand(cfg.factor * exact), raising=False)
    monkeypatch.setitem(sys.modules, "somebodys", ModuleType("somebodys"))
    monkeypatch.setitem(sys.modules, "somebodys.teacher", module)
    named = PointmapLoss(model="somebodys.teacher", device="cpu", settings={"factor": 2.0})
    expected = PointmapLoss(Stand(exact))(points, views.images)
    torch.testing.assert_close(named(points, views.images), expected, rtol=1e-4, atol=1e-7)


def test_bad_calls_are_told(views: Views, points: Tensor) -> None:
    criterion = PointmapLoss(Stand(world_points(views)))
    with pytest.raises(UserError, match=r"wanted 2 × 784 × 3, one point for each pixel"):
        criterion(points[:, :-1], views.images)
    with pytest.raises(UserError, match="loss_mode '2d'; wanted '3d'"):
        criterion(points, views.images, loss_mode="2d")
    with pytest.raises(UserError, match="the teacher 'given' with alignment 'similarity' and no c"):
        PointmapLoss("given")(points, views.images)
    with pytest.raises(UserError, match="alignment='affine'; wanted one of similarity, scale"):
        PointmapLoss(Stand(views.images), alignment="affine")
    with pytest.raises(UserError, match=r"trim=2\.0; wanted a share"):
        PointmapLoss(Stand(views.images), trim=2.0)
    with pytest.raises(UserError, match="border=-1"):
        PointmapLoss(Stand(views.images), border=-1)
    with pytest.raises(TypeError, match="'trimm'"):
        PointmapLoss(Stand(views.images), trimm=0.1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(UserError, match=r"clip=0\.0; wanted a number above 0"):
        criterion(points, views.images, ignore_large_loss=0.0)
    with pytest.raises(UserError, match=r"images of shape \(2, 3, 14, 28\); wanted \[batch, view"):
        inspect.unwrap(PointmapLoss.forward)(criterion, points, views.images[:, 0])
    with pytest.raises(UserError, match=r"border=7 of a pointmap loss on images of 14x28"):
        PointmapLoss(Stand(world_points(views)), border=7)(points, views.images)
    with pytest.raises(UserError, match="device 'gpu'; wanted 'cpu', 'cuda'"):
        PointmapLoss("given", "gpu")
    with pytest.raises(UserError, match=r"there is no 'vgt' in foundation\.teachers"):
        PointmapLoss("vgt")


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device 'cuda:0' where torch sees no CUDA device"):
        PointmapLoss("given", "cuda:0")


def test_what_is_no_teacher_is_told(views: Views, points: Tensor) -> None:
    construct: Any = inspect.unwrap(PointmapLoss.__init__)
    for what, kind in ((lambda views: None, "function"), (3, "int")):
        with pytest.raises(UserError, match=f"a teacher of type {kind} without `name`; wanted"):
            construct(PointmapLoss.__new__(PointmapLoss), what)

    class Whole:
        name, revision, posed = "whole", "1", False

        def __call__(self, views: Views) -> None: ...

    for part in ("name", "revision", "posed", "__call__"):
        body = {k: v for k, v in vars(Whole).items() if k != part and k != "__dict__"}
        with pytest.raises(UserError) as caught:
            construct(PointmapLoss.__new__(PointmapLoss), type("Partly", (), body)())
        assert caught.value.got == f"a teacher of type Partly without `{part}`"

    class Other(Stand):
        def forward(self, views: Views) -> Any:
            return super().forward(views).points

    class Small(Stand):
        def forward(self, views: Views) -> Pointmap:
            answer = super().forward(views)
            return Pointmap(answer.points[:, :, ::2], answer.confidence[:, :, ::2])

    with pytest.raises(UserError, match="a value of type Tensor from the teacher 'stand'"):
        PointmapLoss(Other(world_points(views)))(points, views.images)
    with pytest.raises(UserError, match=r"points of shape \(2, 2, 7, 28, 3\) from the teacher"):
        PointmapLoss(Small(world_points(views)))(points, views.images)


@pytest.mark.cuda
def test_the_teacher_answers_where_it_is_told_to(views: Views, points: Tensor) -> None:
    teacher = Stand(world_points(views).cuda())
    found = PointmapLoss(teacher, "cuda")(points, views.images)
    assert teacher.seen.images.is_cuda and not found.is_cuda
    on_device = PointmapLoss(teacher)(points.cuda(), views.images.cuda())
    torch.testing.assert_close(found, on_device.cpu(), rtol=1e-4, atol=1e-6)

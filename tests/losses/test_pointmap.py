"""PM-Loss against numpy in float64, its invariances, its options, and teachers that say nothing."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.pointmap import surface
from scipy.spatial import KDTree
from torch import Tensor

from pmsplat import registry
from pmsplat.contracts import Partial
from pmsplat.errors import UserError
from pmsplat.geometry import align, camera, gaussian, se3
from pmsplat.losses import Term, total
from pmsplat.losses.pointmap import pointmap_loss, trusted_pixels
from pmsplat.types import Pointmap, StepOutput
from tests.scenes import random_gaussians

from .test_depth import depth_only, random_depths
from .test_photometric import a_step


def pair(
    generator: torch.Generator, batch: int = 2, n: int = 60, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """A prediction, and the same surface under another similarity and with noise."""
    points = torch.randn(batch, n, 3, generator=generator, dtype=torch.float64)
    shaken = points + noise * torch.randn(batch, n, 3, generator=generator, dtype=torch.float64)
    return points, se3.transform(similarity(generator, batch), shaken)


def similarity(generator: torch.Generator, batch: int) -> Tensor:
    quats = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    shift = 3 * torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return se3.compose(2.5 * gaussian.quat_to_rotation(quats), shift)


def published(points: np.ndarray, pointmap: np.ndarray) -> float:
    """One sample as the paper and its code have it, from textbooks: Umeyama by SVD, then a tree."""
    mean_p, mean_q = points.mean(0), pointmap.mean(0)
    p, q = points - mean_p, pointmap - mean_q
    u, d, vt = np.linalg.svd(p.T @ q / len(p))
    s = np.diag([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation, scale = u @ s @ vt, np.trace(np.diag(d) @ s) / (q**2).sum(1).mean()
    aligned = scale * q @ rotation.T + mean_p
    loss = (KDTree(aligned).query(points)[0] ** 2).mean()
    return float(loss * 1e-5 if loss > 100 else loss)


def test_the_default_is_the_published_loss(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, batch=3)
    points[2] *= 300  # far above the clip
    want = [published(p.numpy(), q.numpy()) for p, q in zip(points, pointmap, strict=True)]
    values = pointmap_loss(points, pointmap)
    assert values.tolist() == pytest.approx(want, rel=1e-10)
    assert want[2] * 1e5 > 100 and want[0] > 1e-3
    single = pointmap_loss(points.float(), pointmap.float())
    assert single.dtype == torch.float32 and single.tolist() == pytest.approx(want, rel=1e-4)


def test_its_gradient_is_that_of_finite_differences_of_the_published_loss(
    generator: torch.Generator,
) -> None:
    points, pointmap = pair(generator, batch=1, n=12)
    ours = torch.autograd.grad(pointmap_loss(points.requires_grad_(), pointmap).sum(), points)[0]
    p, q, step = points.detach()[0].numpy(), pointmap[0].numpy(), 1e-6
    for i in np.ndindex(p.shape):
        ahead, behind = p.copy(), p.copy()
        ahead[i] += step
        behind[i] -= step
        slope = (published(ahead, q) - published(behind, q)) / (2 * step)
        assert ours[0][i].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"trim": 0.3}, {"detach": True}, {"centers": True, "confidence": True}]
)
def test_gradients(generator: torch.Generator, options: dict, flat: bool) -> None:
    points, pointmap = pair(generator, n=8, noise=0.3)
    if flat:  # one singular value is zero
        points[..., 2], pointmap[..., 1] = 1.0, 2.0
    given = dict(options)
    if given.get("centers"):
        points, pointmap = points + 4, points + 4.5 + 0.1 * pointmap
        given["centers"] = torch.rand(2, 2, 3, generator=generator, dtype=torch.float64)
        given["confidence"] = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    inputs = points.requires_grad_(), pointmap.requires_grad_()
    if given.get("detach"):  # the value moves with the alignment, the gradient does not
        value = pointmap_loss(*inputs, **given).sum()
        through = torch.autograd.grad(pointmap_loss(*inputs).sum(), points)[0]
        gradient = torch.autograd.grad(value, points)[0]
        assert value.item() == pytest.approx(pointmap_loss(*inputs).sum().item())
        assert gradient.isfinite().all() and (gradient - through).norm() > 0.01 * through.norm()
        return
    assert torch.autograd.gradcheck(lambda p, q: pointmap_loss(p, q, **given), inputs)


def test_detached_it_pulls_each_point_to_its_neighbour(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, batch=1)
    value = pointmap_loss(points.requires_grad_(), pointmap, detach=True)
    gradient = torch.autograd.grad(value.sum(), points)[0]
    aligned = se3.transform(align.umeyama(pointmap, points.detach()), pointmap)
    landed = points.detach() - gradient * points.shape[1] / 2  # of the mean of squares
    assert torch.cdist(landed, aligned).amin(dim=-1).max() < 1e-6
    assert torch.cdist(points.detach(), aligned).amin(dim=-1).max() > 1e-2


def test_equal_singular_values_have_a_gradient(generator: torch.Generator) -> None:
    """On the corners of a cube the SVD's gradient divides by zero; the loss's is right."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    u, _, vh = torch.linalg.svd((corners.T @ corners.requires_grad_()) / 8)
    assert not torch.autograd.grad((u @ vh).square()[0].sum(), corners)[0].isfinite().all()
    cube = corners.detach()[None].requires_grad_()
    teacher = cube.detach() @ gaussian.quat_to_rotation(torch.tensor([0.9, 0.1, 0.3, 0.2])).double()
    teacher[0, 0] *= 1 + 1e-9
    assert torch.autograd.gradcheck(lambda p: pointmap_loss(p, teacher), cube)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("options", [{}, {"robust": 5, "trim": 0.1}])
def test_a_turned_scaled_and_moved_teacher_says_the_same(
    generator: torch.Generator, dtype: torch.dtype, tolerance: float, options: dict
) -> None:
    points, pointmap = pair(generator, n=500)
    moved = se3.transform(similarity(generator, 2), pointmap)
    one = pointmap_loss(points.to(dtype), pointmap.to(dtype), **options)
    other = pointmap_loss(points.to(dtype), moved.to(dtype), **options)
    assert one.tolist() == pytest.approx(other.tolist(), abs=tolerance, rel=tolerance)


def test_a_perfect_teacher_costs_nothing(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, noise=0.0)
    value = pointmap_loss(points.requires_grad_(), pointmap)
    value.sum().backward()
    assert value.max() < 1e-26
    assert points.grad is not None and points.grad.abs().max() < 1e-12


def test_it_is_zero_on_the_surface_even_between_wrong_pixels(generator: torch.Generator) -> None:
    """Chamfer in one direction: the order of the points matters to the alignment alone."""
    points, _ = pair(generator, batch=1)
    swapped = points.clone()
    swapped[0, [3, 7]] = swapped[0, [7, 3]]
    assert pointmap_loss(points, swapped).item() > 1e-6
    assert pointmap_loss(points, swapped, robust=20).item() < 1e-20


def test_confidence_weighs_like_repetition(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, batch=1, n=6)
    repeats = torch.tensor([1, 2, 3, 0, 1, 4])
    often = [t.repeat_interleave(repeats, 1) for t in (points, pointmap)]
    weighed = pointmap_loss(points, pointmap, confidence=repeats[None].double())
    assert weighed.item() == pytest.approx(pointmap_loss(*often).item(), rel=1e-10)
    tripled = pointmap_loss(points, pointmap, confidence=3 * repeats[None].double())
    assert weighed.item() == pytest.approx(tripled.item(), rel=1e-10)


def test_masked_pixels_are_nowhere(generator: torch.Generator) -> None:
    points, pointmap = pair(generator)
    mask = torch.rand(2, 60, generator=generator) < 0.7
    wild = points.clone()
    wild[~mask] += 5
    holes = pointmap.clone()
    holes[~mask] = torch.nan
    value = pointmap_loss(wild.requires_grad_(), holes, mask=mask)
    value.sum().backward()
    for i in range(2):
        alone = pointmap_loss(points[i : i + 1, mask[i]], pointmap[i : i + 1, mask[i]])
        assert value[i].item() == pytest.approx(alone.item(), rel=1e-10)
    assert wild.grad is not None
    assert not wild.grad[~mask].any() and wild.grad[mask].any(dim=-1).all()
    known = torch.where(mask, 1.0, 0.0)
    assert torch.equal(pointmap_loss(wild, holes, confidence=known), value)


def test_robust_alignment_is_not_tilted_by_outliers(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, n=300, noise=0.0)
    wrong = pointmap.clone()
    wrong[:, ::3] += 8 * torch.rand(2, 100, 3, generator=generator, dtype=torch.float64)
    plain = pointmap_loss(points, wrong)
    robust = pointmap_loss(points, wrong, robust=30, trim=0.34)
    assert (plain > 1e-2).all() and (robust < 1e-12).all()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("how", ["10 times as far", "a band 3 times as far", "10 units aside"])
def test_twenty_rounds_withstand_gross_outliers(
    generator: torch.Generator, how: str, share: float
) -> None:
    """A wavy wall and a teacher that is perfect but for wrong pixels, which are not to be judged:
    then nothing is left, where the plain loss is far from nothing."""
    points = surface(32, 32)
    wrong = torch.rand(points.shape[:-1], generator=generator) < share
    if how == "a band 3 times as far":
        wrong = (torch.arange(32) < 32 * share)[:, None].expand_as(wrong)
    far = {
        "10 times as far": 10 * points,
        "a band 3 times as far": 3 * points,
        "10 units aside": points + 10 * torch.randn(points.shape, generator=generator),
    }[how]
    teacher = 0.3 * torch.where(wrong[..., None], far, points) - 2
    assert pointmap_loss(points, teacher).item() > 0.1
    leave: dict[str, Any] = {"trim": wrong.float().mean().item() + 0.01}
    assert pointmap_loss(points, teacher, robust=20, **leave).item() < 1e-9
    if how != "a band 3 times as far":  # whose prediction has no surface near it
        assert pointmap_loss(points, teacher, robust=20).item() < 0.02
    eye = points.mean(dim=(2, 3)) - torch.tensor([0, 0, 4.0])
    along = eye[:, :, None, None] + 0.3 * torch.where(wrong[..., None], 3.0, 1.0) * (
        points - eye[:, :, None, None]
    )
    scaled = pointmap_loss(points, along, robust=20, centers=eye, **leave)
    assert scaled.item() < 1e-9 < pointmap_loss(points, along, centers=eye, **leave).item()


def test_trimming_drops_the_farthest(generator: torch.Generator) -> None:
    points, _ = pair(generator, batch=1, n=50)
    pointmap = 0.4 * points + 0.1 * torch.rand(1, 50, 3, generator=generator, dtype=torch.float64)
    points[0, :5] += 40 * torch.rand(5, 3, generator=generator, dtype=torch.float64)
    centers = torch.zeros(1, 1, 3)  # an alignment that is the same with and without trimming
    apart = points[0, :, None] - pointmap_scaled(points, pointmap)[0]
    nearest = apart.square().sum(-1).amin(-1).sort().values
    for trim, kept in ((0.0, 50), (0.1, 45), (0.5, 25)):
        value = pointmap_loss(points, pointmap, trim=trim, centers=centers, clip=None)
        assert value.item() == pytest.approx(nearest[:kept].mean().item(), rel=1e-9)


def pointmap_scaled(points: Tensor, pointmap: Tensor) -> Tensor:
    """The least-squares scale about the origin, applied."""
    return pointmap * ((points * pointmap).sum() / pointmap.square().sum())


def test_the_clip_can_be_moved_and_left_out(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, batch=1)
    value = pointmap_loss(points, pointmap, clip=None).item()
    assert pointmap_loss(points, pointmap, clip=value * 0.9).item() == pytest.approx(1e-5 * value)
    assert pointmap_loss(points, pointmap, clip=value * 1.1).item() == pytest.approx(value)


def test_depth_along_known_poses_wants_one_scale(generator: torch.Generator) -> None:
    depth, _ = random_depths(generator)
    views = depth_only(depth, None).batch.context.cameras
    c2w = views.c2w.double()
    world = camera.unproject_depth(depth.detach(), c2w, views.K.double())
    taught = camera.unproject_depth(depth.detach() / 3.5, c2w, views.K.double())
    centers = c2w[..., :3, 3]
    assert pointmap_loss(world, taught, centers=centers).item() < 1e-24
    about_the_origin = pointmap_loss(world, taught, centers=torch.zeros_like(centers))
    assert about_the_origin.item() > 1e-4  # several cameras: no scale about one point will do
    turn = gaussian.quat_to_rotation(torch.tensor([1.0, 0.1, 0.0, 0.0]).double())
    turned = taught @ turn.T
    assert pointmap_loss(world, turned, centers=centers).item() > 1e-4  # which poses forbid
    with pytest.raises(UserError, match=r"centers of shape \(1, 5, 3\) for 98 points"):
        pointmap_loss(world, taught, centers=torch.zeros(1, 5, 3))


def spoiled(generator: torch.Generator) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ways to make the first sample's alignment undefined."""
    line = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    direction = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    return {
        "nan": lambda p, q: q[0, 7].fill_(torch.nan),
        "infinite": lambda p, q: q[0, 7].fill_(torch.inf),
        "constant": lambda p, q: q[0].fill_(2.3),
        "collinear": lambda p, q: q[0].copy_(line * direction + 1),
        "all predicted in one place": lambda p, q: p[0].fill_(0.7),
        "predicted on a line": lambda p, q: p[0].copy_(line * direction),
        "predicted nan": lambda p, q: p[0, 3].fill_(torch.nan),
        "too far": lambda p, q: p[0, 3].fill_(1e30),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", list(spoiled(torch.Generator())))
@pytest.mark.parametrize("options", [{}, {"robust": 3, "trim": 0.2}])
def test_a_sample_without_alignment_counts_nothing(
    generator: torch.Generator, how: str, dtype: torch.dtype, options: dict
) -> None:
    points, pointmap = (tensor.to(dtype) for tensor in pair(generator))
    want = pointmap_loss(points, pointmap, **options)
    spoiled(generator)[how](points, pointmap)
    points.requires_grad_()
    pointmap.requires_grad_()
    value = pointmap_loss(points, pointmap, **options)
    value.sum().backward()
    assert value[0].item() == 0 and value[1].item() == pytest.approx(want[1].item(), rel=1e-6)
    for given in (points, pointmap):
        assert given.grad is not None and given.grad.isfinite().all()
        assert not given.grad[0].any() and given.grad[1].any()


def test_no_pixel_and_two_pixels_are_no_alignment(generator: torch.Generator) -> None:
    points, pointmap = pair(generator)
    mask = torch.zeros(2, 60, dtype=torch.bool)
    mask[1, :2] = True
    value = pointmap_loss(points.requires_grad_(), pointmap, mask=mask)
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert points.grad is not None and not points.grad.any()


def test_maps_and_lists_are_the_same(generator: torch.Generator) -> None:
    points, pointmap = pair(generator, n=2 * 5 * 6)
    flat = pointmap_loss(points, pointmap)
    maps = [tensor.reshape(2, 2, 5, 6, 3) for tensor in (points, pointmap)]
    assert pointmap_loss(maps[0], maps[1]).tolist() == pytest.approx(flat.tolist())
    gridded = pointmap_loss(points, pointmap, grid=(5, 6))
    assert gridded.tolist() == pytest.approx(flat.tolist())
    mask = torch.rand(2, 2, 5, 6, generator=generator) < 0.6
    listed = pointmap_loss(points, pointmap, mask=mask.flatten(1))
    assert pointmap_loss(maps[0], maps[1], mask=mask).tolist() == pytest.approx(listed.tolist())
    half = pointmap_loss(points.bfloat16(), pointmap.float())
    assert half.dtype == torch.float32 and half.tolist() == pytest.approx(flat.tolist(), rel=0.05)


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        (((2, 4, 3), (2, 5, 3)), {}, r"pointmap of shape \(2, 5, 3\); wanted .*\(2, 4, 3\)"),
        (((2, 4, 3), (2, 4, 3)), {"mask": torch.ones(2, 3).bool()}, r"mask of shape \(2, 3\)"),
        (((2, 4, 3), (2, 4, 3)), {"confidence": torch.ones(1, 4)}, r"confidence of .* \(2, 4\)"),
        (((2, 4, 4, 3), (2, 4, 4, 3)), {}, r"points of shape .*wanted \[batch, n, 3\] or"),
        (((2, 0, 3), (2, 0, 3)), {}, r"points of shape \(2, 0, 3\)"),
        (((2, 4, 3), (2, 4, 3)), {"robust": -1}, "robust=-1"),
        (((2, 4, 3), (2, 4, 3)), {"trim": 1.0}, r"trim=1\.0"),
        (((2, 4, 3), (2, 4, 3)), {"clip": -1.0}, r"clip=-1\.0; wanted a number above 0"),
        (((2, 4, 3), (2, 4, 3)), {"clip": float("nan")}, "clip=nan"),
        (((2, 4, 3), (2, 4, 3)), {"mask": torch.ones(2, 4)}, "mask of torch.float32; .*of bool"),
        (((2, 4, 3), (2, 4, 3)), {"grid": (3, 1)}, "4 points a sample for a grid of 3 by 1"),
        (((2, 4, 3), (2, 4, 3)), {"grid": (0, 4)}, "for a grid of 0 by 4"),
        (((2, 4, 3), (2, 4, 3)), {"centers": torch.ones(2, 3)}, r"centers of shape \(2, 3\)"),
        (((2, 4, 3), (2, 4, 3)), {"centers": torch.ones(2, 2, 4)}, r"centers .*\(2, 2, 4\)"),
        (((2, 4, 3), (2, 4, 3)), {"centers": torch.ones(2, 0, 3)}, r"centers .*\(2, 0, 3\)"),
    ],
)
def test_what_does_not_fit_is_told(shapes: tuple, options: dict, words: str) -> None:
    one, other = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(UserError, match=words):
        inspect.unwrap(pointmap_loss)(one, other, **options)  # past the check of shapes


def test_wrong_types_are_told() -> None:
    """In a process of its own, without the checks of types that these tests run under."""
    script = """if True:
        import numpy as np, torch
        from pmsplat import UserError, registry
        from pmsplat.losses.pointmap import pointmap_loss, trusted_pixels

        def told(call):
            try:
                call()
            except UserError as error:
                print(error)

        x = torch.randn(2, 4, 3)
        for options in (
            {"pointmap": np.zeros((2, 4, 3))}, {"confidence": np.ones((2, 4))}, {"points": [1.0]},
            {"mask": np.ones((2, 4), bool)}, {"centers": np.ones((2, 1, 3))}, {"robust": 2.5},
            {"detach": "no"}, {"trim": None}, {"pointmap": x.to(torch.complex64)},
            {"grid": (2.5, 1)}, {"grid": (2, 2, 1)},
        ):
            told(lambda: pointmap_loss(**{"points": x, "pointmap": x, **options}))
        for options in (
            {"distrust": "0.1"}, {"border": 1.5}, {"robust": 2.5}, {"confidence": "yes"},
            {"confidence": 1}, {"clip": "100"}, {"alignment": None},
        ):
            told(lambda: registry.build("losses", "pointmap", options))
    """
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    beginnings = (
        "pointmap of ndarray; wanted a torch.Tensor", "confidence of ndarray", "points of list",
        "mask of ndarray; wanted a torch.Tensor of bool", "centers of shape ndarray",
        "robust=2.5; wanted a whole number", "detach='no'",
        "trim=None; wanted a share", "pointmap of torch.complex64",
        "4 points a sample for a grid of 2.5 by 1", "4 points a sample for a grid of 2 by 2 by 1",
        "loss.pointmap.distrust='0.1'",
        "loss.pointmap.border=1.5", "loss.pointmap.robust=2.5", "loss.pointmap.confidence='yes'",
        "loss.pointmap.confidence=1; wanted true or false", "loss.pointmap.clip='100'",
        "loss.pointmap.alignment=None",
    )  # fmt: skip
    for line, beginning in zip(ran.stdout.splitlines(), beginnings, strict=True):
        assert line.startswith(beginning)


def taught(generator: torch.Generator, holes: bool = True) -> tuple[StepOutput, Tensor]:
    """A step of a model with depth alone, its points, and a teacher with noise and two holes."""
    depth, _ = random_depths(generator)
    step = depth_only(depth, None)
    cameras = step.batch.context.cameras
    points = camera.unproject_depth(depth.detach(), cameras.c2w.double(), cameras.K.double())
    shaken = points + 0.1 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    confidence = 0.1 + torch.rand(points.shape[:-1], generator=generator, dtype=torch.float64)
    if holes:
        confidence[0, 0, 2, 3], confidence[0, 1, 4, 4] = 0, 0
        shaken[0, 0, 2, 3] = torch.nan
    context = replace(step.batch.context, pointmap=Pointmap(shaken, confidence))
    return replace(step, batch=replace(step.batch, context=context)), points


def test_the_term_is_the_loss_of_the_answer(generator: torch.Generator) -> None:
    step, points = taught(generator)
    context = step.batch.context
    assert context.pointmap is not None
    found = registry.build("losses", "pointmap")(step)
    want = pointmap_loss(points, context.pointmap.points, mask=context.pointmap.mask)
    assert isinstance(found, Partial) and found.skipped.item() == 0
    assert found.value.item() == pytest.approx(want.mean().item())
    found.value.backward()
    gradient = step.prediction.depths[-1].grad
    assert gradient is not None
    assert gradient[0, 0, 2, 3] == 0 and gradient.count_nonzero() == 96


def test_options_of_the_term(generator: torch.Generator) -> None:
    step, points = taught(generator)
    context = step.batch.context
    assert context.pointmap is not None
    pointmap, trust = context.pointmap.points, context.pointmap.confidence

    def term(**settings: object) -> float:
        return registry.build("losses", "pointmap", settings)(step).value.item()

    def function(**options: object) -> float:
        return pointmap_loss(points, pointmap, **{"mask": trust > 0, **options}).mean().item()

    assert term(confidence=True) == pytest.approx(function(confidence=trust))
    assert term(robust=4, trim=0.2) == pytest.approx(function(robust=4, trim=0.2))
    assert term(clip=1e-9) == pytest.approx(1e-5 * function())
    assert term(alignment="scale") == pytest.approx(
        function(centers=context.cameras.c2w[..., :3, 3])
    )
    inside = torch.zeros_like(trust, dtype=torch.bool)
    inside[..., 1:-1, 1:-1] = True
    assert term(border=1) == pytest.approx(function(mask=inside & (trust > 0)))
    known = trust[trust > 0].sort().values
    better = trust >= known[len(known) // 4]
    assert term(distrust=0.25) == pytest.approx(function(mask=better))
    plain = torch.autograd.grad(
        registry.build("losses", "pointmap")(step).value, step.prediction.depths[-1]
    )[0]
    detached = torch.autograd.grad(
        registry.build("losses", "pointmap", {"detach": True})(step).value,
        step.prediction.depths[-1],
    )[0]
    assert not torch.allclose(plain, detached)


def test_only_the_answer_is_taught_unless_asked(generator: torch.Generator) -> None:
    step, _ = taught(generator)
    coarse = (step.prediction.depths[0].detach() * 1.3).requires_grad_()
    depths = (coarse, *step.prediction.depths)
    step = replace(step, prediction=replace(step.prediction, depths=depths))
    alone = total(step, {"pointmap": Term(registry.build("losses", "pointmap"), 0.005)}, 0)
    assert list(alone.terms) == ["pointmap"] and list(alone.skipped) == ["pointmap"]
    alone.loss.backward()
    assert coarse.grad is None
    asked = registry.build("losses", "pointmap", {"coarse": True})
    both = total(step, {"pointmap": Term(asked, 0.005)}, 0)
    assert list(both.terms) == ["pointmap/0", "pointmap"]
    want = 0.005 * 0.9 * asked(step.up_to(0)).value
    assert both.terms["pointmap/0"].item() == pytest.approx(want.item())
    both.loss.backward()
    assert coarse.grad is not None and coarse.grad.any()


def test_samples_passed_over_are_counted(generator: torch.Generator) -> None:
    step, _ = taught(generator, holes=False)
    pointmap = step.batch.context.pointmap
    assert pointmap is not None
    pointmap.points.fill_(1.0)
    found = total(step, {"pointmap": Term(registry.build("losses", "pointmap"))}, 0)
    assert found.skipped["pointmap"].item() == 1 and found.loss.item() == 0
    found.loss.backward()
    gradient = step.prediction.depths[-1].grad
    assert gradient is not None and not gradient.any()


def test_gaussians_are_taught_where_there_is_one_for_each_pixel(
    generator: torch.Generator,
) -> None:
    step = a_step(generator, levels=1, size=5)
    points = torch.randn(1, 2, 5, 5, 3, generator=generator)
    pointmap = Pointmap(points, torch.ones(1, 2, 5, 5))
    step = replace(
        step,
        batch=replace(step.batch, context=replace(step.batch.context, pointmap=pointmap)),
    )
    loss = registry.build("losses", "pointmap")
    with pytest.raises(UserError, match=r"4 Gaussians for 2 views of 5x5.*~loss\.pointmap"):
        loss(step)
    each = random_gaussians(2 * 25, generator)
    answered = replace(step, prediction=replace(step.prediction, gaussians=(each,)))
    want = pointmap_loss(each.means, points.flatten(1, 3)).mean()
    assert loss(answered).value.item() == pytest.approx(want.item(), rel=1e-5)


def test_data_and_settings_that_do_not_fit_are_told(generator: torch.Generator) -> None:
    depth, _ = random_depths(generator)
    with pytest.raises(UserError, match=r"without a teacher's.*pmsplat teacher cache.*~loss"):
        registry.build("losses", "pointmap")(depth_only(depth, None))
    step, _ = taught(generator, holes=False)
    for border in (4, 100):  # of images of 7x7
        with pytest.raises(UserError, match=f"border={border} of .* 7x7; wanted less than half"):
            registry.build("losses", "pointmap", {"border": border})(step)
    assert registry.build("losses", "pointmap", {"border": 2})(step).skipped.item() == 0
    for settings, words in (
        ({"alignment": "affine"}, "alignment='affine'; wanted one of similarity, scale"),
        ({"distrust": 1.0}, r"distrust=1\.0"),
        ({"distrust": float("nan")}, "distrust=nan"),
        ({"border": -1}, "border=-1"),
        ({"trim": -0.1}, r"trim=-0\.1"),
        ({"robust": True}, "robust=True"),
        ({"clip": 0.0}, r"clip=0\.0; wanted a number above 0, or null"),
        ({"clip": float("nan")}, "clip=nan"),
    ):
        with pytest.raises(UserError, match=words):
            registry.build("losses", "pointmap", settings)


def test_distrust_masks_all_pixels_that_are_trusted_least() -> None:
    """A quarter of the image is sky, all of one confidence: a fifth of it is no share to choose."""
    trust = torch.rand(1, 2, 8, 10) + 1.5
    trust[:, :, :2] = 1.0
    masked = ~trusted_pixels(trust, distrust=0.2)
    assert torch.equal(masked, trust == 1)
    assert trusted_pixels(torch.ones(1, 2, 4, 5), distrust=0.2).all()  # nothing to choose by
    share = (~trusted_pixels(torch.rand(1, 2, 20, 30), distrust=0.2)).float().mean()
    assert share == pytest.approx(0.2, abs=2e-3)

from collections.abc import Callable

import pytest
import torch

from pmsplat.geometry import align, gaussian, se3
from tests.scenes import random_cameras


def similarity(generator: torch.Generator) -> torch.Tensor:
    rotation = gaussian.quat_to_rotation(torch.randn(3, 4, generator=generator).double())
    motion = se3.compose(rotation, torch.randn(3, 3, generator=generator).double())
    motion[:, :3, :3] *= torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)[:, None, None]
    return motion


def test_recovers_a_known_similarity(generator: torch.Generator) -> None:
    truth = similarity(generator)
    source = torch.randn(3, 20, 3, generator=generator).double()
    found = align.umeyama(source, se3.transform(truth, source))
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("views", [2, 5])
def test_recovers_a_known_similarity_of_cameras(views: int, generator: torch.Generator) -> None:
    """On a line too, where centers alone leave the turn about it open."""
    truth = similarity(generator)
    quats = torch.randn(3, views, 4, generator=generator).double()
    along = torch.randn(3, views, 1, generator=generator).double()
    source = se3.compose(gaussian.quat_to_rotation(quats), along * torch.tensor([1.0, 2.0, 0.5]))
    scale = se3.similarity_scale(truth)[:, None, None, None]
    target = truth[:, None] @ source
    target = se3.compose(target[..., :3, :3] / scale, target[..., :3, 3])
    torch.testing.assert_close(align.cameras(source, target), truth)
    centers = source[..., :3, 3], target[..., :3, 3]
    assert align.umeyama(*centers).isnan().all()


def test_cameras_at_one_place_have_no_similarity(generator: torch.Generator) -> None:
    quats = torch.randn(2, 3, 4, generator=generator).double()
    source, target = se3.compose(gaussian.quat_to_rotation(quats), torch.ones(2, 3, 3).double())
    assert align.cameras(source, target)[:3].isnan().all()


def test_a_point_of_weight_zero_does_not_count(generator: torch.Generator) -> None:
    truth = similarity(generator)
    source = torch.randn(3, 20, 3, generator=generator).double()
    target = se3.transform(truth, source)
    target[:, 0] += 100
    weights = torch.ones(3, 20).double()
    weights[:, 0] = 0
    torch.testing.assert_close(align.umeyama(source, target, weights), truth)


def test_never_a_reflection(generator: torch.Generator) -> None:
    source = torch.randn(1, 20, 3, generator=generator).double()
    mirrored = source * torch.tensor([1.0, 1.0, -1.0]).double()
    assert torch.linalg.det(align.umeyama(source, mirrored)[0, :3, :3]) > 0


def test_weights_match_repetition(generator: torch.Generator) -> None:
    source, target = torch.randn(2, 1, 6, 3, generator=generator).double()
    repeats = torch.tensor([1, 2, 3, 1, 1, 2])
    repeated = align.umeyama(
        source.repeat_interleave(repeats, 1), target.repeat_interleave(repeats, 1)
    )
    torch.testing.assert_close(align.umeyama(source, target, repeats[None].double()), repeated)


def test_gradients(generator: torch.Generator) -> None:
    source, target = torch.randn(2, 1, 6, 3, generator=generator).double()
    inputs = (source.requires_grad_(), target.requires_grad_())
    assert torch.autograd.gradcheck(align.umeyama, inputs)


def test_the_nearest_rotation_is_that_of_the_singular_values(generator: torch.Generator) -> None:
    matrix = torch.randn(200, 3, 3, generator=generator).double()
    u, _, vh = torch.linalg.svd(matrix)
    proper = torch.linalg.det(u) * torch.linalg.det(vh)
    flip = torch.stack([torch.ones_like(proper), torch.ones_like(proper), proper.sign()], -1)
    torch.testing.assert_close(align.nearest_rotation(matrix), (u * flip[:, None]) @ vh)


def stretched(values: list[float], generator: torch.Generator) -> torch.Tensor:
    """Rotation, these singular values (the last may be negative: a mirror), rotation."""
    left, right = gaussian.quat_to_rotation(torch.randn(2, 4, generator=generator).double())
    return left @ torch.diag(torch.tensor(values).double()) @ right


@pytest.mark.parametrize(
    "values",
    [[1, 1, 1], [2, 2, 1], [1, 0.5, 0], [1, 1, 0], [2, 1, -0.5], [1, 1, -0.9], [1, 2e-3, 1e-3]],
)
def test_its_gradient_is_right_where_singular_values_meet_or_vanish(
    generator: torch.Generator, values: list[float]
) -> None:
    matrix = stretched(values, generator).requires_grad_()
    step = 1e-6 if min(map(abs, values)) != 1e-3 else 1e-8
    assert torch.autograd.gradcheck(align.nearest_rotation, matrix, eps=step, rtol=1e-4)


@pytest.mark.parametrize("small", [1e-2, 1e-4, 3e-6])
def test_it_is_exact_down_to_where_it_is_undefined(
    generator: torch.Generator, small: float
) -> None:
    left, right = gaussian.quat_to_rotation(torch.randn(2, 4, generator=generator).double())
    found = align.nearest_rotation(left @ torch.diag(torch.tensor([1, small, 0]).double()) @ right)
    torch.testing.assert_close(found, left @ right, atol=1e-9, rtol=0)


@pytest.mark.parametrize("values", [[1, 0, 0], [0, 0, 0], [1, 1, -1], [1, 1e-8, 0]])
def test_without_a_unique_rotation_the_gradient_is_zero(
    generator: torch.Generator, values: list[float]
) -> None:
    matrix = stretched(values, generator).requires_grad_()
    gradient = torch.autograd.grad(align.nearest_rotation(matrix).square().sum(), matrix)[0]
    assert not gradient.any()


def test_an_undefined_similarity_is_nan_and_pulls_nowhere(generator: torch.Generator) -> None:
    good, target = torch.randn(2, 3, 20, 3, generator=generator)
    source = good.clone()
    source[0] = 5.1
    source[1] = torch.randn(20, 1, generator=generator) * torch.tensor([1.0, 2.0, -1.0]) + 7
    found = align.umeyama(source.requires_grad_(), target.requires_grad_())
    assert found[:2].isnan().all() and found[2].isfinite().all()
    torch.testing.assert_close(found[2], align.umeyama(good[2], target[2]))
    assert align.umeyama(good, target, torch.zeros(3, 20)).isnan().all()
    found.nan_to_num().sum().backward()
    for given in (source, target):
        assert given.grad is not None and not given.grad[:2].any() and given.grad[2].any()


@pytest.mark.parametrize(("width", "defined"), [(2e-3, True), (5e-4, False)])
def test_points_within_a_thousandth_of_a_line_are_a_line(
    generator: torch.Generator, width: float, defined: bool
) -> None:
    cloud = torch.randn(1, 1000, 3, generator=generator).double()
    thin = cloud * torch.tensor([1.0, width, width])
    assert align.umeyama(thin, 0.3 * thin + 1).isfinite().all() == defined
    assert align.umeyama(thin, cloud).isfinite().all()  # the other set is wide enough


def test_float32_far_from_the_origin_keeps_its_digits(generator: torch.Generator) -> None:
    truth = similarity(generator)
    source = torch.randn(3, 50_000, 3, generator=generator) + 100
    found = align.umeyama(source, se3.transform(truth, source.double()))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-7)


def test_scaling_is_least_squares_about_the_origin(generator: torch.Generator) -> None:
    source, noise = torch.randn(2, 2, 9, 3, generator=generator).double()
    target, weights = 3 * source + 0.1 * noise, torch.rand(2, 9, generator=generator).double()
    found = align.scaling(source, target, weights)
    root = weights.sqrt()[..., None]
    for i in range(2):
        columns = [(root * t)[i].reshape(-1, 1) for t in (source, target)]
        want = torch.linalg.lstsq(columns[0], columns[1]).solution.item()
        assert found[i].item() == pytest.approx(want)
    assert align.scaling(source, -target).isnan().all()
    assert align.scaling(0 * source, target).isnan().all()


def test_trust_goes_to_the_pairs_that_agree(generator: torch.Generator) -> None:
    truth = similarity(generator)
    source = torch.randn(3, 60, 3, generator=generator).double()
    target = se3.transform(truth, source)
    target[:, ::3] += 5 * torch.randn(3, 20, 3, generator=generator).double()
    given = torch.ones(3, 60).double()
    given[:, 1] = 0

    trusted = align.trusted(align.umeyama, source, target, given, rounds=30)
    assert (trusted[:, 1] == 0).all() and (trusted[:, ::3] < 1e-6).all()
    torch.testing.assert_close(align.umeyama(source, target, trusted), truth)
    again = align.trusted(align.umeyama, source, target, given, rounds=30)
    assert torch.equal(again, trusted)
    assert torch.equal(align.trusted(align.umeyama, source, target, given, rounds=0), given)
    once = align.trusted(align.umeyama, source, target, given, rounds=1)
    twice = align.trusted(align.umeyama, source, target, given, rounds=2)
    moved = se3.transform(align.umeyama(source, target, once), source)
    squared = (moved - target).square().sum(-1)
    width = squared[given > 0].reshape(3, -1).sort(-1).values[:, 29, None]  # of 59
    torch.testing.assert_close(twice, given * (width / (width + squared)) ** 2)


def scale(source: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.eye(4).double() * align.scaling(source, target, weights)[..., None, None]


WRONG = {
    "ten times as far": lambda points, generator: 10 * points,
    "three times as far": lambda points, generator: 3 * points,
    "strewn": lambda points, generator: (
        points + 10 * torch.randn(points.shape, generator=generator).double()
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fit", [align.umeyama, scale])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("how", list(WRONG))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.45])
def test_gross_outliers_are_withstood(
    share: float, how: str, together: bool, fit: Callable, seed: int
) -> None:
    """They shrink the fit of all points, from where reweighting alone does not come back."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(1, 1500, 3, generator=generator).double() + torch.tensor([0, 0, 4.0])
    place = torch.arange(1500) if together else torch.randperm(1500, generator=generator)
    bad = place < share * 1500
    source = 0.3 * torch.where(bad[:, None], WRONG[how](true, generator), true)
    weights = torch.ones(1, 1500).double()
    weights[0, -20:] = 0
    source[0, -20:] = 1e6
    target = true + 0.01 * torch.randn(true.shape, generator=generator).double()
    trusted = align.trusted(fit, source, target, weights, rounds=20)
    found = fit(source, target, trusted)
    right = weights[0] * ~bad > 0
    off = (se3.transform(found, source) - true)[:, right].norm(dim=-1).max()
    assert off < 0.01
    plain = (se3.transform(fit(source, target, weights), source) - true)[:, right]
    assert plain.norm(dim=-1).max() > 10 * off


def test_the_best_triple_is_found_for_each_sample_alone(generator: torch.Generator) -> None:
    """A sample's weights are those it has without the rest of the batch, undefined ones too."""
    source, target = torch.randn(2, 3, 200, 3, generator=generator).double()
    target[0, :130] = 2 * source[0, :130] + 1 + 0.01 * target[0, :130]
    source[1] = 5.1
    weights = torch.rand(3, 200, generator=generator).double()
    weights[2, :150] = 0
    together = align.trusted(align.umeyama, source, target, weights, rounds=5)
    for i in range(3):
        alone = align.trusted(align.umeyama, source[i], target[i], weights[i], rounds=5)
        torch.testing.assert_close(together[i], alone)
    assert torch.equal(together[1], weights[1])
    none = align.trusted(align.umeyama, source, target, torch.zeros(3, 200).double(), rounds=5)
    assert not none.any()


def test_reweighting_looks_at_a_sample_and_weighs_all(generator: torch.Generator) -> None:
    """Of many points, noisy, with wrong ones in every fourth column of a map, as strides alias."""
    count, noise = 40_000, 0.01
    source = torch.randn(2, count, 3, dtype=torch.float64, generator=generator)
    motion = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    motion[:, :3, :3] *= 1.7
    motion[:, :3, 3] = torch.tensor([0.3, -2.0, 1.0])
    target = se3.transform(motion, source)
    target = target + noise * torch.randn(target.shape, dtype=torch.float64, generator=generator)
    wrong = torch.arange(count) % 4 == 1
    target[:, wrong] += torch.tensor([2.0, 3.0, -1.0])
    weights = torch.ones(2, count, dtype=torch.float64)
    weights[:, :1000] = 0
    found = align.trusted(align.umeyama, source, target, weights, 20)
    assert not found[:, :1000].any() and (found[:, wrong] < 1e-6).all()
    assert (found[:, 1000:][:, ~wrong[1000:]] > 0.01).float().mean() > 0.99
    fitted = align.umeyama(source, target, found)
    torch.testing.assert_close(fitted, motion, atol=6 * noise / count**0.5, rtol=0)


def test_random_numbers_are_drawn_once_and_do_not_depend_on_torchs_state() -> None:
    wanted = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    align._chances.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    torch.manual_seed(5)
    found = align._chances(7, torch.device("cpu"))
    assert torch.equal(found, wanted)
    assert align._chances(7, torch.device("cpu")) is found


@pytest.mark.cuda
def test_cuda_draws_the_triples_of_the_cpu() -> None:
    pair = (align._chances(99, torch.device(name)).cpu() for name in ("cpu", "cuda"))
    assert torch.equal(*pair)


@pytest.mark.cuda
@pytest.mark.parametrize("values", [[2, 1, 0.5], [1, 1, 1], [2, 1, -0.5], [1, 0.5, 0]])
def test_squarings_at_once_find_the_same_rotation(
    generator: torch.Generator, values: list[float]
) -> None:
    matrix = stretched(values, generator)
    pair = (align.nearest_rotation(m).cpu() for m in (matrix, matrix.cuda()))
    torch.testing.assert_close(*pair, atol=1e-9, rtol=0)


def test_eight_squarings_at_once_are_as_good_as_one(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the largest eigenvalues differ by no more than a few millionths."""
    spectra = ([2, 1, 0.5], [1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 3e-6, 0], [1, 1, -0.9])
    matrices = torch.stack([stretched(list(values), generator) for values in spectra])
    matrices = torch.cat([matrices, 1e90 * matrices, 1e-90 * matrices])
    wanted = align.nearest_rotation(matrices)
    monkeypatch.setattr(align, "_squarings_at_once", lambda matrix: 8)
    found = align.nearest_rotation(matrices)
    unique = align._unique(align._stretch(wanted, matrices))
    assert found.isfinite().all() and 9 <= unique.sum() < len(matrices)
    torch.testing.assert_close(found[unique], wanted[unique], atol=1e-9, rtol=0)


def test_a_scale_is_a_motion_of_that_scale(generator: torch.Generator) -> None:
    source = torch.randn(2, 9, 3, generator=generator)
    motion = align.rescaling(source, 3 * source)
    torch.testing.assert_close(motion, torch.diag(torch.tensor([3.0, 3, 3, 1])).expand(2, 4, 4))
    assert align.rescaling(source, -source).isnan().all()


def walk(views: int, generator: torch.Generator) -> torch.Tensor:
    return random_cameras(views, generator, dtype=torch.float64, spread=0.5).c2w[0]


def carry(c2w: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    places = se3.transform(similarity, c2w[:, :3, 3])
    turn = similarity[:3, :3] / se3.similarity_scale(similarity)
    return se3.compose(turn @ c2w[:, :3, :3], places)


def test_noise_of_the_axes_and_of_the_places_is_averaged(generator: torch.Generator) -> None:
    source = walk(400, generator)
    similarity = se3.exp(torch.randn(6, generator=generator).double())
    noise = 0.1 * torch.randn(400, 6, generator=generator).double()
    found = align.cameras(source, carry(source, similarity) @ se3.exp(noise))
    assert (found - similarity)[:3, :3].abs().max() < 0.02
    assert (found - similarity)[:3, 3].abs().max() < 0.02


def test_the_scale_of_contradicting_places_is_positive(generator: torch.Generator) -> None:
    source = walk(2, generator)
    target = source.clone()
    target[:, :3, 3] = -2 * source[:, :3, 3]  # walked the other way, by the same axes
    assert se3.similarity_scale(align.cameras(source, target)) == pytest.approx(2)


def test_a_scale_needs_two_places_in_both_sets(generator: torch.Generator) -> None:
    source = walk(4, generator)
    still = source.clone()
    still[:, :3, 3] = torch.tensor([1.0, 2.0, 3.0])
    for one, other in ((source, still), (still, source), (source[:1], source[:1])):
        assert align.cameras(one, other).isnan().all()

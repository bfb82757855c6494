"""Robust alignment: the kernel of CUDA devices, interpreted, against plain torch."""

import pytest
import torch

from pmsplat.geometry import align, gaussian, se3
from pmsplat.kernels import alignment
from tests.waits import no_waits

from .interpreter import interpreted

FITS = {"umeyama": align.umeyama, "rescaling": align.rescaling}
Sets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def sets(generator: torch.Generator, count: int) -> Sets:
    """Two samples: a cloud under a similarity with noise, a quarter of the pairs wrong."""
    source = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    source = source + torch.tensor([0.0, 0.0, 4.0])
    rotation = gaussian.quat_to_rotation(torch.tensor([1.0, 0.1, -0.2, 0.1]).double())
    target = se3.transform(se3.compose(1.4 * rotation, rotation[0]), source)
    target = target + 0.01 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    target[:, ::4] *= 3
    weights = torch.rand(2, count, generator=generator, dtype=torch.float64)
    weights[:, 1::7] = 0
    return source, target, weights


def cases(generator: torch.Generator) -> dict[str, Sets]:
    """Sets of every size around a block, and those that define no motion or nearly none."""
    found = {f"{n} points": sets(generator, n) for n in (1, 2, 3, 4, 5, 17, 255, 256, 257, 600)}
    source, target, weights = sets(generator, 40)
    flat = torch.tensor([1.0, 1.0, 0.0]).double()
    line = torch.tensor([1.0, 0.0, 0.0]).double()
    return found | {
        "no weight": (source, target, 0 * weights),
        "one spot": (0 * source + 5, target, weights),
        "planes": (flat * source, flat * target, weights),
        "lines": (line * source, line * target, weights),
        "a line": (line * source, target, weights),
        "mirrored": (source, source * torch.tensor([1.0, 1.0, -1.0]), weights),
        "turned inside out": (source, -source, weights),
        "the same": (source, source, weights),
        "tiny": (1e-12 * source, 1e-12 * target, weights),
        "huge": (1e12 * source, 1e12 * target, weights),
        "many samples": tuple(
            x.expand(3, *x.shape).contiguous() for x in (source, target, weights)
        ),
        "float32": (source.float(), target.float(), weights.float()),
    }  # pyright: ignore[reportReturnType]


def check_against_twin(device: str) -> None:
    """Asserts that the kernel gives motions and distances of its twin, NaN where those are NaN."""
    from pmsplat.kernels import _alignment_triton as fast

    for case, given in cases(torch.Generator().manual_seed(0)).items():
        for name, fit in FITS.items():
            source, target, weights = (x.double() for x in given)
            motion = fit(source, target, weights)
            squared = align._squared(motion, source, target, weights)
            width = squared.nanmedian(dim=-1, keepdim=True).values.clamp_min(1e-300)
            again, squared_again = align._refit(fit, source, target, weights, squared, width)
            x, y, w, away, middle = (x.to(device) for x in (*given, squared, width))
            found = fast.fit(x, y, w, scale_alone=name == "rescaling")
            found_after = fast.refit(x, y, w, away, middle, scale_alone=name == "rescaling")
            scale = target.square().sum(-1).max()
            for ours, wanted, size in (
                (found, motion, motion.nan_to_num().abs().max()),
                (found_after[0], again, again.nan_to_num().abs().max()),
                (found_after[1], squared_again, scale),
            ):
                error = (ours.cpu() - wanted).abs().nan_to_num()
                assert torch.equal(ours.cpu().isnan(), wanted.isnan()), (case, name)
                assert (error <= 1e-11 * size).all(), (case, name, error.max(), size)


def matrices(generator: torch.Generator) -> torch.Tensor:
    """Any, round, mirrored, flat, thin, none, and of every size."""
    some = torch.randn(2, 6, 3, 3, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(some[0])
    values = {
        "round": (2.0, 2.0, 2.0), "mirrored": (3.0, 2.0, -1.0), "flat": (3.0, 2.0, 0.0),
        "line": (3.0, 0.0, 0.0), "two equal": (2.0, 2.0, 1.0), "undecided": (3.0, 2.0, -2.0),
    }  # fmt: skip
    diagonal = torch.tensor([*values.values()], dtype=torch.float64).diag_embed()
    shaped = u.det().sign()[:, None, None] * u @ diagonal @ (v.det().sign()[:, None, None] * v)
    sizes = torch.tensor([0.0, 1e-12, 1e-3, 1.0, 1e3, 1e12]).double()[:, None, None]
    return torch.stack([some[1], shaped, sizes * some[0]])


def check_rotations(device: str) -> None:
    """Asserts that the kernels give rotations, their uniqueness and gradients of the twin."""
    from pmsplat.kernels._alignment_triton import UniqueRotation

    generator = torch.Generator().manual_seed(0)
    given = matrices(generator)
    wanted_leaf, leaf = (given.to(x).requires_grad_() for x in ("cpu", device))
    wanted, wanted_unique = align.unique_rotation(wanted_leaf)
    found, unique = UniqueRotation.apply(leaf)  # pyright: ignore
    assert torch.equal(unique.cpu(), wanted_unique) and unique.any() and not unique.all()
    assert (found.cpu() - wanted)[wanted_unique].abs().max() < 1e-12
    seed = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(wanted, wanted_leaf, seed)
    (gradient,) = torch.autograd.grad(found, leaf, seed.to(device))
    error = (gradient.cpu() - expected).norm(dim=(-1, -2))
    assert (error <= 1e-10 * expected.norm(dim=(-1, -2))).all(), error
    assert (gradient.cpu()[~wanted_unique] == 0).all()


@interpreted
def test_the_kernel_interpreted_equals_its_twin() -> None:
    check_against_twin("cpu")


@interpreted
def test_rotations_interpreted_are_those_of_the_twin() -> None:
    check_rotations("cpu")


@interpreted
def test_a_fit_by_the_kernel_has_the_gradients_of_plain_torch(generator: torch.Generator) -> None:
    from pmsplat.kernels._alignment_triton import UniqueRotation

    found = []
    for nearest in (None, UniqueRotation.apply):
        leaves = [x.clone().requires_grad_() for x in sets(generator.manual_seed(5), 50)]
        motion = align.umeyama(*leaves, nearest=nearest)
        motion.square().sum().backward()
        found.append([motion.detach(), *(leaf.grad for leaf in leaves)])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.cuda
def test_rotations_on_cuda_are_those_of_the_twin() -> None:
    check_rotations("cuda")


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_on_the_cpu_it_is_plain_torch(fit: align.Fit, generator: torch.Generator) -> None:
    given = sets(generator, 50)
    found = alignment.trusted(fit, *given, rounds=5)
    assert torch.equal(found, align.trusted(fit, *given, rounds=5))


@pytest.mark.cuda
def test_the_kernel_equals_its_twin_on_cuda() -> None:
    check_against_twin("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("count", [50, 20_000])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_cuda_trusts_the_same_and_makes_nobody_wait(
    fit: align.Fit, count: int, generator: torch.Generator
) -> None:
    given = sets(generator, count)
    wanted = alignment.trusted(fit, *given, rounds=20)
    given = tuple(x.cuda() for x in given)
    alignment.trusted(fit, *given, rounds=1)  # compiles, and sends constants
    with no_waits():
        found = alignment.trusted(fit, *given, rounds=20)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-6, rtol=1e-6)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(alignment.trusted(fit, *given, rounds=20), found)
    finally:
        torch.use_deterministic_algorithms(False)

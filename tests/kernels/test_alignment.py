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
            width = align._median(squared)
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


@interpreted
def test_the_kernel_interpreted_equals_its_twin() -> None:
    check_against_twin("cpu")


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

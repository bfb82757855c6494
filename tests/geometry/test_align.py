import torch

from pmsplat.geometry import align, gaussian, se3


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

"""Which Gaussians are kept: against sorting by hand, and against what chance allows."""

import pytest
import torch

from pmsplat.geometry.pruning import choose_opaque
from tests.waits import no_waits


def by_hand(opacities: torch.Tensor, count: int) -> list[list[int]]:
    """The numbers of the most opaque, in order."""
    ranked = [sorted(range(len(row)), key=lambda i, row=row: -row[i]) for row in opacities.tolist()]
    return [sorted(order[:count]) for order in ranked]


@pytest.mark.parametrize(("share", "count"), [(0.3, 30), (1.0, 100), (0.999, 100), (1e-6, 1)])
def test_the_most_opaque_share_of_each_scene_is_kept_in_order(
    share: float, count: int, generator: torch.Generator
) -> None:
    opacities = torch.rand(3, 100, generator=generator)
    assert choose_opaque(opacities, share).tolist() == by_hand(opacities, count)


def test_a_tenth_are_others_and_each_of_these_has_its_turn(generator: torch.Generator) -> None:
    opacities = torch.rand(2, 100, generator=generator, requires_grad=True)
    certain = [set(row) for row in by_hand(opacities, 36)]
    turns = torch.zeros(2, 100)
    for _ in range(400):
        chosen = choose_opaque(opacities, 0.4, generator)
        assert chosen.shape == (2, 40) and not chosen.requires_grad
        for scene, row in enumerate(chosen.tolist()):
            assert row == sorted(set(row)) and certain[scene] < set(row)
            turns[scene, row] += 1
    for scene in range(2):
        others = [i for i in range(100) if i not in certain[scene]]
        assert (turns[scene, list(certain[scene])] == 400).all()
        # 400 draws of 4 of 64: 25 turns each, deviation 4.8
        assert turns[scene, others].min() > 5 and turns[scene, others].max() < 50


def test_the_same_generator_chooses_the_same(generator: torch.Generator) -> None:
    opacities = torch.rand(1, 200, generator=generator)
    first, again, other = (
        choose_opaque(opacities, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert choose_opaque(opacities, 1.0, generator).tolist() == [list(range(200))]


@pytest.mark.cuda
def test_cuda_chooses_the_same_most_opaque_and_makes_nobody_wait(
    generator: torch.Generator,
) -> None:
    opacities = torch.rand(2, 50_000, generator=generator)
    there, draws = opacities.cuda(), torch.Generator("cuda").manual_seed(0)
    for _ in range(2):  # the first compiles
        choose_opaque(there, 0.4, draws)
    with no_waits():
        chosen, drawn = choose_opaque(there, 0.4), choose_opaque(there, 0.4, draws)
    assert torch.equal(chosen.cpu(), choose_opaque(opacities, 0.4))
    assert drawn.shape == chosen.shape and not torch.equal(drawn, chosen)

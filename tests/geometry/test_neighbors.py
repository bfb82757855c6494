import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from pmsplat.errors import UserError
from pmsplat.geometry import neighbors


@pytest.mark.parametrize("pairs", [1, 700, 2**22])
def test_equals_a_kd_tree_whatever_the_blocks(
    pairs: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "PAIRS", pairs)
    points = torch.randn(2, 3, 50, 3, generator=generator, dtype=torch.float64)
    reference = torch.randn(2, 3, 40, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 40, generator=generator) > 0.5
    found = neighbors.nearest(points, reference, mask)
    assert found.dtype == torch.int64 and found.shape == (2, 3, 50)
    for at in np.ndindex(2, 3):
        places = mask[at].nonzero()[:, 0]
        tree = KDTree(reference[at][places].numpy())
        expected = places[torch.from_numpy(tree.query(points[at].numpy())[1])]
        assert (found[at] == expected).all()


def test_sets_without_a_batch_and_without_points() -> None:
    reference = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    assert neighbors.nearest(torch.tensor([[0.9, 0, 0]]), reference).tolist() == [1]
    assert neighbors.nearest(torch.zeros(0, 3), reference).shape == (0,)
    assert neighbors.nearest(torch.zeros(0, 5, 3), torch.zeros(0, 2, 3)).shape == (0, 5)


def test_the_finer_precision_of_the_two_counts() -> None:
    """Around 1000, float32 cannot tell these two apart."""
    reference = 1000 + torch.tensor([[0.0, 0, 0], [1e-6, 0, 0]], dtype=torch.float64)
    points = torch.full((1, 3), 1000.0)
    assert neighbors.nearest(points, reference).tolist() == [0]
    assert neighbors.nearest(points + 1e-6, reference.flip(0)).tolist() == [1]
    kinds = {torch.bfloat16: torch.float32, torch.float32: torch.float32}
    for given, wanted in {**kinds, torch.float64: torch.float64}.items():
        some, others = neighbors.prepare(torch.zeros(1, 3, dtype=given), points.to(given))
        assert some.dtype == others.dtype == wanted


def test_behind_the_mask_anything_may_stand() -> None:
    reference = torch.tensor([[torch.nan] * 3, [5, 5, 5], [torch.inf] * 3])
    mask = torch.tensor([False, True, False])
    assert neighbors.nearest(torch.zeros(2, 3), reference, mask).tolist() == [1, 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e18])
def test_coordinates_that_are_no_numbers_are_refused(bad: float) -> None:
    good, broken = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    broken[1, 2, 0] = bad
    with pytest.raises(UserError, match=r"^points with .* not finite .* in sample 1; wanted"):
        neighbors.nearest(broken, good)
    with pytest.raises(UserError, match=r"^reference points with .* in sample 1; wanted"):
        neighbors.nearest(good, broken)


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(UserError, match="no reference points; wanted"):
        neighbors.nearest(torch.zeros(2, 3), torch.zeros(0, 3))
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[1, 2] = False
    with pytest.raises(UserError, match="all masked in sample 1, 2; wanted"):
        neighbors.nearest(torch.zeros(2, 3, 4, 3), torch.zeros(2, 3, 4, 3), mask)
    with pytest.raises(UserError, match="all masked; wanted"):
        neighbors.nearest(torch.zeros(4, 3), torch.zeros(4, 3), mask[1, 2])

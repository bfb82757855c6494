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


@pytest.mark.parametrize("pairs", [1, 700, 2**22])
def test_several_equal_a_kd_tree_whatever_the_blocks(
    pairs: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "PAIRS", pairs)
    points = torch.randn(2, 3, 50, 3, generator=generator, dtype=torch.float64)
    reference = torch.randn(2, 3, 40, 3, generator=generator, dtype=torch.float64)
    found = neighbors.k_nearest(points, reference, 7)
    assert found.dtype == torch.int64 and found.shape == (2, 3, 50, 7)
    for at in np.ndindex(2, 3):
        expected = KDTree(reference[at].numpy()).query(points[at].numpy(), 7)[1]
        assert (found[at].numpy() == expected).all()


def test_of_equally_near_ones_the_lower_index_comes_first() -> None:
    reference = torch.tensor([[1.0, 0, 0], [0, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert neighbors.k_nearest(torch.zeros(1, 3), reference, 4).tolist() == [[1, 4, 0, 2]]


def test_a_count_that_cannot_be_found_is_refused() -> None:
    some = torch.zeros(2, 4, 3)
    with pytest.raises(UserError, match="k = 5 of 4 reference points; wanted at least as many"):
        neighbors.k_nearest(some, some, 5)
    for k in (0, -1, 33):
        with pytest.raises(UserError, match=f"k = {k}; wanted 1 to 32 neighbors"):
            neighbors.k_nearest(some, torch.zeros(2, 50, 3), k)


def test_pixels_of_projected_points() -> None:
    """Halves go to the even pixel, as published; far outside and behind are no pixels."""
    K = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    points = torch.tensor([[0.1, 0.5, 1], [0.5, 0.3, 1], [1.9, 0.3, 2], [0.5, 0.5, -1], [9, -9, 1]])
    found = neighbors.project_to_pixels(points, torch.eye(4), K, 2, 4, 3)
    # in pixels from the first centre: (-0.1, 0.5), (1.5, 0.1), (3.3, -0.2)
    assert found[:3].tolist() == [[0, 0], [0, 2], [0, 3]]
    assert found[3].tolist() == [-4, -4] and found[4].tolist() == [-4, 7]


def test_windows_hold_what_the_specification_says() -> None:
    """One row of five pixels in two views that look at the same points from one place."""
    x = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    row = torch.stack([x, torch.full_like(x, 0.5), torch.ones_like(x)], dim=-1)
    points = row.expand(1, 2, 1, 5, 3)
    c2w, K = torch.eye(4).expand(1, 2, 4, 4), torch.eye(3).expand(1, 2, 3, 3)
    others = torch.tensor([[[1], [0]]])
    found = neighbors.k_nearest_in_windows(points, others, c2w, K, 4, radius=1)
    # the twin in the other view, then both sides, the lower index first; at the end only two
    assert found[0, 0, 0, 2].tolist() == [7, 1, 3, 6]
    assert found[0, 1, 0, 2].tolist() == [2, 1, 3, 6]
    assert found[0, 0, 0, 0].tolist() == [5, 1, 6, 0]
    alone = neighbors.k_nearest_in_windows(points, others[..., :0], c2w, K, 3, radius=1)
    assert alone[0, 1, 0, 0].tolist() == [6, 5, 5]
    behind = neighbors.k_nearest_in_windows(-points, others, c2w, K, 3, radius=1)
    assert behind[0, 0, 0, 2].tolist() == [1, 3, 2]

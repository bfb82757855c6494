"""Depth measures against their closed forms."""

import math

import pytest
import torch

from pmsplat.evaluate.depth import aligned_depths, depth_metrics, median_scale


def test_a_constant_factor_has_a_closed_form() -> None:
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    got = depth_metrics(1.2 * truth, truth)
    assert got.abs_rel == pytest.approx(0.2, rel=1e-6)
    assert got.rmse == pytest.approx(0.2 * math.sqrt(30 / 4), rel=1e-6)
    assert got.delta1 == 1.0 and got.pixels == 4
    assert depth_metrics(1.3 * truth, truth).delta1 == 0.0
    assert depth_metrics(truth / 1.3, truth).delta1 == 0.0  # too near counts as too far does


def test_unknown_truth_and_mask_do_not_count() -> None:
    truth = torch.tensor([0.0, 2.0, 2.0, 4.0])
    depth = torch.tensor([9.0, 2.0, 3.0, 4.0])
    assert depth_metrics(depth, truth).abs_rel == pytest.approx(0.5 / 3)
    mask = torch.tensor([True, True, False, True])
    assert depth_metrics(depth, truth, mask).abs_rel == 0
    assert depth_metrics(depth, truth, mask).pixels == 2
    assert math.isnan(depth_metrics(depth, torch.zeros(4)).abs_rel)


def test_no_prediction_counts_as_wrong() -> None:
    got = depth_metrics(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 2.0]))
    assert got.abs_rel == 0.5 and got.delta1 == 0.5 and got.rmse == pytest.approx(math.sqrt(2))


def test_median_scale_undoes_a_factor(generator: torch.Generator) -> None:
    truth = 1 + 3 * torch.rand(5, 7, generator=generator)
    depth = truth / 7
    assert median_scale(depth, truth) == pytest.approx(7, rel=1e-6)
    truth[0], depth[1] = 0, 0
    factor = median_scale(depth, truth)
    assert depth_metrics(depth[2:] * factor, truth[2:]).abs_rel < 1e-6


def test_alignments_undo_what_they_allow(generator: torch.Generator) -> None:
    """A factor of each map by the median; scale and shift of inverse depth by least squares."""
    truth = 1 + 4 * torch.rand(3, 12, 16, generator=generator, dtype=torch.float64)
    truth[:, 0] = 0  # not known
    factors = torch.tensor([0.5, 3.0, 1.0])[:, None, None]
    assert depth_metrics(aligned_depths(factors * truth, truth)["median"], truth).abs_rel < 1e-12
    inverse = 0.25 / truth.clamp_min(0.5) + 0.125
    found = aligned_depths(1 / inverse, truth)
    assert depth_metrics(found["affine"], truth).abs_rel < 1e-12
    assert depth_metrics(found["median"], truth).abs_rel > 0.05
    blank = torch.zeros_like(truth)
    assert all(torch.equal(x, blank) for x in aligned_depths(blank, truth).values())
    flat = aligned_depths(torch.ones_like(truth), truth)["affine"][:, 1:]
    mean = 1 / (1 / truth[:, 1:]).mean(dim=(1, 2))
    torch.testing.assert_close(flat, mean[:, None, None].expand_as(flat))

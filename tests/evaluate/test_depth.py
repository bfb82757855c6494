"""Depth measures against their closed forms."""

import math

import pytest
import torch

from pmsplat.evaluate.depth import depth_metrics, median_scale


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

from dataclasses import replace

import torch

from pmsplat.nn import cost_volume
from tests.scenes import random_cameras


def test_all_others_are_every_view_but_oneself() -> None:
    found = cost_volume.all_others(torch.eye(4).expand(2, 4, 4, 4))
    expected = [[j for j in range(4) if j != i] for i in range(4)]
    assert found.tolist() == [expected, expected]


def test_nearest_others_are_near_and_never_oneself() -> None:
    c2w = torch.eye(4).repeat(1, 5, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 1.0, 3.0, 3.0, 10.0])  # views 2 and 3 coincide
    found = cost_volume.nearest_others(c2w, 2)[0].tolist()
    assert found == [[1, 2], [0, 2], [3, 1], [2, 1], [2, 3]]


def test_the_reference_K_matters_where_intrinsics_differ(generator: torch.Generator) -> None:
    cameras = random_cameras(2, generator)
    others = cost_volume.all_others(cameras.c2w)
    own = cost_volume.homographies(cameras, others, 8, 8)
    published = cost_volume.homographies(cameras, others, 8, 8, reference_K=True)
    assert (own - published).abs().max() > 0.05
    alike = replace(cameras, K=cameras.K[:, :1].expand(-1, 2, -1, -1))
    torch.testing.assert_close(
        cost_volume.homographies(alike, others, 8, 8),
        cost_volume.homographies(alike, others, 8, 8, reference_K=True),
    )


def test_fine_candidates_lie_half_a_step_apart_around_the_coarse_answer() -> None:
    whole = cost_volume.full_range(torch.tensor([0.5]), torch.tensor([100.0]), 128)
    step = (2.0 - 0.01) / 127 / 2
    coarse = torch.tensor([[[1.0, 0.02], [1.99, 2.0]]])
    fine = cost_volume.around(coarse, whole, 32).inv_depth[0]
    torch.testing.assert_close(fine[16, 0, 0], coarse[0, 0, 0])  # the middle one is the answer
    torch.testing.assert_close(fine[:, 0, 0].diff(), torch.full((31,), step), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(fine[0, 0, 1], torch.tensor(0.01))  # squeezed at the far end
    torch.testing.assert_close(fine[-1, 1], torch.tensor([2.0, 2.0]))  # and at the near end
    torch.testing.assert_close(fine[0, 1, 1], torch.tensor(2.0 - 16 * step))


def test_the_expected_inverse_depth_is_the_mean_over_candidates(
    generator: torch.Generator,
) -> None:
    low, high = (
        torch.rand(2, 3, 4, generator=generator),
        1 + torch.rand(2, 3, 4, generator=generator),
    )
    candidates = cost_volume.Candidates(low, high, 7)
    probability = torch.rand(2, 3, 4, 7, generator=generator).softmax(dim=-1)
    expected = (probability * candidates.inv_depth.permute(0, 2, 3, 1)).sum(-1)
    torch.testing.assert_close(candidates.expected(probability), expected)


def test_an_untrained_regressor_answers_the_middle(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    regressor = cost_volume.Regressor(24, 16, 3, 8, "sdpa")
    candidates = cost_volume.full_range(torch.full((2,), 0.5), torch.full((2,), 100.0), 8)
    maps = [
        torch.randn(2, 8, 8, 8, generator=generator),
        torch.randn(2, 16, 8, 8, generator=generator),
    ]
    found = regressor(maps, candidates, 2)
    middle = (2 + 0.01) / 2
    assert (found.inv_depth - middle).abs().max() < 0.25 * middle
    assert ((found.confidence > 1 / 8) & (found.confidence < 0.4)).all()

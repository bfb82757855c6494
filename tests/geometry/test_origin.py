import torch

from pmsplat.geometry.origin import local_origin


def _points(place: tuple[float, float, float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(101, 3, generator=generator, dtype=torch.float64) + torch.tensor(
        place, dtype=torch.float64
    )


def test_points_near_their_origin_keep_it() -> None:
    assert local_origin(_points((3.0, -20.0, 50.0))).tolist() == [0, 0, 0]
    assert local_origin(torch.zeros(0, 3)).tolist() == [0, 0, 0]


def test_points_of_a_map_get_an_origin_within_their_extent() -> None:
    place = (441547.502, 5121946.513, 2345.087)
    found = local_origin(_points(place))
    assert found.dtype == torch.float64
    assert (found - found.new_tensor(place)).abs().max() < 1
    assert torch.equal(found * 10, (found * 10).round()), "a digit of the extent"


def test_neither_order_nor_a_few_strays_move_the_origin() -> None:
    points = _points((5e6, 0, 0))
    strays = torch.cat([points, points.new_full((3, 3), 1e12), points.new_full((2, 3), torch.nan)])
    assert torch.equal(local_origin(points), local_origin(points.flip(0)))
    assert (local_origin(strays) - local_origin(points)).abs().max() < 0.5


def test_one_place_far_off_is_an_origin() -> None:
    assert local_origin(torch.full((4, 3), 1000.0)).tolist() == [1000, 1000, 1000]
    assert local_origin(torch.full((4, 3), 50.0)).tolist() == [0, 0, 0]

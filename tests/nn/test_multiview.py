import torch
from einops import rearrange

from pmsplat.kernels.attention import attention
from pmsplat.nn import multiview
from pmsplat.nn.cost_volume import all_others
from tests.golden import components


def test_sine_position_is_the_official_one() -> None:
    expected = components("pos")["split2_8x12_c128"][0]
    found = multiview.sine_position(8, 12, 128, like=expected)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_the_shift_mask_is_the_official_one() -> None:
    expected = components("mask")["8x12_split2"]
    for by_view in (False, True):  # with one other view there is nothing to confuse
        found = multiview.shift_mask(8, 12, 1, expected, by_view=by_view)
        torch.testing.assert_close(found, expected)


def test_window_attention_is_the_official_one() -> None:
    """With and without a shift, to one other map and to two, where the released mask is faulty."""
    golden = components("attn")
    q, k, v = golden["q"], golden["k"], golden["v"]  # [batch, pixel, c], [batch, other, pixel, c]

    def windows(x: torch.Tensor, shift: bool) -> torch.Tensor:
        return multiview.to_windows(x.unflatten(-2, (8, 12)), shift)

    for shift in (False, True):
        for name, keys, values in (("self", k[:, :1], v[:, :1]), ("2others", k, v)):
            others = keys.shape[1]
            mask = multiview.shift_mask(8, 12, others, q, by_view=True)[None] if shift else None
            seen = (
                rearrange(windows(x, shift), "b o s n c -> b s (o n) c") for x in (keys, values)
            )
            found = attention(windows(q, shift), *seen, mask=mask)
            found = multiview.from_windows(found, 8, 12, shift).flatten(1, 2)
            expected = golden[f"out_{name}_shift{int(shift)}"]
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_windows_are_undone() -> None:
    for height, width, splits in ((6, 10, 2), (8, 12, 4)):
        x = torch.randn(2, height, width, 3)
        for shift in (False, True):
            windows = multiview.to_windows(x, shift, splits)
            assert windows.shape == (2, splits**2, height * width // splits**2, 3)
            assert torch.equal(multiview.from_windows(windows, height, width, shift, splits), x)


def test_wide_maps_have_more_windows() -> None:
    wide = (96, 192)
    found = [multiview.windows_per_axis(width, wide) for width in (56, 96, 97, 192, 193, 400)]
    assert found == [2, 2, 4, 4, 8, 8]
    assert multiview.windows_per_axis(400, ()) == 2


def test_shifted_windows_hide_what_does_not_touch_however_many_there_are() -> None:
    """Two pixels of a shifted window touch where the shift moved both, or neither, past an edge."""
    height, width, splits = 8, 16, 4
    like = torch.empty(())
    found = multiview.shift_mask(height, width, 1, like, splits=splits)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = multiview.to_windows(torch.stack([rows, columns], dim=-1), True, splits)
    step = torch.tensor([height // splits, width // splits])
    for window, hidden in zip(place, found, strict=True):
        apart = (window[:, None] - window[None]).abs()
        assert torch.equal(hidden < 0, (apart >= step).any(dim=-1))


def test_wide_maps_differ_only_by_their_windows() -> None:
    """A pixel hears of its own window alone, so a change elsewhere does not reach it."""
    torch.manual_seed(0)
    others = all_others(torch.eye(4).expand(1, 2, 4, 4))
    features = torch.randn(1, 2, 16, 8, 12)
    changed = features.clone()
    changed[..., 0, 0] += 1
    for wide, columns in (((), 6), ((8,), 3)):
        torch.manual_seed(0)
        layer = multiview.MultiViewTransformer(16, 1, wide=wide)
        moved = (layer(changed, others) - layer(features, others)).abs().amax((0, 1, 2))
        assert (moved[: 4 * columns // 6, :columns] > 0).all()
        assert (moved[:, columns:] == 0).all() and (moved[4 * columns // 6 :] == 0).all()


def test_pixels_move_straight_from_one_layer_to_the_next() -> None:
    """As by way of the map, forward and backward."""
    x = torch.randn(2, 60, 3, dtype=torch.float64, requires_grad=True)

    def windows(x: torch.Tensor, shift: bool | None) -> torch.Tensor:
        if shift is None:
            return x
        return multiview.to_windows(x.unflatten(1, (6, 10)), shift).flatten(1, 2)

    for before, after in ((None, False), (False, True), (True, False), (True, None)):
        route = multiview._route(6, 10, 2, before, after, x.device)
        found = multiview._Reorder.apply(windows(x, before), route)
        expected = windows(x, after)
        assert torch.equal(found, expected)
        weight = torch.randn_like(expected)
        (given,) = torch.autograd.grad(found, x, weight)
        (wanted,) = torch.autograd.grad(expected, x, weight)
        assert torch.equal(given, wanted)


def network(mask_by_view: bool) -> multiview.MultiViewTransformer:
    torch.manual_seed(0)
    return multiview.MultiViewTransformer(16, 4, mask_by_view=mask_by_view)


def test_the_order_of_the_other_views_does_not_matter_under_the_true_mask() -> None:
    features = torch.randn(1, 3, 16, 8, 12)
    swapped = features[:, [0, 2, 1]]
    others = all_others(torch.eye(4).expand(1, 3, 4, 4))
    exact, faulty = network(False), network(True)
    torch.testing.assert_close(
        exact(swapped, others)[:, [0, 2, 1]], exact(features, others), atol=1e-5, rtol=1e-4
    )
    # the published mask hides other pixels than it should, and does depend on the order
    difference = faulty(swapped, others)[:, [0, 2, 1]] - faulty(features, others)
    assert difference.abs().max() > 1e-4


def test_two_views_do_not_see_the_published_fault() -> None:
    features = torch.randn(1, 2, 16, 8, 12)
    others = all_others(torch.eye(4).expand(1, 2, 4, 4))
    torch.testing.assert_close(network(True)(features, others), network(False)(features, others))


def test_every_view_hears_of_the_views_it_looks_at_and_of_no_other() -> None:
    features = torch.randn(1, 4, 16, 4, 4)
    others = torch.tensor([[[1], [0], [3], [2]]])
    changed = features.clone()
    changed[:, 3] += 1
    moved = (
        (network(False)(changed, others) - network(False)(features, others)).abs().amax((2, 3, 4))
    )
    assert (moved[0, :2] == 0).all() and (moved[0, 2:] > 1e-3).all()

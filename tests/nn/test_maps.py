"""Maps joined, convolved piecewise, enlarged, and how they are stored."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad

from pmsplat.kernels.linear import Linear
from pmsplat.nn import maps


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def stored_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize("last", ["none", "first of them", "second of them", "both"])
def test_join_keeps_order_and_is_channels_last_if_any_map_is(last: str) -> None:
    a, b, c = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 4, 5), torch.randn(2, 1, 4, 5)
    found = maps.join(
        [
            channels_last(a) if last in ("first of them", "both") else a,
            channels_last(b) if last in ("second of them", "both") else b,
            c,
        ]
    )
    assert torch.equal(found, torch.cat([a, b, c], dim=1))
    assert stored_last(found) == (last != "none")


def test_join_narrows_under_autocast() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = maps.join([a, b])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.cat([a.bfloat16(), b], dim=1))


def test_join_takes_the_narrowest_without_autocast() -> None:
    image, features = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 4, 5).bfloat16()
    assert maps.join([image, features]).dtype == torch.bfloat16
    assert maps.join([image, image]).dtype == torch.float32


def test_weights_in_bfloat16_compute_in_it() -> None:
    torch.manual_seed(0)
    conv, parts = nn.Conv2d(4, 4, 1), [torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3).bfloat16()]
    expected = conv(torch.cat([x.float() for x in parts], dim=1))
    found = maps.conv_of(conv.bfloat16(), parts)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4)])
def test_a_border_is_repeated(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    expected = pad(x, (1, 1, 1, 1), mode="replicate")
    assert torch.equal(maps.repeat_border(x), expected)
    found = maps._repeated_border(channels_last(x))
    assert torch.equal(found, expected) and found.permute(0, 2, 3, 1).is_contiguous()


def test_a_convolution_over_the_border_is_torch_s() -> None:
    torch.manual_seed(0)
    layer = maps.BorderConv(3, 4)
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate")
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(layer(x), expected(x))


@pytest.mark.parametrize(("kernel", "bias"), [(3, True), (1, True), (3, False)])
def test_a_convolution_of_maps_is_that_of_the_maps_joined(kernel: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(9, 4, kernel, padding=kernel // 2, bias=bias).double()
    parts = [torch.randn(2, c, 6, 8, dtype=torch.float64, requires_grad=True) for c in (2, 6, 1)]
    whole = torch.cat([p.detach() for p in parts], dim=1).requires_grad_()
    found, expected = maps.conv_of(conv, parts), conv(whole)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [whole, *conv.parameters()])
    given = torch.autograd.grad((found * weight).sum(), [*parts, *conv.parameters()])
    torch.testing.assert_close(torch.cat(given[:3], dim=1), wanted[0], atol=1e-12, rtol=0)
    for a, b in zip(given[3:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_a_convolution_of_maps_leaves_the_maps_alone() -> None:
    conv, parts = nn.Conv2d(4, 4, 1), [torch.randn(1, 2, 3, 3) for _ in range(2)]
    before = [p.clone() for p in parts]
    maps.conv_of(conv, parts)
    assert all(torch.equal(a, b) for a, b in zip(before, parts, strict=True))


class First(maps.ChannelsFirst):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2))


def test_weights_are_stored_as_their_block_computes() -> None:
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(4, 4, 3), "up": nn.ConvTranspose2d(4, 4, 2, 2), "block": First()}
    )
    model["linear"] = Linear(4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps.set_memory_format(model)
    last = {name for name, value in model.named_parameters() if stored_last(value)}
    assert last == {"conv.weight", "up.weight"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    maps.set_memory_format(model)  # as after loading: nothing changes any more
    assert last == {name for name, value in model.named_parameters() if stored_last(value)}


@pytest.mark.parametrize("border", ["zeros", "replicate"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_enlarging_is_nearest_neighbours_and_then_a_convolution(
    border: Literal["zeros", "replicate"], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = maps.UpConv(3, 4, border).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    twice = interpolate(x, scale_factor=2, mode="nearest")
    mode = "constant" if border == "zeros" else border
    expected = conv2d(pad(twice, (1, 1, 1, 1), mode=mode), layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(expected)
    inputs = [x, *layer.parameters()]
    given = torch.autograd.grad((found * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_pieces_cover_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(7, 3, 4, 5)
    monkeypatch.setattr(maps, "PIECE_CPU", 65)
    with torch.no_grad():
        taken = [torch.arange(7)[piece].tolist() for piece in maps.pieces(images)]
        assert taken == [[0, 1, 2], [3, 4, 5], [6]]
        assert len(maps.pieces(torch.zeros(2, 3, 9, 9))) == 2  # never less than an image
    assert [torch.arange(7)[piece].tolist() for piece in maps.pieces(images)] == [list(range(7))]


def test_enlarging_knows_both_layouts() -> None:
    torch.manual_seed(0)
    layer, x = maps.UpConv(8, 4, "replicate"), torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(layer(channels_last(x)), layer(x), atol=1e-5, rtol=0)


def test_resize_keeps_the_corners_and_is_linear_between() -> None:
    ramp = (torch.arange(4.0)[:, None] * 10 + torch.arange(3.0)).expand(1, 1, 4, 3)
    found = maps.resize(ramp, (7, 9))[0, 0]
    expected = torch.linspace(0, 30, 7)[:, None] + torch.linspace(0, 2, 9)
    torch.testing.assert_close(found, expected)


def test_group_norm_gets_what_it_sums_well() -> None:
    x = channels_last(torch.randn(1, 16, 8, 8) + 3)
    assert maps.for_group_norm(x).is_contiguous()
    assert stored_last(maps.for_group_norm(x.bfloat16()))


def test_all_images_are_taken_as_they_are_but_on_cpus() -> None:
    x = torch.zeros(3, 2, 4, 5)
    there = x.to("meta")
    assert maps.take(there, slice(0, 3)) is there and maps.take(x, slice(0, 3)) is not x
    for each in (x, there):
        assert maps.take(each, slice(1, 3)).shape == (2, 2, 4, 5)
        assert maps.take(each, slice(0, 2)).shape == (2, 2, 4, 5)

"""Blocks of points beside what they mean, written with torch's own layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    gelu,
    layer_norm,
    linear,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_dot_product_attention,
)

from pmsplat.nn import points
from pmsplat.nn.points import GlobalBlock, NeighborBlock, Neighbors, to_maps, to_points


def shaken(block: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def mlp(block: points.Mlp, x: Tensor) -> Tensor:
    hidden = gelu(block.fc1(layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias)))
    return x + linear(hidden, block.fc2.weight, block.fc2.bias)


def test_a_point_sees_its_neighbours_and_nobody_else(generator: torch.Generator) -> None:
    """As attention of all points to all, masked; with gradients."""
    block, count = shaken(NeighborBlock(12, 8)), 20
    assert isinstance(block, NeighborBlock)
    x = torch.randn(2, count, 12, generator=generator, requires_grad=True)
    order = torch.rand(2, count, count, generator=generator).argsort(dim=-1)
    table = order[..., :5]
    mask = torch.zeros(2, count, count, dtype=torch.bool).scatter(2, table, True)
    qkv = block.qkv(layer_norm(x, (12,), block.norm.weight, block.norm.bias))
    seen = scaled_dot_product_attention(*qkv.chunk(3, dim=-1), attn_mask=mask)
    expected = mlp(block.mlp, x + block.out(seen))
    found = block(x, Neighbors.of(table))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(found.shape, generator=generator)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *block.parameters()])
    given = torch.autograd.grad((found * weight).sum(), [x, *block.parameters()])
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(block(x, Neighbors.of(table)), found, atol=1e-5, rtol=1e-5)


def test_tokens_of_all_views_of_a_scene_meet(generator: torch.Generator) -> None:
    block, views = shaken(GlobalBlock(8)), 3
    assert isinstance(block, GlobalBlock)
    maps = torch.randn(2 * views, 8, 8, 12, generator=generator)
    x = pixel_unshuffle(maps, 4).flatten(2).transpose(1, 2).reshape(2, views * 6, 16 * 8)
    x = block.join_norm(block.join(x))
    tokens = block.tokens
    qkv = tokens.qkv(tokens.norm(x)).unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4)
    seen = scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
    x = mlp(tokens.mlp, x + tokens.out(seen))
    x = block.split_norm(block.split(x)).unflatten(1, (views, 2, 3)).flatten(0, 1)
    x = pixel_shuffle(x.permute(0, 3, 1, 2), 4)
    with torch.no_grad():
        found = block(maps, views)
        torch.testing.assert_close(found, maps + block.smooth(x), atol=1e-5, rtol=1e-5)
        alone = block(maps[views:], views)
    torch.testing.assert_close(alone, found[views:], atol=1e-5, rtol=1e-5)


def test_an_mlp_in_pieces_is_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = points.Mlp(8), torch.randn(2, 11, 8, generator=generator)
    whole, widest = block(x), []
    block.fc2.register_forward_pre_hook(lambda _module, given: widest.append(given[0].numel()))
    monkeypatch.setattr(points, "HIDDEN_CPU", 3 * 4 * 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole)
    assert max(widest) == 3 * 4 * 8


def test_points_are_pixels_of_view_after_view(generator: torch.Generator) -> None:
    maps = torch.randn(6, 5, 4, 8, generator=generator)
    rows = to_points(maps, 3)
    assert torch.equal(rows[1, 2 * 32 + 3 * 8 + 7], maps[5, :, 3, 7])
    assert torch.equal(to_maps(rows, 3, 4), maps)
    assert to_maps(rows, 3, 4).is_contiguous(memory_format=torch.channels_last)

"""Which views are anchors, and how the others' features are gathered in them."""

import pytest
import torch
from torch import Tensor

from pmsplat.nn import anchors
from pmsplat.nn.anchors import Anchors, Compress, attend_to_supports, choose_anchors
from tests.scenes import random_cameras


def farthest(centers: Tensor, count: int) -> list[int]:
    """The definition, view by view, in float64."""
    centers = centers.double()
    chosen = [max(range(len(centers)), key=lambda v: (centers[v] - centers.mean(0)).norm().item())]
    while len(chosen) < count:
        gap = [
            min((centers[v] - centers[a]).norm().item() for a in chosen)
            for v in range(len(centers))
        ]
        chosen.append(
            max((v for v in range(len(centers)) if v not in chosen), key=lambda v: gap[v])
        )
    return chosen


@pytest.mark.parametrize("views, count", [(3, 2), (7, 3), (12, 6), (5, 5)])
def test_anchors_are_the_farthest_centers(
    views: int, count: int, generator: torch.Generator
) -> None:
    centers = torch.randn(3, views, 3, generator=generator)
    found = choose_anchors(centers, count)
    assert found.tolist() == [farthest(scene, count) for scene in centers]


def test_other_views_support_the_nearest_anchor(generator: torch.Generator) -> None:
    c2w = random_cameras(9, generator, 2).c2w
    found = Anchors.of(c2w, 4)
    for scene in range(2):
        index, rest = found.index[scene].tolist(), found.rest[scene].tolist()
        assert sorted(index + rest) == list(range(9)) and rest == sorted(rest)
        centers = c2w[scene, :, :3, 3].double()
        for view, owner in zip(rest, found.owner[scene].tolist(), strict=True):
            away = (centers[index] - centers[view]).norm(dim=-1)
            assert away[owner] == away.min()


def test_never_more_anchors_than_views_nor_one_twice(generator: torch.Generator) -> None:
    c2w = random_cameras(3, generator).c2w
    found = Anchors.of(c2w, 6)
    assert found.index.shape == (1, 3) and found.rest.shape == (1, 0)
    alike = Anchors.of(c2w[:, [0, 1, 0, 1, 0]], 4)
    assert len(set(alike.index[0].tolist())) == 4


def softmax_over_group(q: Tensor, k: Tensor, v: Tensor, owner: Tensor) -> Tensor:
    """The definition, with all pairs of pixels."""
    out = torch.zeros_like(q)
    for b in range(len(q)):
        for a in range(q.shape[1]):
            mine = [s for s in range(k.shape[1]) if owner[b, s] == a]
            if mine:
                keys, values = torch.cat(list(k[b, mine])), torch.cat(list(v[b, mine]))
                scores = q[b, a] @ keys.T / q.shape[-1] ** 0.5
                out[b, a] = scores.softmax(dim=-1) @ values
    return out


@pytest.mark.parametrize("way", ["anchor by anchor", "support by support"])
def test_all_supports_of_an_anchor_compete(way: str, generator: torch.Generator) -> None:
    q, k, v = (
        torch.randn(2, count, 6, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for count in (3, 5, 5)
    )
    owner = torch.tensor([[0, 2, 2, 0, 2], [1, 1, 1, 1, 1]])
    attend = attend_to_supports if way == "anchor by anchor" else anchors._by_support
    weights = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64)
    gradients = []
    for how in (attend, softmax_over_group):
        found = how(q, k, v, owner)
        gradients.append(torch.autograd.grad((found * weights).sum(), (q, k, v)))
        atol, rtol = (1e-5, 1e-5) if how is anchors._by_support else (1e-12, 0)
        wanted = softmax_over_group(q, k, v, owner)
        torch.testing.assert_close(found, wanted, atol=atol, rtol=rtol)
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def shaken_block(generator: torch.Generator) -> Compress:
    torch.manual_seed(0)
    block = Compress(8, "sdpa")
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return block


def test_a_new_block_gives_the_anchors_own_maps(generator: torch.Generator) -> None:
    own, supports = (torch.randn(2, n, 8, 4, 6, generator=generator) for n in (3, 2))
    owner = torch.tensor([[0, 0], [2, 1]])
    assert torch.equal(Compress(8, "sdpa")(own, supports, owner), own)


def test_a_new_block_learns(generator: torch.Generator) -> None:
    block = Compress(8, "sdpa")
    own, supports = (torch.randn(1, n, 8, 4, 6, generator=generator) for n in (3, 2))
    block(own, supports, torch.tensor([[0, 2]])).square().sum().backward()
    first = block.get_submodule("layers.0")
    for name in ("cross_out.weight", "cross_out.bias", "self_qkv.weight", "mlp.fc2.weight"):
        gradient = first.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name


def test_anchors_see_their_own_supports_alone(generator: torch.Generator) -> None:
    block = shaken_block(generator)
    own, supports = (torch.randn(1, 2, 8, 4, 6, generator=generator) for _ in range(2))
    owner = torch.tensor([[1, 1]])
    changed = supports.clone()
    changed[:, 1] += 1
    with torch.no_grad():
        before, after = block(own, supports, owner), block(own, changed, owner)
        alone = block(own[:, :1], supports[:, :0], owner[:, :0])
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])
    torch.testing.assert_close(before[:, :1], alone)  # nothing is added where there is no support


def test_recomputed_layers_give_the_same_gradients(generator: torch.Generator) -> None:
    block = shaken_block(generator)
    own, supports = (torch.randn(1, n, 8, 4, 6, generator=generator) for n in (3, 2))
    found = []
    for leaf in (True, False):  # maps that want gradients are computed layer by layer again
        block.zero_grad()
        given = own.clone().requires_grad_(leaf)
        block(given, supports, torch.tensor([[0, 2]])).square().sum().backward()
        found.append([p.grad for p in block.parameters()])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)

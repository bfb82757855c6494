"""Many views gathered in a few: ZPressor's anchors, and the block that compresses views into them.

Wang et al., "ZPressor: Bottleneck-Aware Compression for Scalable Feed-Forward 3DGS", NeurIPS 2025
(ziplab/ZPressor). Anchors are found by farthest point sampling of the camera centers (Eldar et al.,
1997); every other view supports the anchor that is nearest to it.
"""

from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import cpu_rules
from ..kernels.attention import attention
from ..kernels.linear import Linear
from ..kernels.norm import LayerNorm
from ..types import Views
from .maps import pieces
from .points import Mlp

LAYERS = 6
SCORES = 2**26  # of queries and keys that are held at a time, without gradients, outside of CPUs


@dataclass(frozen=True)
class Anchors:
    """Which of the views of each scene are anchors, and which anchor each of the others supports.

    `index` are views in the order in which they were chosen, `rest` the others in their own order;
    `owner` are numbers of anchors.
    """

    index: Int[Tensor, "batch anchor"]
    rest: Int[Tensor, "batch support"]
    owner: Int[Tensor, "batch support"]

    @staticmethod
    def of(c2w: Float[Tensor, "batch view 4 4"], count: int) -> "Anchors":
        """So many anchors of views seen by these cameras, or all views where there are no more."""
        centers = c2w[..., :3, 3].float()
        index = choose_anchors(centers, min(count, centers.shape[1]))
        is_anchor = torch.zeros_like(centers[..., 0]).scatter(1, index, 1)
        rest = is_anchor.argsort(dim=1, stable=True)[:, : centers.shape[1] - index.shape[1]]
        away = _distances(_take(centers, rest), _take(centers, index))
        return Anchors(index, rest, away.argmin(dim=-1))

    def own(
        self, x: Shaped[Tensor, "n channel height width"]
    ) -> Shaped[Tensor, "m channel height width"]:
        """The images of the anchors, of those of all views of one scene after another."""
        return _take_images(x, self.index)

    def others(
        self, x: Shaped[Tensor, "n channel height width"]
    ) -> Shaped[Tensor, "m channel height width"]:
        """Those of the other views."""
        return _take_images(x, self.rest)

    def views(self, views: Views) -> Views:
        """The images and cameras of the anchors."""
        return Views(views.images, views.cameras).gather(self.index)


def choose_anchors(
    centers: Float[Tensor, "batch view 3"], count: int
) -> Int[Tensor, "batch {count}"]:
    """`count` different views, at most all: first the one farthest from the mean of the centers,
    then, again and again, the one farthest from those that were chosen. Batch elements by
    themselves; without waiting for the device."""
    chosen = [(centers - centers.mean(dim=1, keepdim=True)).square().sum(dim=-1).argmax(dim=1)]
    gap = torch.full_like(centers[..., 0], torch.inf)
    while len(chosen) < count:
        last = chosen[-1][:, None]
        gap = torch.minimum(gap, (centers - _take(centers, last)).square().sum(dim=-1))
        gap = gap.scatter(1, last, -1.0)  # never again, even where centers coincide
        chosen.append(gap.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def _distances(a: Float[Tensor, "batch n 3"], b: Float[Tensor, "batch m 3"]) -> Tensor:
    return (a[:, :, None] - b[:, None]).square().sum(dim=-1)


def _take(x: Shaped[Tensor, "batch view *_"], index: Int[Tensor, "batch n"]) -> Tensor:
    scene = torch.arange(len(x), device=x.device)[:, None]
    return x[scene, index]


def _take_images(x: Tensor, index: Int[Tensor, "batch n"]) -> Tensor:
    scene = torch.arange(len(index), device=x.device)[:, None]
    return x[(index + scene * (len(x) // len(index))).flatten()]


class Compress(nn.Module):
    """Feature maps of all views -> those of the anchors, informed by the views that support them.

    Each layer attends to the supports as they entered the block, then within the anchor. A new
    block changes nothing: it gives the anchors' own maps.
    """

    def __init__(self, width: int, backend: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, backend) for _ in range(LAYERS))

    def forward(
        self,
        own: Float[Tensor, "batch anchor channel height width"],
        supports: Float[Tensor, "batch support channel height width"],
        owner: Int[Tensor, "batch support"],
    ) -> Float[Tensor, "batch anchor channel height width"]:
        x, seen = (rearrange(maps, "b v c h w -> b v (h w) c") for maps in (own, supports))
        for layer in self.layers:
            step = layer
            if torch.is_grad_enabled() and x.requires_grad:
                # the scores of one layer at a time are kept for gradients, and computed again
                step = partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
            x = step(x, seen, owner)
        return rearrange(x, "b n (h w) c -> b n c h w", h=own.shape[-2])


@dataclass(frozen=True)
class ViewMaps:
    """A CNN's maps of the anchors, high to low resolution, and the last one of the other views."""

    own: tuple[Float[Tensor, "n _ _ _"], ...]
    supports: Float[Tensor, "m channel height width"]

    def coarse(self, batch: int) -> tuple[Tensor, Tensor]:
        """The last maps of the anchors and of the others, [batch, view, channel, height, width]."""
        return self.own[-1].unflatten(0, (batch, -1)), self.supports.unflatten(0, (batch, -1))


def maps_of(
    cnn: nn.Module, images: Float[Tensor, "n 3 height width"], anchors: Anchors
) -> ViewMaps:
    """What a CNN says of all views, of the anchors at once and of the others in pieces.

    Without Winograd's transforms: what is gathered is so sensitive to rounding that it wants exact
    features.
    """
    with cpu_rules.without_transforms():
        own, others = cnn(anchors.own(images)), anchors.others(images)
        parts = pieces(others) if len(others) else []
        supports = [cnn(others[part])[-1] for part in parts]
    return ViewMaps(own, torch.cat(supports) if supports else own[-1][:0])


class Layer(nn.Module):
    """Attention of each anchor to its supports, then to itself, then a feed-forward network.

    An anchor without supports is left as it is by the first. One head; the second has no matrix for
    its result, as published.
    """

    def __init__(self, width: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.cross_norm = LayerNorm(width)
        self.support_norm = LayerNorm(width)
        self.cross_q = Linear(width, width, bias=False)
        self.cross_kv = Linear(width, 2 * width, bias=False)
        self.cross_out = Linear(width, width)
        self.self_norm = LayerNorm(width)
        self.self_qkv = Linear(width, 3 * width, bias=False)
        self.mlp = Mlp(width)
        with torch.no_grad():  # so that the block starts as the identity
            for part in (self.cross_out, self.mlp.fc2):
                part.weight.zero_()
                part.bias.zero_()
            self.self_qkv.weight[2 * width :] = 0

    def forward(
        self,
        x: Float[Tensor, "batch anchor pixel channel"],
        supports: Float[Tensor, "batch support pixel channel"],
        owner: Int[Tensor, "batch support"],
    ) -> Float[Tensor, "batch anchor pixel channel"]:
        if supports.shape[1]:
            queries = self.cross_q(self.cross_norm(x))
            keys, values = self.cross_kv(self.support_norm(supports)).chunk(2, dim=-1)
            attended = attend_to_supports(queries, keys, values, owner, self.backend)
            helped = (owner[:, None] == _numbers(x)).any(dim=-1)[..., None, None]
            x = x + helped * self.cross_out(attended)
        q, k, v = (
            part.flatten(0, 1)[:, None]
            for part in self.self_qkv(self.self_norm(x)).chunk(3, dim=-1)
        )
        x = x + attention(q, k, v, backend=self.backend)[:, 0].view_as(x)
        return self.mlp(x)


def _numbers(anchors: Float[Tensor, "batch anchor *_"]) -> Int[Tensor, "anchor 1"]:
    return torch.arange(anchors.shape[1], device=anchors.device)[:, None]


def attend_to_supports(
    q: Float[Tensor, "batch anchor pixel channel"],
    k: Float[Tensor, "batch support pixel channel"],
    v: Float[Tensor, "batch support pixel channel"],
    owner: Int[Tensor, "batch support"],
    backend: str = "sdpa",
) -> Float[Tensor, "batch anchor pixel channel"]:
    """Attention of each anchor's pixels to all pixels of the supports that it owns, in one softmax.

    Zero where an anchor owns none. With gradients to q, k and v. On CPUs it goes from anchor to
    anchor. Elsewhere the host does not know how many supports each has, and does not wait to learn
    it: scores are computed for each support and its owner.
    """
    if q.device.type != "cpu":
        rows = q.shape[2]
        if not torch.is_grad_enabled():
            rows = max(1, SCORES // max(1, k.shape[0] * k.shape[1] * k.shape[2]))
        return torch.cat([_by_support(part, k, v, owner) for part in q.split(rows, dim=2)], dim=2)
    scenes = []
    for queries, keys, values, owners in zip(q, k, v, owner, strict=True):
        parts = []
        for number, own in enumerate(queries):
            mine = owners == number
            seen = (own, keys[mine].flatten(0, 1), values[mine].flatten(0, 1))
            if not len(seen[1]):
                parts.append(torch.zeros_like(own))
                continue
            parts.append(attention(*(part[None, None] for part in seen), backend=backend)[0, 0])
        scenes.append(torch.stack(parts))
    return torch.stack(scenes)


def _by_support(q: Tensor, k: Tensor, v: Tensor, owner: Tensor) -> Tensor:
    """`attend_to_supports` without knowing on the host how many supports each anchor has."""
    scores = (_take(q, owner) @ k.mT).float() * q.shape[-1] ** -0.5
    member = owner[:, None] == _numbers(q)  # [batch, anchor, support]
    best = scores.detach().amax(dim=-1)[:, None].where(member[..., None], -torch.inf)
    best = best.amax(dim=2)
    weights = (scores - _take(best, owner)[..., None]).exp()
    belongs = member.to(weights)
    total = torch.einsum("bns,bsp->bnp", belongs, weights.sum(dim=-1))
    mixed = torch.einsum("bns,bspc->bnpc", belongs, (weights.to(v) @ v).to(weights))
    return (mixed / total.clamp_min(1e-30)[..., None]).to(q)

"""A transformer that exchanges features between views, in windows that shift from layer to layer.

Layers as in GMFlow and UniMatch (Xu et al., CVPR 2022, PAMI 2023), windows as in Liu et al., "Swin
Transformer", ICCV 2021: the map is cut into 2x2 windows, wide maps into more; every odd layer cuts
it half a window further on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ..geometry.constants import keep_results
from ..kernels.attention import attention
from ..kernels.linear import Linear, linear_gelu
from ..kernels.norm import LayerNorm
from .maps import compute_dtype

SPLITS = 2  # windows per axis of a map that is not wide
APART = -100.0  # added to the score of two pixels that only the cyclic shift made neighbours


def windows_per_axis(width: int, wide: Sequence[int]) -> int:
    """How many windows each axis of a map `width` pixels wide is cut into: 2, doubled for each of
    the widths `wide` that it exceeds."""
    return SPLITS << sum(width > limit for limit in wide)


def sine_position(
    height: int, width: int, channels: int, like: Tensor
) -> Float[Tensor, "channel height width"]:
    """Where a pixel stands inside its window of 2x2, as sines and cosines: half the channels for y,
    then half for x (Vaswani et al., 2017; counted from 1 and scaled to 2π, as published)."""

    def axis(length: int) -> Tensor:
        window = length // SPLITS
        place = torch.arange(1, window + 1, device=like.device, dtype=torch.float32)
        place = (place / (window + 1e-6) * (2 * torch.pi)).repeat(SPLITS)
        index = torch.arange(channels // 4, device=like.device, dtype=torch.float32)
        angle = place[:, None] / 10000 ** (index * (4 / channels))
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)

    y = axis(height)[:, None].expand(height, width, channels // 2)
    x = axis(width)[None].expand(height, width, channels // 2)
    return torch.cat([y, x], dim=-1).permute(2, 0, 1).to(like)


def to_windows(
    x: Shaped[Tensor, "*batch height width channel"], shift: bool, splits: int = SPLITS
) -> Shaped[Tensor, "*batch window pixel channel"]:
    """Cuts a map into splits x splits windows, row-major; `shift` first turns it by half a window.

    Height and width must be multiples of `splits`.
    """
    height, width = x.shape[-3:-1]
    if shift:
        x = x.roll((-_half(height, splits), -_half(width, splits)), dims=(-3, -2))
    return rearrange(x, "... (p h) (q w) c -> ... (p q) (h w) c", p=splits, q=splits)


def from_windows(
    x: Shaped[Tensor, "*batch window pixel channel"],
    height: int,
    width: int,
    shift: bool,
    splits: int = SPLITS,
) -> Shaped[Tensor, "*batch {height} {width} channel"]:
    """Undoes `to_windows`."""
    x = rearrange(
        x, "... (p q) (h w) c -> ... (p h) (q w) c", p=splits, q=splits, h=height // splits
    )
    if shift:
        x = x.roll((_half(height, splits), _half(width, splits)), dims=(-3, -2))
    return x


def _half(length: int, splits: int) -> int:
    return length // splits // 2


def shift_mask(
    height: int,
    width: int,
    others: int,
    like: Tensor,
    *,
    by_view: bool = False,
    splits: int = SPLITS,
) -> Float[Tensor, "window pixel key"]:
    """APART between the pixels of a shifted window that do not touch in the image, else 0.

    Keys are the pixels of the first other view, then those of the second, ... `by_view`
    is a fault that released weights were trained with: their code orders keys by pixel, then view,
    but repeats the mask as if they were ordered by view, then pixel.
    """

    def side(length: int) -> Tensor:
        place = torch.arange(length, device=like.device)
        last, turned = length - length // splits, length - _half(length, splits)
        return (place >= last).int() + (place >= turned).int()

    region = (3 * side(height)[:, None] + side(width)).float()
    region = to_windows(region[..., None], False, splits)[..., 0]
    pixels = region.shape[-1]
    column = torch.arange(pixels, device=like.device).expand(others, pixels)
    if by_view:
        view = torch.arange(others, device=like.device)[:, None]
        column = (column * others + view) % pixels
    apart = region[:, :, None] != region[:, None, column.flatten()]
    return apart.to(torch.float32) * APART


def add_position(
    features: Float[Tensor, "*batch channel height width"],
) -> Float[Tensor, "*batch channel height width"]:
    """Maps with `sine_position` added: where a pixel stands inside its window of 2x2, however many
    windows the transformer cuts them into, as published."""
    channels, height, width = features.shape[-3:]
    position = _position(height, width, channels, features.dtype, features.device)
    return features + position.t().unflatten(1, (height, width))


@keep_results
def _position(
    height: int, width: int, channels: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "pixel channel"]:
    """`sine_position` of the pixels, row-major."""
    like = torch.empty((), dtype=dtype, device=device)
    return sine_position(height, width, channels, like).flatten(1).t().contiguous()


@keep_results
def _mask(
    height: int,
    width: int,
    splits: int,
    others: int,
    by_view: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Float[Tensor, "window pixel key"]:
    like = torch.empty((), device=device)
    return shift_mask(height, width, others, like, by_view=by_view, splits=splits).to(dtype)


@dataclass(frozen=True)
class _Route:
    """A permutation of the pixels of a map, and the one that undoes it."""

    order: Int[Tensor, " pixel"]
    back: Int[Tensor, " pixel"]


@keep_results
def _route(
    height: int,
    width: int,
    splits: int,
    before: bool | None,
    after: bool | None,
    device: torch.device,
) -> _Route:
    """From one order of the pixels to another: windows, shifted or not, or row-major (None)."""

    def ordered(shift: bool | None) -> Tensor:
        pixels = torch.arange(height * width, device=device)
        if shift is None:
            return pixels
        return to_windows(pixels.view(height, width, 1), shift, splits).flatten()

    there, here = ordered(before).argsort()[ordered(after)], ordered(after).argsort()
    return _Route(there, here[ordered(before)])


class _Reorder(torch.autograd.Function):
    """x[:, order]. Its gradient is a gather too; autograd would scatter, which is slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, route: _Route) -> Tensor:
        ctx.back = route.back
        return x.index_select(1, route.order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(1, ctx.back), None


class FeedForward(nn.Sequential):
    """Linear, GELU, linear; without biases."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        first = Linear(inputs, hidden, bias=False)
        super().__init__(first, nn.GELU(), Linear(hidden, outputs, bias=False))

    def forward(self, input: Tensor) -> Tensor:
        first, _, last = self
        assert isinstance(first, Linear)
        return last(linear_gelu(input, first.weight))


class Layer(nn.Module):
    """Self-attention, then cross-attention to the other views with a feed-forward network.

    Both add a normalised message. The other views' keys and values are those that entered the
    layer, so that all views can be updated at once.
    """

    def __init__(self, width: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.self_qkv = Linear(width, 3 * width, bias=False)
        self.self_merge = Linear(width, width, bias=False)
        self.self_norm = LayerNorm(width)
        self.cross_q = Linear(width, width, bias=False)
        self.cross_kv = Linear(width, 2 * width, bias=False)
        self.cross_merge = Linear(width, width, bias=False)
        self.cross_norm = LayerNorm(width)
        self.mlp = FeedForward(2 * width, 8 * width, width)
        self.mlp_norm = LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "n window pixel channel"],
        others: Int[Tensor, "n other"],
        self_mask: Float[Tensor, "window pixel pixel"] | None,
        cross_mask: Float[Tensor, "window pixel key"] | None,
    ) -> Float[Tensor, "n window pixel channel"]:
        """`others[i]` lists the maps of the `n` that map i looks at."""
        given = x.to(compute_dtype(x))  # once for both layers that read it, as below
        seen = self.cross_kv(given).index_select(0, others.flatten())
        seen = rearrange(seen, "(n o) s p c -> n s (o p) c", n=len(x))
        attended = self._attend(*self.self_qkv(given).chunk(3, dim=-1), mask=self_mask)
        x = self.self_norm.add_to(x, self.self_merge(attended))
        given = x.to(compute_dtype(x))
        attended = self._attend(self.cross_q(given), *seen.chunk(2, dim=-1), mask=cross_mask)
        message = self.cross_norm(self.cross_merge(attended))
        return self.mlp_norm.add_to(x, self.mlp(torch.cat([given, message.to(given)], dim=-1)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """One head. Kernels see windows as images of their own, and their result needs no copy;
        with a mask they see them as heads, so that all images share it.
        """
        if mask is not None:
            return attention(q, k, v, mask=mask[None], backend=self.backend)
        flat = (t.flatten(0, 1)[:, None] for t in (q, k, v))
        return attention(*flat, backend=self.backend)[:, 0].unflatten(0, q.shape[:2])


class MultiViewTransformer(nn.Module):
    """Feature maps of all views -> the same maps, each informed by the `others` it attends to.

    The maps have their positions (`add_position`). `others[b, v]` lists the views that view v looks
    at. Height and width must be multiples of `windows_per_axis(width, wide)`.
    `mask_by_view`: see `shift_mask`; it acts where there is more than one other view.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        wide: Sequence[int] = (),
        mask_by_view: bool = False,
        backend: str = "sdpa",
    ) -> None:
        super().__init__()
        self.wide = tuple(wide)
        self.mask_by_view = mask_by_view
        self.layers = nn.ModuleList(Layer(width, backend) for _ in range(layers))

    def forward(
        self,
        features: Float[Tensor, "batch view channel height width"],
        others: Int[Tensor, "batch view other"],
    ) -> Float[Tensor, "batch view channel height width"]:
        batch, views, channels, height, width = features.shape
        dtype, device = compute_dtype(features), features.device
        x = features.flatten(0, 1).permute(0, 2, 3, 1).flatten(1, 2)
        splits = windows_per_axis(width, self.wide)
        masks = (
            _mask(height, width, splits, 1, False, dtype, device),
            _mask(height, width, splits, others.shape[-1], self.mask_by_view, dtype, device),
        )
        scene = torch.arange(batch, device=device)[:, None, None]
        flat = (others + views * scene).flatten(0, 1)
        # The pixels stay in the order of the windows, and move straight to that of the next layer.
        shift = None
        for index, layer in enumerate(self.layers):
            before, shift = shift, index % 2 == 1
            x = _Reorder.apply(x, _route(height, width, splits, before, shift, device))
            x = layer(x.unflatten(1, (splits**2, -1)), flat, *(masks if shift else (None, None)))
            x = x.flatten(1, 2)
        if shift is not None:
            x = _Reorder.apply(x, _route(height, width, splits, shift, None, device))
        return x.view(batch, views, height, width, channels).permute(0, 1, 4, 2, 3)

"""From feature maps to depth: which views are matched, which depths are tried, and the network that
reads one scale's cost volume."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..geometry import camera, se3, sweep
from ..geometry.products import matmul
from ..kernels.convolution import Conv2d
from ..kernels.cost_volume import Sweep, correlation
from ..types import Cameras
from .maps import BorderConv, ChannelsFirst, conv_of, for_conv_of
from .unet import GroupNorm, UNet


def all_others(c2w: Float[Tensor, "batch view 4 4"]) -> Int[Tensor, "batch view other"]:
    """Every other view, in order of index."""
    batch, views = c2w.shape[:2]
    rank = torch.arange(views - 1, device=c2w.device)
    view = torch.arange(views, device=c2w.device)[:, None]
    return (rank + (rank >= view)).expand(batch, -1, -1)


def nearest_others(
    c2w: Float[Tensor, "batch view 4 4"], count: int
) -> Int[Tensor, "batch view other"]:
    """The (at most) `count` other views whose camera centres are nearest, nearest first."""
    centers = c2w[..., :3, 3].float()
    distance = (centers[:, :, None] - centers[:, None]).norm(dim=-1)
    oneself = torch.eye(distance.shape[-1], dtype=torch.bool, device=c2w.device)
    return distance.masked_fill(oneself, torch.inf).argsort(dim=-1, stable=True)[
        ..., : min(count, c2w.shape[1] - 1)
    ]


def homographies(
    cameras: Cameras,
    others: Int[Tensor, "batch view other"],
    height: int,
    width: int,
    *,
    reference_K: bool = False,
) -> Float[Tensor, "batch view other 3 4"]:
    """Plane-sweep homographies from each view to its other views, in pixels of a map of that size.

    `reference_K` projects with the intrinsics of the view itself, as published networks did.
    """
    scene = torch.arange(len(others), device=others.device)[:, None, None]
    # float64: pixels are multiplied by these and then nearly cancel
    K, c2w = camera.K_px(cameras.K.double(), height, width), cameras.c2w.double()
    moved = matmul(se3.invert(c2w)[scene, others], c2w[:, :, None])
    K_ref = K[:, :, None].expand(*others.shape, 3, 3)
    return sweep.homography(moved, K_ref, K_ref if reference_K else K[scene, others]).float()


@dataclass(frozen=True)
class DepthSpace:
    """The quantity in which depth is searched, averaged, corrected and clamped: maps to and from
    depth, elementwise."""

    from_depth: Callable[[Tensor], Tensor]
    to_depth: Callable[[Tensor], Tensor]
    to_inv_depth: Callable[[Tensor], Tensor]


INVERSE = DepthSpace(torch.reciprocal, torch.reciprocal, lambda value: value)
LOG = DepthSpace(torch.log, torch.exp, lambda value: torch.exp(-value))


@dataclass(frozen=True)
class Candidates:
    """What a scale tries: `planes` values of `space`, evenly from `low` to `high`.

    Inverse depths begin at far, logarithms of depth at near.
    """

    low: Float[Tensor, "n height_or_1 width_or_1"]
    high: Float[Tensor, "n height_or_1 width_or_1"]
    planes: int
    space: DepthSpace = INVERSE

    @property
    def steps(self) -> Float[Tensor, "plane"]:  # noqa: F821
        """From 0 to 1."""
        return torch.linspace(0, 1, self.planes, device=self.low.device)

    @property
    def inv_depth(self) -> Float[Tensor, "n plane height_or_1 width_or_1"]:
        low, span = self.low[:, None], (self.high - self.low)[:, None]
        return self.space.to_inv_depth(low + self.steps[:, None, None] * span)

    def hold(
        self, value: Float[Tensor, "n height width"], *, hard_clamp: bool = False
    ) -> Float[Tensor, "n height width"]:
        """`value`, clamped to the range from `low` to `high`.

        Outside the range the gradient is kept only where gradient descent moves the value back in.
        `hard_clamp` drops it always, as released networks do: a value that left the range never
        returns. The rule is that of learned compression (Ballé et al., "Variational Image
        Compression with a Scale Hyperprior", ICLR 2018, lower bound of the scales).
        """
        if hard_clamp:
            return torch.minimum(torch.maximum(value, self.low), self.high)
        held: Tensor = _Held.apply(value, self.low, self.high)  # pyright: ignore
        return held

    def expected(self, probability: Float[Tensor, "n height width plane"]) -> Tensor:
        """The mean value [n, height, width], with gradients to the probabilities."""
        with torch.autocast(probability.device.type, enabled=False):
            return self.low + (probability @ self.steps) * (self.high - self.low)


class _Held(torch.autograd.Function):
    """`Candidates.hold`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x < low, x > high)
        return torch.minimum(torch.maximum(x, low), high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        below, above = ctx.saved_tensors
        leads_away = (below & (grad > 0)) | (above & (grad < 0))
        return grad.masked_fill(leads_away, 0), None, None


def full_range(
    near: Float[Tensor, " n"], far: Float[Tensor, " n"], planes: int, space: DepthSpace = INVERSE
) -> Candidates:
    """Everything between near and far."""
    ends = space.from_depth(near)[:, None, None], space.from_depth(far)[:, None, None]
    return Candidates(torch.minimum(*ends), torch.maximum(*ends), planes, space)


def around(coarse: Float[Tensor, "n height width"], whole: Candidates, planes: int) -> Candidates:
    """`planes` candidates centered on a coarser estimate (a value of the space of `whole`), half a
    coarse step apart.

    Their ends are clipped to the whole range, and the steps then become smaller. No gradient flows
    into the coarse estimate.
    """
    step = (whole.high - whole.low) / (whole.planes - 1) / 2
    half = planes // 2
    low = torch.maximum(coarse.detach() - half * step, whole.low)
    high = torch.minimum(coarse.detach() + (planes - half - 1) * step, whole.high)
    return replace(whole, low=low, high=high, planes=planes)


def cost_volume(
    features: Float[Tensor, "batch view channel height width"],
    cameras: Cameras,
    others: Int[Tensor, "batch view other"],
    candidates: Candidates,
    *,
    reference_K: bool = False,
    pixel_corners: bool = False,
) -> Float[Tensor, "n plane height width"]:
    """How well every depth candidate of every pixel agrees with the other views.

    Two faults that released networks were trained with: `reference_K` projects into all views with
    the K of the view itself, `pixel_corners` sends the rays through the corners of pixels.
    """
    height, width = features.shape[-2:]
    device = features.device.type
    # On CUDA devices the products are in the type of autocast, as those of any layer
    if device == "cuda" and torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        sweep = Sweep(
            others,
            homographies(cameras, others, height, width, reference_K=reference_K),
            candidates.inv_depth.unflatten(0, others.shape[:2]),
            pixel_center=0.0 if pixel_corners else 0.5,
        )
        return correlation(features, sweep).flatten(0, 1)


@dataclass(frozen=True)
class Match:
    """The estimate of a scale, in the space of its candidates, and their probabilities."""

    value: Float[Tensor, "n height width"]
    probability: Float[Tensor, "n height width plane"]

    @cached_property  # a head and the prediction read it
    def confidence(self) -> Float[Tensor, "n height width"]:
        """The probability of the best candidate."""
        return self.probability.amax(dim=-1)

    def confidence_at(self, size: tuple[int, int]) -> Float[Tensor, "n 1 {size[0]} {size[1]}"]:
        """That of the nearest value, for every pixel of an image of (height, width)."""
        return interpolate(self.confidence[:, None], size=size, mode="nearest")


class Regressor(ChannelsFirst):
    """Cost volume and feature maps of one scale -> the estimate of depth.

    A U-Net of `levels` levels with attention over all views at the deepest, then a softmax over the
    hypotheses, whose mean is the answer.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        levels: int,
        planes: int,
        backend: str,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Conv2d(inputs, width, 3, padding=1)
        self.norm = GroupNorm(width, activation="gelu")
        self.unet = UNet((width,) * levels, post_norm=post_norm, backend=backend)
        self.out = Conv2d(width, width, 3, padding=1)
        self.residual = Conv2d(inputs, width, 1)
        conv = partial(nn.Conv2d, kernel_size=3, padding=1) if post_norm else BorderConv
        self.logits = nn.Sequential(conv(width, 2 * width), nn.GELU(), conv(2 * width, planes))

    def forward(self, maps: list[Tensor], candidates: Candidates, views: int) -> Match:
        maps = for_conv_of(maps)
        x = self.norm(conv_of(self.stem, maps))
        x = self.out(self.unet(x, views)) + conv_of(self.residual, maps)
        probability = self.logits(x).permute(0, 2, 3, 1).float().softmax(dim=-1)
        return Match(candidates.expected(probability), probability)

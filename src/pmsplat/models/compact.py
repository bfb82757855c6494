"""A small encoder for processors without a GPU: matching at a quarter of the resolution, one
correction at half of it, and Gaussians of every pixel by a few narrow layers.

The parts are known ones. Cost volume and correction: Yao et al., "MVSNet", ECCV 2018; Gu et al.,
"Cascade Cost Volume for High-Resolution Multi-View Stereo", CVPR 2020. Upsampling by learned convex
combinations: Teed and Deng, "RAFT", ECCV 2020. Gaussians of pixels: Charatan et al., "pixelSplat",
CVPR 2024. What the other views show where a pixel is seen in them, and the depth that they have
there, is read before opacity and color are chosen: so pixels that no other view confirms can fade.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    gelu,
    grid_sample,
    interpolate,
    normalize,
    pad,
    pixel_shuffle,
    unfold,
)

from ..contracts import count_steps
from ..geometry import camera, se3, sh
from ..kernels.convolution import Conv2d
from ..nn import cost_volume
from ..nn.maps import BorderConv, join, set_memory_format
from ..nn.unet import GroupNorm, ResBlock, ViewAttention, zeroed
from ..registry import check_settings, whole
from ..types import Cameras, Gaussians, Prediction, Views
from ._checks import check_choice, check_near
from ._depth import choose_others
from ._deviations import Deviations
from ._head import OFFSET, OPACITY, QUATERNION, SCALE, Rules, channels, gaussians_at
from ._opacity import correct_opacity
from ._padding import predict_padded

MULTIPLE = 16  # the deepest maps have 1/16 of the resolution
START_OPACITY = 1.0  # before the sigmoid
START_SCALE = -1.2  # before the sigmoid of `_head.world_scales`: 0.4 pixels
SHARPNESS = 10.0  # of the softmax over the cosines of matched features, at first
TRUST = (30.0, 12.0)  # in the likeness of patches, coarse and fine, at first, as such a factor
UNSEEN = (12.0, 5.0)  # what stands for both, coarse and fine, where no other view has the candidate
FAINT = 0.1  # length of a patch, of colors in [0, 1], that has little to see
BLOCK = 8  # pixels of the side of a block that has one Gaussian in the backdrop
BACKDROP = 0.6  # standard deviation of that, in sides of the block
CHECKED = 5  # channels of `_check_by_others`


@dataclass
class Config:
    """`width` is a multiple of 32, `half_width` of 16."""

    init_from: list[str] = field(default_factory=list)
    """Weights that training starts from: files of ours."""
    width: int = 64  # channels at a quarter of the resolution
    half_width: int = 32  # and at half of it
    head_width: int = 24  # and at all of it
    planes: int = 128  # depth hypotheses at a quarter of the resolution
    fine_planes: int = 8  # and at half of it, half a coarse step apart; 0: no correction there
    blocks: int = 1  # residual blocks of each level of the U-Net, on its way down and up
    neighbors: int = 2  # views that each view is matched with, where there are more than three
    gaussians: bool = True  # False: depth alone, as a cheap start, with the same parameters
    sh_degree: int = 0
    steps: int = 4
    """Corrections of the opacity by the photographs (`_opacity`), none while it trains."""
    near: float | None = 0.5
    """Nearest depth of the scenes it learns from, to which other scenes are scaled."""

    def __post_init__(self) -> None:
        rules = {"width": whole(32, 32), "half_width": whole(16, 16), "head_width": whole(1)}
        rules |= {"planes": whole(2), "fine_planes": whole(0), "blocks": whole(1)}
        rules |= {"neighbors": whole(1), "steps": whole(0)}
        check_settings(self, rules, "model.")
        check_choice("sh_degree", self.sh_degree, range(5))
        check_near(self.near)


class Compact(nn.Module):
    """The encoder: two or more views of any size; sides are padded to multiples of 16."""

    multiple = MULTIPLE
    half_weights = True

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        half, width = cfg.half_width, cfg.width
        self.rules = Rules(cfg.sh_degree, "pixel", 3.0, Deviations())
        self.stem = nn.Sequential(
            Conv2d(3, half, 5, 2, padding=2), nn.GELU(), Conv2d(half, half, 3, padding=1), nn.GELU()
        )
        self.down = nn.Sequential(
            Conv2d(half, width, 3, 2, padding=1), ResBlock(width, width, False)
        )
        self.context = nn.Sequential(
            Conv2d(width, width * 3 // 2, 3, 2, padding=1),
            *(ResBlock(width * 3 // 2, width * 3 // 2, False) for _ in range(2)),
            Conv2d(width * 3 // 2, width, 1),
        )
        self.match = nn.Sequential(
            GroupNorm(width, activation="gelu"), Conv2d(width, width, 3, padding=1)
        )
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.trust = nn.Parameter(torch.tensor(TRUST))  # in patches, coarse and fine
        self.unseen = nn.Parameter(torch.tensor(UNSEEN))
        self.unet = UNet(2 * cfg.planes + width, width, cfg.blocks)
        self.logits = zeroed(Conv2d(width, cfg.planes, 1))
        self.up = Conv2d(width, half, 1)
        self.fine_match = Conv2d(half, half // 2, 1) if cfg.fine_planes else None
        self.fine = nn.Sequential(
            Conv2d(2 * half + 2 * cfg.fine_planes, half, 3, padding=1), ResBlock(half, half, False)
        )
        self.fine_logits = zeroed(Conv2d(half, cfg.fine_planes, 1)) if cfg.fine_planes else None
        self.weights = Conv2d(half, 4 * 9, 1)
        self.spread = Conv2d(half, 4 * cfg.head_width, 3, padding=1)
        self.head = Conv2d(cfg.head_width + 3 + CHECKED, cfg.head_width, 3, padding=1)
        self.out = _out(cfg.head_width, 1 + channels(cfg.sh_degree))
        set_memory_format(self)

    @property
    def draws(self) -> bool:
        """Whether it predicts Gaussians, not depth alone."""
        return self.cfg.gaussians

    @property
    def near(self) -> float | None:
        """The nearest depth of the scenes it learned from, in its own unit; None: in theirs."""
        return self.cfg.near

    @property
    def steps(self) -> int | None:
        """How often the photographs correct the opacity where the caller does not say; None: there
        are no Gaussians."""
        return self.cfg.steps if self.cfg.gaussians else None

    def forward(
        self, views: Views, steps: int | None = None, all_levels: bool = False
    ) -> Prediction:
        """What it predicts after so many corrections of the opacity; None: as its settings say, in
        train mode none. What is corrected has no gradient.

        Raises UserError for fewer than two views, and for steps of one without Gaussians.
        """
        steps = 0 if self.training and steps is None else count_steps(steps, self.steps)
        predict = partial(self._predict, steps=steps, all_levels=all_levels)
        return predict_padded(predict, views, MULTIPLE)

    def _predict(self, views: Views, steps: int, all_levels: bool) -> Prediction:
        images, cameras = views.images, views.cameras
        batch, count = images.shape[:2]
        others = choose_others(cameras.c2w, self.cfg.neighbors)
        flat = images.flatten(0, 1)
        typed = (2 * flat - 1).to(self.out.weight.dtype)
        half = self.stem(typed.contiguous(memory_format=torch.channels_last))
        quarter = self.down(half)
        quarter = quarter + interpolate(self.context(quarter), scale_factor=2, mode="bilinear")

        # Coarse: match at a quarter of the resolution, over the whole range.
        near, far = cameras.near.flatten().float(), cameras.far.flatten().float()
        whole_range = cost_volume.full_range(near, far, self.cfg.planes)
        volume = self._correlate(self.match(quarter), cameras, others, whole_range)
        patches = _patches(flat)
        alike = _correlate_patches(patches, cameras, others, whole_range)
        alike = avg_pool2d(alike, 4, 2, 1, count_include_pad=False) * self.trust[0]
        alike = alike + self.unseen[0] * _share_unseen(quarter, cameras, others, whole_range)
        features = self.unet(join([volume, alike, quarter]), count)
        logits = volume + alike + self.logits(features).float()
        probability = logits.permute(0, 2, 3, 1).softmax(dim=-1)
        coarse = cost_volume.Match(whole_range.expected(probability), probability)

        # Fine: the same at half of it, near the coarse estimate.
        size = (half.shape[-2], half.shape[-1])
        value = interpolate(coarse.value[:, None], size=size, mode="bilinear")[:, 0]
        maps = [interpolate(self.up(features), size=size, mode="bilinear"), half]
        around = cost_volume.around(value, whole_range, max(self.cfg.fine_planes, 2))
        nearby = None
        if self.fine_match is not None:
            nearby = self._correlate(self.fine_match(half), cameras, others, around)
            alike = _correlate_patches(patches, cameras, others, around) * self.trust[1]
            alike = alike + self.unseen[1] * _share_unseen(half, cameras, others, around)
            maps += [nearby, alike]
            nearby = nearby + alike
        fine = self.fine(join(maps))
        if self.fine_logits is not None and nearby is not None:
            chosen = (nearby + self.fine_logits(fine).float()).permute(0, 2, 3, 1).softmax(dim=-1)
            value = around.expected(chosen) + value - value.detach()

        # Full size: sharp edges, a check by the other views, then every pixel's numbers.
        value = _upsample(value, self.weights(fine).float())
        seen = _check_by_others(views, whole_range.hold(value), others)
        spread = pixel_shuffle(self.spread(fine), 2)
        numbers = self.out(gelu(self.head(join([gelu(spread), 2 * flat - 1, seen])))).float()
        step = ((whole_range.high - whole_range.low) / (self.cfg.planes - 1)).detach()
        value = whole_range.hold(value + 0.25 * step * numbers[:, 0])
        depth = (1 / value).unflatten(0, (batch, count))
        raw = numbers[:, 1:].unflatten(0, (batch, count))
        confidence = coarse.confidence_at(views.size)[:, 0].unflatten(0, (batch, count))
        levels = ()
        if self.cfg.gaussians:
            (gaussians,) = gaussians_at(raw, (depth,), images, cameras, self.rules)
            first = _hang_backdrop(gaussians, views)
            levels = (first, *correct_opacity(first, views, steps))
            levels = levels if all_levels else levels[-1:]
        return Prediction((depth,), levels, confidence)

    def _correlate(
        self,
        features: Float[Tensor, "n channel rows columns"],
        cameras: Cameras,
        others: Int[Tensor, "batch view other"],
        candidates: cost_volume.Candidates,
    ) -> Float[Tensor, "n plane rows columns"]:
        """Cosines of features with those of the other views, times the sharpness."""
        with torch.autocast(features.device.type, enabled=False):
            length = features.shape[1] ** 0.25
            unit = normalize(features.float(), dim=1) * length
            volume = cost_volume.cost_volume(
                unit.unflatten(0, others.shape[:2]), cameras, others, candidates
            )
            return volume * self.sharpness


class UNet(nn.Module):
    """Maps at a quarter, an eighth and a sixteenth of the resolution; views meet at the last."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        widths = (width, width * 3 // 2, width * 2)
        self.stem = Conv2d(inputs, width, 3, padding=1)
        self.encoder = nn.ModuleList(_blocks(w, blocks) for w in widths)
        self.down = nn.ModuleList(Conv2d(a, b, 3, 2, padding=1) for a, b in pairwise(widths))
        self.attention = ViewAttention(widths[-1], 32, False, "sdpa")
        self.middle = _blocks(widths[-1], blocks)
        self.up = nn.ModuleList(Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_blocks(w, blocks) for w in widths[:-1])
        self.norm = GroupNorm(width, activation="gelu")

    def forward(self, x: Float[Tensor, "n channel height width"], views: int) -> Tensor:
        x = self.encoder[0](self.stem(x))
        skips = []
        for down, block in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = block(down(x))
        x = self.middle(self.attention(x, views))
        for up, block in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = block(skips.pop() + interpolate(up(x), scale_factor=2, mode="bilinear"))
        return self.norm(x)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(width, width, False) for _ in range(count)))


def _out(inputs: int, outputs: int) -> BorderConv:
    """The last layer: at first no correction of depth, and small round Gaussians of the pixel's
    color."""
    last = BorderConv(inputs, outputs)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 0.1
        last.weight[0] = 0
        last.bias.zero_()
        numbers = last.bias[1:]
        numbers[OPACITY] = START_OPACITY
        numbers[OFFSET] = 0
        numbers[SCALE] = START_SCALE
        numbers[QUATERNION.stop - 1] = 1
    return last


def _upsample(
    value: Float[Tensor, "n height width"], weights: Float[Tensor, "n 36 height width"]
) -> Float[Tensor, "n _ _"]:
    """Each of 2x2 finer values as a convex combination of the 3x3 around."""
    n, height, width = value.shape
    around = pad(value[:, None], (1, 1, 1, 1), mode="replicate")
    patches = unfold(around, 3).view(n, 1, 9, height, width)
    shares = weights.view(n, 4, 9, height, width).softmax(dim=2)
    return pixel_shuffle((shares * patches).sum(dim=2), 2)[:, 0]


def _hang_backdrop(gaussians: Gaussians, views: Views) -> Gaussians:
    """The same, but one Gaussian of each block of pixels hangs at far, wide, with the block's mean
    color: what no surface covers, from another place, shows that and is not black.

    Those of the outermost blocks are wider, for places beyond the edge of the picture.
    """
    images, cameras = views.images, views.cameras
    batch, count, _, height, width = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    middle = slice(BLOCK // 2, None, BLOCK)
    whole = cameras.far[..., None, None].expand(-1, -1, height, width)
    means = camera.unproject_depth(whole, cameras.c2w, cameras.K)[:, :, middle, middle]
    depth = whole[:, :, middle, middle]
    wide = images.new_full((rows, columns), 2 * BACKDROP)
    wide[1:-1, 1:-1] = BACKDROP
    scales = wide * BLOCK * depth / (cameras.K[..., 0, 0] * width)[..., None, None]
    color = avg_pool2d(images.flatten(0, 1), BLOCK).unflatten(0, (batch, count))
    base = (color.permute(0, 1, 3, 4, 2) - 0.5) / sh.C0
    quats = means.new_zeros(*scales.shape, 4)
    quats[..., 0] = 1
    values = {
        "means": means,
        "scales": scales[..., None].expand(*scales.shape, 3),
        "quats_wxyz": quats,
        "opacities": torch.full_like(scales, 0.95),
        "sh": nn.functional.pad(base[..., None, :], (0, 0, 0, gaussians.sh.shape[-2] - 1)),
    }

    def hang(name: str, value: Tensor) -> Tensor:
        grid = value.unflatten(1, (count, height, width)).clone()
        grid[:, :, middle, middle] = values[name].to(grid)
        return grid.flatten(1, 3)

    return replace(gaussians, **{name: hang(name, getattr(gaussians, name)) for name in values})


@torch.no_grad()
def _patches(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 27 rows columns"]:
    """3x3 pixels around each of the images at half size, less their mean, of length 1 or, where
    there is little to see, below."""
    half = avg_pool2d(images.float(), 2)
    rows, columns = half.shape[-2:]
    around = unfold(pad(half, (1, 1, 1, 1), mode="replicate"), 3).view(-1, 3, 9, rows, columns)
    around = (around - around.mean(dim=2, keepdim=True)).flatten(1, 2)
    return around / (around.norm(dim=1, keepdim=True) + FAINT)


@torch.no_grad()
def _correlate_patches(
    patches: Float[Tensor, "n channel rows columns"],
    cameras: Cameras,
    others: Int[Tensor, "batch view other"],
    candidates: cost_volume.Candidates,
) -> Float[Tensor, "n plane rows columns"]:
    """Their normalized cross-correlation with those of the other views, from -1 to 1."""
    with torch.autocast(patches.device.type, enabled=False):
        scaled = (patches * patches.shape[1] ** 0.25).unflatten(0, others.shape[:2])
        return cost_volume.cost_volume(scaled, cameras, others, candidates)


@torch.no_grad()
def _share_unseen(
    like: Float[Tensor, "n channel rows columns"],
    cameras: Cameras,
    others: Int[Tensor, "batch view other"],
    candidates: cost_volume.Candidates,
) -> Float[Tensor, "n plane rows columns"]:
    """The share of the other views that do not have a candidate in their picture.

    Without a word for it, such a candidate would have the likeness 0, and any chance likeness of
    those in the picture, which are the near ones beyond the edge of what is shared, would win.
    """
    ones = like.new_ones(len(like), 1, *like.shape[-2:], dtype=torch.float32)
    return 1 - _correlate_patches(ones, cameras, others, candidates)


@torch.no_grad()
def _check_by_others(
    views: Views,
    inv_depth: Float[Tensor, "n height width"],
    others: Int[Tensor, "batch view other"],
) -> Float[Tensor, "n 5 height width"]:
    """What other views have where they see each pixel's point, mean over those that see it.

    Their color minus the pixel's own (three channels), how far the point lies behind the surface
    that they see there, as a share of its depth, at most 1; and the share of views that see it.
    """
    cameras, count = views.cameras, others.shape[-1]
    height, width = views.size
    inv_depth = inv_depth.float().unflatten(0, others.shape[:2])
    scene = torch.arange(len(others), device=others.device)[:, None, None]
    points = camera.unproject_depth(1 / inv_depth, cameras.c2w, cameras.K).flatten(2, 3)
    w2c = se3.invert(cameras.c2w)[scene, others]
    inside = se3.transform(w2c, points[:, :, None].expand(-1, -1, count, -1, -1))
    z = inside[..., 2]
    xy = camera.project(inside, cameras.K[scene, others][..., None, :, :])
    seen = ((xy > 0) & (xy < 1)).all(dim=-1) & (z > 0)
    theirs = torch.cat([views.images, inv_depth[:, :, None]], dim=2)[scene, others]
    grid = (2 * xy - 1).nan_to_num().clamp(-2, 2).flatten(0, 2).unflatten(1, (height, width))
    found = grid_sample(
        theirs.flatten(0, 2), grid, padding_mode="border", align_corners=False
    ).unflatten(0, others.shape)
    seen = seen.unflatten(-1, (height, width))[:, :, :, None].float()
    color = found[:, :, :, :3] - views.images[:, :, None]
    behind = (z.unflatten(-1, (height, width))[:, :, :, None] * found[:, :, :, 3:] - 1).clamp(-1, 1)
    mean = (torch.cat([color, behind], dim=3) * seen).sum(dim=2) / seen.sum(dim=2).clamp(min=1)
    return torch.cat([mean, seen.mean(dim=2)], dim=2).flatten(0, 1)


build = Compact

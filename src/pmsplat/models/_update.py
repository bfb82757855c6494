"""The recurrent update of ReSplat: Gaussians, corrected by how their pictures differ from photos.

Xu et al., "ReSplat: Learning Recurrent Gaussian Splatting", arXiv 2510.08575. The update knows
neither the model that made the Gaussians nor the renderer: it starts from any Gaussians on a grid
of pixels and any map of features, and is given the pictures.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import UserError
from ..foundation import resnet
from ..geometry.constants import constant
from ..kernels.linear import Linear, linear
from ..nn.maps import join, pieces, resize
from ..nn.points import GlobalBlock, NeighborBlock, Neighbors, to_points
from ..nn.unet import zeroed
from ..types import Bundle, DrawingRules, Gaussians
from ._head import world_quats

NEIGHBORS = 8  # nearest Gaussians, itself included, that each one looks at
BLOCKS = 4
ERROR = sum(resnet.WIDTHS)  # channels that describe how a picture differs from its photo
SH_DEGREE = 3
# What a Gaussian is to the update, in this order: mean, scales, quaternion, logit of opacity, SH.
SIZES = (3, 3, 4, 1, 3 * (SH_DEGREE + 1) ** 2)
PARAMETERS = sum(SIZES)
MIN_SCALE, MIN_OPACITY = 1e-6, 1e-6


@dataclass(frozen=True)
class Splats(Bundle):
    """Gaussians as ReSplat makes and updates them, view after view, row by row.

    Means and harmonics are of the world; scales and quaternions of the camera of the Gaussian's own
    view. Quaternions have their scalar last and any length.
    """

    means: Float[Tensor, "batch gaussian 3"]
    scales: Float[Tensor, "batch gaussian 3"]
    quats_xyzw: Float[Tensor, "batch gaussian 4"]
    opacities: Float[Tensor, "batch gaussian"]
    sh: Float[Tensor, "batch gaussian sh 3"]

    @staticmethod
    def of(gaussians: Gaussians, c2w: Float[Tensor, "batch view 4 4"]) -> "Splats":
        """Gaussians of the world, as many of each view, as `in_world` gives them back.

        Raises UserError for harmonics of a higher degree than an update has.
        """
        harmonics = gaussians.sh.shape[-2]
        if harmonics > (SH_DEGREE + 1) ** 2:
            raise UserError(
                f"Gaussians with {harmonics} harmonics",
                f"at most {(SH_DEGREE + 1) ** 2}, which are of degree {SH_DEGREE}",
                f"give an encoder with sh_degree={SH_DEGREE} or less",
            )
        quats_xyzw = gaussians.quats_wxyz.roll(-1, dims=-1).unflatten(1, (c2w.shape[1], -1))
        with torch.autocast(c2w.device.type, enabled=False):
            own = world_quats(quats_xyzw, c2w[..., :3, :3].float().mT).flatten(1, 2)
        own = own.roll(-1, dims=-1)
        return Splats(gaussians.means, gaussians.scales, own, gaussians.opacities, gaussians.sh)

    def in_world(self, c2w: Float[Tensor, "batch view 4 4"], rules: DrawingRules) -> Gaussians:
        """The same as everybody else has them; `c2w` are the cameras of their views."""
        own = self.quats_xyzw.unflatten(1, (c2w.shape[1], -1))
        with torch.autocast(c2w.device.type, enabled=False):
            quats = world_quats(own, c2w[..., :3, :3].float()).flatten(1, 2)
        return Gaussians(self.means, self.scales, quats, self.opacities, self.sh, rules)


@dataclass(frozen=True)
class State(Bundle):
    """What a step changes: the Gaussians, and what it remembers of each."""

    parameters: Float[Tensor, "batch gaussian parameter"]
    hidden: Float[Tensor, "batch gaussian channel"]

    @property
    def splats(self) -> Splats:
        means, scales, quats, logits, sh = self.parameters.split(SIZES, dim=-1)
        sh = sh.unflatten(-1, (3, -1)).transpose(-1, -2)
        return Splats(means, scales, quats, logits[..., 0].sigmoid(), sh)


@dataclass(frozen=True)
class Photos(Bundle):
    """The photographs that pictures are compared with, and their features."""

    images: Float[Tensor, "batch view 3 height width"]
    features: tuple[Float[Tensor, "n _ _ _"], ...]

    @property
    def views(self) -> int:
        return self.images.shape[1]


class Update(nn.Module):
    """From Gaussians, a map of features and pictures to better Gaussians, step by step.

    Every block of `unit` x `unit` pixels of a view has one Gaussian. `condition` is the number of
    channels of the map that the Gaussians were made from, `width` that of what is remembered of
    each. The first step of an untrained update changes nothing.
    """

    def __init__(
        self, condition: int, unit: int, width: int = 512, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        self.unit, self.width = unit, width
        self.condition = Linear(condition, width)
        self.features = resnet.ResNet()
        self.color = Linear(3 * unit**2, ERROR)
        self.color_norm = nn.LayerNorm(ERROR)
        self.views = GlobalBlock(ERROR, attention)
        self.join = Linear(PARAMETERS + width + ERROR, width)
        self.blocks = nn.ModuleList(NeighborBlock(width) for _ in range(BLOCKS))
        self.head = nn.Sequential(
            *(layer for _ in range(3) for layer in (Linear(width, width), nn.GELU())),
            zeroed(Linear(width, PARAMETERS)),
        )

    def observe(self, images: Float[Tensor, "batch view 3 height width"]) -> Photos:
        """The photographs of all views, for every step."""
        return Photos(images, self._features(images))

    def start(
        self, splats: Splats, condition: Float[Tensor, "n channel _ _"], photos: Photos
    ) -> State:
        """The state before the first step; no gradient flows back into what it starts from.

        `condition` are maps of the views, of any size.
        """
        splats, maps = splats.detach(), condition.detach().permute(0, 2, 3, 1)
        maps = self.condition(maps.to(self.condition.weight.dtype)).permute(0, 3, 1, 2)
        opacities = splats.opacities.clamp(MIN_OPACITY, 1 - MIN_OPACITY)
        colors = pad(splats.sh, (0, 0, 0, (SH_DEGREE + 1) ** 2 - splats.sh.shape[-2]))
        parts = [
            splats.means,
            splats.scales,
            splats.quats_xyzw,
            opacities.logit()[..., None],
            colors.transpose(-1, -2).flatten(-2),
        ]
        hidden = to_points(resize(maps, self._grid(photos)), photos.views)
        return State(torch.cat(parts, dim=-1), hidden)

    def step(
        self,
        state: State,
        pictures: Float[Tensor, "batch view 3 height width"],
        photos: Photos,
        table: Int[Tensor, "batch gaussian k"],
    ) -> State:
        """The state after a step that saw `pictures` of it in the cameras of the photographs.

        `table` lists the Gaussians that each one looks at. Gradients flow back to `hidden` and
        through the pictures to the step before, not to `parameters`.
        """
        given, neighbors = state.parameters.detach(), Neighbors.of(table)
        errors = self.views(self._errors(pictures, photos), photos.views)
        x = self._join(given, state.hidden, to_points(errors, photos.views))
        for block in self.blocks:
            x = block(x, neighbors)
        hidden = state.hidden + x
        changed = given + self.head(hidden).float()
        return State(changed.clamp(min=_floor(changed)), hidden)

    def _grid(self, photos: Photos) -> tuple[int, int]:
        height, width = photos.images.shape[-2:]
        return height // self.unit, width // self.unit

    @torch.no_grad()
    def _features(
        self, images: Float[Tensor, "batch view 3 height width"]
    ) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        flat = images.flatten(0, 1)
        parts = [self.features(flat[part]) for part in pieces(flat)]
        return tuple(torch.cat(maps) for maps in zip(*parts, strict=True))

    def _errors(
        self, pictures: Float[Tensor, "batch view 3 height width"], photos: Photos
    ) -> Float[Tensor, "n channel _ _"]:
        """How the pictures differ from the photographs, for every Gaussian.

        Signed differences of colors, which carry gradients, and of features, which do not.
        """
        grid = self._grid(photos)
        with torch.no_grad():
            seen = zip(self._features(pictures), photos.features, strict=True)
            features = join([resize(drawn - photo, grid) for drawn, photo in seen])
        with torch.autocast(pictures.device.type, enabled=False):
            difference = (pictures - photos.images).to(self.color.weight.dtype)
            shape = {"p": self.unit, "q": self.unit}
            blocks = rearrange(difference, "b v c (h p) (w q) -> (b v) h w (c p q)", **shape)
            colors = self.color_norm(self.color(blocks)).permute(0, 3, 1, 2)
        return colors + features

    def _join(self, *parts: Tensor) -> Tensor:
        """`self.join` of the parts side by side, as a sum of products, without joining them."""
        weights = self.join.weight.split([part.shape[-1] for part in parts], dim=1)
        x: Tensor | None = None
        for part, weight in zip(parts, weights, strict=True):
            product = linear(part.to(weight.dtype), weight, self.join.bias if x is None else None)
            x = product if x is None else x + product
        assert x is not None
        return x


def _floor(like: Tensor) -> Float[Tensor, " parameter"]:
    """The least that each parameter may be."""
    none = -torch.inf
    least = (*[none] * SIZES[0], *[MIN_SCALE] * SIZES[1], *[none] * sum(SIZES[2:]))
    return constant(least, like)

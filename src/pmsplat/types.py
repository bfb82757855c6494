"""The values that cross module boundaries: frozen bundles of tensors, with shapes, units and axes.

Axes: OpenCV (x right, y down, z forward). Intrinsics are divided by (width, height). Depth is z in
scene units, 0 where there is none. Images are float32 RGB in [0, 1], channel first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from .errors import UserError
from .geometry import gaussian as gaussian_geometry
from .geometry import products, se3
from .geometry import sh as harmonics
from .geometry.constants import constant
from .geometry.origin import local_origin

B = TypeVar("B", bound="Bundle")
Factor = float | Float[Tensor, " batch"]  # of lengths: one for all scenes, or one for each
Motion = Float[Tensor, "batch 4 4"]  # rigid, one for each scene: x -> rotation · x + translation
Origin = tuple[float, float, float]
Direction = tuple[float, float, float]

NO_OFFSET: Origin = (0.0, 0.0, 0.0)
CLAMPS = ("axis", "image")  # what the clamp of the projection's Jacobian may be about


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Bundle):
        return value.map(fn)
    if isinstance(value, tuple) and value and not isinstance(value[0], str):
        return tuple(_map(item, fn) for item in value)
    return value


def _times(value: Tensor, factor: "Factor") -> Tensor:
    """A tensor with a batch axis, or one of a batch, times one number or one for each scene."""
    if isinstance(factor, Tensor):
        factor = factor.to(value).view(-1, *[1] * (value.ndim - 1))
    return value * factor


@dataclass(frozen=True)
class Bundle:
    """A frozen dataclass of tensors, bundles, tuples of either, and names that ride along."""

    def map(self: B, fn: Callable[[Tensor], Tensor]) -> B:
        """The same bundle with `fn` applied to every tensor, however deep."""
        return replace(self, **{f.name: _map(getattr(self, f.name), fn) for f in fields(self)})

    def to(self: B, target: torch.device | torch.dtype | str) -> B:
        """Every tensor moved to a device or cast to a dtype; gradients follow.

        Of whole numbers, such as indices, a cast leaves the type as it is.
        """
        if isinstance(target, torch.dtype):
            return self.map(lambda x: x.to(target) if x.is_floating_point() else x)
        return self.map(lambda tensor: tensor.to(target))

    def detach(self: B) -> B:
        """Every tensor without its graph."""
        return self.map(torch.Tensor.detach)


@dataclass(frozen=True)
class Pointmap(Bundle):
    """Where a teacher sees every pixel of some views: points of one frame and one unit, its own.

    The frame is right-handed, and a similarity takes it to the world. `confidence` is positive and
    only its proportions mean something; 0 where the teacher knows nothing (sky, no depth).
    """

    points: Float[Tensor, "batch view height width 3"]
    confidence: Float[Tensor, "batch view height width"]

    @property
    def mask(self) -> Bool[Tensor, "batch view height width"]:
        """Where the teacher says anything."""
        return self.confidence > 0

    def scaled(self, factor: Factor) -> "Pointmap":
        """The same points in a world `factor` times as large."""
        return replace(self, points=_times(self.points, factor))

    def moved(self, motion: Motion) -> "Pointmap":
        """The same points in a world that was turned and moved."""
        points = se3.transform(motion.to(self.points), self.points.flatten(1, 3))
        return replace(self, points=points.view_as(self.points))

    def crop(self, top: int, left: int, height: int, width: int) -> "Pointmap":
        """The part of it that belongs to a window of the images."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        return self.map(lambda tensor: tensor[:, :, rows, columns])

    def flip(self) -> "Pointmap":
        """The pointmap of the mirrored images: of the world reflected in x."""
        mirror = constant((-1.0, 1.0, 1.0), self.points)
        return Pointmap(self.points.flip(-2) * mirror, self.confidence.flip(-1))


@dataclass(frozen=True)
class PosedDepth(Bundle):
    """Cameras and depth that a network finds for images alone, in one frame and one unit, its own.

    `c2w` is OpenCV camera-to-world; `K` is divided by (width, height) of the images that it saw,
    and holds whatever their size. `depth` is z, 0 where there is none; of `confidence` only the
    proportions mean something, 0 where the network knows nothing.
    """

    c2w: Float[Tensor, "batch view 4 4"]
    K: Float[Tensor, "batch view 3 3"]
    depth: Float[Tensor, "batch view height width"]
    confidence: Float[Tensor, "batch view height width"]

    @property
    def known(self) -> Bool[Tensor, "batch view height width"]:
        """Where there is depth."""
        return self.depth.isfinite() & (self.depth > 0) & (self.confidence > 0)


@dataclass(frozen=True)
class Cameras(Bundle):
    """Pinhole cameras of several scenes.

    `c2w` is OpenCV camera-to-world; `K` is divided by (width, height); `near` and `far` bound the
    depth that a model searches, in scene units.
    """

    c2w: Float[Tensor, "batch view 4 4"]
    K: Float[Tensor, "batch view 3 3"]
    near: Float[Tensor, "batch view"]
    far: Float[Tensor, "batch view"]

    @property
    def device(self) -> torch.device:
        return self.c2w.device

    def at(self, indices: Any) -> "Cameras":
        """The cameras at `indices` (slice, list or index tensor) of the view axis."""
        return self.map(lambda tensor: tensor[:, indices])

    @staticmethod
    def joined(parts: Sequence["Cameras"]) -> "Cameras":
        """The cameras of all parts, in order, along the view axis. At least one part."""
        names = [field.name for field in fields(Cameras)]
        return Cameras(*(torch.cat([getattr(p, name) for p in parts], dim=1) for name in names))

    def scaled(self, factor: Factor) -> "Cameras":
        """The same cameras in a world `factor` times as large."""
        grow = torch.ones_like(self.c2w)
        grow[..., :3, 3] = _times(grow[..., :3, 3], factor)
        near, far = _times(self.near, factor), _times(self.far, factor)
        return Cameras(self.c2w * grow, self.K, near, far)

    def moved(self, motion: Motion) -> "Cameras":
        """The same cameras in a world that was turned and moved."""
        c2w = products.matmul(motion.double()[:, None], self.c2w.double())
        return replace(self, c2w=c2w.to(self.c2w))

    def with_range(self, near: Factor, far: Factor) -> "Cameras":
        """The same cameras with one near and far for all of a scene."""
        blank = torch.ones_like(self.near)
        return replace(self, near=_times(blank, near), far=_times(blank, far))


@dataclass(frozen=True)
class Views(Bundle):
    """Posed photographs, with what else is known of every pixel.

    `images` in [0, 1]; `depth` is sensor or exact z in scene units (0 = none); `pointmap` is where
    a teacher sees the pixels; `names` say where each view came from.
    """

    images: Float[Tensor, "batch view 3 height width"]
    cameras: Cameras
    depth: Float[Tensor, "batch view height width"] | None = None
    pointmap: Pointmap | None = None
    names: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pointmap, Pointmap | None):
            raise UserError(
                f"a {type(self.pointmap).__name__} as `pointmap` of Views",
                "a pmsplat.Pointmap, which holds points and confidence",
                "pass pmsplat.Pointmap(points, confidence)",
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    def at(self, indices: list[int] | slice) -> "Views":
        """The views at `indices` of the view axis, names included."""
        taken = self.map(lambda tensor: tensor[:, indices])
        if self.names is None:
            return taken
        order = range(self.images.shape[1])
        positions = list(order[indices]) if isinstance(indices, slice) else indices
        return replace(taken, names=tuple(tuple(row[i] for i in positions) for row in self.names))

    def gather(self, index: Int[Tensor, "batch n"]) -> "Views":
        """The views of each scene at indices of its own, names included (the host waits for them).

        Gradients follow.
        """
        scene = torch.arange(len(index), device=index.device)[:, None]
        taken = self.map(lambda tensor: tensor[scene, index])
        if self.names is None:
            return taken
        rows = zip(self.names, index.tolist(), strict=True)
        return replace(taken, names=tuple(tuple(row[i] for i in chosen) for row, chosen in rows))

    def scaled(self, factor: Factor) -> "Views":
        """The same views of a world `factor` times as large, pointmaps with it."""
        return replace(
            self,
            cameras=self.cameras.scaled(factor),
            depth=None if self.depth is None else _times(self.depth, factor),
            pointmap=None if self.pointmap is None else self.pointmap.scaled(factor),
        )

    def moved(self, motion: Motion) -> "Views":
        """The same views of a world that was turned and moved, pointmaps with it."""
        pointmap = None if self.pointmap is None else self.pointmap.moved(motion)
        return replace(self, cameras=self.cameras.moved(motion), pointmap=pointmap)

    def with_range(self, near: Factor, far: Factor) -> "Views":
        """The same views with one near and far for all of a scene."""
        return replace(self, cameras=self.cameras.with_range(near, far))


@dataclass(frozen=True)
class Batch(Bundle):
    """What one training or evaluation step reads: views to look at, views to reproduce."""

    context: Views
    target: Views
    scene: list[str]

    def scaled(self, factor: Factor) -> "Batch":
        """The same batch of a world `factor` times as large."""
        context, target = self.context.scaled(factor), self.target.scaled(factor)
        return replace(self, context=context, target=target)

    def moved(self, motion: Motion) -> "Batch":
        """The same batch of a world that was turned and moved."""
        return replace(self, context=self.context.moved(motion), target=self.target.moved(motion))

    def with_range(self, near: Factor, far: Factor) -> "Batch":
        """The same batch with one near and far for all of a scene."""
        context, target = self.context.with_range(near, far), self.target.with_range(near, far)
        return replace(self, context=context, target=target)


@dataclass(frozen=True)
class DrawingRules:
    """How Gaussians become pictures: what a rasteriser must do as the one they were trained with.

    `blur` is added to both variances of a splat, in px². `antialiased` multiplies its opacity by
    sqrt(det Σ / det(Σ + blur · I)), Σ its covariance in the image: the 2-D filter of Mip-Splatting
    (Yu et al., 2024), gsplat's `rasterize_mode="antialiased"`. `alpha_cap` is the largest alpha.
    Gaussians at z <= `near` times the camera's near, or z > `far` times its far, are not drawn.
    The Jacobian of the projection is taken where x/z and y/z lie within 1.3 half fields of view of
    the optical axis, or of the middle of the image, as `clamp` says; both are the same where the
    principal point is in the middle.
    """

    blur: float = 0.3
    antialiased: bool = False
    alpha_cap: float = 0.99
    near: float = 0.2
    far: float = inf
    clamp: str = "axis"

    def __post_init__(self) -> None:
        # Negated, so that a NaN is refused too
        good = 0 < self.blur < inf and 0 < self.alpha_cap < 1 and 0 <= self.near < inf
        if not (good and self.far > 0 and self.clamp in CLAMPS):
            raise UserError(
                f"{self}",
                "`blur` and `far` above 0, `alpha_cap` between 0 and 1, `near` of 0 or more, and "
                "'axis' or 'image' as `clamp`",
                "start from `CLASSIC`, `MIP` or `RESPLAT` of pmsplat.types",
            )


CLASSIC = DrawingRules()  # Kerbl et al., 2023, and every encoder but ReSplat
MIP = DrawingRules(antialiased=True)
# Xu et al., "ReSplat", 2025: gsplat 1.5.3 with the cameras' near and far as its planes
RESPLAT = DrawingRules(0.1, antialiased=True, alpha_cap=0.999, near=1.0, far=1.0, clamp="image")


@dataclass(frozen=True)
class Gaussians(Bundle):
    """3D Gaussians in world space.

    `scales` are linear standard deviations, `quats_wxyz` unit quaternions (scalar first) from local
    axes to world; `opacities` in [0, 1]; `sh` in the standard 3DGS basis, degree-major. Gaussians
    of an encoder are ordered view-major, then row-major pixels.

    `rules` is how they were trained to be drawn. `origin` is where (0, 0, 0) of `means` lies in the
    world of the file they came from: float32 is too coarse for coordinates far from the origin,
    such as those of a map. `up` is the direction of the world that a file without fixed axes says
    is up; None where none says so, which is read as OpenCV's -y.

    `confidence` is how sure whoever made them is of each, in [0, 1]; None: not known. It is not
    drawn. Encoders leave it None: `Prediction.gaussian_confidence` finds it.
    """

    means: Float[Tensor, "batch gaussian 3"]
    scales: Float[Tensor, "batch gaussian 3"]
    quats_wxyz: Float[Tensor, "batch gaussian 4"]
    opacities: Float[Tensor, "batch gaussian"]
    sh: Float[Tensor, "batch gaussian sh 3"]
    rules: DrawingRules = CLASSIC
    origin: Origin = NO_OFFSET
    up: Direction | None = None
    confidence: Float[Tensor, "batch gaussian"] | None = None

    @property
    def covariances(self) -> Float[Tensor, "batch gaussian 3 3"]:
        """World-space covariances, with gradients to scales and quaternions."""
        return gaussian_geometry.covariance(self.scales, self.quats_wxyz)

    @property
    def sh_degree(self) -> int:
        return int(self.sh.shape[-2] ** 0.5) - 1

    @staticmethod
    def joined(parts: Sequence["Gaussians"]) -> "Gaussians":
        """Several parts of one scene as one; bands that a part has not are zero. At least one.

        Raises UserError for parts that are drawn by different rules. The origin and up are those of
        the first part. Confidence is known where it is of every part.
        """
        if len(parts) == 1:
            return parts[0]
        if len({part.rules for part in parts}) > 1:
            raise UserError(
                "Gaussians that are drawn by different rules",
                "the same rules for all parts of a scene",
                "keep them apart, or set `rules` of all parts with dataclasses.replace",
            )
        parts = [part.at_origin(parts[0].origin) for part in parts]
        bands = max(part.sh.shape[2] for part in parts)
        sh = [pad(part.sh, (0, 0, 0, bands - part.sh.shape[2])) for part in parts]
        sure = [part.confidence for part in parts if part.confidence is not None]
        return Gaussians(
            means=torch.cat([part.means for part in parts], dim=1),
            scales=torch.cat([part.scales for part in parts], dim=1),
            quats_wxyz=torch.cat([part.quats_wxyz for part in parts], dim=1),
            opacities=torch.cat([part.opacities for part in parts], dim=1),
            sh=torch.cat(sh, dim=1),
            rules=parts[0].rules,
            origin=parts[0].origin,
            up=parts[0].up,
            confidence=torch.cat(sure, dim=1) if len(sure) == len(parts) else None,
        )

    def take(self, index: Int[Tensor, "batch kept"]) -> "Gaussians":
        """The Gaussians at `index` of each scene, in its order, with gradients."""

        def pick(values: Tensor) -> Tensor:
            places = index.view(*index.shape, *[1] * (values.ndim - 2))
            return values.gather(1, places.expand(*index.shape, *values.shape[2:]))

        return self.map(pick)

    def scaled(self, factor: Factor) -> "Gaussians":
        """The same Gaussians in a world `factor` times as large."""
        means, scales = _times(self.means, factor), _times(self.scales, factor)
        origin = self.origin
        if origin != NO_OFFSET:
            origin = as_triple(torch.tensor(origin, dtype=torch.float64) * factor)
        return replace(self, means=means, scales=scales, origin=origin)

    def at_origin(self, origin: Origin) -> "Gaussians":
        """The same Gaussians with means counted from another origin of the same world."""
        if origin == self.origin:
            return self
        shift = self.means.new_tensor(self.origin, dtype=torch.float64)
        shift = shift - shift.new_tensor(origin)
        return replace(self, means=(self.means + shift).to(self.means), origin=origin)

    def transformed(self, similarity: Float[Tensor, "4 4"]) -> "Gaussians":
        """The same Gaussians turned, scaled and moved: means, scales, quaternions and harmonics.

        `similarity` is a rotation times one scale, and a translation (`se3.is_similarity`), of the
        world in which `origin` lies. Half turns about the axes change signs and nothing else, to
        the bit. Means stay near zero, with an `origin`, where the result is far from its origin.
        """
        exact = similarity.double()
        scale = se3.similarity_scale(exact)
        rotation = exact[:3, :3] / scale
        means, origin = self._move_means(exact)
        return replace(
            self._turned(rotation),
            means=means,
            scales=self.scales * scale.to(self.scales),
            origin=origin,
            up=None if self.up is None else as_triple(rotation @ exact.new_tensor(self.up)),
        )

    def moved(self, motion: Motion) -> "Gaussians":
        """The same Gaussians, without an origin or an up, in worlds that were turned and moved.

        As `transformed`, but each scene by its own rigid motion, and the host never waits.
        """
        assert self.origin == NO_OFFSET and self.up is None, "they are those of an encoder"
        means = se3.transform(motion.to(self.means), self.means)
        return replace(self._turned(motion[:, :3, :3].double()), means=means)

    def _turned(self, rotation: Float[Tensor, "*#batch 3 3"]) -> "Gaussians":
        """Quaternions and harmonics turned, all alike or those of each scene; float64."""
        quat = gaussian_geometry.rotation_to_quat(rotation).to(self.means)[..., None, :]
        mixing = harmonics.rotation_matrix(rotation, self.sh_degree)
        mixing = torch.where(mixing.abs() < 1e-12, 0, mixing)  # what the solve left of zeros
        return replace(
            self,
            quats_wxyz=gaussian_geometry.quat_multiply(quat, self.quats_wxyz),
            sh=products.einsum("...kj,...gjc->...gkc", mixing.to(self.sh), self.sh),
        )

    def _move_means(self, exact: Float[Tensor, "4 4"]) -> tuple[Tensor, Origin]:
        """The means moved by a float64 similarity, and the origin from which they are counted."""
        exact = exact.to(self.means.device)
        moved = se3.transform(exact, self.means.detach() + exact.new_tensor(self.origin))
        origin = local_origin(moved.flatten(0, 1))
        if self.origin == NO_OFFSET and not origin.any():
            return se3.transform(exact.to(self.means), self.means), NO_OFFSET
        place = se3.transform(exact, exact.new_tensor([self.origin]))[0] - origin
        turned = self.means.double() @ exact[:3, :3].mT
        return (turned + place).to(self.means), as_triple(origin)


def as_triple(vector: Float[Tensor, "3"]) -> tuple[float, float, float]:
    """A vector as three numbers."""
    x, y, z = vector.tolist()
    return x, y, z


@dataclass(frozen=True)
class Prediction(Bundle):
    """An encoder's prediction for its context views, coarse to fine; the last level is the result.

    `depths[i]` is z in scene units. In eval mode there is only the result. The levels of a
    recurrent update, which changes Gaussians and not depth, have no depth of their own: depths are
    then those of the first levels.

    `confidence` is how sure the encoder is of its last depth: the probability of the best match, in
    (0, 1]; None of an encoder that does not say. `views` lists which of the context views it speaks
    of, in its order, which is seldom theirs, where an encoder gathers what all of them show in some
    (`EncoderTraits.anchors`); None: of all.
    """

    depths: tuple[Float[Tensor, "batch view height width"], ...]
    gaussians: tuple[Gaussians, ...]
    confidence: Float[Tensor, "batch view height width"] | None = None
    views: Int[Tensor, "batch view"] | None = None

    @property
    def levels(self) -> int:
        """How many levels there are, of depth or of Gaussians."""
        return max(len(self.depths), len(self.gaussians))

    def select(self, context: Views) -> Views:
        """Of the context views, those that it speaks of, in its order."""
        return context if self.views is None else context.gather(self.views)

    def indices(self, context: Views) -> list[int]:
        """Which of the context views of the first scene it speaks of, in its order."""
        everything = list(range(context.images.shape[1]))
        return everything if self.views is None else self.views[0].tolist()

    def scaled(self, factor: Factor) -> "Prediction":
        """The same prediction in a world `factor` times as large."""
        depths = tuple(_times(depth, factor) for depth in self.depths)
        gaussians = tuple(level.scaled(factor) for level in self.gaussians)
        return replace(self, depths=depths, gaussians=gaussians)

    def moved(self, motion: Motion) -> "Prediction":
        """The same prediction in a world that was turned and moved."""
        return replace(self, gaussians=tuple(level.moved(motion) for level in self.gaussians))

    @property
    def block(self) -> int:
        """The side, in pixels, of the square block that has one Gaussian of the last level.

        1, or 2, 4, 8 … of an encoder whose Gaussians stand for several pixels; the blocks at the
        end of an image may be cut. Raises UserError for Gaussians that are not those of pixels or
        blocks.
        """
        views, height, width = self.depths[-1].shape[1:]
        count = self.gaussians[-1].means.shape[1]
        sides = [1 << i for i in range(max(height, width).bit_length() + 1)]
        fitting = [n for n in sides if views * -(-height // n) * -(-width // n) == count]
        if not fitting:
            raise UserError(
                f"{count} Gaussians of {views} views of {height}x{width} pixels",
                "one for each pixel, or for each square block of 2, 4, 8 … pixels along a side",
                "take the prediction as it was before Gaussians were left out or added",
            )
        return fitting[0]

    def gaussian_confidence(self) -> Float[Tensor, "batch gaussian"] | None:
        """How sure the encoder is of each Gaussian of the last level: `confidence` at its pixel.

        A Gaussian that stands for a `block` of pixels has the mean over its block: over what is
        left of it where the image ends. None where the encoder does not say how sure it is, or
        predicts depth alone. With the gradients of `confidence`. Raises UserError for Gaussians
        that are not those of pixels or blocks.
        """
        if self.confidence is None or not self.gaussians:
            return None
        return self.at_gaussians(self.confidence)

    def at_gaussians(
        self, maps: Float[Tensor, "batch view height width"]
    ) -> Float[Tensor, "batch gaussian"]:
        """The value of maps at the pixel of each Gaussian of the last level, or the mean over its
        `block` of pixels."""
        return avg_pool2d(maps, self.block, ceil_mode=True).flatten(1)


@dataclass(frozen=True)
class Screen(Bundle):
    """Where the Gaussians fell on the images: what densification looks at.

    `means` in pixels, with gradients; `radii` in pixels, 0 where a Gaussian is not seen: there the
    mean may be any number (gsplat leaves it unwritten).
    """

    means: Float[Tensor, "batch target gaussian 2"]
    radii: Float[Tensor, "batch target gaussian"]


@dataclass(frozen=True)
class Rendering(Bundle):
    """What `rasterize` draws.

    `depth` is the expected z, Σzαt / Σαt, 0 where nothing was hit; `depth_median` the z at which
    the transmittance crosses one half, without gradient; `attributes` are blended with the weights
    of the color and no background.
    """

    color: Float[Tensor, "batch target 3 height width"]
    depth: Float[Tensor, "batch target height width"]
    alpha: Float[Tensor, "batch target height width"]
    attributes: Float[Tensor, "batch target channel height width"] | None = None
    depth_median: Float[Tensor, "batch target height width"] | None = None
    screen: Screen | None = None

    def scaled(self, factor: Factor) -> "Rendering":
        """The same picture of a world `factor` times as large."""
        median = None if self.depth_median is None else _times(self.depth_median, factor)
        return replace(self, depth=_times(self.depth, factor), depth_median=median)

    def moved(self, motion: Motion) -> "Rendering":
        """The same picture: it does not change where the world is turned and moved."""
        return self


@dataclass(frozen=True)
class Reduced(Bundle):
    """What is left of an answer of `of` Gaussians that was reduced to at most `budget`, drawn."""

    budget: int
    of: int
    rendering: Rendering


@dataclass(frozen=True)
class StepOutput(Bundle):
    """All that a loss or a metric may look at: the data, the prediction and its renderings.

    `renderings[i]` draws `prediction.gaussians[i]`, or the share of them that is kept, into the
    target cameras; empty where a task does not render. `levels_left` counts the refinements that
    follow the last level here; 0: the answer. `reduced` is the answer with fewer Gaussians, where
    an evaluation asks for it.
    """

    batch: Batch
    prediction: Prediction
    renderings: tuple[Rendering, ...]
    levels_left: int = 0
    reduced: tuple[Reduced, ...] = ()

    @property
    def rendering(self) -> Rendering:
        """The answer, drawn; UserError where nothing was."""
        if not self.renderings:
            raise UserError(
                "nothing rendered, because the model predicts depth alone",
                "a model with Gaussians for a loss on color",
                "train with loss=depth, or with model.gaussians=true",
            )
        return self.renderings[-1]

    @property
    def context(self) -> Views:
        """The context views that the prediction speaks of, in its order.

        Without names, where they are not all: the host would wait to learn which they are.
        """
        context = self.batch.context
        if self.prediction.views is None:
            return context
        return self.prediction.select(replace(context, names=None))

    @property
    def depth(self) -> Float[Tensor, "batch view height width"] | None:
        """The depth of the last level; None where that level updates the Gaussians alone."""
        depths = self.prediction.depths
        return depths[-1] if len(depths) == self.prediction.levels else None

    def up_to(self, level: int) -> "StepOutput":
        """The same step as if refinement had stopped at `level`: its answer is that level's."""
        depths, gaussians = self.prediction.depths, self.prediction.gaussians
        cut = replace(self.prediction, depths=depths[: level + 1], gaussians=gaussians[: level + 1])
        left = self.levels_left + self.prediction.levels - 1 - level
        return StepOutput(self.batch, cut, self.renderings[: level + 1], left)

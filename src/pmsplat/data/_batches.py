"""How scenes become batches: photos brought to one size, cameras with them, several as one."""

from dataclasses import dataclass, field, replace
from math import degrees
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..geometry import camera
from ..io.chunks import ChunkScene
from ..io.images import image_size
from ..registry import check_settings, number, several, suggest, whole
from ..scene.fit import stretch
from ..scene.photos import (
    UnfitPhotos,
    chunk_photos,
    fit_photo_fast,
    fit_photo_scaled,
    make_views,
)
from ..types import Batch, Bundle, Cameras, Pointmap, Views
from ._pointmaps import PointmapCache
from ._sampling import Frames, Sampler

B = TypeVar("B", bound=Bundle)


ABOVE_ZERO = number(open_low=True)
RULES = {
    "size": several(whole(1), 2),
    "context_size": several(whole(1), 2).or_none,
    "near": ABOVE_ZERO.or_none,
    "far": ABOVE_ZERO.or_none,
    "flip": number(0, 1),
}


FRAMES = {
    "stored": None,
    "colmap": (
        (0.0, 1.0, 0.0, 0.0),
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, -1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    ),
}
"""Worlds in which the cameras of a chunk can stand, and what takes the stored world to them.

DL3DV's chunks come from nerfstudio's files, whose world is COLMAP's turned; "colmap" turns it back,
as ReSplat's `opencv_pose_format` does.
"""


DECODERS = {"exact": fit_photo_fast, "scaled": fit_photo_scaled}
"""How photos are decoded and scaled.

"exact" is how all figures are measured. "scaled" lets libjpeg scale JPEG files of at least twice
the size by 1/2 or less while it decodes them, which takes less time.
"""


@dataclass
class Poses:
    """How the cameras of a chunk are read; the defaults take them as they are."""

    frame: str = "stored"
    """The world: stored, or colmap, in which ReSplat was trained on DL3DV."""
    only_positive: bool = False
    """Skip a scene only for coordinates far above zero, not far below, as the published code."""

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise UserError(
                f"dataset.poses.frame={self.frame}",
                f"one of {', '.join(FRAMES)}",
                suggest(str(self.frame), list(FRAMES)),
            )

    def read(self, scene: ChunkScene) -> Float[Tensor, "frame 4 4"]:
        """Camera-to-world of every frame of a scene, in the chosen world."""
        turn = FRAMES[self.frame]
        return scene.c2w if turn is None else scene.c2w.new_tensor(turn) @ scene.c2w

    def reach(self, scene: ChunkScene) -> float:
        """The largest camera coordinate of a scene, by which a failed reconstruction is known."""
        places = self.read(scene)[:, :3, 3]
        return float((places if self.only_positive else places.abs()).max())


@dataclass(frozen=True)
class Recipe:
    """How scenes become batches.

    `size` is the (height, width) of the batch; `resize` scales photos to cover it before the center
    is cut out, else it is cut from the photos as stored. `exact` principal points or the published
    ones: see `scene.fit`. In evaluation context views are stretched to `context_size`, if given.
    `near` and `far` in scene units, None: those that the scene carries. `poses`: how cameras are
    read. Scenes with a field of view beyond `max_fov` degrees or a camera coordinate beyond
    `max_translation` are skipped. `flip` is the probability of a mirrored training example.
    `pointmaps`: training examples have a teacher's pointmaps, read from this cache. `decode`: see
    DECODERS.
    """

    size: tuple[int, int]
    sampler: Sampler
    near: float | None = None
    far: float | None = None
    resize: bool = True
    exact: bool = True
    flip: float = 0.0
    max_fov: float = 100.0
    max_translation: float = float("inf")
    pointmaps: PointmapCache | None = None
    poses: Poses = field(default_factory=Poses)
    context_size: tuple[int, int] | None = None
    decode: str = "exact"

    def __post_init__(self) -> None:
        check_settings(self, RULES, "dataset.")
        if self.decode not in DECODERS:
            raise UserError(
                f"dataset.decode={self.decode}",
                f"one of {', '.join(DECODERS)}",
                suggest(str(self.decode), list(DECODERS)),
            )
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise UserError(
                f"dataset.near={self.near} and dataset.far={self.far}",
                "a near below far",
                "exchange them, or leave both out",
            )


class Unusable(Exception):
    """Why a scene is skipped, in words that follow "it has"; `detail` says more about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Damaged(Unusable):
    """Why a scene cannot be read, whatever the recipe."""


class DamagedChunk(Damaged):
    """Why no scene of a chunk can be read."""


def make_batch(
    scene: ChunkScene, frames: Frames, recipe: Recipe, pointmap: Pointmap | None = None
) -> Batch:
    """The context and target views of one scene, batch axis 1; `pointmap` is of the former."""
    scene.fetch([*frames.context, *frames.target])
    context = replace(fitted_views(scene, frames.context, recipe), pointmap=pointmap)
    target = fitted_views(scene, frames.target, recipe)
    return Batch(context=context, target=target, scene=[scene.key])


def make_evaluation_batch(scene: ChunkScene, frames: Frames, recipe: Recipe) -> Batch:
    """The same for a scene to be measured: the context views at the size in which they are seen.

    Photos are decoded exactly, whatever training does.
    """
    batch = make_batch(scene, frames, replace(recipe, decode="exact"))
    if recipe.context_size is None:
        return batch
    return replace(batch, context=stretch(batch.context, recipe.context_size))


def collate(batches: list[Batch]) -> Batch:
    """Several batches as one, along the batch axis.

    Depth that some scenes lack is 0 there; pointmaps that some lack are left out. Raises UserError
    where sizes or view counts differ.
    """
    return Batch(
        context=_join([batch.context for batch in batches]),
        target=_join([batch.target for batch in batches]),
        scene=[key for batch in batches for key in batch.scene],
    )


def check(scene: ChunkScene, recipe: Recipe) -> None:
    """Raises Unusable for a scene that the recipe rules out, UserError for one without a range."""
    if degrees(float(camera.field_of_view(scene.K).max())) > recipe.max_fov:
        raise Unusable(f"a field of view beyond {recipe.max_fov:g} degrees")
    if recipe.poses.reach(scene) > recipe.max_translation:
        raise Unusable(f"camera positions beyond {recipe.max_translation:g}")
    if scene.near is None and (recipe.near is None or recipe.far is None):
        raise UserError(
            f"scene {scene.key!r} carries no near and far, and none are set",
            "the depth range to search",
            "set dataset.near and dataset.far",
        )


def fitted_views(scene: ChunkScene, frames: tuple[int, ...], recipe: Recipe) -> Views:
    """Frames of a scene at the size of the recipe, in the scene's own unit, batch axis 1.

    Raises Damaged for photos that cannot be read and depth maps that are not on the grid of their
    photo, Unusable for photos that do not fit the recipe.
    """
    index = list(frames)
    photos = chunk_photos(scene, frames)
    cameras = Cameras(
        c2w=recipe.poses.read(scene)[index][None],
        K=scene.K[index][None],
        near=_bound(scene.near, recipe.near, index),
        far=_bound(scene.far, recipe.far, index),
    )
    try:
        for photo in photos:
            source = photo.depth_source
            if source is not None and image_size(source, upright=False) != photo.size:
                raise Damaged("depth of another size than its photo")
        return make_views(
            photos,
            cameras,
            recipe.size,
            resize=recipe.resize,
            exact=recipe.exact,
            with_depth=scene.depths is not None,
            fit=DECODERS[recipe.decode],
        )
    except UserError as error:
        if isinstance(error, UnfitPhotos):
            raise Unusable(error.kind) from error
        raise Damaged("an unreadable image") from error


def _bound(carried: Tensor | None, given: float | None, index: list[int]) -> Tensor:
    if given is not None:
        return torch.full((1, len(index)), given)
    assert carried is not None
    return carried[index][None]


def _join(parts: list[Views]) -> Views:
    shapes = {tuple(views.images.shape[1:]) for views in parts}
    if len(shapes) > 1:
        sizes = " and ".join(f"{v} views of {h}x{w}" for v, _, h, w in sorted(shapes))
        raise UserError(
            f"examples of {sizes} in one batch",
            "one size and one number of views",
            "use batch size 1, or the same size and number of views for every example",
        )
    depth = None
    if any(views.depth is not None for views in parts):
        blank = torch.zeros_like(parts[0].images[:, :, 0])
        depth = torch.cat([blank if views.depth is None else views.depth for views in parts])
    pointmaps = [views.pointmap for views in parts if views.pointmap is not None]
    return Views(
        images=torch.cat([views.images for views in parts]),
        cameras=_concatenate([views.cameras for views in parts]),
        depth=depth,
        pointmap=_concatenate(pointmaps) if len(pointmaps) == len(parts) else None,
        names=tuple(row for views in parts for row in views.names or ()) or None,
    )


def _concatenate(parts: list[B]) -> B:
    """Bundles of tensors, nothing else, as one along the batch axis."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*map(torch.cat, columns))

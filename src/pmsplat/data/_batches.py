"""How scenes become batches: photos brought to one size, cameras with them, several as one."""

from dataclasses import dataclass, replace
from math import degrees

import torch
from torch import Tensor

from ..errors import UserError
from ..geometry import camera
from ..io.chunks import ChunkScene
from ..scene.fit import crop, fit_depth, fit_image, fit_K, to_tensor
from ..types import Batch, Cameras, Pointmap, Views
from ._pointmaps import Lessons
from ._sampling import Frames, Sampler


@dataclass(frozen=True)
class Recipe:
    """How scenes become batches.

    `size` is the (height, width) of the batch; `resize` scales photos to cover it before the centre
    is cut out, else it is cut from the photos as stored. `exact` principal points or the published
    ones: see `scene.fit`. `near` and `far` in scene units, None: those that the scene carries.
    Scenes with a field of view beyond `max_fov` degrees or a camera coordinate beyond
    `max_translation` are skipped. `flip` is the probability of a mirrored training example.
    `lessons`: training examples bring a teacher's pointmaps.
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
    lessons: Lessons | None = None


class Unusable(Exception):
    """Why a scene is passed over, in the words of the log."""


def make_batch(
    scene: ChunkScene, frames: Frames, recipe: Recipe, pointmap: Pointmap | None = None
) -> Batch:
    """The context and target views of one scene, batch axis 1; `pointmap` is of the former."""
    context = fitted_views(scene, frames.context, recipe)
    target = fitted_views(scene, frames.target, recipe)
    if pointmap is not None:
        context = replace(
            context, pointmap=pointmap.points, pointmap_confidence=pointmap.confidence
        )
    return Batch(context=context, target=target, scene=[scene.key])


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
    if float(scene.c2w[:, :3, 3].abs().max()) > recipe.max_translation:
        raise Unusable(f"camera positions beyond {recipe.max_translation:g}")
    if scene.near is None and (recipe.near is None or recipe.far is None):
        raise UserError(
            f"scene {scene.key!r} carries no near and far, and none are set",
            "the depth range to search",
            "set dataset.near and dataset.far",
        )


def fitted_views(scene: ChunkScene, frames: tuple[int, ...], recipe: Recipe) -> Views:
    """Frames of a scene at the size of the recipe, in the scene's own unit, batch axis 1."""
    images, depths, intrinsics = [], [], []
    for frame in frames:
        try:
            image, depth = scene.image(frame), scene.depth(frame)
        except UserError as error:
            raise Unusable("an unreadable image") from error
        before = (image.shape[0], image.shape[1])
        if depth is not None and depth.shape != before:
            raise Unusable("depth of another size than its photo")
        size = recipe.size if recipe.resize else before
        images.append(fit_image(image, size))
        intrinsics.append(fit_K(scene.K[frame], before, size, recipe.exact))
        if depth is not None:
            depths.append(torch.from_numpy(fit_depth(depth, size)))
    if len({image.shape for image in images}) > 1:
        raise Unusable("photos of different sizes")
    if any(have < want for have, want in zip(images[0].shape, recipe.size, strict=False)):
        raise Unusable(f"photos smaller than {recipe.size[0]}x{recipe.size[1]}")
    index = list(frames)
    cameras = Cameras(
        c2w=scene.c2w[index][None],
        K=torch.stack(intrinsics)[None],
        near=_bound(scene.near, recipe.near, index),
        far=_bound(scene.far, recipe.far, index),
    )
    views = Views(
        images=to_tensor(images),
        cameras=cameras,
        depth=torch.stack(depths)[None] if depths else None,
        names=(tuple(f"{frame:06d}" for frame in frames),),
    )
    return crop(views, recipe.size, recipe.exact)


def _bound(carried: Tensor | None, given: float | None, index: list[int]) -> Tensor:
    if given is not None:
        return torch.full((1, len(index)), given)
    assert carried is not None
    return carried[index][None]


def _join(parts: list[Views]) -> Views:
    shapes = {tuple(views.images.shape[1:]) for views in parts}
    if len(shapes) > 1:
        told = " and ".join(f"{v} views of {h}x{w}" for v, _, h, w in sorted(shapes))
        raise UserError(
            f"examples of {told} in one batch",
            "one size and one number of views",
            "use batch size 1, or the same number of views for every example",
        )
    depth = None
    if any(views.depth is not None for views in parts):
        blank = torch.zeros_like(parts[0].images[:, :, 0])
        depth = torch.cat([blank if views.depth is None else views.depth for views in parts])
    pointmaps = [views.pointmap for views in parts if views.pointmap is not None]
    trust = [v.pointmap_confidence for v in parts if v.pointmap_confidence is not None]
    cameras = [views.cameras for views in parts]
    return Views(
        images=torch.cat([views.images for views in parts]),
        cameras=Cameras(
            c2w=torch.cat([c.c2w for c in cameras]),
            K=torch.cat([c.K for c in cameras]),
            near=torch.cat([c.near for c in cameras]),
            far=torch.cat([c.far for c in cameras]),
        ),
        depth=depth,
        pointmap=torch.cat(pointmaps) if len(pointmaps) == len(parts) else None,
        pointmap_confidence=torch.cat(trust) if len(trust) == len(parts) else None,
        names=tuple(row for views in parts for row in views.names or ()) or None,
    )

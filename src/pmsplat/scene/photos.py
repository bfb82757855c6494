"""Photographs of one place, decoded when they are asked for, and the views made of them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import UserError, count_of
from ..geometry.origin import local_origin
from ..io import depth_maps, images
from ..io.cameras import re10k
from ..io.cameras.survey import GIVEN, LeftOut, Lens, Shot, Survey
from ..io.chunks import ChunkScene
from ..types import NO_OFFSET, Cameras, Origin, Views, as_triple
from .bounds import RangeSource, ranges
from .fit import covering_size, crop, fit_depth, fit_image, fit_K, to_tensor
from .undistort import pinhole, undistort_depth, undistort_image

_ASPECT_TOLERANCE = 0.01  # between a photo and its lens: rounding of downscaled copies
_TURN, _DEGREE = 180.0, 1000.0  # largest longitude; a degree has 111 320 m, flights are low
_DEPTH_MAPS = 40  # at most so many are read to find near and far

log = logging.getLogger(__name__)


class UnfitPhotos(UserError):
    """Photos of which no views can be made together; `kind` is the reason in words to count by."""

    def __init__(self, got: str, wanted: str = "", remedy: str = "", kind: str = "") -> None:
        super().__init__(got, wanted, remedy)
        self.kind = kind


@dataclass(frozen=True)
class Photo:
    """One photograph, not yet decoded, with its lens and its depth map if it has one.

    `lens`: None for a photo that is a pinhole's already. `depth_scale`: scene units of one count;
    `no_depth`: the count, beside 0, that stands for none.
    `upright`: EXIF orientation is to be applied. `background` is behind transparent pixels.
    """

    name: str
    image: Path | bytes
    lens: Lens | None
    depth_source: Path | bytes | None = None
    depth_scale: float = 1.0
    upright: bool = True
    no_depth: int = 0
    background: images.Color = images.BLACK

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), from the file's header."""
        return images.image_size(self.image, self.upright)

    @property
    def is_pinhole(self) -> bool:
        """Whether the photo is used as it is, without undistorting it."""
        return self.lens is None or self.lens.is_pinhole

    @property
    def has_counts(self) -> bool:
        """Whether the depth is stored as 16-bit counts, not as an array of numbers."""
        return self.depth_source is not None and depth_maps.has_counts(self.depth_source)

    def pixels(self) -> UInt8[np.ndarray, "height width 3"]:
        """The photo, undistorted."""
        image = images.read_image(self.image, self.upright, self.background)
        return image if self.lens is None else undistort_image(image, self.lens)

    def depth(self) -> Float[np.ndarray, "height width"] | None:
        """Sensor depth in scene units on the photo's grid, undistorted; 0 = none."""
        if self.depth_source is None:
            return None
        counts = depth_maps.read_depth(self.depth_source)
        depth = np.where(counts == self.no_depth, 0, counts) * np.float32(self.depth_scale)
        if depth.shape != self.size:
            self.check_aspect("the depth map", (depth.shape[0], depth.shape[1]))
            depth = fit_depth(depth, self.size)
        return depth if self.lens is None else undistort_depth(depth, self.lens)

    def check(self) -> None:
        """Raises UserError where the photo is missing, ends early, or does not fit its lens."""
        self.check_aspect("the camera file", self.size if self.lens is None else self.lens.size)
        images.check_whole(self.image)

    def check_aspect(self, owner: str, size: tuple[int, int]) -> None:
        """Raises UserError where the (height, width) that `owner` gives is of another shape."""
        (height, width), (h, w) = self.size, size
        if abs(width * h / (height * w) - 1) > _ASPECT_TOLERANCE:
            raise UserError(
                f"{self.name} has {height}x{width} pixels, but {owner} {h}x{w}",
                "the same shape",
                "use the photos that were posed, neither cropped nor turned",
            )


@dataclass(frozen=True)
class Scene:
    """Posed photographs of one place.

    `cameras` [1, photo]: pinholes in the axes and unit of the camera file. `points`: its sparse
    points, if any. `range_source`: where near and far come from. A chunk need not have them; then
    its unit is that of the model which sees it (`zoo.infer.fill_range`), and it is not `ranged`.
    `origin`: where the zero of cameras and points lies in the world of the camera file. `left_out`:
    photos that it names and that cannot be used. `order`: what the order of the photos, that of the
    capture, went by. `poses`: what found the cameras: "file", "colmap", or a network.
    """

    name: str
    photos: tuple[Photo, ...]
    cameras: Cameras
    points: Float[Tensor, "point 3"] | None = None
    range_source: RangeSource = RangeSource.FILE
    origin: Origin = NO_OFFSET
    left_out: tuple[LeftOut, ...] = ()
    order: str = "the file"
    poses: str = GIVEN

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def ranged(self) -> bool:
        """Whether near and far belong to the scene."""
        return self.range_source is not RangeSource.MODEL

    @property
    def names(self) -> tuple[str, ...]:
        """File names of the photos."""
        return tuple(photo.name for photo in self.photos)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the photos; of the first, where they differ."""
        return self.photos[0].size

    @property
    def has_depth(self) -> bool:
        """Whether any photo has sensor depth."""
        return any(photo.depth_source is not None for photo in self.photos)

    def views(
        self, indices: Iterable[int] | None = None, size: tuple[int, int] | None = None
    ) -> Views:
        """The photos at `indices` (all, if None), batch axis 1; only those are decoded.

        With a (height, width) `size` they are scaled to cover it and cut around the center, else
        they stay as they are. Raises UserError for indices that are not there, and for photos of
        different sizes without `size`.
        """
        chosen = list(range(len(self)) if indices is None else indices)
        self._check_indices(chosen)
        photos = [self.photos[i] for i in chosen]
        return make_views(photos, self.cameras.at(chosen), size, with_depth=self.has_depth)

    def _check_indices(self, indices: list[int]) -> None:
        beyond = [i for i in indices if not 0 <= i < len(self)]
        if beyond or not indices:
            raise UserError(
                f"{'view ' + str(beyond[0]) if beyond else 'no view'} of {self.name} is asked for",
                f"views from 0 to {len(self) - 1}",
                f"it has {count_of(len(self), 'photo')}: ask for fewer, or add more",
            )


Fitting = Callable[[Photo, tuple[int, int]], UInt8[np.ndarray, "h w 3"]]
"""How a photo is decoded and brought to a (height, width)."""


def fit_photo(photo: Photo, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """A photo, scaled to cover a size and cut to it."""
    return fit_image(photo.pixels(), size)


def fit_photo_fast(photo: Photo, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The same bits, sooner where there are many photos of one size."""
    return fit_image(photo.pixels(), size, path="compiled")


def fit_photo_scaled(photo: Photo, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Nearly the same: a JPEG of twice the size or more is scaled by 1/2 or less while decoded."""
    if not photo.is_pinhole:
        return fit_photo_fast(photo, size)
    covering = covering_size(photo.size, size)
    pixels = images.read_image(photo.image, photo.upright, photo.background, least=covering)
    return fit_image(pixels, size, photo.size, path="compiled")


def make_views(
    photos: Sequence[Photo],
    cameras: Cameras,
    size: tuple[int, int] | None = None,
    resize: bool = True,
    exact: bool = True,
    with_depth: bool = True,
    fit: Fitting = fit_photo,
) -> Views:
    """Photos and their pinholes `cameras` (batch 1), decoded and brought to one size.

    With a (height, width) `size` photos are scaled to cover it, unless `resize` is False, and cut
    around the center. Without, they stay as they are. `exact`: see `fit.py`. `with_depth` adds
    their depth, 0 for photos without. `fit`: how each is decoded and scaled. Raises UnfitPhotos for
    photos that are not scaled and differ in size or are smaller than `size`, UserError for those
    that cannot be read.
    """
    # Photos that are not scaled must be of one size, and not smaller than what is cut from them.
    goal = size if resize else None
    sizes = sorted({photo.size for photo in photos})
    if goal is None and len(sizes) > 1:
        raise UnfitPhotos(
            f"photos of different sizes ({' and '.join(f'{h}x{w}' for h, w in sizes[:3])})",
            "one size",
            "ask for a size, to which all are scaled and cut",
            kind="photos of different sizes",
        )
    goal = goal or sizes[0]
    size = size or goal
    if goal[0] < size[0] or goal[1] < size[1]:
        smaller = f"photos smaller than {size[0]}x{size[1]}"
        raise UnfitPhotos(smaller, "larger ones", "ask for a smaller size", kind=smaller)

    # Decode them one at a time: only what fits the goal is kept.
    fitted, depths, intrinsics = [], [], []
    for photo, K in zip(photos, cameras.K[0], strict=True):
        fitted.append(fit(photo, goal))
        intrinsics.append(fit_K(K, photo.size, goal, exact))
        if with_depth:
            depth = photo.depth()
            known = np.zeros(photo.size, np.float32) if depth is None else depth
            depths.append(torch.from_numpy(fit_depth(known, goal)))

    # Cut what was not scaled.
    views = Views(
        images=to_tensor(fitted),
        cameras=Cameras(cameras.c2w, torch.stack(intrinsics)[None], cameras.near, cameras.far),
        depth=torch.stack(depths)[None] if depths else None,
        names=(tuple(photo.name for photo in photos),),
    )
    return crop(views, size, exact)


def make_scene(name: str, survey: Survey, photos: Sequence[Photo]) -> Scene:
    """The scene of photographs and their cameras, the shots of `survey`, in the same order.

    Places far from their origin, as on maps, are counted from a local origin before they become
    float32; a warning says so.
    """
    c2w = np.stack([shot.c2w for shot in survey.shots])
    place = local_origin(torch.from_numpy(c2w[:, :3, 3]))
    x, y, z = as_triple(place)
    if place.any():
        log.warning(
            "the cameras lie far from the origin of their world: what is made of them counts "
            "from (%r, %r, %r), which is kept with it",
            x,
            y,
            z,
        )
    c2w[:, :3, 3] -= place.numpy()
    if place.any() and _are_degrees(place.numpy(), c2w[:, :3, 3]):
        log.warning(
            "x and y of the cameras look like degrees of longitude and latitude, beside a height "
            "in another unit: convert places to one unit of length, such as meters east, north "
            "and up"
        )
    found = ranges(survey, _sensor_depths(photos))
    bounds = torch.tensor(found.bounds, dtype=torch.float64)
    straight = {lens: pinhole(lens).K for lens in {shot.lens for shot in survey.shots}}
    cameras = Cameras(
        c2w=torch.from_numpy(c2w).float()[None],
        K=_tensor([straight[shot.lens] for shot in survey.shots]),
        near=bounds[None, :, 0].float(),
        far=bounds[None, :, 1].float(),
    )
    points = None
    if survey.points is not None:
        points = torch.from_numpy(survey.points - place.numpy()).float()
    return Scene(
        name,
        tuple(photos),
        cameras,
        points,
        found.source,
        origin=(x, y, z),
        left_out=survey.left_out,
        order=survey.order,
        poses=survey.poses,
    )


def _are_degrees(place: Float[np.ndarray, "3"], centers: Float[np.ndarray, "camera 3"]) -> bool:
    """Whether places around one on the globe vary by far more in height than in degrees."""
    x, y, height = np.ptp(centers, axis=0)
    return bool(np.abs(place[:2]).max() <= _TURN and max(x, y) * _DEGREE < height)


def chunk_scene(scene: ChunkScene, strict: bool = False) -> Scene:
    """A scene of a chunk: its cameras to the bit, and its photos, whose headers are read.

    Photos that are damaged are left out and named, or an error if `strict`.

    A chunk without near and far, as RealEstate10K and DL3DV are published, is in the unit of the
    models: its scene gets RealEstate10K's range and is not `ranged`.
    """
    whole, left_out = [], []
    for i, photo in enumerate(chunk_photos(scene, range(len(scene)))):
        try:
            photo.check()
            whole.append((i, photo))
        except UserError as error:
            left_out.append(LeftOut(photo.name, error.got))
    report_left_out(left_out, len(whole), scene.key, strict)
    rows = [i for i, _ in whole]
    near, far = scene.near, scene.far
    source = RangeSource.FILE
    if near is None or far is None:
        near, far = (torch.full((len(scene),), bound) for bound in re10k.RANGE)
        source = RangeSource.MODEL
    cameras = Cameras(scene.c2w[None], scene.K[None], near[None], far[None]).at(rows)
    photos = tuple(photo for _, photo in whole)
    return Scene(scene.key, photos, cameras, None, source, scene.origin, tuple(left_out))


def report_left_out(
    left_out: Sequence[LeftOut], used: int, source: object, strict: bool = False
) -> None:
    """Warns of photos that are left out; UserError where none is used, or with `strict`."""
    if not left_out:
        return
    some = "; ".join(f"{photo.name}: {photo.reason}" for photo in left_out[:3])
    more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    text = f"{len(left_out)} of {used + len(left_out)} photos of {source} cannot be used: "
    text += some + more
    if not used:
        raise UserError(
            text, "photos beside their cameras", "check the paths, or name the folder of photos"
        )
    if strict:
        raise UserError(text, "all photos, with `strict=True`", "leave `strict` out to go without")
    log.warning("%s; the rest is used", text)


def chunk_photos(scene: ChunkScene, frames: Iterable[int]) -> list[Photo]:
    """The photos of a chunk's scene at `frames`, still encoded."""

    def depth_of(frame: int) -> bytes | None:
        return None if scene.depths is None else scene.depths[frame].numpy().tobytes()

    return [
        Photo(
            f"{frame:06d}",
            scene.images[frame].numpy().tobytes(),
            None,
            depth_of(frame),
            scene.depth_scale,
        )
        for frame in frames
    ]


def make_photo(image: Path, shot: Shot) -> Photo:
    """The photograph of a shot, with the pixels that its lens is of (`is_upright`)."""
    return Photo(shot.file, image, shot.lens, upright=is_upright(image, shot.lens) is True)


def is_upright(image: Path, lens: Lens) -> bool | None:
    """Whether a lens is of a photo as EXIF turns it, not of its stored pixels; None: either.

    The photo tells, if EXIF turns it on its side: the lens is of the picture that lies as it does.
    Where both lie alike (half turns, mirrors, square photos), the tools that pose photos have
    looked at the stored pixels: COLMAP, nerfstudio and instant-ngp do not read EXIF.
    """
    if not images.is_turned(image):
        return False
    upright, stored = images.image_size(image), images.image_size(image, upright=False)
    if upright == stored:
        return None
    return _is_wide(lens.size) == _is_wide(upright)


def _is_wide(size: tuple[int, int]) -> bool:
    return size[1] > size[0]


def _sensor_depths(photos: Sequence[Photo]) -> np.ndarray | None:
    """Depths of the scene, from maps spread over it; None without any."""
    mapped = [photo for photo in photos if photo.depth_source is not None]
    step = max(len(mapped) // _DEPTH_MAPS, 1)
    depths = [depth.reshape(-1) for p in mapped[::step] if (depth := p.depth()) is not None]
    return np.concatenate(depths) if depths else None


def with_depth(photo: Photo, source: Path, survey: Survey) -> Photo:
    """The photo with a depth map; whole numbers are counts, others are in the unit of the scene.

    Raises UserError for a file that is no depth map of the photo's shape.
    """
    header = depth_maps.read_header(source)
    photo.check_aspect("the depth map", header.size)
    scale = 1.0 if header.has_fractions else survey.depth_scale
    return replace(photo, depth_source=source, depth_scale=scale, no_depth=survey.no_depth)


def _tensor(matrices: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(matrices)).float()[None]

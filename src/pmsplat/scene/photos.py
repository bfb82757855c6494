"""A scene of posed photographs that are decoded when they are asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import UserError
from ..io import images
from ..io.cameras.survey import Lens, Survey
from ..types import Cameras, Views
from .bounds import ranges
from .fit import fit_depth, fit_image, fit_K, to_tensor
from .undistort import pinhole, undistort_depth, undistort_image

_ASPECT_TOLERANCE = 0.01  # between a photo and its lens: rounding of downscaled copies
_DEPTH_MAPS = 40  # at most so many are read to find near and far


@dataclass(frozen=True)
class Photo:
    """One photograph, not yet decoded, with its lens and its depth map if it has one.

    `depth_scale`: scene units of one count. `upright`: EXIF orientation is to be applied.
    """

    name: str
    image: Path | bytes
    lens: Lens
    depth_source: Path | bytes | None = None
    depth_scale: float = 1.0
    upright: bool = True

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), from the file's header."""
        return images.image_size(self.image, self.upright)

    @property
    def has_counts(self) -> bool:
        """Whether the depth is stored as 16-bit counts, not as an array of numbers."""
        source = self.depth_source
        return isinstance(source, bytes) or (source is not None and source.suffix != ".npy")

    def pixels(self) -> UInt8[np.ndarray, "height width 3"]:
        """The photo, undistorted."""
        return undistort_image(images.read_image(self.image, self.upright), self.lens)

    def depth(self) -> Float[np.ndarray, "height width"] | None:
        """Sensor depth in scene units on the photo's grid, undistorted; 0 = none."""
        if self.depth_source is None:
            return None
        depth = _read_depth(self.depth_source) * np.float32(self.depth_scale)
        if depth.shape != self.size:
            self._check_aspect("the depth map", (depth.shape[0], depth.shape[1]))
            depth = fit_depth(depth, self.size)
        return undistort_depth(depth, self.lens)

    def check(self) -> None:
        """Raises UserError where the photo is missing or does not fit its lens."""
        self._check_aspect("the camera file", self.lens.size)

    def _check_aspect(self, owner: str, size: tuple[int, int]) -> None:
        (height, width), (h, w) = self.size, size
        if abs(width * h / (height * w) - 1) > _ASPECT_TOLERANCE:
            raise UserError(
                f"{self.name} has {height}x{width} pixels, but {owner} {h}x{w}",
                "the same shape",
                "use the photos that were posed, neither cropped nor turned",
            )


@dataclass(frozen=True)
class PhotoScene:
    """Posed photographs of one place.

    `cameras` [1, photo]: pinholes in the world and unit of the camera file. `points`: its sparse
    points, if any.
    """

    name: str
    photos: tuple[Photo, ...]
    cameras: Cameras
    points: Float[Tensor, "point 3"] | None = None

    def __len__(self) -> int:
        return len(self.photos)

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

        With a (height, width) `size` they are scaled to cover it and cut around the centre, else
        they stay as they are. Raises UserError for indices that are not there, and for photos of
        different sizes without `size`.
        """
        chosen = list(range(len(self)) if indices is None else indices)
        self._check_indices(chosen)
        photos = [self.photos[i] for i in chosen]
        sizes = {photo.size for photo in photos}
        if size is None and len(sizes) > 1:
            told = " and ".join(f"{h}x{w}" for h, w in sorted(sizes)[:3])
            raise UserError(
                f"the photos of {self.name} have different sizes ({told})",
                "one size",
                "ask for a size, to which all are scaled and cut",
            )
        size = size or photos[0].size
        cameras = self.cameras.at(chosen)
        K = [fit_K(K, photo.size, size) for K, photo in zip(cameras.K[0], photos, strict=True)]
        cameras = Cameras(cameras.c2w, torch.stack(K)[None], cameras.near, cameras.far)
        return Views(
            images=to_tensor([fit_image(p.pixels(), size) for p in photos]),
            cameras=cameras,
            depth=_depths(photos, size) if self.has_depth else None,
            names=(tuple(photo.name for photo in photos),),
        )

    def _check_indices(self, indices: list[int]) -> None:
        beyond = [i for i in indices if not 0 <= i < len(self)]
        if beyond or not indices:
            raise UserError(
                f"{'view ' + str(beyond[0]) if beyond else 'no view'} of {self.name} is asked for",
                f"views from 0 to {len(self) - 1}",
                f"it has {len(self)} photos: ask for fewer, or add more",
            )


def surveyed(name: str, survey: Survey, photos: list[Photo]) -> PhotoScene:
    """The scene of photographs whose cameras `survey` tells, in the same order.

    Every photo's header is read. Raises UserError for missing photos and for those that do not fit
    their lens.
    """
    for photo in photos:
        photo.check()
    bounds = torch.tensor(ranges(survey, _sensor_depths(photos)), dtype=torch.float64)
    straight = {lens: pinhole(lens).K for lens in {photo.lens for photo in photos}}
    cameras = Cameras(
        c2w=_tensor([shot.c2w for shot in survey.shots]),
        K=_tensor([straight[photo.lens] for photo in photos]),
        near=bounds[None, :, 0].float(),
        far=bounds[None, :, 1].float(),
    )
    points = None if survey.points is None else torch.from_numpy(survey.points).float()
    return PhotoScene(name, tuple(photos), cameras, points)


def _sensor_depths(photos: list[Photo]) -> np.ndarray | None:
    """Depths of the scene, from maps spread over it; None without any."""
    mapped = [photo for photo in photos if photo.depth_source is not None]
    step = max(len(mapped) // _DEPTH_MAPS, 1)
    depths = [depth.reshape(-1) for p in mapped[::step] if (depth := p.depth()) is not None]
    return np.concatenate(depths) if depths else None


def _depths(photos: list[Photo], size: tuple[int, int]) -> Tensor:
    maps = []
    for photo in photos:
        depth = photo.depth()
        known = np.zeros(photo.size, np.float32) if depth is None else depth
        maps.append(torch.from_numpy(fit_depth(known, size)))
    return torch.stack(maps)[None]


def _read_depth(source: Path | bytes) -> Float[np.ndarray, "height width"]:
    if isinstance(source, bytes) or source.suffix != ".npy":
        return images.read_depth(source).astype(np.float32)
    try:
        depth = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{source} cannot be read as depth ({error})", "a 2-D array", "write it again"
        ) from error
    if depth.ndim != 2 or depth.dtype.kind not in "fui":
        raise UserError(
            f"{source} has shape {list(depth.shape)} and type {depth.dtype}",
            "a 2-D array of numbers",
            "write it again",
        )
    return np.nan_to_num(depth.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _tensor(matrices: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(matrices)).float()[None]

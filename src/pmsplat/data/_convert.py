"""A scene of photographs, made a scene of a chunk."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..io import images
from ..io.chunks import ChunkScene
from ..progress import Track, silently
from ..scene.fit import fit_depth, fit_image, fit_K
from ..scene.photos import Photo, Scene


def to_chunk_scene(
    scene: Scene,
    key: str,
    size: tuple[int, int] | None = None,
    indices: Iterable[int] | None = None,
    track: Track = silently,
) -> ChunkScene:
    """The photos at `indices` (all, if None) with exact intrinsics, near, far, and depth if there.

    They are undistorted and fitted to a (height, width) `size`; None leaves theirs. JPEG files
    that need no change are taken over byte by byte; the rest are written as JPEG of quality 95.
    `track` shows the progress.
    """
    # Photos, at their size or the one that is wanted.
    chosen = list(range(len(scene)) if indices is None else indices)
    cameras = scene.cameras.at(chosen)
    photos = [scene.photos[i] for i in chosen]
    encoded = [_encode(photo, size) for photo in track(photos, f"reading {key}", len(photos))]

    # Their pinholes after that, and their depth in counts of one scale.
    K = [
        fit_K(K, photo.size, size or photo.size)
        for K, photo in zip(cameras.K[0], photos, strict=True)
    ]
    depth_scale = _depth_scale(photos) if scene.has_depth else 1.0
    depths = [_encode_depth(p, size, depth_scale) for p in photos] if scene.has_depth else None
    return ChunkScene(
        key=key,
        c2w=cameras.c2w[0],
        K=torch.stack(K),
        images=tuple(map(_tensor, encoded)),
        timestamps=torch.arange(len(photos)),
        near=cameras.near[0],
        far=cameras.far[0],
        depths=None if depths is None else tuple(map(_tensor, depths)),
        depth_scale=depth_scale,
        origin=scene.origin,
    )


def _encode(photo: Photo, size: tuple[int, int] | None) -> bytes:
    stays = size in (None, photo.size) and photo.is_pinhole
    if stays and isinstance(photo.image, bytes):
        return photo.image
    if stays and isinstance(photo.image, Path) and photo.image.suffix.lower() in (".jpg", ".jpeg"):
        images.read_image(photo.image)  # a damaged photo is reported now, not in training
        if not images.is_turned(photo.image):
            return photo.image.read_bytes()
    pixels = photo.pixels()
    return images.encode_image(pixels if size is None else fit_image(pixels, size), "jpeg")


def _encode_depth(photo: Photo, size: tuple[int, int] | None, scale: float) -> bytes:
    depth = photo.depth()
    if depth is None:
        depth = np.zeros(photo.size, np.float32)
    if size is not None:
        depth = fit_depth(depth, size)
    return images.encode_depth(images.to_counts(depth, scale))


def _depth_scale(photos: list[Photo]) -> float:
    """That of the depth files, which keeps their counts; if they differ, the finest that fits."""
    mapped = [photo for photo in photos if photo.depth_source is not None]
    scales = {photo.depth_scale for photo in mapped}
    if len(scales) == 1 and all(photo.has_counts for photo in mapped):
        return scales.pop()
    deepest = max(float(depth.max()) for p in mapped if (depth := p.depth()) is not None)
    return max(deepest, 1e-6) / images.FULL_SCALE


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)

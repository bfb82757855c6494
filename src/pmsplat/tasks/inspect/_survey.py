"""What can be found out about a data set without reading all of it: see `inspect`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...data import find_fault, find_remarks
from ...errors import UserError
from ...io import images
from ...io.chunks import (
    Chunk,
    ChunkScene,
    Quarantine,
    Split,
    read_chunk,
    read_quarantine,
    read_split,
)
from ...progress import Track
from ..verify import JOURNAL, Verified, read_verified

SHOWN = 4  # photographs of a scene
THUMBNAIL, QUALITY = (288, 288), 72  # pixels at most, and of WebP

_JUMP = 10  # usual steps between cameras, from which on a path has a jump


@dataclass(frozen=True)
class Thumbnail:
    """A photograph of a scene, small; `webp` is None where it cannot be decoded."""

    frame: int
    webp: bytes | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """A scene that was opened. One with a `fault` that cannot be read has no more than its key.

    `size` is (height, width) of most of its photographs, `fields` the horizontal and the vertical
    field of view of every camera in degrees, `length` that of the path in scene units.
    """

    key: str
    chunk: str
    fault: str = ""
    frames: int = 0
    size: tuple[int, int] | None = None
    thumbnails: tuple[Thumbnail, ...] = ()
    c2w: Float[Tensor, "frame 4 4"] | None = None
    fields: Float[Tensor, "frame 2"] | None = None
    near_far: tuple[float, float] | None = None
    has_depth: bool = False
    length: float = 0.0
    oddities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """A split: totals of all of it, some of its scenes, and what an earlier check found.

    `verified` is None where no check of all its chunks as they are now is known; `checked` says
    that there was one at some time.
    """

    folder: Path
    scenes: int
    chunks: int
    bytes: int
    samples: tuple[Sample, ...]
    verified: Verified | None = None
    checked: bool = False
    quarantine: Quarantine = field(default_factory=Quarantine)

    @property
    def opened(self) -> list[Sample]:
        """The samples that could be read."""
        return [sample for sample in self.samples if sample.frames]

    @property
    def photos(self) -> int | None:
        """How many photographs there are; estimated by the samples unless `is_counted`."""
        if self.verified is not None:
            return self.verified.photos
        frames = [sample.frames for sample in self.opened]
        return round(sum(frames) / len(frames) * self.scenes) if frames else None

    @property
    def is_counted(self) -> bool:
        """Whether every photograph was counted, here or by an earlier check."""
        return self.verified is not None or len(self.opened) == self.scenes

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many scenes have photographs of each size: of all that were checked, or samples."""
        if self.verified is not None:
            return Counter(self.verified.sizes)
        return Counter(sample.size for sample in self.opened if sample.size is not None)


def survey_splits(folders: Sequence[Path], scenes: int, track: Track) -> list[Survey]:
    """Reads the indices of some splits, and opens `scenes` scenes, shared by the splits."""
    splits = [read_split(folder) for folder in folders]
    counts = [len(split.chunk_of) for split in splits]
    chosen = [
        choose_evenly(list(split.chunk_of), share)
        for split, share in zip(splits, share_evenly(counts, scenes), strict=True)
    ]
    found = read_verified(folders)
    return [
        _survey_split(split, keys, verified, track)
        for split, keys, verified in zip(splits, chosen, found, strict=True)
    ]


def share_evenly(counts: Sequence[int], wanted: int) -> list[int]:
    """How many of `wanted` each gets, as equal as `counts`, the most they can take, allow."""
    shares, left = [0] * len(counts), wanted
    for rank, i in enumerate(sorted(range(len(counts)), key=lambda i: counts[i])):
        shares[i] = min(counts[i], ceil(left / (len(counts) - rank)))
        left -= shares[i]
    return shares


def choose_evenly(keys: Sequence[str], count: int) -> list[str]:
    """`count` of the keys, from the middles of equal parts."""
    return [keys[int((i + 0.5) * len(keys) / count)] for i in range(count)]


def _survey_split(
    split: Split, keys: Sequence[str], verified: Verified | None, track: Track
) -> Survey:
    folder, quarantine = split.folder, read_quarantine(split.folder)
    chunk_of = split.chunk_of
    # Every chunk of the samples is opened once.
    names = list(dict.fromkeys(chunk_of[key] for key in keys))
    samples: dict[str, Sample] = {}
    for name in track(names, f"reading {folder.name}", len(names)):
        inside = [key for key in keys if chunk_of[key] == name]
        samples |= {sample.key: sample for sample in _read_samples(folder / name, inside)}
    # Remarks that take more than the scene itself.
    usual = Counter(sample.size for sample in samples.values() if sample.size).most_common(1)
    noted = [_add_remarks(samples[key], quarantine, usual[0][0] if usual else None) for key in keys]
    files = [path for name in split.keys if (path := folder / name).is_file()]
    return Survey(
        folder=folder,
        scenes=len(chunk_of),
        chunks=len(split.keys),
        bytes=sum(path.stat().st_size for path in files),
        samples=tuple(noted),
        verified=verified,
        checked=(folder / JOURNAL).is_file(),
        quarantine=quarantine,
    )


def _read_samples(path: Path, keys: Sequence[str]) -> list[Sample]:
    try:
        chunk = read_chunk(path)
    except UserError as error:
        return [Sample(key, path.name, f"{error.got}") for key in keys]
    return [_read_sample(chunk, path.name, key) for key in keys]


def _read_sample(chunk: Chunk, name: str, key: str) -> Sample:
    if key not in chunk.scenes:
        fault = f"it has {chunk.faults[key]}" if key in chunk.faults else "its chunk lacks it"
        return Sample(key, name, fault)
    return describe_scene(chunk.scenes[key], name)


def describe_scene(scene: ChunkScene, chunk: str) -> Sample:
    """Looks at a scene's cameras, at the headers of all its photographs, and into a few of them."""
    odd: list[str] = []
    # Photographs.
    sizes, broken = [], 0
    for data in scene.images:
        try:
            sizes.append(images.image_size(data.numpy().tobytes()))
        except UserError:
            broken += 1
    frames = np.linspace(0, len(scene) - 1, min(SHOWN, len(scene))).round().astype(int).tolist()
    thumbnails = [_make_thumbnail(scene, frame) for frame in frames]
    if broken or any(thumbnail.webp is None for thumbnail in thumbnails):
        odd.append("a photo that cannot be decoded")
    # Cameras. Depth maps are not decoded here.
    if sizes:
        fault, detail = find_fault(replace(scene, depths=None), sizes)
        odd += [f"{fault} ({detail})"] if fault else []
        odd += find_remarks(scene, sizes[0])
    steps = scene.c2w[:, :3, 3].diff(dim=0).norm(dim=-1)
    odd += _find_jumps(steps)
    near_far = None
    if scene.near is not None and scene.far is not None:
        near_far = float(scene.near.min()), float(scene.far.max())
    return Sample(
        key=scene.key,
        chunk=chunk,
        frames=len(scene),
        size=Counter(sizes).most_common(1)[0][0] if sizes else None,
        thumbnails=tuple(thumbnails),
        c2w=scene.c2w,
        fields=torch.rad2deg(2 * torch.atan(0.5 / scene.K[:, [0, 1], [0, 1]])),
        near_far=near_far,
        has_depth=scene.depths is not None,
        length=float(steps.sum()),
        oddities=tuple(odd),
    )


def _find_jumps(steps: Float[Tensor, " step"]) -> list[str]:
    """A step of the camera that is far longer than most."""
    if len(steps) < 4 or not float(steps.median()):
        return []
    times = float(steps.max() / steps.median())
    if times < _JUMP:
        return []
    where = int(steps.argmax()) + 1
    return [f"a jump of the camera after photo {where}, {times:.0f} times the usual step"]


def _add_remarks(sample: Sample, quarantine: Quarantine, usual: tuple[int, int] | None) -> Sample:
    """With what follows from the rest: what is left out, and another size than most."""
    reason = quarantine.scenes.get(sample.key) or quarantine.chunks.get(sample.chunk)
    odd = [f"left out of training: {reason}"] if reason else []
    if sample.size is not None and sample.size != usual:
        odd.append("photographs of another size than most of the sample")
    own = [text for text in sample.oddities if not (reason and reason.startswith(text))]
    return replace(sample, oddities=(*odd, *own))


def _make_thumbnail(scene: ChunkScene, frame: int) -> Thumbnail:
    try:
        image = Image.fromarray(scene.image(frame))
    except UserError:
        return Thumbnail(frame, None, (0, 0))
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    webp = images.encode_image(np.array(image), "webp", QUALITY)
    return Thumbnail(frame, webp, (image.height, image.width))

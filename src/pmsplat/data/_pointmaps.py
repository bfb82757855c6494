"""A teacher's pointmaps on disk, beside the chunks they belong to: written once, read often.

FOLDER/000000.zip has the pointmaps of every scene of 000000.torch. The points of a photo depend on
the photos that the teacher sees with it. So a teacher sees each scene in fixed windows of frames,
and the context views of a training example are taken from one window. Member SCENE/WINDOW/FRAME
(numbers, in the order of the chunk, of the scene's windows and of a window's frames) is one frame:
planes of x, of y, of z and of confidence as float16, first the low bytes of all, then the high
ones, deflated, with a CRC. Points are stored less a center and divided by a scale; both belong to
the window, and the manifest has them as [x, y, z, scale]. Confidence is a share of the greatest of
its window. The manifest also has the cache key, every scene's length, and why a scene was skipped.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from ..errors import UserError
from ..io.files import atomic
from ..types import Pointmap
from ._windows import Snapped, Windows

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 28  # bytes
TAIL = 1 << 20  # bytes at the end of a chunk by which it is known again
FAINTEST = 2.0**-14  # of the greatest confidence of a window: the smallest that float16 holds well


@dataclass(frozen=True)
class CacheKey:
    """All that a stored pointmap depends on except the photos."""

    teacher: str
    revision: str
    size: tuple[int, int]
    fit: str  # how photos were brought to that size
    windows: Windows

    def check(self, stored: dict[str, Any], path: Path) -> None:
        """Raises `StalePointmaps` naming the first difference from the key in a manifest."""
        for name, value in _as_json(self).items():
            if stored.get(name) != value:
                raise StalePointmaps(
                    f"{path} was made with {name} {_to_json(stored.get(name))}",
                    f"{name} {_to_json(value)}",
                    "write it again with `pmsplat teacher cache --overwrite` and the settings of "
                    "this run, or choose another teacher.cache",
                )


class MissingPointmaps(UserError):
    """A file or a scene of a cache that is not there."""


class StalePointmaps(UserError):
    """Pointmaps that are there and do not fit the run."""


class DamagedPointmaps(UserError):
    """A file that is not, or no longer, one of pointmaps."""


class SkippedScene(Exception):
    """Why a scene has no pointmaps though those of its chunk are there, in the words of the log."""


@dataclass(frozen=True)
class PointmapCache:
    """Where a teacher's pointmaps of the training scenes are kept, and what they depend on.

    With a cache, context views are taken from frames that the teacher saw together. Where
    pointmaps are missing or stale, `required` makes that an error; without it such examples have no
    pointmap.
    """

    folder: Path
    key: CacheKey
    required: bool = True

    def reader(self) -> "CacheReader":
        """A reader of its files."""
        return CacheReader(self.folder, self.key)

    def check(self, chunks: list[Path]) -> None:
        """Raises the error of the first chunk whose file is missing, stale or damaged."""
        reader = self.reader()
        for chunk in chunks:
            reader.check(chunk)


@dataclass(frozen=True)
class WindowPointmap:
    """A teacher's pointmap of one window of a scene, batch axis 1."""

    scene: str
    frames: int  # of the whole scene
    window: int
    pointmap: Pointmap


@dataclass(frozen=True)
class SkippedEntry:
    """A scene that the teacher could not be shown, and why, in the words of the log."""

    scene: str
    frames: int  # of the whole scene
    reason: str


def write_pointmaps(
    path: Path, key: CacheKey, chunk: Path, entries: Iterable[WindowPointmap | SkippedEntry]
) -> int:
    """Writes the pointmaps of one chunk, whole or not at all; returns the bytes on disk.

    `entries` come scene by scene, their windows in order; a scene may be skipped after some of
    them. Points that are not finite are stored as unknown.
    """
    scenes: dict[str, dict[str, Any]] = {}
    with atomic(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for entry in entries:
                if isinstance(entry, SkippedEntry):
                    scenes[entry.scene] = {"frames": entry.frames, "unusable": entry.reason}
                    continue
                scene = scenes.setdefault(entry.scene, {"frames": entry.frames, "windows": []})
                assert len(scene["windows"]) == entry.window, "windows come in order"
                packed = _pack(entry.pointmap)
                scene["windows"].append(list(packed.placement))
                for i, frame in enumerate(key.windows.of(entry.frames)[entry.window]):
                    name = _name_member(len(scenes) - 1, entry.window, frame)
                    archive.writestr(name, _to_planes(packed.values[i]))
            made_of = {"identity": _as_json(key), "chunk": fingerprint(chunk)}
            manifest = made_of | {"scenes": scenes}
            archive.writestr(MANIFEST, json.dumps(manifest))
        size = temporary.stat().st_size
    return size


def fingerprint(chunk: Path) -> str:
    """A hash of the length of a chunk and of its last MiB.

    There torch.save (since 1.6) lists a CRC of every tensor, in 58 bytes: so a changed photo or
    pose is noticed in a chunk of up to some 18,000 photos. In a larger chunk, or one of an older
    torch, only a change of its length or its end is noticed.
    """
    length = chunk.stat().st_size
    digest = hashlib.blake2b(f"{length} ".encode(), digest_size=16)
    with chunk.open("rb") as stream:
        stream.seek(max(length - TAIL, 0))
        digest.update(stream.read())
    return digest.hexdigest()


class CacheReader:
    """Reads the pointmaps of a split; the file read last stays open, or its error is remembered.

    Raises `MissingPointmaps` where there is no file or scene, `StalePointmaps` where a file was
    written with other settings or from another chunk (see `fingerprint`), `DamagedPointmaps` for a
    file that cannot be read, and `SkippedScene` for a scene that was skipped when it was written.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        self.folder, self.key = folder, key
        self._open: tuple[str, _File | UserError] | None = None

    def read(self, chunk: Path, scene: str, snapped: Snapped) -> Pointmap:
        """The pointmap of the context views, batch axis 1."""
        return self._file(chunk).read(scene, snapped)

    def check(self, chunk: Path) -> None:
        """Raises as `read` does, without reading a pointmap."""
        self._file(chunk)

    def path(self, chunk: Path) -> Path:
        """Where the pointmaps of a chunk are, or would be."""
        return self.folder / f"{chunk.stem}.zip"

    def _file(self, chunk: Path) -> "_File":
        if self._open is None or self._open[0] != chunk.name:
            try:
                self._open = (chunk.name, _File(self.path(chunk), self.key, chunk))
            except UserError as error:
                self._open = (chunk.name, error)
        file = self._open[1]
        if isinstance(file, UserError):
            raise file.with_traceback(None)
        return file


class _File:
    """One open file of a cache, its manifest read and checked against the key and the chunk."""

    def __init__(self, path: Path, key: CacheKey, chunk: Path) -> None:
        self.path, self.key = path, key
        if not path.is_file():
            raise MissingPointmaps(
                f"there are no pointmaps at {path}",
                "those of every chunk",
                "write them with `pmsplat teacher cache` and the settings of this run, or compute "
                "them in training: teacher.missing=compute",
            )
        try:
            self.archive = zipfile.ZipFile(path)
            manifest = json.loads(self._member(MANIFEST, range(LARGEST_MANIFEST)))
            stored, made_of = dict(manifest["identity"]), manifest.get("chunk")
            self.scenes = dict(manifest["scenes"])
        except _DAMAGED as error:
            raise self._damage_error(error) from error
        key.check(stored, path)
        if made_of != fingerprint(chunk):
            raise StalePointmaps(
                f"{path} was not made from {chunk} as that is now",
                "pointmaps of the chunk that is there",
                "write them again with `pmsplat teacher cache --overwrite`",
            )
        self.numbers = {key: number for number, key in enumerate(self.scenes)}

    def read(self, scene: str, snapped: Snapped) -> Pointmap:
        # Look the scene up: it must be there, of the same length as then, and not skipped.
        if scene not in self.numbers:
            raise MissingPointmaps(
                f"{self.path} has no pointmaps of scene {scene!r}",
                "all scenes of its chunk",
                "write it again with `pmsplat teacher cache --overwrite`",
            )
        try:
            entry = dict(self.scenes[scene])
            frames, reason = entry["frames"], entry.get("unusable")
        except _DAMAGED as error:
            raise self._damage_error(error) from error
        if frames != snapped.count:
            raise StalePointmaps(
                f"{self.path} has pointmaps of scene {scene!r} when it had {frames} frames",
                f"those of its {snapped.count} frames",
                "write them again with `pmsplat teacher cache --overwrite`",
            )
        if reason is not None:
            raise SkippedScene(str(reason))

        # Unpack its frames, and put their points back where the window has them.
        try:
            place = torch.tensor(entry["windows"][snapped.window])
            if place.shape != (4,) or not bool(place.isfinite().all() & (place[3] > 0)):
                raise ValueError(f"window {snapped.window} of {scene!r} has no place")
            values = torch.stack(
                [
                    self._values(_name_member(self.numbers[scene], snapped.window, frame))
                    for frame in snapped.frames.context
                ]
            )[None].float()
        except _DAMAGED as error:
            raise self._damage_error(error) from error
        points = values[:, :, :3].movedim(2, -1) * place[3] + place[:3]
        return Pointmap(points.contiguous(), values[:, :, 3].contiguous())

    def _values(self, name: str) -> Float16[Tensor, "4 height width"]:
        height, width = self.key.size
        wanted = 2 * 4 * height * width
        planes = np.frombuffer(self._member(name, range(wanted, wanted + 1)), np.uint8)
        values = planes.reshape(2, -1).T.copy().view("<f2").reshape(4, height, width)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has numbers that are not finite")
        return torch.from_numpy(values)

    def _member(self, name: str, sizes: range) -> bytes:
        """A member whose size is one of `sizes`, known before anything is unpacked."""
        info = self.archive.getinfo(name)
        if info.file_size not in sizes:
            raise ValueError(f"{name} of {info.file_size} bytes")
        return self.archive.read(info)

    def _damage_error(self, error: Exception) -> "DamagedPointmaps":
        return DamagedPointmaps(
            f"{self.path} is damaged ({type(error).__name__}: {error})",
            "a file that `pmsplat teacher cache` wrote",
            "run that again: it writes again what cannot be opened; delete the file if it stays",
        )


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
)
"""The exceptions that zipfile, json and their contents raise on damaged files."""


@dataclass(frozen=True)
class _Packed:
    values: Float[Tensor, "view 4 height width"]
    placement: tuple[float, ...]  # center, then scale


def _pack(pointmap: Pointmap) -> _Packed:
    points = pointmap.points[0].float()
    confidence = pointmap.confidence[0].float()
    known = (confidence > 0) & points.isfinite().all(dim=-1) & confidence.isfinite()
    points = torch.where(known[..., None], points, 0)
    confidence = torch.where(known, confidence, 0)
    center, scale, greatest = points.new_zeros(3), points.new_ones(()), points.new_ones(())
    if bool(known.any()):
        # near the center float16 steps are finest: at the median far pixels do not coarsen the rest
        center = points[known].median(dim=0).values
        scale = (points[known] - center).abs().max().clamp_min(1e-30)
        greatest = confidence.max()
    placed = torch.where(known[..., None], (points - center) / scale, 0)
    share = torch.where(known, (confidence / greatest).clamp_min(FAINTEST), 0)
    values = torch.cat([placed.movedim(-1, 1), share[:, None]], dim=1)
    return _Packed(values, (*center.tolist(), float(scale)))


def _to_planes(values: Float[Tensor, "4 height width"]) -> bytes:
    half = values.cpu().numpy().astype("<f2")
    return np.ascontiguousarray(half.reshape(-1, 1).view(np.uint8).T).tobytes()


def _name_member(scene: int, window: int, frame: int) -> str:
    return f"{scene}/{window}/{frame}"


def _as_json(key: CacheKey) -> dict[str, Any]:
    """The key as it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(asdict(key)))


def _to_json(value: Any) -> str:
    return "unknown" if value is None else json.dumps(value)

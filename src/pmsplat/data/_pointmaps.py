"""A teacher's pointmaps on disk, beside the chunks they belong to: taught once, read often.

FOLDER/000000.zip has the answers for every scene of 000000.torch. What a teacher says of a photo
depends on the photos it sees with it, so scenes are shown to it in fixed windows of frames, and the
context views of a training example are taken from one window. Member SCENE/WINDOW/FRAME, numbers in
the order of the chunk, of the scene's windows and of a window's frames, is one frame: planes of x,
of y, of z and of confidence as float16, first the low bytes of them all, then the high ones,
deflated, with a CRC. Points are less a centre and divided by a scale, window by window, which the
manifest has as [x, y, z, scale]; confidence is a share of the greatest of its window. The manifest
also names all that an answer depends on, every scene's length, and why a scene was passed over.
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
class Identity:
    """All that a stored pointmap depends on beside the photos."""

    teacher: str
    revision: str
    size: tuple[int, int]
    fit: str  # how photos were brought to that size
    windows: Windows

    def check(self, stored: dict[str, Any], path: Path) -> None:
        """Raises `Stale` naming the first difference from a manifest's identity."""
        for name, value in _plain(self).items():
            if stored.get(name) != value:
                raise Stale(
                    f"{path} was made with {name} {_told(stored.get(name))}",
                    f"{name} {_told(value)}",
                    "make it anew with `pmsplat teacher cache --overwrite` and the settings of "
                    "this run, or choose another teacher.cache",
                )


class Stale(UserError):
    """Pointmaps that are there and do not fit the run."""


@dataclass(frozen=True)
class Lessons:
    """Where a teacher's pointmaps of the training scenes are kept, and what they must be of.

    Context views are then taken from the frames that it saw together. Where some are missing or
    stale, `required` makes that an error; else examples come without.
    """

    folder: Path
    identity: Identity
    required: bool = True

    def shelf(self) -> "Shelf":
        """To read them from."""
        return Shelf(self.folder, self.identity)

    def check(self, chunks: list[Path]) -> None:
        """Raises for the first chunk whose file is Missing, Stale or Damaged."""
        shelf = self.shelf()
        for chunk in chunks:
            shelf.check(chunk)


@dataclass(frozen=True)
class Answer:
    """What a teacher says of one window of a scene, batch axis 1."""

    scene: str
    frames: int  # of the whole scene
    window: int
    pointmap: Pointmap


@dataclass(frozen=True)
class PassedOver:
    """Why the teacher could not be shown a scene, in the words of the log."""

    scene: str
    frames: int  # of the whole scene
    reason: str


def write(
    path: Path, identity: Identity, chunk: Path, answers: Iterable[Answer | PassedOver]
) -> int:
    """Writes the pointmaps of one chunk, whole or not at all; returns the bytes on disk.

    `answers` come scene by scene, their windows in order; a scene may be passed over after some of
    them. Points that are not finite are stored as unknown.
    """
    scenes: dict[str, dict[str, Any]] = {}
    with atomic(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for answer in answers:
                if isinstance(answer, PassedOver):
                    scenes[answer.scene] = {"frames": answer.frames, "unusable": answer.reason}
                    continue
                scene = scenes.setdefault(answer.scene, {"frames": answer.frames, "windows": []})
                assert len(scene["windows"]) == answer.window, "windows come in order"
                packed = _packed(answer.pointmap)
                scene["windows"].append(list(packed.placement))
                for i, frame in enumerate(identity.windows.of(answer.frames)[answer.window]):
                    name = _name(len(scenes) - 1, answer.window, frame)
                    archive.writestr(name, _planes(packed.values[i]))
            made_of = {"identity": _plain(identity), "chunk": fingerprint(chunk)}
            manifest = made_of | {"scenes": scenes}
            archive.writestr(MANIFEST, json.dumps(manifest))
        size = temporary.stat().st_size
    return size


def fingerprint(chunk: Path) -> str:
    """A hash of the length of a chunk and of its last MiB.

    There torch.save (since 1.6) lists a CRC of every tensor, in 58 bytes: so a photo or a pose
    that was exchanged is noticed in a chunk of up to some 18,000 photos. In a larger one, or one
    of an older torch, only what changes its length or its end is.
    """
    length = chunk.stat().st_size
    digest = hashlib.blake2b(f"{length} ".encode(), digest_size=16)
    with chunk.open("rb") as stream:
        stream.seek(max(length - TAIL, 0))
        digest.update(stream.read())
    return digest.hexdigest()


class Shelf:
    """The pointmaps of a split; the file read last stays open, or it is remembered why it cannot.

    Raises `Missing` where there is none, `Stale` where it was made with other settings or from
    another chunk (see `fingerprint`), `Damaged` where it is, `Untaught` for a scene that was passed
    over when it was made.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self.identity = folder, identity
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
                self._open = (chunk.name, _File(self.path(chunk), self.identity, chunk))
            except UserError as error:
                self._open = (chunk.name, error)
        file = self._open[1]
        if isinstance(file, UserError):
            raise file.with_traceback(None)
        return file


class Missing(UserError):
    """Pointmaps that are not there."""


class Untaught(Exception):
    """Why a scene has no pointmaps though those of its chunk are there, in the words of the log."""


class Damaged(UserError):
    """A file that is not, or no longer, one of pointmaps."""


class _File:
    def __init__(self, path: Path, identity: Identity, chunk: Path) -> None:
        self.path, self.identity = path, identity
        if not path.is_file():
            raise Missing(
                f"there are no pointmaps at {path}",
                "those of every chunk",
                "make them with `pmsplat teacher cache` and the settings of this run, or let them "
                "be computed in training: teacher.missing=compute",
            )
        try:
            self.archive = zipfile.ZipFile(path)
            manifest = json.loads(self._member(MANIFEST, range(LARGEST_MANIFEST)))
            stored, made_of = dict(manifest["identity"]), manifest.get("chunk")
            self.scenes = dict(manifest["scenes"])
        except _DAMAGED as error:
            raise self._damaged(error) from error
        identity.check(stored, path)
        if made_of != fingerprint(chunk):
            raise Stale(
                f"{path} was not made from {chunk} as that is now",
                "pointmaps of the chunk that is there",
                "make them anew with `pmsplat teacher cache --overwrite`",
            )
        self.numbers = {key: number for number, key in enumerate(self.scenes)}

    def read(self, scene: str, snapped: Snapped) -> Pointmap:
        if scene not in self.numbers:
            raise Missing(
                f"{self.path} has no pointmaps of scene {scene!r}",
                "all scenes of its chunk",
                "make it anew with `pmsplat teacher cache --overwrite`",
            )
        try:
            entry = dict(self.scenes[scene])
            frames, reason = entry["frames"], entry.get("unusable")
        except _DAMAGED as error:
            raise self._damaged(error) from error
        if frames != snapped.count:
            raise Stale(
                f"{self.path} has pointmaps of scene {scene!r} when it had {frames} frames",
                f"those of its {snapped.count} frames",
                "make them anew with `pmsplat teacher cache --overwrite`",
            )
        if reason is not None:
            raise Untaught(str(reason))
        try:
            place = torch.tensor(entry["windows"][snapped.window])
            if place.shape != (4,) or not bool(place.isfinite().all() & (place[3] > 0)):
                raise ValueError(f"window {snapped.window} of {scene!r} has no place")
            values = torch.stack(
                [
                    self._values(_name(self.numbers[scene], snapped.window, frame))
                    for frame in snapped.frames.context
                ]
            )[None].float()
        except _DAMAGED as error:
            raise self._damaged(error) from error
        points = values[:, :, :3].movedim(2, -1) * place[3] + place[:3]
        return Pointmap(points.contiguous(), values[:, :, 3].contiguous())

    def _values(self, name: str) -> Float16[Tensor, "4 height width"]:
        height, width = self.identity.size
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

    def _damaged(self, error: Exception) -> "Damaged":
        return Damaged(
            f"{self.path} is damaged ({type(error).__name__}: {error})",
            "a file that `pmsplat teacher cache` wrote",
            "run that again: it makes anew what cannot be opened; delete the file if that keeps it",
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
"""What zipfile, json and a look into what they give raise on damaged files."""


@dataclass(frozen=True)
class _Packed:
    values: Float[Tensor, "view 4 height width"]
    placement: tuple[float, ...]  # centre, then scale


def _packed(pointmap: Pointmap) -> _Packed:
    points = pointmap.points[0].float()
    confidence = pointmap.confidence[0].float()
    known = (confidence > 0) & points.isfinite().all(dim=-1) & confidence.isfinite()
    points = torch.where(known[..., None], points, 0)
    confidence = torch.where(known, confidence, 0)
    centre, scale, greatest = points.new_zeros(3), points.new_ones(()), points.new_ones(())
    if bool(known.any()):
        # near the centre float16 steps are finest: at the median far pixels do not coarsen the rest
        centre = points[known].median(dim=0).values
        scale = (points[known] - centre).abs().max().clamp_min(1e-30)
        greatest = confidence.max()
    placed = torch.where(known[..., None], (points - centre) / scale, 0)
    share = torch.where(known, (confidence / greatest).clamp_min(FAINTEST), 0)
    values = torch.cat([placed.movedim(-1, 1), share[:, None]], dim=1)
    return _Packed(values, (*centre.tolist(), float(scale)))


def _planes(values: Float[Tensor, "4 height width"]) -> bytes:
    half = values.cpu().numpy().astype("<f2")
    return np.ascontiguousarray(half.reshape(-1, 1).view(np.uint8).T).tobytes()


def _name(scene: int, window: int, frame: int) -> str:
    return f"{scene}/{window}/{frame}"


def _plain(identity: Identity) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(asdict(identity)))


def _told(value: Any) -> str:
    return "unknown" if value is None else json.dumps(value)

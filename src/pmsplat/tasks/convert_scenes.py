"""Many scenes, as data sets are downloaded, made chunks: in parallel, over machines, resumable."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from ..data import find_fault, to_chunk_scene
from ..errors import UserError, count_of
from ..io import images
from ..io.cameras import re10k
from ..io.chunks import INDEX, RECORDS, ChunkScene, check_new, write_chunk
from ..io.files import atomic, clear_leftovers, locked, write_text
from ..progress import Track, silently
from ..scene import PhotoOptions, Scene, open_scene
from ..scene.folders import FoundScene, find_scenes
from .jobs import collect_warnings, count_jobs, run_jobs
from .options import describe_fit_of_scenes, format_size, share_cut

CHUNK_BYTES = 100_000_000  # of photos, as in the published chunks


@dataclass(frozen=True)
class ConvertOptions:
    """How the photos of every scene are found and made.

    `size`: (height, width) to which they are scaled and cut, None leaves theirs. `every`: take each
    N-th photo. `jobs`: processes, None is one for each processor. `shard` (i, n): the i-th of n
    parts of the scenes, from 1; other machines do the others.
    """

    size: tuple[int, int] | None = None
    every: int = 1
    jobs: int | None = None
    shard: tuple[int, int] = (1, 1)
    photos: PhotoOptions = field(default_factory=PhotoOptions)

    def __post_init__(self) -> None:
        number, count = self.shard
        if not 1 <= number <= count:
            raise UserError(
                f"`shard={number}/{count}`", "I/N with I from 1 to N", "choose such a part"
            )
        if self.every < 1:
            raise UserError(f"`every={self.every}`", "1 or more", "take every photo with 1")


@dataclass(frozen=True)
class Converted:
    """A scene that is in a chunk, with the photos that it lacks and what was doubtful about it.

    `source` is the (height, width) of its photos before they were made `size`: of the one that
    lost most.
    """

    chunk: str
    photos: int
    size: tuple[int, int]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: tuple[int, int] | None = None


@dataclass(frozen=True)
class Summary:
    """Scenes converted by this run, those that were there, and the reason of each dropped one.

    `record` is the file that names them all; `sizes` counts the scenes of this and earlier runs.
    `doubtful` has what was doubtful about scenes that were converted, such as a guessed near.
    `fitted` are sentences about photos that were scaled and cut.
    """

    converted: int
    found: int
    dropped: dict[str, str]
    doubtful: dict[str, tuple[str, ...]]
    photos: int
    left_out: int
    chunks: int
    sizes: dict[tuple[int, int], int]
    record: Path
    fitted: tuple[str, ...] = ()


def convert_scenes(
    input: str | Path,
    output: str | Path,
    options: ConvertOptions | None = None,
    tell: Callable[[str], None] = print,
    track: Track = silently,
) -> Summary:
    """Adds every scene in a folder to a split of chunks of about 100 MB.

    A scene that cannot be used is dropped: its reason is in conversion.json beside the chunks
    (conversion-03-of-16.json of a shard), and the rest is converted. So are photos that a scene
    lacks. The record is written with every chunk: an interrupted run goes on after the last one,
    and a later run adds scenes that are new and tries dropped ones again. index.json is written at
    the end. Raises UserError where no scene is found, or none can be used, or `output` holds
    scenes of other options.
    """
    options, folder = options or ConvertOptions(), Path(output)
    jobs = count_jobs(options.jobs)
    with collect_warnings():
        scenes = find_scenes(Path(input))
    number, count = options.shard
    mine = [scene for scene in scenes if crc32(scene.key.encode()) % count == number - 1]
    if not scenes:
        raise UserError(f"{input} holds no scene", "a folder of scenes", "check the path")
    check_new(folder, [])
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".conversion-{number:02d}.lock"):
        record = _Record.open(folder, options)
        missing = [scene for scene in mine if scene.key not in record.scenes]
        found = len(mine) - len(missing)
        if found:
            are = "is" if found == 1 else "are"
            tell(f"{found} of {count_of(len(mine), 'scene')} {are} in {folder} already.")
        taken = set(check_new(folder, [])) - {*record.scenes}
        free = [scene for scene in missing if scene.key not in taken]
        record.dropped = {
            scene.key: f"{INDEX} has a scene of this key" for scene in missing if scene.key in taken
        }
        results = run_jobs(partial(_convert, options=options), free, jobs)
        _pack(record, track(results, "converting scenes", len(free)))
        _write_index(folder)
    return _summarize(record, mine, found, options.size)


def _summarize(
    record: "_Record", mine: list[FoundScene], found: int, size: tuple[int, int] | None
) -> Summary:
    if mine and len(record.dropped) == len(mine) and record.shard[1] == 1:  # others may have more
        (reason, count), *_ = Counter(record.dropped.values()).most_common(1)
        raise UserError(
            f"none of {count_of(len(mine), 'scene')} can be used: {count} of them because {reason}",
            "at least one whole scene",
            f"see {record.path}",
        )
    there = {s.key: record.scenes[s.key] for s in mine if s.key in record.scenes}
    now = there.values()
    sources = Counter(scene.source for scene in now if scene.source is not None)
    return Summary(
        converted=len(mine) - found - len(record.dropped),
        found=found,
        dropped=record.dropped,
        doubtful={key: scene.notes for key, scene in there.items() if scene.notes},
        photos=sum(scene.photos for scene in now),
        left_out=sum(len(scene.left_out) for scene in now),
        chunks=len(record.chunks),
        sizes=dict(Counter(scene.size for scene in record.scenes.values()).most_common()),
        record=record.path,
        fitted=() if size is None else tuple(describe_fit_of_scenes(sources, size)),
    )


@dataclass(frozen=True)
class _Result:
    """What a process made of a scene: the scene and what it lacks, or why there is none."""

    key: str
    scene: ChunkScene | None = None
    known: Converted | None = None
    reason: str = ""

    @property
    def bytes(self) -> int:
        files = [*self.scene.images, *(self.scene.depths or ())] if self.scene else []
        return sum(map(len, files))


def _convert(found: FoundScene, options: ConvertOptions) -> _Result:
    """One scene, or why it cannot be used."""
    if not found.posed and options.photos.poses is None:
        return _Result(found.key, reason="no cameras were found beside its photographs, if any")
    try:
        with collect_warnings() as notes, tempfile.TemporaryDirectory(prefix="pmsplat-") as place:
            scene = _open(found.path, options.photos, Path(place))
            chosen = range(0, len(scene), options.every)
            made = to_chunk_scene(scene, found.key, options.size, chosen)
            shapes = [scene.photos[i].size for i in chosen]
        sizes = [images.image_size(image.numpy().tobytes()) for image in made.images]
    except (UserError, OSError) as error:
        return _Result(found.key, reason=error.got if isinstance(error, UserError) else str(error))
    fault, detail = find_fault(made, sizes)
    if fault:
        return _Result(found.key, reason=f"it has {fault} ({detail})")
    left_out = {photo.name: photo.reason for photo in scene.left_out}
    said = tuple(note.replace(f"{found.path}/", "") for note in notes)  # the same of many scenes
    source = max(shapes, key=partial(share_cut, size=options.size)) if options.size else None
    known = Converted("", len(made), sizes[0], left_out, said, source)
    return _Result(found.key, made, known)


def _open(path: str, options: PhotoOptions, place: Path) -> Scene:
    """The scene at a path; one of RealEstate10K without frames gets them from its video."""
    try:
        return open_scene(path, options)
    except UserError:
        text = Path(path)
        if not (text.is_file() and re10k.is_cameras(text)):
            raise
        named = [Path(options.folder)] if options.folder else []
        video = re10k.find_video(text, [*named, text.parent, text.parent / "videos"])
        if video is None:
            raise
    re10k.cut_frames(text, video, place)
    return open_scene(path, replace(options, folder=str(place)))


def _pack(record: "_Record", results: Iterable[_Result]) -> None:
    """Writes results as chunks, in their order, and the record with each."""
    waiting: list[_Result] = []
    for result in results:
        if result.scene is None:
            record.dropped[result.key] = result.reason
            continue
        if waiting and sum(r.bytes for r in waiting) + result.bytes > CHUNK_BYTES:
            record.add(waiting)
            waiting = []
        waiting.append(result)
    record.add(waiting)


class _Record:
    """What was converted into a folder by one shard: a JSON file beside the chunks.

    Chunks are numbered from `first` on, past those that were there; shards take turns.
    """

    def __init__(self, path: Path, options: ConvertOptions) -> None:
        self.path, self.shard = path, options.shard
        self.settings: dict[str, Any] = {"size": options.size and list(options.size)}
        self.settings |= {"every": options.every}
        self.scenes: dict[str, Converted] = {}
        self.dropped: dict[str, str] = {}
        self.first = 0

    @classmethod
    def open(cls, folder: Path, options: ConvertOptions) -> "_Record":
        """The record of a folder, empty if it has none yet; UserError for one of other options."""
        number, count = options.shard
        name = "conversion" if count == 1 else f"conversion-{number:02d}-of-{count:02d}"
        record = cls(folder / f"{name}.json", options)
        clear_leftovers(record.path)
        if record.path.is_file():
            record._read()
        else:
            record._begin()
        clear_leftovers(record.next_chunk)
        return record

    @property
    def chunks(self) -> list[str]:
        """The chunk files, in order."""
        return list(dict.fromkeys(scene.chunk for scene in self.scenes.values()))

    @property
    def next_chunk(self) -> Path:
        """The chunk file that is written next."""
        number, count = self.shard
        position = self.first + len(self.chunks) * count + number - 1
        return self.path.parent / f"{position:06d}.torch"

    def add(self, results: list[_Result]) -> None:
        """Writes scenes as one chunk, if there are some, then the record."""
        if results:
            path = self.next_chunk
            write_chunk(path, [result.scene for result in results if result.scene is not None])
            for result in results:
                if result.known is not None:
                    self.scenes[result.key] = replace(result.known, chunk=path.name)
        content = {
            "shard": f"{self.shard[0]}/{self.shard[1]}",
            "settings": self.settings,
            "first": self.first,
            "counts": {"converted": len(self.scenes), "dropped": len(self.dropped)},
            "dropped": self.dropped,
            "scenes": {key: asdict(scene) for key, scene in self.scenes.items()},
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def _begin(self) -> None:
        folder, (_, count) = self.path.parent, self.shard
        others = [p for p in folder.glob(RECORDS) if f"-of-{count:02d}" not in p.name]
        chunks = [int(path.stem) for path in folder.glob("*.torch") if path.stem.isdecimal()]
        if count > 1 and (others or (chunks and not list(folder.glob("conversion-*.json")))):
            raise UserError(
                f"`shard={self.shard[0]}/{count}` into {folder}, which holds other chunks",
                "a folder of this conversion alone, so that chunks of shards have their own names",
                "choose an empty folder",
            )
        if count == 1:
            self.first = max(chunks, default=-1) + 1
        self.add([])  # at once: other shards know the chunks by it

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text())
            settings, self.first = content["settings"], content["first"]
            self.scenes = {key: _parse(entry) for key, entry in content["scenes"].items()}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is no record of a conversion ({error})",
                "the file as it was written",
                "choose an empty folder",
            ) from error
        if settings != self.settings:
            raise _other_options_error(self.path.parent, settings, self.settings)


def _other_options_error(folder: Path, there: dict[str, Any], now: dict[str, Any]) -> UserError:
    """The error of a folder whose scenes were converted with other options; names those."""
    differing = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    before, after = ([_format(name, some.get(name)) for name in differing] for some in (there, now))
    again = " and ".join(
        f"without `{name}`" if there.get(name) is None else f"with `{option}`"
        for name, option in zip(differing, before, strict=True)
    )
    return UserError(
        f"{folder} holds scenes converted with {', '.join(before)}",
        f"the same options, now {', '.join(after)}",
        f"convert into another folder, or {again}",
    )


def _format(name: str, value: Any) -> str:
    """An option as people write it: size=480x640."""
    if name == "size":
        return "photos of their own size" if value is None else f"size={format_size(value)}"
    return f"{name}={value}"


def _parse(entry: dict[str, Any]) -> Converted:
    source = entry.get("source")
    sizes = {"size": tuple(entry["size"]), "source": source and tuple(source)}
    content: dict[str, Any] = entry | sizes | {"notes": tuple(entry["notes"])}
    return Converted(**content)


def _write_index(folder: Path) -> None:
    """Adds the scenes of all records, those of other shards too, to the index of the split."""
    path = folder / INDEX
    with locked(folder / ".index.lock"):
        clear_leftovers(path)
        index = check_new(folder, [])
        for record in sorted(folder.glob(RECORDS)):
            scenes = json.loads(record.read_text())["scenes"]
            index |= {key: entry["chunk"] for key, entry in scenes.items()}
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(index, indent=1) + "\n")

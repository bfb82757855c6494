"""A teacher run once over every training scene; training then reads the pointmaps it gave."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from .. import registry
from ..contracts import CachingDataset, Teacher
from ..data import (
    CacheReader,
    DamagedPointmaps,
    MissingPointmaps,
    PointmapCache,
    SkippedEntry,
    StalePointmaps,
    Unusable,
    WindowPointmap,
    Windows,
    no_usable_scene,
    rank_of_ranks,
    write_pointmaps,
)
from ..errors import UserError, count_of
from ..foundation.teachers import query_teacher
from ..io.chunks import Chunk, Split
from ..io.files import one_of_writers
from ..progress import Track, silently
from ..train.pointmaps import build_teacher, require_cache
from ..train.settings import Experiment
from .options import pick_device

BYTES = 8  # of one pixel, before compression: x, y, z and confidence as float16
LEAST = 0.5  # of that; compression was measured to leave 0.6 of noisy points, less of smooth ones


@dataclass(frozen=True)
class Summary:
    """Chunks whose pointmaps were written now or found; scenes and bytes written now."""

    written: int
    found: int
    scenes: int
    bytes: int
    folder: Path


def cache(
    experiment: Experiment,
    device: str = "auto",
    overwrite: bool = False,
    tell: Callable[[str], None] = print,
    track: Track = silently,
    shard: tuple[int, int] = (1, 1),
) -> Summary:
    """Writes the pointmaps that training with `experiment` reads, one file per chunk.

    Files that are there and fit are kept, so an interrupted run continues. `shard` (i, n): only the
    i-th of n parts of the chunks, which torchrun's processes share out further. Scenes that
    training would skip are skipped, and `tell` receives their count. UserError for files of other
    settings (unless `overwrite`), for an experiment without a teacher or a cache, for a dataset
    that keeps no pointmaps or has no usable scene, and for too small a disk.
    """
    settings = experiment.teacher
    if settings is None or settings.cache is None:
        raise UserError(
            f"{experiment.name} has no teacher" if settings is None else "teacher.cache is not set",
            "a teacher, and a folder for its pointmaps",
            "add teacher=vggt"
            if settings is None
            else "set teacher.cache=pointmaps/NAME, a folder in dataset.root; without a cache the "
            "teacher runs in the training step and needs no `teacher cache`",
        )
    # Find the chunks of this process, and those of them that have no pointmaps yet.
    built = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    dataset, teacher = require_cache(experiment, built), build_teacher(settings)
    pointmaps: PointmapCache = dataset.pointmap_cache(teacher, settings.cache, settings.windows)
    split, reader = dataset.split("train"), pointmaps.reader()
    rank, ranks = rank_of_ranks()
    part, parts = shard
    first, step = (part - 1) * ranks + rank, parts * ranks
    mine = [split.folder / name for name in split.keys][first::step]
    missing = [chunk for chunk in mine if not _is_done(reader, chunk, overwrite, tell)]
    if missing:
        estimate = _estimate(split, pointmaps, missing, step)
        if rank == 0:
            tell(estimate)

    # Run the teacher over them, chunk by chunk.
    place = pick_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    scenes = written = 0
    skipped: Counter[str] = Counter()
    with one_of_writers(pointmaps.folder) if missing else nullcontext():
        for chunk in track(missing, f"running {teacher.name}", len(missing)):
            content = split.chunk(chunk.name)
            skipped.update(content.faults.values())
            entries = _query_chunk(content, dataset, teacher, pointmaps.key.windows, place, skipped)
            written += write_pointmaps(reader.path(chunk), pointmaps.key, chunk, entries)
            scenes += len(content.scenes) + len(content.faults)

    # Report the scenes that have no pointmaps, and why.
    if skipped.total() == scenes and len(missing) == len(split.keys):
        raise no_usable_scene(split, skipped)
    if skipped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
        of = f"{skipped.total()} of {count_of(scenes, 'scene')}"
        tell(f"Skipped {of}, as training does: {reasons}.")
    scenes -= skipped.total()
    return Summary(len(missing), len(mine) - len(missing), scenes, written, pointmaps.folder)


def _is_done(
    reader: CacheReader, chunk: Path, overwrite: bool, tell: Callable[[str], None]
) -> bool:
    """Whether the pointmaps of a chunk are there and fit; damaged ones count as missing."""
    try:
        reader.check(chunk)
    except MissingPointmaps:
        return False
    except DamagedPointmaps as error:
        tell(f"{error.got}: written again.")
        return False
    except StalePointmaps:
        if not overwrite:
            raise
        return False
    return True


def _query_chunk(
    chunk: Chunk,
    dataset: CachingDataset,
    teacher: Teacher,
    windows: Windows,
    device: torch.device,
    skipped: Counter[str],
) -> Iterator[WindowPointmap | SkippedEntry]:
    """The pointmap of every window of every scene; reasons for skipped scenes go to `skipped`."""
    for key, scene in chunk.scenes.items():
        try:
            for number, window in enumerate(windows.of(len(scene))):
                views = dataset.window_views(scene, window).to(device)
                pointmap = query_teacher(teacher, views).to("cpu")
                yield WindowPointmap(key, len(scene), number, pointmap)
        except Unusable as reason:
            skipped[str(reason)] += 1
            yield SkippedEntry(key, len(scene), str(reason))


def _estimate(split: Split, cache: PointmapCache, missing: list[Path], ranks: int) -> str:
    """The size on disk in words, estimated from the lengths of the scenes of one chunk.

    `missing` are the chunks of this process; the other `ranks` are taken to have as many. UserError
    where not even half of the size is free beside what is replaced, and for windows of one frame.
    """
    windows, (height, width) = cache.key.windows, cache.key.size
    # Count the frames that the teacher sees of a scene, and their bytes.
    chunk = _find_usable(split, [path.name for path in missing])
    lengths = [len(scene) for scene in chunk.scenes.values()]
    if max(map(len, windows.of(max(lengths)))) < 2:
        raise UserError(
            f"teacher.windows.every={windows.every} for scenes of {max(lengths)} frames",
            "windows of two frames or more",
            "choose a smaller teacher.windows.every",
        )
    frames = sum(len(window) for length in lengths for window in windows.of(length))
    seen = sum(len({*chain(*windows.of(length))}) for length in lengths)  # windows overlap
    each = frames / len(lengths) * height * width * BYTES

    # Compare the size of all scenes to do with the free space.
    scenes = sum(map(len, split.keys.values()))
    scenes = min(scenes, ranks * sum(len(split.keys[path.name]) for path in missing))
    files = [path for path in map(cache.reader().path, missing) if path.is_file()]
    least = LEAST * each * scenes - ranks * sum(path.stat().st_size for path in files)
    folder = next(p for p in (cache.folder, *cache.folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if least > free:
        raise UserError(
            f"only {_in_bytes(free)} free in {folder} for the pointmaps of "
            f"{count_of(scenes, 'scene')}",
            f"{_in_bytes(least)} or more (they take up to {_in_bytes(each * scenes)} before "
            "compression)",
            "make room, set teacher.cache to a folder of a larger disk, or choose a larger "
            "teacher.windows.every",
        )
    return (
        f"The teacher sees {seen / len(lengths):.0f} frames of a scene: context views are taken "
        f"from those. At most {_in_bytes(1000 * each)} on disk for 1,000 scenes before "
        f"compression, so {_in_bytes(each * scenes)} for the {count_of(scenes, 'scene')} to do; "
        f"{_in_bytes(free)} are free in {folder}."
    )


def _find_usable(split: Split, names: list[str]) -> Chunk:
    """The first chunk with a scene that is whole, of `names` or else of the others."""
    faults: Counter[str] = Counter()
    for name in dict.fromkeys([*names, *split.keys]):
        chunk = split.chunk(name)
        if chunk.scenes:
            return chunk
        faults.update(chunk.faults.values())
    raise no_usable_scene(split, faults)


def _in_bytes(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.1f} GB" if count < 1e11 else f"{count / 1e9:,.0f} GB"

"""A teacher asked once about every training scene; training then reads what it said."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from .. import registry
from ..data import _pointmaps
from ..data._batches import Recipe, Unusable, check, fitted_views
from ..data._dataset import none_usable, rank_of_ranks
from ..data._pointmaps import Answer, Damaged, Identity, Lessons, Missing, PassedOver, Shelf, Stale
from ..errors import UserError
from ..foundation.teachers import Teacher, ask
from ..io.chunks import Chunk, Split
from ..train import pointmaps
from ..train.settings import Experiment
from ._progress import Track, silently
from .options import pick_device

BYTES = 8  # of one pixel, before compression: x, y, z and confidence as float16
LEAST = 0.5  # of that; compression was measured to leave 0.6 of noisy points, less of smooth ones


@dataclass(frozen=True)
class Summary:
    """Chunks asked about now and found done, scenes and bytes written now."""

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
) -> Summary:
    """Writes the pointmaps that training with `experiment` reads, one file per chunk.

    What is there and fits is kept, so an interrupted run goes on where it was. With torchrun's RANK
    and WORLD_SIZE the chunks are shared out. Scenes that training would pass over are passed over,
    and counted in what is told. UserError for files of other settings (unless `overwrite`), for an
    experiment without a teacher or a cache, for a dataset that is not of chunks or has no usable
    scene, for too small a disk.
    """
    settings = experiment.teacher
    if settings is None or settings.cache is None:
        raise UserError(
            f"{experiment.name} has no teacher" if settings is None else "teacher.cache is not set",
            "a teacher, and a folder for what it says",
            "add teacher=vggt"
            if settings is None
            else "set teacher.cache=pointmaps/NAME, a folder in dataset.root; a teacher without a "
            "cache is asked in training and needs no `teacher cache`",
        )
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    teacher = pointmaps.build(settings)
    lessons = pointmaps.lessons(settings, teacher, dataset)
    assert lessons is not None
    split, shelf = dataset.split("train"), lessons.shelf()
    rank, ranks = rank_of_ranks()
    mine = [split.folder / name for name in split.keys][rank::ranks]
    missing = [chunk for chunk in mine if not _done(shelf, chunk, overwrite, tell)]
    if missing:
        estimate = _estimate(split, lessons, missing, ranks)
        if rank == 0:
            tell(estimate)
    place = pick_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    scenes = written = 0
    passed: Counter[str] = Counter()
    for chunk in track(missing, f"asking {teacher.name}", len(missing)):
        content = split.chunk(chunk.name)
        passed.update(content.faults.values())
        answers = _answers(content, dataset.recipe, teacher, lessons.identity, place, passed)
        written += _pointmaps.write(shelf.path(chunk), lessons.identity, chunk, answers)
        scenes += len(content.scenes) + len(content.faults)
    if passed.total() == scenes and len(missing) == len(split.keys):
        raise none_usable(split, passed)
    if passed:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in passed.most_common())
        tell(f"Passed over {passed.total()} of {scenes} scenes, as training does: {reasons}.")
    scenes -= passed.total()
    return Summary(len(missing), len(mine) - len(missing), scenes, written, lessons.folder)


def _done(shelf: Shelf, chunk: Path, overwrite: bool, tell: Callable[[str], None]) -> bool:
    """Whether the pointmaps of a chunk are there and fit; damaged ones are as good as none."""
    try:
        shelf.check(chunk)
    except Missing:
        return False
    except Damaged as error:
        tell(f"{error.got}: made anew.")
        return False
    except Stale:
        if not overwrite:
            raise
        return False
    return True


def _answers(
    chunk: Chunk,
    recipe: Recipe,
    teacher: Teacher,
    identity: Identity,
    device: torch.device,
    passed: Counter[str],
) -> Iterator[Answer | PassedOver]:
    """Of every window of every scene; why a scene is passed over is counted in `passed`."""
    for key, scene in chunk.scenes.items():
        try:
            check(scene, recipe)
            for number, window in enumerate(identity.windows.of(len(scene))):
                said = ask(teacher, fitted_views(scene, window, recipe).to(device)).to("cpu")
                yield Answer(key, len(scene), number, said)
        except Unusable as reason:
            passed[str(reason)] += 1
            yield PassedOver(key, len(scene), str(reason))


def _estimate(split: Split, lessons: Lessons, missing: list[Path], ranks: int) -> str:
    """What it takes on disk, from the lengths of the scenes of one chunk.

    `missing` are the chunks of this process, those of the other `ranks` alike. UserError where not
    even half of it is free beside what is replaced, and for windows of one frame.
    """
    windows, (height, width) = lessons.identity.windows, lessons.identity.size
    chunk = _usable(split, [path.name for path in missing])
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
    scenes = sum(map(len, split.keys.values()))
    scenes = min(scenes, ranks * sum(len(split.keys[path.name]) for path in missing))
    files = [path for path in map(lessons.shelf().path, missing) if path.is_file()]
    least = LEAST * each * scenes - ranks * sum(path.stat().st_size for path in files)
    folder = next(p for p in (lessons.folder, *lessons.folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if least > free:
        raise UserError(
            f"{_told(free)} are free at {folder}, for the pointmaps of {scenes:,} scenes",
            f"{_told(least)} or more (they take up to {_told(each * scenes)} before compression)",
            "make room, set teacher.cache to a folder of a larger disk, or choose a larger "
            "teacher.windows.every",
        )
    return (
        f"The teacher sees {seen / len(lengths):.0f} frames of a scene: context views are taken "
        f"from those. At most {_told(1000 * each)} on disk for 1,000 scenes before compression; "
        f"here are {scenes:,} to make, so {_told(each * scenes)}; {_told(free)} are free at "
        f"{folder}."
    )


def _usable(split: Split, names: list[str]) -> Chunk:
    """The first chunk with a scene that is whole, of `names` or else of the others."""
    faults: Counter[str] = Counter()
    for name in dict.fromkeys([*names, *split.keys]):
        chunk = split.chunk(name)
        if chunk.scenes:
            return chunk
        faults.update(chunk.faults.values())
    raise none_usable(split, faults)


def _told(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.1f} GB" if count < 1e11 else f"{count / 1e9:,.0f} GB"

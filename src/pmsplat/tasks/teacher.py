"""A teacher asked once about every training scene; training then reads what it said."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import registry
from ..data import _pointmaps
from ..data._batches import fitted_views
from ..data._chunks import Chunk
from ..data._dataset import ChunkDataset, rank_of_ranks
from ..data._pointmaps import Answer, Damaged, Identity, Lessons, Missing, Shelf, Stale
from ..errors import UserError
from ..foundation.teachers import Teacher
from ..train import teaching
from ..train.settings import Experiment
from ._choices import pick_device
from ._progress import Track, silently

BYTES = 8  # of one pixel, before compression: x, y, z and confidence as float16


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
    and WORLD_SIZE the chunks are shared out. UserError for files of other settings (unless
    `overwrite`), for an experiment without a teacher or a cache, for too small a disk.
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
    assert isinstance(dataset, ChunkDataset)
    teacher = teaching.build(settings)
    lessons = teaching.lessons(settings, teacher, dataset)
    assert lessons is not None
    split, shelf = dataset.split("train"), lessons.shelf()
    rank, ranks = rank_of_ranks()
    mine = [split.folder / name for name in split.keys][rank::ranks]
    missing = [chunk for chunk in mine if not _done(shelf, chunk, overwrite, tell)]
    if missing and rank == 0:
        first = split.chunk(missing[0].name)
        tell(_estimate(first, lessons, sum(map(len, split.keys.values()))))
    place = pick_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    scenes = written = 0
    for chunk in track(missing, f"asking {teacher.name}", len(missing)):
        content = split.chunk(chunk.name)
        answers = _answers(content, dataset, teacher, lessons.identity, place)
        written += _pointmaps.write(shelf.path(chunk), lessons.identity, chunk, answers)
        scenes += len(content.scenes)
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


@torch.no_grad()
def _answers(
    chunk: Chunk, dataset: ChunkDataset, teacher: Teacher, identity: Identity, device: torch.device
) -> Iterator[Answer]:
    for key, scene in chunk.scenes.items():
        for number, window in enumerate(identity.windows.of(len(scene))):
            views = fitted_views(scene, window, dataset.recipe)
            said = teacher(views.to(device)).to("cpu")
            yield Answer(key, len(scene), number, said)


def _estimate(chunk: Chunk, lessons: Lessons, scenes: int) -> str:
    """What it takes on disk, from the lengths of the scenes of one chunk."""
    windows, (height, width) = lessons.identity.windows, lessons.identity.size
    lengths = [len(scene) for scene in chunk.scenes.values()]
    if max(map(len, windows.of(max(lengths)))) < 2:
        raise UserError(
            f"teacher.windows.every={windows.every} for scenes of {max(lengths)} frames",
            "windows of two frames or more",
            "choose a smaller teacher.windows.every",
        )
    frames = sum(len(window) for length in lengths for window in windows.of(length))
    thousand = 1000 * frames / len(lengths) * height * width * BYTES
    folder = next(p for p in (lessons.folder, *lessons.folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    return (
        f"The teacher sees {frames / len(lengths):.0f} frames of a scene: context views are taken "
        f"from those. At most {_told(thousand)} on disk for 1,000 scenes before compression; here "
        f"are {scenes:,}, so {_told(thousand * scenes / 1000)}; {_told(free)} are free at "
        f"{folder}."
    )


def _told(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.1f} GB" if count < 1e11 else f"{count / 1e9:,.0f} GB"

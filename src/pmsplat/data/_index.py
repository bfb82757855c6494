"""Evaluation indices: which frames of which scenes are measured.

The JSON of pixelSplat and all that followed: {scene: {"context": [...], "target": [...]} or null}.
"""

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, count_of
from ..io.chunks import Split, read_file
from ..io.files import write_text
from ._sampling import Frames, farthest_points

Index = dict[str, Frames]
"""Scene key -> its frames, in the order of the file."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What an index file lists: scenes with frames, and the keys of those that are null.

    `overlap` has the share that the context views have in common, of scenes whose entry says it;
    `digest` is the SHA-256 of the file.
    """

    index: Index
    digest: str
    null: tuple[str, ...] = ()
    overlap: dict[str, float] = field(default_factory=dict)

    def split(self, known: Collection[str]) -> tuple[Index, tuple[str, ...]]:
        """The scenes that the data has, and the keys of those that it lacks."""
        here = {key: frames for key, frames in self.index.items() if key in known}
        return here, tuple(key for key in self.index if key not in known)


@dataclass(frozen=True)
class Listed:
    """What an evaluation does not come to, of the entries of its index; and what it measures.

    Entries that are `null`, scenes that are `missing` in the data, and those `beyond` a limit.
    `index` are the entries that are not null; `digest` is the SHA-256 of the file, if it is known.
    """

    index: Index
    null: int = 0
    missing: tuple[str, ...] = ()
    beyond: int = 0
    digest: str | None = None

    @property
    def entries(self) -> int:
        """All that the index lists."""
        return len(self.index) + self.null

    @property
    def frames(self) -> str:
        """The hash of what is measured where nothing is missing."""
        return hash_frames(self.index)


def read_listing(path: str | Path) -> Listing:
    """An index file, or one at an address; null scenes were published as "not to be measured".

    Raises UserError where it is missing, malformed, names a scene twice, or holds no scene.
    """
    data = read_file(path)
    if data is None:
        raise UserError(
            f"there is no evaluation index {path}",
            'a JSON file {scene: {"context": [...], "target": [...]}}',
            f"download the published one, or write one with `pmsplat data index ROOT {path}`",
        )
    try:
        content = json.loads(data, object_pairs_hook=_without_twins)
    except _TwinError as twin:
        raise _malformed_error(path, f"it names {twin} twice") from twin
    except (ValueError, RecursionError) as error:
        raise _malformed_error(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _malformed_error(path, "it is not a JSON object")
    index = {key: _frames(entry, key, path) for key, entry in content.items() if entry is not None}
    if not index:
        raise _malformed_error(path, "it holds no scene that is not null")
    null = tuple(key for key, entry in content.items() if entry is None)
    shares = {key: content[key].get("overlap") for key in index}
    overlap = {key: float(x) for key, x in shares.items() if type(x) in (int, float)}
    return Listing(index, hashlib.sha256(data).hexdigest(), null, overlap)


def read_index(path: str | Path) -> Index:
    """The scenes of an index file that are not null; UserError as `read_listing`."""
    listing = read_listing(path)
    if listing.null:
        total = len(listing.index) + len(listing.null)
        log.info("%s: %d of %d scenes are null", path, len(listing.null), total)
    return listing.index


def hash_frames(index: Index) -> str:
    """SHA-256 of what is measured: the same for files that differ in spaces or order alone."""
    rows = [[key, frames.context, frames.target] for key, frames in sorted(index.items())]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def write_index(path: str | Path, index: Index, null: Collection[str] = ()) -> None:
    """An index as a file, one scene a line; those that are not to be measured last, as null."""
    lines = [
        f"{json.dumps(key)}: " + json.dumps({"context": frames.context, "target": frames.target})
        for key, frames in index.items()
    ]
    lines += [f"{json.dumps(key)}: null" for key in null]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def check_scenes(index: Index, split: Split, path: str | Path) -> None:
    """Raises UserError where the split has no scene that the index names."""
    if index and not any(key in split.chunk_of for key in index):
        raise UserError(
            f"{path} names {count_of(len(index), 'scene')}, none of which {split.place} has, "
            f"{next(iter(index))!r} first",
            "an index of scenes that are there",
            "choose the data that the index belongs to, or write another with `pmsplat data index "
            f"{split.place} OUT.json`",
        )


def make_index(
    lengths: dict[str, int], gap: int, views: int, targets: int, generator: torch.Generator
) -> Index:
    """Frames for every scene (of a number of frames) that is long enough.

    `views` context frames evenly over `gap` frames at a random place, `targets` frames strictly
    between the first and the last, never a context frame, evenly spread.
    """
    index = {}
    for key, count in lengths.items():
        if count <= gap:
            continue
        left = int(torch.randint(0, count - gap, (), generator=generator))
        context = _context(left, gap, views)
        index[key] = Frames(context, _between(context, targets))
    return _some(index, gap, lengths)


def make_outside_index(
    lengths: dict[str, int],
    gap: int,
    views: int,
    targets: int,
    beyond: int,
    generator: torch.Generator,
    start: int | None = None,
    between: int = 0,
) -> Index:
    """Frames for every long enough scene whose targets lie outside the baseline.

    `views` context frames evenly over `gap` frames from frame `start` on (None: a random place);
    `targets` of the `beyond` frames before the first and the `beyond` after the last, drawn without
    replacement; `between` more of those between them, evenly spread; all targets in order.

    The bound-aware evaluation of PM-Loss (arXiv 2506.05327) is, but for the few scenes whose
    context views its authors moved together: gap 75, beyond 30, start 30 for RealEstate10K; gap 20,
    beyond 10, start 50 for DL3DV (there all 20 of them); 20 targets each, none between.
    """
    if not 0 < targets <= 2 * beyond or not 2 <= views <= gap + 1:
        raise UserError(
            f"{targets} targets among {beyond} frames before and {beyond} after {views} context "
            f"views {gap} frames apart",
            "room for all of them",
            "use fewer views, or more frames",
        )
    if start is not None and start < beyond:
        raise UserError(
            f"context views from frame {start} on",
            f"{beyond} frames before them for targets",
            f"start at frame {beyond} or later",
        )
    index = {}
    for key, count in lengths.items():
        latest = count - 1 - beyond - gap
        if latest < (beyond if start is None else start):
            continue
        left = start
        if left is None:
            left = int(torch.randint(beyond, latest + 1, (), generator=generator))
        right = left + gap
        outside = [*range(left - beyond, left), *range(right + 1, right + beyond + 1)]
        drawn = torch.randperm(len(outside), generator=generator)[:targets].tolist()
        context = _context(left, gap, views)
        chosen = sorted([*(outside[i] for i in drawn), *_between(context, between)])
        index[key] = Frames(context, tuple(chosen))
    return _some(index, gap + (start or beyond) + beyond, lengths)


def make_spread_index(
    centers: dict[str, Float[Tensor, "frame 3"]], first: int, views: int, targets: int
) -> Index:
    """Frames among the `first` ones of every scene, by its camera centers.

    The context is `views` frames far apart in space (`farthest_points`), in order. Of the other
    frames, n of them, the targets are every (n // `targets`)-th from the earliest one on. Shorter
    scenes give what they have; those of fewer than `views` + `targets` frames are left out.

    This is the rule of DepthSplat's and ReSplat's indices for DL3DV (Xu et al., arXiv 2410.13862
    and 2510.08575) that are called start_0_distance_FIRST_ctx_VIEWSv_tgt_TARGETSv.
    """
    _check_spread(views, targets, first)
    index = {}
    for key, places in centers.items():
        places = places[:first]
        if len(places) < views + targets:
            continue
        context = tuple(sorted(farthest_points(places, views)))
        rest = [frame for frame in range(len(places)) if frame not in context]
        index[key] = Frames(context, tuple(rest[:: len(rest) // targets][:targets]))
    return _some(index, views + targets - 1, {key: len(c) for key, c in centers.items()})


def make_regular_index(
    centers: dict[str, Float[Tensor, "frame 3"]],
    first: int | None,
    views: int,
    every: int,
    start: int | None = None,
) -> Index:
    """The same, but every `every`-th frame is a target, the context is of the others.

    From frame `start` on; None: the last of each `every`. `first` None: of the whole scene. The
    rule of ReSplat's indices for DL3DV called start_0_distance_FIRST_ctx_VIEWSv_tgt_every8th, and,
    of whole scenes from frame 0 on, for the targets of Long-LRM (arXiv 2410.12781).
    """
    longest = max(map(len, centers.values()), default=0)
    within = longest if first is None else first
    _check_spread(views, within // every if every > 1 else 0, within)
    index = {}
    for key, places in centers.items():
        frames = range(len(places) if first is None else min(first, len(places)))
        targets = frames[every - 1 if start is None else start :: every]
        others = [frame for frame in frames if frame not in targets]
        if len(others) < views or not targets:
            continue
        chosen = farthest_points(places[others], views)
        index[key] = Frames(tuple(sorted(others[i] for i in chosen)), tuple(targets))
    return _some(index, views + every - 1, {key: len(c) for key, c in centers.items()})


def make_path_index(
    centers: dict[str, Float[Tensor, "frame 3"]], first: int, views: int, inside: bool = False
) -> Index:
    """The same, but all of the first frames are targets, those of the context too.

    `inside`: only from the first to the last context view. The rule of DepthSplat's indices for
    DL3DV called start_0_distance_FIRST_ctx_VIEWSv_video; that of 12 views has targets inside.
    """
    _check_spread(views, 1, first)
    index = {}
    for key, places in centers.items():
        places = places[:first]
        if len(places) > views:
            context = tuple(sorted(farthest_points(places, views)))
            ends = (context[0], context[-1]) if inside else (0, len(places) - 1)
            index[key] = Frames(context, tuple(range(ends[0], ends[1] + 1)))
    return _some(index, views, {key: len(c) for key, c in centers.items()})


def make_even_index(
    lengths: dict[str, int], views: int, targets: int | None = None, first: int | None = None
) -> Index:
    """Frames in order: `views` evenly from the first to the last, of the `first` or of all.

    Scenes of fewer than `first` frames are left out. `targets` as in `make_spread_index`; None: all
    frames from the first to the last context view. The rule of ReSplat's index for RealEstate10K
    called start_0_distance_FIRST_ctx_VIEWSv_tgt_TARGETSv, and of re10k_ctx_6v_video.
    """
    _check_spread(views, targets or 1, max(lengths.values(), default=0) if first is None else first)
    index = {}
    for key, count in lengths.items():
        count = count if first is None else min(count, first)
        if count < (first or views + (targets or 1)):
            continue
        context = tuple((count - 1) * i // (views - 1) for i in range(views))
        rest = [frame for frame in range(count) if frame not in context]
        chosen = range(count) if targets is None else rest[:: len(rest) // targets][:targets]
        index[key] = Frames(context, tuple(chosen))
    return _some(index, (first or views + 1) - 1, lengths)


def vary_views(
    index: Index, centers: dict[str, Float[Tensor, "frame 3"]], counts: Collection[int]
) -> dict[int, Index]:
    """The same scenes and targets with other numbers of context views, for a curve over views.

    Context views are the farthest points (`farthest_points`) of the frames from the first to the
    last that the entry names, targets left out; where its own context views are targets too, of all
    these frames. So more views are the fewer ones and some more. Scenes with too few frames for the
    largest number are left out of all. UserError where none has enough.
    """
    most, varied = max(counts), {count: Index() for count in counts}
    for key, frames in index.items():
        named = {*frames.context, *frames.target}
        seen = set() if set(frames.context) <= set(frames.target) else set(frames.target)
        free = [i for i in range(min(named), max(named) + 1) if i not in seen]
        if len(free) < most:
            continue
        chosen = [free[i] for i in farthest_points(centers[key][free], most)]
        for count in counts:
            varied[count][key] = Frames(tuple(sorted(chosen[:count])), frames.target)
    if not varied[most]:
        raise UserError(
            f"{most} context views, more than any of {count_of(len(index), 'scene')} has frames "
            "between",
            "fewer views, or an index of longer scenes",
            "lower the largest number",
        )
    return varied


def _check_spread(views: int, targets: int, first: int) -> None:
    if views < 2 or targets < 1 or views + targets > first:
        raise UserError(
            f"{views} context and {targets} target views of the first {first} frames",
            "2 or more context views, 1 or more targets, and room for all of them",
            "use more frames or fewer views",
        )


def _context(left: int, gap: int, views: int) -> tuple[int, ...]:
    """So many frames, evenly from `left` to `left` + `gap`; UserError for fewer than two."""
    if views < 2:
        raise UserError(
            f"{views} context views", "two or more", "raise the number of context views"
        )
    return tuple(left + round(gap * i / (views - 1)) for i in range(views))


def _between(context: tuple[int, ...], targets: int) -> tuple[int, ...]:
    """So many frames strictly between the first and the last context frame, evenly spread."""
    left, right = context[0], context[-1]
    frames = [i for i in range(left + 1, right) if i not in context]
    if len(frames) < targets or len(set(context)) < len(context):
        raise UserError(
            f"a gap of {right - left} frames for {len(context)} context and {targets} target views",
            "room for all of them",
            f"use a gap of at least {len(context) + targets - 1}",
        )
    return tuple(frames[int((i + 0.5) * len(frames) / targets)] for i in range(targets))


def _some(index: Index, frames: int, lengths: dict[str, int]) -> Index:
    """The index; UserError where no scene was long enough."""
    if not index:
        raise UserError(
            f"no scene has more than {frames} frames, the longest "
            f"{max(lengths.values(), default=0)}",
            "longer scenes",
            "use a smaller gap, or another protocol",
        )
    return index


class _TwinError(ValueError):
    """A JSON object with a key twice; the text is the key as people write it."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwinError(repr(next(name for name in names if names.count(name) > 1)))
    return content


def _frames(entry: Any, key: str, path: str | Path) -> Frames:
    chosen = []
    for name in ("context", "target"):
        numbers = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(numbers, list) or not numbers or not all(type(i) is int for i in numbers):
            raise _malformed_error(path, f"scene {key!r} has no list {name!r} of frame numbers")
        chosen.append(tuple(numbers))
    return Frames(*chosen)


def _malformed_error(path: str | Path, what: str) -> UserError:
    return UserError(
        f"{path} is no evaluation index: {what}",
        '{scene: {"context": [...], "target": [...]} or null}',
        "check the file, or write one with `pmsplat data index ROOT OUT.json`",
    )

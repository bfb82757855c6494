"""Evaluation indices: which frames of which scenes are measured.

The JSON of pixelSplat and all that followed: {scene: {"context": [...], "target": [...]} or null}.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..io.chunks import Split
from ..io.files import write_text
from ._sampling import Frames, farthest_points

Index = dict[str, Frames]
"""Scene key -> its frames, in the order of the file."""

log = logging.getLogger(__name__)


def read_index(path: str | Path) -> Index:
    """An index file; scenes that are null (published as "not to be measured") are left out.

    Raises UserError where it is missing, malformed, or holds no scene.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no evaluation index {path}",
            'a JSON file {scene: {"context": [...], "target": [...]}}',
            "download the published one, or write one with `pmsplat data index ROOT OUT.json`",
        )
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise _malformed_error(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _malformed_error(path, "it is not a JSON object")
    index = {key: _frames(entry, key, path) for key, entry in content.items() if entry is not None}
    if not index:
        raise _malformed_error(path, "it holds no scene that is not null")
    if len(index) < len(content):
        log.info("%s: %d of %d scenes are null", path, len(content) - len(index), len(content))
    return index


def write_index(path: str | Path, index: Index) -> None:
    """An index as a file, one scene a line."""
    lines = [
        f"{json.dumps(key)}: " + json.dumps({"context": frames.context, "target": frames.target})
        for key, frames in index.items()
    ]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def check_scenes(index: Index, split: Split, path: str | Path) -> None:
    """Raises UserError where the index names scenes that the split does not have."""
    known = split.chunk_of
    unknown = [key for key in index if key not in known]
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} of {len(index)} scenes that {split.place} does not "
            f"have, {unknown[0]!r} first",
            "an index of scenes that are there",
            "complete the data, or keep what is there with "
            f"`pmsplat data index {split.place} OUT.json --within {path}`",
        )


def check_frames(frames: Frames, count: int, key: str) -> None:
    """Raises UserError where a scene lacks a frame that the index names."""
    beyond = [i for i in (*frames.context, *frames.target) if not 0 <= i < count]
    if beyond:
        raise UserError(
            f"the evaluation index names frame {beyond[0]} of scene {key!r}",
            f"a frame from 0 to {count - 1}",
            "use the index that belongs to this data, or write one with `pmsplat data index`",
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
    centers: dict[str, Float[Tensor, "frame 3"]], first: int, views: int, every: int
) -> Index:
    """The same, but the last of every `every` frames are the targets, the context is of the others.

    The rule of ReSplat's indices for DL3DV called start_0_distance_FIRST_ctx_VIEWSv_tgt_every8th.
    """
    _check_spread(views, first // every if every > 1 else 0, first)
    index = {}
    for key, places in centers.items():
        frames = range(min(first, len(places)))
        targets = frames[every - 1 :: every]
        others = [frame for frame in frames if frame not in targets]
        if len(others) < views or not targets:
            continue
        chosen = farthest_points(places[others], views)
        index[key] = Frames(tuple(sorted(others[i] for i in chosen)), tuple(targets))
    return _some(index, views + every - 1, {key: len(c) for key, c in centers.items()})


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
            "use a smaller gap",
        )
    return index


def _frames(entry: Any, key: str, path: Path) -> Frames:
    chosen = []
    for name in ("context", "target"):
        numbers = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(numbers, list) or not numbers or not all(type(i) is int for i in numbers):
            raise _malformed_error(path, f"scene {key!r} has no list {name!r} of frame numbers")
        chosen.append(tuple(numbers))
    return Frames(*chosen)


def _malformed_error(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is no evaluation index: {what}",
        '{scene: {"context": [...], "target": [...]} or null}',
        "check the file, or write one with `pmsplat data index ROOT OUT.json`",
    )

"""Evaluation indices: published files, files of ours, and files that are neither."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch

from pmsplat.data import (
    Frames,
    make_index,
    make_outside_index,
    make_regular_index,
    make_spread_index,
    read_index,
    write_index,
)
from pmsplat.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "indices.json").read_text())
PUBLISHED = {
    "evaluation_index_re10k.json": (6474, 2, 3),
    "evaluation_index_acid.json": (1595, 2, 3),
    "dl3dv_bound_aware.json": (140, 2, 20),
    "re10k_bound_aware.json": (2934, 2, 20),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reads_the_published_ones(shared: Path, name: str) -> None:
    scenes, context, target = PUBLISHED[name]
    index = read_index(shared / "indices" / name)
    assert len(index) == scenes
    assert {len(frames.context) for frames in index.values()} == {context}
    assert {len(frames.target) for frames in index.values()} == {target}


@pytest.mark.parametrize(("name", "null"), [("re10k", "720 of 7194"), ("acid", "253 of 1848")])
def test_published_null_scenes_are_counted(
    shared: Path, caplog: pytest.LogCaptureFixture, name: str, null: str
) -> None:
    with caplog.at_level(logging.INFO):
        read_index(shared / "indices" / f"evaluation_index_{name}.json")
    assert f"evaluation_index_{name}.json: {null} scenes are null" in caplog.text


def test_null_scenes_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    path.write_text(json.dumps({"a": None, "b": {"context": [0, 9], "target": [4]}}))
    assert read_index(path) == {"b": Frames((0, 9), (4,))}


def test_round_trip(tmp_path: Path) -> None:
    index = {'a "quoted" key': Frames((0, 9), (4, 5)), "b": Frames((3, 4, 8), (5,))}
    write_index(tmp_path / "i.json", index)
    assert read_index(tmp_path / "i.json") == index
    assert json.loads((tmp_path / "i.json").read_text())["b"] == {
        "context": [3, 4, 8],
        "target": [5],
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"a": [1]}', "no list 'context'"),
        ('{"a": {"context": [1]}}', "no list 'target'"),
        ('{"a": {"context": [], "target": [1]}}', "no list 'context'"),
        ('{"a": {"context": [1, 2], "target": [1.5]}}', "no list 'target'"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "i.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_index(tmp_path / "i.json")


@pytest.mark.parametrize(("views", "gap", "targets"), [(2, 6, 3), (4, 12, 5), (2, 2, 1)])
def test_made_indices_interpolate(
    generator: torch.Generator, views: int, gap: int, targets: int
) -> None:
    lengths = {f"s{i}": i for i in range(40)}
    index = make_index(lengths, gap, views, targets, generator)
    assert set(index) == {key for key, count in lengths.items() if count > gap}
    for key, frames in index.items():
        assert frames.context[-1] - frames.context[0] == gap and len(set(frames.context)) == views
        assert frames.context[0] >= 0 and frames.context[-1] < lengths[key]
        assert len(set(frames.target)) == targets and not set(frames.target) & set(frames.context)
        assert frames.context[0] < min(frames.target) and max(frames.target) < frames.context[-1]


def test_impossible_wishes_are_told(generator: torch.Generator) -> None:
    with pytest.raises(UserError, match="no scene has more than 8 frames, the longest 5"):
        make_index({"a": 5}, 8, 2, 3, generator)
    with pytest.raises(UserError, match="gap of at least 4"):
        make_index({"a": 50}, 3, 2, 3, generator)


@pytest.mark.parametrize(("name", "beyond"), [("dl3dv", 10), ("re10k", 30)])
def test_published_bound_aware_targets_are_all_outside(
    shared: Path, name: str, beyond: int
) -> None:
    for frames in read_index(shared / "indices" / f"{name}_bound_aware.json").values():
        left, right = frames.context
        assert {left - i for i in frames.target if i < left} <= set(range(1, beyond + 1))
        assert {i - right for i in frames.target if i >= left} <= set(range(1, beyond + 1))


def test_published_bound_aware_dl3dv_is_made_again(
    shared: Path, generator: torch.Generator
) -> None:
    """Where all frames outside are targets nothing is left to chance, but for the moved views."""
    published = read_index(shared / "indices" / "dl3dv_bound_aware.json")
    lengths = dict.fromkeys(published, 300)
    made = make_outside_index(lengths, 20, 2, 20, 10, generator, start=50)
    assert sum(made[key] == published[key] for key in published) == 130
    for key in published:  # and those too, from where the published views are
        left, right = published[key].context
        again = make_outside_index({key: 300}, right - left, 2, 20, 10, generator, start=left)
        assert again[key] == published[key]


def test_published_bound_aware_re10k_is_of_the_same_kind(
    shared: Path, generator: torch.Generator
) -> None:
    """20 of 60 frames by chance: the same context, the same reach, and each frame as often."""
    published = read_index(shared / "indices" / "re10k_bound_aware.json")
    lengths = dict.fromkeys(published, 300)
    made = make_outside_index(lengths, 75, 2, 20, 30, generator, start=30)
    usual = {key for key in published if published[key].context == (30, 105)}
    assert len(usual) == 2897 and {made[key].context for key in usual} == {(30, 105)}
    for index in (made, published):
        counts = torch.zeros(136)
        for key in usual:
            assert len(set(index[key].target)) == 20
            assert index[key].target == tuple(sorted(index[key].target))
            counts[list(index[key].target)] += 1
        assert counts[30:106].sum() == 0
        outside = torch.cat([counts[:30], counts[106:]]) / len(usual)
        spread = (1 / 3 * 2 / 3 / len(usual)) ** 0.5  # of the share of scenes that have a frame
        assert (outside - 1 / 3).abs().max() < 5 * spread


def test_outside_indices_fill_scenes_that_are_long_enough(generator: torch.Generator) -> None:
    lengths = {f"s{i}": i for i in range(40)}
    index = make_outside_index(lengths, 8, 3, 5, 4, generator)
    assert set(index) == {key for key, count in lengths.items() if count > 16}
    for key, frames in index.items():
        left, middle, right = frames.context
        assert (middle - left, right - left) == (4, 8)
        assert frames.target[0] >= 0 and frames.target[-1] < lengths[key]
        assert all(1 <= max(left - i, i - right) <= 4 for i in frames.target)
    assert len({frames.context[0] for frames in index.values()}) > 3  # at random places
    assert set(make_outside_index(lengths, 8, 2, 8, 4, generator, start=20)) == {
        key for key, count in lengths.items() if count > 32
    }


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((8, 2, 9, 4), "9 targets among 4 frames before and 4 after 2 context views"),
        ((8, 1, 3, 4), "room for all"),
        ((8, 2, 3, -1), "room for all"),
        ((8, 2, 3, 4, 3), "from frame 3 on; wanted 4 frames before them for targets"),
        ((40, 2, 3, 6), "no scene has more than 52 frames, the longest 50"),
    ],
)
def test_impossible_wishes_outside_are_told(
    generator: torch.Generator, asked: tuple[int, ...], told: str
) -> None:
    gap, views, targets, beyond, *start = asked
    with pytest.raises(UserError, match=told):
        make_outside_index({"a": 50}, gap, views, targets, beyond, generator, *start)


SHORT = {"5aca87f9": 143, "3825ed66": 25}  # frames of scenes that end in a context view


def walk_past(context: list[int], frames: int) -> torch.Tensor:
    """Camera centers of a walk of which these frames are the farthest points.

    They lie on a sphere, the others a little inside beside the nearest in time, so closer to all.
    """
    turn = torch.arange(len(context)) * 2.399963  # Vogel's spiral
    z = 1 - (2 * torch.arange(len(context)) + 1) / len(context)
    flat = (1 - z.square()).sqrt()
    sphere = torch.stack([flat * turn.cos(), flat * turn.sin(), z], dim=1)
    beside = [min(range(len(context)), key=lambda j: abs(context[j] - i)) for i in range(frames)]
    inside = torch.tensor([1.0 if i in context else 0.99 for i in range(frames)])
    return 7 * sphere[beside] * inside[:, None] + torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("name", GOLDEN)
def test_indices_of_depthsplat_resplat_and_zpressor_are_made_again(name: str) -> None:
    """Of cameras whose farthest points are the published context views; more frames follow, but in
    scenes that end before."""
    (views,) = (int(n) for n in re.findall(r"ctx_(\d+)v", name))
    (first,) = (int(n) for n in re.findall(r"distance_(\d+)|_n(\d+)$", name)[0] if n)
    targets = re.findall(r"tgt_(\d+)v", name)
    published = {
        key: Frames(tuple(entry["context"]), tuple(entry["target"]))
        for key, entry in GOLDEN[name].items()
    }
    centers = {}
    for key, frames in published.items():
        length = min(first, SHORT.get(key, first))
        further = torch.full((9 if length == first else 0, 3), 1e3)
        centers[key] = torch.cat([walk_past(list(frames.context), length), further])
    if targets:
        assert make_spread_index(centers, first, views, int(targets[0])) == published
    else:
        assert make_regular_index(centers, first, views, 8) == published


def test_published_contexts_are_nested_as_farthest_points_are(shared: Path) -> None:
    """More views of the same frames are the fewer ones and some more."""
    fewer, some, more = (
        read_index(shared / "indices" / f"dl3dv_start_0_distance_50_ctx_{views}v_video_0_50.json")
        for views in (2, 4, 6)
    )
    for key in more:
        assert set(fewer[key].context) < set(some[key].context) < set(more[key].context)


def test_short_scenes_give_what_they_have_or_are_left_out() -> None:
    centers = {f"s{count}": torch.arange(3.0 * count).reshape(count, 3) for count in (3, 4, 9, 30)}
    index = make_spread_index(centers, 10, 2, 2)
    assert index == {
        "s4": Frames((0, 3), (1, 2)),
        "s9": Frames((0, 8), (1, 4)),
        "s30": Frames((0, 9), (1, 5)),
    }
    regular = make_regular_index(centers, 10, 2, 4)
    assert regular == {
        "s4": Frames((0, 2), (3,)),
        "s9": Frames((0, 8), (3, 7)),
        "s30": Frames((0, 9), (3, 7)),
    }


@pytest.mark.parametrize(
    ("views", "targets", "first"), [(1, 2, 9), (2, 0, 9), (5, 5, 9), (2, 2, -1)]
)
def test_impossible_spreads_are_told(views: int, targets: int, first: int) -> None:
    with pytest.raises(
        UserError, match=rf"{views} context and {targets} target views of the first"
    ):
        make_spread_index({"a": torch.zeros(50, 3)}, first, views, targets)


def test_scenes_too_short_for_a_spread_are_told() -> None:
    with pytest.raises(UserError, match="no scene has more than 9 frames, the longest 5"):
        make_spread_index({"a": torch.zeros(5, 3)}, 40, 4, 6)
    with pytest.raises(UserError, match="2 context and 0 target views of the first 6 frames"):
        make_regular_index({"a": torch.zeros(50, 3)}, 6, 2, 8)

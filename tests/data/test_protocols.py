"""Evaluation protocols by name: their rules against published files and closed forms."""

import json
import math
from pathlib import Path

import pytest
import torch

from pmsplat import config
from pmsplat.cli import main
from pmsplat.data import (
    PROTOCOLS,
    Frames,
    find_protocol,
    hash_frames,
    make_even_index,
    make_path_index,
    read_index,
    read_listing,
    recognize,
    vary_views,
)
from pmsplat.errors import UserError
from pmsplat.geometry import se3
from pmsplat.io import chunks
from pmsplat.io.addresses import fetch_file
from pmsplat.scene.overlap import overlaps, overlaps_of
from pmsplat.types import Cameras
from tests.data.test_index import walk_past
from tests.io.test_chunks import ours
from tests.scenes import random_cameras

FILES = {
    "re10k-2v": "evaluation_index_re10k.json",
    "acid-2v": "evaluation_index_acid.json",
    "re10k-bound-aware": "re10k_bound_aware.json",
    "dl3dv-bound-aware": "dl3dv_bound_aware.json",
    "re10k-6v-video": "re10k_ctx_6v_video.json",
    "dl3dv-2v-n50": "dl3dv_start_0_distance_50_ctx_2v_video_0_50.json",
    "dl3dv-4v-n50": "dl3dv_start_0_distance_50_ctx_4v_video_0_50.json",
    "dl3dv-6v-n50": "dl3dv_start_0_distance_50_ctx_6v_video_0_50.json",
    "dl3dv-12v-n100": "dl3dv_start_0_distance_100_ctx_12v_video.json",
    "dl3dv-2v-n10": "dl3dv_start_0_distance_10_ctx_2v_tgt_4v.json",
}


def along(count: int, turn: float = 0.0) -> Cameras:
    """A camera that walks sideways, or turns about the vertical by so many degrees a frame."""
    c2w = torch.eye(4).repeat(1, count, 1, 1)
    if turn:
        angles = torch.arange(count) * math.radians(turn)
        zero = torch.zeros(count)
        c2w[0] = se3.exp(torch.stack([zero, zero, zero, zero, angles, zero], dim=1))
    else:
        c2w[0, :, 0, 3] = torch.arange(count) * 0.1
    K = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    return Cameras(c2w, K, torch.full((1, count), 0.5), torch.full((1, count), 8.0))


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_known_by_their_frames(shared: Path, name: str) -> None:
    listing, protocol = read_listing(shared / "indices" / FILES[name]), PROTOCOLS[name]
    index = listing.index
    assert protocol.file == FILES[name] and len(index) == protocol.scenes
    assert {len(frames.context) for frames in index.values()} == {protocol.views}
    assert protocol.is_official(index) and recognize(index) is protocol
    key, frames = next(iter(index.items()))
    other = index | {key: Frames(frames.context, frames.target[1:])}
    assert not protocol.is_official(other) and recognize(other) is None
    assert hash_frames(dict(reversed(index.items()))) == hash_frames(index)


def test_null_and_other_entries_of_re10k_add_up(shared: Path) -> None:
    listing = read_listing(shared / "indices" / FILES["re10k-2v"])
    assert (len(listing.index), len(listing.null)) == (6474, 720)
    assert len(listing.index) + len(listing.null) == 7194


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("dl3dv")])
def test_rules_make_the_published_frames_of_dl3dv_again(shared: Path, name: str) -> None:
    """Of cameras whose farthest points are the published context views."""
    published, protocol = read_index(shared / "indices" / FILES[name]), PROTOCOLS[name]
    assert protocol.rule is not None
    walks = {}
    for key, frames in published.items():
        length = getattr(protocol.rule, "first", max(*frames.context, *frames.target) + 1)
        centers = walk_past(list(frames.context), length)
        c2w = torch.eye(4).repeat(1, length, 1, 1)
        c2w[0, :, :3, 3] = centers
        blank = torch.ones(1, length)
        walks[key] = Cameras(c2w, torch.eye(3).expand(1, length, 3, 3), blank, blank)
    made = protocol.rule(walks)
    if protocol.why:  # views of scenes that are too short were moved
        assert sum(made.get(key) == frames for key, frames in published.items()) == 130
    else:
        assert made == published and protocol.is_official(made)


def test_even_frames_are_those_of_the_published_files(shared: Path) -> None:
    published = read_index(shared / "indices" / FILES["re10k-6v-video"])
    lengths = {key: len(frames.target) for key, frames in published.items()}
    assert make_even_index(lengths, 6) == published
    context, target = (0, 28, 56, 85, 113, 142, 170, 199), (1, 25, 50, 75, 100, 125, 150, 175)
    found = make_even_index({"long": 333, "short": 199}, 8, 8, 200)  # re10k_start_0_distance_200…
    assert found == {"long": Frames(context, target)}


def test_frames_of_whole_scenes_and_of_dtu() -> None:
    walks = {"long": along(41), "short": along(30)}
    rule = PROTOCOLS["dl3dv-longlrm-16v"].rule
    assert rule is not None
    frames = rule(walks)["long"]
    assert frames.target == (0, 8, 16, 24, 32, 40) and len(frames.context) == 16
    assert not set(frames.context) & set(frames.target) and {1, 39} <= set(frames.context)
    dtu = PROTOCOLS["dtu-3v"].rule
    assert dtu is not None and dtu({"scan1": along(49), "short": along(43)}) == {
        "scan1": Frames((33, 31, 43), (32, 24, 23, 44))
    }
    with pytest.raises(UserError, match="no scene has more than 44 frames, the longest 41"):
        dtu(walks)
    all_of = make_path_index({"line": torch.arange(30.0).reshape(10, 3)}, 8, 3)
    assert all_of == {"line": Frames((0, 3, 7), tuple(range(8)))}


def test_one_row_of_overlaps_is_that_of_all(generator: torch.Generator) -> None:
    cameras = random_cameras(6, generator, spread=1.0)
    share = overlaps(cameras)
    assert 0.02 < share[2, 4] < 0.98
    torch.testing.assert_close(overlaps_of(cameras, 2), share[2], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_pairs_share_what_their_bucket_says(name: str) -> None:
    """A camera that turns shares with itself, 90 degrees wide, the less the more it has turned."""
    protocol = PROTOCOLS[f"re10k-overlap-{name}"]
    assert protocol.rule is not None and protocol.bucket is not None
    low, high = protocol.bucket
    walks = {f"s{i}": along(80, turn=2.0) for i in range(8)} | {"still": along(5)}
    index = protocol.rule(walks)
    assert set(index) == set(walks) - {"still"} and protocol.rule(walks) == index
    share = overlaps(walks["s0"])
    for frames in index.values():
        left, right = frames.context
        assert low <= share[left, right] <= high
        assert len(set(frames.target)) == 3 and left <= min(frames.target)
        assert max(frames.target) <= right
    assert len({frames.context for frames in index.values()}) > 3  # each scene draws for itself
    assert protocol.rule({"s7": walks["s7"]}) == {"s7": index["s7"]}


def test_more_views_are_the_fewer_ones_and_some_more() -> None:
    centers = {"a": torch.randn(50, 3, generator=torch.Generator().manual_seed(0))}
    index = {"a": Frames((10, 30), (12, 15, 20)), "short": Frames((0, 4), (2,))}
    varied = vary_views(index, centers | {"short": torch.zeros(9, 3)}, (2, 4, 12))
    contexts = [set(varied[count]["a"].context) for count in (2, 4, 12)]
    assert [len(context) for context in contexts] == [2, 4, 12]
    assert contexts[0] < contexts[1] < contexts[2] <= set(range(10, 31)) - {12, 15, 20}
    assert {frames["a"].target for frames in varied.values()} == {(12, 15, 20)}
    assert all(list(frames) == ["a"] for frames in varied.values())
    with pytest.raises(UserError, match="19 context views, more than any of 1 scene has"):
        vary_views({"a": index["a"]}, centers, (2, 19))
    video = vary_views({"a": Frames((0, 9), tuple(range(10)))}, centers, (2, 10))
    assert video[10]["a"].context == tuple(range(10))  # whose context views are targets too


def test_a_protocol_sets_data_size_and_index(tmp_path: Path) -> None:
    made = config.compose(["+experiment=re10k_small", "protocol=acid-2v"])
    settings = made.dataset.settings
    assert (made.protocol, made.dataset.name) == ("acid-2v", "re10k")
    assert (settings.root, settings.index) == ("datasets/acid", "datasets/acid/acid-2v.json")
    official = tmp_path / PROTOCOLS["dl3dv-8v-n40"].file
    official.write_text("{}")
    (tmp_path / "dl3dv-8v-n40.json").write_text("{}")
    words = ["+experiment=re10k_small", "protocol=dl3dv-8v-n40", f"dataset.root={tmp_path}"]
    other = config.compose([*words, "dataset.size=[64,96]"])
    assert (other.dataset.name, other.dataset.settings.index) == ("dl3dv", str(official))
    assert other.dataset.settings.size == [64, 96]
    mine = config.compose(["dataset=folder", "protocol=dl3dv-8v-n40", f"dataset.root={tmp_path}"])
    assert (mine.dataset.name, mine.dataset.settings.size) == ("folder", [256, 448])
    kept = config.compose(["dataset=resplat_dl3dv_8v_512x960", "protocol=dl3dv-8v-n60"])
    assert kept.dataset.settings.near == 0.01
    with pytest.raises(UserError, match=r"no protocol 'dl3dv-8v-n4'.*dl3dv-8v-n40"):
        find_protocol("dl3dv-8v-n4")


def run(*words: str | Path) -> int:
    return main(["data", *map(str, words)])


def test_the_index_of_a_protocol_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.append(tmp_path / "test", [ours("a", 12), ours("b", 4), ours("c", 10)])
    assert run("index", tmp_path, "--protocol", "dl3dv-2v-n10") == 0
    path = tmp_path / "dl3dv-2v-n10.json"
    assert "2 scenes" in (said := capsys.readouterr().out) and "1 other of" in said
    content = json.loads(path.read_text())
    assert content["b"] is None and len(content["a"]["target"]) == 4
    entry = {"context": [0, 2], "target": [1]}
    entries = {"a": entry | {"overlap": 0.2}, "c": entry | {"overlap": 0.4}, "gone": entry}
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    within = ("--within", tmp_path / "theirs.json")
    assert run("index", tmp_path, "--protocol", "re10k-overlap-medium", *within) == 0
    assert list(read_index(tmp_path / "re10k-overlap-medium.json")) == ["c"]
    capsys.readouterr()
    assert run("index", tmp_path, "--protocol", "re10k-overlap-large", *within) == 2
    assert "55% to 80% are shared" in capsys.readouterr().err
    assert run("index", tmp_path, "--protocol", "dl3dv-12v-n60") == 2
    assert "cannot be made again" in capsys.readouterr().err
    assert run("index", tmp_path, "--protocol", "dl3dv-2v-n10", "--gap", "4") == 2
    assert "--gap with --protocol" in capsys.readouterr().err
    assert run("index", tmp_path, "--protocol", "dtu-2v", "--fetch") == 2
    assert "of which no file is published" in capsys.readouterr().err
    assert run("index", tmp_path) == 2
    assert "no file to write" in capsys.readouterr().err
    assert run("protocols") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in PROTOCOLS)


def test_a_file_is_fetched_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "source.json"
    source.write_text('{"a": null}')
    fetch_file(source.as_uri(), tmp_path / "new" / "got.json")
    assert (tmp_path / "new" / "got.json").read_text() == '{"a": null}'
    with pytest.raises(UserError, match=r"gone\.json cannot be fetched"):
        fetch_file((tmp_path / "gone.json").as_uri(), tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()

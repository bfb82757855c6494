"""Pointmaps on disk: windows, what is kept of them, and every way in which they may not fit."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pmsplat.data import (
    Bounded,
    CacheKey,
    CacheReader,
    ChunkDataset,
    Frames,
    Gap,
    MissingPointmaps,
    PointmapCache,
    SkippedEntry,
    SkippedScene,
    Snapped,
    StalePointmaps,
    WindowPointmap,
    Windows,
    synthetic,
    write_pointmaps,
)
from pmsplat.data._batches import fitted_views
from pmsplat.data._pointmaps import TAIL, fingerprint
from pmsplat.errors import UserError
from pmsplat.geometry import camera
from pmsplat.geometry.align import umeyama
from pmsplat.io.chunks import write_chunk
from pmsplat.scene.fit import crop
from pmsplat.types import Pointmap

SIZE = (24, 32)
KEY = CacheKey("given", "1", SIZE, "scaled", Windows(frames=3, every=2, hop=1))


def exact(dataset: ChunkDataset, cache: PointmapCache) -> None:
    """Writes the true points of every window of every scene."""
    split = dataset.split("train")
    for name in split.keys:
        chunk = split.folder / name

        def answers(name: str = name):
            for key, scene in split.chunk(name).scenes.items():
                for number, window in enumerate(cache.key.windows.of(len(scene))):
                    views = fitted_views(scene, window, dataset.recipe)
                    assert views.depth is not None
                    cameras = views.cameras
                    points = camera.unproject_depth(views.depth, cameras.c2w, cameras.K)
                    confidence = (views.depth > 0).float() * 3
                    yield WindowPointmap(key, len(scene), number, Pointmap(points, confidence))

        path = CacheReader(cache.folder, cache.key).path(chunk)
        write_pointmaps(path, cache.key, chunk, answers())


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> ChunkDataset:
    cfg = synthetic.Config(
        root=str(tmp_path_factory.mktemp("rooms")), scenes=2, test_scenes=1, frames=9,
        size=list(SIZE), gap=[2, 4], flip=0.5,
    )  # fmt: skip
    return synthetic.build(cfg)


@pytest.fixture(scope="module")
def cache(rooms: ChunkDataset) -> PointmapCache:
    cache = PointmapCache(Path(rooms.root) / "pointmaps", KEY)
    exact(rooms, cache)
    return cache


@pytest.fixture
def copy(
    rooms: ChunkDataset, cache: PointmapCache, tmp_path: Path
) -> tuple[Path, CacheReader, Path]:
    """(the chunk, a reader of its own, the file on it)."""
    split = rooms.split("train")
    chunk = split.folder / next(iter(split.keys))
    reader = CacheReader(tmp_path, KEY)
    original = CacheReader(cache.folder, KEY).path(chunk)
    reader.path(chunk).write_bytes(original.read_bytes())
    return chunk, reader, reader.path(chunk)


def test_windows_cover_a_scene_and_end_with_its_last_kept_frame() -> None:
    windows = Windows(frames=4, every=3, hop=2)
    assert windows.of(7) == [(0, 3, 6)]
    assert windows.of(9) == [(0, 3, 6)]
    assert windows.of(22) == [(0, 3, 6, 9), (6, 9, 12, 15), (12, 15, 18, 21)]
    assert windows.of(25) == [(0, 3, 6, 9), (6, 9, 12, 15), (12, 15, 18, 21), (15, 18, 21, 24)]


def test_frames_up_to_the_overlap_apart_always_fit_a_window() -> None:
    windows = Windows(frames=10, every=4, hop=3)
    for left in range(0, 200 - 28, 4):
        snapped = windows.snap(Frames((left, left + 28), ()), 200)
        assert snapped is not None and snapped.frames.context == (left, left + 28)


@pytest.mark.parametrize("context", [(1, 8), (3, 17, 30)])
def test_snapping_keeps_targets_in_their_place(context: tuple[int, ...]) -> None:
    windows = Windows(frames=8, every=5, hop=4)
    left, right = context[0], context[-1]
    inside, outside = tuple(range(left, right + 1)), (right + 6, right + 12)
    snapped = windows.snap(Frames(context, inside + outside), 60)
    assert snapped is not None
    first, last = min(snapped.frames.context), max(snapped.frames.context)
    assert set(snapped.frames.context) <= set(windows.of(60)[snapped.window])
    moved = snapped.frames.target
    assert moved[0] == first and moved[len(inside) - 1] == last
    assert all(first <= t <= last for t in moved[: len(inside)])
    assert all(last < t < 60 for t in moved[len(inside) :])


def test_views_that_meet_cannot_be_snapped() -> None:
    assert Windows(frames=4, every=50, hop=1).snap(Frames((3, 9), (4,)), 60) is None


@pytest.mark.parametrize(
    ("windows", "context"), [(Windows(8, 8, 4), (0, 135)), (Windows(2, 1, 1), (0, 45))]
)
def test_views_that_no_window_holds_are_not_drawn_together(
    windows: Windows, context: tuple[int, int]
) -> None:
    assert windows.snap(Frames(context, (7,)), 300) is None


def test_no_view_moves_by_as_much_as_the_distance_of_kept_frames() -> None:
    windows = Windows(frames=6, every=5, hop=3)
    for count in (40, 41, 44):
        for left in range(count - 15):
            for right in range(left + 5, left + 16):
                snapped = windows.snap(Frames((left, right), ()), count)
                assert snapped is not None
                assert abs(snapped.frames.context[0] - left) < 5
                assert abs(snapped.frames.context[1] - right) < 5


def test_frames_between_windows_are_told() -> None:
    with pytest.raises(UserError, match=r"hop=7 beyond teacher\.windows\.frames=6"):
        Windows(frames=6, hop=7)
    assert Windows(frames=6, every=1, hop=6).of(12) == [tuple(range(6)), tuple(range(6, 12))]


def test_training_tells_what_to_do_where_no_window_holds_the_views(
    rooms: ChunkDataset, cache: PointmapCache
) -> None:
    narrow = replace(cache, key=replace(KEY, windows=Windows(2, 1, 1)))
    apart = replace(rooms.recipe, sampler=Bounded(Gap((3, 3), (5, 5)), targets=1))
    dataset = ChunkDataset(str(rooms.root), apart).with_pointmaps(narrow)
    with pytest.raises(UserError, match=r"not one scene .*raise teacher\.windows\.frames or lower"):
        next(iter(dataset.train(0, torch.zeros((), dtype=torch.int64))))


def test_frames_are_drawn_again_until_a_window_holds_them(
    rooms: ChunkDataset, cache: PointmapCache, generator: torch.Generator
) -> None:
    """Neighbouring frames often meet in every other one: no reason to give up a scene."""
    sampler, windows = Bounded(Gap((1, 1), (4, 4)), targets=1), KEY.windows
    split = rooms.split("train")
    scene = next(iter(split.chunk(next(iter(split.keys))).scenes.values()))
    centers = scene.c2w[:, :3, 3]
    drawn = [sampler(centers, 0, generator) for _ in range(50)]
    once = [windows.snap(frames, len(scene)) for frames in drawn if frames is not None]
    assert 0 < once.count(None) < 50
    dataset = ChunkDataset(str(rooms.root), replace(rooms.recipe, sampler=sampler)).with_pointmaps(
        cache
    )
    stream = dataset.train(0, torch.zeros((), dtype=torch.int64))
    assert all(isinstance(stream._frames(scene, generator, 0, None), Snapped) for _ in range(50))


def test_examples_bring_true_points_mirrored_or_not(
    rooms: ChunkDataset, cache: PointmapCache
) -> None:
    """float16 of a window's extent; the mirrored example's points are those of its own depth."""
    stream = iter(rooms.with_pointmaps(cache).train(0, torch.zeros((), dtype=torch.int64)))
    mirrored = 0
    for batch in (next(stream) for _ in range(8)):
        views = batch.context
        assert views.depth is not None and views.pointmap is not None
        points = camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K)
        known = views.depth > 0
        torch.testing.assert_close(views.pointmap.points[known], points[known], rtol=0, atol=4e-3)
        assert torch.equal(views.pointmap.mask, known)
        handed = torch.linalg.det(views.cameras.c2w[0, 0, :3, :3])
        assert float(handed) > 0
        similarity = umeyama(views.pointmap.points[known].double(), points[known].double())
        assert float((similarity - torch.eye(4).double()).abs().max()) < 1e-2
        mirrored += not torch.equal(views.images, _unmirrored(rooms, batch.scene[0], views.names))
    assert 0 < mirrored < 8


def _unmirrored(rooms: ChunkDataset, scene: str, names: tuple | None) -> Tensor:
    split = rooms.split("train")
    assert names is not None
    frames = tuple(int(name) for name in names[0])
    chunk = split.chunk(split.chunk_of[scene])
    return fitted_views(chunk.scenes[scene], frames, rooms.recipe).images


def test_a_scaled_scene_scales_its_pointmap(rooms: ChunkDataset, cache: PointmapCache) -> None:
    plain = replace(rooms.recipe, flip=0.0)
    dataset = ChunkDataset(str(rooms.root), plain).with_pointmaps(cache)
    batch = next(iter(dataset.train(0, torch.zeros((), dtype=torch.int64))))
    views = batch.context.scaled(torch.tensor([5.0]))
    assert views.depth is not None and views.pointmap is not None
    points = camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K)
    known = views.depth > 0
    reach = float(points[known].abs().max())
    found = views.pointmap.points[known]
    torch.testing.assert_close(found, points[known], rtol=0, atol=1e-3 * reach)


def test_cropping_takes_points_and_confidence_along(
    rooms: ChunkDataset, cache: PointmapCache
) -> None:
    batch = next(iter(rooms.with_pointmaps(cache).train(0, torch.zeros((), dtype=torch.int64))))
    small = crop(batch.context, (12, 16))
    whole, cut = batch.context.pointmap, small.pointmap
    assert whole is not None and cut is not None
    assert torch.equal(cut.points, whole.points[:, :, 6:18, 8:24])
    assert torch.equal(cut.confidence, whole.confidence[..., 6:18, 8:24])


def test_what_is_not_finite_is_unknown(tmp_path: Path) -> None:
    windows = Windows(frames=2, every=1, hop=1)
    key = replace(KEY, windows=windows)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, 2, *SIZE, 3, generator=generator) * 1e6  # beyond float16
    confidence = torch.rand(1, 2, *SIZE, generator=generator) + 1e-9
    points[0, 0, 3, 4, 1], points[0, 1, 5, 6] = torch.nan, torch.inf
    confidence[0, 0, 0, 0] = torch.nan
    chunk = tmp_path / "000007.torch"
    chunk.write_bytes(b"12345")
    reader = CacheReader(tmp_path / "maps", key)
    answer = WindowPointmap("a/b", 2, 0, Pointmap(points, confidence))
    write_pointmaps(reader.path(chunk), key, chunk, [answer])
    read = reader.read(chunk, "a/b", Snapped(Frames((0, 1), ()), 0, 2))
    unknown = torch.zeros(1, 2, *SIZE, dtype=torch.bool)
    unknown[0, 0, 3, 4] = unknown[0, 1, 5, 6] = unknown[0, 0, 0, 0] = True
    assert torch.equal(read.confidence == 0, unknown)
    error = (read.points - points)[~unknown].abs().max() / points[~unknown].abs().max()
    assert float(error) < 2**-11


def test_one_far_pixel_does_not_coarsen_the_rest(tmp_path: Path) -> None:
    key = replace(KEY, windows=Windows(frames=2, every=1, hop=1))
    points = torch.rand(1, 2, *SIZE, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    points[0, 1, 5, 6] = 1e3
    chunk = tmp_path / "000007.torch"
    chunk.write_bytes(b"12345")
    reader = CacheReader(tmp_path / "maps", key)
    answer = WindowPointmap("a/b", 2, 0, Pointmap(points, torch.ones(1, 2, *SIZE)))
    write_pointmaps(reader.path(chunk), key, chunk, [answer])
    read = reader.read(chunk, "a/b", Snapped(Frames((0, 1), ()), 0, 2)).points
    assert float(read[0, 1, 5, 6].sub(1e3).abs().max()) < 0.5
    error = (read - points).abs().amax(dim=-1)
    error[0, 1, 5, 6] = 0
    assert float(error.max()) < 1e3 * 2**-24  # half a step of the smallest of float16


def test_the_same_answers_give_the_same_points(copy: tuple[Path, CacheReader, Path]) -> None:
    """One frame read alone is the frame read among others."""
    chunk, reader, _ = copy
    scene = next(
        iter(json.loads(zipfile.ZipFile(reader.path(chunk)).read("manifest.json"))["scenes"])
    )
    both = reader.read(chunk, scene, Snapped(Frames((4, 2), ()), 0, 9))
    alone = reader.read(chunk, scene, Snapped(Frames((2,), ()), 0, 9))
    assert torch.equal(both.points[:, 1:], alone.points)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"teacher": "vggt"}, 'made with teacher "given"'),
        ({"revision": "2"}, 'revision "1"'),
        ({"size": (48, 64)}, r"size \[24, 32\]"),
        ({"fit": "cut"}, 'fit "scaled"'),
        ({"windows": Windows(4, 2, 1)}, "windows"),
    ],
)
def test_pointmaps_of_other_settings_are_stale(
    copy: tuple[Path, CacheReader, Path], changed: dict, told: str
) -> None:
    chunk, reader, _ = copy
    with pytest.raises(StalePointmaps, match=told):
        CacheReader(reader.folder, replace(KEY, **changed)).check(chunk)


def test_pointmaps_of_another_chunk_are_stale(
    copy: tuple[Path, CacheReader, Path], tmp_path: Path
) -> None:
    chunk, reader, _ = copy
    other = tmp_path / chunk.name
    other.write_bytes(chunk.read_bytes() + b" ")
    with pytest.raises(StalePointmaps, match=r"was not made from .* as that is now"):
        reader.check(other)


def test_a_chunk_whose_poses_alone_changed_is_another(rooms: ChunkDataset, tmp_path: Path) -> None:
    """Of the same length, beyond the bytes that are looked at."""
    split = rooms.split("train")
    scene = next(iter(split.chunk(next(iter(split.keys))).scenes.values()))
    noise = torch.randint(256, (TAIL,), dtype=torch.uint8)
    scene = replace(scene, images=(*scene.images[:-1], noise))
    moved = replace(scene, c2w=scene.c2w.clone())
    moved.c2w[3, 0, 3] += 0.25
    paths = [tmp_path / name for name in ("a.torch", "b.torch", "c.torch")]
    for path, kept in zip(paths, (scene, moved, scene), strict=True):
        write_chunk(path, [kept])
    a, b = (path.read_bytes() for path in paths[:2])
    tail = next(i for i in range(len(a)) if a[i] != b[i])
    assert len(a) == len(b) and tail < len(a) - TAIL
    assert fingerprint(paths[0]) == fingerprint(paths[2]) != fingerprint(paths[1])


def test_pointmaps_of_a_scene_that_had_another_length_are_stale(
    rooms: ChunkDataset, copy: tuple[Path, CacheReader, Path]
) -> None:
    chunk, reader, _ = copy
    scene = rooms.split("train").keys[chunk.name][0]
    with pytest.raises(StalePointmaps, match="when it had 9 frames; wanted those of its 8 frames"):
        reader.read(chunk, scene, Snapped(Frames((0, 2), ()), 0, 8))


def test_missing_files_and_scenes_are_named(
    copy: tuple[Path, CacheReader, Path], tmp_path: Path
) -> None:
    chunk, reader, _ = copy
    with pytest.raises(MissingPointmaps, match="no pointmaps of scene 'nobody'"):
        reader.read(chunk, "nobody", Snapped(Frames((0,), ()), 0, 9))
    with pytest.raises(MissingPointmaps, match="teacher cache"):
        CacheReader(tmp_path / "elsewhere", KEY).check(chunk)


def test_training_without_them_is_an_error_or_goes_on_as_configured(
    rooms: ChunkDataset, tmp_path: Path
) -> None:
    step = torch.zeros((), dtype=torch.int64)
    absent = PointmapCache(tmp_path, KEY)
    with pytest.raises(MissingPointmaps):
        next(iter(rooms.with_pointmaps(absent).train(0, step)))
    batch = next(iter(rooms.with_pointmaps(replace(absent, required=False)).train(0, step)))
    assert batch.context.pointmap is None


def test_a_scene_passed_over_is_unusable_in_training_and_others_are_not(
    rooms: ChunkDataset, cache: PointmapCache, tmp_path: Path
) -> None:
    split = rooms.split("train")
    chunk = split.folder / next(iter(split.keys))
    spoilt, whole = split.keys[chunk.name]
    there, reader = cache.reader(), CacheReader(tmp_path, KEY)

    def answers(keys: list[str], count: int):
        for key in keys:
            for number, window in enumerate(KEY.windows.of(9)[:count]):
                said = there.read(chunk, key, Snapped(Frames(window, ()), number, 9))
                yield WindowPointmap(key, 9, number, said)

    def some():
        yield from answers([spoilt], 2)
        yield SkippedEntry(spoilt, 9, "an unreadable image")
        yield from answers([whole], 3)

    write_pointmaps(reader.path(chunk), KEY, chunk, some())
    where = Snapped(Frames((2, 4), ()), 0, 9)
    with pytest.raises(SkippedScene, match="an unreadable image"):
        reader.read(chunk, spoilt, where)
    torch.testing.assert_close(reader.read(chunk, whole, where), there.read(chunk, whole, where))
    for required in (True, False):
        partly = rooms.with_pointmaps(replace(cache, folder=tmp_path, required=required))
        stream = iter(partly.train(0, torch.zeros((), dtype=torch.int64)))
        batches = [next(stream) for _ in range(4)]
        assert {batch.scene[0] for batch in batches} == {whole}
        assert all(batch.context.pointmap is not None for batch in batches)


def test_a_stale_file_is_opened_once_for_all_examples_of_its_chunk(
    rooms: ChunkDataset, cache: PointmapCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    known = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: opened.append(path) or known(path))
    key = replace(KEY, revision="2")
    stale = rooms.with_pointmaps(PointmapCache(cache.folder, key, required=False))
    stream = iter(stale.train(0, torch.zeros((), dtype=torch.int64)))
    assert all(next(stream).context.pointmap is None for _ in range(5))
    assert len(opened) == 1


def test_a_lying_size_is_refused_before_it_is_unpacked(
    copy: tuple[Path, CacheReader, Path],
) -> None:
    chunk, reader, path = copy
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read("manifest.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", manifest)
        archive.writestr("0/0/0", bytes(1 << 24))  # 16 kB in the file
    scene = next(iter(json.loads(manifest)["scenes"]))
    with pytest.raises(UserError, match="0/0/0 of 16777216 bytes"):
        reader.read(chunk, scene, Snapped(Frames((0,), ()), 0, 9))


def test_damage_of_any_kind_is_one_sentence(copy: tuple[Path, CacheReader, Path]) -> None:
    """500 truncated or mutated files: the same points, or a UserError."""
    chunk, reader, path = copy
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        scene = next(iter(json.loads(archive.read("manifest.json"))["scenes"]))
    where = Snapped(Frames((0, 4), ()), 0, 9)
    true = reader.read(chunk, scene, where)
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(500):
        data = bytearray(whole[: rng.integers(len(whole))] if number % 5 == 0 else whole)
        for place in rng.integers(len(data), size=rng.integers(1, 40)) if len(data) else ():
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            read = CacheReader(reader.folder, KEY).read(chunk, scene, where)
        except UserError:
            refused += 1
            continue
        assert torch.equal(read.points, true.points)
        assert torch.equal(read.confidence, true.confidence)
    assert refused > 100

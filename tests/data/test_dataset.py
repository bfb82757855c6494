"""Streams: every scene once over ranks and workers, the same sequence after a resumption."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pmsplat import config
from pmsplat.contracts import DatasetTraits, dataset_traits
from pmsplat.data import (
    Bounded,
    ChunkDataset,
    Frames,
    Gap,
    Poses,
    Recipe,
    Skip,
    Spread,
    _dataset,
    collate,
    dl3dv,
    folder,
    re10k,
    synthetic,
    write_index,
)
from pmsplat.errors import UserError
from pmsplat.geometry import camera
from pmsplat.io import chunks, images
from pmsplat.scene.photos import Photo
from pmsplat.types import Batch
from tests.io.test_chunks import encoded, ours

STEP = torch.zeros((), dtype=torch.int64)
RECIPE = Recipe(size=(8, 8), sampler=Bounded(Gap((1, 1), (3, 3)), targets=2), flip=0.5)


def write_split(root: Path, parts: list[list[str]], split: str = "train") -> Path:
    for keys in parts:
        chunks.append(root / split, [ours(key, 5, seed=len(key)) for key in keys])
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 scenes in 5 chunks of different lengths."""
    sizes, keys = (7, 1, 6, 5, 4), iter(f"s{i:02d}" for i in range(23))
    path = tmp_path_factory.mktemp("dataset")
    return write_split(path, [[next(keys) for _ in range(size)] for size in sizes])


def take(stream, count: int) -> list[Batch]:
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.scene == b.scene
        and torch.equal(a.context.images, b.context.images)
        and torch.equal(a.target.images, b.target.images)
        and torch.equal(a.context.cameras.c2w, b.context.cameras.c2w)
    )


def as_shard(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, worker: int, workers: int):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr(_dataset, "worker_of_workers", lambda: (worker, workers))


def in_order(dataset: ChunkDataset, monkeypatch: pytest.MonkeyPatch, shares: tuple[int, int, int]):
    """The first 48 examples by 12 scenes a step, of so many ranks, workers, and in each batch."""
    ranks, workers, size = shares
    found = {}
    for rank in range(ranks):
        for worker in range(workers):
            as_shard(monkeypatch, rank, ranks, worker, workers)
            turns = range(worker, 48 // (ranks * size), workers)
            stream = iter(dataset.train(3, STEP, batch_size=size))
            for turn in turns:
                for place in range(size):
                    found[turn * ranks * size + rank * size + place] = next(stream)
    return [found[i] for i in range(48)]


@pytest.mark.parametrize("shares", [(1, 3, 12), (2, 2, 6), (4, 1, 3), (12, 1, 1)])
def test_any_number_of_ranks_and_workers_sees_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, shares: tuple[int, int, int]
) -> None:
    """As many scenes in a step, and the same ones, with the same frames, mirrored or not."""
    recipe = replace(RECIPE, sampler=Bounded(Gap((1, 4), (1, 4), 3), targets=2))
    dataset = ChunkDataset(str(root), recipe)
    whole = in_order(dataset, monkeypatch, (1, 1, 12))
    assert all(map(same, whole, in_order(dataset, monkeypatch, shares)))
    seen = [batch.scene[0] for batch in whole]
    every = [f"s{i:02d}" for i in range(23)]
    assert sorted(seen[:23]) == sorted(seen[23:46]) == every and seen[:23] != seen[23:46]


def test_epochs_and_seeds_are_shuffled_differently(root: Path) -> None:
    def order(seed: int) -> list[str]:
        stream = ChunkDataset(str(root), RECIPE).train(seed, STEP)
        return [batch.scene[0] for batch in take(stream, 46)]

    first = order(0)
    assert first == order(0)
    assert first[:23] != first[23:] and first != order(1)
    assert first[:23] != sorted(first[:23])


@pytest.mark.parametrize("consumed", [1, 5, 23, 40])
def test_resumption_continues_the_sequence(root: Path, consumed: int) -> None:
    dataset = ChunkDataset(str(root), RECIPE)
    whole = take(dataset.train(5, STEP), consumed + 6)
    resumed = take(dataset.train(5, STEP, skip=consumed), 6)
    assert all(map(same, whole[consumed:], resumed))


@pytest.mark.parametrize("batches", [1, 3, 8])
def test_resumption_with_workers_and_batches(root: Path, batches: int) -> None:
    dataset, size = ChunkDataset(str(root), RECIPE), 3

    def loader(skip: int) -> DataLoader:
        stream = dataset.train(5, STEP, skip=skip, batch_size=size)
        return DataLoader(stream, size, num_workers=2, collate_fn=collate)

    whole = take(loader(0), batches + 4)
    assert whole[0].context.images.shape == (3, 2, 3, 8, 8)
    assert all(map(same, whole[batches:], take(loader(batches * size), 4)))


def test_all_of_a_batch_have_as_many_views_and_batches_differ(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all workers and devices; a resumed run goes on with the same numbers."""
    sampler = Spread(Gap((3, 3), (4, 4)), (2, 4), targets=1)
    dataset = ChunkDataset(str(root), replace(RECIPE, sampler=sampler))

    def counts(skip: int = 0, seed: int = 5) -> list[int]:
        stream = dataset.train(seed, STEP, skip=skip, batch_size=3)
        batches = take(DataLoader(stream, 3, num_workers=2, collate_fn=collate), 12)
        return [batch.context.images.shape[1] for batch in batches]

    found = counts()
    assert set(found) == {2, 3, 4}
    assert counts(skip=4 * 3)[:8] == found[4:]
    assert counts(seed=6) != found
    single = [batch.context.images.shape[1] for batch in take(dataset.train(5, STEP), 12)]
    assert set(single) == {2, 3, 4}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = counts()
    monkeypatch.setenv("RANK", "0")
    assert counts() == other and set(other) == {2, 3, 4}


def test_resumption_decodes_nothing_of_the_past(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = Photo.pixels
    monkeypatch.setattr(Photo, "pixels", lambda photo: decoded.append(photo) or decode(photo))
    take(ChunkDataset(str(root), RECIPE).train(0, STEP, skip=10_000), 1)
    assert len(decoded) == 4


def test_half_of_the_examples_are_mirrored(root: Path) -> None:
    plain = take(ChunkDataset(str(root), replace(RECIPE, flip=0.0)).train(1, STEP), 80)
    mixed = take(ChunkDataset(str(root), RECIPE).train(1, STEP), 80)
    mirrored = sum(
        not torch.equal(a.context.images, b.context.images)
        and torch.equal(a.context.images.flip(-1), b.context.images)
        for a, b in zip(plain, mixed, strict=True)
    )
    assert 22 < mirrored < 58


def test_the_gap_follows_the_steps(root: Path) -> None:
    """Each batch is a step, from the one at which the stream begins, however early it is loaded."""
    recipe = replace(RECIPE, sampler=Bounded(Gap((1, 4), (1, 4), 100), targets=1))
    dataset = ChunkDataset(str(root), recipe)

    def gaps(step: int, batch_size: int = 1) -> list[int]:
        start = torch.tensor(step)
        stream = dataset.train(0, start, batch_size=batch_size)
        start.fill_(99)
        rows = [batch.context.names for batch in take(stream, 8)]
        return [int(row[0][1]) - int(row[0][0]) for row in rows if row is not None]

    assert gaps(0) == [1] * 8 and gaps(100) == [4] * 8
    assert gaps(32) == [1, 1, 2, 2, 2, 2, 2, 2]  # 1 + floor(3 step / 100)
    assert gaps(32, batch_size=2) == [1, 1, 1, 1, 2, 2, 2, 2]


# A worker that is told to end in the middle of its work is aborted at times, on a slow machine
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_unusable_scenes_are_named_once_and_replaced(tmp_path: Path) -> None:
    wide = ours("wide", 5)
    wide.K[:, 0, 0] = 0.3  # 118 degrees
    torn = ours("torn", 5)
    torn = replace(torn, images=tuple(image[:50] for image in torn.images))
    mixed = replace(
        ours("mixed", 5), depths=None, images=tuple(encoded(i, (12, 16 + i)) for i in range(5))
    )
    chunks.append(tmp_path / "train", [wide, torn, ours("short", 1), ours("good", 5), mixed])
    chunks.append(tmp_path / "train", [ours("lost", 5), ours("too", 5)])
    cut = tmp_path / "train" / "000001.torch"
    cut.write_bytes(cut.read_bytes()[:-100])
    dataset = ChunkDataset(str(tmp_path), replace(RECIPE, resize=False))
    stream = dataset.train(0, STEP)
    assert {batch.scene[0] for batch in take(stream, 11)} == {"good"}
    found = stream.skips.take()
    reasons = {skip.scenes: (skip.reason.partition("(")[0].strip(), skip.damaged) for skip in found}
    assert reasons == {
        ("wide",): ("a field of view beyond 100 degrees", False),
        ("torn",): ("an unreadable image", True),
        ("short",): ("too few frames for the gap", False),
        ("mixed",): ("photos of different sizes", False),
        ("lost", "too"): (f"the chunk {cut} cannot be read", True),
    }
    assert len(found) == 5 and not stream.skips.take()
    assert {skip.chunk for skip in found} == {"000000.torch", "000001.torch"}
    # Worker processes say the same, and do not wait for a reader
    stream = dataset.train(0, STEP)
    loader = DataLoader(stream, num_workers=2, collate_fn=collate, multiprocessing_context="spawn")
    take(loader, 40)
    assert {skip.scenes for skip in stream.skips.take()} == set(reasons)


def test_what_a_quarantine_names_is_left_out(tmp_path: Path) -> None:
    """Also a chunk that is not there."""
    folder = write_split(tmp_path, [["a", "bb"], ["ccc"], ["dddd"]]) / "train"
    (folder / "000002.torch").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 3 chunks"):
        ChunkDataset(str(tmp_path), RECIPE).train(0, STEP)
    chunks.write_quarantine(
        folder, chunks.Quarantine({"000002.torch": "no file"}, {"bb": "changed bytes"})
    )
    stream = ChunkDataset(str(tmp_path), RECIPE).train(0, STEP)
    assert {batch.scene[0] for batch in take(stream, 12)} == {"a", "ccc"}
    assert sorted(stream.skips.take(), key=str) == [
        Skip("000000.torch", ("bb",), "changed bytes", True),
        Skip("000002.torch", ("dddd",), "no file", True, whole=True),
    ]


def test_not_one_usable_scene_is_an_error(tmp_path: Path) -> None:
    write_split(tmp_path, [["a", "b"], ["c"]])
    recipe = replace(RECIPE, sampler=Bounded(Gap((9, 9), (9, 9)), 1))
    with pytest.raises(UserError, match=r"not one scene .* too few frames for the gap \(3\)"):
        take(ChunkDataset(str(tmp_path), recipe).train(0, STEP), 1)


def test_errors_in_a_worker_stay_one_sentence(tmp_path: Path) -> None:
    write_split(tmp_path, [["a"]])
    path = tmp_path / "train" / "000000.torch"
    path.write_bytes(path.read_bytes()[:-100])
    loader = DataLoader(
        ChunkDataset(str(tmp_path), RECIPE).train(0, STEP), num_workers=1, collate_fn=collate
    )
    message = r"^not one scene .* can be used: the chunk .*000000\.torch cannot be read"
    with pytest.raises(UserError, match=message) as caught:
        take(loader, 1)
    assert "\n" not in str(caught.value)


def test_evaluation_walks_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, [["a", "b", "c"], ["d", "e"]], "test")
    index = {key: Frames((0, 4), (1, 3)) for key in "bdace"}
    write_index(tmp_path / "index.json", index)
    dataset = ChunkDataset(str(tmp_path), RECIPE, str(tmp_path / "index.json"))
    batches = list(dataset.evaluation())
    assert [b.scene[0] for b in batches] == ["b", "a", "c", "d", "e"]  # chunk by chunk
    assert batches[0].context.names == (("000000", "000004"),)
    assert batches[0].target.names == (("000001", "000003"),)
    assert [b.scene[0] for b in dataset.evaluation(limit=2)] == ["b", "d"]
    loader = DataLoader(dataset.evaluation(), 1, num_workers=2, collate_fn=collate)
    assert [b.scene[0] for b in loader] == ["b", "a", "c", "d", "e"]
    shared = []
    for rank in range(2):
        as_shard(monkeypatch, rank, 2, 0, 1)
        part = dataset.evaluation()
        shared += [b.scene[0] for b in part]
        assert len(part) == 3 - rank
    assert sorted(shared) == list("abcde")


def test_scaled_decoding_is_of_training_alone(tmp_path: Path) -> None:
    y, x = np.mgrid[:80, :120]
    pixels = np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)
    jpeg = torch.frombuffer(bytearray(images.encode_image(pixels, "jpeg")), dtype=torch.uint8)
    scene = replace(ours("a", 5), images=(jpeg,) * 5, depths=None, depth_scale=1.0)
    for split in ("train", "test"):
        chunks.append(tmp_path / split, [scene])
    write_index(tmp_path / "index.json", {"a": Frames((0, 4), (1, 3))})
    exact, scaled = (
        ChunkDataset(
            str(tmp_path), replace(RECIPE, size=(20, 30), decode=name), str(tmp_path / "index.json")
        )
        for name in ("exact", "scaled")
    )
    one, other = (take(dataset.train(0, STEP), 1)[0] for dataset in (exact, scaled))
    assert torch.equal(one.context.cameras.K, other.context.cameras.K)
    apart = (one.context.images - other.context.images).abs()
    assert 0 < apart.max() < 0.05
    assert same(*(next(iter(dataset.evaluation())) for dataset in (exact, scaled)))
    with pytest.raises(UserError, match=r"dataset.decode=quick.*exact, scaled"):
        re10k.build(re10k.Config(decode="quick"))


def test_an_index_of_other_data_is_told(tmp_path: Path) -> None:
    write_split(tmp_path, [["a", "b"]], "test")
    path = tmp_path / "index.json"

    def dataset() -> ChunkDataset:  # each reads the index once
        return ChunkDataset(str(tmp_path), RECIPE, str(path))

    with pytest.raises(UserError, match="there is no evaluation index"):
        dataset().evaluation()
    write_index(path, {"x": Frames((0, 1), (2,)), "y": Frames((0, 1), (2,))})
    with pytest.raises(UserError, match=r"names 2 scenes, none of which .* 'x' first"):
        dataset().evaluation()
    write_index(path, {"a": Frames((0, 1), (2,)), "x": Frames((0, 1), (2,))}, null=["n"])
    stream = dataset().evaluation(limit=1)
    listed = stream.listed
    assert stream.keys == ["a"] and listed.entries == 3
    assert (listed.null, listed.missing, listed.beyond) == (1, ("x",), 0)
    write_index(path, {"a": Frames((0, 1), (2,)), "b": Frames((0, 1), (7,))})
    stream = dataset().evaluation()
    assert [batch.scene[0] for batch in stream] == ["a"]
    (skip,) = stream.skips.take()
    assert (skip.scenes, skip.damaged, skip.detail) == (("b",), True, "frame 7 of 0 to 4")
    write_index(path, {"b": Frames((-1, 1), (2,))})
    with pytest.raises(UserError, match=r"not one scene .*not all frames .*index that belongs"):
        list(dataset().evaluation())
    path.write_text(json.dumps({"a": None}))
    with pytest.raises(UserError, match="no scene that is not null"):
        dataset().evaluation()
    with pytest.raises(UserError, match="has no evaluation index"):
        ChunkDataset(str(tmp_path), RECIPE).evaluation()


def test_evaluation_passes_over_what_the_protocol_does(tmp_path: Path) -> None:
    wide = ours("wide", 5)
    wide.K[:, 0, 0] = 0.3
    torn = replace(ours("torn", 5), images=tuple(image[:50] for image in ours("a", 5).images))
    chunks.append(tmp_path / "test", [wide, ours("good", 5), torn])
    path = tmp_path / "index.json"

    def dataset() -> ChunkDataset:  # each reads the index once
        return ChunkDataset(str(tmp_path), RECIPE, str(path))

    frames = Frames((0, 4), (2,))
    write_index(path, {"wide": frames, "good": frames})
    assert [batch.scene[0] for batch in dataset().evaluation()] == ["good"]
    write_index(path, {"wide": frames})
    with pytest.raises(UserError, match=r"not one scene .* field of view beyond 100"):
        list(dataset().evaluation())
    write_index(path, {"torn": frames, "good": frames})
    stream = dataset().evaluation()
    assert [batch.scene[0] for batch in stream] == ["good"]
    assert stream.skips.take() == [Skip("000000.torch", ("torn",), "an unreadable image", True)]


def test_batches_keep_the_range_and_the_unit_of_the_scene(tmp_path: Path) -> None:
    scene = ours("a", 5)
    scene.near.mul_(torch.tensor([4.0, 2, 3, 4, 5]))  # type: ignore[union-attr]
    chunks.append(tmp_path / "train", [scene])
    plain = replace(RECIPE, flip=0.0, size=(6, 8))
    batch = take(ChunkDataset(str(tmp_path), plain).train(0, STEP), 1)[0]
    assert scene.near is not None and batch.context.names is not None
    frames = [int(name) for name in batch.context.names[0]]
    assert torch.equal(batch.context.cameras.near[0], scene.near[frames])
    scaled = batch.scaled(0.25)
    for a, b in ((batch.context, scaled.context), (batch.target, scaled.target)):
        assert a.depth is not None and b.depth is not None
        points = camera.unproject_depth(a.depth, a.cameras.c2w, a.cameras.K)
        got = camera.unproject_depth(b.depth, b.cameras.c2w, b.cameras.K)
        torch.testing.assert_close(got, points * 0.25)
    given = take(ChunkDataset(str(tmp_path), replace(plain, near=1.0, far=9.0)).train(0, STEP), 1)
    assert given[0].target.cameras.far.unique().tolist() == [9.0]


def test_scenes_without_range_need_one(tmp_path: Path) -> None:
    chunks.append(tmp_path / "train", [replace(ours("a", 5), near=None, far=None)])
    with pytest.raises(UserError, match="carries no near and far"):
        take(ChunkDataset(str(tmp_path), RECIPE).train(0, STEP), 1)


def test_collate_joins_and_refuses(root: Path) -> None:
    batches = take(ChunkDataset(str(root), RECIPE).train(0, STEP), 3)
    blind = replace(batches[1], context=replace(batches[1].context, depth=None))
    joined = collate([batches[0], blind, batches[2]])
    assert joined.scene == [b.scene[0] for b in batches]
    assert joined.context.names is not None and len(joined.context.names) == 3
    assert joined.context.depth is not None and not joined.context.depth[1].any()
    assert torch.equal(joined.target.cameras.K[2], batches[2].target.cameras.K[0])
    recipe = replace(RECIPE, sampler=Spread(Gap((3, 3), (4, 4)), (3, 3), 2))
    three = take(ChunkDataset(str(root), recipe).train(0, STEP), 1)
    with pytest.raises(UserError, match=r"2 views of 8x8 and 3 views of 8x8 in one batch"):
        collate([batches[0], three[0]])


def test_dl3dv_cuts_where_re10k_scales(tmp_path: Path) -> None:
    scene = replace(ours("a", 30), near=None, far=None, depths=None)
    scene = replace(scene, images=tuple(encoded(i, (30, 40)) for i in range(30)))
    scene.c2w[:, :3, 3] *= 100
    chunks.append(tmp_path / "train", [scene, replace(scene, key="far", c2w=scene.c2w * 1e6)])
    common = {"root": str(tmp_path), "size": [16, 24], "min_gap": [5, 5], "max_gap": [9, 9]}
    cut = take(dl3dv.build(dl3dv.Config(**common, views=[3, 3], flip=0.0)).train(0, STEP), 3)
    assert {b.scene[0] for b in cut} == {"a"}
    names = cut[0].context.names
    assert names is not None
    pixels = torch.from_numpy(scene.image(int(names[0][0]))).permute(2, 0, 1) / 255
    assert torch.equal(cut[0].context.images[0, 0], pixels[:, 7:23, 8:32])
    assert cut[0].target.images.shape == (1, 8, 3, 16, 24)
    assert cut[0].context.cameras.far.unique().tolist() == [200.0]
    scaled = take(re10k.build(re10k.Config(**common)).train(0, STEP), 1)[0]
    K = scaled.context.cameras.K
    assert scaled.context.images.shape == (1, 2, 3, 16, 24)
    assert torch.isin(K[..., 0, 2], torch.cat([scene.K[:, 0, 2], 1 - scene.K[:, 0, 2]])).all()


def test_evaluation_stretches_the_context_views_alone(tmp_path: Path) -> None:
    scene = replace(ours("a", 5), near=None, far=None, depths=None)
    for split in ("train", "test"):
        chunks.append(tmp_path / split, [scene])
    index = tmp_path / "index.json"
    write_index(index, {"a": Frames((0, 4), (2,))})
    common = {"root": str(tmp_path), "index": str(index), "size": [12, 16], "exact_crop": True}
    cfg = dl3dv.Config(**common, context_size=[16, 32], views=[2, 2], min_gap=[1, 1], flip=0.0)
    (batch,) = dl3dv.build(cfg).evaluation()
    (plain,) = dl3dv.build(replace(cfg, context_size=None)).evaluation()
    assert batch.context.images.shape == (1, 2, 3, 16, 32)
    assert torch.equal(batch.target.images, plain.target.images)
    assert torch.equal(batch.context.cameras.K, plain.context.cameras.K)
    corners = (slice(None), slice(None), slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    torch.testing.assert_close(batch.context.images[corners], plain.context.images[corners])
    trained = take(dl3dv.build(cfg).train(0, STEP), 1)[0]
    assert trained.context.images.shape[-2:] == (12, 16)


def test_cameras_stand_in_the_world_of_resplat(tmp_path: Path) -> None:
    """Its loader goes by way of OpenGL axes, step by step; the product of the steps is ours."""
    scene = replace(ours("a", 5), near=None, far=None, depths=None)
    chunks.append(tmp_path / "test", [scene])
    index = tmp_path / "index.json"
    write_index(index, {"a": Frames((0, 4), (2,))})
    cfg = dl3dv.Config(root=str(tmp_path), index=str(index), size=[12, 16])
    cfg.poses.frame = "colmap"
    (batch,) = dl3dv.build(cfg).evaluation()
    want = chunks.read_chunk(tmp_path / "test" / "000000.torch").scenes["a"].c2w.clone()
    want[:, :, 1:3] *= -1  # to OpenGL
    want[:, 2] *= -1  # what nerfstudio did to COLMAP's world, undone
    want = want[:, [1, 0, 2, 3]]
    want[:, :3, 1:3] *= -1  # back to OpenCV
    assert torch.equal(batch.context.cameras.c2w[0], want[[0, 4]])
    assert torch.equal(batch.target.cameras.c2w[0], want[[2]])
    assert torch.linalg.det(want[:, :3, :3]).min() > 0.99
    with pytest.raises(
        UserError, match=r"poses\.frame=colmp; wanted one of stored, colmap.*'colmap'"
    ):
        Poses(frame="colmp")


def test_the_published_check_of_positions_looks_above_zero_only() -> None:
    scene = ours("a", 5)
    scene.c2w[1, 0, 3], scene.c2w[2, 2, 3] = -2000, 7
    assert Poses().reach(scene) == 2000
    assert Poses(only_positive=True).reach(scene) == 7
    turned = Poses(frame="colmap", only_positive=True)  # z of the stored world counts downwards
    assert turned.reach(scene) < 7
    scene.c2w[2, 2, 3] = -1500
    assert turned.reach(scene) == 1500


def test_own_photos_train_from_chunks(root: Path) -> None:
    cfg = folder.Config(root=str(root), size=[8, 8], gap=[2, 3], target_views=2)
    batch = take(folder.build(cfg).train(0, STEP), 1)[0]
    assert batch.context.images.shape == (1, 2, 3, 8, 8)
    traits = dataset_traits(folder.build(cfg))
    assert traits == DatasetTraits(scale_near=True, near=None, has_test=False)
    Path(root, "test").mkdir()
    assert dataset_traits(folder.build(cfg)).has_test
    Path(root, "test").rmdir()


def test_constant_ranges_are_traits(root: Path) -> None:
    given = re10k.build(re10k.Config(root=str(root), near=0.7))
    assert dataset_traits(given) == DatasetTraits(near=0.7, far=100.0, has_test=False)
    made = dataset_traits(synthetic.build(synthetic.Config()))
    assert made == DatasetTraits(index="datasets/synthetic/evaluation_index.json")


@pytest.mark.parametrize(
    ("value", "remedy"),
    [("0.5", "model.near=0.5"), ("1", "model.near=1"), ("null", "scale_near=false")],
)
def test_an_old_number_for_scale_near_is_told(value: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        config.compose(["dataset=folder", f"dataset.scale_near={value}"])
    error = caught.value
    assert value in error.got and error.wanted == "true or false"
    assert error.remedy is not None and remedy in error.remedy
    with pytest.raises(UserError):
        folder.Config(scale_near=0.5)  # pyright: ignore[reportArgumentType]
    for word in ("true", "false"):
        settings = config.compose(["dataset=folder", f"dataset.scale_near={word}"]).dataset.settings
        assert settings.scale_near is (word == "true")


def test_a_setting_of_the_wrong_length_is_told() -> None:
    with pytest.raises(UserError, match=r"dataset\.size=\[256\]; wanted two numbers"):
        re10k.build(re10k.Config(size=[256]))


def test_an_odd_scene_in_a_chunk_is_skipped_and_counted(
    tmp_path: Path,
) -> None:
    path = write_split(tmp_path, [["a", "bb", "ccc"]]) / "train" / "000000.torch"
    entries = torch.load(path, weights_only=True)
    entries[1]["near"] = torch.tensor(1.0)
    torch.save(entries, path)
    chunks.append(tmp_path / "test", [ours("x", 5)])
    (tmp_path / "test" / path.name).write_bytes(path.read_bytes())
    chunks.write_index(tmp_path / "test")
    frames = Frames((0, 2), (1,))
    write_index(tmp_path / "index.json", dict.fromkeys(("a", "bb", "ccc"), frames))
    dataset = ChunkDataset(str(tmp_path), RECIPE, str(tmp_path / "index.json"))
    wanted = Skip("000000.torch", ("bb",), "no 'near' and 'far' for each image", True)
    training, evaluation = dataset.train(0, STEP), dataset.evaluation()
    assert {batch.scene[0] for batch in take(training, 6)} == {"a", "ccc"}
    assert [batch.scene for batch in evaluation] == [["a"], ["ccc"]]
    assert training.skips.take() == evaluation.skips.take() == [wanted]

"""A teacher asked once: what is on disk afterwards, what training does with it, and without it."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pmsplat import cli, config, registry, train
from pmsplat.errors import UserError
from pmsplat.foundation.teachers import given
from pmsplat.io.chunks import ChunkScene, read_chunk, write_chunk
from pmsplat.io.files import one_of_writers
from pmsplat.tasks import teacher
from pmsplat.train.settings import Experiment
from pmsplat.types import Pointmap, Views
from tests.lab import rooms


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rooms")


def overrides(root: Path, *more: str) -> list[str]:
    """Three steps of the smallest encoder on rooms of 32x32, in chunks of 16."""
    return [
        "+experiment=demo_tiny",
        f"dataset.root='{root}/data'",
        "dataset.scenes=18",
        "dataset.test_scenes=1",
        "dataset.frames=7",
        "dataset.size=[32,32]",
        "dataset.gap=[2,4]",
        "teacher=given",
        "teacher.windows.every=2",
        "trainer.steps=3",
        "trainer.validate_every=0",
        "trainer.log_every=1",
        "trainer.loggers=[csv]",
        "+loss.pointmap.weight=0.005",
        *more,
    ]


def experiment(root: Path, cache: Path, *more: str) -> Experiment:
    return config.compose(overrides(root, f"teacher.cache='{cache}'", *more))


def spoilt(root: Path, copy: Path, change: Callable[[ChunkScene], ChunkScene], *names: str) -> Path:
    """A copy of the rooms in which scenes of the chunks `names` are changed."""
    made = experiment(root, root).dataset
    registry.build("data", made.name, made.settings).split("train")
    shutil.copytree(root / "data", copy / "data")
    for name in names:
        path = copy / "data" / "train" / name
        write_chunk(path, map(change, read_chunk(path).scenes.values()))
    return copy


def nowhere(scene: ChunkScene) -> ChunkScene:
    """The scene, a camera of which is at infinity."""
    c2w = scene.c2w.clone()
    c2w[0, 0, 3] = torch.inf
    return replace(scene, c2w=c2w)


def losses(output: Path) -> list[str]:
    """The logged values of the term, step by step."""
    rows = next(output.glob("csv/**/metrics.csv")).read_text().splitlines()
    column = rows[0].split(",").index("train/loss/pointmap")
    return [row.split(",")[column] for row in rows[1:]]


def members(archive: Path | bytes) -> dict[str, bytes]:
    """What an archive holds, without the times of writing."""
    data = archive if isinstance(archive, bytes) else archive.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_what_is_there_is_kept_and_what_is_missing_made(root: Path, tmp_path: Path) -> None:
    told: list[str] = []
    first = teacher.cache(experiment(root, tmp_path), "cpu", tell=told.append)
    assert (first.written, first.found, first.scenes) == (2, 0, 18)
    files = sorted((tmp_path / "train").iterdir())
    assert [file.name for file in files] == ["000000.zip", "000001.zip"]
    assert first.bytes == sum(file.stat().st_size for file in files)
    # 1,000 scenes of 4 frames of 32x32 pixels of 8 bytes; here are 18
    assert len(told) == 1 and "sees 4 frames of a scene" in told[0]
    assert "32.8 MB on disk for 1,000 scenes" in told[0] and "0.6 MB for the 18 scenes" in told[0]
    before = files[0].stat().st_mtime_ns
    files[1].unlink()
    again = teacher.cache(experiment(root, tmp_path), "cpu", tell=told.append)
    assert (again.written, again.found, again.scenes) == (1, 1, 2)
    assert files[0].stat().st_mtime_ns == before and files[1].exists()


def test_ranks_share_the_chunks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert teacher.cache(experiment(root, tmp_path), "cpu", tell=print).written == 1
        assert (tmp_path / "train" / f"00000{rank}.zip").is_file()


def test_shards_share_the_chunks_and_ranks_those_of_a_shard(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    written = []
    for part in (1, 2, 3):
        for rank in (0, 1):
            monkeypatch.setenv("RANK", str(rank))
            made = experiment(root, tmp_path)
            written.append(teacher.cache(made, "cpu", tell=print, shard=(part, 3)).written)
    assert written == [1, 1, 0, 0, 0, 0]
    assert len(list((tmp_path / "train").glob("*.zip"))) == 2


def test_what_a_killed_process_left_is_removed_unless_another_writes(
    root: Path, tmp_path: Path
) -> None:
    left = tmp_path / "train" / ".000000-abc.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with one_of_writers(left.parent):  # removes it
        assert not left.exists()
        left.write_bytes(b"half")
        teacher.cache(experiment(root, tmp_path), "cpu", tell=print, shard=(1, 2))
        assert left.exists()
    teacher.cache(experiment(root, tmp_path), "cpu", tell=print)
    assert sorted(path.name for path in left.parent.iterdir()) == ["000000.zip", "000001.zip"]


def test_an_interruption_leaves_whole_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    answer = given.Given.__call__

    def tired(self: given.Given, views: Views) -> Pointmap:
        nonlocal asked
        asked += 1
        if asked == 17:  # the first scene of the second chunk
            raise KeyboardInterrupt
        return answer(self, views)

    monkeypatch.setattr(given.Given, "__call__", tired)
    with pytest.raises(KeyboardInterrupt):
        teacher.cache(experiment(root, tmp_path), "cpu", tell=print)
    assert [file.name for file in (tmp_path / "train").iterdir()] == ["000000.zip"]
    assert teacher.cache(experiment(root, tmp_path), "cpu", tell=print).found == 1


def test_training_reads_what_the_teacher_said_and_does_not_ask(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the term is the one of a teacher asked in the step, to float16's precision."""
    made = experiment(root, tmp_path / "maps")
    teacher.cache(made, "cpu", tell=print)
    asked = replace(made, output=str(tmp_path / "asked"))
    missing = config.compose(
        overrides(root, f"teacher.cache='{tmp_path}/none'", "teacher.missing=compute")
    )
    train.run(replace(missing, output=asked.output))
    monkeypatch.setattr(given.Given, "__call__", None)
    train.run(replace(made, output=str(tmp_path / "read")))
    online, read = losses(tmp_path / "asked"), losses(tmp_path / "read")
    assert len(read) == 3
    for a, b in zip(online, read, strict=True):
        assert float(a) > 0 and abs(float(a) - float(b)) < 1e-3 * float(a)
    saved = json.loads((tmp_path / "read" / "config.json").read_text())
    assert saved["teacher"]["name"] == "given"


def test_training_never_goes_on_without_the_term(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pointmaps at .*000000\.zip.*teacher cache"):
        train.run(experiment(root, tmp_path / "none", f"output='{tmp_path}/out'"))
    without = config.compose(overrides(root, f"output='{tmp_path}/out'", "teacher=null"))
    with pytest.raises(UserError, match=r"loss\.pointmap without a teacher"):
        train.run(without)
    unheard = config.compose(overrides(root, f"output='{tmp_path}/out'", "~loss.pointmap"))
    with pytest.raises(UserError, match="no loss uses it"):
        train.run(unheard)
    with pytest.raises(UserError, match=r"weight=nan; wanted a finite"):
        config.compose(overrides(root, "loss.pointmap.weight=nan"))
    with pytest.raises(UserError, match=r"~loss\.pointmap drops it"):
        config.compose(["+experiment=demo_tiny", "+loss.pointmap=null"])


def test_ranks_that_make_no_sense_are_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("x", "2"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=f"RANK={rank}"):
            teacher.cache(experiment(root, tmp_path), "cpu", tell=print)


def test_windows_of_one_frame_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"windows\.every=7 for scenes of 7 frames"):
        teacher.cache(experiment(root, tmp_path, "teacher.windows.every=7"), "cpu", tell=print)


def test_a_stale_cache_is_replaced_only_when_told(root: Path, tmp_path: Path) -> None:
    teacher.cache(experiment(root, tmp_path), "cpu", tell=print)
    other = experiment(root, tmp_path, "teacher.blur=1")
    with pytest.raises(UserError, match="revision"):
        teacher.cache(other, "cpu", tell=print)
    with pytest.raises(UserError, match="revision"):
        train.run(replace(other, output=str(tmp_path / "out")))
    assert teacher.cache(other, "cpu", overwrite=True, tell=print).written == 2


def test_a_damaged_file_is_named_and_made_anew(root: Path, tmp_path: Path) -> None:
    teacher.cache(experiment(root, tmp_path), "cpu", tell=print)
    path = tmp_path / "train" / "000000.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"000000\.zip is damaged.*teacher cache"):
        train.run(experiment(root, tmp_path, f"output='{tmp_path}/out'"))
    told: list[str] = []
    again = teacher.cache(experiment(root, tmp_path), "cpu", tell=told.append)
    assert again.written == 1 and members(path) == members(whole)
    assert any(f"{path} is damaged" in line for line in told)


def test_a_damaged_member_is_one_sentence_from_a_worker_too(root: Path, tmp_path: Path) -> None:
    teacher.cache(experiment(root, tmp_path), "cpu", tell=print)
    for path in (tmp_path / "train").iterdir():
        with zipfile.ZipFile(path) as archive:
            places = [info.header_offset + 40 for info in archive.infolist()[:-1]]
        data = bytearray(path.read_bytes())
        for place in places:
            data[place : place + 64] = bytes(64)
        path.write_bytes(data)
    damaged = experiment(root, tmp_path, f"output='{tmp_path}/out'", "trainer.workers=1")
    with pytest.raises(UserError, match=r"^[^\n]*00000[01]\.zip is damaged[^\n]*$") as error:
        train.run(damaged)
    assert "Traceback" not in str(error.value) and "Caught" not in str(error.value)


def test_a_scene_with_an_unreadable_photo_is_passed_over(root: Path, tmp_path: Path) -> None:
    def cut(scene: ChunkScene) -> ChunkScene:
        broken = (*scene.images[:4], scene.images[4][:10], *scene.images[5:])
        return replace(scene, images=broken) if scene.key.endswith("00003") else scene

    copy = spoilt(root, tmp_path, cut, "000000.torch")
    told: list[str] = []
    made = teacher.cache(experiment(copy, tmp_path / "maps"), "cpu", tell=told.append)
    assert (made.written, made.scenes) == (2, 17)
    assert "1 of 18 scenes" in told[-1] and "an unreadable image (1)" in told[-1]
    archive = members(tmp_path / "maps" / "train" / "000000.zip")
    scenes = json.loads(archive["manifest.json"])["scenes"]
    assert [s["unusable"] for s in scenes.values() if "unusable" in s] == ["an unreadable image"]
    assert teacher.cache(experiment(copy, tmp_path / "maps"), "cpu", tell=print).found == 2
    many = ("trainer.steps=5", "trainer.batch_size=4", f"output='{tmp_path}/out'")
    train.run(experiment(copy, tmp_path / "maps", *many))  # 20 examples of 18 scenes


def test_chunks_without_a_usable_scene(root: Path, tmp_path: Path) -> None:
    copy = spoilt(root, tmp_path / "one", nowhere, "000000.torch")
    told: list[str] = []
    made = teacher.cache(experiment(copy, tmp_path / "maps"), "cpu", tell=told.append)
    assert (made.written, made.scenes) == (2, 2) and "sees 4 frames of a scene" in told[0]
    assert "16 of 18 scenes" in told[1] and "(16)" in told[1]
    copy = spoilt(root, tmp_path / "all", nowhere, "000000.torch", "000001.torch")
    with pytest.raises(UserError, match=r"not one scene .* cameras that are not finite \(18\)"):
        teacher.cache(experiment(copy, tmp_path / "none"), "cpu", tell=print)


def test_a_split_whose_photos_are_all_unreadable_is_an_error(root: Path, tmp_path: Path) -> None:
    def cut(scene: ChunkScene) -> ChunkScene:
        return replace(scene, images=tuple(image[:10] for image in scene.images))

    copy = spoilt(root, tmp_path, cut, "000000.torch", "000001.torch")
    with pytest.raises(UserError, match=r"not one scene .* an unreadable image \(18\)"):
        teacher.cache(experiment(copy, tmp_path / "maps"), "cpu", tell=print)


def test_too_small_a_disk_is_told_before_anything_is_asked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 scenes of 4 frames of 32x32 pixels of 8 bytes are 589,824 bytes, half of it 294,912."""
    free = SimpleNamespace(free=294_911)
    monkeypatch.setattr(teacher.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(
        UserError, match=r"^only 0\.3 MB free in .*18 scenes; wanted .*0\.6 MB.*room"
    ):
        teacher.cache(experiment(root, tmp_path / "maps"), "cpu", tell=print)
    assert not (tmp_path / "maps").exists()
    free.free += 1
    assert teacher.cache(experiment(root, tmp_path / "maps"), "cpu", tell=print).written == 2
    free.free = 0  # what is there is not made again
    found = teacher.cache(experiment(root, tmp_path / "maps"), "cpu", tell=print)
    assert found.found == 2
    free.free = 294_912 - sum(f.stat().st_size for f in (tmp_path / "maps" / "train").iterdir())
    other = experiment(root, tmp_path / "maps", "teacher.blur=1")  # what is replaced makes room
    assert teacher.cache(other, "cpu", overwrite=True, tell=print).written == 2


def of_rooms(root: Path, cache: Path, parts: list[str], *more: str) -> Experiment:
    """A run on a dataset of somebody else's that has these parts."""
    settings = rooms.Config(f"{root}/data", parts)
    made = experiment(root, cache, *more)
    return replace(made, dataset=train.settings.Component("tests.lab.rooms", settings))


@pytest.mark.parametrize("lacking", rooms.CACHING)
def test_a_dataset_that_cannot_keep_pointmaps_wants_no_cache(
    root: Path, tmp_path: Path, lacking: str
) -> None:
    parts = [part for part in rooms.REQUIRED + rooms.CACHING if part != lacking]
    own = of_rooms(root, tmp_path / "maps", parts, f"output='{tmp_path}/out'")
    wanted = rf"^the dataset 'tests\.lab\.rooms' has no `{lacking}`.*teacher\.cache=null"
    for job in (train.run, teacher.cache):
        with pytest.raises(UserError, match=wanted):
            job(own)


def test_a_dataset_without_a_cache_trains_with_the_teacher_in_the_step(
    root: Path, tmp_path: Path
) -> None:
    own = of_rooms(root, tmp_path / "maps", rooms.REQUIRED, f"output='{tmp_path}/out'")
    assert own.teacher is not None
    train.run(replace(own, teacher=replace(own.teacher, cache=None)))
    assert len(losses(tmp_path / "out")) == 3


def test_a_foreign_dataset_with_all_parts_is_cached_and_validated_as_ours(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = rooms.REQUIRED + rooms.CACHING
    more = (f"output='{tmp_path}/out'", "trainer.validate_every=3")
    own = of_rooms(root, tmp_path / "maps", parts, *more)
    with pytest.raises(UserError, match="no pointmaps at"):
        train.run(own)
    assert teacher.cache(own, "cpu", tell=print).scenes == 18
    monkeypatch.setattr(given.Given, "__call__", None)  # training reads the cache
    train.run(own)
    assert len(losses(tmp_path / "out")) >= 3
    header, *rows = next((tmp_path / "out").glob("csv/**/metrics.csv")).read_text().splitlines()
    column = header.split(",").index("val/psnr")
    assert [row for row in rows if row.split(",")[column]]


def test_validation_needs_an_evaluation_stream(root: Path, tmp_path: Path) -> None:
    settings = ("trainer.validate_every=3", "teacher=null", "~loss.pointmap")
    made = config.compose([*overrides(root, f"output='{tmp_path}/out'"), *settings])
    dataset = train.settings.Component(
        "tests.lab.rooms", rooms.Config(f"{root}/data", parts=["train"])
    )
    own = replace(made, dataset=dataset)
    with pytest.raises(UserError, match=r"has no `evaluation`.*trainer\.validate_every=0"):
        train.run(own)
    train.run(replace(own, trainer=replace(own.trainer, validate_every=0)))


def test_an_experiment_without_a_teacher_or_a_cache_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no teacher.*add teacher=vggt"):
        teacher.cache(replace(experiment(root, tmp_path), teacher=None), "cpu")
    with pytest.raises(UserError, match=r"teacher\.cache is not set"):
        teacher.cache(config.compose(overrides(root)), "cpu")


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A relative cache lies in the root of the data."""
    words = ["teacher", "cache", *overrides(root, "teacher.cache=maps/given"), "--device", "cpu"]
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert "2 files with 18 scenes written" in said and "At most" in said
    assert (root / "data" / "maps" / "given" / "train" / "000001.zip").is_file()
    assert cli.main([*words[:-2], "teacher.windows.hop=0"]) == 2
    assert "at least 1" in capsys.readouterr().err

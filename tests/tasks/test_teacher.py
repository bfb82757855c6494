"""A teacher asked once: what is on disk afterwards, what training does with it, and without it."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pmsplat import cli, config, train
from pmsplat.errors import UserError
from pmsplat.foundation.teachers import given
from pmsplat.tasks import teacher
from pmsplat.train.settings import Experiment
from pmsplat.types import Pointmap, Views


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
    assert told == [line for line in told if "32.8 MB on disk for 1,000 scenes" in line] != []
    assert "here are 18, so 0.6 MB" in told[0] and "sees 4 frames of a scene" in told[0]
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
    without = config.compose(overrides(root, f"output='{tmp_path}/out'"))
    with pytest.raises(UserError, match=r"loss\.pointmap without a teacher"):
        train.run(replace(without, teacher=None))
    unheard = config.compose(overrides(root, f"output='{tmp_path}/out'", "~loss.pointmap"))
    with pytest.raises(UserError, match="no loss that listens"):
        train.run(unheard)
    with pytest.raises(UserError, match="of weight nan"):
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
    assert any("damaged" in line and "made anew" in line for line in told)


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

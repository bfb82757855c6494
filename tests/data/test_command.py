"""`pmsplat data`: photos to chunks, indices, what there is, and wrong input in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat import registry
from pmsplat.cli import main
from pmsplat.data import Frames, _convert, read_index, synthetic
from pmsplat.errors import UserError
from pmsplat.io import chunks, images
from pmsplat.scene import open_scene
from tests.io.cameras.test_survey import transforms
from tests.io.test_chunks import ours


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two posed photos with a range."""

    def change(content: dict) -> None:
        content |= {"near": 1.0, "far": 9.0, "k1": 0.1}

    return transforms(tmp_path / "photos", change).parent


def run(*arguments: str | Path) -> int:
    return main(["data", *map(str, arguments)])


def test_convert_adds_scenes_to_a_split(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = tmp_path / "mine" / "test"
    assert run("convert", photos, split, "--size", "6x8") == 0
    assert "8x12 are scaled and cut to 6x8" in capsys.readouterr().err
    assert run("convert", photos, split, "--scene", "again", "--every", "2") == 0
    assert "scaled" not in capsys.readouterr().err
    assert chunks.read_split(split).keys == {
        "000000.torch": ["photos"],
        "000001.torch": ["again"],
    }
    first, again = open_scene(f"{split}:photos"), open_scene(f"{split}:again")
    assert (len(first), first.size) == (2, (6, 8))
    assert (len(again), again.size) == (1, (8, 12))
    assert first.cameras.near.unique().tolist() == [1.0]
    whole = open_scene(photos)
    torch.testing.assert_close(first.cameras.c2w, whole.cameras.c2w)
    torch.testing.assert_close(again.cameras.K, whole.cameras.K[:, :1])


def test_what_is_said_of_sizes_is_of_the_photos_taken(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = sorted(photos.rglob("*.png"))[1]
    Image.open(second).resize((24, 16)).save(second)
    for every, named in (("1", "16x24"), ("2", "Photos of 8x12 are scaled and cut to 6x8")):
        split = tmp_path / every
        assert run("convert", photos, split, "--size", "6x8", "--every", every) == 0
        assert named in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["", "deeper/split"])
def test_a_file_in_place_of_the_output_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for verb in (["convert", photos], ["synthetic"]):
        assert run(*verb, file / inside) == 2
        assert f"{file} is a file; wanted a folder" in capsys.readouterr().err.replace("\n", " ")
    assert file.read_text() == "mine" and sorted(tmp_path.rglob("*")) == before


def test_synthetic_writes_nothing_where_one_split_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "test").write_text("mine")
    assert run("synthetic", tmp_path, "--scenes", "1", "--test-scenes", "1") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["test"]


def test_convert_refuses_before_it_works(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    split = tmp_path / "test"
    assert run("convert", photos, split) == 0
    before = {path.name: path.read_bytes() for path in split.iterdir()}
    assert run("convert", photos, split) == 2
    assert "already has a scene 'photos'; wanted a new name" in capsys.readouterr().err
    assert run("convert", tmp_path / "nowhere", split) == 2
    assert "there is no scene at" in capsys.readouterr().err
    assert run("convert", photos, split, "--scene", "b", "--every", "0") == 2
    for size in ("20", "0x20", "20x0"):
        with pytest.raises(SystemExit) as wrong:
            run("convert", photos, split, "--size", size)
        assert wrong.value.code == 2 and f"'{size}'; wanted HEIGHTxWIDTH" in capsys.readouterr().err

    def interrupted(photo: object, size: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(_convert, "_encode", interrupted)
    assert run("convert", photos, split, "--scene", "c") == 130
    assert {path.name: path.read_bytes() for path in split.iterdir()} == before


def test_convert_tells_a_damaged_photo(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    (photos / "images" / "1.png").write_bytes(images.encode_image(pixels)[:150])
    assert run("convert", photos, tmp_path / "test", "--strict") == 2
    assert "1.png cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "test").exists()
    assert run("convert", photos, tmp_path / "test") == 0  # with the other one
    assert "1 photo in" in capsys.readouterr().out


def test_synthetic_is_ready_to_train_and_evaluate(tmp_path: Path) -> None:
    root = tmp_path / "rooms"
    options = ("--scenes", "2", "--test-scenes", "1", "--frames", "9", "--size", "16x24")
    assert run("synthetic", root, *options) == 0
    assert sorted(path.name for path in root.iterdir()) == [
        "evaluation_index.json",
        "test",
        "train",
    ]
    cfg = synthetic.Config(root=str(root), scenes=2, test_scenes=1, frames=9, size=[16, 24])
    assert len(list(synthetic.build(cfg).evaluation())) == 1


def test_index_of_a_dataset_and_within_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.append(tmp_path / "test", [ours("a", 9), ours("b", 3), ours("c", 12)])
    out = tmp_path / "out.json"
    assert run("index", tmp_path, out, "--gap", "6", "--targets", "2") == 0
    index = read_index(out)
    assert list(index) == ["a", "c"] and len(index["a"].target) == 2
    assert "2 scenes" in (said := capsys.readouterr().out) and "1 other of" in said
    assert "too few frames (b with 3)" in said
    assert run("index", tmp_path, out, "--gap", "50") == 2
    assert "no scene has more than 50 frames, the longest 12" in capsys.readouterr().err
    entry = {"context": [0, 2], "target": [1]}
    (tmp_path / "published.json").write_text(json.dumps({"a": entry, "gone": entry, "b": None}))
    within = ("index", tmp_path / "test", tmp_path / "new.json", "--within")
    assert run(*within, tmp_path / "published.json") == 0
    assert list(read_index(tmp_path / "new.json")) == ["a"]
    said = " ".join(capsys.readouterr().out.split())
    assert "2 others of" in said and "(b, c)" in said
    assert "is not there: gone" in said


def test_an_index_is_not_replaced_unless_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the index of the split, which is no evaluation index, not at all."""
    torn = chunks.append(tmp_path / "test", [ours("torn", 9)])
    chunks.append(tmp_path / "test", [ours("a", 9), ours("b", 3)])
    torn.write_bytes(torn.read_bytes()[:-100])
    out, asked = tmp_path / "out.json", ("--gap", "6", "--targets", "2")
    assert run("index", tmp_path, out, *asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "2 others of" in said
        and "cannot be read" in said
        and "(torn)" in said
        and "(b with 3)" in said
    )
    before = out.read_bytes()
    assert run("index", tmp_path, out, *asked) == 0
    assert "these frames already" in " ".join(capsys.readouterr().out.split())
    assert run("index", tmp_path, out, "--gap", "4") == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_bytes() == before
    assert run("index", tmp_path, out, "--gap", "4", "--overwrite") == 0
    assert (read_index(out)["a"].context[1] - read_index(out)["a"].context[0]) == 4
    split = tmp_path / "test" / chunks.INDEX
    before = split.read_bytes()
    assert run("index", tmp_path, split, *asked, "--overwrite") == 2
    assert run("index", tmp_path, tmp_path / "test", *asked) == 2
    assert "is a folder" in capsys.readouterr().err and split.read_bytes() == before


def test_index_outside_the_context_views(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.append(tmp_path / "test", [ours("a", 9), ours("b", 3)])
    out = tmp_path / "out.json"
    asked = ("--gap", "4", "--targets", "4", "--outside", "2", "--overwrite")
    assert run("index", tmp_path, out, *asked, "--start", "2") == 0
    assert read_index(out) == {"a": Frames((2, 6), (0, 1, 7, 8))}
    assert run("index", tmp_path, out, *asked, "--start", "2", "--between", "1") == 0
    assert read_index(out) == {"a": Frames((2, 6), (0, 1, 4, 7, 8))}
    assert run("index", tmp_path, out, *asked, "--between", "4") == 2
    assert "a gap of 4 frames for 2 context and 4 target views" in capsys.readouterr().err
    assert run("index", tmp_path, out, *asked, "--start", "1") == 2
    assert "wanted 2 frames before them for targets" in capsys.readouterr().err
    assert run("index", tmp_path, out, "--start", "1") == 2
    assert "--start without --outside" in capsys.readouterr().err


def test_info_of_splits_and_photos(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ours("bad", 4)
    bad.c2w[0, 0, 0] = torch.nan
    chunks.append(tmp_path / "test", [ours("a", 9), ours("b", 3)])
    chunks.write_chunk(tmp_path / "test" / "000001.torch", [ours("c", 5), bad])
    assert run("info", tmp_path / "test", "--write-index") == 0
    told = capsys.readouterr().out
    assert "000001.torch" in told and "12x16" in told and "finite" in told
    assert len(chunks.read_split(tmp_path / "test").chunk_of) == 4
    assert "4 scenes in 2 chunks, 17 photos; 1 of the scenes cannot be used." in told
    assert run("info", photos) == 0
    assert "8x12" in capsys.readouterr().out
    assert run("info", tmp_path / "nothing") == 2


def test_info_of_a_dataset_names_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.append(tmp_path / "train", [ours("a", 9)])
    torn = chunks.append(tmp_path / "test", [ours("b", 3), ours("c", 3)])
    chunks.append(tmp_path / "test", [ours("d", 4)])
    torn.write_bytes(torn.read_bytes()[:-100])
    assert run("info", tmp_path) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "train: 1 scene in 1 chunk, 9 photos." in told
    assert "3 scenes in 2 chunks, 4 photos; 2 of the scenes" in told and "000000.torch." in told
    assert run("info", tmp_path / "test") == 0
    assert "000001.torch" in capsys.readouterr().out
    (tmp_path / "test" / "000001.torch").unlink()
    assert run("info", tmp_path) == 0
    assert "train: 1 scene in" in " ".join(capsys.readouterr().out.split())
    assert run("info", tmp_path, "--write-index") == 2
    assert "000000.torch cannot be read" in " ".join(capsys.readouterr().err.split())


def test_info_leaves_out_what_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a quarantine names, and the second scene of a key."""
    chunks.append(tmp_path / "test", [ours("a", 9), ours("b", 3)])
    chunks.append(tmp_path / "test", [ours("c", 4)])
    chunks.append(tmp_path / "test", [ours("d", 2)])
    chunks.write_chunk(tmp_path / "test" / "000001.torch", [ours("c", 4), ours("a", 9)])
    known = chunks.Quarantine({"000002.torch": "it is torn"}, {"b": "bytes that changed"})
    chunks.write_quarantine(tmp_path / "test", known)
    assert run("info", tmp_path / "test") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "5 scenes in 3 chunks, 13 photos; 3 of the scenes cannot be used" in told


@pytest.mark.parametrize("name", registry.names("data"))
def test_every_dataset_builds_from_its_defaults(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "mix":  # of what, nobody has said
        with pytest.raises(UserError, match="one with a share at least"):
            registry.build("data", name)
        return
    dataset = registry.build("data", name)
    assert callable(dataset.train) and callable(dataset.evaluation)
    assert not any(tmp_path.iterdir())


def test_index_of_views_far_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = ours("a", 12)
    scene.c2w[:, :3, 3] = torch.arange(12.0)[:, None] ** 2
    chunks.append(tmp_path / "test", [scene, ours("b", 3)])
    out = tmp_path / "out.json"
    asked = ("index", tmp_path, out, "--overwrite", "--spread", "9", "--context", "3")
    assert run(*asked, "--targets", "2") == 0
    assert read_index(out) == {"a": Frames((0, 6, 8), (1, 4))}
    assert run(*asked, "--every", "4") == 0
    assert read_index(out) == {"a": Frames((0, 6, 8), (3, 7))}
    for more, told in (
        (("--gap", "4"), "--gap with --spread"),
        (("--every", "4", "--targets", "2"), "--targets with --every"),
    ):
        assert run(*asked, *more) == 2
        assert told in capsys.readouterr().err
    assert run("index", tmp_path, out, "--every", "4") == 2
    assert "--every without --spread" in capsys.readouterr().err
    for frames, short in (("12", False), ("13", True)):
        assert run(*asked[:4], "--spread", frames, "--context", "3") == 0
        assert (f"1 of the scenes has fewer than {frames}" in capsys.readouterr().out) == short


@pytest.mark.parametrize(
    "option",
    ["gap", "context", "targets", "outside", "start", "between", "spread", "every", "seed"],
)
def test_index_within_another_takes_no_numbers(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.append(tmp_path / "test", [ours("a", 9)])
    out, published = tmp_path / "out.json", tmp_path / "published.json"
    published.write_text(json.dumps({"a": {"context": [0, 2], "target": [1]}}))
    assert run("index", tmp_path, out, "--within", published, f"--{option}", "8") == 2
    assert f"--{option} with --within" in capsys.readouterr().err
    assert not out.exists()


def test_index_takes_a_gap_of_8_where_none_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.append(tmp_path / "test", [ours("a", 9)])
    assert run("index", tmp_path, tmp_path / "out.json") == 0
    assert read_index(tmp_path / "out.json") == {"a": Frames((0, 8), (2, 4, 6))}
    with pytest.raises(SystemExit):
        run("index", "--help")
    assert "last context view (default: 8)" in " ".join(capsys.readouterr().out.split())

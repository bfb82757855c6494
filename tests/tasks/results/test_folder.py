"""Results appear whole, replace their like, and never mix with what is foreign."""

import logging
from pathlib import Path

import pytest

from pmsplat.errors import UserError
from pmsplat.tasks.results.folder import MARK, make_whole


def fill(folder: Path, names: list[str], content: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with make_whole(target) as folder:
        fill(folder, [MARK, "depth/a"], "1")
        assert not target.exists()
    assert files(tmp_path / "deep") == ["out/depth/a", f"out/{MARK}"]


def test_messages_name_the_folder_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError) as raised, make_whole(target) as folder:
        logging.getLogger("pmsplat.io.files").warning("%s: full of %d", folder / "a.ply", 3)
        raise UserError(f"{folder / 'b'} is bad", "good", "mend it")
    assert raised.value.got == f"{target / 'b'} is bad"
    assert [record.getMessage() for record in caplog.records] == [f"{target / 'a.ply'}: full of 3"]


def test_an_earlier_result_is_replaced_without_leftovers(tmp_path: Path) -> None:
    for content, names in (("1", [MARK, "depth/a", "depth/b"]), ("2", [MARK, "depth/a"])):
        with make_whole(tmp_path / "out") as folder:
            fill(folder, names, content)
    assert files(tmp_path / "out") == ["depth/a", MARK]
    assert (tmp_path / "out/depth/a").read_text() == "2"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    with make_whole(tmp_path / "out") as folder:
        fill(folder, [MARK], "1")
    with pytest.raises((KeyboardInterrupt, OSError)), make_whole(tmp_path / "out") as folder:
        fill(folder, [MARK, "more"], "2")
        raise error
    assert files(tmp_path) == [f"out/{MARK}"] and (tmp_path / "out" / MARK).read_text() == "1"


def test_foreign_files_are_not_mixed_with(tmp_path: Path) -> None:
    fill(tmp_path, ["thesis.tex", "depth/a"], "mine")
    with pytest.raises(UserError, match="holds other files"), make_whole(tmp_path):
        pytest.fail("nothing may be computed")
    with make_whole(tmp_path, overwrite=True) as folder:
        fill(folder, [MARK, "ply"], "2")
    assert files(tmp_path) == ["depth/a", MARK, "ply", "thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file"), make_whole(tmp_path / "out"):
        pytest.fail("nothing may be computed")


def test_what_only_an_earlier_result_had_goes(tmp_path: Path) -> None:
    """Whatever verb made it; what is foreign among it stays."""
    target = tmp_path / "out"
    with make_whole(target) as folder:
        (folder / "color").mkdir()
        for name in ("color/0.png", "sheet.png", MARK):
            (folder / name).write_text("earlier")
    (target / "notes.txt").write_text("mine")
    with make_whole(target) as folder:
        (folder / "render").mkdir()
        (folder / MARK).write_text("later")
    assert sorted(path.name for path in target.iterdir()) == [MARK, "notes.txt", "render"]

"""Results appear whole, replace their like, and never mix with what is foreign."""

from pathlib import Path

import pytest

from pmsplat.errors import UserError
from pmsplat.tasks.results.folder import MARK, results


def fill(folder: Path, names: list[str], content: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with results(target, "mark") as folder:
        fill(folder, ["mark", "depth/a"], "1")
        assert not target.exists()
    assert files(tmp_path / "deep") == ["out/depth/a", "out/mark"]


def test_an_earlier_result_is_replaced_without_leftovers(tmp_path: Path) -> None:
    for content, names in (("1", ["mark", "depth/a", "depth/b"]), ("2", ["mark", "depth/a"])):
        with results(tmp_path / "out", "mark") as folder:
            fill(folder, names, content)
    assert files(tmp_path / "out") == ["depth/a", "mark"]
    assert (tmp_path / "out/depth/a").read_text() == "2"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    with results(tmp_path / "out", "mark") as folder:
        fill(folder, ["mark"], "1")
    with pytest.raises((KeyboardInterrupt, OSError)), results(tmp_path / "out", "mark") as folder:
        fill(folder, ["mark", "more"], "2")
        raise error
    assert files(tmp_path) == ["out/mark"] and (tmp_path / "out/mark").read_text() == "1"


def test_foreign_files_are_not_mixed_with(tmp_path: Path) -> None:
    fill(tmp_path, ["thesis.tex", "depth/a"], "mine")
    with pytest.raises(UserError, match="holds other files"), results(tmp_path, "mark"):
        pytest.fail("nothing may be computed")
    with results(tmp_path, "mark", overwrite=True) as folder:
        fill(folder, ["mark", "ply"], "2")
    assert files(tmp_path) == ["depth/a", "mark", "ply", "thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file"), results(tmp_path / "out", "mark"):
        pytest.fail("nothing may be computed")


def test_what_only_an_earlier_result_had_goes(tmp_path: Path) -> None:
    """Whatever verb made it; what is foreign among it stays."""
    target = tmp_path / "out"
    with results(target, MARK) as folder:
        (folder / "color").mkdir()
        for name in ("color/0.png", "sheet.png", MARK):
            (folder / name).write_text("earlier")
    (target / "notes.txt").write_text("mine")
    with results(target, MARK) as folder:
        (folder / "render").mkdir()
        (folder / MARK).write_text("later")
    assert sorted(path.name for path in target.iterdir()) == [MARK, "notes.txt", "render"]

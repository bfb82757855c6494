"""`pmsplat report` and `pmsplat leaderboard` from the command line."""

from pathlib import Path

import pytest

from pmsplat.cli import main
from tests.evaluate.results import gains, write_results


def test_a_report_of_two_and_a_site_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_results(tmp_path / "runs" / "a", gains(20, 21))
    second = write_results(tmp_path / "runs" / "b", gains(22, 23))
    report, site = tmp_path / "runs" / "a" / "report", tmp_path / "runs" / "site"
    words = ["report", str(first), str(second.parent), "--output", str(report)]
    assert main([*words, "--names", "small", "large one"]) == 0
    assert "| large one | 2 | **22.50** |" in (report / "table.md").read_text()
    for _ in range(2):  # the second time, the site's own copies do not count
        assert (
            main(["leaderboard", str(tmp_path / "runs"), str(first.parent), "--output", str(site)])
            == 0
        )
        assert len(list((site / "runs").glob("*/results.json"))) == 2
    assert str(site / "index.html") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["report", "absent.json"], "there is no file absent.json"),
        (["report", "broken.json"], "broken.json is no JSON"),
        (["report", "a", "large"], "pictures of 32 × 48 and 64 × 96"),
        (["report", "a", "b", "--names", "x"], "1 --names (x) for 2 files of results"),
        (["report", "a", "posed"], "protocols given and fitted"),
        (["report", "a", "far"], "no scene that 'small', 'far' have in common"),
        (["leaderboard", "empty"], "no results.json in empty"),
        (["leaderboard", "absent"], "no results.json in absent"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(Path("a"), gains(20))
    write_results(Path("b"), gains(20))
    write_results(Path("large"), gains(20), size=(64, 96))
    write_results(Path("posed"), gains(20), protocol="fitted")
    write_results(Path("far"), {"z": {"psnr": 20.0}}, "far")
    Path("broken.json").write_text("{")
    Path("empty").mkdir()
    assert main([*words, "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert wanted in said and said.count("\n") == 1
    assert not Path("out").exists()


def test_a_folder_in_place_of_which_there_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_results(tmp_path, gains(20))
    assert main(["report", str(path), "--output", str(path)]) == 2
    assert "is a file; wanted a folder" in capsys.readouterr().err

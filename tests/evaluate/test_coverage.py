"""How much of an index was measured: numbers that add up, shown, and never passed over."""

import json
from pathlib import Path

import pytest

from pmsplat.errors import UserError
from pmsplat.evaluate.coverage import Coverage, check_complete
from pmsplat.evaluate.pages.leaderboard import write_leaderboard
from pmsplat.evaluate.pages.report import write_report
from pmsplat.evaluate.runs import check_comparable, read_run
from tests.evaluate.results import gains, write_results

SHORT = Coverage(2, null=720, missing=3, damaged=2)


def test_numbers_add_up_and_come_back() -> None:
    assert (SHORT.listed, SHORT.wanted, SHORT.complete) == (727, 7, False)
    assert (
        SHORT.said
        == "2 of 7 scenes evaluated (3 missing, 2 damaged); 720 more without frames, as published"
    )
    assert Coverage.read(SHORT.describe()) == SHORT
    assert Coverage.read({}) is None
    assert Coverage.read({**SHORT.describe(), "listed": 9}) is None
    assert Coverage(6474, null=720).complete
    assert (
        Coverage(6474, null=720).said
        == "6,474 of 6,474 scenes evaluated; 720 more without frames, as published"
    )
    with pytest.raises(UserError, match=r"5 scenes of the index were not measured \(why\)"):
        check_complete(SHORT, "why")
    check_complete(Coverage(3, null=4, beyond=5), "")


def test_pages_say_what_is_lacking(tmp_path: Path) -> None:
    runs = [
        read_run(write_results(tmp_path / name, gains(20, 21), name, coverage=covered.describe()))
        for name, covered in (("a", SHORT), ("b", SHORT))
    ]
    page = write_report(tmp_path / "report", runs).read_text()
    assert (
        page.count(
            "2 of 7 scenes evaluated (3 missing, 2 damaged); 720 more without frames, as published"
        )
        >= 3
    )
    site = write_leaderboard(tmp_path / "site", runs).read_text()
    assert "2 of 7<" in site and "Not all scenes of the index" in site


def test_other_protocols_and_other_frames_are_refused(tmp_path: Path) -> None:
    def run(name: str, protocol: str | None, frames: str | None, index: str = "ab" * 32):
        about = {"index": {"protocol": protocol, "official": False, "frames": frames}}
        path = write_results(tmp_path / name, gains(20), name, index=index)
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | about))
        return read_run(path)

    first = run("x", "re10k-2v", "12")
    assert (first.protocol.title, first.protocol.official) == ("re10k-2v", False)
    check_comparable([first, run("y", "re10k-2v", "12", "cd" * 32)])  # the same frames, other file
    with pytest.raises(UserError, match="protocols re10k-2v and acid-2v"):
        check_comparable([first, run("y", "acid-2v", "34")])
    with pytest.raises(UserError, match="two indices"):
        check_comparable([first, run("y", "re10k-2v", "34")])

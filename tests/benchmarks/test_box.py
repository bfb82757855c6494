"""What the question about the small encoder counts and draws."""

from pathlib import Path

from benchmarks import box


def test_places_count_alike_however_many_windows_they_have() -> None:
    scenes = {"hall-000": {"psnr": 10.0}, "hall-001": {"psnr": 20.0, "abs_rel": 0.5}}
    places = box.by_place(scenes | {"tree": {"psnr": 30.0}})
    assert places == {"hall": {"psnr": 15.0, "abs_rel": 0.5}, "tree": {"psnr": 30.0}}


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    box.plot({"nearest photo": 14.0, "00060": 15.0, "01200": 17.0}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

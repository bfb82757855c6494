"""What a sweep leaves behind."""

import json
from pathlib import Path

import pytest

from pmsplat.evaluate.curve import Curve, Point


@pytest.mark.parametrize(("precision", "head"), [("float32", "model"), ("bf16", "model, bf16")])
def test_files_and_table_say_another_precision(tmp_path: Path, precision: str, head: str) -> None:
    point = Point("small", "2", 2, {"psnr": 20.0}, 3, 3, 100.0, "views-2/results.json")
    curve = Curve("context views", (point,), precision)
    curve.write(tmp_path, "rooms")
    assert (tmp_path / "sweep.md").read_text().startswith(f"| {head} | context views | ")
    assert json.loads((tmp_path / "sweep.json").read_text())["precision"] == precision
    assert curve.table().columns[0].header == head

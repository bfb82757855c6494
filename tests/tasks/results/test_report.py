"""The report: facts as they were measured, findings beyond the limits, advice that fits them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmsplat.data import synthetic
from pmsplat.evaluate.agreement import Agreement
from pmsplat.io.cameras.survey import LeftOut
from pmsplat.scene import Scene, chunk_scene
from pmsplat.scene.bounds import RangeSource
from pmsplat.tasks.results.report import (
    Given,
    Pass,
    Report,
    describe_report,
    examine,
    make_report,
)
from pmsplat.tasks.results.summary import write_summary
from pmsplat.zoo.published import ZOO
from pmsplat.zoo.trained import TrainedOn, trained_on

RE10K = TrainedOn((2, 2), (256, 256), "RE10K", (0.32, 2.2))
FINE = Agreement((0.8, 0.7), geometric=0.95, photometric=0.8, unmoved=0.1, angle=8.0, points=5000)
PASS = Pass(("a.jpg", "b.jpg"), FINE, 250.0, (1.0, 1.0), (1.0, 50.0), (1.6, 9.0), 0.01)
GIVEN = Given(10, (256, 256), 0.5, RangeSource.POINTS, RE10K)


@pytest.fixture(scope="module")
def room() -> Scene:
    return chunk_scene(synthetic.scene("room-agreement", 8, (96, 128)))


def report(agreement: dict | None = None, given: dict | None = None, **more) -> Report:
    part = replace(PASS, agreement=replace(FINE, **(agreement or {})), **more)
    return make_report([part], replace(GIVEN, **(given or {})))


def advice(found: Report) -> str:
    return " ".join(describe_report(found)[-max(1, len(found.findings)) :])


def test_no_advice_where_all_is_fine() -> None:
    fine = report()
    assert fine.findings == () and describe_report(fine)[-1] == "Nothing looks wrong."
    text = " ".join(describe_report(fine))
    for fact in ("70%", "8.0 degrees", "35 pixels", "Near 1 and far 50 come from sparse points"):
        assert fact in text
    assert "1.6 to 9" in text and "trained on RE10K with 2 views of 256x256" in text
    assert "95%" in text and "0.80" in text
    assert fine.parallax == pytest.approx(250 * math.tan(math.radians(8)))
    assert fine.baseline == (0.5, 0.5)  # in the unit of the model
    assert "is not known" in " ".join(describe_report(report(given={"trained_on": None})))


@pytest.mark.parametrize(
    ("found", "said", "helps"),
    [
        (report({"shares": (0.04, 0.05)}), "share too little (4%", "`views=4`"),
        (report({"shares": (0.04, 0.05)}, {"photos": 2}), "(4%", "closer together"),
        (report({"shares": (0.04, 0.05)}, {"named": True}), "(4%", "leave `context` out"),
        (report({"shares": (0.8, 0.1)}), "less than 30% of b.jpg", "closer together"),
        (report({"angle": 0.2}), "almost from one place (0.9 pixels", "farther apart"),
        (report(gaps=(20.0, 20.0)), "10 apart; the model was trained with 0.32 to 2.2", "closer"),
        (report(gaps=(0.2, 0.2)), "0.1 apart", "farther apart"),
        (report(given={"size": (720, 960)}), "720x960 and were 256x256", "`size=256x256`"),
        (report(at_near=0.5), "50% of the predicted depth lies at near, 1", "smaller near"),
        (report({"photometric": 0.1}), "do not match by the predicted depth (0.10)", "poses"),
        (report({"photometric": 0.5, "unmoved": 0.6}), "do not match", "poses"),
        (
            report({"photometric": 0.1}, {"range_source": RangeSource.CAMERAS}),
            "do not match",
            "'near' and 'far' in the camera file, which were guessed",
        ),
        (report({"geometric": 0.3}), "contradict each other at 70%", "closer together"),
    ],
)  # fmt: skip
def test_one_finding_says_what_and_what_helps(found: Report, said: str, helps: str) -> None:
    assert len(found.findings) == 1
    assert said in advice(found) and helps in advice(found)
    assert "Nothing looks wrong" not in advice(found)


def test_more_and_fewer_views_than_in_training() -> None:
    many = replace(PASS, names=tuple("abcdef"), agreement=replace(FINE, shares=(0.7,) * 6))
    found = make_report([many], GIVEN)
    assert "6 views at a time, and were at most 2" in advice(found) and "`views=2`" in advice(found)
    four = replace(GIVEN, trained_on=TrainedOn((4, 10), (256, 256), "DL3DV"))
    assert "`views=4`" in advice(make_report([PASS], four))
    assert make_report([many], replace(GIVEN, trained_on=None)).findings == ()


def test_photos_left_out_are_named_with_the_reason() -> None:
    lost = tuple(LeftOut(f"{i}.jpg", "the file is missing") for i in range(5))
    found = report(given={"left_out": lost})
    (line,) = (line for line in describe_report(found) if "Left out" in line)
    assert "0.jpg (the file is missing)" in line and line.endswith("and 2 more.")
    assert found.findings == ()


def test_views_that_share_nothing_compare_nothing(tmp_path: Path) -> None:
    nothing = Agreement((0.0, 0.0), *[math.nan] * 4, points=0)
    found = make_report([replace(PASS, agreement=nothing)], GIVEN)
    assert found.photometric is None and found.angle is None
    assert found.findings[0].problem.startswith("The views share too")
    write_summary(tmp_path, found)
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text and json.loads(text)["range_source"] == "sparse points"


def test_a_photo_of_two_passes_counts_where_it_is_seen_more() -> None:
    other = replace(PASS, names=("b.jpg", "c.jpg"), agreement=replace(FINE, shares=(0.2, 0.9)))
    found = make_report([PASS, other], GIVEN)
    assert found.shared == 0.7 and found.alone == ()


def test_a_room_with_exact_depth_looks_fine(room: Scene) -> None:
    views = room.views([0, 7])
    assert views.depth is not None
    part = examine(views, views.depth)
    found = make_report([part], Given(8, views.size, 1.0, room.range_source))
    assert found.findings == () and found.range_source is RangeSource.FILE
    gap = (views.cameras.c2w[0, 0, :3, 3] - views.cameras.c2w[0, 1, :3, 3]).norm().item()
    assert found.baseline == pytest.approx((gap, gap))
    known = views.depth[views.depth > 0]
    low, high = (known.quantile(q).item() for q in (0.01, 0.99))
    assert found.predicted == pytest.approx((low, high), rel=1e-3)


@pytest.mark.parametrize("fault", ["photos", "scale", "place"])
def test_a_room_with_a_fault_does_not(room: Scene, fault: str) -> None:
    views = room.views([0, 7])
    depth = views.depth
    assert depth is not None
    if fault == "photos":
        views = replace(views, images=views.images.flip(1))
    elif fault == "scale":
        depth = 0.6 * depth
    else:
        views = room.views([3, 3])
        depth = views.depth
        assert depth is not None
    problems = [f.problem for f in make_report([examine(views, depth)], GIVEN).findings]
    wanted = "almost from one place" if fault == "place" else "do not match"
    assert any(wanted in problem for problem in problems)


def test_a_range_that_is_too_far_is_found(room: Scene) -> None:
    """Depth that is stuck at near: everything is nearer."""
    views = room.views([0, 7])
    stuck = views.cameras.near[..., None, None].expand(1, 2, *views.size) * 1.01
    found = make_report([examine(views, stuck.contiguous())], GIVEN)
    assert found.at_near == 1 and any("lies at near" in f.problem for f in found.findings)


def test_what_published_models_learned_from() -> None:
    assert trained_on("depthsplat-gs-base-dl3dv-256x448-randview2-6") == TrainedOn(
        (2, 6), (256, 448), "RE10K, DL3DV"
    )
    assert trained_on("depthsplat-gs-small-re10k-256x256-view2") == RE10K
    for name in ZOO:
        found = trained_on(name)
        assert found is not None
        assert found.size is None or f"{found.size[0]}x{found.size[1]}" in name + "256x448 256x256"


def test_what_our_models_learned_from(tmp_path: Path) -> None:
    settings = {"name": "dl3dv", "settings": {"size": [64, 96], "views": [2, 5]}}
    (tmp_path / "config.json").write_text(json.dumps({"dataset": settings}))
    (tmp_path / "model.safetensors").touch()
    learned = TrainedOn((2, 5), (64, 96), "dl3dv")
    assert trained_on(tmp_path) == learned == trained_on(tmp_path / "model.safetensors")
    assert trained_on(tmp_path / "elsewhere" / "model.safetensors") is None
    parts = {
        "made": {"name": "scenery", "views": [2, 3], "sizes": [[128, 128], [144, 192], [192, 96]]},
        "real": {"name": "folder", "root": "/data/mine", "size": [96, 128], "share": 2},
        "none": {"name": "dl3dv", "root": "/data/dl3dv", "size": [256, 448], "share": 0},
    }
    mixed = {"dataset": {"name": "mix", "settings": {"parts": parts}}}
    (tmp_path / "config.json").write_text(json.dumps(mixed))
    assert trained_on(tmp_path) == TrainedOn((2, 3), (144, 192), "scenery and the scenes of mine")
    parts["real"].pop("size")  # then nobody knows
    (tmp_path / "config.json").write_text(json.dumps(mixed))
    assert trained_on(tmp_path) is None


def test_lengths_of_the_report_are_json(room: Scene) -> None:
    views = room.views([0, 7])
    assert views.depth is not None and torch.is_tensor(views.depth)
    found = make_report([examine(views, views.depth)], GIVEN)
    assert all(isinstance(value, float) for value in (*found.baseline, *found.predicted))

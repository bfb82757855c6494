"""results.json read back, named, and refused where numbers do not compare."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pmsplat.errors import UserError
from pmsplat.evaluate import report
from pmsplat.evaluate.protocol import Result, Row
from pmsplat.evaluate.runs import (
    check_comparable,
    check_replaces,
    common_scenes,
    find_runs,
    name_runs,
    read_run,
)
from tests.evaluate.results import HASH, gains, write_results


def test_what_the_protocol_writes_is_read_back(tmp_path: Path) -> None:
    rows = [Row("a", 3, {"psnr": 20.5, "lpips": float("nan")}), Row("b", 1, {"psnr": 30.0})]
    settings = {"index": "/data/some.json", "size": [256, 448]}
    about = {
        "model": "outputs/mine/model.safetensors",
        "steps": 2,
        "experiment": {"dataset": {"name": "dl3dv", "settings": settings}},
        "seconds": {"encode": 0.5},
        "protocol": "fitted",
        "poses": "da3",
    }
    report.write_json(tmp_path / "results.json", Result(rows, ("a note",)), about)
    run = read_run(tmp_path)
    assert [(row.scene, row.targets) for row in run.rows] == [("a", 3), ("b", 1)]
    assert [row.values for row in run.rows] == [{"psnr": 20.5}, {"psnr": 30.0}]
    assert run.means == {"psnr": 25.25}
    assert run.name == "mine" and run.notes == ("a note",)
    protocol = run.protocol
    assert (protocol.dataset, protocol.index, protocol.size) == ("dl3dv", "some.json", (256, 448))
    assert protocol.poses == "fitted" and run.facts == {"steps": "2", "poses": "da3"}
    assert run.cost == {"encode_seconds": 0.5} and run.views == [] and run.identity == {}


def test_views_identity_and_cost_where_the_file_has_them(tmp_path: Path) -> None:
    view = {"scene": "a", "view": "7", "psnr": 21.0, "ssim": None, "truth": "cd", "prediction": "e"}
    cost = {"gaussians": 1000, "encode_seconds": 0.1, "peak_bytes": None, "megabytes": 10**400}
    path = write_results(tmp_path, gains(20), views=[view], cost=cost)
    run = read_run(path)
    (row,) = run.views
    assert (row.view, row.values, row.truth) == ("7", {"psnr": 21.0}, "cd")
    assert run.identity == {"index": HASH, "commit": "c0ffee" * 6}
    assert run.cost == {"encode_seconds": 0.1, "render_seconds": 0.01, "gaussians": 1000.0}


def test_a_file_of_a_baseline_has_no_settings(tmp_path: Path) -> None:
    report.write_json(tmp_path / "plane_sweep.json", Result([Row("a", 1, {"psnr": 9.0})]), {})
    baseline = read_run(tmp_path / "plane_sweep.json")
    assert baseline.name == "plane sweep" and baseline.protocol.size is None
    check_comparable([baseline, read_run(write_results(tmp_path / "x", gains(20)))])


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("no json", "is no JSON"),
        ('{"means": {}, "model": "\\ud800"}', "is no JSON"),
        ("[1]", "has no 'means'"),
        ('{"means": {}}', "has no scene in 'per_scene'"),
        ('{"means": {}, "per_scene": [{"psnr": 1}]}', "something else than scenes"),
        ('{"means": {}, "per_scene": [{"scene": "a"}]}', "how many targets the scene 'a' has"),
        (
            '{"means": {}, "per_scene": [' + ", ".join(['{"scene": "a", "targets": 1}'] * 2) + "]}",
            "has the scene 'a' twice",
        ),
    ],
)
def test_what_is_no_file_of_results(content: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=wanted) as caught:
        read_run(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*results\.json"):
        read_run(tmp_path)
    with pytest.raises(UserError, match=r"no results\.json in"):
        find_runs(tmp_path)


def test_other_protocols_are_refused(tmp_path: Path) -> None:
    first = read_run(write_results(tmp_path / "a", gains(20, 21)))

    def refuse(match: str, scenes=None, **changes) -> None:
        other = read_run(write_results(tmp_path / "b", scenes or gains(22, 23), "other", **changes))
        with pytest.raises(UserError, match=match):
            check_comparable([first, other])

    refuse("protocols given and optimized-200", protocol="optimized-200")
    refuse("pictures of 32 × 48 and 64 × 48", size=(64, 48))
    refuse("two indices, index_2v.json .abababababab. and index_2v.json .cdcd", index="cd" * 32)
    refuse("no scene that 'small', 'other' have in common", {"z": {"psnr": 20.0}})


def test_another_photograph_is_refused(tmp_path: Path) -> None:
    def run(name: str, truth: str | None, target: str = "7"):
        view = {"scene": "a", "view": target, "psnr": 21.0, "truth": truth}
        return read_run(write_results(tmp_path / name, gains(20), name, [view]))

    for same in (run("y", "12"), run("y", None)):
        check_comparable([run("x", "12"), same])
    for other in (run("y", "34"), run("y", "12", target="8")):
        with pytest.raises(UserError, match="other photographs of scene 'a' in 'x' and 'y'"):
            check_comparable([run("x", "12"), other])


def test_scenes_in_common_are_those_of_all(tmp_path: Path) -> None:
    runs = [
        read_run(write_results(tmp_path / name, {scene: {"psnr": 1.0} for scene in scenes}))
        for name, scenes in (("x", "abcd"), ("y", "dcb"), ("z", "bxd"))
    ]
    assert common_scenes(runs) == ["b", "d"]
    assert [row.scene for row in runs[1].at(["b", "d"]).rows] == ["d", "b"]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    paths = [write_results(tmp_path / name, gains(20), model) for name, model in
             (("x", "small"), ("y", "small"), ("z", "base"))]  # fmt: skip
    runs = [read_run(path) for path in paths]
    assert [run.name for run in name_runs(runs)] == ["small (x)", "small (y)", "base"]
    assert [run.name for run in name_runs(runs, ["1", "2", "3"])] == ["1", "2", "3"]
    half = write_results(tmp_path / "w", gains(20), "base", identity={"precision": "bf16"})
    assert [run.name for run in name_runs([runs[2], read_run(half)])] == ["base", "base, bf16"]
    for names in (["1"], ["1", "1", "2"]):
        with pytest.raises(UserError, match="`names`"):
            name_runs(runs, names)


def test_results_are_found_below_a_folder(tmp_path: Path) -> None:
    write_results(tmp_path / "b" / "evaluation", gains(20))
    write_results(tmp_path / "a", gains(20))
    (tmp_path / "a" / "other.json").write_text(json.dumps({}))
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
    assert found == ["a/results.json", "b/evaluation/results.json"]


def test_only_the_same_model_protocol_and_scenes_are_replaced(tmp_path: Path) -> None:
    known = {"index": HASH, "precision": "float32"}
    old = write_results(tmp_path / "old", gains(20, 21), identity=known)

    def replacing(scenes: tuple[str, ...] = (), **more: Any) -> None:
        new = read_run(write_results(tmp_path / "new", gains(30, 31), **more))
        check_replaces(old, new, scenes)

    check_replaces(tmp_path / "none.json", read_run(old))
    replacing()
    replacing(("a", "b", "c"), seconds={})
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "base"}, "'small', not of 'base'"),
        ({"size": (64, 96)}, "32 × 48 and 64 × 96"),
        ({"index": "cd" * 32}, "two indices"),
        ({"protocol": "fitted"}, "given and fitted"),
        ({"identity": {"precision": "bf16"}}, "in float32, not in bf16"),
        ({"scenes": ("a", "c")}, "1 scene that this evaluation leaves out (b)"),
    )
    for more, said in changes:
        with pytest.raises(UserError, match=re.escape(said)) as error:
            replacing(**more)
        assert str(old) in str(error.value) and "another `output`" in str(error.value)
    old.write_text("[]")
    with pytest.raises(UserError, match="another `output`"):
        replacing()

"""The protocol on scenes whose metrics are known by hand; its report; its timers."""

import csv
import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pmsplat.errors import UserError
from pmsplat.evaluate import protocol, report
from pmsplat.evaluate.protocol import Result, Row
from pmsplat.evaluate.timing import Stopwatch
from pmsplat.render import rasterize
from pmsplat.types import Batch, Prediction, Rendering, StepOutput, Views
from tests.scenes import random_cameras, random_gaussians


def scene(name: str, targets: int, generator: torch.Generator, depth: bool = False) -> Batch:
    def views(count: int) -> Views:
        images = torch.rand(1, count, 3, 16, 20, generator=generator)
        known = 1 + torch.rand(1, count, 16, 20, generator=generator) if depth else None
        return Views(images, random_cameras(count, generator), depth=known)

    return Batch(views(2), views(targets), [name])


def off_by(*errors: float) -> protocol.Pipeline:
    """Answers target i with its image plus errors[i]: PSNR -20·log10(error), by definition."""

    def run(batch: Batch) -> StepOutput:
        offsets = torch.tensor(errors[: batch.target.images.shape[1]]).view(1, -1, 1, 1, 1)
        color = 0.5 + 0 * batch.target.images + offsets
        blank = torch.zeros_like(color[:, :, 0])
        depths = (2 * batch.context.depth,) if batch.context.depth is not None else ()
        return StepOutput(batch, Prediction(depths, ()), (Rendering(color, blank, blank),))

    return run


def grey(batch: Batch) -> Batch:
    half = torch.full_like(batch.target.images, 0.5)
    return Batch(batch.context, Views(half, batch.target.cameras), batch.scene)


def test_mean_over_targets_then_over_scenes(generator: torch.Generator) -> None:
    batches = [grey(scene("a", 1, generator)), grey(scene("b", 3, generator))]
    result = protocol.evaluate(off_by(0.1, 0.01, 0.001), batches)
    assert [(row.scene, row.targets) for row in result.rows] == [("a", 1), ("b", 3)]
    assert [row.values["psnr"] for row in result.rows] == pytest.approx([20, 40], abs=1e-4)
    assert result.means["psnr"] == pytest.approx(30, abs=1e-4)


def test_depth_is_measured_where_it_is_known(generator: torch.Generator) -> None:
    batches = [scene("with", 1, generator, depth=True), scene("without", 1, generator)]
    result = protocol.evaluate(off_by(0.1), batches)
    assert result.rows[0].values["abs_rel"] == pytest.approx(1.0)
    assert result.rows[0].values["delta1"] == 0.0
    assert "abs_rel" not in result.rows[1].values
    assert result.means["abs_rel"] == pytest.approx(1.0)


def test_depth_and_surface_are_those_of_the_views_spoken_of(generator: torch.Generator) -> None:
    """A prediction that is right of views 2 and 0, and of no others."""
    batch = scene("some", 1, generator)
    depth = 1 + torch.rand(1, 3, 16, 20, generator=generator)
    context = Views(torch.rand(1, 3, 3, 16, 20), random_cameras(3, generator), depth=depth)
    batch = replace(batch, context=context)
    right = Prediction((depth[:, [2, 0]],), (), views=torch.tensor([[2, 0]]))
    values = protocol.measure(StepOutput(batch, right, ()), geometry=True).values
    assert values["abs_rel"] == 0 and values["chamfer"] == 0 and values["delta1"] == 1
    wrong = replace(right, views=torch.tensor([[0, 2]]))
    values = protocol.measure(StepOutput(batch, wrong, ()), geometry=True).values
    assert values["abs_rel"] > 0.05 and values["chamfer"] > 0


def with_names(batch: Batch, context: tuple[str, ...], target: tuple[str, ...]) -> Batch:
    return Batch(
        replace(batch.context, names=(context,)), replace(batch.target, names=(target,)), ["a"]
    )


def test_psnr_apart_inside_and_outside_the_baseline(generator: torch.Generator) -> None:
    """An index with both; one target is a context view itself, one lies beyond either end."""
    batch = grey(scene("a", 4, generator))
    both = with_names(batch, ("000011", "000009"), ("000008", "000009", "000010", "000012"))
    values = protocol.evaluate(off_by(0.1, 0.01, 0.001, 0.01), [both]).rows[0].values
    assert values["psnr_outside"] == pytest.approx((20 + 40) / 2, abs=1e-4)
    assert values["psnr_inside"] == pytest.approx((40 + 60) / 2, abs=1e-4)
    assert values["psnr"] == pytest.approx(40, abs=1e-4)
    within = with_names(batch, ("000001", "000009"), ("000002", "000003", "000004", "000005"))
    files = with_names(batch, ("a.jpg", "b.jpg"), ("0.jpg", "1.jpg", "2.jpg", "3.jpg"))
    for other in (within, files, batch):
        values = protocol.evaluate(off_by(0.1, 0.1, 0.1, 0.1), [other]).rows[0].values
        assert set(values) == {"psnr", "ssim"}


def test_geometry_is_measured_if_asked(generator: torch.Generator) -> None:
    batch = scene("with", 1, generator, depth=True)
    plain = protocol.evaluate(off_by(0.1), [batch]).means
    assert not set(plain) & set(report.GEOMETRY)
    found = protocol.evaluate(off_by(0.1), [batch], geometry=True).means
    assert set(found) <= {*report.COLUMNS, *report.ALIGNED, *report.GEOMETRY}
    assert found["edge_abs_rel"] == pytest.approx(1)  # twice the depth, everywhere
    assert found["points"] == found["true_points"] == 2 * 16 * 20
    with pytest.raises(UserError, match=r"no true depth in scene 'without'.*leave out `geometry`"):
        protocol.evaluate(off_by(0.1), [scene("without", 1, generator)], geometry=True)


def depth_alone(batch: Batch) -> StepOutput:
    """Answers with depth a tenth too far where there is one to compare with, and draws nothing."""
    known = batch.context.depth
    depth = torch.ones_like(batch.context.images[:, :, 0]) if known is None else 1.1 * known
    return StepOutput(batch, Prediction((depth,), ()), ())


def test_a_model_that_predicts_depth_alone_is_measured_by_depth(generator: torch.Generator) -> None:
    batches = [scene("without", 1, generator), scene("with", 1, generator, depth=True)]
    result = protocol.evaluate(depth_alone, batches)
    known = {"abs_rel", "rmse", "delta1", *report.ALIGNED}
    assert [set(row.values) for row in result.rows] == [set(), known]
    assert result.means["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert result.means["delta1"] == 1.0


def test_depth_alone_without_depth_to_compare_with_is_told(generator: torch.Generator) -> None:
    blank = scene("b", 1, generator, depth=True)
    assert blank.context.depth is not None
    blank.context.depth.zero_()
    with pytest.raises(UserError, match=r"depth alone.*no known depth in 2 scenes.*another model"):
        protocol.evaluate(depth_alone, [scene("a", 1, generator), blank])


def test_pipeline_draws_every_level_of_a_model_in_any_number_of_pieces(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse, fine = (random_gaussians(20, generator) for _ in range(2))
    batch = scene("a", 5, generator)
    depth = torch.ones(1, 2, 16, 20)

    def model(views: Views) -> Prediction:
        return Prediction((depth, depth), (coarse, fine))

    watch = Stopwatch()
    whole = protocol.pipeline(model, "reference", [1.0, 0.5, 0.0], watch)(batch)
    monkeypatch.setattr(protocol, "TARGETS_AT_ONCE", 2)
    pieces = protocol.pipeline(model, "reference", [1.0, 0.5, 0.0])(batch)
    background = torch.tensor([1.0, 0.5, 0.0])
    want = rasterize(fine, batch.target.cameras, (16, 20), "reference", background)
    assert len(whole.renderings) == 2
    assert torch.equal(whole.renderings[1].color, want.color)
    for a, b in zip(whole.renderings, pieces.renderings, strict=True):
        assert torch.allclose(a.color, b.color) and torch.allclose(a.depth, b.depth)
    assert set(watch.take()) == {"encode", "render"}


def test_only_the_most_opaque_share_is_drawn_and_losses_see_all(generator: torch.Generator) -> None:
    coarse, fine = (random_gaussians(20, generator) for _ in range(2))
    batch, depth = scene("a", 2, generator), torch.ones(1, 2, 16, 20)

    def model(views: Views) -> Prediction:
        return Prediction((depth, depth), (coarse, fine))

    step = protocol.pipeline(model, "reference", drawn=protocol.Drawn(0.25))(batch)
    assert step.prediction.gaussians == (coarse, fine)
    for gaussians, rendering in zip((coarse, fine), step.renderings, strict=True):
        least = gaussians.opacities[0].sort().values[-5]
        seen = torch.where(gaussians.opacities < least, 0, gaussians.opacities)
        few = replace(gaussians, opacities=seen)
        want = rasterize(few, batch.target.cameras, (16, 20), "reference")
        torch.testing.assert_close(rendering.color, want.color)


def test_no_scene_is_an_error() -> None:
    with pytest.raises(UserError, match=r"found no scene.*check dataset\.root and dataset\.index"):
        protocol.evaluate(off_by(0.1), [])


@pytest.fixture
def lpips_not_sought() -> Iterator[None]:
    """As in a new process."""
    protocol.find_lpips.cache_clear()
    yield
    protocol.find_lpips.cache_clear()


@pytest.mark.usefixtures("lpips_not_sought")
def test_missing_lpips_weights_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def offline(address: str, *args: object, **kwargs: object) -> None:
        tried.append(address)
        raise ConnectionError

    monkeypatch.setattr(protocol.lpips_network, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    for _ in range(2):
        network, notes = protocol.find_lpips()
        assert network is None
        assert "LPIPS column is left out" in notes[0]
    assert len(tried) == 1  # which says that it downloads


def test_lpips_is_a_column_where_there_are_weights(
    generator: torch.Generator, shared: Path
) -> None:
    network, notes = protocol.find_lpips(shared / "weights" / "lpips_vgg16.npz")
    assert not notes
    result = protocol.evaluate(off_by(0.1, 0.2), [grey(scene("a", 2, generator))], lpips=network)
    assert 0 < result.means["lpips"] < 1


def a_result() -> Result:
    rows = [
        Row("a", 1, {"psnr": 20.0, "ssim": 0.5}),
        Row("b", 3, {"psnr": 30.0, "ssim": math.nan, "abs_rel": 0.25}),
    ]
    return Result(rows, ("The LPIPS column is left out: no weights.",))


def test_table_shows_means_and_dashes() -> None:
    other = Result([Row("a", 1, {"psnr": 10.0})])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table({"ours": a_result(), "copy": other}, "results"))
    text = console.export_text()
    assert "25.00" in text and "10.00" in text and "0.250" in text and "–" in text
    assert "left out" not in text  # it is told before scenes are measured


def test_geometry_has_a_table_of_its_own() -> None:
    result = Result([Row("a", 1, {"psnr": 20.0, "chamfer": 0.125, "points": 7, "flying": 0.25})])
    shown = []
    for columns in (report.COLUMNS, report.GEOMETRY):
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(report.table({"ours": result}, columns=columns))
        shown.append(console.export_text())
    assert "20.00" in shown[0] and "Chamfer" not in shown[0]
    assert "0.1250" in shown[1] and "0.250" in shown[1] and "PSNR" not in shown[1]


def test_json_and_csv_hold_every_scene(tmp_path: Path) -> None:
    report.write_json(tmp_path / "results.json", a_result(), {"model": "m"})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["means"]["psnr"] == 25.0 and content["model"] == "m"
    assert content["per_scene"][1] == {
        "scene": "b", "targets": 3, "psnr": 30.0, "ssim": None, "abs_rel": 0.25,
    }  # fmt: skip
    report.write_csv(tmp_path / "scenes.csv", a_result().rows)
    with (tmp_path / "scenes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scene"] for row in rows] == ["a", "b"]
    assert float(rows[0]["psnr"]) == 20.0


def test_a_first_scene_without_depth_leaves_that_of_the_others(tmp_path: Path) -> None:
    report.write_csv(tmp_path / "scenes.csv", a_result().rows)
    with (tmp_path / "scenes.csv").open() as file:
        assert [row["abs_rel"] for row in csv.DictReader(file)] == ["", "0.25"]


def test_a_stopwatch_adds_up_each_part_until_it_is_read() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch("wait"):
            time.sleep(0.01)
    taken = watch.take()
    assert taken.keys() == {"wait"} and 0.02 <= taken["wait"] < 0.1
    assert watch.take() == {}


def test_a_method_without_any_of_the_metrics_is_not_in_the_table() -> None:
    photo = Result([Row("a", 1, {"psnr": 10.0})])
    for geometry in ({"chamfer": 0.5}, dict.fromkeys(report.GEOMETRY, 0.5)):
        ours = Result([Row("a", 1, {"psnr": 20.0, **geometry})])
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(report.table({"photo": photo, "ours": ours}, columns=report.GEOMETRY))
        text = console.export_text()
        assert "ours" in text and "photo" not in text and "–" not in text


def test_lengths_come_back_in_the_unit_of_the_scene(generator: torch.Generator) -> None:
    batch = scene("a", 2, generator, depth=True)
    seen: list[Views] = []
    gaussians = random_gaussians(20, generator)

    class Model:
        near: float | None = 0.125

        def __call__(self, views: Views) -> Prediction:
            assert views.depth is not None
            seen.append(views)
            return Prediction((1.5 * views.depth,), (gaussians.scaled(views.cameras.near[:, 0]),))

    plain = protocol.pipeline(Model(), "reference")(batch)
    assert seen.pop() is batch.context
    scaled = protocol.pipeline(Model(), "reference", scale_near=True)(batch)
    assert float(seen.pop().cameras.near.min()) == pytest.approx(0.125)
    assert scaled.batch is batch
    torch.testing.assert_close(scaled.prediction.depths, plain.prediction.depths)
    torch.testing.assert_close(scaled.prediction.gaussians, plain.prediction.gaussians)
    again = protocol.pipeline(lambda _: scaled.prediction, "reference")(batch)
    torch.testing.assert_close(scaled.renderings, again.renderings, atol=2e-3, rtol=1e-3)
    assert protocol.measure(scaled).values["rmse"] == pytest.approx(
        protocol.measure(plain).values["rmse"], rel=1e-5
    )
    Model.near = None
    assert torch.equal(
        protocol.pipeline(Model(), "reference", scale_near=True)(batch).renderings[-1].depth,
        plain.renderings[-1].depth,
    )
    assert seen.pop() is batch.context  # no arithmetic at all


def test_means_of_some_scenes_say_so() -> None:
    rows = [
        protocol.Row("a", 1, {"psnr": 20.0, "abs_rel": 0.1, "rmse": 1.0, "lpips": 0.1}),
        protocol.Row("b", 1, {"psnr": 22.0, "lpips": 0.3}),
        protocol.Row("c", 1, {"psnr": 24.0}),
    ]
    assert protocol.describe_partial(rows[:1]) == ()
    depth, lpips = protocol.describe_partial(rows)
    assert depth.startswith("abs_rel, rmse: means of 1 of 3 scenes")
    assert lpips.startswith("lpips: mean of 2 of 3 scenes")

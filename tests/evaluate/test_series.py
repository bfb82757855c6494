"""An encoder with steps, which wants a world of its own: measured as by hand, step by step."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from pmsplat.contracts import take_steps
from pmsplat.evaluate import protocol, report
from pmsplat.evaluate.protocol import Result, Row
from pmsplat.evaluate.series import STEPS
from pmsplat.render import rasterize
from pmsplat.types import Batch, Cameras, Views
from tests.models.stepped import stepped
from tests.scenes import random_cameras

SIZE = (16, 20)


def a_batch(generator: torch.Generator, scenes: int = 1) -> Batch:
    def some(count: int) -> Views:
        images = torch.rand(scenes, count, 3, *SIZE, generator=generator)
        return Views(images, random_cameras(count, generator, scenes))

    return Batch(some(4), some(2), [f"scene {i}" for i in range(scenes)])


def align(batch: Batch) -> Batch:
    """As the authors of ReSplat do it: left-multiply every pose by the inverse of one."""
    inverse = torch.linalg.inv(batch.context.cameras.c2w[:, 2:3])

    def aligned(cameras: Cameras) -> Cameras:
        return replace(cameras, c2w=inverse @ cameras.c2w)

    context, target = batch.context, batch.target
    return Batch(
        replace(context, cameras=aligned(context.cameras)),
        replace(target, cameras=aligned(target.cameras)),
        batch.scene,
    )


def psnr(image: Tensor, target: Tensor) -> float:
    error = (image.clip(0, 1) - target).square().mean(dim=(2, 3, 4))
    return (-10 * error.log10()).mean().item()


def test_every_step_in_the_frame_of_the_middle_view_as_by_hand(generator: torch.Generator) -> None:
    model, batch = stepped(generator, near=None), a_batch(generator)
    run = protocol.pipeline(model, "reference", passes=protocol.Passes(3, True))
    (row,) = protocol.evaluate(run, [batch], each_step=True).rows
    seen = align(batch)
    for step in range(4):
        with torch.no_grad():
            gaussians = model(seen.context, steps=step).gaussians[-1]
            drawn = rasterize(gaussians, seen.target.cameras, SIZE, "reference")
        wanted = psnr(drawn.color, batch.target.images)
        assert row.values[f"psnr_step{step}"] == pytest.approx(wanted, abs=1e-3)
    assert row.values["psnr"] == row.values["psnr_step3"] != row.values["psnr_step0"]
    assert row.values["ssim"] == row.values["ssim_step3"]
    # The frame matters: its harmonics are those of the world that the model was shown.
    model.frame = "given"
    (other,) = protocol.evaluate(run, [batch], each_step=True).rows
    assert abs(other.values["psnr"] - row.values["psnr"]) > 0.01


def test_scenes_of_a_batch_and_of_any_unit(generator: torch.Generator) -> None:
    """Each in the frame of its own middle view; lengths come back in the unit of the scene."""
    model, batch = stepped(generator), a_batch(generator, 2)
    factor = torch.tensor([3.0, 0.2])
    run = protocol.pipeline(model, "reference", scale_near=True)
    first, second = run(batch), run(batch.scaled(factor))
    assert first.batch is batch and len(first.renderings) == 1
    torch.testing.assert_close(second.renderings[0].color, first.renderings[0].color)
    scaled = factor[:, None, None, None] * first.renderings[0].depth
    torch.testing.assert_close(second.renderings[0].depth, scaled)
    for i in range(2):
        alone = run(replace(batch.map(lambda x, i=i: x[i : i + 1]), scene=["alone"]))
        torch.testing.assert_close(alone.renderings[0].color[0], first.renderings[0].color[i])
    # What came back, drawn where the targets stand
    answer = first.prediction.gaussians[-1]
    wide = batch.target.cameras.with_range(1e-4, 1e4)
    again = rasterize(answer, wide, SIZE, "reference")
    torch.testing.assert_close(again.color, first.renderings[0].color, rtol=0, atol=2e-3)


def test_an_encoder_without_steps_is_called_with_views_alone() -> None:
    def encoder(views: Views) -> None:
        pass

    assert take_steps(encoder, None) is encoder  # pyright: ignore[reportArgumentType]
    assert take_steps(encoder, None, all_levels=True) is encoder  # pyright: ignore


def test_the_table_has_a_line_for_each_step(tmp_path: Path) -> None:
    levels = [{"psnr": 20.0 + i, "ssim": 0.5, "psnr_inside": 1.0, "rmse": 3.0} for i in range(12)]
    named = STEPS.names(dict(enumerate(levels)))
    assert named["psnr_step11"] == 31
    result = Result([Row("a", 2, {"psnr": 31.0, **named}), Row("b", 2, {"psnr": 33.0, **named})])
    table = STEPS.table(STEPS.rows(result.means), "after each step")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    assert "PSNR" in lines[2] and "LPIPS" not in lines[2]
    cells = [line.strip("│ ").split("│") for line in lines if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in cells] == [
        [str(step), f"{20 + step}.00", "0.500"] for step in range(12)
    ]
    assert STEPS.table(STEPS.rows({"psnr": 31.0})) is None
    # The main table does not have them, the files do.
    console.print(report.table({"ours": result}))
    assert "step" not in console.export_text()
    report.write_csv(tmp_path / "rows.csv", result.rows)
    assert "psnr_step11" in (tmp_path / "rows.csv").read_text()
    report.write_json(tmp_path / "results.json", result, {"steps": 11})
    assert json.loads((tmp_path / "results.json").read_text())["means"]["psnr_step4"] == 24

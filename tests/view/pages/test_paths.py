"""A camera path from above: against cameras whose plan is known."""

import math
import re
from pathlib import Path

import pytest
import torch

from pmsplat.view.pages.paths import draw_plan, look_down
from tests.evaluate.pages.html import Element, read_page


def look(yaw: float, place: tuple[float, float, float], pitch: float = 0.0) -> torch.Tensor:
    """A camera in a world with y down that looks along z, turned right by `yaw`, then down."""
    c, s = math.cos(yaw), math.sin(yaw)
    a, b = math.cos(pitch), math.sin(pitch)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    tilt = torch.tensor([[1, 0, 0], [0, a, b], [0, -b, a]])
    pose = torch.eye(4)
    pose[:3, :3] = turn @ tilt
    pose[:3, 3] = torch.tensor(place)
    return pose


def draw(folder: Path, c2w: torch.Tensor) -> Element:
    page = folder / "plan.html"
    page.write_text(draw_plan(look_down(c2w), "A <path>"))
    (svg,) = read_page(page).all("svg")
    return svg


def points(svg: Element, kind: str) -> torch.Tensor:
    (path,) = svg.all("path", class_=kind)
    numbers = re.findall(r"-?[\d.]+", (path.attributes["d"] or "").replace("h0", ""))
    return torch.tensor([float(number) for number in numbers]).reshape(-1, 2)


def test_the_first_camera_looks_up_the_page_and_right_is_right() -> None:
    c2w = torch.stack([look(0, (1, 5, 2)), look(math.pi / 2, (4, 5, 3)), look(0.3, (1, 9, 2))])
    plan = look_down(c2w)
    expected = torch.tensor([[0, 0], [3, 1], [0, 0]]).double()
    torch.testing.assert_close(plan.places, expected, atol=1e-6, rtol=0)
    ahead = torch.tensor([[0, 1], [1, 0]]).double()
    torch.testing.assert_close(plan.directions[:2], ahead, atol=1e-6, rtol=0)


def test_a_plan_does_not_depend_on_the_axes_of_the_world() -> None:
    generator = torch.Generator().manual_seed(0)
    c2w = torch.stack([look(0.5 * i, (i, 0.1 * i, i * i), 0.2) for i in range(6)])
    world = torch.eye(4)
    world[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    world[:3, :3] *= torch.linalg.det(world[:3, :3]).sign()
    world[:3, 3] = torch.tensor([3.0, -2.0, 7.0])
    torch.testing.assert_close(
        look_down(world @ c2w).places, look_down(c2w).places, atol=1e-4, rtol=0
    )


def test_a_camera_that_looks_down_has_a_short_tick() -> None:
    c2w = torch.stack([look(0, (0, 0, 0)), look(0, (0, 0, 1), pitch=math.radians(60))])
    lengths = look_down(c2w).directions.norm(dim=1)
    # What is up is the mean of both: 30 degrees from each.
    torch.testing.assert_close(lengths, torch.full((2,), math.cos(math.radians(30))).double())


def test_both_axes_have_one_scale_and_the_bar_has_it_too(tmp_path: Path) -> None:
    count = 40
    c2w = torch.stack(
        [
            look(2 * math.pi * i / count, (math.sin(0.15 * i), 0, 3 * math.cos(0.15 * i)))
            for i in range(count)
        ]
    )
    svg = draw(tmp_path, c2w)
    drawn, true = points(svg, "plan-path").double(), look_down(c2w).places
    drawn[:, 1] *= -1  # down the page
    spread = (drawn - drawn.mean(0)) / (true - true.mean(0))
    scale = float(spread[:, 1].median())
    torch.testing.assert_close(
        drawn - drawn.mean(0), scale * (true - true.mean(0)), atol=0.12, rtol=0
    )
    bar = svg.all("line", class_="plan-scale")[0].attributes
    length = float(svg.all("text")[0].text)
    assert float(bar["x2"] or "") - float(bar["x1"] or "") == pytest.approx(
        scale * length, rel=0.01
    )
    start = svg.all("circle")[0].attributes
    assert float(start["cx"] or "") == pytest.approx(
        float(points(svg, "plan-path")[0, 0]), abs=0.06
    )
    assert svg.attributes["aria-label"] == "A <path>"


@pytest.mark.parametrize("count", [1, 3])
def test_cameras_in_one_place_are_drawn_without_a_scale(tmp_path: Path, count: int) -> None:
    svg = draw(tmp_path, torch.stack([look(0.4 * i, (2, 2, 2)) for i in range(count)]))
    assert "nan" not in str(svg) and "inf" not in str(svg)
    assert len(svg.all("circle")) == 1
    assert not svg.all("text")


def test_cameras_that_all_look_straight_down_have_a_plan() -> None:
    c2w = torch.stack([look(0, (i, 0, 0), pitch=math.pi / 2) for i in range(3)])
    plan = look_down(c2w)
    assert plan.places.isfinite().all()
    assert float((plan.places[2] - plan.places[0]).norm()) == pytest.approx(2)

"""A camera path as it looks from above."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from .charts import draw_line, draw_text
from .markup import Markup, tag

WIDTH, HEIGHT, MARGIN = 280, 210, 26  # in units of the page's pixels
TICKS = 24  # most cameras whose direction is shown
TICK = 15  # length of a direction that is level
DOTS = 400  # most cameras that are dots

_CLEAR = 0.2  # how well cameras must agree about what is up


@dataclass(frozen=True)
class Plan:
    """Cameras seen from above: x to the right of the first camera, y ahead of it.

    `directions` are as long as they are level: 1 looks at the horizon, 0 straight down.
    """

    places: Float[Tensor, "frame 2"]
    directions: Float[Tensor, "frame 2"]


def look_down(c2w: Float[Tensor, "frame 4 4"]) -> Plan:
    """Cameras (OpenCV axes) seen from above, where above is what their photographs show above."""
    c2w = c2w.double()
    sky = -c2w[:, :3, 1].mean(dim=0)
    up = normalize(sky if float(sky.norm()) > _CLEAR else -c2w[0, :3, 1], dim=0)
    # Ahead is where the first camera looks; from one that looks down or up, where its picture does.
    level = [v - (v @ up) * up for v in (c2w[0, :3, 2], -c2w[0, :3, 1])]
    ahead = normalize(max(level, key=lambda v: float(v.norm())), dim=0)
    if float(level[0].norm()) > _CLEAR:
        ahead = normalize(level[0], dim=0)
    axes = torch.stack([torch.linalg.cross(ahead, up), ahead], dim=1)
    return Plan((c2w[:, :3, 3] - c2w[0, :3, 3]) @ axes, c2w[:, :3, 2] @ axes)


def draw_plan(plan: Plan, said: str) -> Markup:
    """The path with its start and end, directions as ticks, equal axes and a bar for the scale.

    `said` describes it to those who do not see it.
    """
    low, high = plan.places.amin(dim=0), plan.places.amax(dim=0)
    middle, extent = (low + high) / 2, (high - low).tolist()
    scale = min(
        (room - 2 * MARGIN) / size if size > 0 else math.inf
        for room, size in zip((WIDTH, HEIGHT - 14), extent, strict=True)
    )
    moves = math.isfinite(scale)
    x, y = ((plan.places - middle) * (scale if moves else 0.0)).unbind(dim=1)
    points = torch.stack([x + WIDTH / 2, (HEIGHT - 14) / 2 - y], dim=1).tolist()
    ticks = []
    count = len(points)
    for i in sorted({round(j * (count - 1) / (TICKS - 1)) for j in range(TICKS)}):
        (px, py), (dx, dy) = points[i], plan.directions[i].tolist()
        ticks.append(f"M{px:.1f} {py:.1f}l{TICK * dx:.1f} {-TICK * dy:.1f}")
    line = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    every = max(1, math.ceil(count / DOTS))
    dots = "".join(f"M{px:.1f} {py:.1f}h0" for px, py in points[::every])
    (sx, sy), (ex, ey) = points[0], points[-1]
    end = tag("rect", x=ex - 3.5, y=ey - 3.5, width=7, height=7, class_="plan-end")
    return tag(
        "svg",
        tag("path", d="".join(ticks), class_="plan-look"),
        tag("path", d=line, class_="plan-path"),
        tag("path", d=dots, class_="plan-dots"),
        end if count > 1 and moves else None,
        tag("circle", cx=sx, cy=sy, r=5, class_="plan-start"),
        _draw_scale(scale) if moves else None,
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said, class_="chart plan",
    )  # fmt: skip


def _draw_scale(scale: float) -> Markup:
    """A bar of a round length, about a quarter as wide as the plan."""
    rough = 0.25 * WIDTH / scale
    power = 10.0 ** math.floor(math.log10(rough))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= rough)
    end, y = 8 + length * scale, HEIGHT - 8
    bar = draw_line(8, end, y, y, "plan-scale")
    stops = [draw_line(x, x, y - 3.0, y + 3.0, "plan-scale") for x in (8.0, end)]
    return tag("g", bar, *stops, draw_text(end + 7, y + 4.0, f"{length:g}", "small"))

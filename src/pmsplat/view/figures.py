"""Pictures for people: depth in colour, sheets of labelled images, and curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..io.files import atomic
from ..io.images import to_uint8, write_image
from ..scene.bounds import central_depths

COLORMAP = "viridis"  # perceptually even, and readable by the colour-blind and in print
ERROR_COLORMAP = "Reds"  # from white
DIFFERENCE_COLORMAP = "magma"  # from black
MOST_DIFFERENCE = 0.25  # of colors in [0, 1]: what takes the last color
MARGIN, LABEL, FONT = 6, 22, 14  # pixels of a sheet: between images, for a label, of its letters


def color_range(depth: Float[Tensor, "*shape"]) -> tuple[float, float]:
    """The depths that take the first and the last color: 98 % of the known depths lie between.

    A range to share between pictures. 0 means no depth and is left out; (1, 2) where nothing is
    known.
    """
    known = depth[depth > 0].flatten()
    if not len(known):
        return 1.0, 2.0
    some = known[:: max(1, len(known) // 1_000_000)]
    near, far = central_depths(some.detach().float().cpu().numpy())
    return near, max(far, near * 1.001)


def colorize_depth(
    depth: Float[Tensor, "*batch height width"], near: float, far: float
) -> Float[Tensor, "*batch 3 height width"]:
    """Depth as colour in [0, 1], in even steps of inverse depth; 0 is black.

    Near is yellow, far is violet; depths outside [near, far] take the colour of the end. No
    gradient.
    """
    known = depth > 0
    inverse = 1 / torch.where(known, depth, torch.full_like(depth, far))
    level = ((inverse - 1 / far) / (1 / near - 1 / far)).clamp(0, 1).nan_to_num(0)
    return _colored(level, known, COLORMAP)


def colorize_confidence(
    confidence: Float[Tensor, "*batch height width"],
) -> Float[Tensor, "*batch 3 height width"]:
    """Confidence as colour in [0, 1], in even steps: 0 is violet, 1 is yellow. No gradient.

    Black where it is NaN.
    """
    known = ~confidence.isnan()
    return _colored(confidence.clamp(0, 1).nan_to_num(0), known, COLORMAP)


def colorize_error(
    depth: Float[Tensor, "*batch height width"],
    truth: Float[Tensor, "*batch height width"],
    most: float = 0.25,
) -> Float[Tensor, "*batch 3 height width"]:
    """|depth - truth| / truth as colour in [0, 1]: white is none, dark red is `most` or more.

    Black where the truth is unknown (0). No gradient.
    """
    known = truth > 0
    error = (depth - truth).abs() / torch.where(known, truth, torch.ones_like(truth))
    return _colored((error / most).clamp(0, 1), known, ERROR_COLORMAP)


def colorize_difference(
    image: Float[Tensor, "*batch 3 height width"],
    target: Float[Tensor, "*batch 3 height width"],
    most: float = MOST_DIFFERENCE,
) -> Float[Tensor, "*batch 3 height width"]:
    """|image - target|, the mean of the three colors, as color in [0, 1]. No gradient.

    Both clipped to [0, 1]. Black is none, then violet and orange; light yellow is `most` or more.
    """
    error = (image.clamp(0, 1) - target.clamp(0, 1)).abs().mean(dim=-3)
    known = torch.ones_like(error, dtype=torch.bool)
    return _colored((error / most).clamp(0, 1).nan_to_num(1), known, DIFFERENCE_COLORMAP)


def sample_colormap(name: str, count: int = 9) -> list[str]:
    """Colors of a colormap in even steps, as #rrggbb: for a legend."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colors = colormaps[name](np.linspace(0, 1, count))
    return [to_hex(color) for color in colors]


def colorize_normals(
    normals: Float[Tensor, "*batch height width 3"],
) -> Float[Tensor, "*batch 3 height width"]:
    """Unit normals in camera axes as colour in [0, 1]; zero (none) is black.

    Red grows to the right, green upwards, blue towards the camera, as textures of normals have it.
    """
    known = (normals != 0).any(dim=-1, keepdim=True)
    colors = (0.5 + 0.5 * normals * normals.new_tensor([1.0, -1.0, -1.0])) * known
    return rearrange(colors, "... h w c -> ... c h w")


def color_bar(
    near: float, far: float, height: int, width: int = 70
) -> Float[Tensor, "3 height width"]:
    """The legend of `colorize_depth`: a bar with depths written beside it, near at the top."""
    inverse = torch.linspace(1 / near, 1 / far, height)
    bar = colorize_depth((1 / inverse)[:, None].expand(height, width // 4), near, far)
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(_to_pil(bar), (0, 0))
    draw = ImageDraw.Draw(sheet)
    steps = max(2, height // 40)
    for i in range(steps):
        y = round((height - FONT) * i / (steps - 1))
        row = round((height - 1) * i / (steps - 1))
        text = f"{1 / inverse[row].item():.3g}"
        draw.text((width // 4 + 4, y - 2), text, fill="black", font=ImageFont.load_default(FONT))
    return rearrange(torch.from_numpy(np.array(sheet)).float() / 255, "h w c -> c h w")


def beside_bar(
    colored: Float[Tensor, "3 height width"], near: float, far: float
) -> Float[Tensor, "3 height wider"]:
    """A picture of `colorize_depth` with its legend at the right side."""
    height = colored.shape[1]
    gap = torch.ones(3, height, MARGIN)
    return torch.cat([colored, gap, color_bar(near, far, height)], dim=-1)


def contact_sheet(
    rows: list[tuple[str, list[Float[Tensor, "3 _ _"]]]], path: str | Path, height: int = 0
) -> None:
    """Writes a picture of labelled rows of images: (label, [image, ...]) from top to bottom.

    Images are RGB in [0, 1], clipped, on any device; sizes may differ. `height` scales every image
    to so many pixels (0: as they are). The file is complete or absent.
    """
    drawn = [(label, [_to_pil(image, height) for image in images]) for label, images in rows]
    widths = [sum(image.width + MARGIN for image in images) for _, images in drawn]
    heights = [LABEL + max((image.height for image in images), default=0) for _, images in drawn]
    font = ImageFont.load_default(FONT)
    text_width = max((font.getbbox(label)[2] for label, _ in drawn), default=0)
    width = max([*widths, int(text_width)]) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for (label, images), row_height in zip(drawn, heights, strict=True):
        draw.text((MARGIN, top + 2), label, fill="black", font=font)
        left = MARGIN
        for image in images:
            sheet.paste(image, (left, top + LABEL))
            left += image.width + MARGIN
        top += row_height
    write_image(path, np.array(sheet))


def _colored(level: Tensor, known: Tensor, colormap: str) -> Tensor:
    """Levels from 0 to 1 as colour; black where nothing is known."""
    from matplotlib import colormaps

    table = torch.tensor(colormaps[colormap](np.linspace(0, 1, 256))[:, :3])
    table = table.to(device=level.device, dtype=torch.float32)
    colors = table[(level.detach() * 255).round().long()] * known[..., None]
    return rearrange(colors, "... h w c -> ... c h w")


def _to_pil(image: Float[Tensor, "3 height width"], height: int = 0) -> Image.Image:
    picture = Image.fromarray(to_uint8(image))
    if height and picture.height != height:
        width = max(1, round(picture.width * height / picture.height))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture


def draw_curve(
    path: Path,
    points: Sequence[tuple[float, float]],
    labels: tuple[str, str],
    title: str,
    log: bool = False,
) -> None:
    """Writes points (x, y) as a line with marks, a PNG; `log`: x in steps of equal ratio."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    plot = figure.subplots()
    across, up = zip(*points, strict=True)
    plot.plot(across, up, marker="o", markersize=3)
    plot.set(xlabel=labels[0], ylabel=labels[1], title=title)
    if log:
        plot.set_xscale("log")
    plot.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


@dataclass(frozen=True)
class Line:
    """Points of one name in a diagram: places, values, and what the places are called."""

    name: str
    across: tuple[float, ...]
    up: tuple[float, ...]
    labels: tuple[str, ...]


def draw_panels(
    path: Path, panels: Sequence[tuple[str, Sequence[Line]]], across: str, title: str
) -> None:
    """Writes diagrams (heading, lines) side by side over one quantity, a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    plots = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.suptitle(title)
    for plot, (heading, lines) in zip(plots, panels, strict=True):
        marks = {}
        for line in lines:
            plot.plot(line.across, line.up, marker="o", markersize=4, label=line.name)
            marks |= dict(zip(line.across, line.labels, strict=True))
        plot.set(xlabel=across, ylabel=heading)
        plot.set_xticks(list(marks), list(marks.values()))
        plot.grid(alpha=0.3)
    if len(panels[0][1]) > 1:
        plots[0].legend(fontsize="small")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

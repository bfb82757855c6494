"""sheet.png: a few of the pictures at a glance, in labelled rows."""

from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...view import figures

COLUMNS, HEIGHT = 6, 200  # pictures of a row, and their height in pixels

Row = tuple[str, list[Float[Tensor, "3 _ _"]]]


def choose_columns(count: int) -> list[int]:
    """Indices of at most COLUMNS of so many pictures, spread over all."""
    return torch.linspace(0, count - 1, min(COLUMNS, count)).round().int().tolist()


def make_depth_row(
    what: str,
    colored: Iterable[Float[Tensor, "3 _ _"]],
    colors: tuple[float, float],
    height: int = HEIGHT,
) -> Row:
    """A row of depth in colours, with their near and far in the label and a legend at the end."""
    near, far = colors
    return f"{what}, {near:.3g} to {far:.3g}", [*colored, figures.color_bar(near, far, height)]


def make_confidence_row(confidence: Float[Tensor, "view height width"]) -> Row:
    """A row of how sure the network is of depth, in colours that the label explains."""
    colored = figures.colorize_confidence(confidence)
    return "confidence of the depth, from 0 (violet) to 1 (yellow)", list(colored)


def write_sheet(folder: Path, rows: list[Row], height: int = HEIGHT) -> None:
    """The sheet of a folder: rows from top to bottom, every picture `height` pixels high."""
    figures.contact_sheet(rows, folder / "sheet.png", height=height)

"""What an optimisation leaves behind: Gaussians, figures, plots, a sheet."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...io.cameras.ours import write_cameras
from ...io.cameras.survey import LeftOut
from ...io.gaussians.ply import save_ply
from ...types import NO_OFFSET, Cameras, Origin, Views
from ...view.figures import color_range, colorize_depth, contact_sheet, draw_curve
from ..results.depth_files import CAMERAS
from ..results.folder import MARK
from ..results.summary import write_summary
from ._fit import Fit, Moment

FILES = ("gaussians.ply", "sheet.png", "psnr.png", MARK)
PICTURED, SHEET_HEIGHT = 4, 240  # photos on the sheet, and their height in pixels


@dataclass(frozen=True)
class Summary:
    """What metrics.json says: `history` from before the first step to after the last.

    `size` is (height, width); `held_out` and `trained_on` count photos; `start_seconds` went by
    until there were Gaussians to start from; `seconds_per_step` is without the comparisons;
    `origin` is where zero lies in the world of the input.
    """

    start: str
    strategy: str
    antialiased: bool
    size: tuple[int, int]
    trained_on: int
    held_out: int
    start_seconds: float
    seconds_per_step: float
    history: tuple[Moment, ...]
    origin: Origin = NO_OFFSET
    left_out: tuple[LeftOut, ...] = ()

    @property
    def before(self) -> Moment:
        return self.history[0]

    @property
    def after(self) -> Moment:
        return self.history[-1]


def draw_pictures(fit: Fit, held_out: Views) -> UInt8[Tensor, "photo 3 height width"]:
    """Renderings of the first few held-out photos, 8 bits."""
    few = held_out.at(slice(0, PICTURED))
    drawn = torch.cat([rendering.color[0].cpu() for rendering in fit.draw(few)])
    return (drawn.clamp(0, 1) * 255).round().byte()


def write_results(
    folder: Path, fit: Fit, held_out: Views, start: dict[str, Any], summary: Summary
) -> None:
    """gaussians.ply, sheet.png, psnr.png and, last, metrics.json.

    `start` has the pictures `before` and what its Gaussians say is `up`, in the same world.
    """
    result = replace(fit.gaussians, origin=summary.origin, up=start["up"])
    save_ply(result, folder / "gaussians.ply")
    few = held_out.at(slice(0, PICTURED))
    drawn = list(fit.draw(few))
    depths = torch.cat([rendering.depth[0].cpu() for rendering in drawn])
    near, far = color_range(depths)
    rows = [
        ("held-out photo", list(few.images[0])),
        (f"before: {_describe(summary.before)}", list(start["before"].float() / 255)),
        (f"after: {_describe(summary.after)}", [r.color[0, 0].cpu() for r in drawn]),
        (f"depth, {near:.3g} to {far:.3g}", list(colorize_depth(depths, near, far))),
    ]
    contact_sheet(rows, folder / "sheet.png", height=SHEET_HEIGHT)
    title = f"from {summary.start}, strategy {summary.strategy}"
    points = [(moment.step, moment.psnr) for moment in summary.history]
    draw_curve(folder / "psnr.png", points, ("step", "PSNR of held-out photos, dB"), title)
    write_summary(folder, summary)


def write_all_cameras(
    folder: Path, train: Views, held_out: Views, origin: Origin, poses: str
) -> None:
    """cameras.json of all photos, named, the ones optimised on first, at the size of the run."""
    assert train.names is not None and held_out.names is not None
    names = train.names[0] + held_out.names[0]
    cameras = Cameras.joined([train.cameras, held_out.cameras])
    write_cameras(folder / CAMERAS, cameras, names, train.size, origin=origin, poses=poses)


def _describe(moment: Moment) -> str:
    return f"{moment.psnr:.2f} dB, SSIM {moment.ssim:.3f}, {moment.gaussians} Gaussians"

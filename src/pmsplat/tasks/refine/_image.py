"""Gaussians on a plane, fitted to one picture: all of splatting but the third dimension.

Read this first: it is the whole optimisation without photos to choose from, densification, or
state. One camera looks straight at the plane z = 1, on which lie the splats.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...evaluate.metrics import psnr, ssim
from ...geometry import sh
from ...io.files import write_text
from ...io.gaussians.ply import save_ply
from ...io.images import read_image
from ...render import rasterize
from ...scene.fit import fit_image as fit_pixels
from ...scene.fit import to_tensor
from ...types import Cameras, Gaussians
from ...view.figures import contact_sheet
from .._progress import Track, silently
from ..options import by, pick_device
from ..results.folder import MARK, make_whole
from ._cloud import Cloud, Parameters
from ._fit import choose_size, photometric
from ._report import SHEET_HEIGHT, curve

log = logging.getLogger(__name__)

COUNTS = (64, 256, 1024, 4096)  # splats of one fit after the other
FLAT = 1e-3  # thickness of a splat
OPACITY = 0.5  # at the start
WORLD = 10.0  # extent by which the steps over the plane are measured: splats are to travel


@dataclass(frozen=True)
class Fitted:
    """How close so many splats came to the picture."""

    splats: int
    psnr: float
    ssim: float


def fit_image(
    file: str | Path,
    output: str | Path,
    steps: int = 500,
    counts: tuple[int, ...] = COUNTS,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> tuple[Fitted, ...]:
    """Fits `counts` splats to a picture, one number after the other, and writes to `output`:

        gaussians.ply   of the last fit, in front of a camera that looks along +z from the origin
        error.png       PSNR over the number of splats
        sheet.png       the picture, and each fit
        metrics.json    `Fitted` of each

    The folder appears whole or not at all. Raises UserError for what the user can mend.
    """
    where = pick_device(device)
    if steps < 1:
        raise UserError(f"{steps} steps", "at least 1", "choose more")
    pixels = read_image(file)
    with make_whole(output, overwrite) as folder:
        size = choose_size(size, (pixels.shape[0], pixels.shape[1]), where)
        picture = to_tensor([fit_pixels(pixels, size)])[0, 0].to(where)
        tell(f"A picture of {by(size)} (height x width), {steps} steps for each fit, on {where}.")
        fitted, drawn, gaussians = [], [], None
        for count in counts:
            gaussians, image = fit_splats(picture, count, steps, seed, track)
            quality = Fitted(count, psnr(image, picture).item(), ssim(image, picture).item())
            tell(f"{count} splats: PSNR {quality.psnr:.2f} dB, SSIM {quality.ssim:.3f}")
            fitted.append(quality)
            drawn.append((f"{count} splats: {quality.psnr:.2f} dB", [image.cpu()]))
        assert gaussians is not None
        save_ply(gaussians, folder / "gaussians.ply")
        contact_sheet([("picture", [picture.cpu()]), *drawn], folder / "sheet.png", SHEET_HEIGHT)
        curve(
            folder / "error.png",
            [one.splats for one in fitted],
            [one.psnr for one in fitted],
            f"{Path(file).name}, {steps} steps",
            ("splats", "PSNR, dB"),
            logarithmic=True,
        )
        summary = {"size": list(size), "steps": steps, "fits": [asdict(one) for one in fitted]}
        write_text(folder / MARK, json.dumps(summary, indent=1) + "\n")
    return tuple(fitted)


def fit_splats(
    picture: Float[Tensor, "3 height width"], count: int, steps: int, seed: int, track: Track
) -> tuple[Gaussians, Float[Tensor, "3 height width"]]:
    """The splats (batch 1), and what they look like."""
    height, width = picture.shape[-2:]
    camera = looking_at_plane(height, width).to(picture.device)
    start = scattered(picture, count, torch.Generator().manual_seed(seed))
    cloud = Cloud(Parameters.of(start), WORLD, steps)
    for step in track(range(steps), f"fitting {count} splats", steps):
        rendering = rasterize(onto_plane(cloud.parameters.gaussians()), camera, (height, width))
        photometric(rendering.color[0, 0], picture).backward()
        cloud.update(step)
    with torch.no_grad():
        gaussians = onto_plane(cloud.parameters.gaussians()).detach()
        image = rasterize(gaussians, camera, (height, width)).color[0, 0]
    return gaussians, image


def looking_at_plane(height: int, width: int) -> Cameras:
    """One camera at the origin, to which the plane z = 1 shows its part |y| < 1/2."""
    K = torch.tensor([[height / width, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    near, far = torch.full((1, 1), 0.5), torch.full((1, 1), 2.0)
    return Cameras(torch.eye(4)[None, None], K[None, None], near, far)


def scattered(
    picture: Float[Tensor, "3 height width"], count: int, g: torch.Generator
) -> Gaussians:
    """Round splats at random places, in the colour of the picture there, large enough to cover."""
    height, width = picture.shape[-2:]
    place = torch.rand(count, 2, generator=g)
    column, row = (place * torch.tensor([width, height])).long().unbind(dim=-1)
    color = picture[:, row, column].T
    aspect = width / height
    xy = (place - 0.5) * torch.tensor([aspect, 1.0])
    return Gaussians(
        means=torch.cat([xy, torch.ones(count, 1)], dim=-1)[None],
        scales=torch.full((1, count, 3), 0.5 * (aspect / count) ** 0.5),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
        opacities=torch.full((1, count), OPACITY),
        sh=((color - 0.5) / sh.C0)[None, :, None],
    ).to(picture.device)


def onto_plane(gaussians: Gaussians) -> Gaussians:
    """The same splats, thin, on z = 1 and turned about z alone; no gradient leads off the plane."""
    on = gaussians.means.new_tensor([1.0, 1.0, 0.0])
    axis = gaussians.quats_wxyz.new_tensor([1.0, 0.0, 0.0, 1.0])
    return replace(
        gaussians,
        means=gaussians.means * on + (1 - on),
        scales=gaussians.scales * on + FLAT * (1 - on),
        quats_wxyz=torch.nn.functional.normalize(gaussians.quats_wxyz * axis, dim=-1),
    )

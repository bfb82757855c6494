"""Fits Gaussians on a plane to one picture: all of splatting but the third dimension.

    python scripts/fit_image.py photo.jpg photo-splats/ --steps 500 --counts 64 256 1024 4096

Read this first: it is a whole optimisation without cameras to choose from and without
densification. One camera looks straight at the plane z = 1, on which the splats lie. In the output
folder afterwards: gaussians.ply of the last fit, and sheet.png with the picture and every fit.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

import pmsplat
from pmsplat.cli import execute
from pmsplat.errors import UserError
from pmsplat.evaluate.metrics import psnr
from pmsplat.geometry import sh
from pmsplat.io.images import read_image
from pmsplat.losses.ssim import ssim
from pmsplat.scene.fit import fit_image, to_tensor
from pmsplat.view.figures import contact_sheet

LONGEST = 160  # pixels of the longer side, unless a size is given
FLAT = 1e-3  # thickness of a splat
OPACITY = 0.5  # at the start
D_SSIM = 0.2  # weight of 1 - SSIM beside the absolute difference
RATES = {"xy": 1.6e-3, "log_scales": 5e-3, "turn": 1e-3, "logits": 5e-2, "colors": 2.5e-3}
LAST = 0.01  # the learning rate of the places at the end, over that at the start


@dataclass(frozen=True)
class Fit:
    """How close the splats (batch 1) came to the picture, in dB, and what they look like."""

    gaussians: pmsplat.Gaussians
    image: Float[Tensor, "3 height width"]
    psnr: float


def main(argv: Sequence[str] | None = None) -> int:
    """Fits Gaussians; the exit codes are those of `pmsplat`."""
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("picture", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0)
    return execute(fit, parser.parse_args(argv))


def fit(arguments: argparse.Namespace) -> None:
    """Fits one number of splats after the other."""
    if any(number < 1 for number in [*arguments.counts, *(arguments.size or [])]):
        raise UserError("`counts` or `size` below 1", "whole numbers from 1", "such as `counts=64`")
    if arguments.output.is_file():
        raise UserError(f"{arguments.output} is a file", "a folder", "choose another output")
    pixels = read_image(arguments.picture)
    height, width = pixels.shape[:2]
    factor = min(1.0, LONGEST / max(height, width))
    size = tuple(arguments.size or (round(height * factor), round(width * factor)))
    picture = to_tensor([fit_image(pixels, size)])[0, 0]
    rows, last = [("picture", [picture])], None
    for count in arguments.counts:
        last = fit_splats(picture, count, arguments.steps, arguments.seed)
        rows.append((f"{count} splats: {last.psnr:.2f} dB", [last.image]))
        print(rows[-1][0], flush=True)
    assert last is not None
    arguments.output.mkdir(parents=True, exist_ok=True)
    pmsplat.save_ply(last.gaussians, arguments.output / "gaussians.ply")
    contact_sheet(rows, arguments.output / "sheet.png", height=240)


def fit_splats(picture: Float[Tensor, "3 height width"], count: int, steps: int, seed: int) -> Fit:
    """Moves splats by Adam until they look like the picture."""
    height, width = picture.shape[-2:]
    camera = look_at_plane(height, width)
    parameters = scatter(picture, count, torch.Generator().manual_seed(seed))
    adam = torch.optim.Adam(
        [{"params": [parameters[name]], "lr": rate} for name, rate in RATES.items()], eps=1e-15
    )
    for step in range(steps):
        adam.param_groups[0]["lr"] = RATES["xy"] * LAST ** (step / steps)
        image = pmsplat.rasterize(lay_on_plane(parameters), camera, (height, width)).color[0, 0]
        difference = (image - picture).abs().mean()
        loss = (1 - D_SSIM) * difference + D_SSIM * (1 - ssim(image, picture).mean())
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        gaussians = lay_on_plane(parameters)
        image = pmsplat.rasterize(gaussians, camera, (height, width)).color[0, 0]
    return Fit(gaussians, image, psnr(image, picture).item())


def look_at_plane(height: int, width: int) -> pmsplat.Cameras:
    """One camera at the origin, to which the plane z = 1 shows its part |y| < 1/2."""
    K = torch.tensor([[height / width, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    near, far = torch.full((1, 1), 0.5), torch.full((1, 1), 2.0)
    return pmsplat.Cameras(torch.eye(4)[None, None], K[None, None], near, far)


def scatter(
    picture: Float[Tensor, "3 height width"], count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters of round splats at random places, in the colour of the picture there."""
    height, width = picture.shape[-2:]
    place = torch.rand(count, 2, generator=generator)
    column, row = (place * torch.tensor([width, height])).long().unbind(dim=-1)
    aspect = width / height
    start = {
        "xy": (place - 0.5) * torch.tensor([aspect, 1.0]),
        "log_scales": torch.full((count, 2), 0.5 * (aspect / count) ** 0.5).log(),
        "turn": torch.tensor([1.0, 0.0]).repeat(count, 1),
        "logits": torch.full((count,), OPACITY).logit(),
        "colors": picture[:, row, column].T.clone(),
    }
    return {name: values.requires_grad_() for name, values in start.items()}


def lay_on_plane(parameters: dict[str, Tensor]) -> pmsplat.Gaussians:
    """The Gaussians (batch 1): thin, on z = 1, and turned about z alone."""
    xy, scales = parameters["xy"], parameters["log_scales"].exp()
    w, z = normalize(parameters["turn"], dim=-1).unbind(dim=-1)
    none, one = torch.zeros_like(w), torch.ones_like(w)
    return pmsplat.Gaussians(
        means=torch.stack([xy[:, 0], xy[:, 1], one], dim=-1)[None],
        scales=torch.stack([scales[:, 0], scales[:, 1], FLAT * one], dim=-1)[None],
        quats_wxyz=torch.stack([w, none, none, z], dim=-1)[None],
        opacities=parameters["logits"].sigmoid()[None],
        sh=((parameters["colors"] - 0.5) / sh.C0)[None, :, None],
    )


if __name__ == "__main__":
    sys.exit(main())

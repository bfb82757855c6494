"""Milliseconds and memory of drawing pixel-aligned Gaussians, forward and backward.

python benchmarks/run.py rasterize --size 256 --views 1 4 --backend cpu
    two context views of 256x256, so 131,072 Gaussians, drawn into 1 and into 4 views of 256x256

The Gaussians are as a trained network leaves them: standard deviations of 0.7 pixels in the median
(log-normal), opacities over the whole range, SH of degree 2, on a wavy surface 2 to 3 units away.
The forward time covers projection, colours and blending; the backward time all their gradients.
"""

import argparse
from typing import Any

from .measure import at_least


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--size", type=int, default=256, help="height and width (default: 256)")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4], help="(default: 1 4)")
    parser.add_argument("--backend", default="auto", help="a renderer (default: auto)")
    parser.add_argument("--repeats", type=at_least(1), default=11, help="timed calls (default: 11)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the figures by number of views."""
    results = {}
    print("views  forward ms (quartiles)  backward ms (quartiles)  peak MiB")
    for views in arguments.views:
        found = measure(arguments.size, views, arguments.backend, arguments.repeats)
        results[f"{views} views"] = found
        forward, backward = (
            "{median_ms:8.1f} ({low_ms:.1f}-{high_ms:.1f})".format(**found[key])
            for key in ("forward", "backward")
        )
        print(f"{views:5}  {forward:22}  {backward:23}  {found['peak_mib']}")
    return {
        "gaussians": 2 * arguments.size**2,
        "size": [arguments.size, arguments.size],
        "backend": arguments.backend,
        **results,
    }


def measure(size: int, views: int, backend: str, repeats: int) -> dict[str, Any]:
    """Forward and backward time and peak memory of drawing `views` views at once."""
    import torch

    from pmsplat.render import rasterize

    from .measure import figures, peak_mib, timed

    device = "cuda" if torch.cuda.is_available() and backend != "cpu" else "cpu"
    gaussians, cameras = scene(size, views)
    leaves = gaussians.to(device).map(lambda tensor: tensor.requires_grad_())
    cameras = cameras.to(device)
    background = torch.zeros(3, device=device)

    def draw() -> torch.Tensor:
        drawn = rasterize(leaves, cameras, (size, size), backend, background)
        return drawn.color.square().mean() + 0.1 * drawn.depth.mean()

    def step() -> None:
        leaves.map(lambda tensor: setattr(tensor, "grad", None) or tensor)
        draw().backward()

    forward = timed(lambda _: draw(), repeats)
    backward = timed(lambda loss: loss.backward(), repeats, prepare=draw)
    step()
    return figures({"forward": forward, "backward": backward}, peak_mib=peak_mib(step))


def scene(size: int, views: int) -> tuple[Any, Any]:
    """The Gaussians of two context views 0.3 units apart, and cameras between them."""
    import torch

    from pmsplat.geometry import camera, se3
    from pmsplat.types import Cameras, Gaussians

    generator = torch.Generator().manual_seed(0)
    count = size * size
    K = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1.0]])
    ahead, up = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, -1.0, 0.0])

    def looking_from(x: torch.Tensor, y: float) -> torch.Tensor:
        eye = torch.stack([x, torch.full_like(x, y), torch.zeros_like(x)], dim=-1)
        return se3.look_at(eye, ahead.expand_as(eye), up.expand_as(eye))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(1, 2 * count, *shape, generator=generator)

    u, v = camera.pixel_grid(size, size, K).unbind(dim=-1)
    z = 2.5 + 0.6 * torch.sin(9 * u) * torch.cos(7 * v)
    z = z - 0.8 * ((u - 0.5).square() + (v - 0.5).square() < 0.05)
    depth = z + 0.01 * torch.randn(2, size, size, generator=generator)
    means = camera.unproject_depth(depth, looking_from(torch.tensor([-0.15, 0.15]), 0.0), K)
    pixels = 0.7 * torch.exp(0.5 * noise(3))
    waves = torch.stack([torch.sin(size * u / 20), torch.cos(size * v / 17), torch.sin(u + v)], -1)
    sh = torch.cat([waves.reshape(1, count, 1, 3).repeat(1, 2, 1, 1), 0.1 * noise(8, 3)], dim=-2)
    gaussians = Gaussians(
        means=means.reshape(1, -1, 3),
        scales=pixels * depth.reshape(1, -1, 1) / (0.9 * size),
        quats_wxyz=torch.nn.functional.normalize(noise(4), dim=-1),
        opacities=torch.sigmoid(2 * noise()),
        sh=sh,
    )
    c2w = looking_from(torch.linspace(-0.1, 0.1, views) if views > 1 else torch.zeros(1), 0.03)
    edge = torch.full((1, views), 0.5)
    return gaussians, Cameras(c2w[None], K.repeat(1, views, 1, 1), edge, 200 * edge)

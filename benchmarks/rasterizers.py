"""Every renderer side by side: usable here or why not, license, accuracy, time and memory.

python benchmarks/run.py rasterizers --size 64 --json benchmarks/rasterizers.json
    8,192 Gaussians drawn into 2 views of 64x64 by every renderer that works on this machine

Errors are relative (norm of the difference over norm) to the reference in float64: the worst of
colour, depth and alpha, and the worst gradient of a loss on all three; the JSON has each of them.
They are taken where all renderers follow the same rules: opacities below 0.35, centred principal
points, nothing outside the field of view. Time and memory are those of `pmsplat benchmark
rasterize`.
"""

import argparse
from typing import Any

from .measure import at_least

IMAGES = ("color", "depth", "alpha")


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--size", type=int, default=64, help="height and width (default: 64)")
    parser.add_argument("--views", type=int, default=2, help="(default: 2)")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed calls (default: 5)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the figures by name."""
    from pmsplat import render

    found = {}
    print(f"{'renderer':14} {'license':24} error    gradient  forward ms  backward ms  peak MiB")
    for backend in render.backends():
        license = render.license(backend)
        problem = render.obstacle(backend, device_for(backend))
        label = f"{backend:14} {license:24}"
        if problem is not None:
            print(f"{label} not usable here: {problem.got}; wanted {problem.wanted}")
            found[backend] = {"license": license, "obstacle": str(problem)}
            continue
        figures = measure(backend, arguments.size, arguments.views, arguments.repeats)
        print(
            f"{label} {figures['error']:7.1e}  {figures['gradient_error']:8.1e}  "
            f"{figures['forward']['median_ms']:10.1f}  {figures['backward']['median_ms']:11.1f}  "
            f"{figures['peak_mib']}"
        )
        found[backend] = {"license": license, "obstacle": None, **figures}
    return {
        "gaussians": 2 * arguments.size**2,
        "size": [arguments.size, arguments.size],
        "views": arguments.views,
        "renderers": found,
    }


def device_for(backend: str) -> Any:
    """Where `backend` is measured: on the GPU if there is one, but for the renderer of the CPU."""
    import torch

    gpu = torch.cuda.is_available() and backend != "cpu"
    return torch.device("cuda" if gpu else "cpu")


def measure(backend: str, size: int, views: int, repeats: int) -> dict[str, Any]:
    """Accuracy, time and memory of one renderer.

    Where there is a GPU, memory is the GPU's; None for a renderer on the CPU.
    """
    import torch

    from . import rasterize

    device = device_for(backend)
    found = errors(backend, device, size, views)
    figures = rasterize.measure(size, views, backend, repeats)
    if torch.cuda.is_available() and device.type == "cpu":
        figures["peak_mib"] = None
    return {
        "device": device.type,
        "error": max(found[name] for name in IMAGES),
        "gradient_error": max(found[name] for name in found.keys() - set(IMAGES)),
        "errors": found,
        **figures,
    }


def errors(backend: str, device: Any, size: int, views: int) -> dict[str, float]:
    """Relative errors of images and gradients beside the reference in float64."""
    import torch

    got = _images_and_gradients(backend, device, torch.float32, size, views)
    wanted = _images_and_gradients("reference", torch.device("cpu"), torch.float64, size, views)
    return {
        name: float((got[name] - at).norm() / at.norm())
        for name, at in wanted.items()
        if at.norm() > 0
    }


def _images_and_gradients(
    backend: str, device: Any, dtype: Any, size: int, views: int
) -> dict[str, Any]:
    """Colour, depth, alpha, and the gradient to every parameter, in float64 on the CPU."""
    from dataclasses import fields, replace

    import torch

    from pmsplat.render import rasterize

    from .rasterize import scene

    gaussians, cameras = scene(size, views)
    gaussians = replace(gaussians, opacities=0.35 * gaussians.opacities).to(dtype).to(device)
    leaves = gaussians.map(lambda tensor: tensor.requires_grad_())
    drawn = rasterize(leaves, cameras.to(dtype).to(device), (size, size), backend)
    images = {name: getattr(drawn, name) for name in IMAGES}
    flat = torch.cat([image.flatten() for image in images.values()])
    (flat * torch.arange(len(flat), device=device).to(dtype).sin()).mean().backward()
    parameters = {f.name: getattr(leaves, f.name) for f in fields(leaves)}
    gradients = {
        f"d {name}": _gradient(leaf)
        for name, leaf in parameters.items()
        if isinstance(leaf, torch.Tensor)
    }
    return {name: at.detach().double().cpu() for name, at in (images | gradients).items()}


def _gradient(leaf: Any) -> Any:
    """What a backward pass left; zeros, which are as wrong, where a renderer leaves nothing."""
    return leaf.grad if leaf.grad is not None else 0 * leaf

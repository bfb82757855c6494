"""Milliseconds and memory of exact nearest neighbours between two point maps.

python benchmarks/run.py neighbors --size 256 448 --views 6 --noise 0.02
    688,128 points of a surface, searched for by the same points displaced by 2 % of their depth

Compares ours, with and without the grid, with scipy's KD-tree (with as many threads,
always on the CPU) and, where it is installed, pytorch3d. The error is the largest by which a
squared distance found exceeds the least that any of them found, relative to it.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

from .measure import at_least


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument(
        "--size", type=int, nargs=2, default=[256, 256], help="height width (default: 256 256)"
    )
    parser.add_argument("--views", type=int, default=2, help="maps in a set (default: 2)")
    parser.add_argument(
        "--noise", type=float, default=0.02, help="displacement, as a part of depth (default: 0.02)"
    )
    parser.add_argument("--repeats", type=at_least(1), default=7, help="timed calls (default: 7)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the figures by method.

    Raises UserError where there would be no points or no calls.
    """
    import torch

    from pmsplat.errors import UserError

    height, width = arguments.size
    if min(height, width, arguments.views, arguments.repeats) < 1:
        raise UserError(
            f"--size {height} {width} --views {arguments.views} --repeats {arguments.repeats}",
            "at least 1 of each",
            "give greater numbers",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sets = maps(arguments.views, height, width, arguments.noise)
    points, reference = (one.to(device) for one in sets)
    found, squared = {}, {}
    for name, search in methods(points, reference, (height, width)).items():
        found[name], squared[name] = measure(search, points, reference, arguments.repeats)
    least = torch.stack([*squared.values()]).amin(dim=0).clamp_min(1e-300)
    print("method         ms (quartiles)             peak MiB   error")
    for name, figures in found.items():
        figures["error"] = float((squared[name] / least - 1).max())
        time = "{median_ms:8.1f} ({low_ms:.1f}-{high_ms:.1f})".format(**figures["search"])
        print(f"{name:13}  {time:26} {figures['peak_mib']}   {figures['error']:.1e}")
    return {"points": len(points), "size": arguments.size, "noise": arguments.noise, **found}


def maps(views: int, height: int, width: int, noise: float) -> Any:
    """Displaced points, wrongly aligned by 2 %, and the surface with a jump that they come from."""
    import torch

    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    z = 2 + 0.5 * torch.sin(5 * x) + 0.4 * torch.cos(4 * y) + 1.5 * (x > 0.6) * (y < 0.5)
    surface = torch.stack([(x - 0.5) * z * width / height, (y - 0.5) * z, z], dim=-1)
    shift = 0.3 * torch.arange(views)[:, None, None, None] * torch.tensor([1.0, 0.1, 0.2])
    reference = (surface + shift).reshape(-1, 3)
    step = noise * reference[:, 2:] * torch.randn(reference.shape, generator=generator)
    return 1.02 * (reference + step) + torch.tensor([0.05, -0.03, 0.04]), reference


def methods(points: Any, reference: Any, grid: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """What can be measured here: each gives the indices of the nearest."""
    import torch
    from scipy.spatial import KDTree

    from pmsplat.kernels import neighbors

    threads = torch.get_num_threads()
    some, others = points.cpu().numpy(), reference.cpu().numpy()
    found: dict[str, Callable[[], Any]] = {
        "ours, grid": lambda: neighbors.nearest(points, reference, grid),
        "ours": lambda: neighbors.nearest(points, reference),
        "scipy": lambda: torch.from_numpy(KDTree(others).query(some, workers=threads)[1]),
    }
    if importlib.util.find_spec("pytorch3d") is not None:
        ops = importlib.import_module("pytorch3d.ops")
        found["pytorch3d"] = lambda: ops.knn_points(points[None], reference[None]).idx[0, :, 0]
    return found


def measure(
    search: Callable[[], Any], points: Any, reference: Any, repeats: int
) -> tuple[dict[str, Any], Any]:
    """Time and peak memory, and the squared distances found, in float64."""
    from .measure import figures, peak_mib, timed

    timing = timed(lambda _: search(), repeats, warm_up=1)
    chosen = reference[search().to(reference.device)]
    squared = (points.double() - chosen.double()).square().sum(dim=-1).cpu()
    return figures({"search": timing}, peak_mib=peak_mib(search)), squared

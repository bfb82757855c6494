"""Milliseconds of what a network of points adds to a step: search for neighbors, and attention.

python benchmarks/run.py points --size 64 112 128 240 --views 8 --near 8 16
    57,344 and 245,760 points of a surface that eight depth maps show, each with 8 and 16 neighbors

Search: ours, scipy's KD-tree (with as many threads, always on the CPU), and torch comparing all
pairs where there are not too many. The error is the largest by which a squared distance found
exceeds that of the KD-tree, relative to it: below 1e-6, sets differ in ties only. Attention of 64
channels: ours, and the definition in torch, which gathers chunk by chunk; float32, forward, and
backward with the inversion of the table; peak memory is of both together.
"""

import argparse
from collections.abc import Callable
from typing import Any

from .measure import at_least


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument(
        "--size", type=int, nargs="+", default=[28, 48, 64, 112, 128, 240],
        help="height width of the maps, one or several (default: 28 48 64 112 128 240)",
    )  # fmt: skip
    parser.add_argument("--views", type=int, default=8, help="maps in a set (default: 8)")
    parser.add_argument(
        "--near", type=int, nargs="+", default=[8, 16], help="neighbors of a point (default: 8 16)"
    )
    parser.add_argument("--channels", type=int, default=64, help="of a point (default: 64)")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="timed calls (default: 5)")
    parser.add_argument(
        "--pairs", type=float, default=4e9, help="most pairs that are all compared (default: 4e9)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the figures by number of points and of neighbors.

    Raises UserError where sizes are no pairs, or there would be no points or no calls.
    """
    import torch

    from pmsplat.errors import UserError

    from .neighbors import maps

    size = arguments.size
    if len(size) % 2 or min(*size, arguments.views, arguments.repeats) < 1:
        raise UserError(
            f"--size {' '.join(map(str, size))} --views {arguments.views} "
            f"--repeats {arguments.repeats}",
            "heights and widths by turns, and at least 1 of each",
            "give as many widths as heights, and greater numbers",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {}
    print("points     k  what      method   ms (quartiles)")
    for height, width in zip(size[::2], size[1::2], strict=True):
        points = maps(arguments.views, height, width, 0.0)[1].to(device)
        for k in arguments.near:
            row = found[f"{len(points)} points, k = {k}"] = search(points, k, arguments)
            table = row.pop("table")
            row |= attention(table.to(device)[None], arguments)
            for what in ("search", "forward", "backward"):
                for method, figures in row[what].items():
                    time = "{median_ms:9.1f} ({low_ms:.1f}-{high_ms:.1f})".format(**figures)
                    print(f"{len(points):7}  {k:4}  {what:8}  {method:7} {time}")
    return {"views": arguments.views, "channels": arguments.channels, **found}


def search(points: Any, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and error of each search, and the table that ours finds."""
    import torch
    from scipy.spatial import KDTree

    from pmsplat.kernels import neighbors

    from .measure import figures, timed

    threads, array = torch.get_num_threads(), points.cpu().numpy()
    methods: dict[str, Callable[[], Any]] = {
        "scipy": lambda: torch.from_numpy(
            KDTree(array).query(array, k, workers=threads)[1].reshape(-1, k)
        ),
        "ours": lambda: neighbors.k_nearest(points, points, k),
    }
    if len(points) ** 2 <= arguments.pairs:
        methods["pairs"] = lambda: compare_all(points, k)
    result, exact, table = {}, None, None
    for name, method in methods.items():
        repeats = 1 if name == "pairs" else arguments.repeats
        timing = timed(lambda _, method=method: method(), repeats, warm_up=repeats > 1)
        table = method().cpu()
        chosen = points.cpu()[table].double()
        squared = (points.cpu().double()[:, None] - chosen).square().sum(dim=-1).sort().values
        exact = squared if exact is None else exact
        excess = (squared - exact) / exact.clamp_min(1e-300)
        result[name] = figures({"time": timing}, error=float(excess.max()))
        result[name] |= result[name].pop("time")
    return {"search": result, "table": methods["ours"]()}


def compare_all(points: Any, k: int) -> Any:
    """The indices of the `k` nearest, from the distances of all pairs, some rows at a time."""
    import torch

    rows = max(1, 2**24 // len(points))
    parts = [
        torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        .topk(k, dim=1, largest=False)
        .indices
        for some in points.split(rows)
    ]
    return torch.cat(parts)


def attention(table: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of both passes and peak memory, by method."""
    import torch

    from pmsplat.kernels.neighbor_attention import attend_by_torch, attend_neighbors

    from .measure import figures, peak_mib, timed

    generator = torch.Generator().manual_seed(0)
    shape = (1, table.shape[1], 3 * arguments.channels)
    qkv = torch.randn(shape, generator=generator).to(table.device).requires_grad_()
    result: dict[str, Any] = {"forward": {}, "backward": {}, "peak_mib": {}}
    for name, attend in (("ours", attend_neighbors), ("torch", attend_by_torch)):

        def forward(_: Any = None, attend: Callable[..., Any] = attend) -> Any:
            return attend(*qkv.chunk(3, dim=2), table)

        def backward(out: Any) -> Any:
            return torch.autograd.grad(out, qkv, torch.ones_like(out))

        with torch.no_grad():
            result["forward"][name] = figures({"time": timed(forward, arguments.repeats)})["time"]
        timing = timed(backward, arguments.repeats, prepare=forward)
        result["backward"][name] = figures({"time": timing})["time"]
        result["peak_mib"][name] = peak_mib(lambda f=forward: backward(f()))
    return result

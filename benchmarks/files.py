"""Reading, writing and drawing a million Gaussians: seconds and memory of every file format.

python benchmarks/run.py files --json benchmarks/files.json
    a scene at random (harmonics of degree 3) as every format that can be written here; each is
    written, read, and at last one picture is drawn, in processes of their own

Peak memory is what a process holds above what it held before: of writing, above the Gaussians.
"""

import argparse
from pathlib import Path
from typing import Any

from .measure import at_least

FORMATS = (".ply", ".compressed.ply", ".splat", ".spz", ".glb", ".usdc")


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--count", type=int, default=1_000_000, help="(default: a million)")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument(
        "--size", type=int, nargs=2, default=[533, 800], help="of the picture (default: 533 800)"
    )
    parser.add_argument("--repeats", type=at_least(1), default=3, help="timed calls (default: 3)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a row per format; gives the figures by name."""
    import multiprocessing
    import tempfile
    from concurrent.futures import ProcessPoolExecutor

    spawning = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {}
    title = f"{arguments.count:,} Gaussians"
    print(f"{title:20} file MB  write s  peak MiB   read s  peak MiB")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in arguments.formats:
            path = Path(folder) / f"scene{suffix}"
            row: dict[str, Any] = {}
            for job in (write, read):
                with ProcessPoolExecutor(1, mp_context=spawning) as alone:
                    row |= alone.submit(job, path, arguments).result()
            row["bytes"] = path.stat().st_size
            path.unlink()
            found[suffix] = row
            written, back = row["write"]["median_ms"] / 1e3, row["read"]["median_ms"] / 1e3
            print(
                f"{suffix:20} {row['bytes'] / 1e6:7.1f}  {written:7.2f}  "
                f"{row['write_peak_mib']:8}  {back:7.2f}  {row['read_peak_mib']:8}"
            )
    with ProcessPoolExecutor(1, mp_context=spawning) as alone:
        found["draw"] = alone.submit(drawn, arguments).result()
    seconds, peak = found["draw"]["draw"]["median_ms"] / 1e3, found["draw"]["draw_peak_mib"]
    height, width = arguments.size
    print(f"one picture of {height}x{width}: {seconds:.2f} s, peak {peak} MiB")
    return {"count": arguments.count, "size": arguments.size, "formats": found}


def write(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of writing the scene."""
    from pmsplat.io.gaussians import save_gaussians

    from .measure import figures, peak_mib, timed

    scene = gaussians(arguments.count)
    peak = peak_mib(lambda: save_gaussians(scene, path))
    timing = timed(lambda _: save_gaussians(scene, path), arguments.repeats, warm_up=0)
    return figures({"write": timing}, write_peak_mib=peak)


def read(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of reading it again."""
    from pmsplat.io.gaussians import load_gaussians

    from .measure import figures, peak_mib, timed

    peak = peak_mib(lambda: load_gaussians(path))
    timing = timed(lambda _: load_gaussians(path), arguments.repeats, warm_up=0)
    return figures({"read": timing}, read_peak_mib=peak)


def drawn(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of drawing it: colour, depth and alpha."""
    import torch

    from pmsplat.cli import _heap
    from pmsplat.render import rasterize
    from pmsplat.types import Cameras

    from .measure import figures, peak_mib, timed, use_threads

    _heap.keep()
    use_threads(arguments.threads)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    height, width = arguments.size
    K = torch.tensor([[1.0, 0, 0.5], [0, width / height, 0.5], [0, 0, 1]])[None, None]
    ones = torch.ones(1, 1)
    cameras = Cameras(torch.eye(4)[None, None], K, 0.1 * ones, 100 * ones).to(place)
    scene = gaussians(arguments.count).to(place)

    @torch.no_grad()
    def draw(_: object = None) -> None:
        rasterize(scene, cameras, (height, width))

    draw()
    timing = timed(draw, arguments.repeats, warm_up=1)
    return figures({"draw": timing}, draw_peak_mib=peak_mib(draw))


def gaussians(count: int) -> Any:
    """A cloud of small Gaussians in front of the camera, as a trained scene is: most are small."""
    import torch

    from pmsplat.types import Gaussians

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, count, *shape, generator=generator)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(1, count, *shape, generator=generator)

    depth = 2 + 8 * uniform(1)
    means = torch.cat([(uniform(2) - 0.5) * depth, depth], dim=-1)
    return Gaussians(
        means=means,
        scales=depth * 0.002 * (0.5 * normal(3)).exp(),
        quats_wxyz=torch.nn.functional.normalize(normal(4), dim=-1),
        opacities=uniform(),
        sh=torch.cat([normal(1, 3), 0.1 * normal(15, 3)], dim=-2),
    )

"""What PM-Loss makes of a teacher's wrong pixels, and its share of a training step.

python benchmarks/run.py pointmap --plot outliers.png
    a prediction without fault beside a teacher of whom a growing share of pixels is wrong, whole
    squares of them: the loss should stay 0. Then training steps of DepthSplat with random weights,
    tiny at 64x80 and small at 256x256, two context views and four targets, without the term; the
    term forward and backward on a prediction 2 % off its teacher; and its share of both together

Loss and alignment are root mean squares in percent of the size of the scene.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import at_least

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
VARIANTS = {
    "published": {},
    "trimmed": {"trim": 0.45},
    "robust": {"robust": 20},
    "robust, trimmed": {"robust": 20, "trim": 0.45},
}
TINY = {
    "vit": "none", "scales": 2, "planes": 32, "width": 32, "transformer_layers": 0,
    "head_width": 32, "sh_degree": 0, "scale_unit": "pixel",
}  # fmt: skip
STEPS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "tiny": ((64, 80), TINY),
    "small": ((256, 256), {}),
}


@dataclass(frozen=True)
class Outcome:
    """Of one variant at one share of wrong pixels, in percent of the size of the scene."""

    share: float
    loss: float
    alignment: float  # how far the right pixels of the teacher come to lie from where they belong


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument(
        "--models", nargs="*", default=list(STEPS), choices=list(STEPS), help="(default: all)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=[64, 80], help="of the teacher's maps (default: 64 80)"
    )
    parser.add_argument("--repeats", type=at_least(1), default=7, help="timed calls (default: 7)")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="a PNG of loss over wrong pixels")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints two tables; gives the figures, and writes the plot if asked to."""
    from dataclasses import asdict

    curves = {name: curve(tuple(arguments.size), options) for name, options in VARIANTS.items()}
    print("loss (alignment) in % of the scene, by share of wrong pixels")
    print(f"{'':16}" + "".join(f"{share:>16.0%}" for share in SHARES))
    for name, points in curves.items():
        cells = (f"{p.loss:.3f} ({p.alignment:.3f})" for p in points)
        print(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells))
    if arguments.plot is not None:
        plot(curves, arguments.plot)
    steps = {}
    if arguments.models:
        print("step           step ms   term ms   share   robust, trim 0.1: ms   share")
    for name in arguments.models:
        size, settings = STEPS[name]
        found = steps[name] = measure(size, settings, arguments.repeats)
        print(
            f"{name:6} {size[0]}x{size[1]:<4} {found['step']['median_ms']:9.1f} "
            f"{found['published']['median_ms']:9.1f} {found['share']:7.1%} "
            f"{found['robust']['median_ms']:22.1f} {found['robust share']:7.1%}"
        )
    return {
        "size": list(arguments.size),
        "outliers": {name: [asdict(point) for point in points] for name, points in curves.items()},
        "steps": steps,
    }


def curve(size: tuple[int, int], options: dict[str, Any]) -> list[Outcome]:
    """A variant of the loss on teachers with more and more wrong pixels."""
    from math import sqrt

    import torch

    from pmsplat.geometry import align, se3
    from pmsplat.losses.pointmap import pointmap_loss

    truth = surface(*size)
    extent = truth.flatten(1, 3).std(dim=1).norm().item()
    found = []
    for share in SHARES:
        teacher, right = spoiled(truth, share)
        with torch.no_grad():
            loss = pointmap_loss(truth, teacher, clip=None, **options).item()
            source, goal = teacher.flatten(1, 3), truth.flatten(1, 3)
            even = torch.ones_like(goal[..., 0])
            rounds = options.get("robust", 0)
            weights = align.trusted(align.umeyama, source, goal, even, rounds)
            aligned = se3.transform(align.umeyama(source, goal, weights), source)
            off = (aligned - goal)[right.flatten(1)].square().sum(dim=-1).mean().sqrt().item()
        found.append(Outcome(share, 100 * sqrt(loss) / extent, 100 * off / extent))
    return found


def surface(height: int, width: int, views: int = 2) -> Any:
    """World points of a wavy wall with a block before it, seen by cameras side by side."""
    import torch

    from pmsplat.geometry import camera

    K = torch.tensor([[0.9, 0, 0.5], [0, 0.9 * width / height, 0.5], [0, 0, 1]])
    u, v = camera.pixel_grid(height, width, K).unbind(dim=-1)
    block = ((u - 0.5).abs() < 0.2) & ((v - 0.5).abs() < 0.25)
    depth = 2.5 + 0.6 * torch.sin(9 * u) * torch.cos(7 * v) - 0.8 * block
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, 0, 3] = 0.3 * torch.arange(views)
    return camera.unproject_depth(depth.expand(views, -1, -1), c2w, K)[None]


def spoiled(truth: Any, share: float) -> tuple[Any, Any]:
    """The teacher's map of it, in a frame of its own, and which pixels of it are right.

    Wrong ones come in squares of 8 pixels, each moved as a whole by up to the size of the scene.
    """
    import torch

    from pmsplat.geometry import gaussian, se3

    generator = torch.Generator().manual_seed(0)
    _, views, height, width, _ = truth.shape
    rows, columns = -(-height // 8), -(-width // 8)
    order = torch.rand(views * rows * columns, generator=generator).argsort().argsort()
    wrong = (order < round(share * order.numel())).view(views, rows, columns)
    shift = 2 * torch.randn(views, rows, columns, 3, generator=generator)
    shift[..., 2] += 3  # things are mostly taken to be farther than they are: reflections, sky

    def spread(tiles: torch.Tensor) -> torch.Tensor:
        return tiles.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]

    moved = truth + torch.where(spread(wrong)[..., None], spread(shift), 0)
    quat = torch.tensor([0.8, 0.4, -0.3, 0.2])
    motion = se3.compose(0.3 * gaussian.quat_to_rotation(quat), torch.tensor([1.0, -2.0, 0.5]))
    return se3.transform(motion, moved.flatten(0, 3)).view_as(truth), ~spread(wrong)[None]


def plot(curves: dict[str, list[Outcome]], path: Path) -> None:
    """Both figures of every variant over the share of wrong pixels."""
    from matplotlib.figure import Figure

    from pmsplat.io.files import atomic

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, title in (
        (left, "loss", "the loss of a prediction without fault"),
        (right, "alignment", "how far right pixels are misaligned"),
    ):
        for label, points in curves.items():
            values = [getattr(point, name) for point in points]
            dashed = "--" if "trim" in VARIANTS[label] else "-"
            axes.plot([100 * p.share for p in points], values, dashed, marker="o", label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("wrong pixels of the teacher, %")
        axes.set_ylabel("% of the scene's size")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def measure(size: tuple[int, int], settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """A training step without the term, the term forward and backward, and its share of both."""
    import torch

    from pmsplat import registry
    from pmsplat.evaluate import protocol
    from pmsplat.losses import Term
    from pmsplat.losses.pointmap import pointmap_loss
    from pmsplat.train.step import training_step
    from pmsplat.types import Batch

    from .encoder import photographs
    from .measure import figures, timed

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = registry.build("models", "depthsplat", settings).to(device).train()
    batch = Batch(photographs(2, *size), photographs(4, *size), ["scene"]).to(device)
    pipeline, terms = protocol.pipeline(model), {"mse": Term(registry.build("losses", "mse"))}

    def step() -> None:
        model.zero_grad(set_to_none=True)
        training_step(pipeline, batch, terms, 0).loss.backward()

    teacher = surface(*size).to(device)
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    points = teacher + 0.02 * teacher.std() * noise.to(device)
    points.requires_grad_()

    def term(**options: Any) -> None:
        (0.005 * pointmap_loss(points, teacher, **options).mean()).backward()

    whole = timed(lambda _: step(), repeats)
    alone = timed(lambda _: term(), repeats)
    robust = timed(lambda _: term(**VARIANTS["robust"], trim=0.1), repeats)
    return figures(
        {"step": whole, "published": alone, "robust": robust},
        share=round(alone.median_ms / (alone.median_ms + whole.median_ms), 4),
        **{"robust share": round(robust.median_ms / (robust.median_ms + whole.median_ms), 4)},
    )

"""What PM-Loss does to an encoder: trained with it and without, from the same seeds.

python benchmarks/run.py teaching --output pm-loss/
    on procedural rooms; the teacher is their depth, blurred, noisy, coarse and with holes
python benchmarks/run.py teaching --scene office/ --output pm-loss-office/
    on photos with sensor depth, cut into walks of ten photos; every fourth walk is for measuring

A tiny DepthSplat and a tiny MVSplat are trained for the same number of steps on colour alone
("colour"); on colour and, from half-way on, PM-Loss as published, with weight 0.005, since it is
made for pretrained encoders ("term"); and on colour and PM-Loss with a robust alignment and the
largest tenth of the distances left out ("robust"). Measured on walks never seen: PSNR between the
two context views and beyond them, points, edges and normals of their depth against the true one.
The table has the mean over the seeds and, behind ±, the standard deviation; "gain" is that of the
differences seed by seed. boundary.png shows one view with many edges. A run that is in the output
folder is not run again.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .measure import make_once, spread
from .pointmap import TINY as DEPTHSPLAT

TEACHER = {"blur": 1.5, "downsample": 2, "noise": 0.03, "holes": 0.1}
"""How the teacher's depth is made worse (foundation/teachers/given.py)."""
TINY: dict[str, dict[str, Any]] = {
    "depthsplat": DEPTHSPLAT,
    "mvsplat": {"planes": 32, "width": 32, "transformer_layers": 1, "sh_degree": 0},
}  # fmt: skip
COLOR = "colour"  # the variant without PM-Loss, as the JSON files spell it
VARIANTS: dict[str, dict[str, Any] | None] = {  # options of PM-Loss, by the keys of the JSON files
    COLOR: None,
    "term": {},
    "robust": {"robust": 20, "trim": 0.1},
}
WEIGHT, LATE = 0.005, 0.5  # of PM-Loss, and the share of the steps without it
COLUMNS = {  # metric: (its name in the table, decimals)
    "psnr_inside": ("PSNR inside", 2),
    "psnr_outside": ("outside", 2),
    "abs_rel": ("AbsRel", 3),
    "edge_abs_rel": ("at edges", 3),
    "flying": ("flying", 3),
    "normals": ("normals", 3),
    "accuracy": ("accuracy", 3),
    "completeness": ("completeness", 3),
}
RATE = 2e-3  # learning rate; with twice as much MVSplat does not converge
ROOMS = (64, 16)  # training and test scenes
WALK, EVERY = 10, 4  # photos of a walk; one walk in so many is for measuring


@dataclass(frozen=True)
class Plan:
    """What is common to all runs."""

    output: Path
    scene: str | None
    size: tuple[int, int]
    steps: int

    @property
    def data(self) -> Path:
        return self.output / "data"


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--scene", metavar="SCENE", help="posed photos with depth (default: rooms)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--models", nargs="*", default=list(TINY), choices=list(TINY), help="(default: both)"
    )
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="(all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--steps", type=int, default=1000, help="of each run (default: 1000)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[48, 64], help="height width (default: 48 64)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is not trained yet; prints the table, draws the boundary; gives every value."""
    from pmsplat.errors import UserError

    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}", "at least 1", "leave it out for 3")
    height, width = arguments.size
    plan = Plan(arguments.output, arguments.scene, (height, width), arguments.steps)
    make_data(plan)
    figures: dict[str, Any] = {}
    for model in arguments.models:
        for variant in arguments.variants:
            figures[f"{model}/{variant}"] = [
                measured(plan, model, variant, seed) for seed in range(arguments.seeds)
            ]
    print(table(figures))
    draw(plan, arguments.models, arguments.variants)
    return figures


def make_data(plan: Plan) -> None:
    """Chunks in DIR/data, and an index whose targets lie on both sides of the baseline's ends.

    Raises UserError where other data stand there, and for a scene that is too short.
    """
    source = None if plan.scene is None else str(Path(plan.scene).resolve())
    made = {"scene": source, "size": list(plan.size)}
    make_once(plan.data, made, partial(write_data, plan=plan))


def write_data(data: Path, plan: Plan) -> None:
    """The same into a folder that is not there yet."""
    import json

    import torch

    from pmsplat.data import make_outside_index, synthetic, to_chunk_scene, write_index
    from pmsplat.errors import UserError
    from pmsplat.io.chunks import INDEX, append
    from pmsplat.scene import open_scene

    if plan.scene is None:
        synthetic.write(data, ROOMS[0], 16, plan.size, 0, "train")
        synthetic.write(data, ROOMS[1], 16, plan.size, 0, "test")
        gap, length = 6, 16
    else:
        scene = open_scene(plan.scene)
        if not scene.has_depth:
            raise UserError(
                f"{plan.scene} has no depth", "a scene with sensor depth", "choose another scene"
            )
        walks = len(scene) // WALK
        if walks < EVERY:
            raise UserError(
                f"{len(scene)} photos in {plan.scene}",
                f"at least {EVERY * WALK}, to learn from three walks and measure on a fourth",
                "choose a longer scene",
            )
        for number in range(walks):
            frames = range(number * WALK, (number + 1) * WALK)
            key = f"walk-{number:02d}"
            split = "test" if number % EVERY == EVERY - 1 else "train"
            append(data / split, [to_chunk_scene(scene, key, plan.size, frames)])
        gap, length = 3, WALK
    keys = json.loads((data / "test" / INDEX).read_text())
    generator = torch.Generator().manual_seed(0)
    write_index(
        data / "index.json",
        make_outside_index(
            dict.fromkeys(keys, length), gap, 2, 4, 2, generator, between=min(gap - 1, 3)
        ),
    )


def experiment(plan: Plan, model: str, variant: str, seed: int) -> Any:
    """One run."""
    from pmsplat import registry
    from pmsplat.data import folder
    from pmsplat.foundation.teachers import given
    from pmsplat.losses import mse, pointmap
    from pmsplat.train import optim
    from pmsplat.train.settings import Component, Experiment, LossTerm, TeacherSettings, Trainer

    gap = [4, 6] if plan.scene is None else [2, 4]
    dataset = folder.Config(
        root=str(plan.data), index=str(plan.data / "index.json"), size=list(plan.size),
        scale_near=False, views=[2, 2], target_views=2, extrapolate=1, gap=gap,
    )  # fmt: skip
    losses = {"mse": LossTerm("mse", settings=mse.Config())}
    options = VARIANTS[variant]
    if options is not None:
        first, options = int(LATE * plan.steps), pointmap.Config(**options)
        losses["pointmap"] = LossTerm("pointmap", WEIGHT, first, options)
    settings = registry.module("models", model).Config(**TINY[model])
    return Experiment(
        name=f"{model}-{variant}-{seed}",
        model=Component(model, settings),
        dataset=Component("folder", dataset),
        loss=losses,
        teacher=None if options is None else TeacherSettings("given", given.Config(**TEACHER)),
        optimizer=optim.Config(lr=RATE),
        trainer=Trainer(
            steps=plan.steps, batch_size=2, workers=0, accelerator="cpu", precision="float32",
            checkpoint_every=plan.steps, validate_every=0, log_every=10, loggers=["csv"],
        ),
        seed=seed,
        output=str(plan.output / "runs" / f"{model}-{variant}-{seed}"),
    )  # fmt: skip


def measured(plan: Plan, model: str, variant: str, seed: int) -> dict[str, float]:
    """The means over the unseen walks, of this run or of an earlier one with the same settings."""
    import json
    import shutil
    from dataclasses import asdict

    from pmsplat import registry, train
    from pmsplat.evaluate import protocol
    from pmsplat.io.files import write_text
    from pmsplat.zoo.load import load

    run = experiment(plan, model, variant, seed)
    done, settings = Path(run.output) / "measured.json", json.loads(json.dumps(asdict(run)))
    if done.is_file() and (found := json.loads(done.read_text()))["experiment"] == settings:
        return found["means"]
    if Path(run.output).is_dir():
        shutil.rmtree(run.output)
    checkpoint = train.run(run)
    dataset = registry.build("data", run.dataset.name, run.dataset.settings)
    pipeline = protocol.pipeline(load(checkpoint).eval())
    means = protocol.evaluate(pipeline, dataset.evaluation(), geometry=True).means
    write_text(done, json.dumps({"experiment": settings, "means": means}, indent=1) + "\n")
    return means


def table(figures: dict[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over the seeds; under each variant its gain over colour alone."""
    lines = [f"{'':24}" + "".join(f"{name:>18}" for name, _ in COLUMNS.values())]
    for key, runs in figures.items():
        model, variant = key.split("/")
        lines.append(f"{key:24}" + "".join(_cell([r[m] for r in runs], d) for m, d in _metrics()))
        without = figures.get(f"{model}/{COLOR}")
        if variant != COLOR and without is not None:
            gains = {m: [a[m] - b[m] for a, b in zip(runs, without, strict=True)] for m in COLUMNS}
            lines.append(f"{'  gain':24}" + "".join(_cell(gains[m], d, "+") for m, d in _metrics()))
    return "\n".join(lines)


def _metrics() -> list[tuple[str, int]]:
    return [(metric, decimals) for metric, (_, decimals) in COLUMNS.items()]


def _cell(values: list[float], decimals: int, sign: str = "") -> str:
    return f"{spread(values, decimals, sign):>18}"


def draw(plan: Plan, models: list[str], variants: list[str]) -> None:
    """boundary.png: the unseen view with most edges, as each variant's first seed sees its depth.

    A row for the photo, the true depth and the teacher's, and normals of both; for each model one
    of depths, one of normals and one of the points that fly (red) among those near edges (white).
    """
    import torch

    from pmsplat import registry
    from pmsplat.evaluate import geometry
    from pmsplat.foundation.teachers import given
    from pmsplat.geometry import camera
    from pmsplat.view import figures
    from pmsplat.zoo.load import WEIGHTS, load

    run = experiment(plan, models[0], COLOR, 0)
    dataset = registry.build("data", run.dataset.name, run.dataset.settings)
    batches = list(dataset.evaluation())
    edges = [geometry.discontinuities(batch.context.depth).sum(dim=(-1, -2)) for batch in batches]
    most = max(range(len(batches)), key=lambda i: int(edges[i].max()))
    batch, view = batches[most], int(edges[most].argmax())
    truth = batch.context.depth[0, view]
    near, far = figures.color_range(truth)
    pointmap = given.Given(given.Config(**TEACHER))(batch.context)
    w2c = torch.linalg.inv(batch.context.cameras.c2w[0, view])
    z = pointmap.points[0, view] @ w2c[2, :3] + w2c[2, 3]

    def colored(depth: torch.Tensor) -> torch.Tensor:
        return figures.colorize_depth(depth, near, far)

    def bent(depth: torch.Tensor) -> torch.Tensor:
        return figures.colorize_normals(camera.normals(depth, batch.context.cameras.K[0, view]))

    known = torch.where(pointmap.mask[0, view], z, 0)
    photo = batch.context.images[0, view]
    rows = [
        ("photo | true depth, its normals | the teacher's",
         [photo, colored(truth), bent(truth), colored(known), bent(known)]),
    ]  # fmt: skip
    for model in models:
        depths, normals, flying = [], [], []
        for variant in variants:
            folder = Path(experiment(plan, model, variant, 0).output)
            network = load(folder / WEIGHTS).eval()
            with torch.no_grad():
                depth = network(batch.context).depths[-1][0, view]
            depths.append(colored(depth))
            normals.append(bent(depth))
            flying.append(_flying_picture(depth, truth))
        title = f"{model}: {' | '.join(variants)}"
        rows += [
            (f"{title}: depth", depths),
            ("normals", normals),
            ("points in the air between surfaces", flying),
        ]
    figures.contact_sheet(rows, plan.output / "boundary.png", height=240)


def _flying_picture(depth: Any, truth: Any) -> Any:
    import torch

    from pmsplat.evaluate import geometry

    edges = geometry.near_edges(depth, truth)
    white, red = torch.ones(3), torch.tensor([1.0, 0.1, 0.1])
    picture = torch.where(edges.band[..., None], white, torch.zeros(3))
    return torch.where(edges.flying[..., None], red, picture).movedim(-1, 0)

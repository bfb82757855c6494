"""What a recurrent update gains: trained small, on scenes never seen, beside optimising each scene.

python benchmarks/run.py updates --output updates/
    on procedural rooms
python benchmarks/run.py updates --output updates-photos/ --scenes photos/ --unseen garden hall
    on folders of posed photos; those named are for measuring

A tiny ReSplat, and an update on a tiny DepthSplat that is trained first and then stays as it is.
From four context views, PSNR of the views between them after each step, and beside it Adam on the
Gaussians that the update starts from: with the learning rates of 3D Gaussian Splatting (Kerbl et
al., 2023), that of means times the nearest depth, and with four times as much, on all context views
in every step. Means over the seeds, behind ± their standard deviation. KIND.png shows unseen
scenes. A run that is in the output folder is not run again.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .measure import make_once, spread

KINDS = {  # first stage, second stage: experiments of config/experiment
    "resplat": ("resplat_tiny_init", "resplat_tiny_refine"),
    "updated": ("demo_tiny", "updated_tiny"),
}
ROOMS, FRAMES = (128, 32), 16  # training and test scenes, and how long each is
WALK = 8  # photos of a walk through a scene for measuring
VIEWS, TARGETS, GAP = 4, 2, (5, 7)  # the gap from the first to the last context view
STEPS = 4
RATES = {"means": 1.6e-4, "scales": 5e-3, "quats_wxyz": 1e-3, "opacities": 5e-2, "sh": 2.5e-3}
FASTER = (1, 4)  # times these
MOMENTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # steps of the optimisation that are measured
SCENES = 12  # that are optimised


@dataclass(frozen=True)
class Plan:
    """What is common to all runs."""

    output: Path
    scenes: Path | None
    unseen: tuple[str, ...]
    size: tuple[int, int]
    steps: tuple[int, int]  # of the first and of the second stage

    @property
    def data(self) -> Path:
        return self.output / "data"

    def folder(self, kind: str, stage: int, seed: int) -> Path:
        return self.output / "runs" / f"{KINDS[kind][stage]}-{seed}"


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--scenes", metavar="DIR", type=Path, help="posed photos (default: rooms)")
    parser.add_argument("--unseen", nargs="*", default=[], metavar="NAME", help="for measuring")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[1500, 600], help="of both stages (1500 600)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=[64, 64], help="height width (default: 64 64)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is not trained yet; prints the table, draws; gives every value."""
    height, width = arguments.size
    first, second = arguments.steps
    unseen = tuple(arguments.unseen)
    plan = Plan(arguments.output, arguments.scenes, unseen, (height, width), (first, second))
    make_data(plan)
    figures: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        for kind in arguments.kinds:
            figures.setdefault(kind, []).append(measured(plan, kind, seed))
    for kind, runs in figures.items():
        print(table(kind, runs))
        draw(plan, kind)
    return figures


def make_data(plan: Plan) -> None:
    """Chunks in DIR/data, and an index of the scenes for measuring.

    Raises UserError where other data stand there, and for scenes that are not there.
    """
    source = None if plan.scenes is None else str(plan.scenes.resolve())
    made = {"scenes": source, "unseen": list(plan.unseen), "size": list(plan.size)}
    make_once(plan.data, made, partial(write_data, plan=plan))


def write_data(data: Path, plan: Plan) -> None:
    """The same into a folder that is not there yet."""
    import json

    import torch

    from pmsplat.data import make_index, synthetic, to_chunk_scene, write_index
    from pmsplat.errors import UserError
    from pmsplat.io.chunks import INDEX, append
    from pmsplat.scene import open_scene

    if plan.scenes is None:
        for split, count in zip(("train", "test"), ROOMS, strict=True):
            synthetic.write(data, count, FRAMES, plan.size, 0, split)
    else:
        names = sorted(path.name for path in plan.scenes.iterdir() if path.is_dir())
        missing = set(plan.unseen) - set(names)
        if missing or not plan.unseen:
            raise UserError(
                f"--unseen {' '.join(plan.unseen)}",
                f"some folders of {plan.scenes}",
                f"choose some of {', '.join(names)}",
            )
        for name in names:
            scene = open_scene(plan.scenes / name)
            if name not in plan.unseen:
                append(data / "train", [to_chunk_scene(scene, name, plan.size)])
                continue
            for start in range(0, len(scene) - WALK + 1, WALK):
                walk = range(start, start + WALK)
                key = f"{name}-{start:03d}"
                append(data / "test", [to_chunk_scene(scene, key, plan.size, walk)])
    keys = json.loads((data / "test" / INDEX).read_text())
    lengths = dict.fromkeys(keys, FRAMES if plan.scenes is None else WALK)
    generator = torch.Generator().manual_seed(0)
    write_index(data / "index.json", make_index(lengths, GAP[1], VIEWS, TARGETS, generator))


def experiment(plan: Plan, kind: str, stage: int, seed: int) -> Any:
    """One run."""
    from pmsplat import config

    steps, (height, width) = plan.steps[stage], plan.size
    overrides = [
        f"+experiment={KINDS[kind][stage]}", "dataset=folder", f"dataset.root={plan.data}",
        f"dataset.index={plan.data / 'index.json'}", f"dataset.size=[{height},{width}]",
        f"dataset.views=[{VIEWS},{VIEWS}]", f"dataset.target_views={TARGETS}",
        f"dataset.gap=[{GAP[0]},{GAP[1]}]", f"output={plan.folder(kind, stage, seed)}",
        f"seed={seed}", f"trainer.steps={steps}", f"trainer.checkpoint_every={steps}",
        "trainer.validate_every=0", "trainer.loggers=[csv]",
    ]  # fmt: skip
    if plan.scenes is not None and not (kind == "updated" and stage):
        overrides.append("~loss.log_depth")  # photographs come without depth
    initial = plan.folder(kind, 0, seed) / "model.safetensors"
    if kind == "resplat":
        overrides.append("model.near=0.5")
        overrides += [f"model.init_from=[{initial}]"] if stage else []
    elif stage:
        overrides.append(f"model.base_weights={initial}")
    return config.compose(overrides)


def measured(plan: Plan, kind: str, seed: int) -> dict[str, Any]:
    """What one seed gives, now or in an earlier call with the same settings."""
    import json
    import shutil
    import time
    from dataclasses import asdict

    from pmsplat import registry, train
    from pmsplat.evaluate import protocol
    from pmsplat.io.files import write_text
    from pmsplat.zoo.load import load

    runs = [experiment(plan, kind, stage, seed) for stage in (0, 1)]
    folder = plan.folder(kind, 1, seed)
    done, settings = folder / "measured.json", json.loads(json.dumps([asdict(r) for r in runs]))
    if done.is_file() and (found := json.loads(done.read_text()))["experiments"] == settings:
        return found["figures"]
    seconds = []
    for stage, run in enumerate(runs):
        shutil.rmtree(plan.folder(kind, stage, seed), ignore_errors=True)
        began = time.perf_counter()
        train.run(run)
        seconds.append(round(time.perf_counter() - began, 1))
    model = load(folder / "model.safetensors").eval()
    data = registry.build("data", runs[1].dataset.name, runs[1].dataset.settings)
    means = protocol.evaluate(stepping(model), data.evaluation(), each_step=True).means
    figures = {
        "training_seconds": seconds,
        "psnr": [round(means[f"psnr_step{step}"], 3) for step in range(STEPS + 1)],
        **optimised(model, list(data.evaluation(SCENES))),
    }
    text = json.dumps({"experiments": settings, "figures": figures}, indent=1)
    write_text(done, text + "\n")
    return figures


def optimised(model: Any, batches: list[Any]) -> dict[str, Any]:
    """The update beside Adam from the same start: PSNR and seconds, means over scenes."""
    import time

    import torch

    from pmsplat.zoo.infer import model_frame

    updates, curves = [], {times: [] for times in FASTER}
    for batch in batches:
        seen = model_frame(model, batch.context.cameras, scale=True).to_model(batch)
        with torch.no_grad():
            start = model(seen.context, steps=0).gaussians[-1]
            began = time.perf_counter()
            answer = model(seen.context, steps=STEPS).gaussians[-1]
            whole = time.perf_counter() - began
            began = time.perf_counter()
            model(seen.context, steps=0)
            alone = time.perf_counter() - began
        updates.append((quality(answer, seen.target), whole - alone))
        for times in FASTER:
            curves[times].append(list(optimise(start, seen, times)))
    return {
        "update": _mean(updates),
        "optimised": {
            str(times): [_mean(moment) for moment in zip(*curve, strict=True)]
            for times, curve in curves.items()
        },
    }


def optimise(start: Any, seen: Any, times: float) -> Iterator[tuple[float, float]]:
    """PSNR of the targets and seconds of Adam on all context views, at MOMENTS."""
    import time

    import torch

    import pmsplat
    from pmsplat.types import Gaussians

    tiny = 1e-6
    free = {
        "means": start.means, "scales": start.scales.clamp_min(tiny).log(),
        "quats_wxyz": start.quats_wxyz, "opacities": start.opacities.logit(tiny), "sh": start.sh,
    }  # fmt: skip
    free = {name: value.detach().clone().requires_grad_() for name, value in free.items()}
    extent = float(seen.context.cameras.near.mean())  # the unit of the learning rate of means

    def current() -> Gaussians:
        return Gaussians(
            free["means"], free["scales"].exp(),
            torch.nn.functional.normalize(free["quats_wxyz"], dim=-1),
            free["opacities"].sigmoid(), free["sh"], start.rules,
        )  # fmt: skip

    rates = {
        name: rate * times * (extent if name == "means" else 1) for name, rate in RATES.items()
    }
    adam = torch.optim.Adam(
        [{"params": [free[name]], "lr": rate} for name, rate in rates.items()], eps=1e-15
    )
    seconds = 0.0
    for step in range(MOMENTS[-1] + 1):
        if step in MOMENTS:
            yield quality(current().detach(), seen.target), seconds
        began = time.perf_counter()
        drawn = pmsplat.rasterize(current(), seen.context.cameras, seen.context.size).color
        adam.zero_grad()
        (drawn - seen.context.images).abs().mean().backward()
        adam.step()
        seconds += time.perf_counter() - began


def quality(gaussians: Any, target: Any) -> float:
    """Mean PSNR of the targets."""
    import torch

    import pmsplat
    from pmsplat.evaluate.metrics import psnr

    with torch.no_grad():
        drawn = pmsplat.rasterize(gaussians, target.cameras, target.size).color
    return float(psnr(drawn.flatten(0, 1), target.images.flatten(0, 1)).mean())


def _mean(pairs: Any) -> list[float]:
    from statistics import mean

    return [round(mean(column), 4) for column in zip(*pairs, strict=True)]


def table(kind: str, runs: list[dict[str, Any]]) -> str:
    """PSNR after each step, its gain, and what optimisation needs for the same."""
    from statistics import mean

    lines = [f"{kind}: {'steps':>12}{'PSNR':>16}{'gain':>16}"]
    for step in range(STEPS + 1):
        values = [run["psnr"][step] for run in runs]
        gains = [run["psnr"][step] - run["psnr"][0] for run in runs]
        lines.append(f"{step:>{len(kind) + 14}}{spread(values):>16}{spread(gains, sign='+'):>16}")
    seconds = mean(run["update"][1] for run in runs)
    lines.append(
        f"{STEPS} updates {spread([run['update'][0] for run in runs])} dB, {seconds:.2f} s"
    )
    for times in FASTER:
        parts = []
        for i, moment in enumerate(MOMENTS):
            psnr, taken = zip(*(run["optimised"][str(times)][i] for run in runs), strict=True)
            parts.append(f"{moment}: {mean(psnr):.2f} dB, {mean(taken):.2f} s")
        lines.append(f"Adam, {times} x the rates: " + "; ".join(parts))
    return "\n".join(lines)


def draw(plan: Plan, kind: str) -> None:
    """KIND.png: of the first seed, a target of three unseen scenes, before and after each step."""
    import torch

    from pmsplat import registry
    from pmsplat.view import figures
    from pmsplat.zoo.load import load

    run = experiment(plan, kind, 1, 0)
    data = registry.build("data", run.dataset.name, run.dataset.settings)
    draw_steps = stepping(load(plan.folder(kind, 1, 0) / "model.safetensors").eval())
    rows = []
    for batch in data.evaluation(3):
        with torch.no_grad():
            drawn = [rendering.color[0, 0] for rendering in draw_steps(batch).renderings]
        title = f"{batch.scene[0]}: photo | before the first step | after each"
        rows.append((title, [batch.target.images[0, 0], *drawn]))
    figures.contact_sheet(rows, plan.output / f"{kind}.png", height=256)


def stepping(model: Any) -> Any:
    """The model as what is measured: drawn before the first step and after each."""
    from pmsplat.evaluate import protocol

    return protocol.pipeline(model, scale_near=True, passes=protocol.Passes(STEPS, True))

"""Pictures of a few scenes beside results.json: what went in, what came out, and how wrong it is.

pictures/SCENE/pictures.json            what is there, with numbers and color scales
pictures/SCENE/context-NAME.webp        photographs that the model saw
pictures/SCENE/target-NAME.webp         photographs of the targets
pictures/SCENE/render-NAME.webp         the same views as the model draws them
pictures/SCENE/error-NAME.webp          the difference of both (`figures.colorize_difference`)
pictures/SCENE/depth-NAME.webp          expected depth (`figures.colorize_depth`)

and of a model with Gaussians what `tours` says.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from ..device import float32_products
from ..errors import UserError
from ..io.files import write_bytes, write_text
from ..io.images import encode_image, to_uint8
from ..types import Batch, StepOutput, Views
from ..view import figures
from .metrics import psnr
from .protocol import Pipeline, Row
from .tours import Drawing, Tour, parse_tour, write_tour
from .views import ViewRow

FOLDER, MANIFEST = "pictures", "pictures.json"
KINDS = ("target", "render", "error", "depth")  # of each target
QUALITY = 90  # of WebP
TARGETS, CONTEXT = 3, 6  # most pictures of a scene that are written, spread over all
LONGEST = 100  # letters of a name in the name of a file


@dataclass(frozen=True)
class Target:
    """A target of which there are pictures, with its metrics."""

    view: str
    values: dict[str, float]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a scene in a folder.

    `context` names the views of which there are pictures, of `views` that the model saw; `error` is
    the difference with the last color, `depth` what has the first and the last (see `figures`);
    `size` is (height, width) of the targets. `tour` is None where there are no Gaussians.
    """

    scene: str
    size: tuple[int, int]
    views: int
    context: tuple[str, ...]
    targets: tuple[Target, ...]
    depth: tuple[float, float]
    error: float = figures.MOST_DIFFERENCE
    tour: Tour | None = None
    folder: Path = field(default=Path(), compare=False)

    def path(self, kind: str, view: str) -> Path:
        """The file of a kind: context, target, render, error or depth."""
        return self.folder / f"{kind}-{file_name(view)}.webp"


def choose_scenes(rows: Sequence[Row], each: int = 1, metric: str = "psnr") -> list[str]:
    """The worst, the median and the best scenes, `each` of them; fewer where there are not as many.

    From worst to best by a metric that rises; scenes without it are left out. Without any, none.
    """
    ranked = sorted((row for row in rows if metric in row.values), key=lambda r: r.values[metric])
    middle = max(0, (len(ranked) - each) // 2)
    chosen = [
        *ranked[:each],
        *ranked[middle : middle + each],
        *ranked[max(0, len(ranked) - each) :],
    ]
    wanted = {row.scene for row in chosen}
    return [row.scene for row in ranked if row.scene in wanted]


@torch.no_grad()
@float32_products(tf32=False)
def predict_pictures(
    run: Pipeline,
    batches: Iterable[Batch],
    scenes: Collection[str],
    folder: Path,
    rows: Iterable[Row] = (),
    device: torch.device | str = "cpu",
    drawing: Drawing | None = None,
) -> list[Path]:
    """Predicts these scenes again and writes their pictures into FOLDER/pictures; their folders.

    Of `batches`, of one scene each, no more are taken than are needed. `rows` are what was measured
    of scenes, of these and others, `drawing` is how `run` draws. UserError where a scene does not
    come, or nothing is rendered.
    """
    missing, written = set(scenes), []
    views = {row.scene: row.views for row in rows}
    if not missing:
        return []
    for batch in batches:
        name = batch.scene[0]
        if name not in missing:
            continue
        place = folder / FOLDER / file_name(name)
        write_pictures(place, run(batch.to(device)), views.get(name, ()), drawing)
        written.append(place)
        missing.remove(name)
        if not missing:
            return written
    raise UserError(
        f"the scene {min(missing)!r} did not come again to be drawn",
        "the data that was measured",
        "leave the data as it is until the evaluation ends",
    )


def write_pictures(
    folder: Path,
    step: StepOutput,
    rows: Sequence[ViewRow] = (),
    drawing: Drawing | None = None,
) -> Pictures:
    """The pictures of a scene (batch 1), and the list of them, which comes last.

    `rows` has the metrics of targets by name; of those it has not, PSNR is measured here. At most
    TARGETS targets and CONTEXT context views, spread over all. The tour starts at the middle one.
    UserError where nothing was drawn.
    """
    batch, rendering = step.batch, step.rendering.map(lambda tensor: tensor.detach().cpu())
    assert len(batch.scene) == 1, "pictures are of one scene"
    photos, names = batch.target.images[0].cpu(), view_names(batch.target)
    shown = _spread(len(names), TARGETS)
    given = {row.view: dict(row.values) for row in rows}

    def write(kind: str, name: str, image: Tensor) -> None:
        data = encode_image(np.ascontiguousarray(to_uint8(image)), "webp", QUALITY)
        write_bytes(pictures.path(kind, name), data)

    # Choose the colors: of the true depth of the targets, where it is known, else of the drawn one.
    known = batch.target.depth if batch.target.depth is not None else rendering.depth
    near, far = figures.color_range(known[0][shown].cpu())
    context = view_names(batch.context)
    seen = _spread(len(context), CONTEXT)
    targets = []
    for i in shown:
        values = given.get(names[i]) or {"psnr": psnr(rendering.color[0, i], photos[i]).item()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        targets.append(Target(names[i], finite))
    pictures = Pictures(
        scene=batch.scene[0],
        size=batch.target.size,
        views=len(context),
        context=tuple(context[i] for i in seen),
        targets=tuple(targets),
        depth=(near, far),
        tour=write_tour(folder, step, shown[len(shown) // 2], drawing or Drawing()),
        folder=folder,
    )

    # Write them, and what they are.
    for i in seen:
        write("context", context[i], batch.context.images[0, i])
    for i in shown:
        color, depth = rendering.color[0, i], rendering.depth[0, i]
        write("target", names[i], photos[i])
        write("render", names[i], color)
        write("error", names[i], figures.colorize_difference(color, photos[i]))
        write("depth", names[i], figures.colorize_depth(depth, near, far))
    content = {key: value for key, value in asdict(pictures).items() if key != "folder"}
    write_text(folder / MANIFEST, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return pictures


def read_pictures(results: Path) -> dict[str, Pictures]:
    """The pictures beside results.json by scene; UserError where they are damaged or incomplete.

    A folder without a list of pictures, as an interruption leaves it, is none.
    """
    found = {}
    for path in sorted((results / FOLDER).glob(f"*/{MANIFEST}")):
        try:
            pictures = _parse(path)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(path, f"cannot be read ({error!r})") from error
        names = [("context", view) for view in pictures.context]
        for target in pictures.targets:
            names += [(kind, target.view) for kind in KINDS]
        files = [pictures.path(kind, view) for kind, view in names]
        files += [path.parent / name for name in (pictures.tour.files if pictures.tour else ())]
        for file in files:
            if not file.is_file():
                raise _damaged(path, f"names {file.name}, which is missing")
        found[pictures.scene] = pictures
    return found


def forget_pictures(results: Path) -> None:
    """Removes the pictures beside a results.json that is no longer what they show."""
    for path in (results / FOLDER).glob(f"*/{MANIFEST}"):
        shutil.rmtree(path.parent)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} {why}",
        "pictures as `pmsplat evaluate` wrote them",
        f"delete {path.parent} to do without them, or measure again",
    )


def file_name(text: str) -> str:
    """A name of a scene or view as the name of a file: no slash, no dot in front, not too long."""
    name = quote(text, safe=" +,=@()[]").replace("~", "%7E")
    name = f"%2E{name[1:]}" if name.startswith(".") else name or "%"
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return name


def view_names(views: Views) -> list[str]:
    """The names of the views of the first scene; without names, their numbers."""
    if views.names is None:
        return [str(i) for i in range(views.images.shape[1])]
    return list(views.names[0])


def _parse(path: Path) -> Pictures:
    content = json.loads(path.read_bytes())
    height, width = map(int, content["size"])
    near, far = map(float, content["depth"])
    targets = [
        Target(str(t["view"]), {str(k): float(v) for k, v in t["values"].items()})
        for t in content["targets"]
    ]
    return Pictures(
        scene=str(content["scene"]),
        size=(height, width),
        views=int(content["views"]),
        context=tuple(str(view) for view in content["context"]),
        targets=tuple(targets),
        depth=(near, far),
        error=float(content["error"]),
        tour=parse_tour(content["tour"]) if content.get("tour") else None,
        folder=path.parent,
    )


def _spread(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count`, spread over all."""
    return torch.linspace(0, count - 1, min(most, count)).round().int().tolist()

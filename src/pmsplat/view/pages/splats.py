"""A scene of Gaussians to turn on a page, drawn by WebGL and without a network.

The renderer is gsplat.js (MIT), bundled by scripts/build_splat_viewer.py into gsplat.min.js;
splats.js moves its camera. It draws colors that do not depend on the direction, so harmonics are
evaluated once, from where the viewer starts.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch.nn.functional import normalize

from ...geometry import sh
from ...io.gaussians import compressed_ply
from ...types import CLASSIC, Gaussians
from ...zoo.fusion import limit
from .markup import Markup, escape, join, tag

SCRIPTS = ("gsplat.min.js", "splats.js")  # what a page with viewers needs
KEYS = (
    "Drag or arrow keys turn, Shift with them moves, the wheel, a pinch or + and − zoom, "
    "0 returns to the start, Escape closes."
)


Row = tuple[float, ...]
Matrix = tuple[Row, ...]


@dataclass(frozen=True)
class Start:
    """The camera that a viewer starts with: `K` divided by width and height, `size` (height, width)
    of its pictures. Plain numbers, as JSON holds them.

    It turns about the point `focus` before it, around the direction `up` of the world. Lengths are
    in scene units. `background` is RGB in [0, 1].
    """

    c2w: Matrix
    K: Matrix
    size: tuple[int, int]
    near: float
    focus: float
    up: Row
    background: Row = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Model:
    """One answer for a scene: a name, and Gaussians as `pack` gives them."""

    name: str
    data: bytes


def flatten(gaussians: Gaussians, start: Start, count: int) -> Gaussians:
    """What a viewer can draw of the Gaussians of one scene: at most `count`, of degree 0.

    They have the colors that are seen from the start. They are drawn by the rules of 3DGS, whatever
    theirs are.
    """
    eye = gaussians.means.new_tensor([row[3] for row in start.c2w[:3]])
    color = sh.color(gaussians.sh, normalize(gaussians.means - eye, dim=-1))
    dc = ((color - 0.5) / sh.C0)[:, :, None]
    return limit(replace(gaussians, sh=dc, rules=CLASSIC), count)


def pack(gaussians: Gaussians) -> bytes:
    """A compressed .ply of the Gaussians of one scene, of degree 0: 16 bytes each."""
    assert gaussians.sh_degree == 0, "a viewer draws no harmonics"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scene.compressed.ply")
        compressed_ply.write(gaussians, path)
        return path.read_bytes()


def write_viewer(
    models: Sequence[Model], start: Start, poster: str, about: str, note: Markup | None = None
) -> Markup:
    """A fragment of a page: a poster, and a button that turns it into a viewer of the models.

    `poster` is the address of a picture of the start, `about` describes the scene to those who do
    not see it, `note` is said below. The page needs SCRIPTS. Several models share the camera.
    """
    group = f"model-{hashlib.sha256(about.encode()).hexdigest()[:12]}"  # of radio buttons
    frame = tag(
        "div",
        tag("img", src=poster, alt=f"Start of the view of {about}", decoding="async"),
        tag(
            "button", "Turn this scene", type="button", class_="turn-start", hidden=True,
            aria_label=f"Turn {about}",
        ),
        class_="turn-frame",
        data_label=f"{about} in three dimensions. {KEYS}",
        style=f"aspect-ratio: {start.size[1]} / {start.size[0]}",
    )  # fmt: skip
    chosen = [
        tag("label", tag("input", type="radio", name=group, checked=i == 0), " ", model.name)
        for i, model in enumerate(models)
    ]
    choice = tag("fieldset", tag("legend", "Model"), *chosen, class_="turn-models")
    data = [
        tag("script", Markup(base64.b64encode(model.data).decode()),
            type="application/octet-stream", data_name=model.name)
        for model in models
    ]  # fmt: skip
    bar = tag(
        "p",
        tag("button", "Close", type="button", class_="turn-stop", hidden=True),
        tag("span", class_="turn-said", role="status"),
        class_="turn-bar",
    )
    return tag(
        "div",
        frame,
        choice if len(models) > 1 else None,
        bar,
        tag("p", join([escape(KEYS), note], " "), class_="hint"),
        *data,
        class_="turn",
        data_start=json.dumps(asdict(start), allow_nan=False),
    )

"""What a file says of all its Gaussians at once: how they are drawn, where they lie, what is up.

Comments of a .ply carry the three. `comment SplatRenderMode: mip` is the convention of Brush,
gsplat (pull request 1036), nerfstudio (3773) and splat-transform; Postshot writes `antialiased 1`.
`comment Vertical Axis: z` is nerfstudio's; Brush also writes three numbers, and "y" for OpenCV's
axes, in which y points down. Ours are `comment origin X Y Z`, where (0, 0, 0) of the file lies in
its world, and one comment for each rule that is not that of 3DGS: `comment SplatBlur: B` (in px²),
`SplatAlphaCap`, `SplatNear`, `SplatFar` and `SplatClamp`.
"""

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...geometry import se3
from ...types import CLASSIC, MIP, NO_OFFSET, Direction, DrawingRules, Gaussians, Origin

log = logging.getLogger(__name__)

MODE = "SplatRenderMode"  # also the key in `extras` of glTF and in `customData` of USD
MODES = {"mip": MIP, "default": CLASSIC, "classic": CLASSIC}
AXES: dict[str, Direction] = {
    "x": (1.0, 0.0, 0.0),
    "y": (0.0, -1.0, 0.0),
    "z": (0.0, 0.0, 1.0),
}  # of nerfstudio
OWN = {
    "blur": "SplatBlur",
    "alpha_cap": "SplatAlphaCap",
    "near": "SplatNear",
    "far": "SplatFar",
    "clamp": "SplatClamp",
}  # comments for the fields of rules that no other program writes
SAID = re.compile(
    rf"({MODE}|{'|'.join(OWN.values())}|antialiased|vertical axis|origin)\s*[:=\s]\s*(.*)",
    re.IGNORECASE,
)  # what is read; writers put a colon, an equals sign or a space between
TELLING = re.compile(
    r"\b(epsg|crs|srs|wkt|offset|shift|translation|units?|scale|up|up_?axis|axis|axes|"
    rf"antialias\w*|{MODE}|{'|'.join(OWN.values())})\b",
    re.IGNORECASE,
)  # words of comments that mean something for all Gaussians, read or not
SWITCH = {"1": MIP, "true": MIP, "yes": MIP, "0": CLASSIC, "false": CLASSIC, "no": CLASSIC}
BLURRY = 100.0  # px²: no rasteriser blurs by more
SAMPLE = 1 << 16  # rows that tell what a column holds
NEGATIVE = 0.1  # share of negative scales above which they are not a few damaged ones
COARSE = 1e-4  # of the extent: steps of coordinates above it are seen


@dataclass(frozen=True)
class Facts:
    """What is said of all Gaussians.

    `rules` is None where nothing says whether they are antialiased; `own` are fields of the rules
    that comments of ours say.
    """

    rules: DrawingRules | None = None
    own: dict[str, Any] = field(default_factory=dict)
    origin: Origin = NO_OFFSET
    up: Direction | None = None

    def of(self, gaussians: Gaussians) -> Gaussians:
        """The same Gaussians, with these facts."""
        rules = self.rules or replace(CLASSIC, **self.own)
        return replace(gaussians, rules=rules, origin=self.origin, up=self.up)


def read_comments(path: str | Path, comments: Iterable[str]) -> Facts:
    """The facts in comments of a .ply; the last of a kind counts.

    A warning names values that are not known, and what looks like a map's system, unit or axis.
    """
    facts, unknown = Facts(), []
    for comment in map(str.strip, comments):
        found = _read_comment(comment)
        if found is not None and found.keys() <= OWN.keys():
            facts = replace(facts, own=facts.own | found)
        elif found is not None:
            facts = replace(facts, **found)
        elif TELLING.search(comment):
            unknown.append(comment)
    if facts.rules is not None:
        facts = replace(facts, rules=replace(facts.rules, **facts.own))
    if unknown:
        told = "; ".join(text[:80] for text in unknown[:5])
        log.warning("%s: comments that are not understood are left out: %s", path, told)
    return facts


def _read_comment(comment: str) -> dict[str, Any] | None:
    """The fields of `Facts`, or of OWN, that a comment says; None for what is not known."""
    match = SAID.fullmatch(comment)
    key, value = (part.lower() for part in match.groups()) if match else ("", "")
    if key == "splatrendermode":
        rules = read_mode(value)
        return {} if value == "2dgs" else None if rules is None else {"rules": rules}
    if key == "antialiased":
        return {"rules": SWITCH[value]} if value in SWITCH else None
    for name, own in OWN.items():
        if key == own.lower():
            return _read_rule(name, value)
    if key == "vertical axis":
        up = AXES.get(value) or _read_direction(value)
        return None if up is None else {"up": None if up == AXES["y"] else up}
    place = _read_triple(value) if key == "origin" else None
    return None if place is None else {"origin": place}


def write_comments(gaussians: Gaussians) -> list[str]:
    """The comments of a .ply that say the facts; none for Gaussians of which there is none."""
    comments = [f"{MODE}: {mode}"] if (mode := find_mode(gaussians.rules)) else []
    for name in _list_changes(gaussians.rules, CLASSIC):
        comments.append(f"{OWN[name]}: {getattr(gaussians.rules, name)}")
    if gaussians.up is not None:
        axis = [name for name, up in AXES.items() if up == gaussians.up]
        comments.append(f"Vertical Axis: {axis[0] if axis else _write_triple(gaussians.up)}")
    if gaussians.origin != NO_OFFSET:
        comments.append(f"origin {_write_triple(gaussians.origin)}")
    return comments


def read_mode(text: str) -> DrawingRules | None:
    """The rules of a value of MODE; None where it is not known."""
    return MODES.get(text.strip().lower())


def find_mode(rules: DrawingRules) -> str | None:
    """The value of MODE for rules; None for those that need not be said."""
    return "mip" if rules.antialiased else None


def tell_loss(
    gaussians: Gaussians,
    path: str | Path,
    rules: bool = True,
    origin: bool = True,
    up: bool = True,
    comments: bool = False,
    confidence: bool = False,
) -> None:
    """Says once in the log what of the facts a file loses; the flags say what its format keeps.

    With `comments` it keeps all rules, but other programs do not read them. Confidence, which is
    said of each Gaussian, is lost in most formats.
    """
    if gaussians.rules.antialiased and not rules:
        log.warning("%s: the format cannot say that these Gaussians are antialiased; set it where "
                    "they are drawn", path)  # fmt: skip
    kept = MIP if gaussians.rules.antialiased and rules else CLASSIC
    changes = _list_changes(gaussians.rules, kept)
    if changes:
        told = "comments say" if comments else "the format cannot say"
        log.warning(
            "%s: %s that these Gaussians are drawn with %s; %s %s",
            *(path, told, _describe(gaussians.rules, changes)),
            "only pmsplat reads it, others take" if comments else "readers take",
            f"{_describe(kept, changes)}{'' if comments else '; a .ply keeps it for pmsplat'}",
        )
    if gaussians.origin != NO_OFFSET and not origin:
        log.warning(
            "%s: the format has no place for the origin: add (%s) to its positions to get those of "
            "the world; keep a .ply or .glb too, to draw it with the cameras of that world",
            *(path, ", ".join(map(repr, gaussians.origin))),
        )
    if gaussians.up is not None and not up:
        log.warning("%s: the format cannot say that up is %s", path, _write_triple(gaussians.up))
    if gaussians.confidence is not None and not confidence:
        log.warning("%s: the format has no place for the confidence of Gaussians; a .ply keeps it",
                    path)  # fmt: skip


def tell_origin(path: str | Path, origin: Origin, said: bool = False) -> None:
    """Says once that means are not counted from zero of the file's world; `said`: so the file."""
    why = "" if said else "its coordinates lie far from zero, where float32 is too coarse; "
    log.warning(
        "%s: %spositions are counted from (%s), %swhich travels with them",
        *(path, why, ", ".join(map(repr, origin)), "as it says, " if said else ""),
    )


def tell_steps(path: str | Path, points: Float[Tensor, "point 3"]) -> None:
    """Says once where points in world coordinates came with fewer digits than their extent needs.

    That is where every number is one of float32, whose steps there exceed COARSE of the extent.
    """
    usable = points[points.isfinite().all(dim=-1)]
    if not len(usable) or bool((usable.float().double() != usable).any()):
        return
    center = usable.median(dim=0).values
    extent = float((usable - center).abs().median(dim=0).values.max())
    step = float(2.0 ** (math.frexp(float(center.abs().max()))[1] - 24))
    if step > COARSE * extent > 0:
        log.warning(
            "%s: its coordinates are exact to %g only, for a scene of about %g: the program that "
            "wrote it has lost the digits; export it around a local origin, or in double",
            *(path, step, extent),
        )


def are_logarithms(scales: np.ndarray) -> bool:
    """Whether scales that should be linear are logarithms: then many of them are negative.

    Drafts of KHR_gaussian_splatting asked for that until February 2026, and splat-transform wrote
    it until June 2026.
    """
    some = scales[:: -(-len(scales) // SAMPLE) or 1]
    with np.errstate(all="ignore"):  # a NaN may be one that signals
        return bool(np.mean(some < 0) > NEGATIVE) if some.size else False


def are_logits(opacities: np.ndarray) -> bool:
    """Whether opacities that should lie in [0, 1] are logits: then many of them are negative."""
    return are_logarithms(opacities)


def into_axes(gaussians: Gaussians, axes: Float[Tensor, "4 4"]) -> Gaussians:
    """The Gaussians in the axes of a format: `axes` turns OpenCV's into those.

    First `up` becomes OpenCV's -y, where a file said it. Means stay as they are counted, and
    `origin` is turned with them.
    """
    turn = axes.double()
    if gaussians.up is not None:
        turn = turn @ se3.upright(turn.new_tensor(gaussians.up))
    turned = replace(gaussians, origin=NO_OFFSET, up=None).transformed(turn)
    place = turn[:3, :3] @ turn.new_tensor(gaussians.origin) + turn.new_tensor(turned.origin)
    x, y, z = (0.0 + place).tolist()  # never -0.0
    return replace(turned, origin=(x, y, z))


def name_columns(names: Iterable[str]) -> str:
    """Names for a sentence; those that differ in a number at the end count as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+$", "*", name), []).append(name)
    return ", ".join(
        whole[0] if len(whole) == 1 else f"{group} ({len(whole)})"
        for group, whole in groups.items()
    )


def _list_changes(rules: DrawingRules, kept: DrawingRules) -> list[str]:
    """The fields of OWN in which rules differ."""
    return [name for name in OWN if getattr(rules, name) != getattr(kept, name)]


def _describe(rules: DrawingRules, names: list[str]) -> str:
    """Some fields of rules, for a sentence."""
    farthest = (
        f"nothing beyond {rules.far:g} times far" if rules.far < math.inf else "all that is far"
    )
    told = {
        "blur": f"a blur of {rules.blur:g} px²",
        "alpha_cap": f"alpha up to {rules.alpha_cap:g}",
        "near": f"nothing nearer than {rules.near:g} times near",
        "far": farthest,
        "clamp": f"the Jacobian clamped about the {rules.clamp}",
    }
    return ", ".join(told[name] for name in names)


def _read_rule(name: str, text: str) -> dict[str, Any] | None:
    """A field of OWN with its value; None for a value that rules cannot have."""
    value = text if name == "clamp" else _read_number(text)
    if name == "blur" and not _read_number(text) < BLURRY:
        return None
    try:
        replace(CLASSIC, **{name: value})
    except UserError:
        return None
    return {name: value}


def _read_number(text: str) -> float:
    """The number that a text is; NaN for others."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_triple(text: str) -> tuple[float, float, float] | None:
    try:
        x, y, z = map(float, text.split())
    except ValueError:
        return None
    return (x, y, z) if all(abs(value) < 1e30 for value in (x, y, z)) else None


def _read_direction(text: str) -> Direction | None:
    triple = _read_triple(text)
    length = math.hypot(*triple) if triple else 0.0
    if triple is None or length < 1e-6:
        return None
    x, y, z = (value / length for value in triple)
    return x, y, z


def _write_triple(triple: tuple[float, float, float]) -> str:
    return " ".join(repr(float(value)) for value in triple)

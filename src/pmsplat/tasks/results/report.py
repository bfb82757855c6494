"""The report at the end of `predict` and `depth`: what was given, whether it fits, what would help.

Facts are measured; a finding is a fact beyond a limit, with what to do about it. Nothing is advised
where nothing was found. Limits of what the photos say: depth of a plane sweep in ten real scenes
gives a correlation of detail (see `Agreement`) of 0.49 to 0.95, exact depth of procedural rooms
0.82 and more; of 30 deliberate faults (a pose turned by 3 degrees, photos swapped, depth 1.5 times
as large) one gives 0.43 and the others 0.38 at most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import NAMED, name_some
from ...evaluate.agreement import Agreement, join_agreements, measure_agreement
from ...io.cameras.survey import GIVEN, LeftOut
from ...scene import Scene
from ...scene.bounds import RangeSource, central_depths
from ...scene.overlap import LITTLE
from ...types import Views
from ...zoo.trained import TrainedOn
from ..options import RESIZED, format_size

PARALLAX = 3.0  # pixels: with less, a pixel's error is an error of a third in depth
BEYOND = 1.5  # times outside of the usual distances in training
MANY = 2  # times as many views as in training
MATCH = 0.4  # least correlation of detail
CONSISTENT = 0.5  # least share of points whose depths agree
AT_NEAR = 0.1  # so near to near is at near, as a share of it
STUCK = 0.25  # share of depth at near
COMPARED = 200  # points: fewer say nothing of how well they match
TURNED = 0.6  # correlation of detail: real scenes taken from different places give 0.3 at most

_CHECK_CAMERAS = (
    "check the cameras (wrong poses, a wrong focal length and photos in another order than their "
    "cameras all do this), or pose the photos again, for instance with COLMAP; if the cameras are "
    "right, the model does not know such scenes"
)
_UNSURE = (
    "the model is unsure of this scene: take photos closer together, or try a model that learned "
    "from such scenes"
)
_STEP_ASIDE = (
    "take photos from places that are farther apart, a step or more for things in a room; turning "
    "on the spot, as on a tripod, does not help"
)
_SET_RANGE = "set 'near' and 'far' in the camera file"


@dataclass(frozen=True)
class Given:
    """What a verb knows of its input.

    `photos`: how many there were to choose from; `named`: the user chose the views; `size`:
    (height, width) for the network; `scale`: how much larger it saw the world; `range_source`:
    where near and far come from; `left_out`: photos that could not be used; `middle_depth`: the
    middle between near and far, in scene units, where the model goes by it and searches its own;
    `poses`: what found the cameras; `at_once`: the option that says how many views go through the
    network together.
    """

    photos: int
    size: tuple[int, int]
    scale: float
    range_source: RangeSource
    trained_on: TrainedOn | None = None
    left_out: tuple[LeftOut, ...] = ()
    named: bool = False
    middle_depth: float | None = None
    poses: str = GIVEN
    at_once: str = "views"

    @staticmethod
    def of(
        scene: Scene, size: tuple[int, int], scale: float, learned: TrainedOn | None, **more: Any
    ) -> "Given":
        """What a scene says of it itself, and `more` by name."""
        return Given(
            photos=len(scene),
            size=size,
            scale=scale,
            range_source=scene.range_source,
            trained_on=learned,
            left_out=scene.left_out,
            poses=scene.poses,
            **more,
        )


@dataclass(frozen=True)
class Pass:
    """What the report needs of the views that went through the network together.

    `gaps`: distances to the nearest other view, the least and the largest; `range`: (near, far) of
    all; `predicted`: the central 98 % of depth; `at_near`: the share of it that lies at near;
    `turned`: the agreement of the photos if the cameras stood at one place. `shown`: how many views
    the network saw, where only some have depth.
    """

    names: tuple[str, ...]
    agreement: Agreement
    focal: float
    gaps: tuple[float, float]
    range: tuple[float, float]
    predicted: tuple[float, float]
    at_near: float
    turned: Agreement | None = None
    shown: int | None = None


@dataclass(frozen=True)
class Finding:
    """What seems to be wrong, and what would help."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What metrics.json says of the input, and of how it fits the model; None where unknown.

    Lengths are in the unit of the cameras, unless said. `views`: the most in one pass; `size`:
    (height, width). `shared`: the least share of a view that another view of its pass sees, by the
    predicted depth; `alone`: the views below LITTLE. `angle`: the widest between the rays of two
    views to a point, in degrees, median; `parallax`: the same in pixels. `baseline`: distances from
    view to nearest view, the least and the largest, in the unit of the model. `predicted`: the
    central 98 % of depth; `at_near`: the share of it at near. `geometric`, `photometric`,
    `unmoved`: see `Agreement`; `turned`: `photometric` if the cameras stood at one place.
    `middle_depth`: see `Given`; and the same in the unit of the model. `poses`: what found the
    cameras: "file", "colmap", or a network.
    """

    views: int
    size: tuple[int, int]
    shared: float
    alone: tuple[str, ...]
    angle: float | None
    parallax: float | None
    baseline: tuple[float, float]
    near: float
    far: float
    range_source: RangeSource
    predicted: tuple[float, float]
    at_near: float
    geometric: float | None
    photometric: float | None
    unmoved: float | None
    trained_on: TrainedOn | None
    left_out: tuple[LeftOut, ...]
    findings: tuple[Finding, ...] = ()
    turned: float | None = None
    middle_depth: tuple[float, float] | None = None
    poses: str = GIVEN


def examine(
    views: Views, depth: Float[Tensor, "1 view height width"], shown: int | None = None
) -> Pass:
    """Measures one pass through the network: batch 1, both on the CPU, depth positive somewhere.

    `shown`: how many views the network saw, where these are only some of them.
    """
    assert views.names is not None, "photos of a scene have names"
    cameras = views.cameras
    centers = cameras.c2w[0, :, :3, 3].double()
    gaps = torch.cdist(centers, centers).fill_diagonal_(math.inf).amin(dim=1)
    known = depth > 0
    at_near = known & (depth < (1 + AT_NEAR) * cameras.near[..., None, None])
    poses = cameras.c2w.clone()
    poses[..., :3, 3] = 0
    standing = replace(views, cameras=replace(cameras, c2w=poses))
    return Pass(
        names=views.names[0],
        agreement=measure_agreement(views, depth),
        focal=cameras.K[0, :, 0, 0].mean().item() * views.size[1],
        gaps=(gaps.min().item(), gaps.max().item()),
        range=(cameras.near.min().item(), cameras.far.max().item()),
        predicted=central_depths(depth.flatten().numpy()),
        at_near=(at_near.sum() / known.sum()).item(),
        turned=measure_agreement(standing, torch.ones_like(depth)),  # any depth will do
        shown=shown,
    )


def make_report(passes: Sequence[Pass], given: Given) -> Report:
    """The facts of all passes (one or more) and what seems to be wrong with them."""
    joined = join_agreements([part.agreement for part in passes])
    standing = join_agreements([part.turned for part in passes if part.turned])
    names = [name for part in passes for name in part.names]
    shares = dict[str, float]()  # of a photo in several passes, the largest
    for name, share in zip(names, joined.shares, strict=True):
        shares[name] = max(share, shares.get(name, 0.0))
    compared = joined.points >= COMPARED
    gaps = [gap * given.scale for part in passes for gap in part.gaps]
    counted, middle = sum(len(part.names) for part in passes), given.middle_depth
    facts = Report(
        views=max(part.shown or len(part.names) for part in passes),
        size=given.size,
        shared=min(shares.values()),
        alone=tuple(name for name, share in shares.items() if share < LITTLE),
        angle=joined.angle if compared else None,
        parallax=(
            math.tan(math.radians(min(joined.angle, 89.0))) * passes[0].focal if compared else None
        ),
        baseline=(min(gaps), max(gaps)),
        near=min(part.range[0] for part in passes),
        far=max(part.range[1] for part in passes),
        range_source=given.range_source,
        predicted=(
            min(part.predicted[0] for part in passes),
            max(part.predicted[1] for part in passes),
        ),
        at_near=sum(part.at_near * len(part.names) for part in passes) / counted,
        geometric=joined.geometric if compared else None,
        photometric=joined.photometric if compared else None,
        unmoved=joined.unmoved if compared else None,
        trained_on=given.trained_on,
        left_out=given.left_out,
        turned=standing.photometric if standing.points >= COMPARED else None,
        middle_depth=None if middle is None else (middle, middle * given.scale),
        poses=given.poses,
    )
    findings = [
        *_check_places(facts, given),
        *_check_range(facts),
        *_check_training(facts, given.at_once),
        *_check_match(facts),
    ]
    return replace(facts, findings=tuple(findings))


def describe_report(report: Report) -> list[str]:
    """The report in a few sentences; parameters that would help are in backticks."""
    lines = [_describe_places(report), _describe_range(report), _describe_training(report)]
    if report.poses != GIVEN:
        lines.insert(0, f"The cameras were found by {report.poses}.")
    if report.left_out:
        some = "; ".join(f"{photo.name} ({photo.reason})" for photo in report.left_out[:NAMED])
        more = f"; and {len(report.left_out) - NAMED} more" * (len(report.left_out) > NAMED)
        lines.append(f"Left out: {some}{more}.")
    if report.photometric is not None:
        lines.append(
            f"Check: where two views see the same, their depths agree at {report.geometric:.0%} of "
            f"the points, and the detail of their photos correlates by {report.photometric:.2f} "
            f"(chance is 0; unmoved photos give {report.unmoved:.2f})."
        )
    lines += [f"{finding.problem}: {finding.remedy}." for finding in report.findings]
    return lines if report.findings else [*lines, "Nothing looks wrong."]


def _describe_places(report: Report) -> str:
    seen = f"The least that a view shares with the others is {report.shared:.0%} of its picture"
    if report.angle is None or report.parallax is None:
        return f"{seen}."
    return (
        f"{seen}; rays to a point meet at {report.angle:.1f} degrees, which is "
        f"{report.parallax:.0f} pixels of parallax."
    )


def _describe_range(report: Report) -> str:
    source = f"come from {report.range_source}"
    if report.range_source is RangeSource.CAMERAS:
        source = "were guessed from the cameras"
    nearest, farthest = report.predicted
    if report.middle_depth is not None:
        middle, seen = report.middle_depth
        return (
            f"The middle of the depth is {middle:.3g}, by near and far that {source}; the model "
            f"saw the scene {seen / middle:.3g} times as large, so that it is {seen:.3g}. It "
            f"searched from {report.near:.3g} to {report.far:.3g}; predicted depth goes from "
            f"{nearest:.3g} to {farthest:.3g}."
        )
    return (
        f"Near {report.near:.3g} and far {report.far:.3g} {source}; "
        f"predicted depth goes from {nearest:.3g} to {farthest:.3g}."
    )


def _describe_training(report: Report) -> str:
    given = f"The model saw {report.views} views of {format_size(report.size)}"
    learned = report.trained_on
    if learned is None:
        return f"{given}; what it was trained on is not known."
    parts = [f"on {learned.data}"]
    if learned.views is not None:
        least, most = learned.views
        parts.append(f"with {least} views" if least == most else f"with {least} to {most} views")
    if learned.size is not None:
        parts.append(f"of {format_size(learned.size)}")
    return f"{given}; it was trained {' '.join(parts)}."


def _check_places(report: Report, given: Given) -> list[Finding]:
    """Overlap, parallax and, where it is known, the baseline of training."""
    findings = []
    apart = "take photos closer together"
    if given.named:
        apart += ", or leave `context` out"
    elif more := _more_views(report, given.photos):
        apart += f", or try `{given.at_once}={more}`"
    elif given.photos > report.views:
        apart += ", or name views that are closer with `context`"
    if report.alone:
        names = name_some(report.alone)
        findings.append(
            Finding(f"Other views see less than {LITTLE:.0%} of {names}", apart)
            if len(report.alone) < report.views
            else Finding(
                f"The views share too little ({report.shared:.0%} of {names})",
                apart,
            )
        )
    choose = "name views that are farther apart with `context`"
    move = f"take photos from places that are farther apart, or {choose}"
    if report.parallax is not None and report.parallax < PARALLAX:
        problem = f"The views are almost from one place ({report.parallax:.1f} pixels of parallax)"
        return [*findings, Finding(problem, move)]
    if report.trained_on is None or report.trained_on.baseline is None:
        return findings
    least, most = report.trained_on.baseline
    usual = f"the model was trained with {least:g} to {most:g} in its unit of length"
    if report.baseline[1] > BEYOND * most and not report.alone:
        findings.append(Finding(f"Views are {report.baseline[1]:.2g} apart; {usual}", apart))
    if report.baseline[1] < least / BEYOND:
        findings.append(Finding(f"Views are {report.baseline[1]:.2g} apart; {usual}", move))
    return findings


def _more_views(report: Report, photos: int) -> int | None:
    """How many views to try instead, None where there are no more, or the model takes no more."""
    more = min(photos, report.views + 2)
    if report.trained_on is not None and report.trained_on.views is not None:
        more = min(more, MANY * report.trained_on.views[1])
    return more if more > report.views else None


def _check_range(report: Report) -> list[Finding]:
    own = report.range_source is RangeSource.MODEL or report.middle_depth is not None
    if report.at_near < STUCK or own:
        return []
    problem = f"{report.at_near:.0%} of the predicted depth lies at near, {report.near:.3g}"
    return [Finding(problem, f"{_SET_RANGE}, with a smaller near")]


def _check_training(report: Report, at_once: str) -> list[Finding]:
    """Size and number of views."""
    learned, findings = report.trained_on, []
    if learned is not None and learned.size is not None:
        ratio = max(ours / theirs for ours, theirs in zip(report.size, learned.size, strict=True))
        if not 1 / RESIZED <= ratio <= RESIZED:  # larger in one direction, or smaller in both
            size = format_size(learned.size)
            problem = f"The photos are {format_size(report.size)} and were {size} in training"
            findings.append(Finding(problem, f"use `size={size}`"))
    if learned is not None and learned.views is not None:
        least, most = learned.views
        if report.views > MANY * most:
            problem = f"There are {report.views} views at a time, and were at most {most}"
            findings.append(Finding(f"{problem} in training", f"use `{at_once}={most}`"))
        if report.views < least:
            problem = f"There are {report.views} views at a time, and were {least} or more"
            findings.append(Finding(f"{problem} in training", f"use `{at_once}={least}`"))
    return findings


def _check_match(report: Report) -> list[Finding]:
    """Whether photos and depths fit each other where two views see the same."""
    said = report.parallax is not None and report.parallax < PARALLAX
    if report.turned is not None and report.turned > max(TURNED, report.photometric or 0.0):
        problem = (
            f"The photos match as if the cameras only turned on the spot ({report.turned:.2f})"
        )
        return [] if said else [Finding(f"{problem}, so they show no depth", _STEP_ASIDE)]
    if report.photometric is None or report.geometric is None or report.unmoved is None:
        return []
    guessed = report.range_source is RangeSource.CAMERAS
    remedy = f"{_SET_RANGE}, which were guessed; or {_CHECK_CAMERAS}" if guessed else _CHECK_CAMERAS
    moving = report.parallax is not None and report.parallax >= PARALLAX
    if report.photometric < MATCH or (moving and report.photometric < report.unmoved):
        problem = f"Photos do not match by the predicted depth ({report.photometric:.2f})"
        return [Finding(problem, remedy)]
    if report.geometric < CONSISTENT:
        problem = (
            f"The depths of views contradict each other at {1 - report.geometric:.0%} of points"
        )
        return [Finding(problem, _UNSURE)]
    return []

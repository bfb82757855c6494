"""The groups of `predict`: their predictions, what is shown of them, and their Gaussians as one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Encoder
from ..errors import UserError
from ..progress import Track
from ..scene.overlap import Group
from ..types import Views
from ..zoo.fusion import Fused, Part, fuse_parts, predict_groups
from .results.depth_files import check_depth
from .results.prediction import Fusion
from .results.report import Pass, examine

CONTRADICTED = 0.5  # share of Gaussians that other groups see through, above which it is said


@dataclass(frozen=True)
class Fusing:
    """How the Gaussians of groups become one scene: see `pmsplat.fuse`.

    `named`: the user said how. `confidence`: every Gaussian shall have one.
    """

    how: str
    budget: int | None
    named: bool
    confidence: bool


@dataclass(frozen=True)
class Answer:
    """What groups of views became.

    `shown` are the views that have depth, by their places among those given, with that and its
    confidence (None: not known); `passes` what the report needs of each group.
    """

    fused: Fused
    shown: list[int]
    depth: Float[Tensor, "1 view height width"]
    confidence: Float[Tensor, "1 view height width"] | None
    passes: list[Pass]


def predict_fused(
    encoder: Encoder,
    views: Views,
    groups: Sequence[Group],
    fusing: Fusing,
    device: torch.device,
    track: Track,
    steps: int | None = None,
    anchors: int | None = None,
) -> Answer:
    """The views, which have names, through the encoder group by group, and all of it as one scene.

    On the CPU. The depth of a view is that of the first group that speaks of it. Raises UserError
    for depth that is none.
    """
    assert views.names is not None, "photos of a scene have names"
    found = predict_groups(encoder, views, groups, device, steps, anchors)
    parts = list(track(found, "predicting", len(groups)) if len(groups) > 1 else found)
    if fusing.confidence:
        parts = [_rate_gaussians(part) for part in parts]
    first: dict[int, tuple[Part, int]] = {}
    for part in parts:
        for at, view in enumerate(part.views):
            check_depth(part.depth[0, at], views.names[0][view])
            first.setdefault(view, (part, at))
    shown = sorted(first)
    depth = torch.stack([first[view][0].depth[0, first[view][1]] for view in shown])
    sure = [
        part.confidence[0, at]
        for part, at in map(first.__getitem__, shown)
        if part.confidence is not None
    ]
    return Answer(
        fused=fuse_parts(parts, fusing.how, fusing.budget),
        shown=shown,
        depth=depth[None],
        confidence=torch.stack(sure)[None] if len(sure) == len(shown) else None,
        passes=[
            examine(views.at(list(part.views)), part.depth.float(), len(group.views))
            for part, group in zip(parts, groups, strict=True)
        ],
    )


def _rate_gaussians(part: Part) -> Part:
    """The part with the confidence of each Gaussian; UserError for a model that gives none."""
    if part.confidence is None:
        raise UserError(
            "`confidence` of a model that does not say how sure it is",
            "a model that matches views, as all published ones do",
            "leave `confidence` out, or choose another model",
        )
    return part.with_confidence()


def describe_fusion(fused: Fused, groups: Sequence[Group], fusing: Fusing) -> list[str]:
    """What became of the Gaussians, where something did, and options that had nothing to do."""
    left, said = fused.gaussians.means.shape[1], []
    views = sorted({len(group.views) for group in groups})
    if len(groups) > 1:
        span = f"{views[0]} to {views[-1]}" if len(views) > 1 else f"{views[0]}"
        times = Counter(view for group in groups for view in group.views)
        again = sum(count > 1 for count in times.values())
        more = f"; {again} of the {len(times)} views are in several groups" if again else ""
        said.append(f"{len(groups)} groups of {span} views gave {fused.given} Gaussians{more}.")
    elif fusing.named:
        said.append(
            f"All {views[0]} views go through the network together, so `fuse={fusing.how}` has "
            "nothing to do: a smaller `group` makes several groups."
        )
    steps = []
    if fused.floaters:
        steps.append(f"{fused.floaters} that other groups see through were left out")
    if fused.full < fused.given - fused.floaters:
        steps.append("those in one voxel, about a pixel wide, became one")
    if steps:
        said.append(f"Of these Gaussians, {' and '.join(steps)}: {fused.full} are left.")
    if fused.contradicted > CONTRADICTED * fused.given:
        said.append(
            f"The groups contradict each other: {fused.contradicted / fused.given:.0%} of the "
            "Gaussians lie where other groups see through. Check the cameras; if they are right, "
            "the model does not know such scenes, and `fuse=union` keeps all that it predicts."
        )
    if fusing.budget is not None:
        said.append(describe_limit(fused.full, left, fusing.budget))
    return said


def describe_limit(before: int, left: int, budget: int) -> str:
    """What became of so many Gaussians under a budget: see `zoo.fusion.limit`."""
    if before <= budget:
        return f"`gaussians={budget}` changes nothing: there are {before} Gaussians."
    return (
        f"{before} Gaussians became {left}: neighbours were merged, and then those that hide least "
        "were left out."
    )


def record_fusion(
    fused: Fused, groups: Sequence[Group], fusing: Fusing, views: Views
) -> Fusion | None:
    """What metrics.json says of it; None where one group stays as it is."""
    if len(groups) == 1 and fused.gaussians.means.shape[1] == fused.given:
        return None
    assert views.names is not None, "photos of a scene have names"
    names = views.names[0]
    return Fusion(
        groups=tuple(tuple(names[i] for i in group.views) for group in groups),
        fuse=None if len(groups) == 1 else fusing.how,
        given=fused.given,
        floaters=fused.floaters,
        full=fused.full,
        budget=fusing.budget,
    )

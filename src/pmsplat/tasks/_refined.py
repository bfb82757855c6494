"""The refined cameras of `predict`: what can be refined, and what is said of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..contracts import Encoder
from ..errors import UserError, name_some
from ..io.cameras.ours import Refinement
from ..progress import Track
from ..types import Views
from ..zoo.poses import LEAST, Refined, check_steps, refine_cameras


def check_refined(steps: int | None, groups: int = 1) -> None:
    """Raises UserError for steps that are none, and for views in several groups."""
    if steps is None:
        return
    check_steps(steps)
    if groups > 1:
        raise UserError(
            f"`refine_poses={steps}` for views in {groups} groups",
            "views that go through the network together, which show where each other's cameras are",
            "use fewer `views` or a larger `group`, or leave `refine_poses` out",
        )


@dataclass(frozen=True)
class Moved:
    """Views with refined cameras, and how they were refined; None: they are as they were."""

    views: Views
    by: Refinement | None = None


def refine_views(
    encoder: Encoder,
    views: Views,
    steps: int | None,
    model_steps: int | None,
    device: torch.device,
    tell: Callable[[str], None],
    track: Track,
) -> Moved:
    """The views, which have names, with cameras refined by so many steps a round; None: as is."""
    if steps is None:
        return Moved(views)
    assert views.names is not None, "photos of a scene have names"
    found = refine_cameras(encoder, views, steps, device, model_steps, track=track)
    for sentence in describe_refined(found, views.names[0]):
        tell(sentence)
    return Moved(replace(views, cameras=found.cameras), found.by)


def describe_refined(refined: Refined, names: Sequence[str]) -> list[str]:
    """By how much the cameras of photos with these names were refined, and which were not."""
    by, said = refined.by, list[str]()
    if by.round:
        said.append(
            f"The cameras of {len(names)} views were refined in {by.round} rounds of {by.steps} "
            f"steps: by {by.degrees:.2g} degrees and {by.share_of_depth:.1%} of the depth "
            f"(medians). The squared error of what they show of each other fell by "
            f"{1 - by.error_after / by.error_before:.0%}."
        )
    else:
        said.append(
            f"The cameras of {len(names)} views stay as they were: refined ones did not lower the "
            "error of what the views show of each other."
        )
    if refined.still:
        some = name_some([names[i] for i in refined.still])
        said.append(
            f"Of {some} the other views show less than {LEAST:.0%}: too little to refine "
            "those cameras by."
        )
    return said

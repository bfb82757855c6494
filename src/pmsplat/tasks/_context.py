"""Which photos `predict` shows to the network: what is odd about them, and what is said of them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError
from ..scene import Scene
from ..scene.coverage import coverage, look_around
from ..scene.overlap import LITTLE, Group
from ..types import Cameras

NAMED = 12  # photos that a sentence names
SAME = 1e-4  # of the nearest near, and of a turn: cameras that differ by less are the same


def describe_context(
    scene: Scene, context: list[int], overlap: Float[Tensor, "view view"], groups: list[Group]
) -> list[str]:
    """The views that the network sees, and what is odd about them.

    Raises UserError for views in several groups that all stand in one place, or of which no two
    see the same, by their cameras: there is nothing to fuse but fog.
    """
    shares = overlap[context][:, context].clone().fill_diagonal_(0)
    shared = shares.amax(dim=1).min().item()
    covered = coverage(look_around(scene.cameras), context)
    said = (
        f"Context: {len(context)} of {len(scene)} photos: {_list_photos(scene, context)}. "
        f"By the cameras, each shares at least about {shared:.0%} of its picture with another, and "
        f"two or more of them cover about {covered:.0%} of what all photos show."
    )
    found = [said, *_find_oddities(scene, context, shares, len(groups) > 1)]
    if len(context) == len(scene):
        found.append("Every photo is shown to the network, so none is left to compare with.")
    return found


def describe_held_out(count: int, fit: int, left: int) -> str:
    """How many photos are compared, of those that `fit`, and of all that are `left`."""
    said = f"Held out to compare: {count} of the {left} other photos"
    if fit < left:
        said += f"; {left - fit} share less than half of their picture with a context view"
    return f"{said}."


def _find_oddities(
    scene: Scene, context: list[int], shared: Float[Tensor, "view view"], grouped: bool
) -> list[str]:
    said = []
    cameras = scene.cameras.at(context)
    apart = _distances(cameras)
    if grouped and apart.max() < SAME:
        raise UserError(
            f"{len(context)} photos that are all taken from one place",
            "photos from places apart, which show depth",
            "take photos a step aside, or name such ones with `context`",
        )
    if grouped and shared.max() == 0:
        raise UserError(
            f"{len(context)} photos of which, by their cameras, no two show the same",
            "photos that overlap",
            "take photos closer together, and check the cameras and their near and far",
        )
    alone = [context[i] for i in (shared.amax(dim=1) < LITTLE).nonzero().flatten().tolist()]
    if grouped and alone:
        said.append(
            f"{len(alone)} of the {len(context)} views share less than {LITTLE:.0%} of their "
            "picture with any other, so what they show may be wrong: take photos between them and "
            f"the others, or leave them out: {_list_photos(scene, alone)}."
        )
    twins = ((apart < SAME) & _look_alike(cameras)).triu(1).nonzero().tolist()
    if twins:
        first, second = (scene.names[context[i]] for i in twins[0])
        rest = len(twins) - 1
        more = f", and so have {rest} more pair{'s' * (rest > 1)}" if rest else ""
        said.append(
            f"{first} and {second} have the same camera{more}: two such photos show no more depth "
            "than one."
        )
    return said


def _list_photos(scene: Scene, photos: list[int]) -> str:
    """The photos by number and name, the first of many."""
    names = ", ".join(f"{i} ({scene.names[i]})" for i in photos[:NAMED])
    return names + (f" and {len(photos) - NAMED} more" if len(photos) > NAMED else "")


def _distances(cameras: Cameras) -> Float[Tensor, "view view"]:
    """How far apart cameras stand, as a share of the nearest near."""
    centers = cameras.c2w[0, :, :3, 3].double()
    return torch.cdist(centers, centers) / cameras.near.min()


def _look_alike(cameras: Cameras) -> Bool[Tensor, "view view"]:
    """Which cameras look in the same direction, upright alike, through the same lens."""
    seen = torch.cat([cameras.c2w[0, :, :3, :3], cameras.K[0]], dim=1).flatten(1)
    return (seen[:, None] - seen).abs().amax(dim=-1) < SAME

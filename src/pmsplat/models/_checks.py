"""Whether the settings of a model fit it and each other, before anything is built or read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import UserError
from ..registry import Rule, check_settings, number, one_of, whole

HEAD = 32  # channels of an attention head of the U-Nets, which narrower U-Nets have one of
SIZES = {  # two planes are the ends of the range of depth
    "planes": whole(2),
    "transformer_layers": whole(0),
    "sh_degree": whole(0),
}
ABOVE_ZERO = number(open_low=True)
ANCHORS = Rule(  # one alone has no other to be matched with
    lambda value: type(value) is int and (value == 0 or value >= 2),
    "0, or a whole number of at least 2",
)


def check_sizes(config: Any, more: Mapping[str, Rule]) -> None:
    """UserError for the first size that no network has; `more` are fields of this model alone."""
    check_settings(config, SIZES | dict(more), "model.")
    check_choice("sh_degree", config.sh_degree, range(5))
    check_near(config.near)


def check_choice(name: str, value: Any, valid: Sequence[Any]) -> None:
    """UserError for a setting that is not one of `valid`."""
    rule = one_of(*valid)
    if not rule.fits(value):
        raise UserError(f"{name} = {value!r}", rule.wanted, f"set model.{name}={valid[0]}")


def check_near(near: float | None) -> None:
    """UserError for a near that no scene can be scaled to."""
    if near is not None and not 0 < near < torch.inf:
        raise UserError(
            f"near = {near}",
            "a number above 0, or null for scenes in their own unit",
            "set model.near=0.5",
        )


def range_rules(near: float | None) -> dict[str, Rule]:
    """What `far` and `typical_depth` may be of a model that searches one range in all scenes."""
    far = number(near or 0, open_low=True)
    return {"far": far.or_none, "typical_depth": ABOVE_ZERO.or_none}


def check_width(width: Any, scales: int, step: int) -> None:
    """UserError for a width that is not a multiple of `step`, or that attention cannot divide.

    The U-Net of each scale attends with one head of up to 32 channels, or several of 32; it has
    half the channels of the one before.
    """

    def fits(width: Any) -> bool:
        if type(width) is not int or width <= 0 or width % step:
            return False
        return all(w <= HEAD or w % HEAD == 0 for w in (width >> s for s in range(scales)))

    if not fits(width):
        largest = HEAD << (scales - 1)
        narrow = [str(w) for w in range(step, largest, step) if fits(w)]
        raise UserError(
            f"model.width={width!r}",
            f"a multiple of {largest}, or {', '.join(narrow)}",
            f"set model.width={largest}",
        )


def check_unet_width(width: Any) -> None:
    """UserError for a width of the 2024 U-Net that its norms and attention do not divide.

    Groups of a norm divide multiples of 4. The deepest level is four times as wide and attends with
    heads as wide as the narrowest level, at most 32.
    """
    if type(width) is not int or width <= 0 or width % 4 or (width > HEAD and width % 8):
        raise UserError(
            f"model.unet_width={width!r}",
            f"a multiple of 8, or of 4 up to {HEAD}",
            "set model.unet_width=16",
        )

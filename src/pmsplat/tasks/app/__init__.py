"""A web page that turns a visitor's photographs into 3D Gaussians: `predict`, served by gradio."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...errors import UserError
from ...view.address import check_address
from ...zoo.load import load
from ...zoo.shipped import DEFAULT
from ..options import pick_device
from ..view import LOOPBACK
from ._limits import Limits

if TYPE_CHECKING:
    from ._page import Page

__all__ = ["Limits", "Options", "app"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What may be chosen: `model` is what `pmsplat.load` takes; port 0 is any that is free."""

    model: str = DEFAULT
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 7860
    limits: Limits = field(default_factory=Limits)


def app(options: Options | None = None, tell: Callable[[str], None] = log.info) -> "Page":
    """Serves the app until it is closed.

    Visitors bring photos, a video or a .zip of photos and cameras, see how these are understood,
    and get what `predict` makes of them. Requests are worked on one after another. What visitors
    bring and get lies in a temporary folder of this machine, and is deleted when they leave, after
    `limits.minutes`, and when the app is closed; nothing is sent elsewhere. Raises UserError where
    gradio is not installed, for a model or device that cannot be had, and for an address that
    cannot be served. `tell` gets what a server should know, a sentence at a time.
    """
    chosen = options or Options()
    found = importlib.util.find_spec("gradio")
    if found is None or found.origin is None:  # a mere folder of that name
        raise UserError(
            "gradio, which serves the app, is not installed",
            "the extra `app`",
            'install it: `pip install "pmsplat[app]"`',
        )
    if chosen.port:
        check_address(chosen.host, chosen.port)
    pick_device(chosen.device)
    load(chosen.model)  # what is wrong with it is said now, not to the first visitor
    if importlib.util.find_spec("pycolmap") is None:
        tell(
            "pycolmap is not installed, so only photos with cameras can be used; "
            'for others: `pip install "pmsplat[pose]"`.'
        )
    if chosen.host not in LOOPBACK:
        tell(
            f"Whoever reaches {chosen.host} can use this machine to compute on their photos, and "
            "there is no password."
        )
    from ._page import serve

    return serve(chosen)

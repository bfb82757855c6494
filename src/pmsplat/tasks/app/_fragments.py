"""What the page says: its introduction, steps, errors."""

from collections.abc import Sequence

from ...errors import UserError
from ...view.pages.markup import Markup, join, tag
from ._limits import Limits


def introduce(model: str) -> Markup:
    """The head of the page."""
    return tag(
        "header",
        tag("h1", "Photos to a scene"),
        tag(
            "p",
            "Bring a few photos of one place, taken a step apart, or a short video. A network "
            "turns them into 3D Gaussians in one pass: a scene that you can turn, its depth, and a "
            "video.",
        ),
        tag("p", f"Model: {model}", class_="pm-quiet"),
        class_="pm-head",
    )


def explain(limits: Limits) -> Markup:
    """How it works, and what becomes of files."""
    steps = [
        ("Bring photos", "Two to ten of one place that stands still. Neighbors overlap by two "
         "thirds; step aside between them, since turning on the spot shows no depth."),
        ("See how they are understood", "Where each was taken, how much they share, which cannot "
         "be used and why."),
        ("Turn the scene", "And keep it: Gaussians for any 3DGS viewer, depth, a video."),
    ]  # fmt: skip
    rows = [tag("li", tag("strong", f"{head}. "), text) for head, text in steps]
    kept = (
        "Your files stay on the machine that serves this page. They are deleted when you close it, "
        f"or after {limits.minutes} minutes without a visit. A .zip may hold a COLMAP model or "
        "transforms.json beside the photos."
    )
    return tag(
        "div", tag("h2", "How it works"), tag("ol", *rows), tag("p", kept, class_="pm-quiet"),
        class_="pm-part",
    )  # fmt: skip


def draw_step(step: str, done: int, total: int) -> Markup:
    """A step and how far it is; a bar that moves by itself where nobody knows."""
    count = f" ({done} of {total})" if total else ""
    bar = tag("progress", value=done if total else None, max=max(total, 1), aria_label=step)
    return tag("div", tag("p", f"{step}{count}"), bar, class_="pm-step", role="status")


def say(text: str) -> Markup:
    """A sentence of the status."""
    return tag("p", text, class_="pm-said", role="status")


def list_said(said: Sequence[str]) -> Markup | None:
    """What was decided on the way, folded."""
    if not said:
        return None
    return tag("details", tag("summary", "What was decided"), *(tag("p", text) for text in said))


def describe_error(error: UserError) -> Markup:
    """An error as people read it on a page: what is wrong, what is wanted, what helps."""
    parts = [tag("strong", f"{_sentence(error.got)}.")]
    if error.wanted:
        parts.append(tag("span", f"Wanted: {error.wanted}."))
    if error.remedy:
        parts.append(tag("span", f"{_sentence(error.remedy)}."))
    return tag("div", join(parts, " "), class_="pm-error", role="alert")


def _sentence(text: str) -> str:
    plain = text.replace("`", "").strip().rstrip(".")
    return plain[:1].upper() + plain[1:]

"""How photos were understood, as a fragment of a page: cameras, overlap, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...errors import count_of
from ...io import images
from ...io.cameras.survey import GIVEN, LeftOut
from ...scene import Scene
from ...scene.coverage import coverage, look_around
from ...scene.overlap import LITTLE, overlaps
from ...view.pages.markup import Markup, join, tag
from ...view.pages.paths import draw_plan, look_down
from ._pictures import embed

SHOWN = 24  # photos
NAMED = 8  # photos that cannot be used
THUMBNAIL = (192, 192)  # pixels at most
MUCH = 0.7  # overlap from which on photos are close enough

ADVICE = (  # what a reason for leaving a photo out begins with, and what helps
    ("it has hardly any detail", "It is dark, blurred or shows a plain wall: take another one."),
    ("no other photo shows", "Take photos between this place and the others, or leave it out."),
    ("it is one of", "Take photos that connect both groups."),
    ("it shares too little", "Take photos closer together."),
)


@dataclass(frozen=True)
class Understanding:
    """What is known of photos before anything is predicted: `context` are those that the network
    will see, `nearest` the largest share of its picture that each has in common with another."""

    scene: Scene
    context: tuple[int, ...]
    nearest: tuple[float, ...]
    covered: float


def understand(scene: Scene, context: Sequence[int]) -> Understanding:
    """Looks at the cameras of a scene; no more than a second for a few dozen."""
    shares = overlaps(scene.cameras).fill_diagonal_(0)
    covered = coverage(look_around(scene.cameras), list(context))
    return Understanding(scene, tuple(context), tuple(shares.amax(dim=1).tolist()), covered)


def describe_understanding(found: Understanding) -> Markup:
    """The fragment: a summary, a plan of the cameras, the photos, and what was left out."""
    scene = found.scene
    cameras = scene.cameras.c2w[0]
    plan = draw_plan(look_down(cameras), "The places of the cameras, seen from above")
    caption = "The cameras from above, in the order of the photos: a disc is the first, a square "
    return tag(
        "div",
        tag("h2", "How your photos are understood"),
        tag(
            "div",
            tag("ul", *(tag("li", line) for line in _summarize(found)), class_="pm-facts"),
            tag("figure", plan, tag("figcaption", f"{caption}the last."), class_="pm-plan"),
            class_="pm-understood",
        ),
        _draw_photos(found),
        _list_left_out(scene.left_out),
        class_="pm-part",
    )


def _summarize(found: Understanding) -> list[str]:
    scene, count = found.scene, len(found.scene)
    all_photos = count + len(scene.left_out)
    origin = {
        GIVEN: "Their cameras come from the file beside them",
        "colmap": "Their cameras were found from points that several photos show",
    }.get(scene.poses, f"Their cameras were found by {scene.poses}")
    used = f"{count} of {count_of(all_photos, 'photo')} can be used. {origin}."
    share = min(found.nearest[i] for i in found.context)
    if share >= MUCH:
        close = "close together"
    else:
        close = "close enough" if share >= LITTLE else "too far apart: take some in between"
    lines = [
        used,
        f"The network sees {len(found.context)} of them. Each shares at least about {share:.0%} of "
        f"its picture with another: {close}.",
        f"Two or more of these cover about {found.covered:.0%} of what all photos show.",
    ]
    lonely = [scene.names[i] for i, near in enumerate(found.nearest) if near < LITTLE]
    if lonely:
        lines.append(
            f"{count_of(len(lonely), 'photo')} share less than {LITTLE:.0%} with any other: "
            f"{', '.join(lonely[:3])}{', …' * (len(lonely) > 3)}. Take photos in between."
        )
    return lines


def _draw_photos(found: Understanding) -> Markup:
    """Small photos, those that the network sees first."""
    others = [i for i in range(len(found.scene)) if i not in found.context]
    chosen = [*found.context, *others][:SHOWN]
    more = len(found.scene) - len(chosen)
    return join(
        [
            tag("div", *(_draw_photo(found, i) for i in chosen), class_="pm-photos"),
            tag("p", f"And {count_of(more, 'photo')} more.", class_="pm-quiet") if more else None,
        ]
    )


def _draw_photo(found: Understanding, i: int) -> Markup:
    seen = i in found.context
    name, share = found.scene.names[i], found.nearest[i]
    state = "the network sees it" if seen else "kept to compare"
    caption = [
        tag("strong", name),
        tag("span", state),
        tag("span", f"shares {share:.0%}", class_="pm-weak" if share < LITTLE else None),
    ]
    return tag(
        "figure",
        tag("img", src=_make_thumbnail(found.scene, i), alt=f"Photo {name}", decoding="async"),
        tag("figcaption", *caption),
        class_="pm-seen" if seen else None,
    )


def _make_thumbnail(scene: Scene, i: int) -> str:
    photo = scene.photos[i]
    data = photo.image if isinstance(photo.image, bytes) else photo.image.read_bytes()
    pixels = images.read_image(data, photo.upright, photo.background, least=THUMBNAIL)
    image = Image.fromarray(pixels)
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    return embed(np.array(image))


def _list_left_out(left_out: Sequence[LeftOut]) -> Markup | None:
    if not left_out:
        return None
    rows = [
        tag("li", tag("strong", photo.name), f": {photo.reason}. {advise(photo.reason)}")
        for photo in left_out[:NAMED]
    ]
    if len(left_out) > NAMED:
        rows.append(tag("li", f"and {len(left_out) - NAMED} more"))
    head = tag("h3", f"{count_of(len(left_out), 'photo')} could not be used")
    return tag("div", head, tag("ul", *rows), class_="pm-warning")


def advise(reason: str) -> str:
    """What a visitor can do about a photo that was left out; nothing where nobody knows."""
    return next((advice for start, advice in ADVICE if reason.startswith(start)), "")

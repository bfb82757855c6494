"""`pmsplat data convert`: one scene, or a folder of many, added to the chunks of a split."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import count_of
from ._shared import add_photos, output, photo_options, shard, size, terminal

if TYPE_CHECKING:
    from ..tasks.convert_scenes import Summary

_REASONS = 10  # that are printed; the file has all

_HELP = """Adds one scene, or every scene in a folder, to the chunks of a split.

A scene is whatever `pmsplat predict` takes. A folder of scenes may hold folders with cameras (DL3DV
as it is downloaded, COLMAP, nerfstudio, ...), at any depth; camera texts of RealEstate10K beside
their frames or videos (--images names the folder of both, if it is elsewhere); or the chunks of
another split, which --size makes smaller. Scenes without cameras are dropped unless --poses says
what finds them.

Of a folder of scenes, a scene that cannot be used is dropped, and named with its reason in
conversion.json beside the chunks, as photos are that a scene lacks. Run it again after an
interruption: it goes on after the last chunk. Several machines share the work with --shard 1/16,
2/16, ..."""


def add_convert(verbs: Any) -> None:
    """The action and its options."""
    convert = verbs.add_parser(
        "convert",
        help="scenes -> chunks",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("input", help="a folder of photos, a video, a chunk scene, or many scenes")
    convert.add_argument("output", type=Path, help="a split folder, such as datasets/mine/test")
    convert.add_argument("--scene", help="name of the one scene (default: that of the input)")
    convert.add_argument(
        "--size", type=size, metavar="HxW", help="scale to cover it and cut the centre"
    )
    convert.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th photo")
    convert.add_argument(
        "--jobs", type=int, metavar="N", help="processes (default: one for each processor)"
    )
    convert.add_argument(
        "--shard", type=shard, metavar="I/N", help="only the I-th of N parts of the scenes"
    )
    add_photos(convert)
    convert.set_defaults(action=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from ..errors import UserError
    from ..scene.folders import is_scene
    from ..tasks.jobs import collect_warnings

    if arguments.every < 1:
        raise UserError(f"--every {arguments.every}", "1 or more", "take every photo with 1")
    given = Path(arguments.input)
    with collect_warnings():  # that are said where the scene is opened
        single = is_scene(given)
    holds = (
        f"holds {'one scene' if single else 'many scenes'}" if given.is_dir() else "is no folder"
    )
    for option in ("shard", "jobs") if single else ("scene",):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"--{option} for {given}, which {holds}",
                "one scene" if option == "scene" else "a folder of scenes",
                f"leave --{option} out",
            )
    if single:
        _convert_one(arguments)
    else:
        _convert_many(arguments)


def _convert_one(arguments: argparse.Namespace) -> None:
    from ..data import to_chunk_scene
    from ..errors import count_of
    from ..io.chunks import append, check_new
    from ..scene import open_scene
    from ..tasks.options import describe_fit

    check_new(arguments.output, [arguments.scene] if arguments.scene else [])
    shown = terminal(arguments)
    scene = open_scene(arguments.input, photo_options(arguments), tell=shown.tell)
    key = arguments.scene or scene.name
    check_new(arguments.output, [key])
    indices = range(0, len(scene), arguments.every)
    chosen = [scene.photos[i] for i in indices]
    for sentence in describe_fit(chosen, arguments.size) if arguments.size else ():
        shown.tell(sentence)
    converted = to_chunk_scene(scene, key, arguments.size, indices, shown.track)
    chunk = append(arguments.output, [converted])
    output().print(f"scene {key!r}: {count_of(len(converted), 'photo')} in {chunk}")


def _convert_many(arguments: argparse.Namespace) -> None:
    from ..tasks.convert_scenes import ConvertOptions, convert_scenes

    options = ConvertOptions(
        size=arguments.size,
        every=arguments.every,
        jobs=arguments.jobs,
        shard=arguments.shard or (1, 1),
        photos=photo_options(arguments),
    )
    shown = terminal(arguments)
    _show(convert_scenes(arguments.input, arguments.output, options, shown.tell, shown.track))


def _show(summary: "Summary") -> None:
    def say(text: str) -> None:
        output().print(text, soft_wrap=True, markup=False)

    say(
        f"{count_of(summary.converted, 'scene')} converted, {summary.found} there before, "
        f"{len(summary.dropped)} dropped: {count_of(summary.photos, 'photo')} in "
        f"{count_of(summary.chunks, 'chunk')}."
    )
    _say_reasons(say, "dropped", summary.dropped.items())
    notes = [(key, note) for key, notes in summary.doubtful.items() for note in notes]
    _say_reasons(say, "doubtful", notes)
    for sentence in summary.fitted:
        say(sentence)
    if summary.left_out:
        photos, verb = count_of(summary.left_out, "photo"), "is" if summary.left_out == 1 else "are"
        say(f"{photos} {verb} left out, which scenes lack or which cannot be used.")
    if len(summary.sizes) > 1:
        sizes = ", ".join(
            f"{h}x{w} ({count_of(count, 'scene')})" for (h, w), count in summary.sizes.items()
        )
        say(f"The photos have different sizes: {sizes}. One size for all: --size HxW.")
    say(f"All scenes, dropped ones with their reasons: {summary.record}")


def _say_reasons(say: Callable[[str], None], what: str, found: Iterable[tuple[str, str]]) -> None:
    """Each reason once, with how many scenes have it and the first of them."""
    reasons: dict[str, list[str]] = {}
    for key, reason in found:
        reasons.setdefault(reason, []).append(key)
    for reason, keys in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_REASONS]:
        say(f"  {len(keys)} {what}, {keys[0]} first: {reason}")
    if len(reasons) > _REASONS:
        say(f"  and others for {count_of(len(reasons) - _REASONS, 'more reason')}")

"""What a user may choose, checked against photos and machine: photos, size, device, rules."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from ..contracts import Encoder
from ..device import cuda_obstacle
from ..errors import UserError, count_of
from ..registry import suggest
from ..scene.fit import covering_size
from ..scene.photos import Photo
from ..types import CLASSIC, MIP, RESPLAT, DrawingRules, Gaussians
from ..zoo.compile import KEPT, Precision, check_precision, compile
from ..zoo.trained import TrainedOn

RESIZED = 1.5  # times the sides in training: larger pictures are another matter for a network
LONGEST = 960  # pixels of the longer side of the largest images that models were published for
MUCH_CUT = 0.25  # of a photo: losing more is said
SHORTEST = 16  # pixels of a side: less is no picture
RULES = {"classic": CLASSIC, "mip": MIP, "resplat": RESPLAT}


def choose_photos(context: tuple[int, ...], photos: int) -> list[int]:
    """The photos named by index, in order; raises UserError where those are not there, or one."""
    chosen = sorted(set(context))
    beyond = [i for i in chosen if not 0 <= i < photos]
    if beyond or len(chosen) < 2:
        raise UserError(
            f"`context={','.join(map(str, context))}` for {count_of(photos, 'photo')}",
            f"two or more different numbers from 0 to {photos - 1}",
            "`pmsplat data info` lists the photos with their numbers",
        )
    return chosen


def count_views(wanted: int | None, default: int, photos: int) -> int:
    """How many views the network sees at a time; raises UserError for fewer than two, or too many.

    `default`, at least 2, where nothing is `wanted`.
    """
    count = default if wanted is None else wanted
    if not 2 <= count <= photos:
        raise UserError(
            f"`views={count}` of a scene of {count_of(photos, 'photo')}"
            if wanted is not None
            else f"a scene of {count_of(photos, 'photo')}",
            f"from 2 to {photos} views" if photos >= 2 else "two photos or more",
            "choose another number of views" if photos >= 2 else "add photos of the scene",
        )
    return count


def check_computing(device: torch.device, precision: Precision, graph: bool = False) -> None:
    """Raises UserError for what the device does not have."""
    if graph and device.type != "cuda":
        raise UserError(
            f"`graph` on {device.type}", "a CUDA device, which repeats graphs", "leave `graph` out"
        )
    check_precision(device, precision)


def for_computing(
    model: nn.Module, device: torch.device, precision: Precision, graph: bool = False
) -> Encoder:
    """The model, on `device`, that computes in `precision`, and as CUDA graphs where wanted.

    Raises UserError as `check_computing` does.
    """
    check_computing(device, precision, graph)
    if precision == "float32" and not graph:
        return model
    return compile(model, precision=precision, kept=KEPT if graph else 0)


def describe_computing(device: torch.device, precision: Precision) -> str:
    """Where the network computes, and how exactly where that is not float32: "cuda in bf16"."""
    return str(device) if precision == "float32" else f"{device} in {precision}"


def fit_size(
    photo: tuple[int, int], wanted: tuple[int, int] | None, learned: TrainedOn | None = None
) -> tuple[int, int]:
    """(height, width) for the network: `wanted`, or the photo's.

    Where none is wanted, photos with a side beyond LONGEST are scaled down to it, and those with
    one beyond RESIZED times that in training, where that is known, to that. Raises UserError for a
    side below SHORTEST.
    """
    factor = min(1.0, LONGEST / max(photo))
    height, width = wanted or (round(photo[0] * factor), round(photo[1] * factor))
    if learned and learned.size and not wanted:
        sides = learned.size
        factor = min(1.0, RESIZED * sides[0] / height, RESIZED * sides[1] / width)
        height, width = round(height * factor), round(width * factor)
    if min(height, width) < SHORTEST:
        raise UserError(
            f"`size={format_size(wanted)}`" if wanted else f"photos of {format_size(photo)} pixels",
            f"sides of at least {SHORTEST} pixels",
            "use larger photos, or another `size`",
        )
    return height, width


def follow_rules(
    gaussians: Gaussians, wanted: str | None, tell: Callable[[str], None]
) -> Gaussians:
    """The Gaussians to draw by the rules of that name, one of RULES; None keeps their own.

    Says where those differ. Raises UserError for another name.
    """
    if wanted is None:
        return gaussians
    if wanted not in RULES:
        raise UserError(
            f"`rules={wanted}`", f"one of {', '.join(RULES)}", suggest(wanted, list(RULES))
        )
    if gaussians.rules != RULES[wanted]:
        own = format_rules(gaussians.rules)
        tell(f"Drawn by the rules {wanted!r}, although the Gaussians say {own}.")
    return replace(gaussians, rules=RULES[wanted])


def format_rules(rules: DrawingRules) -> str:
    """The name of the rules, or what they are."""
    named = [repr(name) for name, known in RULES.items() if known == rules]
    return named[0] if named else str(rules)


def format_size(size: tuple[int, int]) -> str:
    """(height, width) as people write it: 256x448."""
    return f"{size[0]}x{size[1]}"


def describe_fit(photos: Sequence[Photo], size: tuple[int, int]) -> list[str]:
    """What happens to photos that are not of the size for the network; what is cut off of some."""
    sizes = Counter(photo.size for photo in photos if photo.size != size)
    if not sizes:
        return []
    told = [_describe_scaling(sizes, size)]
    lost = {shape: share_cut(shape, size) for shape in sizes}
    cut = {shape: count for shape, count in sizes.items() if lost[shape] > MUCH_CUT}
    if cut:
        first = next(photo for photo in photos if photo.size in cut)
        count = sum(cut.values())
        told.append(
            f"Up to {max(lost.values()):.0%} is cut off of {count} photo{'s' * (count > 1)} of "
            f"another shape (the first is {first.name}, {format_size(first.size)}). Choose a "
            "`size` of that shape, or leave them out."
        )
    return told


def describe_fit_of_scenes(sizes: Counter[tuple[int, int]], size: tuple[int, int]) -> list[str]:
    """The same of the photos of many scenes: so many scenes have photos of each size."""
    sizes = Counter({shape: count for shape, count in sizes.items() if shape != size})
    if not sizes:
        return []
    told, lost = (
        [_describe_scaling(sizes, size, "scene")],
        [share_cut(shape, size) for shape in sizes],
    )
    if max(lost) > MUCH_CUT:
        count = sum(n for n, cut in zip(sizes.values(), lost, strict=True) if cut > MUCH_CUT)
        told.append(f"Up to {max(lost):.0%} is cut off of photos of {count_of(count, 'scene')}.")
    return told


def _describe_scaling(
    sizes: Counter[tuple[int, int]], size: tuple[int, int], noun: str = ""
) -> str:
    """That photos of such sizes are made one size; `noun`: what the counts are of."""
    grown = [covering_size(shape, size) > shape for shape in sizes]
    how = "enlarged" if all(grown) else "scaled"
    some = "; some are enlarged" if any(grown) and not all(grown) else ""
    after = format_size(size)
    return f"{_list_sizes(sizes, noun)} are {how} and cut to {after} (height x width){some}."


def _list_sizes(sizes: Counter[tuple[int, int]], noun: str = "") -> str:
    if len(sizes) == 1 and not noun:
        return f"Photos of {format_size(next(iter(sizes)))}"
    parts = [
        f"{count_of(count, noun) if noun else count} of {format_size(shape)}"
        for shape, count in sizes.most_common(3)
    ]
    return f"Photos ({', '.join(parts)}{', …' if len(sizes) > 3 else ''})"


def share_cut(photo: tuple[int, int], size: tuple[int, int]) -> float:
    """The share of a photo that is cut off after it was scaled to cover `size`."""
    height, width = covering_size(photo, size)
    return 1 - size[0] * size[1] / (height * width)


def pick_device(name: str) -> torch.device:
    """The device of a name: "auto" is CUDA where there is one. UserError where it is not there.

    Warns where "auto" takes the CPU although there is a GPU, which torch cannot use.
    """
    if name == "auto":
        problem = cuda_obstacle()
        if problem is not None:
            warnings.warn(
                f"{problem.got}; computing on the CPU, which is slower; {problem.remedy}",
                stacklevel=2,
            )
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") and not name.removeprefix("cuda:").isdigit():
        raise UserError(f"`device={name}`", "auto, cpu, cuda or cuda:N", "choose one of them")
    device = torch.device(name)
    problem = cuda_obstacle() if device.type == "cuda" else None
    if problem is not None:
        raise UserError(f"`device={name}`, but {problem.got}", problem.wanted, problem.remedy)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"`device={name}`, but torch sees {torch.cuda.device_count()} CUDA devices here",
            "a device that exists",
            "use `device=cpu`, or install a build of torch for your card",
        )
    return device

"""Nearest neighbors of point maps, one, several and in windows, beside brute force."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pmsplat.geometry import neighbors as definition
from pmsplat.kernels import neighbors
from pmsplat.nn.cost_volume import nearest_others

from ..neighbors import maps
from . import room
from .clock import measured
from .process import Case, Run

SIZES = {"131k": (2, 256, 256), "262k": (4, 256, 256), "688k": (6, 256, 448)}
TINY = {"1k": (2, 16, 32)}
NOISES = (0.02, 0.2)
COUNTS = (1, 8, 16)
CHECKED = 2000  # points whose distances are compared with those of brute force


def cases(run: Run) -> Iterator[Case]:
    """By size: the nearest in its two orders, then the k nearest, in windows too; at last, by
    brute force, the nearest of the smallest size."""
    sizes = TINY if run.tiny else SIZES
    for name, (views, height, width) in sizes.items():
        for noise in NOISES:
            for grid in ((height, width), None):

                def one(v: int = views, h: int = height, w: int = width, noise: float = noise,
                        grid: tuple[int, int] | None = grid) -> dict[str, Any]:  # fmt: skip
                    return nearest(v, h, w, noise, grid, run)

                order = "any order" if grid is None else "grid"
                yield Case(f"{name} noise {noise:g} nearest, {order}", one)
        for k in COUNTS:

            def several(v: int = views, h: int = height, w: int = width, k: int = k) -> Any:
                return k_nearest(v, h, w, k, run)

            yield Case(f"{name} {k} nearest", several)

            def near(v: int = views, h: int = height, w: int = width, k: int = k) -> Any:
                return in_windows(v, h, w, k, run)

            yield Case(f"{name} {k} nearest in windows", near)
    name, size = next(iter(sizes.items()))
    yield Case(f"{name} nearest, brute force", lambda: by_brute_force(*size, run))


def nearest(
    views: int, height: int, width: int, noise: float, grid: tuple[int, int] | None, run: Run
) -> dict[str, Any]:
    """As PM-Loss searches, with a grid or without."""
    points, reference = (x.to(run.device) for x in maps(views, height, width, noise))
    found = measured(
        lambda _: neighbors.nearest_of_sane(points, reference, grid), seconds=0.5
    )  # without checks, which wait for the device
    index = neighbors.nearest_of_sane(points, reference, grid)
    return found | {"wrong": count_wrong(points, reference, index[:, None])}


def k_nearest(views: int, height: int, width: int, k: int, run: Run) -> dict[str, Any]:
    """The k nearest of every point within its own set."""
    _, points = (x.to(run.device) for x in maps(views, height, width, 0.02))

    def call() -> Tensor:
        return neighbors.k_nearest_of_sane(points, points, k)

    index = call()
    return measured(lambda _: call(), seconds=0.5) | {"wrong": count_wrong(points, points, index)}


def search_once(views: int, height: int, width: int, run: Run) -> None:
    """Every search that is measured here, once."""
    points, reference = (x.to(run.device) for x in maps(views, height, width, NOISES[0]))
    for grid in ((height, width), None):
        neighbors.nearest_of_sane(points, reference, grid)
    for k in COUNTS:
        neighbors.k_nearest_of_sane(points, points, k)
        neighbors.k_nearest_in_windows(*_windows(views, height, width, k, run))


def _windows(views: int, height: int, width: int, k: int, run: Run) -> Any:
    """What a search in windows is given: points, the views to look in, cameras, k."""
    given = room.views(1, views, height, width, run.device, between=False)
    assert given.pointmap is not None
    c2w, K = given.cameras.c2w, given.cameras.K
    return given.pointmap.points, nearest_others(c2w, min(2, views - 1)), c2w, K, k


def in_windows(views: int, height: int, width: int, k: int, run: Run) -> dict[str, Any]:
    """The k nearest near a point's pixel, in its view and around where two others see it."""
    where = _windows(views, height, width, k, run)
    found = measured(lambda _: neighbors.k_nearest_in_windows(*where), seconds=0.5)
    index = neighbors.k_nearest_in_windows(*where)
    twin = definition.k_nearest_in_windows(*where)
    return found | {"wrong": int((index != twin).any(dim=-1).sum())}


def by_brute_force(views: int, height: int, width: int, run: Run) -> dict[str, Any]:
    """All pairs, as the definition compares them."""
    points, reference = (x.to(run.device) for x in maps(views, height, width, NOISES[0]))
    return measured(lambda _: definition.nearest(points, reference), seconds=0.5)


def count_wrong(points: Tensor, reference: Tensor, index: Tensor) -> int:
    """Points, of some, that have a nearer neighbour than one of those found ([n, k])."""
    step = max(1, len(points) // CHECKED)
    some, found = points[::step].double(), index[::step]
    wrong = 0
    for part, at in zip(some.split(64), found.split(64), strict=True):
        everyone = (part[:, None] - reference.double()).square().sum(-1)
        least = everyone.topk(found.shape[1], largest=False).values
        own = everyone.gather(1, at.to(everyone.device)).sort(dim=1).values
        wrong += int((own > least * (1 + 1e-5) + 1e-12).any(dim=1).sum())
    return wrong

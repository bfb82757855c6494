"""`python -m tests.cuda.errors [NAME ...]`: how far the Triton kernels are from their twins.

A line for each case of the given ones of KERNELS (all without): the largest error of a value and of
a gradient, relative to all that the twin gives (by norms, where nothing else is said), and for
drawings the same of the reference in float32, which shows what rounding does. Twins compute in
float64. The kernels run in Triton's interpreter, so no device is needed.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
IMAGES = ("color", "depth", "alpha")
NOTHING = 1e-6
EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True)
class Error:
    """Of one case of a kernel; None where it has no gradients, or nothing else to compare with."""

    kernel: str
    case: str
    values: float
    gradients: float | None = None
    rounding: tuple[float, float] | None = None


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest norm of a difference over that of what is wanted.

    What is nothing beside the rest of it, or at all, counts beside the rest, or beside 1.
    """
    norms = [float(x.double().norm()) for x in wanted]
    most = max(norms) or 1.0
    sizes = [norm if norm > NOTHING * most else most for norm in norms]
    differences = (a.double() - b.double() for a, b in zip(found, wanted, strict=True))
    return max(float(d.norm()) / size for d, size in zip(differences, sizes, strict=True))


def rasterizer() -> Iterator[Error]:
    """Drawings with everything, gradients of all that has some."""
    from tests.render import test_triton as given

    given.backend.TUNING = given.QUICK
    g = torch.Generator().manual_seed(0)
    some, camera, small = given.random_gaussians(20, g, degree=1), given.front_camera(), (9, 12)
    needle = given.random_gaussians(1, g, degree=1)
    needle.scales[0, 0] = torch.tensor([50.0, 1e-8, 1e-8])
    pile = 0.01 * torch.randn(10_000, 3, generator=g) + torch.tensor([0, 0, 2.0])
    pixel = given.cloud(pile, 0.02, opacity=0.012)
    cases = {
        "no Gaussians": (given.cloud(torch.zeros(0, 3), 1.0), camera, small),
        "one over everything": (given.cloud(torch.tensor([[0.1, 0, 2.0]]), 50.0), camera, (33, 40)),
        "10,000 on one pixel": (pixel, camera, (8, 8)),
        "10,000 opaque": (replace(pixel, opacities=torch.ones(1, 10_000)), camera, (8, 8)),
        "a needle": (needle, camera, small),
        "behind the camera": (given.cloud(torch.tensor([[0, 0, -2.0]]), 0.3), camera, small),
        "an image of 1x1": (some, given.random_cameras(1, g), (1, 1)),
        "one view": (some, given.random_cameras(1, g), (16, 16)),
        "24 views": (some, given.random_cameras(24, g), (7, 5)),
    }
    for case, scene in cases.items():
        ours = given.draw("triton", *scene)
        exact = given.draw("reference", *scene, dtype=torch.float64)
        plain = given.draw("reference", *scene)
        errors = [_of_drawings(found, exact) for found in (ours, plain)]
        yield Error("rasterizer", case, *errors[0], errors[1])


def _of_drawings(found: Any, exact: Any) -> tuple[float, float]:
    """Of all images, and of all gradients; where nothing is drawn, places in it have none."""
    names = [name for name in exact.gradients if name in found.gradients]
    images = ([getattr(x.rendering, n) for n in IMAGES] for x in (found, exact))
    gradients = ([x.gradients[n] for n in names] for x in (found, exact))
    return relative(*images), relative(*gradients)


def sweep() -> Iterator[Error]:
    """The volume, and the gradient of the maps, by each path."""
    from tests.kernels import test_cost_volume as given

    for path in given.BY_TRITON:
        for case in given.ADVERSARIES:
            g = torch.Generator().manual_seed(0)
            features, where = given.adversary(case, g)
            weight = given.weight_like(features, where, g)
            exact = given.by_definition(features, where, weight)
            found = given.by_path(features.float(), given.single(where), weight, path)
            values, gradients = (relative([a], [b]) for a, b in zip(found, exact, strict=True))
            yield Error(f"sweep {path}", case, values, gradients)


def norms() -> Iterator[Error]:
    """Largest differences over the largest number."""
    from tests.kernels import test_norm as given

    for dtype in (torch.float32, torch.bfloat16):
        for shape in given.SHAPES:
            for activation in given.ACTIVATIONS:
                values, *gradients = given.difference(shape, activation, dtype, "cpu")
                n, channels, groups, height, width = shape
                case = f"{activation}, {n}x{channels}x{height}x{width} in {groups} groups"
                yield Error(f"norm {_name(dtype)}", case, values, max(gradients))


def tokens() -> Iterator[Error]:
    """Layer norms and scaled residuals."""
    from tests.kernels import test_tokens as given

    g = torch.Generator().manual_seed(0)
    for kinds in given.KINDS:
        for shape in given.SHAPES:
            x, change, incoming = torch.randn(3, *shape, generator=g).unbind(0)
            weight, bias = torch.randn(2, shape[-1], generator=g).unbind(0)
            x, change = x.to(kinds[0]), change.to(kinds[1])
            for name, by, inputs in (
                ("scaled residual", given.added, (x, change, weight)),
                ("layer norm", given.normalized, (x, change, weight, bias)),
            ):
                found = given.results(by("fused"), inputs, incoming)
                exact = given.results(by("torch"), [v.double() for v in inputs], incoming)
                values, gradients = relative(found[:1], exact[:1]), relative(found[1:], exact[1:])
                dtypes = ", ".join(map(_name, kinds))
                yield Error(f"{name} {dtypes}", "x".join(map(str, shape)), values, gradients)


def distances() -> Iterator[Error]:
    """Largest differences over the largest number."""
    from tests.kernels import test_unit_distance as given

    for dtype in (torch.float32, torch.bfloat16):
        for case in given.CASES:
            values, *gradients = given.difference(case, "last", dtype, "cpu")
            yield Error(f"unit distance {_name(dtype)}", case, values, max(gradients))


def attention() -> Iterator[Error]:
    from tests.kernels import test_neighbor_attention as given

    for dtype in (torch.float32, torch.bfloat16):
        for case in given.CASES:
            g = torch.Generator().manual_seed(0)
            table = given.table(case, g)
            inputs = [x.to(dtype).double() for x in given.draw(case, g)]
            found = given.results_of_triton(inputs, table, dtype, strided=False)
            exact = given.results(given.by_gather, inputs, table, torch.float64)
            values, gradients = relative(found[:1], exact[:1]), relative(found[1:], exact[1:])
            yield Error(f"attention to neighbors {_name(dtype)}", case, values, gradients)


def harmonics() -> Iterator[Error]:
    from pmsplat.kernels.harmonics import turn_by_torch
    from tests.kernels import test_harmonics as given

    g = torch.Generator().manual_seed(0)
    for batch, views, pixels, rows, terms in given.SHAPES:
        inputs = [
            torch.randn(batch, views, *shape, generator=g)
            for shape in ((rows, terms), (pixels, 3, terms), (pixels, 3))
        ]
        weights = torch.randn(batch, views, pixels, rows, 3, generator=g)
        results = []
        for turn, dtype in ((given.by_kernel, torch.float32), (turn_by_torch, torch.float64)):
            matrix, raw, base = (x.to(dtype) for x in inputs)
            found = turn(matrix, raw.requires_grad_(), base)
            (gradient,) = torch.autograd.grad((found * weights.to(dtype)).sum(), raw)
            results.append((found.detach(), gradient))
        values, gradients = (relative([a], [b]) for a, b in zip(*results, strict=True))
        yield Error("turned harmonics", f"{pixels} pixels, {rows}x{terms}", values, gradients)


def alignment() -> Iterator[Error]:
    """Motions of sets of points, where the twin finds one, and rotations that are unique."""
    from pmsplat.geometry import align
    from pmsplat.kernels._alignment_triton import UniqueRotation, fit
    from tests.kernels import test_alignment as given

    results, g = [], torch.Generator().manual_seed(0)
    matrices = given.matrices(g).flatten(0, 1)
    matrices = matrices[align.unique_rotation(matrices)[1]]
    seed = torch.randn(matrices.shape, generator=g, dtype=torch.float64)
    for nearest in (UniqueRotation.apply, align.unique_rotation):
        leaf = matrices.clone().requires_grad_()
        rotation: Any = nearest(leaf)[0]  # pyright: ignore
        results.append((rotation.detach(), torch.autograd.grad(rotation, leaf, seed)[0]))
    values, gradients = (relative([*a], [*b]) for a, b in zip(*results, strict=True))
    yield Error("rotation", "all matrices that have one nearest", values, gradients)

    for case, sets in given.cases(torch.Generator().manual_seed(0)).items():
        for name, twin in given.FITS.items():
            exact = twin(*(x.double() for x in sets))
            found = fit(*sets, scale_alone=name == "rescaling")
            yield Error(
                f"alignment {name}", case, relative([found.nan_to_num()], [exact.nan_to_num()])
            )


def neighbors() -> Iterator[Error]:
    """How much farther than the nearest those are that were found."""
    from pmsplat.kernels import neighbors as door
    from pmsplat.kernels._neighbors_k_triton import search
    from tests.kernels import test_neighbors_k as given

    for case in given.CASES:
        points, reference = given.sets(case, 70, torch.Generator().manual_seed(0))
        for k in (1, 8, 16):
            found = door._k_in_order(points, reference, k, search)
            mine = given.squared_distances(points, reference, found).sqrt()
            exact = torch.cdist(points.double(), reference.double(), compute_mode=EXACT)
            nearest = exact.topk(k, dim=-1, largest=False).values
            yield Error(f"{k} nearest", case, relative([mine], [nearest]))


KERNELS: dict[str, Callable[[], Iterator[Error]]] = {
    "rasterizer": rasterizer, "sweep": sweep, "norms": norms, "tokens": tokens,
    "distances": distances, "attention": attention, "harmonics": harmonics,
    "alignment": alignment, "neighbors": neighbors,
}  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(name: str) -> list[Error]:
    """All cases of one of KERNELS."""
    return list(KERNELS[name]())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.errors")
    parser.add_argument("names", nargs="*", metavar="NAME")
    for name in parser.parse_args().names or KERNELS:
        for error in KERNELS[name]():
            numbers = [error.values, error.gradients, *(error.rounding or ())]
            cells = ("" if number is None else f"{number:.1e}" for number in numbers)
            cells = " ".join(f"{cell:8}" for cell in cells)
            print(f"{error.kernel:38} {error.case:32} {cells}", flush=True)


if __name__ == "__main__":
    main()

"""Several neighbours of each point: exact ones, and those within windows of pixels."""

from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch.nn.functional import interpolate

from pmsplat.errors import UserError
from pmsplat.geometry import camera, se3
from pmsplat.geometry import neighbors as twin
from pmsplat.kernels import neighbors
from pmsplat.nn.cost_volume import nearest_others
from tests.scenes import random_cameras
from tests.waits import no_waits

from .interpreter import interpreted

Set = torch.Tensor


def sets(name: str, count: int, generator: torch.Generator) -> tuple[Set, Set]:
    """Points and reference of a case, [2, about count, 3]."""
    random = torch.randn(2, count, 3, generator=generator)
    lattice = torch.randint(4, (2, count, 3), generator=generator).float()
    clumps = 100 * lattice + 1e-3 * random
    return {
        "itself": (random, random),
        "other": (random[:, : count // 3], 2 * random.flip(1)),
        "one point": (random[:, :1], random),
        "equal": (torch.full((2, count, 3), 0.3), torch.full((2, count, 3), 0.3)),
        "two spots": (lattice.clamp(max=1), lattice.clamp(max=1)),
        "lattice": (lattice, lattice),  # many are equally near
        "line": (random * torch.tensor([1.0, 0, 0]), random * torch.tensor([1.0, 0, 0])),
        "plane": (random * torch.tensor([1.0, 1, 0]), random * torch.tensor([1.0, 1, 0])),
        "clumps": (clumps, clumps),
        "outliers": (torch.cat([random, 1e7 * random], 1), torch.cat([random, 1e7 + random], 1)),
        "huge": (1e17 * random, 1e17 * random),
        "tiny": (1e-15 * random, 1e-15 * random),
    }[name]  # fmt: skip


CASES = ["itself", "other", "one point", "equal", "two spots", "lattice", "line", "plane", "clumps",
         "outliers", "huge", "tiny"]  # fmt: skip


def squared_distances(points: Set, reference: Set, index: Set) -> Set:
    """In float64, from each point to the chosen ones."""
    batch = torch.arange(len(points))[:, None, None]
    difference = points.double()[:, :, None] - reference.double()[batch, index]
    return difference.square().sum(dim=-1)


def assert_k_nearest(found: Set, points: Set, reference: Set, k: int) -> None:
    """None is nearer, none comes twice; in float64, hence up to the rounding of the search."""
    assert found.dtype == torch.int64 and found.shape == (*points.shape[:2], k)
    assert (found.sort(dim=-1).values.diff(dim=-1) > 0).all()
    mine = squared_distances(points, reference, found)
    pairs = torch.cdist(
        points.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    expected = pairs.square().topk(k, dim=-1, largest=False).values
    rounding = 1e-6 if points.dtype == torch.float32 else 1e-13
    torch.testing.assert_close(mine, expected, rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 16, 32])
@pytest.mark.parametrize("case", CASES)
def test_equals_its_twin_to_the_last_index(
    case: str, k: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    points, reference = (x.to(dtype) for x in sets(case, 400, generator))
    found = neighbors.k_nearest(points, reference, k)
    assert_k_nearest(found, points, reference, k)
    assert (found == twin.k_nearest(points, reference, k)).all()


@pytest.mark.parametrize("count", [8, 9, 31, 32, 63, 64, 65, 513])
def test_sets_of_any_size(count: int, generator: torch.Generator) -> None:
    points = torch.randint(3, (1, count, 3), generator=generator).float()
    for k in (1, 8, min(count, 32)):
        assert (neighbors.k_nearest(points, points, k) == twin.k_nearest(points, points, k)).all()


def test_equals_a_kd_tree_on_larger_sets(generator: torch.Generator) -> None:
    points = torch.rand(30_000, 3, generator=generator)
    found = neighbors.k_nearest(points, points, 8)
    assert (found[:, 0] == torch.arange(len(points))).all()  # the point itself
    mine = squared_distances(points[None], points[None], found[None])[0]
    expected = KDTree(points.double().numpy()).query(points.double().numpy(), 8)[0] ** 2
    torch.testing.assert_close(mine, torch.from_numpy(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-21, 1e-23])
def test_distances_that_underflow(size: float, generator: torch.Generator) -> None:
    points = size * torch.randn(1, 300, 3, generator=generator)
    assert (neighbors.k_nearest(points, points, 9) == twin.k_nearest(points, points, 9)).all()


def test_leading_axes_and_threads_do_not_matter(generator: torch.Generator) -> None:
    points = torch.randint(9, (2, 3, 200, 3), generator=generator).float()
    answers, threads = [], numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):  # pyright: ignore
            numba.set_num_threads(count)
            answers.append(neighbors.k_nearest(points, points, 5))
    finally:
        numba.set_num_threads(threads)
    assert all((answer == answers[0]).all() for answer in answers)
    assert (answers[0] == twin.k_nearest(points, points, 5)).all()
    assert (answers[0][1, 2] == neighbors.k_nearest(points[1, 2], points[1, 2], 5)).all()
    assert neighbors.k_nearest(points[:, :, :0], points, 5).shape == (2, 3, 0, 5)


def test_bad_input_is_refused() -> None:
    some = torch.zeros(2, 4, 3)
    with pytest.raises(UserError, match="k = 5 of 4 reference points; wanted at least as many"):
        neighbors.k_nearest(some, some, 5)
    with pytest.raises(UserError, match="k = 33; wanted 1 to 32 neighbors; choose such a number"):
        neighbors.k_nearest(some, torch.zeros(2, 50, 3), 33)
    with pytest.raises(UserError, match=r"not finite .* in sample 1"):
        neighbors.k_nearest(some, torch.stack([some[0], some[1] / 0]), 2)
    with pytest.raises(UserError, match="k = 0; wanted 1 to 32 neighbors"):
        neighbors.k_nearest_in_windows(*windows(2, (2, 3), 1, generator=torch.Generator()), k=0)


@interpreted
@pytest.mark.parametrize(
    ("case", "count", "k"),
    [("other", 150, 8), ("lattice", 70, 9), ("equal", 130, 4), ("outliers", 70, 16),
     ("two spots", 40, 32), ("one point", 40, 1), ("clumps", 70, 5)],
)  # fmt: skip
def test_the_gpu_kernel_interpreted_equals_its_twin(
    case: str, count: int, k: int, generator: torch.Generator
) -> None:
    from pmsplat.kernels._neighbors_k_triton import search

    points, reference = sets(case, count, generator)
    if case == "clumps":
        points, reference = points.double(), reference.double()
    found = neighbors._k_in_order(points, reference, k, search)
    assert_k_nearest(found, points, reference, k)
    if case in ("lattice", "equal", "two spots"):  # distances are exact, so that ties are ties
        assert (found == twin.k_nearest(points, reference, k)).all()


Windows = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def windows(
    views: int,
    size: tuple[int, int],
    others: int,
    dtype: torch.dtype = torch.float32,
    *,
    generator: torch.Generator,
) -> Windows:
    """Points of two scenes: many seen by others, some behind all cameras, some on one spot."""
    cameras = random_cameras(views, generator, 2, dtype=dtype, spread=0.8)
    depth = 1 + 3 * torch.rand(2, views, *size, generator=generator, dtype=dtype)
    points = camera.unproject_depth(depth, cameras.c2w, cameras.K)
    points[0, 0, 0] *= -1
    points[:, -1] = points[:, -1, :1, :1]
    return points, nearest_others(cameras.c2w, others), cameras.c2w, cameras.K


SHAPES = [
    (3, (5, 7), 2, 4, 1),
    (2, (6, 8), 1, 16, 3),
    (1, (1, 1), 0, 3, 2),
    (2, (6, 9), 1, 32, 2),
    (4, (3, 5), 2, 1, 3),
    (3, (5, 7), 2, 12, 0),
]  # views, size, others, k, radius


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("views", "size", "others", "k", "radius"), SHAPES)
def test_windows_equal_their_twin(
    views: int, size: tuple[int, int], others: int, k: int, radius: int, dtype: torch.dtype,
    generator: torch.Generator,
) -> None:  # fmt: skip
    given = windows(views, size, others, dtype, generator=generator)
    found = neighbors.k_nearest_in_windows(*given, k, radius)
    assert found.shape == (2, views, *size, k)
    assert (found == twin.k_nearest_in_windows(*given, k, radius)).all()


@interpreted
@pytest.mark.parametrize(("views", "size", "others", "k", "radius"), SHAPES)
def test_windows_of_the_gpu_kernel_interpreted_equal_their_twin(
    views: int, size: tuple[int, int], others: int, k: int, radius: int, generator: torch.Generator
) -> None:
    from pmsplat.kernels._neighbors_k_triton import search_windows

    points, seen, c2w, K = windows(views, size, others, generator=generator)
    found = search_windows(points, seen, se3.invert(c2w), K, k, radius).unflatten(2, size)
    assert (found == twin.k_nearest_in_windows(points, seen, c2w, K, k, radius)).all()


def test_windows_find_most_true_neighbors(generator: torch.Generator) -> None:
    """Of a smooth surface in three views, all but the point itself."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 32), indexing="ij")
    depth = (2 + 0.3 * torch.sin(4 * x) + 0.2 * torch.cos(5 * y)).expand(1, 3, -1, -1)
    c2w = torch.eye(4).repeat(1, 3, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 0.05, 0.1])
    K = torch.tensor([[1.0, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).expand(1, 3, 3, 3)
    points = camera.unproject_depth(depth, c2w, K)
    found = neighbors.k_nearest_in_windows(points, nearest_others(c2w, 2), c2w, K, 8)
    flat = points.flatten(1, 3)
    exact = neighbors.k_nearest(flat, flat, 9)[..., 1:]
    shared = (found.flatten(1, 3)[..., None] == exact[..., None, :]).any(dim=-1)
    assert shared.float().mean() > 0.95


def test_windows_are_those_of_the_official_code(shared: Path) -> None:
    name = "resplat_small_localknn_v4_64x96_r1.npz"
    with np.load(shared / "reference" / name) as golden:
        depth, c2w, K, expected = (
            torch.from_numpy(golden[key].astype(kind))
            for key, kind in (("out/depth", "f4"), ("in/extrinsics", "f4"),
                              ("in/intrinsics", "f4"), ("knn/init", "i8"))
        )  # fmt: skip
    low = interpolate(depth, (16, 24), mode="bilinear", align_corners=True)
    points = camera.unproject_depth(low, c2w, K)
    found = neighbors.k_nearest_in_windows(points, nearest_others(c2w, 32), c2w, K, 16)
    assert (found.reshape(-1, 16).sort().values == expected.sort().values).all()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 8, 16, 32])
@pytest.mark.parametrize("case", CASES)
def test_cuda_finds_none_nearer(
    case: str, k: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    points, reference = (x.to(dtype) for x in sets(case, 3000, generator))
    found = neighbors.k_nearest(points.cuda(), reference.cuda(), k).cpu()
    assert_k_nearest(found, points, reference, k)
    if case in ("lattice", "equal", "two spots"):
        assert (found == neighbors.k_nearest(points, reference, k)).all()


@pytest.mark.cuda
@pytest.mark.parametrize("k", [8, 16])
def test_cuda_equals_the_cpu_on_large_sets(k: int, generator: torch.Generator) -> None:
    points = torch.rand(1, 131_072, 3, generator=generator) * torch.tensor([1.0, 1, 0.01])
    expected = neighbors.k_nearest(points, points, k)
    found = neighbors.k_nearest(points.cuda(), points.cuda(), k).cpu()
    torch.testing.assert_close(
        squared_distances(points, points, found), squared_distances(points, points, expected),
        rtol=1e-6, atol=0,
    )  # fmt: skip


@pytest.mark.cuda
@pytest.mark.parametrize(("views", "size", "others"), [(2, (6, 8), 1), (8, (64, 112), 7)])
def test_cuda_windows_equal_those_of_the_cpu(
    views: int, size: tuple[int, int], others: int, generator: torch.Generator
) -> None:
    given = windows(views, size, others, generator=generator)
    expected = neighbors.k_nearest_in_windows(*given, 16)
    points, seen, c2w, K = (x.cuda() for x in given)
    found = neighbors.k_nearest_in_windows(points, seen, c2w, K, 16)
    assert (found.cpu() == expected).float().mean() > 0.9999  # but for a pixel's rounding


@pytest.mark.cuda
def test_the_host_never_waits_for_the_device(generator: torch.Generator) -> None:
    points, seen, c2w, K = (x.cuda() for x in windows(3, (16, 24), 2, generator=generator))
    flat = points.flatten(1, 3)

    def both() -> None:
        neighbors.k_nearest_of_sane(flat, flat, 8)
        neighbors.k_nearest_in_windows(points, seen, c2w, K, 8)

    both()  # compiles
    with no_waits():
        both()

import math

import numba
import pytest
import torch
from scipy.spatial import KDTree

from benchmarks import measure
from pmsplat.errors import UserError
from pmsplat.geometry import neighbors as twin
from pmsplat.kernels import neighbors

from .interpreter import interpreted

Set = torch.Tensor
Grid = tuple[int, int] | None


def surface(views: int, height: int, width: int) -> Set:
    """[view · height · width, 3]: a smooth surface with a jump, seen by cameras side by side."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    depth = 2 + 0.5 * torch.sin(5 * x) + 0.4 * torch.cos(4 * y) + 1.5 * (x > 0.6) * (y < 0.5)
    points = torch.stack([(x - 0.5) * depth, (y - 0.5) * depth, depth], dim=-1)
    shift = 0.3 * torch.arange(views)[:, None, None, None] * torch.tensor([1.0, 0.1, 0.2])
    return (points + shift).reshape(-1, 3)


def displaced(reference: Set, noise: float, generator: torch.Generator) -> Set:
    """Noise in proportion to depth, then a similarity that alignment got wrong."""
    moved = reference + noise * reference[:, 2:] * torch.randn(reference.shape, generator=generator)
    return 1.02 * moved + torch.tensor([0.05, -0.03, 0.04])


def sets(name: str, generator: torch.Generator) -> tuple[Set, Set, tuple[int, int] | None]:
    """Points, reference and grid of a case."""
    grid = (37, 45)
    reference = surface(2, *grid)
    count = len(reference)
    random = torch.randn(count, 3, generator=generator)
    return {
        "aligned": (displaced(reference, 0.01, generator), reference, grid),
        "noisy": (displaced(reference, 0.2, generator), reference, grid),
        "itself": (reference, reference, grid),
        "far away": (0.3 * reference.flip(-1) + 7, reference, grid),
        "shuffled": (reference[torch.randperm(count, generator=generator)], reference, grid),
        "no grid": (displaced(reference[:1000], 0.02, generator), reference, None),
        "random": (random, torch.randn(777, 3, generator=generator), None),
        "outlier": (random, torch.cat([random[:500] * 2, torch.full((1, 3), 1e7)]), None),
        "one spot": (random, torch.full((count, 3), 0.3), grid),
        "on one spot": (torch.full((20, 3), 0.3), torch.full((300, 3), 0.3), None),
        "on a line": (random, reference * torch.tensor([1.0, 0, 0]), None),
        "huge": (1e17 * random, 1e17 * reference, grid),
        "tiny": (1e-15 * random, 1e-15 * reference, grid),
        "one point": (random[:1], reference, None),
        "one to choose": (random, reference[:1], None),
        "one of each": (random[:1], reference[:1], (1, 1)),
    }[name]


CASES = ["aligned", "noisy", "itself", "far away", "shuffled", "no grid", "random", "outlier",
         "one spot", "on one spot", "on a line", "huge", "tiny", "one point", "one to choose",
         "one of each"]  # fmt: skip


def assert_nearest(found: Set, points: Set, reference: Set, mask: Set | None = None) -> None:
    """Compares with every pair in float64; what may differ is the rounding of the distance."""
    pairs = torch.cdist(
        points.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    chosen = pairs.gather(-1, found[..., None])[..., 0]
    if mask is not None:
        assert mask.gather(-1, found).all()
        pairs = pairs.masked_fill(~mask[..., None, :], torch.inf)
    rounding = 1e-6 if torch.float32 in (points.dtype, reference.dtype) else 1e-14
    torch.testing.assert_close(chosen, pairs.amin(dim=-1), rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_none_is_nearer(case: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    points, reference, grid = sets(case, generator)
    points, reference = points.to(dtype), reference.to(dtype)
    for used in {grid, None}:
        found = neighbors.nearest(points, reference, used)
        assert found.dtype == torch.int64
        assert_nearest(found, points, reference)


@pytest.mark.parametrize("grid", [(6, 35), (35, 6), (1, 210), (210, 1), (2, 3), (1, 1), None])
def test_masks_and_batches_of_any_grid(
    grid: tuple[int, int] | None, generator: torch.Generator
) -> None:
    points, reference = torch.randn(2, 3, 2, 210, 3, generator=generator)
    mask = torch.rand(3, 2, 210, generator=generator) > 0.7
    mask[0, 0], mask[0, 1] = False, True
    mask[0, 0, 100] = True
    reference[~mask] = torch.nan
    found = neighbors.nearest(points, reference, grid, mask)
    assert found.shape == (3, 2, 210) and (found[0, 0] == 100).all()
    assert (found == twin.nearest(points, reference, mask)).all()
    assert_nearest(found, points, reference.nan_to_num(), mask)


def squared_distance(
    points: torch.Tensor,
    reference: torch.Tensor,
    grid: tuple[int, int] | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """From each point to its nearest reference point."""
    index = neighbors.nearest(points, reference, grid, mask)
    return neighbors.squared_distance_to(points, reference, index)


def test_a_mask_counts_as_leaving_out(generator: torch.Generator) -> None:
    points, reference, grid = sets("aligned", generator)
    mask = torch.rand(len(reference), generator=generator) > 0.5
    found = neighbors.nearest(points, reference, grid, mask)
    kept = mask.nonzero()[:, 0]
    assert (found == kept[neighbors.nearest(points, reference[kept])]).all()


def test_equals_a_kd_tree_on_larger_sets(generator: torch.Generator) -> None:
    reference = surface(2, 130, 150)
    points = displaced(reference, 0.02, generator)
    squared = squared_distance(points, reference, (130, 150))
    expected = KDTree(reference.double().numpy()).query(points.double().numpy())[0] ** 2
    torch.testing.assert_close(squared.double(), torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_threads_do_not_change_the_answer(generator: torch.Generator) -> None:
    """Even where many are equally near."""
    points = torch.randint(9, (5000, 3), generator=generator).float()
    reference = torch.randint(9, (4000, 3), generator=generator).float()
    answers, threads = [], numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):  # pyright: ignore
            numba.set_num_threads(count)
            answers.append(neighbors.nearest(points, reference))
    finally:
        numba.set_num_threads(threads)
    assert all((answer == answers[0]).all() for answer in answers)


def test_layouts_of_memory_do_not_matter(generator: torch.Generator) -> None:
    points, reference = torch.randn(2, 3, 64, 2, generator=generator)
    mask = (torch.rand(64, 2, generator=generator) > 0.5).T
    points, reference = points.permute(2, 1, 0), reference.permute(2, 1, 0)
    found = neighbors.nearest(points, reference, (8, 8), mask)
    assert (found == twin.nearest(points.contiguous(), reference.contiguous(), mask)).all()


def test_gradients_reach_both_sets(generator: torch.Generator) -> None:
    points = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 12, generator=generator) > 0.4
    assert torch.autograd.gradcheck(
        lambda p, r: squared_distance(p, r, (3, 4), mask), (points, reference)
    )


def test_a_masked_reference_point_gets_no_gradient(generator: torch.Generator) -> None:
    points = torch.randn(5, 3, generator=generator)
    reference = torch.tensor([[torch.nan] * 3, [1.0, 2, 3]], requires_grad=True)
    mask = torch.tensor([False, True])
    squared_distance(points, reference, mask=mask).sum().backward()
    assert reference.grad is not None and (reference.grad[0] == 0).all()
    wanted = 2 * (reference.detach()[1] - points).sum(dim=0)
    torch.testing.assert_close(reference.grad[1], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    points, reference = (x.to(dtype) for x in torch.randn(2, 40, 3, generator=generator))
    leaf = points.requires_grad_()
    squared = squared_distance(leaf, reference)
    assert squared.dtype == torch.float32
    expected = torch.cdist(points.detach().double(), reference.double()).amin(dim=-1).square()
    torch.testing.assert_close(squared.double(), expected, rtol=1e-5, atol=1e-9)
    squared.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == dtype


def test_no_points_have_no_neighbours() -> None:
    assert neighbors.nearest(torch.zeros(2, 0, 3), torch.zeros(2, 5, 3)).shape == (2, 0)
    assert squared_distance(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3)).shape == (0, 4)


def test_bad_input_is_refused() -> None:
    good = torch.zeros(2, 6, 3)
    with pytest.raises(UserError, match="6 points and 4 reference points for a grid of 2 by 3"):
        neighbors.nearest(good, good[:, :4], (2, 3))
    with pytest.raises(UserError, match="for a grid of 4 by 1; wanted as many of both, a whole"):
        neighbors.nearest(good, good, (4, 1))
    with pytest.raises(UserError, match=r"not finite .* in sample 1"):
        squared_distance(good, torch.stack([good[0], good[1] / 0]))
    mask = torch.tensor([True, False])[:, None].expand(2, 6)
    with pytest.raises(UserError, match="all masked in sample 1"):
        neighbors.nearest(good, good, (2, 3), mask)


@pytest.mark.skipif(not measure.CLEAR.exists(), reason="no /proc/self/clear_refs")
def test_memory_grows_with_the_points_alone(generator: torch.Generator) -> None:
    if torch.cuda.is_available():
        pytest.skip("measures the GPU here")
    neighbors.nearest(torch.zeros(1, 3), torch.zeros(1, 3))
    points, reference = torch.rand(2, 100_000, 3, generator=generator)
    peak = measure.peak_mib(lambda: neighbors.nearest(points, reference))
    assert peak is not None and peak * 2**20 < 600 * 100_000  # bytes for each; all pairs: 40 GB


@interpreted
def test_the_gpu_kernel_interpreted_equals_its_twin(generator: torch.Generator) -> None:
    from pmsplat.kernels._neighbors_triton import search

    def compare(points: Set, reference: Set, grid: Grid = None, mask: Set | None = None) -> None:
        found = neighbors._in_order(points, reference, grid, mask, search)
        wanted = twin.nearest(points, reference, mask)
        one, other = (reference.gather(1, i[..., None].expand(-1, -1, 3)) for i in (found, wanted))
        assert (one == other).all(), (points.shape, reference.shape, points.dtype)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Set:
        return torch.randn(*shape, 3, generator=generator, dtype=dtype)

    for dtype, n, m, grid in ((torch.float32, 150, 150, (10, 15)), (torch.float64, 70, 330, None)):
        mask = torch.rand(2, m, generator=generator) > 0.3
        compare(random(2, n, dtype=dtype), random(2, m, dtype=dtype), grid, mask)
    compare(random(1, 1), random(1, 1))
    # a block that is one point, tiles that are one spot each, two groups: the sharpest bounds
    compare(random(64, 1), random(64, 60).repeat_interleave(64, dim=1))
    one = torch.full((1, 130, 3), 0.3)
    for some in (one, random(1, 70)):  # nothing is nearer than anything else
        assert neighbors._in_order(some, one, None, None, search).max() < 130


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_places_on_the_curve_interpreted(
    case: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Two samples of some of the points, by columns and by rows, and points outside the cube."""
    from pmsplat.kernels._neighbors_triton import codes

    points, reference = (x.to(dtype)[:300].expand(2, -1, -1) for x in sets(case, generator)[:2])
    reference = reference * torch.tensor([1.0, 0.5])[:, None, None].to(dtype)
    cube = neighbors._corners(reference, None)
    for some in (points, reference):
        wanted = neighbors._codes(some, *cube)
        assert torch.equal(codes(some, *cube), wanted)
        assert torch.equal(codes(some.transpose(1, 2).contiguous().transpose(1, 2), *cube), wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_cuda_finds_none_nearer(case: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    points, reference, grid = sets(case, generator)
    points, reference = points.to(dtype).cuda(), reference.to(dtype).cuda()
    for used in {grid, None}:
        assert_nearest(neighbors.nearest(points, reference, used), points, reference)


@pytest.mark.cuda
def test_cuda_masks_batches_and_gradients(generator: torch.Generator) -> None:
    points, reference = torch.randn(2, 3, 1000, 3, generator=generator)
    mask = torch.rand(3, 1000, generator=generator) > 0.5
    results = []
    for device in ("cpu", "cuda"):
        some, others = points.to(device).requires_grad_(), reference.to(device).requires_grad_()
        squared = squared_distance(some, others, (20, 50), mask.to(device))
        gradients = torch.autograd.grad(squared.sum(), [some, others])
        results.append([x.detach().cpu() for x in (squared, *gradients)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_the_cases_are_what_they_say(generator: torch.Generator) -> None:
    """Same pixels lie near each other but are not the nearest; the noise does its work."""
    points, reference, grid = sets("aligned", generator)
    assert grid is not None and len(points) % math.prod(grid) == 0
    own = neighbors.nearest(points, reference, grid) == torch.arange(len(points))
    assert 0.01 < own.float().mean() < 0.5

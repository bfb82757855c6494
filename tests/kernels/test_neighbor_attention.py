"""Attention to neighbours against a plain gather in float64: values, gradients, odd tables."""

from collections.abc import Callable, Sequence

import numba
import pytest
import torch
from torch import Tensor

from pmsplat.errors import UserError
from pmsplat.kernels import neighbor_attention as kernel
from pmsplat.kernels import neighbors
from tests.waits import no_waits

from .interpreter import interpreted

Attend = Callable[..., Tensor]


CASES = {  # n, m, channels, k
    "nearest": (60, 60, 64, 8),
    "nearest of many": (140, 140, 16, 16),
    "any": (45, 30, 48, 5),
    "themselves": (40, 40, 64, 1),
    "all the same": (70, 20, 32, 4),
    "twice": (20, 20, 16, 6),
    "one point": (1, 1, 64, 1),
    "as many neighbors as points": (32, 32, 64, 32),
    "odd sizes": (17, 19, 5, 3),
    "widest": (20, 20, 128, 3),
}


def table(case: str, generator: torch.Generator) -> Tensor:
    """The neighbours of a case, for two samples."""
    n, m, _, k = CASES[case]
    if case.startswith("nearest"):
        points = torch.randn(2, n, 3, generator=generator)
        return neighbors.k_nearest(points, points, k)
    if case == "themselves":
        return torch.arange(n)[None, :, None].expand(2, -1, -1)
    if case == "all the same":
        return torch.full((2, n, k), 13)
    if case.startswith("as many"):
        return torch.stack([torch.randperm(m, generator=generator) for _ in range(2 * n)]).view(
            2, n, k
        )
    found = torch.randint(m, (2, n, k), generator=generator)
    if case == "twice":
        found[..., 1::2] = found[..., ::2]
    return found


def draw(case: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and the gradient of the result, in float64; scores beyond ±10."""
    n, m, channels, _ = CASES[case]
    sizes = (n, m, m, n)
    q, k, v, g = (
        torch.randn(2, size, channels, generator=generator, dtype=torch.float64) for size in sizes
    )
    return 4 * q, k, v, g


def by_gather(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """The attention by masking that of all pairs: as often as a place names a point, it counts."""
    scores = queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5
    named = torch.nn.functional.one_hot(table, keys.shape[1]).sum(dim=2)
    return (scores + named.double().log()).softmax(dim=-1) @ values


def results(
    attend: Attend, given: Sequence[Tensor], table: Tensor, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """The result and the gradients of queries, keys and values."""
    leaves = [x.to(device, dtype).detach().requires_grad_() for x in given[:3]]
    out = attend(*leaves, table.to(device))
    return [out.detach(), *torch.autograd.grad(out, leaves, given[3].to(out))]


def results_of_triton(
    given: Sequence[Tensor], table: Tensor, dtype: torch.dtype, strided: bool
) -> list[Tensor]:
    """The same by the kernels of CUDA devices, interpreted."""
    from pmsplat.kernels._neighbor_attention_triton import backward, forward

    q, k, v, g = (x.to(dtype) for x in given)
    if strided:  # as parts of one tensor are
        k, v = torch.cat([k, v], dim=2).chunk(2, dim=2)
        g = g.transpose(1, 2).contiguous().transpose(1, 2)
    out, log_sums = forward(q, k, v, table)
    inverse = kernel.invert(table, k.shape[1])
    return [out, *backward(g, q, k, v, table, log_sums, inverse)]


def assert_right(found: Sequence[Tensor], given: Sequence[Tensor], table: Tensor) -> None:
    """Result and gradients are those of the plain gather up to the rounding of their dtype."""
    bound = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 1e-2}[found[0].dtype]
    expected = results(by_gather, given, table, torch.float64)
    for mine, right in zip(found, expected, strict=True):
        assert mine.dtype == found[0].dtype and mine.shape == right.shape
        error = (mine.cpu().double() - right).abs().max()
        assert error <= bound * right.abs().max().clamp_min(1)


DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attend", [kernel.attend_neighbors, kernel.attend_by_torch])
def test_equals_a_plain_gather(
    attend: Attend, case: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    near = table(case, generator)
    given = [x.to(dtype).double() for x in draw(case, generator)]
    assert_right(results(attend, given, near, dtype), given, near)


@interpreted
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_kernels_interpreted_equal_a_plain_gather(
    case: str, generator: torch.Generator
) -> None:
    near = table(case, generator)
    for dtype in DTYPES:
        given = [x.to(dtype).double() for x in draw(case, generator)]
        assert_right(results_of_triton(given, near, dtype, dtype == torch.float32), given, near)


@pytest.mark.parametrize("attend", [kernel.attend_neighbors, kernel.attend_by_torch])
def test_gradients_are_those_of_finite_differences(
    attend: Attend, generator: torch.Generator
) -> None:
    near = torch.randint(6, (2, 5, 3), generator=generator)
    given = [
        torch.randn(2, n, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (5, 6, 6)
    ]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, near), given)


def test_parts_of_one_tensor_are_read_in_place(generator: torch.Generator) -> None:
    """Thirds of a projection, samples that repeat, and channels that are not side by side."""
    points = torch.randn(2, 50, 3, generator=generator)
    near = neighbors.k_nearest(points, points, 6)
    whole = torch.randn(2, 50, 48, generator=generator, dtype=torch.float64)
    for parts in (whole.chunk(3, dim=2), whole[:1].expand(2, -1, -1).chunk(3, dim=2),
                  whole.view(2, 3, 16, 50).transpose(2, 3).unbind(1)):  # fmt: skip
        g = torch.randn(2, 16, 50, generator=generator, dtype=torch.float64).transpose(1, 2)
        q, k, v = (x.detach().requires_grad_() for x in parts)
        out = kernel.attend_neighbors(q, k, v, near)
        found = [out.detach(), *torch.autograd.grad(out, (q, k, v), g)]
        assert_right(found, (*parts, g), near)


def test_large_scores_do_not_overflow(generator: torch.Generator) -> None:
    q, k, v, g = (x.float() for x in draw("nearest", generator))
    near = table("nearest", generator)
    given = [1e4 * q, k, v, g]
    found = results(kernel.attend_neighbors, given, near, torch.float32)
    expected = results(by_gather, given, near, torch.float64)
    torch.testing.assert_close(found[0].double(), expected[0], atol=1e-3, rtol=1e-3)
    assert all(x.isfinite().all() for x in found)


def test_what_is_not_a_number_stays_so(generator: torch.Generator) -> None:
    q, k, v, _ = draw("nearest", generator)
    near = table("nearest", generator)
    k[0, 7] = torch.nan
    out = kernel.attend_neighbors(q, k, v, near)
    assert (
        out.isnan().all(dim=2) == (near == 7).any(dim=2) * torch.tensor([[True], [False]])
    ).all()


def test_the_table_is_inverted_as_by_sorting(generator: torch.Generator) -> None:
    for case in CASES:
        near, m = table(case, generator), CASES[case][1]
        inverse = kernel.invert(near, m)
        named, places = near.flatten(1).sort(dim=1, stable=True)
        assert (inverse.places == places).all()
        for j in range(m):
            assert (inverse.starts[:, j] == (named < j).sum(dim=1)).all()
        assert (inverse.starts[:, m] == places.shape[1]).all()
        sorted_ = kernel._sort(near, m)
        assert (inverse.places == sorted_.places).all() and (inverse.starts == sorted_.starts).all()


def test_an_inverse_is_used_where_it_is_given(generator: torch.Generator) -> None:
    near, given = table("nearest", generator), draw("nearest", generator)
    expected = results(kernel.attend_neighbors, given, near, torch.float32)
    inverse = kernel.invert(near, 60)

    def attend(q: Tensor, k: Tensor, v: Tensor, near: Tensor) -> Tensor:
        return kernel.attend_neighbors(q, k, v, near, inverse)

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(kernel, "invert")
        found = results(attend, given, near, torch.float32)
    assert all(map(torch.equal, found, expected))


def test_neither_threads_nor_runs_matter(generator: torch.Generator) -> None:
    near, given = table("nearest of many", generator), draw("nearest of many", generator)
    answers, threads = [], numba.get_num_threads()
    try:
        for count in (*range(1, numba.config.NUMBA_NUM_THREADS + 1), 1):  # pyright: ignore
            numba.set_num_threads(count)
            answers.append(results(kernel.attend_neighbors, given, near, torch.float32))
    finally:
        numba.set_num_threads(threads)
    for answer in answers:
        assert all(map(torch.equal, answer, answers[0]))


def test_only_wanted_gradients_are_there(generator: torch.Generator) -> None:
    q, k, v, _ = (x.float() for x in draw("nearest", generator))
    near = table("nearest", generator)
    assert not kernel.attend_neighbors(q, k, v, near).requires_grad
    kernel.attend_neighbors(q, k, v.requires_grad_(), near).sum().backward()
    assert q.grad is None and k.grad is None and v.grad is not None


@pytest.mark.parametrize(("batch", "n"), [(0, 5), (2, 0)])
def test_no_points_give_no_result(batch: int, n: int) -> None:
    q, k = torch.zeros(batch, n, 16, requires_grad=True), torch.zeros(batch, 5, 16)
    out = kernel.attend_neighbors(q, k, k, torch.zeros(batch, n, 4, dtype=torch.int64))
    assert out.shape == (batch, n, 16)
    out.sum().backward()


def test_the_definition_gathers_for_some_points_at_a_time(generator: torch.Generator) -> None:
    near, given = table("nearest of many", generator), draw("nearest of many", generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "GATHERED", 2 * 16 * 16 * 7)
        assert_right(results(kernel.attend_by_torch, given, near, torch.float32), given, near)


def test_bad_input_is_refused() -> None:
    some, near = torch.zeros(2, 4, 16), torch.zeros(2, 4, 3, dtype=torch.int64)
    with pytest.raises(UserError, match=r"queries \(2, 4, 16\), keys \(2, 4, 8\)"):
        kernel.attend_neighbors(some, some[..., :8], some, near)
    with pytest.raises(UserError, match=r"table \(2, 3, 3\); wanted"):
        kernel.attend_neighbors(some, some, some, near[:, :3])
    with pytest.raises(UserError, match=r"keys and values of torch\.float32, torch\.float64"):
        kernel.attend_neighbors(some, some.double(), some, near)
    with pytest.raises(
        UserError, match=r"neighbors 0 to 4 of 4 points; wanted indices from 0 to 3"
    ):
        kernel.attend_neighbors(some, some, some, near + torch.tensor([0, 2, 4]))
    with pytest.raises(UserError, match=r"neighbors -1 to 0 of 4 points"):
        kernel.attend_neighbors(some, some, some, -near.new_tensor([0, 0, 1]).expand(2, 4, 3))
    with pytest.raises(UserError, match=r"200 channels .* wanted 1 to 128"):
        wide = torch.zeros(2, 4, 200)
        kernel.attend_neighbors(wide, wide, wide, near)
    with pytest.raises(UserError, match=r"0 neighbors; wanted .* at least one"):
        kernel.attend_neighbors(some, some, some, near[..., :0])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_cuda_equals_a_plain_gather(
    case: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    near = table(case, generator)
    given = [x.to(dtype).double() for x in draw(case, generator)]
    for attend in (kernel.attend_neighbors, kernel.attend_by_torch):
        assert_right(results(attend, given, near, dtype, "cuda"), given, near)


@pytest.mark.cuda
@pytest.mark.parametrize("k", [8, 16])
def test_cuda_equals_the_cpu_on_large_sets(k: int, generator: torch.Generator) -> None:
    points = torch.rand(1, 57_344, 3, generator=generator) * torch.tensor([1.0, 1, 0.01])
    near = neighbors.k_nearest(points, points, k)
    given = [torch.randn(1, 57_344, 64, generator=generator) for _ in range(4)]
    expected = results(kernel.attend_neighbors, given, near, torch.float32)
    found = results(kernel.attend_neighbors, given, near, torch.float32, "cuda")
    again = results(kernel.attend_neighbors, given, near, torch.float32, "cuda")
    assert all(map(torch.equal, found, again))
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
def test_the_host_never_waits_for_the_device(generator: torch.Generator) -> None:
    near, given = table("nearest", generator).cuda(), draw("nearest", generator)
    q, k, v = (x.cuda().requires_grad_() for x in given[:3])

    def both() -> None:
        for attend in (kernel.attend_neighbors, kernel.attend_by_torch):
            attend(q, k, v, near).sum().backward()

    both()  # compiles
    with no_waits():
        both()

"""Where the kernels for CUDA cannot run, and what is too large for them; no GPU is needed."""

import subprocess
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pmsplat.errors import UserError
from pmsplat.geometry import neighbors
from pmsplat.kernels import cuda
from pmsplat.kernels._sweep import FlatSweep
from pmsplat.kernels.harmonics import turn_by_torch
from pmsplat.kernels.neighbor_attention import _sort, attend_by_torch

from .interpreter import interpreted

GPU = torch.device("cuda", 77)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing is known of any device, before and after."""
    for known in (cuda._broken, cuda._warn_slow):
        known.cache_clear()
    yield
    for known in (cuda._broken, cuda._warn_slow):
        known.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A CUDA device of some capability, on which Triton's driver fails or not."""
    driver = pytest.importorskip("triton").runtime.driver

    def seem(capability: tuple[int, int], error: Exception | None = None) -> None:
        def find_target() -> None:
            if error is not None:
                raise error

        active = SimpleNamespace(get_current_target=find_target)
        monkeypatch.setattr(driver, "_active", active)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")

    return seem


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to find C compiler."), "Failed to find C compiler"),
        (RuntimeError("0 active drivers ([])."), "0 active drivers"),
        (subprocess.CalledProcessError(1, ["gcc", "driver.c"]), "'gcc', 'driver.c'.*exit status 1"),
        (OSError("libcuda.so.1: cannot open"), "cannot open"),
    ],
)
def test_a_triton_that_cannot_start_is_one_sentence(
    error: Exception, said: str, gpu: Callable[..., None]
) -> None:
    gpu((9, 0), error)
    with pytest.raises(UserError, match=rf"cannot use cuda:77 \(.*{said}.*; wanted .*C compiler"):
        cuda.require(GPU)


def test_an_old_device_is_named_and_a_new_one_taken(gpu: Callable[..., None]) -> None:
    gpu((6, 1))
    with pytest.raises(UserError, match=r"GTX 1080 has compute capability 6\.1; wanted 7\.5 or"):
        cuda.require(GPU)
    cuda._broken.cache_clear()
    gpu((7, 5))
    assert cuda.obstacle(GPU) is None and cuda.has_kernels(GPU)


def test_the_slow_way_is_said_once_for_each_obstacle(
    gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu((9, 0), RuntimeError("Failed to find C compiler."))
    with pytest.warns(UserWarning, match="C compiler.*torch's own operators, which is slower"):
        assert not cuda.has_kernels(GPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cuda.has_kernels(GPU)
        assert not cuda.has_kernels(torch.device("cpu"))
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="triton is not installed.*pip install triton"):
        assert not cuda.has_kernels(GPU)


def large(*shape: int) -> Tensor:
    """Zeros that share one place in memory."""
    return torch.zeros(()).expand(shape)


def sweep(views: int, pixels: int, channels: int, planes: int, per_pixel: bool) -> Any:
    """What the paths of the plane sweep are given: features, and where to look for them."""
    places = (1, pixels) if per_pixel else (1, 1)
    where = FlatSweep(
        large(views, 1), large(views, 1, 3, 4), large(views, planes, *places), 0.5, 1, pixels
    )
    return large(views, pixels, channels), where


TOO_LARGE: dict[str, tuple[str, str, tuple[Any, ...]]] = {  # module, function, arguments
    "pixels of all maps": ("_sweep_triton", "check_size", sweep(2**11, 2**20, 8, 8, False)),
    "numbers of a map": ("_sweep_triton", "check_size", sweep(1, 2**24, 128, 8, False)),
    "depths of a map": ("_sweep_triton", "check_size", sweep(1, 2**24, 8, 128, True)),
    "points": ("_neighbors_triton", "search", (large(1, 2**30, 3), large(1, 9, 3))),
    "references": ("_neighbors_triton", "search", (large(1, 9, 3), large(1, 2**30, 3))),
    "points for k": (
        "_neighbors_k_triton", "search", (large(1, 2**30, 3), large(1, 9, 3), large(1, 9), 4)
    ),
    "windows": (
        "_neighbors_k_triton", "search_windows",
        (large(1, 2**10, 2**10, 2**10, 3), large(1, 2**10, 1), large(1, 2**10, 4, 4),
         large(1, 2**10, 3, 3), 4, 3),
    ),
    "sets to align": (
        "_alignment_triton", "fit",
        (large(1, 2**30, 3), large(1, 2**30, 3), large(1, 2**30), False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_32_bits_cannot_number_is_refused(what: str) -> None:
    pytest.importorskip("triton")
    name, function, arguments = TOO_LARGE[what]
    run = getattr(import_module(f"pmsplat.kernels.{name}"), function)
    with pytest.raises(UserError, match="cannot number in 32 bits; wanted fewer than 2³¹"):
        run(*arguments)


def test_maps_tokens_and_harmonics_that_32_bits_cannot_number_are_refused() -> None:
    pytest.importorskip("triton")
    from pmsplat.kernels._harmonics_triton import Turn
    from pmsplat.kernels._norm_triton import GroupNorm
    from pmsplat.kernels._tokens_triton import AddScaled, LayerNorm
    from pmsplat.kernels._unit_distance_triton import UnitDistance

    for shape in ((1, 128, 2**12, 2**12), (2**21, 1024, 1, 1)):
        with pytest.raises(UserError, match=r"maps of .* cannot number in 32 bits"):
            GroupNorm.apply(large(*shape), 8, None, None, "none", 1e-5)
    maps = (large(1, 128, 2**12, 2**12),)
    with pytest.raises(UserError, match=r"maps of .* cannot number in 32 bits"):
        UnitDistance.apply(maps, (large(128),), *maps)
    tokens, scale = large(1, 2**22, 512), large(512)
    with pytest.raises(UserError, match=r"tokens of .* cannot number in 32 bits"):
        AddScaled.apply(tokens, tokens, scale)
    with pytest.raises(UserError, match=r"tokens of .* cannot number in 32 bits"):
        LayerNorm.apply(tokens, scale, scale, None, 1e-5, torch.float32)
    # The second pixel is far from the first in memory, which no tensor on "meta" takes
    apart = torch.empty_strided((1, 2, 3, 25), (1, 2**31 - 74, 25, 1), device="meta")
    with pytest.raises(UserError, match="harmonics of 1 views of 2 pixels, which"):
        Turn.apply(torch.zeros(1, 25, 25, device="meta"), apart, None)


def test_what_just_fits_is_taken() -> None:
    pytest.importorskip("triton")
    from pmsplat.kernels._sweep_triton import check_size

    check_size(*sweep(1, 2**24, 127, 127, True))
    check_size(*sweep(2**11 - 1, 2**20, 8, 8, False))


def test_scenes_are_cut_where_an_axis_of_a_grid_ends() -> None:
    assert cuda.parts(70_000) == [slice(0, 65_535), slice(65_535, 70_000)]
    assert cuda.parts(5, 30_000) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert cuda.parts(1, 10**6) == [slice(0, 1)] and cuda.parts(0) == []


@interpreted
def test_several_launches_find_what_one_does(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three scenes, of which a launch takes two."""
    from pmsplat.kernels import _neighbors_triton
    from pmsplat.kernels._harmonics_triton import Turn
    from pmsplat.kernels._neighbor_attention_triton import backward, forward

    monkeypatch.setattr(cuda, "ROW", 2)
    points, reference = torch.randn(2, 3, 5, 3, generator=generator).unbind(0)
    found = _neighbors_triton.search(points, reference)
    assert torch.equal(found, neighbors.nearest(points, reference))
    table = neighbors.k_nearest(points, reference, 2)

    parts = torch.randn(4, 3, 5, 4, generator=generator).unbind(0)
    q, k, v, incoming = parts
    for leaf in (q, k, v):
        leaf.requires_grad_()
    wanted = attend_by_torch(q, k, v, table)
    out, log_sums = forward(q.detach(), k.detach(), v.detach(), table)
    torch.testing.assert_close(out, wanted.detach())
    gradients = backward(
        incoming, q.detach(), k.detach(), v.detach(), table, log_sums, _sort(table, 5)
    )
    for mine, theirs in zip(
        gradients, torch.autograd.grad(wanted, (q, k, v), incoming), strict=True
    ):
        torch.testing.assert_close(mine, theirs)

    matrix, raw = torch.randn(3, 4, 4, generator=generator), torch.randn(3, 5, 3, 4)
    turned: Any = Turn.apply(matrix, raw, None)
    torch.testing.assert_close(turned, turn_by_torch(matrix[:, None], raw[:, None], None)[:, 0])

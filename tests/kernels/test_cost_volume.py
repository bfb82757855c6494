from dataclasses import replace

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import sweep
from pmsplat.kernels import _sweep, _sweep_pairs, _sweep_sampled, cost_volume, cuda
from pmsplat.kernels.cost_volume import Sweep, choose_path, correlation, warped
from pmsplat.nn import cost_volume as pieces
from tests.golden import components
from tests.scenes import random_cameras
from tests.waits import no_waits

from .interpreter import interpreted, last_program_first

PATHS = ["compiled", "all_pairs", "sampled"]
BY_TRITON = ["direct", "tiled", "all_pairs"]


def scene(
    generator: torch.Generator,
    views: int,
    per_pixel: bool,
    batch: int = 2,
    *,
    others: int = 2,
    size: tuple[int, int] = (6, 8),
    planes: int = 5,
    channels: int = 20,
) -> tuple[torch.Tensor, Sweep]:
    """Features and a sweep of random cameras, some hypotheses falling outside the other views."""
    cameras = random_cameras(views, generator, batch, dtype=torch.float64)
    features = torch.randn(batch, views, channels, *size, generator=generator, dtype=torch.float64)
    nearest = pieces.nearest_others(cameras.c2w, min(others, views - 1))
    inv_depth = 0.02 + 1.5 * torch.rand(
        batch, views, planes, *(size if per_pixel else (1, 1)),
        generator=generator, dtype=torch.float64,
    )  # fmt: skip
    matrices = pieces.homographies(cameras, nearest, *size)
    return features, Sweep(nearest, matrices.double(), inv_depth, pixel_center=0.5)


def single(where: Sweep, device: str = "cpu") -> Sweep:
    return replace(
        where,
        others=where.others.to(device),
        homographies=where.homographies.float().to(device),
        inv_depth=where.inv_depth.float().to(device),
    )


Results = tuple[torch.Tensor, torch.Tensor]


def by_definition(features: torch.Tensor, where: Sweep, weight: torch.Tensor) -> Results:
    """The volume by warping, and the gradient of its weighted sum."""
    leaf = features.detach().clone().requires_grad_()
    volume = warped(leaf, where)
    (volume * weight).sum().backward()
    assert leaf.grad is not None
    return volume.detach(), leaf.grad


def by_path(features: torch.Tensor, where: Sweep, weight: torch.Tensor, path: str) -> Results:
    leaf = features.detach().clone().requires_grad_()
    volume = correlation(leaf, where, path)
    (volume * weight.to(volume)).sum().backward()
    assert volume.dtype == torch.float32 and leaf.grad is not None
    return volume.detach(), leaf.grad


def weight_like(features: torch.Tensor, where: Sweep, generator: torch.Generator) -> torch.Tensor:
    batch, views, _, height, width = features.shape
    shape = (batch, views, where.inv_depth.shape[2], height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("views", "per_pixel"), [(2, False), (2, True), (4, False), (3, True)])
def test_fast_paths_equal_warping_in_float64(
    path: str, views: int, per_pixel: bool, generator: torch.Generator
) -> None:
    features, where = scene(generator, views, per_pixel)
    weight = weight_like(features, where, generator)
    expected = by_definition(features, where, weight)
    found = by_path(features.float(), single(where), weight, path)
    assert 0 < (expected[0] == 0).float().mean() < 0.6  # some of it is out of view, most is not
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=3e-5, rtol=1e-4)


def away(where: Sweep) -> Sweep:
    """The other cameras turned aside, so that no ray meets their pictures."""
    shift = torch.eye(3, dtype=torch.float64)
    shift[0, 2] = 1e4
    return replace(where, homographies=shift @ where.homographies)


def behind(where: Sweep) -> Sweep:
    """The other cameras turned round: all points lie behind them."""
    turned = replace(where, homographies=-where.homographies)
    towards = turned.homographies[..., 2, :3].sum(dim=-1)  # z of one pixel, far away
    assert (towards < 0).all()
    return turned


def at_infinity(where: Sweep) -> Sweep:
    return replace(where, inv_depth=torch.full_like(where.inv_depth, 1e-7))


def adversary(name: str, generator: torch.Generator) -> tuple[torch.Tensor, Sweep]:
    few = {"size": (3, 3), "planes": 5, "channels": 11}
    if name in ("away", "behind", "at infinity"):
        features, where = scene(generator, 2, False, 1, size=(2, 3), planes=3, channels=4)
        change = {"away": away, "behind": behind, "at infinity": at_infinity}[name]
        return features, change(where)
    return {
        "one pixel": lambda: scene(generator, 2, True, size=(1, 1), planes=3, channels=4),
        "one plane": lambda: scene(generator, 2, False, 1, size=(3, 4), planes=1, channels=1),
        "no multiple of a block": lambda: scene(generator, 2, True, 1, **few),
        "one row": lambda: scene(generator, 2, False, size=(1, 7), planes=4, channels=8),
        "one column": lambda: scene(generator, 2, False, size=(7, 1), planes=4, channels=8),
        "three others": lambda: scene(generator, 4, False, 1, others=3, size=(1, 2), planes=4),
        "24 views": lambda: scene(generator, 24, True, 1, size=(1, 2), planes=1, channels=4),
    }[name]()


ADVERSARIES = ["one pixel", "one plane", "no multiple of a block", "one row", "one column",
               "three others", "24 views", "away", "behind", "at infinity"]  # fmt: skip


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks for small maps, and the kernels also where there is no GPU."""
    triton = pytest.importorskip("pmsplat.kernels._sweep_triton")
    for name, size in (("PLANES", 4), ("CHANNELS", 8), ("CHANNELS_BACKWARD", 8),
                       ("PIXELS_PAIRS", 4), ("PLANES_PAIRS", 4)):  # fmt: skip
        monkeypatch.setattr(triton, name, size)
    tiled = pytest.importorskip("pmsplat.kernels._sweep_tiled_triton")
    for name, size in (("PLANES", 4), ("CHANNELS", 16), ("SOURCES", 16)):
        monkeypatch.setattr(tiled, name, size)
    monkeypatch.setattr(_sweep_pairs, "_by_triton", lambda tokens: True)


@interpreted
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("path", BY_TRITON)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_gpu_kernels_interpreted_equal_warping(
    name: str, path: str, generator: torch.Generator
) -> None:
    features, where = adversary(name, generator)
    weight = weight_like(features, where, generator)
    expected = by_definition(features, where, weight)
    found = by_path(features.float(), single(where), weight, path)
    assert (expected[0] == 0).all() == (name in ("away", "behind"))
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=3e-5, rtol=1e-4)


@interpreted
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [2, 6, 14])
def test_gpu_kernels_interpreted_do_not_depend_on_the_budget(
    rows: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some pixels of a view, one view, two views at a time."""
    features, where = scene(generator, 3, True, 1, size=(2, 3), planes=3)
    monkeypatch.setattr(_sweep_pairs, "BUDGET_CPU", rows * 2 * 4 * 6)
    weight = weight_like(features, where, generator)
    expected = by_path(features.float(), single(where), weight, "compiled")
    found = by_path(features.float(), single(where), weight, "all_pairs")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@interpreted
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("path", "dtype"),
    [(path, torch.float16) for path in BY_TRITON]
    # but for "tiled", as the interpreter's `tl.dot` multiplies the bits of bfloat16
    + [(path, torch.bfloat16) for path in BY_TRITON if path != "tiled"],
)
def test_gpu_kernels_interpreted_take_half_precision(
    path: str, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the door, which keeps half precision for CUDA devices; sums stay float32."""
    features, where = scene(generator, 2, False, 1, size=(2, 3), planes=3, channels=16)
    features = features.to(dtype).double()  # what both see
    weight = weight_like(features, where, generator)
    expected = by_definition(features, where, weight)
    leaf = features.to(dtype).requires_grad_()
    volume: torch.Tensor = cost_volume._Correlation.apply(leaf, single(where), path)  # pyright: ignore
    (volume * weight.float()).sum().backward()
    assert volume.dtype == torch.float32 and leaf.grad is not None and leaf.grad.dtype == dtype
    rounding = torch.finfo(dtype).eps
    exact = 2 * rounding if path == "all_pairs" else 1e-5  # of pairs, the scores are rounded
    torch.testing.assert_close(volume.double(), expected[0], atol=exact, rtol=exact)
    torch.testing.assert_close(leaf.grad.double(), expected[1], atol=4 * rounding, rtol=rounding)


@interpreted
@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # nan
def test_sums_in_fixed_point_are_the_same(generator: torch.Generator) -> None:
    features, where = scene(generator, 2, True, 1, size=(2, 2), planes=3, channels=8)
    features, where = features.float(), single(where)
    weight = weight_like(features, where, generator)
    _, expected = by_path(features, where, weight, "direct")
    torch.use_deterministic_algorithms(True)
    try:
        for size in (1.0, 1e-20, 1e15):  # of the gradients
            _, found = by_path(features, where, size * weight, "direct")
            torch.testing.assert_close(found / size, expected, atol=1e-6, rtol=1e-5)
        _, found = by_path(features, where, weight, "tiled")
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        _, nothing = by_path(features, where, 0 * weight, "direct")
        assert (nothing == 0).all()
        _, broken = by_path(features, where, torch.nan * weight, "direct")
        assert broken.isnan().all()  # a step with such a gradient must be found out
        with pytest.raises(
            UserError, match=r"'all_pairs' under torch\.use_deterministic_algorithms"
        ):
            by_path(features, where, weight, "all_pairs")
    finally:
        torch.use_deterministic_algorithms(False)


@interpreted
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_order_of_programs(deterministic: bool, generator: torch.Generator) -> None:
    """It changes the last bits of the gradient, unless sums are not to depend on it."""
    features, where = scene(generator, 3, True, 1, size=(2, 2), planes=2, channels=4)
    features, where = features.float(), single(where)
    weight = weight_like(features, where, generator)
    torch.use_deterministic_algorithms(deterministic)
    try:
        volume, gradient = by_path(features, where, weight, "direct")
        with last_program_first():
            again, gradient_again = by_path(features, where, weight, "direct")
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(volume, again)
    assert torch.equal(gradient, gradient_again) == deterministic


@pytest.mark.parametrize(
    ("pixels", "planes", "without_triton"),
    [
        (32 * 32, 128, "all_pairs"),
        (64 * 64, 128, "all_pairs"),  # small, 2 views of 256x256
        (64 * 64 + 1, 128, "sampled"),
        (64 * 120, 128, "sampled"),  # 12 views of 512x960
        (128 * 128, 32, "sampled"),  # the second scale of base
        (1, 1, "all_pairs"),
        (33, 1, "sampled"),
    ],
)
def test_the_choice_follows_the_shapes(
    pixels: int, planes: int, without_triton: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(cuda, "obstacle", lambda device: None)
    assert choose_path(pixels, planes, torch.device("cpu")) == "compiled"
    assert choose_path(pixels, planes, gpu) == "tiled"
    assert choose_path(pixels, planes, torch.device("mps")) == without_triton
    monkeypatch.setattr(cuda, "has_kernels", lambda device: False)
    assert choose_path(pixels, planes, gpu) == without_triton


def test_a_path_that_cannot_run_is_refused(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, where = scene(generator, 2, False)
    features, where = features.float(), single(where)
    with pytest.raises(UserError, match="path 'pairs'; wanted auto, compiled, direct, tiled"):
        correlation(features, where, "pairs")
    with pytest.raises(UserError, match="'compiled' on meta; wanted tensors on the CPU"):
        correlation(features.to("meta"), where, "compiled")
    monkeypatch.setattr(cuda, "interprets", lambda: False)
    with pytest.raises(UserError, match="given tensors on cpu; wanted tensors on a CUDA device"):
        correlation(features, where, "direct")
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"triton is not installed; wanted triton.* install it"):
        correlation(features, where, "direct")
    alone = replace(where, others=where.others[..., :0], homographies=where.homographies[:, :, :0])
    with pytest.raises(UserError, match="a view alone; wanted at least two views"):
        correlation(features, alone)


def test_half_precision_on_the_cpu_is_computed_in_float32(generator: torch.Generator) -> None:
    features, where = scene(generator, 2, False)
    features = features.bfloat16()
    found = correlation(features, single(where))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, correlation(features.float(), single(where)), rtol=0, atol=0)


def test_warping_passes_gradcheck(generator: torch.Generator) -> None:
    features, where = scene(generator, 2, True, batch=1)
    leaf = features[:, :, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: warped(x, where), [leaf])


@pytest.mark.parametrize("path", ["all_pairs", "sampled"])
@pytest.mark.parametrize("part", [0.2, 0.9, 2.5])
def test_the_memory_budget_changes_nothing(
    path: str, part: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of a view (some of its pixels, some of its planes), one view, two views at a time."""
    features, where = scene(generator, 3, False)
    whole = {"all_pairs": 48 * 2 * 48 * 4, "sampled": 5 * 48 * 20 * 4}[path]  # bytes of a view
    results = []
    for budget in (2**30, int(part * whole)):
        monkeypatch.setattr(_sweep_pairs, "BUDGET_CPU", budget)
        monkeypatch.setattr(_sweep_sampled, "BUDGET", budget)
        leaf = features.float().requires_grad_()
        found = correlation(leaf, single(where), path)
        found.square().sum().backward()
        results.append((found.detach(), leaf.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_one_and_the_same_view_correlates_with_itself_at_any_depth() -> None:
    features = torch.randn(1, 2, 16, 4, 6)
    features = features[:, :1].expand(-1, 2, -1, -1, -1)
    c2w, K = (
        torch.eye(4).expand(1, 2, 4, 4),
        torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]),
    )
    near = torch.full((1, 2), 0.5)
    cameras = random_cameras(2, torch.Generator())
    cameras = replace(cameras, c2w=c2w, K=K.expand(1, 2, 3, 3), near=near)
    others = pieces.all_others(c2w)
    planes = torch.tensor([0.1, 1.0, 3.0]).view(1, 1, 3, 1, 1).expand(1, 2, 3, 1, 1)
    where = Sweep(others, pieces.homographies(cameras, others, 4, 6), planes, 0.5)
    expected = features.square().sum(2, keepdim=True).expand(1, 2, 3, 4, 6) / 4
    torch.testing.assert_close(correlation(features, where), expected, atol=1e-3, rtol=1e-3)


def test_warping_is_that_of_the_official_code() -> None:
    """Integer pixel coordinates, one K, depth per plane and pixel (components.npz warp/*)."""
    golden = components("warp")
    feature, K, pose, depth = (golden[k] for k in ("feat", "K", "pose", "depth"))
    matrices = sweep.homography(pose.double(), K.double(), K.double()).float()
    coordinates = sweep.source_coordinates(matrices, 1 / depth, 8, 12, pixel_center=0.0)
    grid = _sweep.normalize(coordinates, 8, 12).flatten(1, 2)
    found = torch.nn.functional.grid_sample(feature, grid, align_corners=False)
    torch.testing.assert_close(found.unflatten(2, (-1, 8)), golden["out"], atol=2e-5, rtol=1e-4)


CUDA_PATHS = [*BY_TRITON, "sampled"]


@pytest.fixture
def full_precision() -> None:
    """Products of float32 without TF32, as they are unless a program asks for speed."""
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.cuda
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("path", CUDA_PATHS)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_cuda_equals_warping(name: str, path: str, generator: torch.Generator) -> None:
    features, where = adversary(name, generator)
    weight = weight_like(features, where, generator)
    expected = by_definition(features, where, weight)
    found = by_path(features.float().cuda(), single(where, "cuda"), weight, path)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double().cpu(), exact, atol=3e-5, rtol=1e-4)


FULL = {
    "small, 2 views": (2, False, 1, {"size": (64, 64), "planes": 128, "channels": 128}),
    "small, 6 views": (6, False, 1, {"size": (64, 112), "planes": 128, "channels": 128}),
    "base, fine": (2, True, 2, {"size": (128, 128), "planes": 32, "channels": 64}),
}


@pytest.mark.cuda
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", CUDA_PATHS)
@pytest.mark.parametrize("name", FULL)
def test_cuda_equals_the_compiled_pass_at_full_size(
    name: str, path: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    views, per_pixel, batch, shapes = FULL[name]
    features, where = scene(generator, views, per_pixel, batch, **shapes)
    features = features.to(dtype)
    weight = weight_like(features, where, generator).float()
    expected = by_path(features.float(), single(where), weight, "compiled")
    found = by_path(features.cuda(), single(where, "cuda"), weight.cuda(), path)
    tolerance = 1e-4 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for mine, exact in zip(found, expected, strict=True):
        # Relative to all, since coordinates differ by their rounding, and values with them
        error = (mine.float().cpu() - exact) / exact.square().mean().sqrt()
        assert error.square().mean().sqrt() < tolerance


@pytest.mark.cuda
@pytest.mark.parametrize("by_triton", [True, False])
def test_cuda_correlates_more_pixels_than_cudnn_takes_images(
    by_triton: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """37 views of 28x64: 66,304 pixels at a time."""
    features, where = scene(generator, 37, False, 1, size=(28, 64), planes=64, channels=16)
    monkeypatch.setattr(_sweep_pairs, "BUDGET", 2**31)
    monkeypatch.setattr(_sweep_pairs, "_by_triton", lambda tokens: by_triton)
    weight = weight_like(features, where, generator).float()
    expected = by_path(features.float(), single(where), weight, "compiled")
    found = by_path(features.float().cuda(), single(where, "cuda"), weight.cuda(), "all_pairs")
    for mine, exact in zip(found, expected, strict=True):
        error = (mine.cpu() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < 2e-3  # with TF32, if it is on


@pytest.mark.cuda
@pytest.mark.parametrize("path", ["auto", *BY_TRITON])
def test_the_host_never_waits_for_the_device(path: str, generator: torch.Generator) -> None:
    features, where = scene(generator, 3, False, size=(16, 24), planes=32, channels=32)
    features, where = features.float().cuda(), single(where, "cuda")
    weight = weight_like(features, where, generator).cuda().float()
    by_path(features, where, weight, path)  # compiles
    with no_waits():
        by_path(features, where, weight, path)


@pytest.mark.cuda
def test_deterministic_gradients_are_the_same_every_time(generator: torch.Generator) -> None:
    features, where = scene(generator, 4, False, size=(32, 32), planes=64, channels=64)
    features, where = features.float().cuda(), single(where, "cuda")
    weight = weight_like(features, where, generator).cuda()
    _, expected = by_path(features, where, weight, "direct")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [by_path(features, where, weight, "auto")[1] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    torch.testing.assert_close(runs[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("path", ["direct", "tiled"])
def test_cuda_needs_no_more_than_its_output(path: str, generator: torch.Generator) -> None:
    """12 views of 512x960 at an eighth: the official code holds 23 GiB."""
    features, where = scene(generator, 12, False, 1, size=(64, 120), planes=128, channels=128)
    tokens = features.cuda().bfloat16().permute(0, 1, 3, 4, 2).contiguous()
    features, where = tokens.permute(0, 1, 4, 2, 3), single(where, "cuda")  # channels last
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    correlation(features, where, path)
    assert (torch.cuda.max_memory_allocated() - before) / 2**20 <= 50

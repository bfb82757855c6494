"""Products of small matrices: those of torch, and those that no setting of torch can round."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pmsplat.geometry import camera, gaussian, products, se3, sh
from tests.scenes import random_cameras
from tests.waits import no_waits

EQUATIONS = {  # as the package has them, with shapes that broadcast
    "...ij,...jk->...ik": ((2, 1, 4, 3), (5, 3, 6)),
    "...ij,...j->...i": ((2, 7, 3, 3), (7, 3)),
    "...ij,...nj->...ni": ((2, 3, 3), (2, 9, 3)),
    "...ji,nj->...ni": ((2, 5, 3, 3), (8, 3)),
    "...ij,...hwj->...hwi": ((2, 3, 3), (1, 4, 5, 3)),
    "...k,...kc->...c": ((2, 4, 6, 9), (2, 1, 6, 9, 3)),
    "bvij,bvpcj->bvpic": ((2, 3, 9, 9), (2, 3, 7, 3, 9)),
}


@pytest.fixture(params=[0, 2**22], ids=["term by term", "at once"])
def elementwise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as on CUDA, on the CPU."""
    monkeypatch.setattr(products, "rounds_products", lambda tensor: True)
    monkeypatch.setattr(products, "SMALL", request.param)


def operands(equation: str, generator: torch.Generator) -> Iterator[Tensor]:
    for shape in EQUATIONS[equation]:
        yield torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.usefixtures("elementwise")
@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients_are_those_of_torch(equation: str, generator: torch.Generator) -> None:
    a, b = operands(equation, generator)
    found, wanted = products.einsum(equation, a, b), torch.einsum(equation, a, b)
    torch.testing.assert_close(found, wanted, atol=1e-13, rtol=1e-13)
    weights = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    pairs = (torch.autograd.grad((x * weights).sum(), (a, b)) for x in (found, wanted))
    torch.testing.assert_close(*pairs, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("elementwise")
def test_second_derivatives_are_right(generator: torch.Generator) -> None:
    a = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(products.matmul, (a, b))


@pytest.mark.usefixtures("elementwise")
def test_a_constant_gets_no_gradient(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 5, 5, generator=generator)
    products.matmul(a.requires_grad_(), b).sum().backward()
    torch.testing.assert_close(a.grad, b.sum(dim=1).expand(5, 5))
    assert b.grad is None


def test_a_large_product_is_never_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward, for what has the larger factor."""
    monkeypatch.setattr(products, "rounds_products", lambda tensor: True)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not func._schema.is_mutable:
                view = out._is_view() or out.untyped_storage().nbytes() < 4 * out.numel()
                largest = max(largest, 0 if view else out.numel())
            return out

    sh_, weights = torch.ones(1, 60_000, 9, 3), torch.ones(8, 60_000, 9)
    with Watch():
        leaves = sh_.requires_grad_(), weights.requires_grad_()
        products.einsum("...k,...kc->...c", leaves[1], leaves[0]).sum().backward()
    assert largest == weights.numel() < math.prod((8, 60_000, 9, 3))


class Rounded(TorchDispatchMode):
    """Matrix products of float32 in TF32: of inputs of 10 bits."""

    rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, args = func._schema.name, list(args)
        first = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}.get(name)
        if first is not None and args[first].dtype == torch.float32:
            self.rounded += 1
            for i in (first, first + 1):
                bits = args[i].contiguous().view(torch.int32)
                args[i] = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
        return func(*args, **(kwargs or {}))


def calls(device: str) -> dict[str, Callable[[], Tensor]]:
    """Geometry of float32 in which matrices are multiplied."""
    generator = torch.Generator().manual_seed(0)
    cameras = random_cameras(2, generator, spread=5.0).to(device)
    c2w, K = cameras.c2w, cameras.K
    shapes = {"points": (2, 50, 3), "depth": (1, 2, 8, 9), "quats": (50, 4), "scales": (50, 3)}
    given = {k: torch.rand(shape, generator=generator).to(device) for k, shape in shapes.items()}
    points, depth, quats, scales = (
        given["points"] + 1,
        given["depth"] + 1,
        *list(given.values())[2:],
    )
    harmonics = torch.randn(50, 16, 3, generator=generator).to(device)
    ahead = torch.nn.functional.normalize(points[0], dim=-1)
    return {
        "invert": lambda: se3.invert(c2w),
        "transform": lambda: se3.transform(c2w[0], points),
        "is_rigid": lambda: se3.is_rigid(c2w, 1e-6).float(),
        "upright": lambda: se3.upright(points[0, 0]),
        "project": lambda: camera.project(points, K[0, :, None]),
        "project_world": lambda: camera.project_world(points, c2w[0], K[0]),
        "rays": lambda: camera.rays(c2w, K, 8, 9),
        "unproject_depth": lambda: camera.unproject_depth(depth, c2w, K),
        "covariance": lambda: gaussian.covariance(scales, quats),
        "color": lambda: sh.color(harmonics, ahead),
        "rotation_matrix": lambda: sh.rotation_matrix(c2w[..., :3, :3], 4),
    }


@pytest.mark.parametrize("name", calls("cpu"))
def test_rounded_products_reach_no_geometry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls("cpu")[name]
    wanted = call()
    with Rounded() as plain:
        rough = call()
    assert plain.rounded and (rough - wanted).abs().max() > 1e-5  # the emulation does something
    monkeypatch.setattr(products, "rounds_products", lambda tensor: tensor.dtype == torch.float32)
    with Rounded() as mode:
        found = call()
    assert not mode.rounded
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", calls("cpu"))
def test_cuda_is_exact_where_torch_may_round(name: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = calls("cuda")[name]()
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found.cpu(), calls("cpu")[name](), atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", calls("cpu"))
def test_the_host_does_not_wait_for_geometry(name: str) -> None:
    call = calls("cuda")[name]
    call()  # sends constants
    with no_waits():
        call()


@pytest.mark.parametrize("equation", EQUATIONS)
def test_autocast_rounds_nothing(equation: str, generator: torch.Generator) -> None:
    a, b = (each.detach().float() for each in operands(equation, generator))
    with torch.autocast("cpu", torch.bfloat16):
        found = products.einsum(equation, a, b), products.einsum(equation, a, b.bfloat16())
    assert torch.equal(found[0], products.einsum(equation, a, b))
    assert torch.equal(found[1], products.einsum(equation, a, b.bfloat16().float()))

"""TF32 does not reach the numbers that must not change: geometry, drawing, SSIM, alignment.

`trainer.precision` tf32 and bf16 let CUDA round the inputs of float32 matrix products to 10 bits
of mantissa, also those of 3x3 rotations (pytorch/pytorch#61890). What tensor cores then compute is
emulated here: rounded inputs, sums in float32. Functions that must be exact hold no such product
on CUDA, so not one bit of them may change.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from pmsplat.foundation.teachers import depth_anything_3
from pmsplat.geometry import align, camera, fusion, gaussian, products, se3, sh
from pmsplat.geometry import sweep as plane_sweep
from pmsplat.losses import pointmap
from pmsplat.losses.pointmap import pointmap_loss
from pmsplat.losses.ssim import ssim
from pmsplat.models._deviations import Deviations
from pmsplat.models._head import Rules, channels, gaussians_at
from pmsplat.nn import cost_volume
from pmsplat.render import _moved, _projection
from pmsplat.types import MIP, Bundle, Pointmap
from tests.scenes import random_cameras, random_gaussians

FACTORS = {  # arguments that are multiplied
    "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1),
    "convolution_backward": (0, 1, 2),
}  # fmt: skip
GROUPS = {"convolution": (0, 8), "convolution_backward": (1, 9)}  # arguments: input, groups
DROPPED = 13  # of the 23 bits of a float32 mantissa

G = torch.Generator().manual_seed(0)
HEIGHT, WIDTH = 24, 32
CAMERAS = random_cameras(2, G, spread=5.0)
GAUSSIANS = random_gaussians(200, G, degree=4)
DEPTH = torch.rand(1, 2, HEIGHT, WIDTH, generator=G) + 1
RAW = torch.randn(1, 2, channels(3), HEIGHT, WIDTH, generator=G)
IMAGES = torch.rand(1, 2, 3, HEIGHT, WIDTH, generator=G)
POINTS = torch.randn(2, 500, 3, generator=G) + torch.tensor([0.0, 0.0, 20.0])  # in front
TWISTS = 0.3 * torch.randn(4, 6, generator=G)
CHANCES = torch.rand(2, HEIGHT, WIDTH, 8, generator=G)


class TF32(TorchDispatchMode):
    """Products of float32 matrices, and convolutions, as tensor cores compute them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._overloadpacket.__name__
        factors = () if _is_depthwise(name, args) else FACTORS.get(name, ())
        rounded = [rounded_to_tf32(x) if i in factors else x for i, x in enumerate(args)]
        return func(*rounded, **(kwargs or {}))


def _is_depthwise(name: str, args: tuple) -> bool:
    """Convolutions of single channels have a kernel of torch's own, in float32 throughout."""
    if name not in GROUPS:
        return False
    at, groups = GROUPS[name]
    return args[groups] == args[at].shape[1] > 1


def rounded_to_tf32(x: Tensor) -> Tensor:
    """float32 to the nearest numbers of 10 bits of mantissa, ties to even; others as they are."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    odd = (bits >> DROPPED) & 1
    kept = (bits + (1 << (DROPPED - 1)) - 1 + odd) & -(1 << DROPPED)
    return torch.where(x.isfinite(), kept.view(torch.float32), x)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package takes the formulas that it takes where products may be rounded."""
    monkeypatch.setattr(products, "rounds_products", lambda x: x.dtype == torch.float32)


@dataclass(frozen=True)
class Case:
    """A function, and tensors of which it is a function."""

    function: Callable[..., Tensor | list[Tensor]]
    inputs: tuple[Tensor, ...]


def head(raw: Tensor, depth: Tensor, **changes: Any) -> list[Tensor]:
    """The tensors of a pixel's Gaussian."""
    rules = Rules(3, "softplus", 3.0, Deviations(**changes))
    return _tensors(gaussians_at(raw, (depth,), IMAGES, CAMERAS, rules)[0])


def drawing(means: Tensor, scales: Tensor, quats: Tensor, sh: Tensor) -> list[Tensor]:
    """What our backends draw from: Gaussians projected into the images."""
    gaussians = replace(GAUSSIANS, means=means, scales=scales, quats_wxyz=quats, sh=sh)
    return _tensors(_projection.project(gaussians, CAMERAS, (HEIGHT, WIDTH), rules=MIP))


def released_head(raw: Tensor, depth: Tensor) -> list[Tensor]:
    return head(raw, depth, sh_basis=True, sh_signs=True, along_ray=True)


def turned_harmonics(quats: Tensor) -> Tensor:
    """The matrices of rotations, whose gradients are of interest only along rotations."""
    return sh.rotation_matrix(gaussian.quat_to_rotation(normalize(quats, dim=-1)), 4)


def seen_scene(c2w: Tensor, means: Tensor, quats: Tensor, sh: Tensor) -> list[Tensor]:
    """What `rasterize_moved` draws: Gaussians in the axes of the cameras."""
    gaussians = replace(GAUSSIANS, means=means, quats_wxyz=quats, sh=sh)
    seen, _ = _moved.carry_into_cameras(gaussians, replace(CAMERAS, c2w=c2w), None)
    return [seen.means, seen.quats_wxyz, seen.sh]


def expected_depth(chances: Tensor) -> Tensor:
    return cost_volume.full_range(CAMERAS.near[0], CAMERAS.far[0], 8).expected(chances)


def scaled_loss(depth: Tensor) -> Tensor:
    """PM-Loss by the factor alone that takes the teacher's points to the predicted ones."""
    points, seen = (camera.unproject_depth(x, C2W, K) for x in (depth, 1.3 * DEPTH.flip(-1)))
    options = pointmap.Options(alignment="scale")
    return pointmap.compare(points, Pointmap(seen, torch.ones_like(DEPTH)), options, CAMERAS)[0]


def votes() -> list[Tensor]:
    """What depth maps say of points near their surfaces."""
    maps = fusion.Maps(DEPTH[0], torch.ones_like(DEPTH[0]), C2W[0], K[0])
    near = DEPTH * (1 + 0.05 * RAW[:, :, 0])
    found = fusion.count_votes(camera.unproject_depth(near, C2W, K).view(-1, 3), [maps])
    return [found.agree.float(), found.through.float(), found.confidence]


def merged(means: Tensor, quats: Tensor, sh: Tensor) -> list[Tensor]:
    """Gaussians of one voxel as one; covariances, since those hold for more than one rotation.

    Scales stay as they are: torch takes another formula for the gradient of their product where
    anything looks on, as the emulation does.
    """
    cloud = fusion.Cloud(means[0], SCALES[0], quats[0], OPACITIES[0], sh[0])
    found = fusion.merge(cloud, fusion.find_voxels(MEANS[0], torch.ones(len(MEANS[0]))))
    return [found.means, gaussian.covariance(found.scales, found.quats_wxyz), found.sh]


def _tensors(bundle: Bundle) -> list[Tensor]:
    return [x for x in vars(bundle).values() if isinstance(x, Tensor)]


C2W, K, ROTATION = CAMERAS.c2w, CAMERAS.K, CAMERAS.c2w[..., :3, :3]
MEANS, SCALES, QUATS, OPACITIES, HARMONICS = _tensors(GAUSSIANS)
EXACT = {
    "project_world": Case(camera.project_world, (POINTS, C2W[0], K[0])),
    "rays": Case(lambda c2w, K: camera.rays(c2w, K, HEIGHT, WIDTH), (C2W, K)),
    "unproject_depth": Case(camera.unproject_depth, (DEPTH, C2W, K)),
    "invert": Case(se3.invert, (C2W,)),
    "transform": Case(se3.transform, (C2W[0], POINTS)),
    "covariance": Case(gaussian.covariance, (SCALES, QUATS)),
    "rotation_to_quat": Case(gaussian.rotation_to_quat, (ROTATION,)),
    "sh color": Case(sh.color, (HARMONICS, normalize(MEANS, dim=-1))),
    "sh rotation": Case(turned_harmonics, (QUATS[:, :2],)),
    "homography": Case(lambda c2w: plane_sweep.homography(c2w[:, 1:], K[:, :1], K[:, 1:]), (C2W,)),
    "poses of a teacher": Case(depth_anything_3._normalize_poses, (C2W,)),
    "homographies": Case(
        lambda: cost_volume.homographies(CAMERAS, cost_volume.all_others(C2W), HEIGHT, WIDTH), ()
    ),
    "umeyama": Case(align.umeyama, tuple(POINTS)),
    "head": Case(head, (RAW, DEPTH)),
    "released head": Case(released_head, (RAW, DEPTH)),
    "camera of a drawing": Case(lambda: _projection.world_to_camera(CAMERAS), ()),
    "drawing": Case(drawing, (MEANS, SCALES, QUATS, HARMONICS)),
    "transformed": Case(lambda: _tensors(GAUSSIANS.transformed(C2W[0, 0])), ()),
    "pointmap_loss": Case(lambda x, y: pointmap_loss(x, y, robust=2), (POINTS[:1], POINTS[1:])),
    "ssim": Case(ssim, (IMAGES, IMAGES.flip(-1))),
    "twist": Case(se3.exp, (TWISTS,)),
    "seen scene": Case(seen_scene, (C2W, MEANS, QUATS, HARMONICS)),
    "expected depth": Case(expected_depth, (CHANCES,)),
    "trimmed loss": Case(lambda x, y: pointmap_loss(x, y, trim=0.1), (POINTS[:1], POINTS[1:])),
    "scaled loss": Case(scaled_loss, (DEPTH,)),
    "decomposed": Case(
        lambda x: list(gaussian.decompose_covariance(x)),
        (gaussian.covariance(SCALES, QUATS)[0],),
    ),
    "votes": Case(votes, ()),
    "merged": Case(merged, (MEANS, QUATS, HARMONICS)),
}
ROUNDED = (  # by a product that is torch's own on every device
    "project_world", "rays", "unproject_depth", "invert", "transform", "covariance", "sh color",
    "sh rotation", "homography", "poses of a teacher", "head", "released head",
    "camera of a drawing", "drawing", "transformed", "ssim", "twist", "seen scene", "scaled loss",
    "decomposed", "votes", "merged",
)  # fmt: skip


def evaluate(case: Case) -> list[Tensor]:
    """The values, then the gradients of a weighted sum of them."""
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    found = case.function(*inputs)
    values = [found] if isinstance(found, Tensor) else found
    if not inputs:
        return values
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in values]
    total = sum((x * w).sum() for x, w in zip(values, weights, strict=True))
    assert isinstance(total, Tensor)
    return [*values, *torch.autograd.grad(total, inputs)]


def test_the_emulation_rounds_to_eleven_digits() -> None:
    """1 + 2^-10 is a number of TF32; 1 + 2^-11 lies between two, and goes to the even one."""
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 / 3, 1e-30, torch.inf])
    wanted = torch.tensor([1.0, 1 + 2**-10, 1.0, 1 + 2**-9, -1365 / 4096, 1e-30, torch.inf])
    found = rounded_to_tf32(x)
    assert torch.equal(found[[0, 1, 2, 3, 4, 6]], wanted[[0, 1, 2, 3, 4, 6]])
    assert abs(found[5] / x[5] - 1) <= 2**-11
    assert rounded_to_tf32(x.double()) is not x and torch.equal(
        rounded_to_tf32(x.double()), x.double()
    )


@pytest.mark.parametrize("equation", ["ij,jk->ik", "bij,bjk->bik", "bij,bj->bi"])
def test_the_emulation_reaches_products_and_their_gradients(equation: str) -> None:
    g = torch.Generator().manual_seed(0)
    letters = {"b": 4, "i": 5, "j": 6, "k": 7}
    inputs, _ = equation.split("->")
    tensors = tuple(
        torch.randn([letters[x] for x in part], generator=g) for part in inputs.split(",")
    )
    case = Case(lambda a, b: torch.einsum(equation, a, b), tensors)
    exact = evaluate(case)
    with TF32():
        rough = evaluate(case)
    for a, b in zip(exact, rough, strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("name", ROUNDED)
def test_torchs_own_products_would_be_rounded(name: str) -> None:
    exact = evaluate(EXACT[name])
    with TF32():
        found = evaluate(EXACT[name])
    assert not all(map(torch.equal, exact, found))


@pytest.mark.parametrize("name", EXACT)
def test_values_and_gradients_keep_every_bit(name: str, as_on_cuda: None) -> None:
    exact = evaluate(EXACT[name])
    with TF32():
        found = evaluate(EXACT[name])
    for a, b in zip(exact, found, strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


def test_the_emulation_spares_convolutions_of_single_channels() -> None:
    g = torch.Generator().manual_seed(0)
    image, own, shared = (
        torch.randn(shape, generator=g) for shape in ((1, 4, 9, 9), (4, 1, 3, 3), (4, 4, 3, 3))
    )
    for weight, groups in ((own, 4), (shared, 1)):
        case = Case(lambda x, w, groups=groups: torch.conv2d(x, w, groups=groups), (image, weight))
        exact = evaluate(case)
        with TF32():
            rough = evaluate(case)
        for a, b in zip(exact, rough, strict=True):
            assert torch.equal(a, b) == (groups > 1)


@pytest.mark.parametrize("name", EXACT)
def test_formulas_for_cuda_give_the_numbers_of_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of float32."""
    plain = evaluate(EXACT[name])
    monkeypatch.setattr(products, "rounds_products", lambda x: x.dtype == torch.float32)
    for a, b in zip(plain, evaluate(EXACT[name]), strict=True):
        torch.testing.assert_close(
            a, b, atol=1e-4 * float(a.detach().abs().max()) + 1e-6, rtol=1e-3
        )

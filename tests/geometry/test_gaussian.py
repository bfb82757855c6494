import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmsplat.geometry import gaussian, products


@pytest.mark.parametrize("as_on_cuda", [False, True])
def test_quaternions_agree_with_scipy_for_every_branch(
    as_on_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "rounds_products", lambda tensor: as_on_cuda)
    turns = Rotation.random(500, rng=np.random.default_rng(0)).as_matrix()
    half_turns = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()
    matrices = torch.from_numpy(np.concatenate([turns, half_turns, np.eye(3)[None]]))
    quats = gaussian.rotation_to_quat(matrices)
    torch.testing.assert_close(gaussian.quat_to_rotation(quats), matrices)
    scipy_xyzw = torch.from_numpy(Rotation.from_matrix(matrices.numpy()).as_quat())
    ours_xyzw = quats.roll(-1, dims=-1)
    torch.testing.assert_close((ours_xyzw * scipy_xyzw).sum(-1).abs(), torch.ones(504).double())
    assert (quats[:, 0] >= 0).all()


def test_quaternion_gradient_is_finite_at_the_identity() -> None:
    matrix = torch.eye(3, dtype=torch.float64, requires_grad=True)
    gaussian.rotation_to_quat(matrix).sum().backward()
    assert matrix.grad is not None and matrix.grad.isfinite().all()


def test_product_is_composition(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    product = gaussian.quat_to_rotation(gaussian.quat_multiply(a, b))
    expected = gaussian.quat_to_rotation(a) @ gaussian.quat_to_rotation(b)
    torch.testing.assert_close(product, expected)


def test_covariance_has_the_scales_as_its_axes(generator: torch.Generator) -> None:
    scales = torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.1
    quats = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    covariance = gaussian.covariance(scales, quats)
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance), (scales**2).sort(-1).values)
    axis = gaussian.quat_to_rotation(quats)[..., 0]
    along = torch.einsum("...i,...ij,...j->...", axis, covariance, axis)
    torch.testing.assert_close(along, scales[:, 0] ** 2)


def test_a_covariance_is_taken_apart(generator: torch.Generator) -> None:
    scales = torch.rand(50, 3, generator=generator, dtype=torch.float64) + 0.1
    scales[:5] = 0.7  # balls
    scales[5:10, 1] = scales[5:10, 0]
    quats = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    given = gaussian.covariance(scales, quats)
    found, turned = gaussian.decompose_covariance(given)
    torch.testing.assert_close(found, scales.sort(dim=-1).values)
    torch.testing.assert_close(gaussian.covariance(found, turned), given)
    flat = gaussian.decompose_covariance(torch.diag(torch.tensor([1.0, 0.0, 1.0]))[None])[0]
    assert 0 < flat[0, 0] <= 1e-4 * 1.01


def test_gradients_of_a_covariance_taken_apart(generator: torch.Generator) -> None:
    """They put together to its own, and are finite where any axes would do."""
    root = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    given = (root @ root.mT).requires_grad_()

    def scales_and_spread(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = (matrix + matrix.mT) / 2
        scales, quats = gaussian.decompose_covariance(matrix)
        return scales, gaussian.covariance(scales, quats)

    assert torch.autograd.gradcheck(scales_and_spread, (given,))
    ball = torch.eye(3, dtype=torch.float64)[None].requires_grad_()
    torch.cat(gaussian.decompose_covariance(ball), dim=-1).sum().backward()
    assert ball.grad is not None and ball.grad.isfinite().all()


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 2.0, np.pi - 1e-9, np.pi])
def test_the_angle_of_a_rotation(angle: float) -> None:
    axes = np.random.default_rng(0).normal(size=(5, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    matrices = torch.from_numpy(Rotation.from_rotvec(angle * axes).as_matrix())
    found = gaussian.rotation_angle(matrices)
    torch.testing.assert_close(found, torch.full_like(found, angle), atol=1e-12, rtol=1e-9)

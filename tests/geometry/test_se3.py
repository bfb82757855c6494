"""The motion of a twist against the exponential of its 4x4 matrix."""

import pytest
import torch

from pmsplat.geometry import se3

ANGLES = (0.0, 1e-9, 1e-4, 0.049, 0.051, 1.0, 3.1)  # the series ends at 0.05


def twists(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    drawn = torch.randn(len(ANGLES), 6, generator=generator, dtype=torch.float64)
    axis = torch.nn.functional.normalize(drawn[:, 3:], dim=-1)
    angles = torch.tensor(ANGLES, dtype=torch.float64)[:, None]
    return torch.cat([drawn[:, :3], angles * axis], dim=-1).to(dtype)


def matrix_exponential(twist: torch.Tensor) -> torch.Tensor:
    x, y, z = twist[:, 3:].unbind(-1)
    matrix = twist.new_zeros(len(twist), 4, 4)
    matrix[:, 0, 1], matrix[:, 0, 2], matrix[:, 1, 2] = -z, y, -x
    matrix[:, 1, 0], matrix[:, 2, 0], matrix[:, 2, 1] = z, -y, x
    matrix[:, :3, 3] = twist[:, :3]
    return torch.linalg.matrix_exp(matrix)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_exp_is_the_exponential_of_the_matrix(
    dtype: torch.dtype, close: float, generator: torch.Generator
) -> None:
    given = twists(generator)
    found = se3.exp(given.to(dtype))
    assert found.dtype == dtype
    assert (found - matrix_exponential(given)).abs().max() < close
    assert se3.is_rigid(found, 1e-6).all()


def test_exp_has_gradients_also_at_zero(generator: torch.Generator) -> None:
    given = twists(generator).requires_grad_()
    assert torch.autograd.gradcheck(se3.exp, given)
    still = torch.zeros(1, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(se3.exp(still)[:, :3].sum(), still)
    # d/dv of the translation is the identity; each rotation adds one entry and takes one away
    assert gradient.tolist() == [[1, 1, 1, 0, 0, 0]]

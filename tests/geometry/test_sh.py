import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from pmsplat.geometry import gaussian, products, sh


def directions(count: int, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(noise, dim=-1)


def test_basis_is_scipys_spherical_harmonics(generator: torch.Generator) -> None:
    """Real harmonics from scipy's complex ones; 3DGS keeps their Condon-Shortley sign."""
    d = directions(50, generator)
    theta, phi = np.arccos(d[:, 2].numpy()), np.arctan2(d[:, 1].numpy(), d[:, 0].numpy())
    columns = []
    for degree in range(5):
        for m in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), theta, phi)
            if m == 0:
                columns.append(value.real)
            else:
                columns.append(2**0.5 * (value.imag if m < 0 else value.real))
    expected = torch.from_numpy(np.stack(columns, -1))
    torch.testing.assert_close(sh.basis(d, 4), expected)


@pytest.mark.parametrize("degree", range(5))
def test_rotating_then_evaluating_is_evaluating_turned_back(
    degree: int, generator: torch.Generator
) -> None:
    rotation = gaussian.quat_to_rotation(torch.randn(4, generator=generator, dtype=torch.float64))
    c = torch.randn((degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    d = directions(20, generator)
    rotated = sh.basis(d, degree) @ (sh.rotation_matrix(rotation, degree) @ c)
    expected = sh.basis(d @ rotation, degree) @ c
    torch.testing.assert_close(rotated, expected, atol=1e-12, rtol=0)


def test_rotation_matrices_compose(generator: torch.Generator) -> None:
    a, b = gaussian.quat_to_rotation(torch.randn(2, 4, generator=generator, dtype=torch.float64))
    product = sh.rotation_matrix(a, 4) @ sh.rotation_matrix(b, 4)
    torch.testing.assert_close(product, sh.rotation_matrix(a @ b, 4), atol=1e-12, rtol=0)


def test_colour_is_half_plus_dc_and_never_negative() -> None:
    c = torch.zeros(2, 4, 3)
    c[0, 0], c[1, 0] = 1.0, -10.0
    up = torch.tensor([0.0, 0.0, 1.0]).expand(2, 3)
    torch.testing.assert_close(sh.color(c, up)[0], torch.full((3,), 0.5 + sh.C0))
    assert (sh.color(c, up)[1] == 0).all()


def test_fewer_bands_on_request(generator: torch.Generator) -> None:
    c = torch.randn(6, 16, 3, generator=generator, dtype=torch.float64)
    d = directions(6, generator)
    torch.testing.assert_close(sh.color(c, d, degree=1), sh.color(c[:, :4], d))


def test_a_count_that_is_no_degree_is_told() -> None:
    with pytest.raises(ValueError, match="wanted 1, 4, 9, 16 or 25"):
        sh.degree_of(7)


def test_constants_first_made_under_inference_serve_gradients() -> None:
    sh._probe.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    rotation = torch.eye(3)
    with torch.inference_mode():
        sh.rotation_matrix(rotation, 2)
    rotation.requires_grad_()
    sh.rotation_matrix(rotation, 2).sum().backward()
    assert rotation.grad is not None


@pytest.mark.parametrize("degree", range(5))
def test_few_launches_give_the_same_matrix(
    degree: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: by monomials, in float64."""
    rotation = gaussian.quat_to_rotation(torch.randn(2, 3, 4, generator=generator).double())
    wanted = sh.rotation_matrix(rotation, degree)
    monkeypatch.setattr(products, "rounds_products", lambda tensor: tensor.dtype == torch.float32)
    found = sh.rotation_matrix(rotation.float(), degree)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)
    leaf = rotation.float().requires_grad_()
    (gradient,) = torch.autograd.grad(sh.rotation_matrix(leaf, degree).square().sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("degree", range(5))
def test_the_basis_is_a_sum_of_monomials(degree: int, generator: torch.Generator) -> None:
    d = directions(50, generator)
    found = sh._monomials(d, degree) @ sh._monomial_table(degree, torch.device("cpu"))
    torch.testing.assert_close(found, sh.basis(d, degree), atol=1e-12, rtol=0)

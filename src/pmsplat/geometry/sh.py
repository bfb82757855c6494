"""Real spherical harmonics up to degree 4 in the standard 3DGS basis, evaluated and rotated.

The basis is that of .ply files and gsplat: degree-major, with the Condon-Shortley signs of 3DGS
(degree 1 is C1·(-y, z, -x)). Constants: Sloan, "Efficient Spherical Harmonic Evaluation", 2013.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from . import products
from .constants import keep_results

C0 = 0.28209479177387814
MAX_DEGREE = 4


def degree_of(coefficients: int) -> int:
    """Returns the degree with this number of coefficients; raises ValueError if there is none."""
    for degree in range(MAX_DEGREE + 1):
        if (degree + 1) ** 2 == coefficients:
            return degree
    raise ValueError(f"{coefficients} SH coefficients; wanted 1, 4, 9, 16 or 25")


def basis(directions: Float[Tensor, "*#batch 3"], degree: int) -> Float[Tensor, "*_ sh"]:
    """Returns the (degree+1)² basis functions at unit directions; differentiable."""
    x, y, z = directions.unbind(dim=-1)
    xx, yy, zz = x * x, y * y, z * z
    out = [torch.full_like(x, C0)]
    if degree >= 1:
        out += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        out += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        out += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    if degree >= 4:
        out += [
            2.5033429417967046 * x * y * (xx - yy),
            -1.7701307697799304 * y * z * (3 * xx - yy),
            0.9461746957575601 * x * y * (7 * zz - 1),
            -0.6690465435572892 * y * z * (7 * zz - 3),
            0.10578554691520431 * (zz * (35 * zz - 30) + 3),
            -0.6690465435572892 * x * z * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1),
            -1.7701307697799304 * x * z * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return torch.stack(out, dim=-1)


def color(
    sh: Float[Tensor, "*#batch sh 3"],
    directions: Float[Tensor, "*#batch 3"],
    degree: int | None = None,
) -> Float[Tensor, "*_ 3"]:
    """Returns max(0, 0.5 + Σ basis · sh), the colour along unit directions, camera to Gaussian.

    With `degree`, only the bands up to that degree are evaluated.
    """
    stored = degree_of(sh.shape[-2])
    degree = stored if degree is None else min(degree, stored)
    weights = basis(directions, degree)
    used = sh[..., : (degree + 1) ** 2, :]
    return (products.einsum("...k,...kc->...c", weights, used) + 0.5).clamp_min(0)


def rotation_matrix(
    rotation: Float[Tensor, "*#batch 3 3"], degree: int
) -> Float[Tensor, "*_ sh sh"]:
    """Returns the matrix M that rotates coefficients c: (M c)·basis(R d) = c·basis(d) for every d.

    Block diagonal by degree. Solved from the basis at a fixed set of directions and at the same
    directions rotated back by R.
    """
    exact = torch.float64 if products.rounds_products(rotation) else rotation.dtype
    samples, solve, blocks = _probe(degree, rotation.device, exact)
    turned = torch.einsum("...ji,nj->...ni", rotation.to(exact), samples)
    if exact == rotation.dtype:
        return (solve @ basis(turned, degree)) * blocks
    # A function of the basis takes several launches, a sum of monomials a part of one.
    table = _monomial_table(degree, rotation.device)
    return ((solve @ (_monomials(turned, degree) @ table)) * blocks).to(rotation)


def _monomials(directions: Tensor, degree: int) -> Float[Tensor, "*_ monomial"]:
    """Returns products of `degree` of 1, x, y, z, or of one more; some are equal."""
    found = pad(directions, (1, 0), value=1.0)
    while found.shape[-1] < 4**degree:
        found = (found[..., :, None] * found[..., None, :]).flatten(-2)
    return found


@keep_results
def _monomial_table(degree: int, device: torch.device) -> Float[Tensor, "monomial sh"]:
    """Returns the basis as sums of monomials, in float64."""
    samples = _probe(degree, torch.device("cpu"), torch.float64)[0]
    return (torch.linalg.pinv(_monomials(samples, degree)) @ basis(samples, degree)).to(device)


@keep_results
def _probe(degree: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns unit directions that determine every band, the pseudo-inverse of the basis there, and
    the mask of the blocks. The directions form a Fibonacci lattice; all is computed in float64."""
    n = 4 * (degree + 1) ** 2
    i = torch.arange(n, dtype=torch.float64)
    z = 1 - (2 * i + 1) / n
    angle = i * torch.pi * (3 - 5**0.5)
    radius = (1 - z * z).sqrt()
    samples = torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)
    solve = torch.linalg.pinv(basis(samples, degree))
    band = torch.cat([torch.full((2 * d + 1,), d) for d in range(degree + 1)])
    blocks = band[:, None] == band[None, :]
    return samples.to(device, dtype), solve.to(device, dtype), blocks.to(device, dtype)

"""Spherical harmonics in Triton: the basis of `geometry.sh` and its gradient, per Gaussian.

The values come as tuples, one block of Gaussians for each function of the basis.
"""

# Python's type checker does not understand Triton's language, nor Triton `*` within a tuple.
# ruff: noqa: RUF005
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def sh_basis(x, y, z, DEGREE: tl.constexpr):
    """Returns the (DEGREE + 1)² basis functions at unit directions."""
    xx, yy, zz = x * x, y * y, z * z
    out = (x * 0.0 + 0.28209479177387814,)
    if DEGREE >= 1:
        out = out + (-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x)
    if DEGREE >= 2:
        out = out + (
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        )
    if DEGREE >= 3:
        out = out + (
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        )
    if DEGREE >= 4:
        out = out + (
            2.5033429417967046 * x * y * (xx - yy),
            -1.7701307697799304 * y * z * (3 * xx - yy),
            0.9461746957575601 * x * y * (7 * zz - 1),
            -0.6690465435572892 * y * z * (7 * zz - 3),
            0.10578554691520431 * (zz * (35 * zz - 30) + 3),
            -0.6690465435572892 * x * z * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1),
            -1.7701307697799304 * x * z * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        )
    return out


@triton.jit
def sh_gradient(g, x, y, z, DEGREE: tl.constexpr):
    """Returns the gradient of the direction, for gradients `g` of the basis functions there.

    It is the one along the sphere and something across it, which normalising takes away.
    """
    dx, dy, dz = x * 0.0, x * 0.0, x * 0.0
    xx, yy, zz = x * x, y * y, z * z
    if DEGREE >= 1:
        dx, dy, dz = dx - 0.48860251 * g[3], dy - 0.48860251 * g[1], dz + 0.48860251 * g[2]
    if DEGREE >= 2:
        g4, g5, g7 = 1.0925484305920792 * g[4], -1.0925484305920792 * g[5], g[7] * -1.09254843
        g6, g8 = 0.6307831305050401 * g[6], 1.0925484305920792 * g[8]
        dx += g4 * y - g6 * x + g7 * z + g8 * x
        dy += g4 * x + g5 * z - g6 * y - g8 * y
        dz += g5 * y + 2 * g6 * z + g7 * x
    if DEGREE >= 3:
        g9, g15 = -0.5900435899266435 * g[9], -0.5900435899266435 * g[15]
        g11, g13 = -0.4570457994644658 * g[11], -0.4570457994644658 * g[13]
        g10, g12, g14 = 2.890611442640554 * g[10], 0.3731763325901154 * g[12], g[14] * 1.44530572
        across, double = 3 * (xx - yy), 2 * x * y
        dx += 3 * g9 * double + g10 * y * z - g11 * double - 6 * g12 * x * z
        dx += g13 * (4 * zz - 3 * xx - yy) + 2 * g14 * x * z + g15 * across
        dy += g9 * across + g10 * x * z + g11 * (4 * zz - xx - 3 * yy) - 6 * g12 * y * z
        dy += -g13 * double - 2 * g14 * y * z - 3 * g15 * double
        dz += g10 * x * y + 8 * g11 * y * z + 3 * g12 * (2 * zz - xx - yy)
        dz += 8 * g13 * x * z + g14 * (xx - yy)
    if DEGREE >= 4:
        g16, g17, g18 = 2.5033429417967046 * g[16], -1.77013077 * g[17], 0.94617470 * g[18]
        g19, g20, g21 = -0.66904654 * g[19], 0.10578554691520431 * g[20], -0.66904654 * g[21]
        g22, g23, g24 = 0.47308734787878004 * g[22], -1.77013077 * g[23], 0.62583574 * g[24]
        a, b, across = 3 * xx - yy, xx - 3 * yy, 3 * (xx - yy)
        seven, three, xyz = 7 * zz - 1, 7 * zz - 3, x * y * z
        dx += g16 * y * a + 6 * g17 * xyz + g18 * y * seven + g21 * z * three
        dx += 2 * g22 * x * seven + g23 * z * across + 4 * g24 * x * b
        dy += g16 * x * b + g17 * z * across + g18 * x * seven + g19 * z * three
        dy += -2 * g22 * y * seven - 6 * g23 * xyz - 4 * g24 * y * a
        dz += g17 * y * a + 14 * g18 * xyz + g19 * y * (21 * zz - 3) + g20 * z * (140 * zz - 60)
        dz += g21 * x * (21 * zz - 3) + 14 * g22 * z * (xx - yy) + g23 * x * b
    return dx, dy, dz

"""Projection on the CPU: numba kernels that project a Gaussian into all targets of its scene.

They compute the same as `_projection.project` and as the sum in `geometry.sh.color`, without
intermediate arrays. The backward pass recomputes those; local numbers are float64, whatever the
dtype of the arrays.
"""

import math

import numpy as np
from numba import prange

from . import _projection
from ._cpu_blend import parallel, serial

MAX_PIXELS, REACH_MARGIN = _projection.MAX_PIXELS, _projection.REACH_MARGIN
CHUNK = 512  # Gaussians per job of a thread; they share scratch memory

# Columns of a camera: w2c as three rows of four, then focal lengths and principal point in pixels,
# the limits of x/z and y/z in the Jacobian, and the z between which Gaussians are drawn.
FX, FY, CX, CY, LOW_X, HIGH_X, LOW_Y, HIGH_Y, NEAR, FAR = 12, 13, 14, 15, 16, 17, 18, 19, 20, 21


@serial
def _unit(quat):
    """Returns the normalised quaternion (w, x, y, z) and its length before."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    length = max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return w / length, x / length, y / length, z / length, length


@serial
def _rotation(w, x, y, z, out):
    """Fills the rotation matrix of a unit quaternion."""
    out[0, 0], out[0, 1], out[0, 2] = (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
    )
    out[1, 0], out[1, 1], out[1, 2] = (
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
    )
    out[2, 0], out[2, 1], out[2, 2] = (
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


@serial
def _to_camera(camera, mean):
    """Returns the mean in the camera frame."""
    x, y, z = np.float64(mean[0]), np.float64(mean[1]), np.float64(mean[2])
    return (
        camera[0] * x + camera[1] * y + camera[2] * z + camera[3],
        camera[4] * x + camera[5] * y + camera[6] * z + camera[7],
        camera[8] * x + camera[9] * y + camera[10] * z + camera[11],
    )


@serial
def _kept(camera, x, y, z, scale):
    """Returns whether a Gaussian lies between the planes and within MAX_PIXELS."""
    reach = max(abs(x), abs(y), scale[0], scale[1], scale[2])
    between = z > camera[NEAR] and z <= camera[FAR]
    return between and reach * max(camera[FX], camera[FY]) < MAX_PIXELS * z


@serial
def _axes(camera, rotation, scale, tilt_x, tilt_y, z, axes, a, b):
    """Fills the axes in the camera frame (columns), and the rows `a`, `b` of their projections."""
    for j in range(3):
        for i in range(3):
            axes[i, j] = scale[j] * (
                camera[4 * i] * rotation[0, j]
                + camera[4 * i + 1] * rotation[1, j]
                + camera[4 * i + 2] * rotation[2, j]
            )
        a[j] = camera[FX] / z * (axes[0, j] - tilt_x * axes[2, j])
        b[j] = camera[FY] / z * (axes[1, j] - tilt_y * axes[2, j])


@serial
def _conic(a, b, blur):
    """Returns the blurred variances in px², the inverse covariance (xx, xy, yy), determinant."""
    xx = a[0] * a[0] + a[1] * a[1] + a[2] * a[2]
    yy = b[0] * b[0] + b[1] * b[1] + b[2] * b[2]
    xy = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    u, v, w = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
    determinant = u * u + v * v + w * w + blur * (xx + yy) + blur * blur
    xx, yy = xx + blur, yy + blur
    return xx, yy, yy / determinant, -xy / determinant, xx / determinant, determinant


@serial
def _cross(a, b):
    """Returns the length of a × b, which is the root of the unblurred determinant, and its unit."""
    u, v, w = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
    length = math.sqrt(u * u + v * v + w * w)
    if length == 0:
        return 0.0, 0.0, 0.0, 0.0
    return length, u / length, v / length, w / length


@serial
def _shrink(reach_squared, compensation):
    """Returns the squared reach of a splat whose opacity is multiplied by `compensation`."""
    if compensation == 0:
        return 0.0
    squared = reach_squared + 2 * math.log(compensation)
    return squared if squared >= REACH_MARGIN else 0.0


@parallel
def project(
    means, scales, quats, reach_squared, cameras, width, height, blur,
    xy, conic, z, compensation, extent,
):  # fmt: skip
    """Fills positions, conics, z and extents [target, gaussian, ...] of one scene.

    Fills `compensation`, the factors of the opacities, where there is room for it: where the rules
    are antialiased.
    """
    count, antialiased = len(means), compensation.shape[1] > 0
    for chunk in prange(-(-count // CHUNK)):
        rotation, axes = np.empty((3, 3)), np.empty((3, 3))
        a, b = np.empty(3), np.empty(3)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, count)):
            qw, qx, qy, qz, _ = _unit(quats[n])
            _rotation(qw, qx, qy, qz, rotation)
            for t in range(len(cameras)):
                camera = cameras[t]
                px, py, pz = _to_camera(camera, means[n])
                if not _kept(camera, px, py, pz, scales[n]):
                    xy[t, n, 0], xy[t, n, 1], z[t, n] = camera[CX], camera[CY], 1
                    conic[t, n, 0], conic[t, n, 1], conic[t, n, 2] = 1 / blur, 0, 1 / blur
                    extent[t, n, 0], extent[t, n, 1] = 0, 0
                    if antialiased:
                        compensation[t, n] = 0
                    continue
                ratio_x, ratio_y = px / pz, py / pz
                tilt_x = min(max(ratio_x, camera[LOW_X]), camera[HIGH_X])
                tilt_y = min(max(ratio_y, camera[LOW_Y]), camera[HIGH_Y])
                _axes(camera, rotation, scales[n], tilt_x, tilt_y, pz, axes, a, b)
                xx, yy, c0, c1, c2, determinant = _conic(a, b, blur)
                reach = np.float64(reach_squared[n])
                if antialiased:
                    length, _, _, _ = _cross(a, b)
                    compensation[t, n] = length / math.sqrt(determinant)
                    reach = _shrink(reach, length / math.sqrt(determinant))
                u, v = camera[FX] * ratio_x + camera[CX], camera[FY] * ratio_y + camera[CY]
                rx, ry = math.sqrt(reach * xx), math.sqrt(reach * yy)
                seen = u + rx > 0 and u - rx < width and v + ry > 0 and v - ry < height
                xy[t, n, 0], xy[t, n, 1], z[t, n] = u, v, pz
                conic[t, n, 0], conic[t, n, 1], conic[t, n, 2] = c0, c1, c2
                extent[t, n, 0], extent[t, n, 1] = (rx, ry) if seen else (0.0, 0.0)


@parallel
def project_back(
    means, scales, quats, cameras, blur, g_xy, g_conic, g_z, g_compensation,
    d_means, d_scales, d_quats,
):  # fmt: skip
    """Fills the gradients of one scene's means, scales and quaternions."""
    count, antialiased = len(means), g_compensation.shape[1] > 0
    for chunk in prange(-(-count // CHUNK)):
        rotation, axes, d_rotation = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
        a, b, d_mean, d_scale = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, count)):
            qw, qx, qy, qz, length = _unit(quats[n])
            _rotation(qw, qx, qy, qz, rotation)
            d_rotation[:], d_mean[:], d_scale[:] = 0, 0, 0
            touched = False
            for t in range(len(cameras)):
                g0, g1, g2 = g_conic[t, n, 0], g_conic[t, n, 1], g_conic[t, n, 2]
                gu, gv, gz = g_xy[t, n, 0], g_xy[t, n, 1], g_z[t, n]
                gk = np.float64(g_compensation[t, n]) if antialiased else 0.0
                untouched = g0 == 0 and g1 == 0 and g2 == 0 and gk == 0
                if untouched and gu == 0 and gv == 0 and gz == 0:
                    continue
                px, py, pz = _to_camera(cameras[t], means[n])
                if not _kept(cameras[t], px, py, pz, scales[n]):
                    continue
                touched = True
                _target_back(
                    cameras[t], px, py, pz, rotation, scales[n], blur,
                    gu, gv, gz, g0, g1, g2, gk, axes, a, b, d_rotation, d_mean, d_scale,
                )  # fmt: skip
            if touched:
                for i in range(3):
                    d_means[n, i], d_scales[n, i] = d_mean[i], d_scale[i]
                _quat_back(qw, qx, qy, qz, length, d_rotation, d_quats[n])


@serial
def _target_back(
    camera, x, y, z, rotation, scale, blur, gu, gv, gz, g0, g1, g2, gk,
    axes, a, b, d_rotation, d_mean, d_scale,
):  # fmt: skip
    """Adds one target's gradients of a Gaussian's rotation, mean and scale.

    `gk` is the gradient of the compensation |a×b| / √D, with D = |a×b|² + blur (|a|² + |b|²) +
    blur². For the unit vector ĉ along a×b, d|a×b| = (b×ĉ)·da + (ĉ×a)·db, and therefore its
    gradient of a is (1 - |a×b|²/D) / √D · b×ĉ - |a×b| blur / D^1.5 · a, and that of b alike.
    """
    ratio_x, ratio_y = x / z, y / z
    tilt_x = min(max(ratio_x, camera[LOW_X]), camera[HIGH_X])
    tilt_y = min(max(ratio_y, camera[LOW_Y]), camera[HIGH_Y])
    _axes(camera, rotation, scale, tilt_x, tilt_y, z, axes, a, b)
    xx, yy, c0, c1, c2, determinant = _conic(a, b, blur)
    # Gradient of the inverse P of Σ: dΣ = -P dP P
    g_xx = -(c0 * c0 * g0 + c0 * c1 * g1 + c1 * c1 * g2)
    g_yy = -(c1 * c1 * g0 + c1 * c2 * g1 + c2 * c2 * g2)
    g_xy = -(2 * c0 * c1 * g0 + (c0 * c2 + c1 * c1) * g1 + 2 * c1 * c2 * g2)
    length = turn = fade = u = v = w = 0.0
    if gk != 0:
        length, u, v, w = _cross(a, b)
        root = gk / math.sqrt(determinant)
        turn = root * blur * (xx + yy - blur) / determinant  # xx and yy contain the blur
        fade = root * blur * length / determinant
    b_c = (b[1] * w - b[2] * v, b[2] * u - b[0] * w, b[0] * v - b[1] * u)
    c_a = (v * a[2] - w * a[1], w * a[0] - u * a[2], u * a[1] - v * a[0])
    fx_z, fy_z = camera[FX] / z, camera[FY] / z
    g_tilt_x = g_tilt_y = g_log_z = 0.0
    for j in range(3):
        g_a, g_b = 2 * g_xx * a[j] + g_xy * b[j], 2 * g_yy * b[j] + g_xy * a[j]
        if gk != 0:
            g_a += turn * b_c[j] - fade * a[j]
            g_b += turn * c_a[j] - fade * b[j]
        g_log_z -= g_a * a[j] + g_b * b[j]
        g_tilt_x -= g_a * fx_z * axes[2, j]
        g_tilt_y -= g_b * fy_z * axes[2, j]
        g0_j, g1_j = g_a * fx_z, g_b * fy_z
        g2_j = -(tilt_x * g0_j + tilt_y * g1_j)
        for i in range(3):
            g_axis = camera[i] * g0_j + camera[4 + i] * g1_j + camera[8 + i] * g2_j
            d_scale[j] += g_axis * rotation[i, j]
            d_rotation[i, j] += g_axis * scale[j]
    g_ratio_x = camera[FX] * gu + (g_tilt_x if tilt_x == ratio_x else 0.0)
    g_ratio_y = camera[FY] * gv + (g_tilt_y if tilt_y == ratio_y else 0.0)
    g_x, g_y = g_ratio_x / z, g_ratio_y / z
    g_z = gz + (g_log_z - g_ratio_x * ratio_x - g_ratio_y * ratio_y) / z
    for i in range(3):
        d_mean[i] += camera[i] * g_x + camera[4 + i] * g_y + camera[8 + i] * g_z


@serial
def _quat_back(w, x, y, z, length, g, out):
    """Fills the gradient of a quaternion from the gradient `g` of its rotation matrix."""
    gw = 2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    gx = 2 * (
        y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0])
        + w * (g[2, 1] - g[1, 2]) - 2 * x * (g[1, 1] + g[2, 2])
    )  # fmt: skip
    gy = 2 * (
        x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1])
        + w * (g[0, 2] - g[2, 0]) - 2 * y * (g[0, 0] + g[2, 2])
    )  # fmt: skip
    gz = 2 * (
        x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1])
        + w * (g[1, 0] - g[0, 1]) - 2 * z * (g[0, 0] + g[1, 1])
    )  # fmt: skip
    along = w * gw + x * gx + y * gy + z * gz
    out[0], out[1] = (gw - w * along) / length, (gx - x * along) / length
    out[2], out[3] = (gy - y * along) / length, (gz - z * along) / length


@parallel
def shade(basis, sh, color):
    """Fills the colours [target, gaussian, 3] of one scene: max(0, 0.5 + basis · sh)."""
    targets, count, terms = basis.shape
    real = color.dtype.type
    for n in prange(count):
        for t in range(targets):
            for c in range(3):
                total = real(0.5)
                for k in range(terms):
                    total += basis[t, n, k] * sh[n, k, c]
                color[t, n, c] = max(total, real(0))


@parallel
def shade_back(basis, sh, color, g_color, d_basis, d_sh):
    """Adds the gradients of `basis` and `sh`."""
    targets, count, terms = basis.shape
    for n in prange(count):
        for t in range(targets):
            for c in range(3):
                if color[t, n, c] > 0:
                    g = g_color[t, n, c]
                    for k in range(terms):
                        d_basis[t, n, k] += g * sh[n, k, c]
                        d_sh[n, k, c] += g * basis[t, n, k]

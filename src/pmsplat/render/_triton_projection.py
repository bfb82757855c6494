"""Projection in Triton: a program takes a block of Gaussians of a scene through all of its targets.

It computes what `_projection.project` and `geometry.sh.color` do, and its gradient, without arrays
in between. A Gaussian is a thread's work, so parameters are read once and gradients written once.
|a × b|, the root of the determinant of a covariance without blur, is not the difference of products
of `_projection.project` but the sum of squares of s_i s_j (n · r_k), for scales s, axes r and the
normal n of the two rows of the Jacobian: that is exact for Gaussians seen edge-on, too.
"""

# Python's type checker does not understand Triton's language, nor Triton `*` within a tuple.
# ruff: noqa: RUF005
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportReturnType=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from . import _projection
from ._triton_sh import sh_basis, sh_gradient

ALPHA_MIN = tl.constexpr(_projection.ALPHA_MIN)
FIELD_OF_VIEW = tl.constexpr(_projection.FIELD_OF_VIEW)
MAX_PIXELS = tl.constexpr(_projection.MAX_PIXELS)
REACH_MARGIN = tl.constexpr(_projection.REACH_MARGIN)

# Columns of the two tables that drawing reads, a row for each Gaussian of an image: its place (mean
# and half the size of its box, 0 where it is not drawn; in pixels) and its look (conic, opacity,
# color and z, 0 where it is culled).
PLACE, LOOK = tl.constexpr(4), tl.constexpr(8)
LEVELS = tl.constexpr(16)  # columns of `totals`; a tile of the last level covers 2^15 of the first


@triton.jit
def reach_squared(opacity):
    """Returns `_projection.reach_squared`."""
    squared = 2 * tl.log(tl.maximum(opacity, ALPHA_MIN) / ALPHA_MIN) + REACH_MARGIN
    return tl.where(opacity >= ALPHA_MIN, squared, 0.0)


@triton.jit
def box_of(x, y, extent_x, extent_y, width, height, tile_w, tile_h):
    """Returns the first column and row of tiles that a splat's box touches, and how many of both.

    Both counts are 0 where it contains no pixel centre.
    """
    left = tl.minimum(tl.maximum(tl.ceil(x - extent_x - 0.5), 0.0), width * 1.0).to(tl.int32)
    top = tl.minimum(tl.maximum(tl.ceil(y - extent_y - 0.5), 0.0), height * 1.0).to(tl.int32)
    right = tl.minimum(tl.maximum(tl.floor(x + extent_x - 0.5) + 1, 0.0), width * 1.0).to(tl.int32)
    bottom = tl.minimum(tl.maximum(tl.floor(y + extent_y - 0.5) + 1, 0.0), height * 1.0)
    bottom = bottom.to(tl.int32)
    some = (extent_x > 0) & (right > left) & (bottom > top)
    column, row = left // tile_w, top // tile_h
    columns = tl.where(some, (right - 1) // tile_w + 1 - column, 0)
    rows = tl.where(some, (bottom - 1) // tile_h + 1 - row, 0)
    return column, row, columns, rows


@triton.jit
def split_four(table, ROWS: tl.constexpr):
    """Returns the four columns of a table."""
    even, odd = tl.split(tl.reshape(table, (ROWS, 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def split_eight(table, ROWS: tl.constexpr):
    """Returns the eight columns of a table."""
    even, odd = tl.split(tl.reshape(table, (ROWS, 4, 2)))
    c0, c2, c4, c6 = split_four(even, ROWS)
    c1, c3, c5, c7 = split_four(odd, ROWS)
    return c0, c1, c2, c3, c4, c5, c6, c7


@triton.jit
def load_four(first, mask):
    """Returns a table of the four numbers from each address on, which are read at once."""
    at = first[:, None] + tl.arange(0, 4)[None, :]
    return tl.load(at, mask=mask[:, None], other=0.0)


@triton.jit
def _unit(w, x, y, z):
    """Returns the normalised quaternion, and its length before."""
    length = tl.maximum(tl.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return w / length, x / length, y / length, z / length, length


@triton.jit
def _rotation(w, x, y, z):
    """Returns the rotation matrix of a unit quaternion, row by row."""
    return (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip


@triton.jit
def _camera(c2w, K, image, width, height):
    """Returns the rotation of c2w (row by row) and its centre, and intrinsics in pixels.

    The intrinsics are fx, fy, cx, cy and the skew that shears x by y, as in `world_to_camera`.
    """
    c2w += image * 16
    K += image * 9
    turn = (
        tl.load(c2w), tl.load(c2w + 1), tl.load(c2w + 2), tl.load(c2w + 4), tl.load(c2w + 5),
        tl.load(c2w + 6), tl.load(c2w + 8), tl.load(c2w + 9), tl.load(c2w + 10),
    )  # fmt: skip
    centre = (tl.load(c2w + 3), tl.load(c2w + 7), tl.load(c2w + 11))
    focal, skew = tl.load(K), tl.load(K + 1)
    lens = (
        focal * width, tl.load(K + 4) * height, tl.load(K + 2) * width, tl.load(K + 5) * height,
        skew / focal,
    )  # fmt: skip
    return turn, centre, lens


@triton.jit
def _view(turn, skew, dx, dy, dz):
    """Returns a world vector in the axes of the (sheared) camera."""
    x = turn[0] * dx + turn[3] * dy + turn[6] * dz
    y = turn[1] * dx + turn[4] * dy + turn[7] * dz
    z = turn[2] * dx + turn[5] * dy + turn[8] * dz
    return x + skew * y, y, z


@triton.jit
def _project_axis(scale, x, y, z, lens, tilt_x, tilt_y, depth):
    """Returns an axis of a Gaussian in pixels, and n · r of its direction, in the camera's axes."""
    a = lens[0] / depth * (scale * (x - tilt_x * z))
    b = lens[1] / depth * (scale * (y - tilt_y * z))
    return a, b, (x - lens[4] * y) * (tilt_x - lens[4] * tilt_y) + y * tilt_y + z


@triton.jit
def _clamp_tilt(tilt, focal, principal, length, ABOUT_IMAGE: tl.constexpr):
    """Returns x/z (or y/z) within `_projection.tilt_limits`."""
    limit = FIELD_OF_VIEW * length / (2 * focal)
    low, high = -limit, limit
    if ABOUT_IMAGE:
        middle = (0.5 * length - principal) / focal
        low, high = middle - limit, middle + limit
    return tl.minimum(tl.maximum(tilt, low), high)


@triton.jit
def _splat(
    turn, lens, q, s0, s1, s2, x, y, z, width, height, blur, ABOUT_IMAGE: tl.constexpr
):  # fmt: skip
    """Returns the axes of a splat (a and b, by the scales), a × b, determinant and the tilts."""
    tilt_x = _clamp_tilt(x / z, lens[0], lens[2], width, ABOUT_IMAGE)
    tilt_y = _clamp_tilt(y / z, lens[1], lens[3], height, ABOUT_IMAGE)
    x0, y0, z0 = _view(turn, lens[4], q[0], q[3], q[6])
    x1, y1, z1 = _view(turn, lens[4], q[1], q[4], q[7])
    x2, y2, z2 = _view(turn, lens[4], q[2], q[5], q[8])
    a0, b0, n0 = _project_axis(s0, x0, y0, z0, lens, tilt_x, tilt_y, z)
    a1, b1, n1 = _project_axis(s1, x1, y1, z1, lens, tilt_x, tilt_y, z)
    a2, b2, n2 = _project_axis(s2, x2, y2, z2, lens, tilt_x, tilt_y, z)
    f0, f1 = lens[0] / z, lens[1] / z
    u, v, w = (f0 * s1) * (f1 * s2) * n0, (f0 * s2) * (f1 * s0) * n1, (f0 * s0) * (f1 * s1) * n2
    aa, bb = a0 * a0 + a1 * a1 + a2 * a2, b0 * b0 + b1 * b1 + b2 * b2
    determinant = u * u + v * v + w * w + blur * (aa + bb) + blur * blur
    axes = (x0, y0, z0, x1, y1, z1, x2, y2, z2)
    return (a0, a1, a2), (b0, b1, b2), (u, v, w), determinant, axes, tilt_x, tilt_y


@triton.jit
def _load_row(first, mask, COUNT: tl.constexpr):
    """Returns COUNT numbers in a row of memory, as a tuple."""
    out = (tl.load(first, mask=mask, other=0.0),)
    for k in tl.static_range(1, COUNT):
        out = out + (tl.load(first + k, mask=mask, other=0.0),)
    return out


@triton.jit(do_not_specialize=["count", "views", "width", "height", "channels", "levels"])
def project(  # noqa: PLR0915 (a kernel is one function)
    means, scales, quats, opacities, sh, attributes, c2w, K, near, far, place, look, keys, totals,
    count, views, width, height, channels, levels, blur, near_factor, far_factor,
    DEGREE: tl.constexpr, STORED: tl.constexpr, ANTIALIASED: tl.constexpr,
    ABOUT_IMAGE: tl.constexpr, TILE_W: tl.constexpr, TILE_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fills the tables, `keys` (z, infinity in no tile) and adds to `totals` of an image.

    The planes are at `near` times `near_factor` and at `far` times `far_factor`, which may be
    infinity. The totals are the tiles that boxes touch, for tiles of TILE pixels, of twice as many,
    and so on. Gaussians with a number that is not finite are culled.
    """
    blocks = tl.cdiv(count, BLOCK)
    scene = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = n < count
    row = scene * count + n
    # Read the parameters; a broken Gaussian becomes one of zeros.
    mx, my, mz = _load_row(means + row * 3, mask, 3)
    s0, s1, s2 = _load_row(scales + row * 3, mask, 3)
    qw, qx, qy, qz = _load_row(quats + row * 4, mask, 4)
    opacity = tl.load(opacities + row, mask=mask, other=0.0)
    zero = (mx + my + mz) * 0.0 + (s0 + s1 + s2) * 0.0 + (qw + qx + qy + qz) * 0.0 + opacity * 0.0
    f = _load_row(sh + row * (3 * STORED), mask, 3 * STORED)
    for k in tl.static_range(3 * STORED):
        zero += f[k] * 0.0
    for channel in range(channels):
        zero += tl.load(attributes + row * channels + channel, mask=mask, other=0.0) * 0.0
    sound = mask & (zero == 0)
    w, x, y, z, _length = _unit(qw, qx, qy, qz)
    q = _rotation(w, x, y, z)
    for view in range(views):
        image = scene * views + view
        turn, centre, lens = _camera(c2w, K, image, width, height)
        dx, dy, dz = mx - centre[0], my - centre[1], mz - centre[2]
        x, y, z = _view(turn, lens[4], dx, dy, dz)
        reach = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.maximum(tl.maximum(s0, s1), s2))
        kept = sound & (z > tl.load(near + image) * near_factor)
        kept = kept & (z / far_factor <= tl.load(far + image))  # not their product: 0 · infinity
        kept = kept & (reach * tl.maximum(lens[0], lens[1]) < MAX_PIXELS * z)
        x, y, z = tl.where(kept, x, 0.0), tl.where(kept, y, 0.0), tl.where(kept, z, 1.0)
        a, b, c, determinant, _axes, _tilt_x, _tilt_y = _splat(
            turn, lens, q, s0, s1, s2, x, y, z, width, height, blur, ABOUT_IMAGE
        )
        aa, bb = a[0] * a[0] + a[1] * a[1] + a[2] * a[2], b[0] * b[0] + b[1] * b[1] + b[2] * b[2]
        ab = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
        faded = opacity
        if ANTIALIASED:
            cross = tl.sqrt(c[0] * c[0] + c[1] * c[1] + c[2] * c[2])
            faded = opacity * (cross / tl.sqrt(determinant))
        # The splat's box, and the tiles that it touches at every level
        squared = reach_squared(faded)
        extent_x, extent_y = tl.sqrt(squared * (aa + blur)), tl.sqrt(squared * (bb + blur))
        at_x, at_y = lens[0] * (x / z) + lens[2], lens[1] * (y / z) + lens[3]
        inside = (at_x + extent_x > 0) & (at_x - extent_x < width)
        inside = inside & (at_y + extent_y > 0) & (at_y - extent_y < height) & kept
        extent_x, extent_y = tl.where(inside, extent_x, 0.0), tl.where(inside, extent_y, 0.0)
        listed = n < 0
        for level in range(levels):
            _column, _row, columns, rows = box_of(
                at_x, at_y, extent_x, extent_y, width, height, TILE_W << level, TILE_H << level
            )
            listed = columns > 0
            touched = tl.sum((columns * rows).to(tl.int64), 0)
            tl.atomic_add(totals + image * LEVELS + level, touched, sem="relaxed")
        # The color seen from here
        length = tl.maximum(tl.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
        basis = sh_basis(dx / length, dy / length, dz / length, DEGREE)
        red, green, blue = dx * 0.0 + 0.5, dx * 0.0 + 0.5, dx * 0.0 + 0.5
        for k in tl.static_range((DEGREE + 1) * (DEGREE + 1)):
            red += basis[k] * f[3 * k]
            green += basis[k] * f[3 * k + 1]
            blue += basis[k] * f[3 * k + 2]
        to = image * count + n
        tl.store(keys + to, tl.where(listed, z, float("inf")), mask=mask)
        tl.store(place + to * PLACE, at_x, mask=mask)
        tl.store(place + to * PLACE + 1, at_y, mask=mask)
        tl.store(place + to * PLACE + 2, extent_x, mask=mask)
        tl.store(place + to * PLACE + 3, extent_y, mask=mask)
        tl.store(look + to * LOOK, (bb + blur) / determinant, mask=mask)
        tl.store(look + to * LOOK + 1, -ab / determinant, mask=mask)
        tl.store(look + to * LOOK + 2, (aa + blur) / determinant, mask=mask)
        tl.store(look + to * LOOK + 3, faded, mask=mask)
        tl.store(look + to * LOOK + 4, tl.maximum(red, 0.0), mask=mask)
        tl.store(look + to * LOOK + 5, tl.maximum(green, 0.0), mask=mask)
        tl.store(look + to * LOOK + 6, tl.maximum(blue, 0.0), mask=mask)
        tl.store(look + to * LOOK + 7, tl.where(kept, z, 0.0), mask=mask)


@triton.jit
def _axis_back(scale, axis_x, axis_y, axis_z, a, b, g_a, g_b, lens, tilt_x, tilt_y, depth):
    """Returns gradients of the axis in the camera, of its scale, the tilts and log z."""
    f_a, f_b = g_a * lens[0] / depth, g_b * lens[1] / depth
    g_z = -(tilt_x * f_a + tilt_y * f_b)
    along = f_a * axis_x + f_b * axis_y + g_z * axis_z
    return f_a, f_b, g_z, along, -f_a * scale * axis_z, -f_b * scale * axis_z, -(g_a * a + g_b * b)


@triton.jit
def _unview(turn, skew, x, y, z):
    """Returns the gradient of a world vector from that of `_view`."""
    y = y + skew * x
    return (
        turn[0] * x + turn[1] * y + turn[2] * z,
        turn[3] * x + turn[4] * y + turn[5] * z,
        turn[6] * x + turn[7] * y + turn[8] * z,
    )


@triton.jit
def _covariance_back(a, b, c, g0, g1, g2, g_fade, determinant, blur):
    """Returns the gradients of the rows a and b from those of the conic and of the compensation.

    With c = a × b, the conic is (|b|² + blur, -a·b, |a|² + blur) / D for D = |c|² + blur (|a|² +
    |b|²) + blur², so that no term grows with the length of a needle. The compensation is |c| / √D.
    For the unit vector ĉ, d|c| = (b × ĉ)·da + (ĉ × a)·db, so its gradient of a is
    (1 - |c|²/D) / √D · b × ĉ - |c| blur / D^1.5 · a, and that of b alike.
    """
    xx, yy = a[0] * a[0] + a[1] * a[1] + a[2] * a[2], b[0] * b[0] + b[1] * b[1] + b[2] * b[2]
    xy = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    g_d = (g1 * xy - g0 * (yy + blur) - g2 * (xx + blur)) / determinant / determinant
    g_xx, g_yy, g_xy = (
        g2 / determinant + blur * g_d,
        g0 / determinant + blur * g_d,
        -g1 / determinant,
    )
    length = tl.sqrt(c[0] * c[0] + c[1] * c[1] + c[2] * c[2])
    root = g_fade / tl.sqrt(determinant)
    fade = root * blur * length / determinant
    g_xx, g_yy = 2 * g_xx - fade, 2 * g_yy - fade
    g_c = 2 * g_d + root * blur * (xx + yy + blur) / determinant / tl.where(length > 0, length, 1.0)
    u, v, w = g_c * c[0], g_c * c[1], g_c * c[2]
    a0 = g_xx * a[0] + g_xy * b[0] + (b[1] * w - b[2] * v)
    a1 = g_xx * a[1] + g_xy * b[1] + (b[2] * u - b[0] * w)
    a2 = g_xx * a[2] + g_xy * b[2] + (b[0] * v - b[1] * u)
    b0 = g_yy * b[0] + g_xy * a[0] + (v * a[2] - w * a[1])
    b1 = g_yy * b[1] + g_xy * a[1] + (w * a[0] - u * a[2])
    b2 = g_yy * b[2] + g_xy * a[2] + (u * a[1] - v * a[0])
    return (a0, a1, a2), (b0, b1, b2), length / tl.sqrt(determinant)


@triton.jit
def _quat_back(w, x, y, z, length, g):
    """Returns the gradient of a quaternion from the gradient `g` of its rotation matrix."""
    gw = 2 * (x * (g[7] - g[5]) + y * (g[2] - g[6]) + z * (g[3] - g[1]))
    gx = y * (g[1] + g[3]) + z * (g[2] + g[6]) + w * (g[7] - g[5]) - 2 * x * (g[4] + g[8])
    gy = x * (g[1] + g[3]) + z * (g[5] + g[7]) + w * (g[2] - g[6]) - 2 * y * (g[0] + g[8])
    gz = x * (g[2] + g[6]) + y * (g[5] + g[7]) + w * (g[3] - g[1]) - 2 * z * (g[0] + g[4])
    gx, gy, gz = 2 * gx, 2 * gy, 2 * gz
    along = w * gw + x * gx + y * gy + z * gz
    return (
        (gw - w * along) / length,
        (gx - x * along) / length,
        (gy - y * along) / length,
        (gz - z * along) / length,
    )


@triton.jit(do_not_specialize=["count", "views", "width", "height", "step_xy", "step_look"])
def project_back(  # noqa: PLR0915
    means, scales, quats, opacities, sh, c2w, K, look, g_xy, g_look,
    d_means, d_scales, d_quats, d_opacities, d_sh,
    count, views, width, height, step_xy, step_look, blur,
    DEGREE: tl.constexpr, STORED: tl.constexpr, ANTIALIASED: tl.constexpr,
    ABOUT_IMAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fills the gradients of the parameters, sums over all targets of the scene.

    A Gaussian that was culled everywhere, broken ones among them, gets zeros. `step_xy` and
    `step_look` are the lengths of the rows of `g_xy` and `g_look`.
    """
    USED: tl.constexpr = (DEGREE + 1) * (DEGREE + 1)
    blocks = tl.cdiv(count, BLOCK)
    scene = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = n < count
    row = scene * count + n
    mx, my, mz = _load_row(means + row * 3, mask, 3)
    s0, s1, s2 = _load_row(scales + row * 3, mask, 3)
    qw, qx, qy, qz = _load_row(quats + row * 4, mask, 4)
    opacity = tl.load(opacities + row, mask=mask, other=0.0)
    qw, qx, qy, qz, length = _unit(qw, qx, qy, qz)
    q = _rotation(qw, qx, qy, qz)
    nothing = tl.zeros((BLOCK,), tl.float32)
    d_m, d_s, d_o = (nothing, nothing, nothing), (nothing, nothing, nothing), nothing
    d_q = (nothing,) * 9
    d_f = (nothing,) * (3 * USED)
    ever = n < 0
    for view in range(views):
        image = scene * views + view
        turn, centre, lens = _camera(c2w, K, image, width, height)
        at = image * count + n
        z = tl.load(look + at * LOOK + 7, mask=mask, other=0.0)
        kept = z > 0
        ever = ever | kept
        gu, gv = _load_row(g_xy + at * step_xy, kept, 2)
        g0, g1, g2, g_o, g_red, g_green, g_blue, g_z = _load_row(g_look + at * step_look, kept, 8)
        dx, dy, dz = mx - centre[0], my - centre[1], mz - centre[2]
        x, y, z = _view(turn, lens[4], dx, dy, dz)
        x, y, z = tl.where(kept, x, 0.0), tl.where(kept, y, 0.0), tl.where(kept, z, 1.0)
        a, b, c, determinant, axes, tilt_x, tilt_y = _splat(
            turn, lens, q, s0, s1, s2, x, y, z, width, height, blur, ABOUT_IMAGE
        )
        # Through the conic and the opacity to the rows of the covariance's root
        g_fade = g_o * opacity if ANTIALIASED else nothing
        g_a, g_b, fade = _covariance_back(a, b, c, g0, g1, g2, g_fade, determinant, blur)
        d_o += tl.where(kept, g_o * fade if ANTIALIASED else g_o, 0.0)
        # Through the projected axes
        g_tilt_x, g_tilt_y, g_log_z = nothing, nothing, nothing
        new_s, new_q = (), ()
        for j in tl.static_range(3):
            scale = s0 if j == 0 else (s1 if j == 1 else s2)
            g_axis_x, g_axis_y, g_axis_z, along, tilting_x, tilting_y, shrinking = _axis_back(
                scale, axes[3 * j], axes[3 * j + 1], axes[3 * j + 2],
                a[j], b[j], g_a[j], g_b[j], lens, tilt_x, tilt_y, z,
            )  # fmt: skip
            g_tilt_x, g_tilt_y, g_log_z = (
                g_tilt_x + tilting_x,
                g_tilt_y + tilting_y,
                g_log_z + shrinking,
            )
            new_s = new_s + (d_s[j] + tl.where(kept, along, 0.0),)
            u, v, w = _unview(turn, lens[4], g_axis_x * scale, g_axis_y * scale, g_axis_z * scale)
            new_q = new_q + (
                d_q[j] + tl.where(kept, u, 0.0),
                d_q[3 + j] + tl.where(kept, v, 0.0),
                d_q[6 + j] + tl.where(kept, w, 0.0),
            )
        d_s = new_s
        d_q = (
            new_q[0],
            new_q[3],
            new_q[6],
            new_q[1],
            new_q[4],
            new_q[7],
            new_q[2],
            new_q[5],
            new_q[8],
        )
        # Through the projected mean
        ratio_x, ratio_y = x / z, y / z
        g_x = lens[0] * gu + tl.where(tilt_x == ratio_x, g_tilt_x, 0.0)
        g_y = lens[1] * gv + tl.where(tilt_y == ratio_y, g_tilt_y, 0.0)
        g_z += (g_log_z - g_x * ratio_x - g_y * ratio_y) / z
        u, v, w = _unview(turn, lens[4], g_x / z, g_y / z, g_z)
        # Through the color, where it is not clamped
        g_red = tl.where(tl.load(look + at * LOOK + 4, mask=kept, other=0.0) > 0, g_red, 0.0)
        g_green = tl.where(tl.load(look + at * LOOK + 5, mask=kept, other=0.0) > 0, g_green, 0.0)
        g_blue = tl.where(tl.load(look + at * LOOK + 6, mask=kept, other=0.0) > 0, g_blue, 0.0)
        distance = tl.maximum(tl.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
        dx, dy, dz = dx / distance, dy / distance, dz / distance
        basis = sh_basis(dx, dy, dz, DEGREE)
        new_f, g_basis = (), ()
        first = sh + row * (3 * STORED)
        for k in tl.static_range(USED):
            new_f = new_f + (
                d_f[3 * k] + tl.where(kept, g_red * basis[k], 0.0),
                d_f[3 * k + 1] + tl.where(kept, g_green * basis[k], 0.0),
                d_f[3 * k + 2] + tl.where(kept, g_blue * basis[k], 0.0),
            )
            red, green, blue = _load_row(first + 3 * k, kept, 3)
            g_basis = g_basis + (g_red * red + g_green * green + g_blue * blue,)
        d_f = new_f
        g_dx, g_dy, g_dz = sh_gradient(g_basis, dx, dy, dz, DEGREE)
        outward = g_dx * dx + g_dy * dy + g_dz * dz
        u += (g_dx - outward * dx) / distance
        v += (g_dy - outward * dy) / distance
        w += (g_dz - outward * dz) / distance
        d_m = (
            d_m[0] + tl.where(kept, u, 0.0),
            d_m[1] + tl.where(kept, v, 0.0),
            d_m[2] + tl.where(kept, w, 0.0),
        )
    for j in tl.static_range(3):
        tl.store(d_means + row * 3 + j, d_m[j], mask=mask)
        tl.store(d_scales + row * 3 + j, d_s[j], mask=mask)
    turned = _quat_back(qw, qx, qy, qz, length, d_q)
    for j in tl.static_range(4):
        tl.store(d_quats + row * 4 + j, tl.where(ever, turned[j], 0.0), mask=mask)
    tl.store(d_opacities + row, d_o, mask=mask)
    for k in tl.static_range(3 * STORED):
        tl.store(d_sh + row * (3 * STORED) + k, d_f[k] if k < 3 * USED else nothing, mask=mask)

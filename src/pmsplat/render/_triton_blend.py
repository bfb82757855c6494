"""Blending in Triton, forward and backward: a program draws a tile, or a part of it, in runs.

A run of Gaussians is a block [Gaussian, pixel] whose products along the Gaussians give the
transmittance. The backward pass replays a tile front to back with one scalar per pixel, as in
`_cpu_blend.py`: for s_i = <dL/dpixel, feature_i>, weights w_i and transmittance T_i,

    dL/dalpha_i = T_i s_i - (Σ_{j>i} w_j s_j) / (1 - alpha_i).

What a Gaussian gets from the pixels of a tile are sums over them: of the gradient of -power times
1, x, y, x², xy and y², and of its weight times the gradients of the pixels. All are one product of
matrices, [Gaussian, pixel] times [pixel, sum]: sums across the threads of a warp would take longer
than all other work.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false, reportReturnType=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from . import _projection
from ._triton_lists import level_of
from ._triton_projection import LOOK, PLACE, load_four, split_eight, split_four

ALPHA_MIN = tl.constexpr(_projection.ALPHA_MIN)
TRANSMITTANCE_MIN = tl.constexpr(_projection.TRANSMITTANCE_MIN)

# Columns of a row of gradients: mean, conic and opacity, then color and z.
GRADIENTS, OF_COLOR = tl.constexpr(10), tl.constexpr(6)
SUMS = tl.constexpr(8)  # columns of a matrix of sums
HIGH = tl.constexpr(-8192)  # the bits of a float32 that TF32 has, too
LOG2_E = tl.constexpr(1.4426950408889634)
DIGITS = tl.constexpr(2.0**40)  # steps of a fixed-point number, for sums that are the same always


@triton.jit
def _open_tile(
    totals, starts, width, height, budget,
    TILE_W: tl.constexpr, TILE_H: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Returns image, pixel columns and rows, whether they are in it, and the ends of the list.

    The pixels are those of one of PARTS parts of a tile, some of its rows.
    """
    ROWS: tl.constexpr = TILE_H // PARTS
    columns, lines = tl.cdiv(width, TILE_W), tl.cdiv(height, TILE_H)
    tile, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    image = (tile // (columns * lines)).to(tl.int64)
    tile = tile % (columns * lines)
    column, line = tile % columns, tile // columns
    pixel = tl.arange(0, TILE_W * ROWS)
    x, y = column * TILE_W + pixel % TILE_W, line * TILE_H + part * ROWS + pixel // TILE_W
    level = level_of(totals, image, budget)
    at = starts + image * (columns * lines) + (line >> level) * columns + (column >> level)
    return image, x, y, (x < width) & (y < height), tl.load(at), tl.load(at + 1)


@triton.jit
def _load_rows(lists, first, end, offset, CHUNK: tl.constexpr):
    """Returns where in the tables a run is: some Gaussians of a list from `first` on."""
    member = first + tl.arange(0, CHUNK)
    return offset + tl.load(lists + member, mask=member < end, other=0)


@triton.jit
def _load_run(place, look, row, first, end, CHUNK: tl.constexpr):
    """Returns tables of a run: place, shape (conic and opacity), color and z.

    Past the end of the list there is a Gaussian of opacity 0. A run is read while the one before it
    is drawn, and its rows yet one run earlier, so that nothing waits for memory.
    """
    mask = first + tl.arange(0, CHUNK) < end
    shape = load_four(look + row * LOOK, mask)
    return load_four(place + row * PLACE, mask), shape, load_four(look + row * LOOK + 4, mask)


@triton.jit
def _splat_of(run, CHUNK: tl.constexpr):
    """Returns means, conics and opacities of a run."""
    x, y, _width, _height = split_four(run[0], CHUNK)
    xx, xy, yy, opacity = split_four(run[1], CHUNK)
    return x, y, xx, xy, yy, opacity


@triton.jit
def _alpha(px, py, splat, cap):
    """Returns alphas [Gaussian, pixel], 0 where they are skipped."""
    x, y, xx, xy, yy, opacity = splat
    dx, dy = px[None, :] - x[:, None], py[None, :] - y[:, None]
    xx, xy, yy = xx * (-0.5 * LOG2_E), xy * -LOG2_E, yy * (-0.5 * LOG2_E)
    power = xx[:, None] * dx * dx + xy[:, None] * dx * dy + yy[:, None] * dy * dy
    alpha = tl.minimum(opacity[:, None] * tl.exp2(tl.minimum(power, 0.0)), cap)
    return tl.where(alpha >= ALPHA_MIN, alpha, 0.0)


@triton.jit
def _weights(alpha, light):
    """Returns weights, alpha / (1 - alpha), the transmittance behind each Gaussian and behind all.

    The last is 0 where the pixel has ended.
    """
    root = tl.rsqrt(1 - alpha)  # one instruction, where a division takes ten
    odds = alpha * root * root
    after = light[None, :] * tl.cumprod(1 - alpha, 0)
    weight = tl.where(after >= TRANSMITTANCE_MIN, after * odds, 0.0)
    left = tl.min(after, 0)
    return weight, odds, after, tl.where(left >= TRANSMITTANCE_MIN, left, 0.0)


@triton.jit(do_not_specialize=["count", "views", "width", "height", "channels", "budget"])
def draw(  # noqa: PLR0915 (a kernel is one function)
    place, look, attributes, lists, starts, totals, color, depth, opaque, blended, median,
    count, views, width, height, channels, budget, cap,
    WIDE: tl.constexpr, MEDIAN: tl.constexpr, PRECISION: tl.constexpr,
    TILE_W: tl.constexpr, TILE_H: tl.constexpr, PARTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Fills color, depth, alpha (`opaque`), attributes (`blended`) and median depth of pixels.

    A part's first program draws all but the attributes from the WIDE-th on; others, if there are
    more attributes than that, WIDE attributes each.
    """
    image, px, py, inside, first, end = _open_tile(
        totals, starts, width, height, budget, TILE_W, TILE_H, PARTS
    )
    x, y = px + 0.5, py + 0.5
    offset = image * count
    light = tl.where(inside, 1.0, 0.0)
    red, green, blue = light * 0.0, light * 0.0, light * 0.0
    far, total, half = light * 0.0, light * 0.0, light * 0.0 + float("inf")
    if WIDE > 0:
        channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        features = tl.zeros((WIDE, TILE_W * TILE_H // PARTS), tl.float32)
    next_row = _load_rows(lists, first, end, offset, CHUNK)
    next_run = _load_run(place, look, next_row, first, end, CHUNK)
    next_row = _load_rows(lists, first + CHUNK, end, offset, CHUNK)
    while (first < end) & (tl.max(light, 0) > 0):
        run = next_run
        first += CHUNK
        next_run = _load_run(place, look, next_row, first, end, CHUNK)
        next_row = _load_rows(lists, first + CHUNK, end, offset, CHUNK)
        alpha = _alpha(x, y, _splat_of(run, CHUNK), cap)
        if tl.max(tl.max(alpha, 0) * light, 0) > 0:
            weight, _odds, after, light = _weights(alpha, light)
            seen = split_four(run[2], CHUNK)
            red += tl.sum(weight * seen[0][:, None], 0)
            green += tl.sum(weight * seen[1][:, None], 0)
            blue += tl.sum(weight * seen[2][:, None], 0)
            far += tl.sum(weight * seen[3][:, None], 0)
            total += tl.sum(weight, 0)
            if MEDIAN:  # the first of those behind which less than half is left; z only grows
                behind = (after <= 0.5) & (weight > 0)
                half = tl.minimum(half, tl.min(tl.where(behind, seen[3][:, None], float("inf")), 0))
            if WIDE > 0:
                row = _load_rows(lists, first - CHUNK, end, offset, CHUNK)
                listed = first - CHUNK + tl.arange(0, CHUNK) < end
                member = (image // views * count + row - offset)[None, :]
                known = listed[None, :] & (channel < channels)[:, None]
                table = attributes + member * channels + channel[:, None]
                table = tl.load(table, mask=known, other=0.0)
                features = tl.dot(table, weight, features, input_precision=PRECISION)
    area = width.to(tl.int64) * height
    pixel = py * width + px
    mask = inside & (tl.program_id(1) + 0 * px == 0)
    tl.store(color + image * 3 * area + pixel, red, mask=mask)
    tl.store(color + (image * 3 + 1) * area + pixel, green, mask=mask)
    tl.store(color + (image * 3 + 2) * area + pixel, blue, mask=mask)
    tl.store(depth + image * area + pixel, far, mask=mask)
    tl.store(opaque + image * area + pixel, total, mask=mask)
    if MEDIAN:
        tl.store(median + image * area + pixel, tl.where(half < float("inf"), half, 0.0), mask=mask)
    if WIDE > 0:
        at = blended + (image * channels + channel)[:, None] * area + pixel[None, :]
        tl.store(at, features, mask=inside[None, :] & (channel < channels)[:, None])


@triton.jit
def _from_moments(sums, middle_x, middle_y, splat, ROWS: tl.constexpr):
    """Returns rows of gradients of place and look from the sums over the pixels of a program.

    The moments among them are about the middle of these, and are moved to the mean.
    """
    x, y, xx, xy, yy, opacity = splat
    dx, dy = middle_x - x, middle_y - y
    m, m_x, m_y, m_xx, m_xy, m_yy, nothing, _nothing = split_eight(sums, ROWS)
    m_xx += dx * (2 * m_x + dx * m)
    m_xy += dx * m_y + dy * (m_x + dx * m)
    m_yy += dy * (2 * m_y + dy * m)
    m_x, m_y = m_x + dx * m, m_y + dy * m
    m = m / tl.maximum(opacity, ALPHA_MIN)
    even = tl.join(tl.join(xx * m_x + xy * m_y, -0.5 * m_yy), tl.join(-0.5 * m_xx, nothing))
    odd = tl.join(tl.join(yy * m_y + xy * m_x, m), tl.join(-m_xy, nothing))
    return tl.reshape(tl.join(even, odd), (ROWS, 8))


@triton.jit
def _sum_moments(slope, moments, PRECISION: tl.constexpr):
    """Returns slope · moments. TF32 holds the moments exactly, and the slope in two parts."""
    if PRECISION == "ieee":
        return tl.dot(slope, moments, input_precision="ieee")
    high = (slope.to(tl.int32, bitcast=True) & HIGH).to(tl.float32, bitcast=True)
    sums = tl.dot(high, moments, input_precision="tf32")
    return tl.dot(slope - high, moments, sums, input_precision="tf32")


@triton.jit
def _add(rows, bounds, at, value, mask, MODE: tl.constexpr):
    """Adds values to float32 rows, or, for sums that do not depend on the order, in two rounds.

    The first, "bound", finds the bits of the largest magnitude of each sum, the second, "fixed",
    adds integers: multiples of that magnitude divided by DIGITS.
    """
    if MODE == "float":
        tl.atomic_add(rows + at, value, mask=mask, sem="relaxed")
    elif MODE == "bound":
        tl.atomic_max(
            bounds + at, tl.abs(value).to(tl.int32, bitcast=True), mask=mask, sem="relaxed"
        )
    else:
        bound = tl.load(bounds + at, mask=mask, other=0).to(tl.float32, bitcast=True)
        share = value.to(tl.float64) / tl.where(bound > 0, bound, 1.0).to(tl.float64)
        tl.atomic_add(rows + at, (share * DIGITS).to(tl.int64), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["count", "views", "width", "height", "channels", "budget"])
def draw_back(  # noqa: PLR0915 (a kernel is one function)
    place, look, attributes, lists, starts, totals, color, depth, opaque, blended,
    g_color, g_depth, g_opaque, g_blended, rows, bounds, d_attributes, attribute_bounds,
    count, views, width, height, channels, budget, cap,
    WIDE: tl.constexpr, MODE: tl.constexpr, PRECISION: tl.constexpr,
    TILE_W: tl.constexpr, TILE_H: tl.constexpr, PARTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Adds the gradients that the pixels of a tile give to rows [image, Gaussian] and attributes.

    Programs share attributes as in `draw`. What a pixel gives is linear in its gradient, so each
    program takes its own channels through opacity and place, and all add up.
    """
    image, px, py, inside, first, end = _open_tile(
        totals, starts, width, height, budget, TILE_W, TILE_H, PARTS
    )
    x, y = px + 0.5, py + 0.5
    offset = image * count
    area = width.to(tl.int64) * height
    pixel = py * width + px
    # Load the gradients of the pixels, and their products with what was drawn
    mask = inside & (tl.program_id(1) + 0 * px == 0)
    at = image * 3 * area + pixel
    g_red = tl.load(g_color + at, mask=mask, other=0.0)
    g_green = tl.load(g_color + at + area, mask=mask, other=0.0)
    g_blue = tl.load(g_color + at + 2 * area, mask=mask, other=0.0)
    behind = g_red * tl.load(color + at, mask=mask, other=0.0)
    behind += g_green * tl.load(color + at + area, mask=mask, other=0.0)
    behind += g_blue * tl.load(color + at + 2 * area, mask=mask, other=0.0)
    at = image * area + pixel
    g_z = tl.load(g_depth + at, mask=mask, other=0.0)
    g_w = tl.load(g_opaque + at, mask=mask, other=0.0)
    behind += g_z * tl.load(depth + at, mask=mask, other=0.0)
    behind += g_w * tl.load(opaque + at, mask=mask, other=0.0)
    if WIDE > 0:
        channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        across = (image * channels + channel)[:, None] * area + pixel[None, :]
        known = inside[None, :] & (channel < channels)[:, None]
        g_features = tl.load(g_blended + across, mask=known, other=0.0)
        behind += tl.sum(g_features * tl.load(blended + across, mask=known, other=0.0), 0)
    # What the sums of a Gaussian are made of: moments about the middle pixel, and gradients
    k = tl.arange(0, SUMS)[None, :]
    ROWS: tl.constexpr = TILE_H // PARTS
    middle_x = tl.min(px, 0) + 0.5 * TILE_W
    middle_y = tl.min(py, 0) + 0.5 * ROWS
    within = tl.arange(0, TILE_W * ROWS)[:, None]
    u, v = within % TILE_W + (0.5 - 0.5 * TILE_W), within // TILE_W + (0.5 - 0.5 * ROWS)
    moments = tl.where(k == 0, 1.0, tl.where(k == 1, u, tl.where(k == 2, v, 0.0)))
    moments = tl.where(k == 3, u * u, tl.where(k == 4, u * v, tl.where(k == 5, v * v, moments)))
    shares = tl.where(k == 0, g_red[:, None], tl.where(k == 1, g_green[:, None], 0.0))
    shares = tl.where(k == 2, g_blue[:, None], tl.where(k == 3, g_z[:, None], shares))
    shares = tl.where(k == 4, 1.0, shares)
    # Replay the tile
    light = tl.where(inside, 1.0, 0.0)
    next_row = _load_rows(lists, first, end, offset, CHUNK)
    next_run = _load_run(place, look, next_row, first, end, CHUNK)
    next_row = _load_rows(lists, first + CHUNK, end, offset, CHUNK)
    while (first < end) & (tl.max(light, 0) > 0):
        run = next_run
        first += CHUNK
        next_run = _load_run(place, look, next_row, first, end, CHUNK)
        next_row = _load_rows(lists, first + CHUNK, end, offset, CHUNK)
        splat = _splat_of(run, CHUNK)
        alpha = _alpha(x, y, splat, cap)
        if tl.max(tl.max(alpha, 0) * light, 0) > 0:
            weight, odds, after, light = _weights(alpha, light)
            row = _load_rows(lists, first - CHUNK, end, offset, CHUNK)
            listed = first - CHUNK + tl.arange(0, CHUNK) < end
            seen = split_four(run[2], CHUNK)
            shade = seen[0][:, None] * g_red[None, :] + seen[1][:, None] * g_green[None, :]
            shade += seen[2][:, None] * g_blue[None, :] + seen[3][:, None] * g_z[None, :]
            shade += g_w[None, :]
            if WIDE > 0:
                member = (image // views * count + row - offset)[:, None]
                feature = member * channels + channel[None, :]
                exists = listed[:, None] & (channel < channels)[None, :]
                table = tl.load(attributes + feature, mask=exists, other=0.0)
                # Read again, because they would not fit into registers beside all else
                g_features = tl.load(g_blended + across, mask=known, other=0.0)
                shade = tl.dot(table, g_features, shade, input_precision=PRECISION)
                part = tl.dot(weight, tl.trans(g_features), input_precision=PRECISION)
                _add(d_attributes, attribute_bounds, feature, part, exists, MODE)
            own = weight * shade
            left = behind[None, :] - tl.cumsum(own, 0)
            behind -= tl.sum(own, 0)
            counts = (alpha < cap) & (after >= TRANSMITTANCE_MIN)
            slope = tl.where(counts, own - left * odds, 0.0)
            # Sum over the pixels, and add to the Gaussians that were drawn
            shared = tl.dot(weight, shares, input_precision=PRECISION)
            drawn = listed & (tl.sum(tl.where(k == 4, shared, 0.0), 1) > 0)
            to = row[:, None] * GRADIENTS + k
            _add(rows, bounds, to + OF_COLOR, shared, drawn[:, None] & (k < 4), MODE)
            sums = _sum_moments(slope, moments, PRECISION)
            moved = _from_moments(sums, middle_x, middle_y, splat, CHUNK)
            _add(rows, bounds, to, moved, drawn[:, None] & (k < OF_COLOR), MODE)


@triton.jit
def round_off(rows, bounds, out, size, BLOCK: tl.constexpr):
    """Turns sums of `_add` that do not depend on the order into float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    bound = tl.load(bounds + at, mask=mask, other=0).to(tl.float32, bitcast=True).to(tl.float64)
    whole = tl.load(rows + at, mask=mask, other=0).to(tl.float64) * (bound / DIGITS)
    tl.store(out + at, whole.to(tl.float32), mask=mask)

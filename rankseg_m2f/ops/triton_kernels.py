"""Triton kernels of deformable attention, forward and backward.

A row is one (query, head), heads fastest, so that neighbouring rows read neighbouring pixels; a
program serves ROWS rows of one image. Where D is a power of two nothing masks the channels: then
a row is contiguous to the compiler too, which loads and adds 128 bits at a time. The loop over
levels stays a loop, the one over points is unrolled. tests/test_triton_static.py pins what comes
out: registers, instructions, widths, barriers.

Shapes: N images, S value tokens, M heads, D channels per head, Q queries, L levels, P points;
LANES is D rounded up to a power of two.

OFFSETS tells which operator: `points` are locations in [0, 1] and `weights` are weights, or
`points` are offsets in pixels from the token's own place and `weights` are logits.
"""

import triton
import triton.language as tl


@triton.jit
def _zeros(ROWS: tl.constexpr, LANES: tl.constexpr):
    return tl.zeros((ROWS, LANES), tl.float32)


@triton.jit
def _place(token, shapes, pixels, L: tl.constexpr):
    """Centre of the pixel that a token is, (x, y) in [0, 1]."""
    x, y = token * 0.0, token * 0.0
    start = 0
    for level in tl.static_range(L):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        tall, wide = tl.load(pixels + 2 * level), tl.load(pixels + 2 * level + 1)
        # Half a token away from whole numbers, which rounding does not reach below 2^21 tokens.
        middle = (token - start).to(tl.float32) + 0.5
        line = tl.floor(middle * wide)
        reached = token >= start
        x = tl.where(reached, (middle - line * width) * wide, x)
        y = tl.where(reached, (line + 0.5) * tall, y)
        start += height * width
    return x, y


@triton.jit
def _softmax_terms(weights, row, lanes, LP: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Largest logit of each row, and one over the sum of exp(logit - largest) as a tile."""
    if LP <= LANES:
        pointers = weights + ((row * LP)[:, None] + lanes[None, :])
        logits = tl.load(pointers, mask=(lanes < LP)[None, :], other=float("-inf")).to(tl.float32)
        largest = tl.max(logits, 1)
        total = tl.broadcast_to(
            tl.sum(tl.exp(logits - largest[:, None]), 1)[:, None], (ROWS, LANES)
        )
    else:
        largest = tl.load(weights + row * LP).to(tl.float32)
        for k in tl.static_range(1, LP):
            largest = tl.maximum(largest, tl.load(weights + row * LP + k).to(tl.float32))
        total = _zeros(ROWS, LANES)
        for k in tl.static_range(LP):
            total += _exp(tl.load(weights + row * LP + k).to(tl.float32) - largest, ROWS, LANES)
    return largest, 1 / total


@triton.jit
def _exp(x, ROWS: tl.constexpr, LANES: tl.constexpr):
    """exp of a number per row, as a tile.

    Costly functions of vectors are computed in a layout of their own and moved to the tile's, by
    way of shared memory. In a tile each thread finds its few equal channels once.
    """
    return tl.exp(tl.broadcast_to(x[:, None], (ROWS, LANES)))


@triton.jit
def _below(number, limit):
    """Whether a number is at least 0 and less than the limit: one comparison, without signs."""
    return number.to(tl.uint32, bitcast=True) < limit.to(tl.uint32, bitcast=True)


@triton.jit
def _corners(x, y, width, height):
    """Top-left pixel of points in pixels, their place between pixels, which corners are inside."""
    # NaN and far points end up two pixels outside, where every corner is. `maximum` returns the
    # number where one side is NaN.
    x = tl.minimum(tl.maximum(x, -2.0), width.to(tl.float32))
    y = tl.minimum(tl.maximum(y, -2.0), height.to(tl.float32))
    left, top = tl.floor(x), tl.floor(y)
    right, down = x - left, y - top
    left, top = left.to(tl.int32), top.to(tl.int32)
    in_left, in_right = _below(left, width), _below(left + 1, width)
    in_top, in_bottom = _below(top, height), _below(top + 1, height)
    a, b, c, d = in_left & in_top, in_right & in_top, in_left & in_bottom, in_right & in_bottom
    return left, top, right, down, a, b, c, d


@triton.jit
def _mask(rows, lanes, D: tl.constexpr, LANES: tl.constexpr):
    """Of a tile: its rows, and its channels only where some are too many."""
    mask = rows[:, None]
    if D < LANES:
        mask = mask & (lanes < D)[None, :]
    return mask


@triton.jit
def _tile(base, offset, rows, lanes, D: tl.constexpr, LANES: tl.constexpr):
    """(ROWS, LANES) numbers in float32, zero where masked."""
    pointers = base + (offset[:, None] + lanes[None, :])
    return tl.load(pointers, mask=_mask(rows, lanes, D, LANES), other=0.0).to(tl.float32)


@triton.jit
def _add(base, offset, rows, lanes, tile, D: tl.constexpr, LANES: tl.constexpr):
    """Add a tile to memory. Nothing reads it meanwhile, so its order to other accesses is free."""
    pointers = base + (offset[:, None] + lanes[None, :])
    tl.atomic_add(pointers, tile, mask=_mask(rows, lanes, D, LANES), sem="relaxed")


@triton.jit
def _store(base, offset, rows, lanes, tile, COUNT: tl.constexpr):
    """Write the first channels of a tile's rows."""
    pointers = base + (offset[:, None] + lanes[None, :])
    tl.store(pointers, tile, mask=rows[:, None] & (lanes < COUNT)[None, :])


@triton.jit
def _put(tile, channel, column, base, offset, rows, lanes, TOGETHER: tl.constexpr):
    """Put one number of each row into a channel of a tile, which is then stored at once.

    Stores of single numbers would first move them between warps. They serve where a tile has too
    few channels; then it stays zero.
    """
    if TOGETHER:
        tile = tl.where((lanes == channel)[None, :], column, tile)
    else:
        pointers = base + (offset[:, None] + (lanes * 0)[None, :])
        tl.store(pointers, column + tile, mask=rows[:, None] & (lanes == 0)[None, :])
    return tile


@triton.jit
def _put_pair(tile, channel, x, y, base, offset, rows, lanes, TOGETHER: tl.constexpr):
    """Put two numbers of each row into neighbouring channels."""
    tile = _put(tile, channel, x, base, offset, rows, lanes, TOGETHER)
    return _put(tile, channel + 1, y, base, offset + 1, rows, lanes, TOGETHER)


@triton.jit
def _queries(
    weights, row, lanes, shapes, pixels, M: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """What offsets and logits are relative to; nothing where they are not."""
    x, y, largest, share = 0.0, 0.0, 0.0, 1.0
    if OFFSETS:
        x, y = _place(row // M, shapes, pixels, L)
        largest, share = _softmax_terms(weights, row, lanes, L * P, ROWS, LANES)
    return x, y, largest, share


@triton.jit
def _point(
    points, weights, point, height, width, here_x, here_y, largest, share,
    ROWS: tl.constexpr, LANES: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """A point of each row in pixels of the level, and its weight as a tile or its column."""
    x = tl.load(points + 2 * point).to(tl.float32)
    y = tl.load(points + 2 * point + 1).to(tl.float32)
    weight = tl.load(weights + point).to(tl.float32)
    if OFFSETS:
        x, y = x + (here_x * width - 0.5), y + (here_y * height - 0.5)
        weight = _exp(weight - largest, ROWS, LANES) * share
    else:
        x, y = x * width - 0.5, y * height - 0.5
        weight = weight[:, None]
    return x, y, weight


@triton.jit
def _scatter(
    grad_value, a, right_pixel, next_line, flow, scale, right, down, in_a, in_b, in_c, in_d, lanes,
    D: tl.constexpr, LANES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add the gradient of a point's value to its four pixels, in whole numbers where EXACT."""
    if EXACT:
        flow = flow * tl.load(scale)
    to_a = flow * ((1 - right) * (1 - down))[:, None]
    to_b = flow * (right * (1 - down))[:, None]
    to_c = flow * ((1 - right) * down)[:, None]
    to_d = flow * (right * down)[:, None]
    if EXACT:
        to_a, to_b = to_a.to(tl.int64), to_b.to(tl.int64)
        to_c, to_d = to_c.to(tl.int64), to_d.to(tl.int64)
    _add(grad_value, a, in_a, lanes, to_a, D, LANES)
    _add(grad_value, a + right_pixel, in_b, lanes, to_b, D, LANES)
    _add(grad_value, a + next_line, in_c, lanes, to_c, D, LANES)
    _add(grad_value, a + next_line + right_pixel, in_d, lanes, to_d, D, LANES)


@triton.jit
def _slopes(
    value, a, right_pixel, next_line, grad, right, down, in_a, in_b, in_c, in_d, lanes,
    D: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Gradient times a point's value, and times how that changes with x and with y, columns."""
    of_a = tl.sum(_tile(value, a, in_a, lanes, D, LANES) * grad, 1)
    of_b = tl.sum(_tile(value, a + right_pixel, in_b, lanes, D, LANES) * grad, 1)
    of_c = tl.sum(_tile(value, a + next_line, in_c, lanes, D, LANES) * grad, 1)
    of_d = tl.sum(_tile(value, a + next_line + right_pixel, in_d, lanes, D, LANES) * grad, 1)
    upper, lower = of_a + (of_b - of_a) * right, of_c + (of_d - of_c) * right
    across = (of_b - of_a) * (1 - down) + (of_d - of_c) * down
    here = upper + (lower - upper) * down
    return here[:, None], across[:, None], (lower - upper)[:, None]


@triton.jit
def _forward_kernel(
    value, shapes, pixels, points, weights, output, S, Q,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    image, rows = tl.program_id(1).to(tl.int64), Q * M
    row, lanes = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)
    live = row < rows
    # Rows past the end repeat the last one and are not stored.
    row = tl.minimum(row, rows - 1)
    value += image * S * (M * D)
    points += image * rows * (L * P * 2)
    weights += image * rows * (L * P)
    output += image * rows * D
    here_x, here_y, largest, share = _queries(
        weights, row, lanes, shapes, pixels, M, L, P, ROWS, LANES, OFFSETS
    )
    total = _zeros(ROWS, LANES)
    start = 0
    for level in tl.range(L):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        for p in tl.static_range(P):
            point = (row * L + level) * P + p
            x, y, weight = _point(
                points, weights, point, height, width,
                here_x, here_y, largest, share, ROWS, LANES, OFFSETS,
            )  # fmt: skip
            left, top, right, down, in_a, in_b, in_c, in_d = _corners(x, y, width, height)
            a = (start + top * width + left) * (M * D) + (row % M) * D
            c = a + width * (M * D)
            tile = _tile(value, a, in_a, lanes, D, LANES)
            total += tile * (weight * ((1 - right) * (1 - down))[:, None])
            tile = _tile(value, a + M * D, in_b, lanes, D, LANES)
            total += tile * (weight * (right * (1 - down))[:, None])
            tile = _tile(value, c, in_c, lanes, D, LANES)
            total += tile * (weight * ((1 - right) * down)[:, None])
            tile = _tile(value, c + M * D, in_d, lanes, D, LANES)
            total += tile * (weight * (right * down)[:, None])
        start += height * width
    target = output + ((row * D)[:, None] + lanes[None, :])
    tl.store(target, total, mask=_mask(live, lanes, D, LANES))


@triton.jit
def _backward_kernel(
    value, shapes, pixels, points, weights, output, grad_output, grad_value, grad_points,
    grad_weights, scale, S, Q, M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, OFFSETS: tl.constexpr,
    TO_VALUE: tl.constexpr, TO_POINTS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    image, rows = tl.program_id(1).to(tl.int64), Q * M
    row, lanes = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)
    live, row = row < rows, tl.minimum(row, rows - 1)
    value, grad_value = value + image * S * (M * D), grad_value + image * S * (M * D)
    first = image * rows * (L * P)
    points, grad_points = points + 2 * first, grad_points + 2 * first
    weights, grad_weights = weights + first, grad_weights + first
    # Zero for rows past the end, so they add nothing.
    grad = _tile(grad_output + image * rows * D, row * D, live, lanes, D, LANES)
    here_x, here_y, largest, share = _queries(
        weights, row, lanes, shapes, pixels, M, L, P, ROWS, LANES, OFFSETS
    )
    if OFFSETS and TO_POINTS:
        # The weighted mean of all weights' gradients, which the softmax takes off each.
        mean = tl.sum(_tile(output + image * rows * D, row * D, live, lanes, D, LANES) * grad, 1)
    TOGETHER: tl.constexpr = 2 * P <= LANES
    start = 0
    for level in tl.range(L):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        to_points, to_weights = _zeros(ROWS, LANES), _zeros(ROWS, LANES)
        for p in tl.static_range(P):
            point, line = (row * L + level) * P + p, width * (M * D)
            x, y, weight = _point(
                points, weights, point, height, width,
                here_x, here_y, largest, share, ROWS, LANES, OFFSETS,
            )  # fmt: skip
            left, top, right, down, in_a, in_b, in_c, in_d = _corners(x, y, width, height)
            a = (start + top * width + left) * (M * D) + (row % M) * D
            if TO_POINTS:
                to_weight, to_x, to_y = _slopes(
                    value, a, M * D, line, grad, right, down, in_a, in_b, in_c, in_d, lanes,
                    D, LANES,
                )  # fmt: skip
                if OFFSETS:
                    to_weight = (to_weight - mean[:, None]) * weight
                else:
                    to_x, to_y = to_x * width, to_y * height
                to_x, to_y = to_x * weight, to_y * weight
                to_weights = _put(
                    to_weights, p, to_weight, grad_weights, point, live, lanes, TOGETHER
                )
                to_points = _put_pair(
                    to_points, 2 * p, to_x, to_y, grad_points, 2 * point, live, lanes, TOGETHER
                )
            if TO_VALUE:
                _scatter(
                    grad_value, a, M * D, line, grad * weight, scale, right, down,
                    in_a & live, in_b & live, in_c & live, in_d & live, lanes, D, LANES, EXACT,
                )  # fmt: skip
        if TO_POINTS and TOGETHER:
            point = (row * L + level) * P
            _store(grad_weights, point, live, lanes, to_weights, P)
            _store(grad_points, 2 * point, live, lanes, to_points, 2 * P)
        start += height * width

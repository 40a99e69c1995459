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
def _place(row, shapes, M: tl.constexpr, L: tl.constexpr):
    """Centre of the pixel that a row's query is, (x, y) in [0, 1]."""
    token = row // M
    first, height, width = row * 0, row * 0 + 1, row * 0 + 1
    start = 0
    for level in tl.range(L):
        h, w = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        reached = token >= start
        first = tl.where(reached, start, first)
        height, width = tl.where(reached, h, height), tl.where(reached, w, width)
        start += h * w
    y = (token - first) // width
    x = (token - first) - y * width
    return (x.to(tl.float32) + 0.5) / width, (y.to(tl.float32) + 0.5) / height


@triton.jit
def _softmax_terms(weights, row, LP: tl.constexpr):
    """Largest logit of each row, and one over the sum of exp(logit - largest)."""
    largest = tl.load(weights + row * LP).to(tl.float32)
    for k in tl.static_range(1, LP):
        largest = tl.maximum(largest, tl.load(weights + row * LP + k).to(tl.float32))
    total = largest * 0
    for k in tl.static_range(LP):
        total += tl.exp(tl.load(weights + row * LP + k).to(tl.float32) - largest)
    return largest, 1 / total


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
    in_left, in_right = (left >= 0) & (left < width), (left >= -1) & (left + 1 < width)
    in_top, in_bottom = (top >= 0) & (top < height), (top >= -1) & (top + 1 < height)
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
def _forward_kernel(
    value, shapes, points, weights, output, S, Q,
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
    if OFFSETS:
        here_x, here_y = _place(row, shapes, M, L)
        largest, share = _softmax_terms(weights, row, L * P)
    total = tl.zeros((ROWS, LANES), tl.float32)
    start = 0
    for level in tl.range(L):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        for p in tl.static_range(P):
            point = (row * L + level) * P + p
            x = tl.load(points + 2 * point).to(tl.float32)
            y = tl.load(points + 2 * point + 1).to(tl.float32)
            weight = tl.load(weights + point).to(tl.float32)
            if OFFSETS:
                x, y = here_x * width + (x - 0.5), here_y * height + (y - 0.5)
                weight = tl.exp(weight - largest) * share
            else:
                x, y = x * width - 0.5, y * height - 0.5
            left, top, right, down, in_a, in_b, in_c, in_d = _corners(x, y, width, height)
            a = (start + top * width + left) * (M * D) + (row % M) * D
            c = a + width * (M * D)
            upper, lower = weight * (1 - down), weight * down
            tile = _tile(value, a, in_a, lanes, D, LANES)
            total += tile * (upper * (1 - right))[:, None]
            tile = _tile(value, a + M * D, in_b, lanes, D, LANES)
            total += tile * (upper * right)[:, None]
            tile = _tile(value, c, in_c, lanes, D, LANES)
            total += tile * (lower * (1 - right))[:, None]
            tile = _tile(value, c + M * D, in_d, lanes, D, LANES)
            total += tile * (lower * right)[:, None]
        start += height * width
    target = output + ((row * D)[:, None] + lanes[None, :])
    tl.store(target, total, mask=_mask(live, lanes, D, LANES))


@triton.jit
def _backward_kernel(
    value, shapes, points, weights, output, grad_output, grad_value, grad_points, grad_weights,
    scale, S, Q, M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, OFFSETS: tl.constexpr,
    TO_VALUE: tl.constexpr, TO_POINTS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    image, rows = tl.program_id(1).to(tl.int64), Q * M
    row, lanes = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)
    live = row < rows
    row = tl.minimum(row, rows - 1)
    value += image * S * (M * D)
    grad_value += image * S * (M * D)
    points += image * rows * (L * P * 2)
    grad_points += image * rows * (L * P * 2)
    weights += image * rows * (L * P)
    grad_weights += image * rows * (L * P)
    # Zero for rows past the end, so they add nothing.
    grad = _tile(grad_output + image * rows * D, row * D, live, lanes, D, LANES)
    if OFFSETS:
        here_x, here_y = _place(row, shapes, M, L)
        largest, share = _softmax_terms(weights, row, L * P)
        if TO_POINTS:
            # The weighted mean of all weights' gradients, which the softmax takes off each.
            mean = tl.sum(_tile(output + image * rows * D, row * D, live, lanes, D, LANES) * grad, 1)
    start = 0
    for level in tl.range(L):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        # A row's gradients are gathered in channels of a tile and stored at once: single stores
        # would first move them between warps.
        to_points = tl.zeros((ROWS, LANES), tl.float32)
        to_weights = tl.zeros((ROWS, LANES), tl.float32)
        for p in tl.static_range(P):
            point = (row * L + level) * P + p
            x = tl.load(points + 2 * point).to(tl.float32)
            y = tl.load(points + 2 * point + 1).to(tl.float32)
            weight = tl.load(weights + point).to(tl.float32)
            if OFFSETS:
                x, y = here_x * width + (x - 0.5), here_y * height + (y - 0.5)
                weight = tl.exp(weight - largest) * share
            else:
                x, y = x * width - 0.5, y * height - 0.5
            left, top, right, down, in_a, in_b, in_c, in_d = _corners(x, y, width, height)
            a = (start + top * width + left) * (M * D) + (row % M) * D
            c = a + width * (M * D)
            if TO_POINTS:
                of_a = tl.sum(_tile(value, a, in_a, lanes, D, LANES) * grad, 1)
                of_b = tl.sum(_tile(value, a + M * D, in_b, lanes, D, LANES) * grad, 1)
                of_c = tl.sum(_tile(value, c, in_c, lanes, D, LANES) * grad, 1)
                of_d = tl.sum(_tile(value, c + M * D, in_d, lanes, D, LANES) * grad, 1)
                upper, lower = of_a + (of_b - of_a) * right, of_c + (of_d - of_c) * right
                to_weight = upper + (lower - upper) * down
                to_x = ((of_b - of_a) * (1 - down) + (of_d - of_c) * down) * weight
                to_y = (lower - upper) * weight
                if OFFSETS:
                    to_weight = (to_weight - mean) * weight
                else:
                    to_x, to_y = to_x * width, to_y * height
                to_weights = tl.where((lanes == p)[None, :], to_weight[:, None], to_weights)
                to_points = tl.where((lanes == 2 * p)[None, :], to_x[:, None], to_points)
                to_points = tl.where((lanes == 2 * p + 1)[None, :], to_y[:, None], to_points)
            if TO_VALUE:
                upper, lower = weight * (1 - down), weight * down
                if EXACT:
                    factor = tl.load(scale)
                    upper, lower = upper * factor, lower * factor
                to_a = grad * (upper * (1 - right))[:, None]
                to_b = grad * (upper * right)[:, None]
                to_c = grad * (lower * (1 - right))[:, None]
                to_d = grad * (lower * right)[:, None]
                if EXACT:
                    to_a, to_b = to_a.to(tl.int64), to_b.to(tl.int64)
                    to_c, to_d = to_c.to(tl.int64), to_d.to(tl.int64)
                _add(grad_value, a, in_a & live, lanes, to_a, D, LANES)
                _add(grad_value, a + M * D, in_b & live, lanes, to_b, D, LANES)
                _add(grad_value, c, in_c & live, lanes, to_c, D, LANES)
                _add(grad_value, c + M * D, in_d & live, lanes, to_d, D, LANES)
        if TO_POINTS:
            point = ((row * L + level) * P)[:, None] + lanes[None, :]
            tl.store(grad_weights + point, to_weights, mask=live[:, None] & (lanes < P)[None, :])
            point = ((row * L + level) * (2 * P))[:, None] + lanes[None, :]
            tl.store(grad_points + point, to_points, mask=live[:, None] & (lanes < 2 * P)[None, :])
        start += height * width

"""Non-local means on NVIDIA GPUs: the kernels, in Triton.

A program owns a tile of pixels of one image and goes through all shifts, so that no two programs write the same
pixel. Patches are summed directly, by additions alone: they come from the first cache, and equal patches have
distance exactly 0. What of the backward pass reaches the guide goes through the sum over patches of what each
distance passes on, which would have to be computed anew for each pixel of the patch; therefore :func:`flows` writes
it for a few shifts at a time, and :func:`spread` sums it.

All images are extended by ``margin = SEARCH // 2 + PATCH // 2`` pixels; ``wide`` is the width of that, ``area`` its
number of pixels; ``height`` and ``width`` are the image's. ``rate`` is 1/h^POWER, of an image or (MAP) of a pixel.
``lines`` is PATCH again, as a number that the compiler does not know: it would unroll both loops over a patch.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["backward", "flows", "forward", "spread"]


@triton.jit
def _tile(first, tall, wide, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The image, the rows and the columns of this program; tiles lie row by row over ``tall × wide`` pixels."""
    program = tl.program_id(0)
    across = tl.cdiv(wide, COLUMNS)
    down = tl.cdiv(tall, ROWS)
    image = program // (across * down)
    tile = program % (across * down)
    i = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None] + first
    j = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :] + first
    return image, i, j


@triton.jit
def _inside(i, j, height, width):
    return (i >= 0) & (i < height) & (j >= 0) & (j < width)


@triton.jit
def _measure(
    guide, at, by, wide, area, lines, floor, mask, TYPE: tl.constexpr,
    PATCH: tl.constexpr, GUIDES: tl.constexpr, POWER: tl.constexpr, FLOOR: tl.constexpr,
):  # fmt: skip
    """d^POWER of the patches around ``at`` and ``at + by``; 0 where masked."""
    total = tl.zeros(at.shape, TYPE)
    for c in tl.static_range(GUIDES):
        corner = guide + c * area + at - (PATCH // 2) * wide - PATCH // 2
        for _ in range(lines):
            for k in range(PATCH):
                difference = tl.load(corner + k, mask=mask, other=0.0) - tl.load(
                    corner + k + by, mask=mask, other=0.0
                )
                total += difference * difference
            corner += wide
    if FLOOR:
        over = total - tl.load(floor)
        total = tl.where(over < 0, 0.0, over)  # a NaN stays one
    if POWER == 1:
        total = tl.sqrt(total)
    return total


@triton.jit
def forward(
    x, guide, rate, floor, mean, sum_of_weights, height, width, wide, area, lines, TYPE: tl.constexpr,
    SEARCH: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, GUIDES: tl.constexpr,
    POWER: tl.constexpr, FLOOR: tl.constexpr, MAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The mean (N, C, H, W) before clamping, and the sum of weights (N, H, W)."""
    image, i, j = _tile(0, height, width, ROWS, COLUMNS)
    mask = (i < height) & (j < width)
    image = image.to(tl.int64)
    margin: tl.constexpr = SEARCH // 2 + PATCH // 2
    at = (i + margin) * wide + j + margin
    pixel = i * width + j
    x += image * CHANNELS * area
    guide += image * GUIDES * area
    if MAP:  # noqa: SIM108
        rates = tl.load(rate + image * height * width + pixel, mask=mask, other=0.0)
    else:
        rates = tl.load(rate + image)
    here0 = tl.load(x + at, mask=mask, other=0.0)
    if CHANNELS == 3:
        here1 = tl.load(x + area + at, mask=mask, other=0.0)
        here2 = tl.load(x + 2 * area + at, mask=mask, other=0.0)
    sum0 = tl.zeros([ROWS, COLUMNS], TYPE)
    sum1 = tl.zeros([ROWS, COLUMNS], TYPE)
    sum2 = tl.zeros([ROWS, COLUMNS], TYPE)
    weights = tl.zeros([ROWS, COLUMNS], TYPE) + 1.0  # that of the zero shift
    for shift in range(SEARCH * SEARCH - 1):
        # The centre is left out.
        place = shift + tl.where(shift >= SEARCH * SEARCH // 2, 1, 0)
        by = (place // SEARCH - SEARCH // 2) * wide + place % SEARCH - SEARCH // 2
        measure = _measure(guide, at, by, wide, area, lines, floor, mask, TYPE, PATCH, GUIDES, POWER, FLOOR)
        weight = tl.exp(-measure * rates)
        weights += weight
        sum0 += weight * (tl.load(x + at + by, mask=mask, other=0.0) - here0)
        if CHANNELS == 3:
            sum1 += weight * (tl.load(x + area + at + by, mask=mask, other=0.0) - here1)
            sum2 += weight * (tl.load(x + 2 * area + at + by, mask=mask, other=0.0) - here2)
    size = height * width
    tl.store(sum_of_weights + image * size + pixel, weights, mask=mask)
    mean += image * CHANNELS * size + pixel
    tl.store(mean, here0 + sum0 / weights, mask=mask)
    if CHANNELS == 3:
        tl.store(mean + size, here1 + sum1 / weights, mask=mask)
        tl.store(mean + 2 * size, here2 + sum2 / weights, mask=mask)


@triton.jit
def _towards(x, g, at, by, pixel, other, mask, size, area, CHANNELS: tl.constexpr):
    """Σ over channels of ``g · (x there − x here)``, g that of ``other`` (a pixel of the image where ``mask``)."""
    there = tl.load(x + at + by, mask=mask, other=0.0) - tl.load(x + at, mask=mask, other=0.0)
    total = tl.load(g + other, mask=mask, other=0.0) * there
    if CHANNELS == 3:
        for c in tl.static_range(1, 3):
            there = tl.load(x + c * area + at + by, mask=mask, other=0.0)
            there -= tl.load(x + c * area + at, mask=mask, other=0.0)
            total += tl.load(g + c * size + other, mask=mask, other=0.0) * there
    return total


@triton.jit
def backward(
    x, guide, rate, floor, g, g_mean, grad_x, grad_h, height, width, wide, area, lines, TYPE: tl.constexpr,
    SEARCH: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, GUIDES: tl.constexpr,
    POWER: tl.constexpr, FLOOR: tl.constexpr, MAP: tl.constexpr, IMAGE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``grad_h`` (N, H, W), without its factor; with IMAGE also ``grad_x``, extended, of what reaches x as a value.

    ``g`` (N, C, H, W) is the gradient over the sum of weights; ``g_mean`` (N, H, W) its product with mean − x.
    """
    radius: tl.constexpr = SEARCH // 2
    margin: tl.constexpr = radius + PATCH // 2
    if IMAGE:
        image, i, j = _tile(-radius, height + 2 * radius, width + 2 * radius, ROWS, COLUMNS)
        there = (i < height + radius) & (j < width + radius)
    else:
        image, i, j = _tile(0, height, width, ROWS, COLUMNS)
        there = (i < height) & (j < width)
    inside = _inside(i, j, height, width)
    image = image.to(tl.int64)
    size = height * width
    at = (i + margin) * wide + j + margin
    pixel = i * width + j
    x += image * CHANNELS * area
    guide += image * GUIDES * area
    g += image * CHANNELS * size
    g_mean += image * size
    if MAP:
        rate += image * size
        here = tl.load(rate + pixel, mask=inside, other=0.0)
    else:
        here = tl.load(rate + image)
    of_mean = tl.load(g_mean + pixel, mask=inside, other=0.0)
    gh = tl.zeros([ROWS, COLUMNS], TYPE)
    gx0 = tl.load(g + pixel, mask=inside, other=0.0)
    if CHANNELS == 3:
        gx1 = tl.load(g + size + pixel, mask=inside, other=0.0)
        gx2 = tl.load(g + 2 * size + pixel, mask=inside, other=0.0)
    for shift in range(SEARCH * SEARCH - 1):
        place = shift + tl.where(shift >= SEARCH * SEARCH // 2, 1, 0)
        dy = place // SEARCH - radius
        dx = place % SEARCH - radius
        by = dy * wide + dx
        if IMAGE:
            other = _inside(i + dy, j + dx, height, width) & there
            mask = inside | other
        else:
            mask = inside
        measure = _measure(guide, at, by, wide, area, lines, floor, mask, TYPE, PATCH, GUIDES, POWER, FLOOR)
        weight = tl.exp(-measure * here)
        change = _towards(x, g, at, by, pixel, pixel, inside, size, area, CHANNELS) - of_mean
        gh += tl.where(inside, weight * change * measure, 0.0)
        if IMAGE:
            q = pixel + dy * width + dx
            if MAP:
                weight = tl.exp(-measure * tl.load(rate + q, mask=other, other=0.0))
            gx0 += tl.where(other, weight * tl.load(g + q, mask=other, other=0.0), 0.0)
            if CHANNELS == 3:
                gx1 += tl.where(other, weight * tl.load(g + size + q, mask=other, other=0.0), 0.0)
                gx2 += tl.where(other, weight * tl.load(g + 2 * size + q, mask=other, other=0.0), 0.0)
    tl.store(grad_h + image * size + pixel, gh, mask=inside)
    if IMAGE:
        grad_x += image * CHANNELS * area + at
        tl.store(grad_x, gx0, mask=there)
        if CHANNELS == 3:
            tl.store(grad_x + area, gx1, mask=there)
            tl.store(grad_x + 2 * area, gx2, mask=there)


@triton.jit
def _shift_of(number, SEARCH: tl.constexpr):
    """The shift of this number among the half of them that come after the centre."""
    place = number + SEARCH * SEARCH // 2 + 1
    return place // SEARCH - SEARCH // 2, place % SEARCH - SEARCH // 2


@triton.jit
def flows(
    x, guide, rate, floor, g, g_mean, flow, height, width, wide, area, lines, images, first, TYPE: tl.constexpr,
    SEARCH: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, GUIDES: tl.constexpr,
    POWER: tl.constexpr, FLOOR: tl.constexpr, MAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What the distances of each pair pass on, over what the guide's differences are to be multiplied by.

    ``flow`` (shifts, N, H + 2·radius, W + 2·radius): one program axis after the tiles is that of image and shift.
    """
    radius: tl.constexpr = SEARCH // 2
    margin: tl.constexpr = radius + PATCH // 2
    plane, i, j = _tile(-radius, height + 2 * radius, width + 2 * radius, ROWS, COLUMNS)
    image = (plane % images).to(tl.int64)
    dy, dx = _shift_of(first + plane // images, SEARCH)
    there = (i < height + radius) & (j < width + radius)
    inside = _inside(i, j, height, width)
    other = _inside(i + dy, j + dx, height, width) & there
    size = height * width
    at = (i + margin) * wide + j + margin
    by = dy * wide + dx
    p = i * width + j
    q = p + dy * width + dx
    x += image * CHANNELS * area
    guide += image * GUIDES * area
    g += image * CHANNELS * size
    g_mean += image * size
    either = inside | other
    measure = _measure(guide, at, by, wide, area, lines, floor, either, TYPE, PATCH, GUIDES, POWER, FLOOR)
    if MAP:
        rate_p = tl.load(rate + image * size + p, mask=inside, other=0.0)
        rate_q = tl.load(rate + image * size + q, mask=other, other=0.0)
    else:
        rate_p = tl.load(rate + image)
        rate_q = rate_p
    from_p = _towards(x, g, at, by, p, p, inside, size, area, CHANNELS)
    from_p = (from_p - tl.load(g_mean + p, mask=inside, other=0.0)) * tl.exp(-measure * rate_p)
    from_q = -_towards(x, g, at, by, p, q, other, size, area, CHANNELS)
    from_q = (from_q - tl.load(g_mean + q, mask=other, other=0.0)) * tl.exp(-measure * rate_q)
    total = tl.where(inside, from_p * rate_p, 0.0) + tl.where(other, from_q * rate_q, 0.0)
    if POWER == 1:  # noqa: SIM108
        total = total / tl.where(measure == 0, 1.0, measure)
    else:
        total = total * 2
    total = tl.where(either & (measure != 0), total, 0.0)
    across = width + 2 * radius
    place = plane.to(tl.int64) * (height + 2 * radius) * across + (i + radius) * across + j + radius
    tl.store(flow + place, total, mask=there)


@triton.jit
def spread(
    guide, flow, grad_guide, height, width, wide, area, lines, images, first, shifts, TYPE: tl.constexpr,
    SEARCH: tl.constexpr, PATCH: tl.constexpr, GUIDES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add to ``grad_guide``, extended, what the pairs of these shifts pass on to all pixels of both patches."""
    radius: tl.constexpr = SEARCH // 2
    half: tl.constexpr = PATCH // 2
    margin: tl.constexpr = radius + half
    image, i, j = _tile(-margin, height + 2 * margin, width + 2 * margin, ROWS, COLUMNS)
    there = (i < height + margin) & (j < width + margin)
    tall = height + 2 * radius
    across = width + 2 * radius
    at = (i + margin) * wide + j + margin
    image = image.to(tl.int64)
    guide += image * GUIDES * area
    grad_guide += image * GUIDES * area
    for shift in range(shifts):
        dy, dx = _shift_of(first + shift, SEARCH)
        by = dy * wide + dx
        planes = flow + (shift * images + image) * tall * across
        as_p = tl.zeros([ROWS, COLUMNS], TYPE)
        as_q = tl.zeros([ROWS, COLUMNS], TYPE)
        for a in range(lines):
            for b in range(PATCH):
                row = i + radius + half - a
                column = j + radius + half - b
                place = row * across + column
                mask = there & _inside(row, column, tall, across)
                as_p += tl.load(planes + place, mask=mask, other=0.0)
                mask = there & _inside(row - dy, column - dx, tall, across)
                as_q += tl.load(planes + place - dy * across - dx, mask=mask, other=0.0)
        ahead = there & _inside(i + dy + margin, j + dx + margin, height + 2 * margin, width + 2 * margin)
        behind = there & _inside(i - dy + margin, j - dx + margin, height + 2 * margin, width + 2 * margin)
        for c in tl.static_range(GUIDES):
            here = tl.load(guide + c * area + at, mask=there, other=0.0)
            change = (tl.load(guide + c * area + at + by, mask=ahead, other=0.0) - here) * as_p
            change += (tl.load(guide + c * area + at - by, mask=behind, other=0.0) - here) * as_q
            before = tl.load(grad_guide + c * area + at, mask=there, other=0.0)
            tl.store(grad_guide + c * area + at, before + change, mask=there)

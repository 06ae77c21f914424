"""Kernels of strided statistics: sums of cells, the evaluated windows' sums of these, and what reads them out.

The map is read once, by :func:`cell_sums`. Its axes are cut wherever an evaluated window may begin or end: at the
multiples of the stride, where a window that starts at one of them ends, and where the last window starts. So a
window is a run of whole cells on each axis, exactly, whatever its size. :func:`grid_statistics` adds cells up;
:func:`place` gives every position the value of its window, interpolated between the evaluated ones.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts import aligned, before_own, clip, inside, sample, window_start

__all__ = ["cell_sums", "grid_statistics", "place"]


@triton.jit
def _cut(part, parts, first, second, STRIDE: tl.constexpr):
    """Where a part of a block of STRIDE begins and ends; it has up to two cuts inside."""
    begin = tl.where(part == 0, 0, tl.where(part == 1, first, second))
    end = tl.where(part == parts - 1, STRIDE, tl.where(part == 0, first, second))
    return begin, end


@triton.jit
def cell_sums(
    x, cells, planes, depth, height, width, groups, image_stride, channel_stride, row_stride, column_stride,
    row_parts, row_cut, row_cut2, column_parts, column_cut, column_cut2, down, across, tiles, channel_tiles,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, LAST: tl.constexpr, STRIDE: tl.constexpr, SPAN: tl.constexpr,
    BLOCKS: tl.constexpr, CHANNELS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Sums, and sums of squares, over every cell, relative to the plane's sample: (1 or 2, N·K, rows, columns).

    ``down`` × ``across`` blocks of STRIDE × STRIDE, each cut into ``row_parts`` × ``column_parts`` cells.
    SPAN: the power of two from STRIDE on.
    """
    number = tl.program_id(0).to(tl.int64)
    tile, above = (number % tiles).to(tl.int32), number // tiles
    block, plane = above % down, above // down
    row_step, channel_step = number * 0 + row_stride, number * 0 + channel_stride
    if ALIGN > 1:
        row_step, image_stride = aligned(row_step, ALIGN), aligned(image_stride, ALIGN)
        groups, column_stride = aligned(groups, ALIGN), aligned(column_stride, ALIGN)
    if LAST:
        image = plane // channel_tiles
        beside = (tile * BLOCKS + tl.arange(0, BLOCKS))[:, None]
        group = (((plane % channel_tiles) * CHANNELS).to(tl.int32) + tl.arange(0, CHANNELS))[None, :]
    else:
        image = plane // groups
        beside = tile * BLOCKS + tl.arange(0, BLOCKS)
        group = plane % groups
    known = group + beside * 0 < groups
    at = x + image * image_stride + group * (depth * channel_step)
    raw = sample(at, height // 2, height // 4, width, row_step, column_stride, group < groups, TYPE)
    # Nothing here is computed again: all three samples may be NaN.
    raw = tl.where(raw.to(TYPE) - raw.to(TYPE) == 0, raw.to(TYPE), 0.0).to(raw.dtype)
    shift = raw.to(TYPE)
    at += block * STRIDE * row_step
    left = height - block * STRIDE
    lines, columns = (number * 0 + down) * row_parts, across * column_parts
    out = cells + ((image * groups + group) * lines + block * row_parts) * columns + beside * column_parts
    whole = (number * 0 + planes) * lines * columns
    span = tl.arange(0, SPAN)[None, :]
    for part in range(row_parts):
        begin, end = _cut(part, row_parts, row_cut, row_cut2, STRIDE)
        end = tl.minimum(end, left).to(tl.int32)
        if LAST:
            for q in range(column_parts):
                from_, to = _cut(q, column_parts, column_cut, column_cut2, STRIDE)
                first = tl.where(known & (beside < across), 0.0, 0.0).to(TYPE)
                second = first
                for d in range(depth):
                    for r in range(begin, end):
                        for k in tl.range(from_, to, loop_unroll_factor=4):
                            j = beside * STRIDE + k
                            place = at + r * row_step + d * channel_step + j * column_stride
                            value = tl.load(place, mask=known & (j < width), other=raw).to(TYPE) - shift
                            first += value
                            if MOMENTS:
                                second += value * value
                there = known & (beside < across)
                tl.store(out + part * columns + q, first, mask=there)
                if MOMENTS:
                    tl.store(out + whole + part * columns + q, second, mask=there)
        else:
            j = beside[:, None] * STRIDE + span
            there = j < width
            if SPAN != STRIDE:
                there = there & (span < STRIDE)
            first2 = tl.where(there, 0.0, 0.0).to(TYPE)
            second2 = first2
            for d in range(depth):
                for r in tl.range(begin, end, loop_unroll_factor=8):
                    place = at + r * row_step + d * channel_step + j * column_stride
                    value = tl.load(place, mask=there, other=raw).to(TYPE) - shift
                    first2 += value
                    if MOMENTS:
                        second2 += value * value
            for q in range(column_parts):
                from_, to = _cut(q, column_parts, column_cut, column_cut2, STRIDE)
                chosen = (span >= from_) & (span < to)
                place = out + part * columns + q
                tl.store(place, tl.sum(tl.where(chosen, first2, 0.0), 1), mask=beside < across)
                if MOMENTS:
                    tl.store(place + whole, tl.sum(tl.where(chosen, second2, 0.0), 1), mask=beside < across)


@triton.jit
def _cell(at, mask):
    """A cell's sum, 0 if it is not finite; then what was not: as :func:`.kernels._checked`."""
    value = tl.load(at, mask=mask, other=0.0)
    finite = value - value == 0
    code = tl.where(finite, 0, 1).to(tl.int64)
    sign = tl.where(value > 0, 1, 0) - tl.where(value < 0, 1, 0)
    code += tl.where(finite, 0, sign).to(tl.int64) * 4294967296
    return tl.where(finite, value, 0.0), code


@triton.jit
def grid_statistics(
    x, cells, correction, out, variances, planes, depth, height, width, groups,
    image_stride, channel_stride, row_stride, column_stride, rows, columns,
    row_parts, row_length, last_line, lines, column_parts, column_length, last_column, across, count, wide,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, CORRECTED: tl.constexpr, STRIDE: tl.constexpr, CELLS: tl.constexpr,
    OUT_LAST: tl.constexpr,
):  # fmt: skip
    """Means, and variances, over the evaluated windows: (N, K, count, wide), one row of them a program.

    They are written (N, count, wide, K) where OUT_LAST is true.

    ``lines`` × ``across`` cells a plane. A window takes ``row_length`` × ``column_length`` of them from every
    ``row_parts``-th, ``column_parts``-th on; the last takes all from ``last_line``, ``last_column`` on.
    """
    number = tl.program_id(0).to(tl.int64)
    line, plane = (number % count).to(tl.int32), number // count
    image, group = plane // groups, plane % groups
    row_step = number * 0 + row_stride
    at = x + image * image_stride + group * (depth * channel_stride)
    shift = sample(at, height // 2, height // 4, width, row_step, column_stride, group < groups, TYPE).to(TYPE)
    shift = tl.where(shift - shift == 0, shift, 0.0)
    own = line < count - 1
    begin = tl.where(own, line * row_parts, last_line)
    end = tl.where(own, line * row_parts + row_length, lines)
    e = tl.arange(0, CELLS)
    here, before = e < across, (e < across) & (e >= column_length)
    zero = tl.where(here, 0.0, 0.0).to(TYPE)
    first, second, change, change2 = zero, zero, zero, zero
    marks = zero.to(tl.int64)
    marks_change = marks
    source = cells + plane * lines * across
    whole = (number * 0 + planes) * lines * across
    for n in tl.range(begin, end, loop_unroll_factor=4):
        entering = source + n * across + e
        leaving = entering - column_length
        value, code = _cell(entering, here)
        value_, code_ = _cell(leaving, before)
        first += value
        change += value - value_
        marks += code
        marks_change += code - code_
        if MOMENTS:
            square, code = _cell(entering + whole, here)
            square_, code_ = _cell(leaving + whole, before)
            second += square
            change2 += square - square_
            marks += code
            marks_change += code - code_
    final = e == across - 1
    rest = here & (e >= last_column)
    share = 1 / (((tl.zeros([1], TYPE) + depth) * rows) * columns)
    mean = tl.where(final, tl.sum(tl.where(rest, first, 0.0), 0), tl.cumsum(change, 0)) * share
    var = mean * 0
    if MOMENTS:
        var = tl.where(final, tl.sum(tl.where(rest, second, 0.0), 0), tl.cumsum(change2, 0)) * share
        var = tl.maximum(var - mean * mean, 0.0)
    marks = tl.where(final, tl.sum(tl.where(rest, marks, 0), 0), tl.cumsum(marks_change, 0))
    start = e - column_length + 1
    index = tl.where(final, wide - 1, start // column_parts)
    there = (start >= 0) & (start % column_parts == 0) & (index < wide - 1)
    there = here & (there | final)
    if CORRECTED:
        s = tl.where(own, line * STRIDE, height - rows)
        t = tl.where(final, width - columns, index * STRIDE)
        weight = inside(s, t, height - rows, width - columns, rows, columns, TYPE)
        k = correction + group
        absolute = mean + shift
        clipped = clip(absolute, tl.load(k + 6 * groups).to(TYPE), tl.load(k + 7 * groups).to(TYPE))
        if MOMENTS:
            a, b = tl.load(k).to(TYPE), tl.load(k + groups).to(TYPE)
            c, top = tl.load(k + 2 * groups).to(TYPE), tl.load(k + 5 * groups).to(TYPE)
            var += weight * ((a - 1) * tl.where(var < top, var, top) + b + c * clipped * clipped)
            var = tl.maximum(var, 0.0)
        d, f = tl.load(k + 3 * groups).to(TYPE), tl.load(k + 4 * groups).to(TYPE)
        mean += weight * ((d - 1) * clipped + f)
    mean += shift
    balance = marks >> 32
    found = marks & 4294967295
    infinite = tl.where(balance == found, float("inf"), float("nan"))
    infinite = tl.where(balance == -found, float("-inf"), infinite)
    mean = tl.where(found > 0, infinite, mean)
    place = number * wide + index
    if OUT_LAST:
        place = ((image * count + line) * wide + index) * groups + group
    tl.store(out + place, mean.to(out.dtype.element_ty), mask=there)
    if MOMENTS:
        var = tl.where(found > 0, float("nan"), var)
        tl.store(variances + place, var.to(out.dtype.element_ty), mask=there)


# ------------------------------------------------------------------------------------------ from window to position


@triton.jit
def _beside(source, left, part, step, there, TYPE: tl.constexpr):
    """Between a window and the next one in its row. A share of zero does not read: zero times NaN would be NaN."""
    value = tl.load(source + left * step, mask=there, other=0.0).to(TYPE)
    other = tl.load(source + (left + 1) * step, mask=there & (part > 0), other=0.0).to(TYPE)
    return tl.where(part > 0, value + part * (other - value), value)


@triton.jit
def place(
    x, grid, out, height, width, channels, image_stride, channel_stride, row_stride, column_stride,
    grid_image, grid_channel, grid_row, grid_column, rows, columns, count, wide,
    row_tiles, tiles, channel_tiles,
    TYPE: tl.constexpr, OPERATION: tl.constexpr, STRIDE: tl.constexpr, LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """``x`` with the value of each position's window, linear between the evaluated ones around it.

    A program takes COLUMNS positions of one channel, or of CHANNELS where channels come last, in ROWS rows: those
    whose windows start between the same two evaluated ones, so that it reads these once.
    """
    number = tl.program_id(0).to(tl.int64)
    tile, above = (number % tiles).to(tl.int32), number // tiles
    row_tile, plane = (above % row_tiles).to(tl.int32), above // row_tiles
    row_step = number * 0 + row_stride
    if ALIGN > 1:
        row_step, column_stride = aligned(row_step, ALIGN), aligned(column_stride, ALIGN)
        grid_row, grid_column = aligned(grid_row, ALIGN), aligned(grid_column, ALIGN)
        image_stride, grid_image = aligned(image_stride, ALIGN), aligned(grid_image, ALIGN)
        channels = aligned(channels, ALIGN)
    if LAST:
        image = plane // channel_tiles
        channel = (((plane % channel_tiles) * CHANNELS).to(tl.int32) + tl.arange(0, CHANNELS))[None, :]
        j = (tile * COLUMNS + tl.arange(0, COLUMNS))[:, None]
    else:
        image = plane // channels
        channel = plane % channels
        j = tile * COLUMNS + tl.arange(0, COLUMNS)
    there = (channel + j * 0 < channels) & (j < width)
    before, last_row, last_column = before_own(rows), height - rows, width - columns
    offset = (STRIDE - before % STRIDE) % STRIDE if STRIDE > 1 else 0
    i_first = tl.maximum(row_tile * ROWS - offset, 0)
    i_stop = tl.minimum((row_tile + 1) * ROWS - offset, height)
    t = window_start(j, before_own(columns), last_column)
    source = grid + image * grid_image + channel * grid_channel
    at = x + image * image_stride + channel * channel_stride + j * column_stride
    s = window_start(i_first, before, last_row)
    top = tl.where(s == last_row, count - 1, s // STRIDE)
    gap = tl.maximum(tl.minimum(last_row - top * STRIDE, STRIDE), 1).to(TYPE)
    if STRIDE > 1:
        left = tl.where(t == last_column, wide - 1, t // STRIDE)
        gap2 = tl.maximum(tl.minimum(last_column - left * STRIDE, STRIDE), 1).to(TYPE)
        part2 = tl.where(t == last_column, 0.0, (t - left * STRIDE).to(TYPE) / gap2)
        upper = _beside(source + top * grid_row, left, part2, grid_column, there, TYPE)
        lowest = window_start(i_stop - 1, before, last_row)
        # As blocks: the interpreter makes none of one truth value.
        down = there & (top + j * 0 < count - 1) & (lowest + j * 0 > top * STRIDE)
        lower = _beside(source + (top + 1) * grid_row, left, part2, grid_column, down, TYPE)
    for i in range(i_first, i_stop):
        s = window_start(i, before, last_row)
        if STRIDE > 1:
            part = tl.where(top == count - 1, 0.0, (s - top * STRIDE).to(TYPE) / gap)
            value = tl.where(part < 1, upper + part * (lower - upper), lower)
            value = tl.where(part > 0, value, upper)
        else:
            value = tl.load(source + s * grid_row + t * grid_column, mask=there, other=0.0).to(TYPE)
        if OPERATION != "take":
            given = tl.load(at + i * row_step, mask=there, other=0.0).to(TYPE)
            if OPERATION == "mul":
                value = given * value
            elif OPERATION == "add":
                value = given + value
            else:
                value = given - value
        line = number * 0 + i
        if OUT_LAST:
            at_out = ((image * height + line) * width + j) * channels + channel
        else:
            at_out = ((image * channels + channel) * height + line) * width + j
        tl.store(out + at_out, value.to(out.dtype.element_ty), mask=there)

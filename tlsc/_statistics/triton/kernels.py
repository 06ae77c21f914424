"""Kernel of exact local statistics: one pass that slides, sums along rows and writes.

A program of :func:`local_statistics` holds a row of positions of one plane, or a segment of one, lane by lane, and
walks down a strip of rows; where rows are short, several at once. Of every position it keeps ``D``, the sum down
the column that its window enters less that of the column that its window leaves; one row further down, each ``D``
changes by four values. Along the row the windows' sums are then that of the first window, ``F``, plus the running
sum of ``D``: nothing is stored but the result. Where a strip starts, ``D`` and ``F`` come from sums of blocks and
of rows (:mod:`.sums`) and the rows left over, so that rounding never grows beyond one strip. Values are taken
relative to one sample near the strip's middle.

A NaN, an infinity or a sum too large shows in the strip's own results. Such a strip is computed again at once, by
the same program, in float64 and with what is not finite counted instead of added (:func:`_again`).

Pitfalls in here: an argument that equals 1 is a number, not a tensor (it has no ``.to``); what a loop changes must
keep its type; in the interpreter loop counters are Python's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts import aligned, before_own, clip, inside, narrowed, padded, sample, widened, window_start

__all__ = ["local_statistics"]


@triton.jit
def _pair(entering, leaving, mask, raw, shift, TYPE: tl.constexpr, BOTH: tl.constexpr):
    """What one row adds, less what another takes away (BOTH): values, and squares; 0 where nothing is read."""
    if BOTH:
        value = tl.load(entering, mask=mask, other=0.0).to(TYPE) - shift
        gone = tl.load(leaving, mask=mask, other=0.0).to(TYPE) - shift
        change = value - gone
        square = change * (value + gone)
    else:
        change = tl.load(entering, mask=mask, other=raw).to(TYPE) - shift
        square = change * change
    return change, square


@triton.jit
def _changes(
    entering, leaving, j, front, right, left, within, from_right, from_left, known, start, columns, ahead, behind,
    column_stride, raw, shift,
    TYPE: tl.constexpr, ONE: tl.constexpr, BLOCKED: tl.constexpr, FRONT: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """What a row that enters the windows, and one that leaves them, change in ``D`` and in the first window.

    Where all positions are in one program (ONE), the first window's columns are among those that are loaded anyway:
    a position reads the column that it enters, and the one that it leaves. BLOCKED: they are summed elsewhere.

    Returns the differences of values and of squares, then values and squares (to be added up), of FRONT columns at
    once: ``known`` are those of the ``front``.
    """
    place = (j + ahead) * column_stride
    change, squares = _pair(entering + place, leaving + place, right, raw, shift, TYPE, BOTH)
    place = (j - behind) * column_stride
    change_, squares_ = _pair(entering + place, leaving + place, left, raw, shift, TYPE, BOTH)
    if ONE:
        first = from_right * change + from_left * change_
        second = from_right * squares + from_left * squares_
        change = within * (change - change_)
        squares = within * (squares - squares_)
    else:
        first = tl.where(known, 0.0, 0.0).to(TYPE)
        second = first
        if not BLOCKED:
            for c in range(0, columns, FRONT):
                there = known & (c + front < columns)
                column = (start + c + front) * column_stride
                value, square = _pair(entering + column, leaving + column, there, raw, shift, TYPE, BOTH)
                first += value
                second += square
        change = change - change_
        squares = squares - squares_
    return change, squares, first, second


@triton.jit
def _checked(at, mask, shift):
    """What is stored there relative to ``shift`` in float64, 0 if it is not finite; then that, as a number:

    1 for each such value, plus 2³² for +∞, less 2³² for −∞.
    """
    value = widened(tl.load(at, mask=mask, other=0.0), tl.float64)
    finite = value - value == 0
    code = tl.where(finite, 0, 1).to(tl.int64)
    sign = tl.where(value > 0, 1, 0) - tl.where(value < 0, 1, 0)
    code += tl.where(finite, 0, sign).to(tl.int64) * 4294967296
    return tl.where(mask & finite, value - shift, 0.0), code


@triton.jit
def _running(values, BEFORE: tl.constexpr, LAST: tl.constexpr):
    """Running sums along a row: of the positions up to each one, or of those before it."""
    total = tl.cumsum(values, 0 if LAST else 1)
    return total - values if BEFORE else total


@triton.jit
def _along(values, LAST: tl.constexpr):
    """Sums of all positions of each row."""
    return tl.sum(values, 0 if LAST else 1, keep_dims=True)


@triton.jit
def _of_rows(values, LAST: tl.constexpr):
    """Sums of all rows; where channels come last, there is one."""
    return values if LAST else tl.sum(values, 0, keep_dims=True)


@triton.jit
def _down(values, LAST: tl.constexpr, ROWS: tl.constexpr):
    """Running sums from row to row."""
    return tl.cumsum(values, 0) if ROWS > 1 and not LAST else values


@triton.jit
def _lowest(values, e, LAST: tl.constexpr, ROWS: tl.constexpr):
    """The last of the rows."""
    return values if ROWS == 1 or LAST else tl.sum(tl.where(e == ROWS - 1, values, 0.0), 0, keep_dims=True)


@triton.jit
def _inverse_root(value, TYPE: tl.constexpr):
    """One over the square root; the processor's own is of float32."""
    return 1 / tl.sqrt(value) if TYPE == tl.float64 else tl.rsqrt(value)  # noqa: SIM300


@triton.jit
def _write(
    x, correction, weight, bias, out, variances, image, group, i, s, j, present, known, mean, var, raw, shift,
    gain, offset, stop, depth, height, width, groups, channel_stride, row_stride, column_stride, rows, columns,
    before, behind, out_height, out_width, step, eps, eps_rest,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, NORMALISE: tl.constexpr, CORRECTED: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, OUT_LAST: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Rows ``i`` of the result, before ``stop``, from each position's mean, relative to ``shift``, and variance.

    ``gain``, ``offset``: of the only channel of a group (SINGLE), where there are some.
    """
    there = known & (j < out_width) & (i + j * 0 < stop)
    moved = tl.where(there, 0.0, 0.0).to(TYPE)
    if CORRECTED:
        t = window_start(j, tl.maximum(behind - 1, 0), width - columns)
        share = inside(s, t, height - rows, width - columns, rows, columns, TYPE)
        k = correction + group
        absolute = mean + shift
        low = tl.load(k + 6 * groups, mask=present, other=0.0).to(TYPE)
        high = tl.load(k + 7 * groups, mask=present, other=0.0).to(TYPE)
        clipped = clip(absolute, low, high)
        if MOMENTS:
            a = tl.load(k, mask=present, other=1.0).to(TYPE)
            b = tl.load(k + groups, mask=present, other=0.0).to(TYPE)
            c = tl.load(k + 2 * groups, mask=present, other=0.0).to(TYPE)
            top = tl.load(k + 5 * groups, mask=present, other=0.0).to(TYPE)
            var += share * ((a - 1) * tl.where(var < top, var, top) + b + c * clipped * clipped)
            var = tl.where(var > 0, var, var * 0)  # NaN stays
        d = tl.load(k + 3 * groups, mask=present, other=1.0).to(TYPE)
        e = tl.load(k + 4 * groups, mask=present, other=0.0).to(TYPE)
        # Within the limits from the parts of the mean: their sum is rounded.
        whole = (d - 1) * mean + ((d - 1) * shift + e)
        moved = share * tl.where(clipped == absolute, whole, (d - 1) * clipped + e)
    if NORMALISE:
        scale = _inverse_root(var + ((tl.zeros([1], TYPE) + eps) + eps_rest), TYPE)
        if SINGLE and WEIGHT:
            scale *= gain
        centre = mean + moved if CORRECTED else mean
        for q in range(depth):
            channel = group * depth + q
            at = x + i * row_stride + q * channel_stride + j * column_stride
            value = widened(tl.load(at, mask=there, other=raw), TYPE) - shift
            value = (value - centre) * scale
            if WEIGHT and not SINGLE:
                value *= widened(tl.load(weight + channel, mask=present, other=0.0), TYPE)
            if BIAS:
                if SINGLE:
                    value += offset
                else:
                    value += widened(tl.load(bias + channel, mask=present, other=0.0), TYPE)
            if OUT_LAST:
                place = out + ((image * out_height + i) * out_width + j) * (groups * depth) + channel
            else:
                place = out + ((image * groups * depth + channel) * out_height + i) * out_width + j
            tl.store(place, narrowed(value, out), mask=there)
    else:
        # Where only each step-th window is wanted, and the last one.
        last_row, last_column = out_height - 1, out_width - 1
        line = i + j * 0
        there = there & ((j % step == 0) | (j == last_column)) & ((line % step == 0) | (line == last_row))
        below, beside = (i + step - 1) // step, (j + step - 1) // step
        high, wide = (last_row + step - 1) // step + 1, (last_column + step - 1) // step + 1
        if OUT_LAST:
            place = ((image * high + below) * wide + beside) * groups + group
        else:
            place = ((image * groups + group) * high + below) * wide + beside
        tl.store(out + place, narrowed(mean + (moved + shift), out), mask=there)
        if MOMENTS:
            tl.store(variances + place, narrowed(var, out), mask=there)


@triton.jit
def _again(
    x, correction, weight, bias, out, variances, image, group, i_first, i_stop, j, lane, inner, present, known,
    start, raw, shift, gain, offset, depth, height, width, groups, channel_stride, row_stride, column_stride,
    rows, columns, before, ahead, behind, out_height, out_width, step, eps, eps_rest,
    MOMENTS: tl.constexpr, NORMALISE: tl.constexpr, WINDOWS: tl.constexpr, CORRECTED: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, LAST: tl.constexpr, OUT_LAST: tl.constexpr, SINGLE: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """A strip whose values, or whose sums, are not all finite: every row of windows anew, in float64."""
    shift = widened(shift, tl.float64)
    shift = tl.where(shift - shift == 0, shift, 0.0)
    share = 1 / (((shift * 0 + depth) * rows) * columns)
    for i in range(i_first, i_stop):
        s = window_start(i, before, height - rows)
        d1 = tl.where(inner, 0.0, 0.0).to(tl.float64)
        d2, f1, f2 = d1, d1, d1
        marks = d1.to(tl.int64)
        first_marks = marks
        for r in range(rows):
            for q in range(depth):
                at = x + (s + r) * row_stride + q * channel_stride
                entering, code = _checked(at + (j + ahead) * column_stride, inner, shift)
                leaving, code_ = _checked(at + (j - behind) * column_stride, inner, shift)
                d1 += entering - leaving
                d2 += (entering - leaving) * (entering + leaving)
                marks += code - code_
                for c in range(0, columns, COLUMNS):
                    there = known & (c + lane < columns)
                    value, code = _checked(at + (start + c + lane) * column_stride, there, shift)
                    f1 += value
                    f2 += value * value
                    first_marks += code
        mean = (_running(d1, WINDOWS, LAST) + _along(f1, LAST)) * share
        var = (_running(d2, WINDOWS, LAST) + _along(f2, LAST)) * share - mean * mean
        marks = _running(marks, WINDOWS, LAST) + _along(first_marks, LAST)
        number, balance = marks & 4294967295, marks >> 32
        infinite = tl.where(balance == number, float("inf"), float("nan"))
        infinite = tl.where(balance == -number, float("-inf"), infinite)
        mean = tl.where(number > 0, infinite, mean)
        var = tl.where(number > 0, float("nan"), tl.maximum(var, 0.0))
        _write(
            x, correction, weight, bias, out, variances, image, group, i, s, j, present, known, mean, var, raw,
            shift, widened(gain, tl.float64), widened(offset, tl.float64), i_stop, depth, height, width, groups,
            channel_stride, row_stride, column_stride, rows, columns,
            before, behind, out_height, out_width, step, eps, eps_rest,
            tl.float64, MOMENTS, NORMALISE, CORRECTED, WEIGHT, BIAS, OUT_LAST, SINGLE,
        )  # fmt: skip


@triton.jit
def _parameter(at, group, present, instead, THERE: tl.constexpr, TYPE: tl.constexpr):
    """A weight or bias of each group; what is given ``instead``, where there is none (THERE is false)."""
    return widened(tl.load(at + group, mask=present, other=0.0), TYPE) if THERE else instead


@triton.jit
def _first_windows(
    at, column_sums, head, s, j, lane, front, e, present, known, inner, right, left, fronts, within, from_right,
    from_left, zero, none, start, raw, shift, whole, squared, depth, height, width, rows, columns, ahead, behind,
    row_step, channel_step, column_stride, step_of_sums, size,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, BLOCKED: tl.constexpr, LAST: tl.constexpr, ONE: tl.constexpr,
    COLUMNS: tl.constexpr, FRONT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The row of windows that starts at row ``s``: whole blocks, then the rows left over above and below.

    Returns ``D`` of values and of squares, ``F`` likewise, and what leads from the plane's sample to the strip's.
    """
    d1, d2, first, second = zero, zero, none, none
    top = s + rows
    tail = s + rows
    by = shift * 0
    if BLOCKED:
        lo, hi = (s + size - 1) // size, (s + rows) // size
        top = tl.minimum(lo * size, s + rows)
        tail = tl.maximum(hi * size, top)
        for n in range(lo, hi, ROWS):
            there = inner & (n + e < hi)
            line = column_sums + (n + e).to(tl.int64) * width * step_of_sums
            d1 += tl.load(line + (j + ahead) * step_of_sums, mask=there, other=0.0)
            d1 -= tl.load(line + (j - behind) * step_of_sums, mask=there, other=0.0)
            if MOMENTS:
                d2 += tl.load(line + whole + (j + ahead) * step_of_sums, mask=there, other=0.0)
                d2 -= tl.load(line + whole + (j - behind) * step_of_sums, mask=there, other=0.0)
        by = sample(at, height // 2, height // 4, width, row_step, column_stride, present, TYPE).to(TYPE)
        by = shift - by
        d2 -= 2 * by * d1
    odd = (top - s) + (s + rows - tail)
    for n in range(0, odd, ROWS):
        r = tl.where(n + e < top - s, s + n + e, tail + (n + e - (top - s)))
        now = n + e < odd
        for q in range(depth):
            line = at + r * row_step + q * channel_step
            change, squares, value, square = _changes(
                line, line, j, front, right & now, left & now, within, from_right, from_left, fronts & now,
                start, columns, ahead, behind, column_stride, raw, shift, TYPE, ONE, BLOCKED, FRONT, False,
            )  # fmt: skip
            d1 += change
            first += value
            if MOMENTS:
                d2 += squares
                second += square
    d1, d2 = _of_rows(d1, LAST), _of_rows(d2, LAST)
    f1, f2 = _of_rows(_along(first, LAST), LAST), _of_rows(_along(second, LAST), LAST)
    if BLOCKED:
        for n in range(0, rows, COLUMNS):
            there = known & (n + lane < rows)
            place = head + (s + n + lane) * step_of_sums
            f1 += _along(tl.load(place, mask=there, other=0.0), LAST)
            if MOMENTS:
                f2 += _along(tl.load(place + squared, mask=there, other=0.0), LAST)
        terms = by * (((tl.zeros([1, 1], TYPE) + depth) * rows) * columns)
        f2 += by * (terms - 2 * f1)
        f1 -= terms
    return d1, d2, f1, f2, by


@triton.jit
def _moved_on(
    at, head, begin, j, front, e, group, groups, right, left, fronts, moves, within, from_right, from_left, zero,
    none, f1s, f2s, by, squared, start, raw, shift, depth, rows, columns, ahead, behind, row_step, channel_step,
    column_stride, step_of_sums,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, BLOCKED: tl.constexpr, LAST: tl.constexpr, ONE: tl.constexpr,
    SINGLE: tl.constexpr, FRONT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One row of windows further down, or ROWS: what changes in ``D`` by each row, and ``F``."""
    d1s, d2s, first, second = zero, zero, none, none
    for q in range(depth):
        entering = at + (begin + rows - 1) * row_step + q * channel_step
        change, squares, value, square = _changes(
            entering, entering - rows * row_step, j, front, right, left, within, from_right, from_left, fronts,
            start, columns, ahead, behind, column_stride, raw, shift, TYPE, ONE, BLOCKED, FRONT, True,
        )  # fmt: skip
        if SINGLE:  # adding to 0 is work
            d1s, d2s, first, second = change, squares, value, square
        else:
            d1s += change
            d2s += squares
            first += value
            second += square
    if BLOCKED:
        place = head + (begin + rows - 1) * step_of_sums
        gone = head + (begin - 1) * step_of_sums
        there = moves & (group + e * 0 < groups)
        g1s = tl.load(place, mask=there, other=0.0) - tl.load(gone, mask=there, other=0.0)
        f1s += g1s
        if MOMENTS:
            g2s = tl.load(place + squared, mask=there, other=0.0)
            g2s -= tl.load(gone + squared, mask=there, other=0.0)
            g2s -= 2 * by * g1s
            f2s += g2s
    else:
        f1s += _along(_down(first, LAST, ROWS), LAST)
        if MOMENTS:
            f2s += _along(_down(second, LAST, ROWS), LAST)
    return d1s, d2s, f1s, f2s


@triton.jit
def local_statistics(
    x, sums, correction, weight, bias, out, variances,
    planes, depth, height, width, groups, image_stride, channel_stride, row_stride, column_stride,
    rows, columns, step, strips, strip, segments, channel_tiles, size, count, eps, eps_rest,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, NORMALISE: tl.constexpr, WINDOWS: tl.constexpr,
    CORRECTED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCKED: tl.constexpr,
    LAST: tl.constexpr, OUT_LAST: tl.constexpr, ONE: tl.constexpr, SINGLE: tl.constexpr, COLUMNS: tl.constexpr,
    FRONT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ALIGN: tl.constexpr, STAGE: tl.constexpr,
):  # fmt: skip
    """Every position's mean, or mean and variance, or normalised value; or those of every window (WINDOWS).

    Args:
        sums: where BLOCKED is true, of blocks of ``size`` rows, ``count`` of them down a plane, and behind them
            what each row adds to the first window of each segment; then a flag for every program. ROWS is 1 there.
        correction: (8, groups), read where CORRECTED is true; ``weight``, ``bias``: (groups·depth,), likewise.
        step: of the windows, those that start at its multiples are stored, and the last.
        strips, strip: how many of them, and of how many rows; ``segments``: of COLUMNS positions each.
        LAST: channels are neighbours in memory; CHANNELS of them are taken together. OUT_LAST: in the result.
        STAGE: "only" repairs what it has spoiled itself; "first" leaves that to "repair", by ``flags``.
        ONE: the first window and all positions of a row fit into COLUMNS lanes.
        FRONT: so many columns of the first window are read at once. ROWS: so many rows are worked on at once; one
            where channels come last.
        SINGLE: a group is one channel.
        ALIGN: divides the window's reach to both sides, the width and all strides, or the channels where they come
            last: of so many elements may a load be.
    """
    number = tl.program_id(0).to(tl.int64)
    each = (2 if MOMENTS else 1) * (number * 0 + planes)
    heads = sums + padded(each * count * width) if BLOCKED else sums
    flags = heads + padded(each * segments * height) if BLOCKED else heads
    segment, above = (number % segments).to(tl.int32), number // segments
    course, plane = (above % strips).to(tl.int32), above // strips
    row_step, channel_step = number * 0 + row_stride, number * 0 + channel_stride
    # Of loads along a row, and along channels.
    ALONG: tl.constexpr = 1 if LAST else ALIGN
    ACROSS: tl.constexpr = ALIGN if LAST else 1
    row_step, image_stride = aligned(row_step, ALIGN), aligned(image_stride, ALIGN)
    channel_step, column_stride = aligned(channel_step, ALONG), aligned(column_stride, ACROSS)
    width, columns, groups = aligned(width, ALONG), aligned(columns, ALONG), aligned(groups, ACROSS)
    if LAST:
        image = plane // channel_tiles
        lane = tl.arange(0, COLUMNS)[:, None]
        front = tl.arange(0, FRONT)[:, None]
        group = (((plane % channel_tiles) * CHANNELS).to(tl.int32) + tl.arange(0, CHANNELS))[None, :]
        column_sums = sums + image * count * width * groups + group
        head = heads + (image * segments + segment) * height * groups + group
        step_of_sums = groups
    else:
        image = plane // groups
        lane = tl.arange(0, COLUMNS)[None, :]
        front = tl.arange(0, FRONT)[None, :]
        group = plane % groups
        column_sums = sums + plane * count * width
        head = heads + (plane * segments + segment) * height
        step_of_sums = 1
    # Of the channels, and of the whole block: the interpreter makes no block of one truth value.
    present, known, fronts = group < groups, group + lane * 0 < groups, group + front * 0 < groups
    at = x + image * image_stride + group * (depth * channel_step)
    if WINDOWS:
        # Here ``D`` is what changes from a window to the next one.
        before, ahead, behind = 0, columns, 0
        out_height, out_width = height - rows + 1, width - columns + 1
        above = 0
    else:
        before, ahead = before_own(rows), columns // 2
        behind = columns - ahead
        out_height, out_width = height, width
        # Strips begin where windows begin with a block.
        above = (strip - before % strip) % strip
    ahead, behind = aligned(ahead, ALONG), aligned(behind, ALONG)
    i_first = tl.maximum(course * strip - above, 0)
    i_stop = tl.minimum((course + 1) * strip - above, out_height)
    j = segment * COLUMNS + lane
    inner = known & (j >= behind) & (j < width - ahead)
    right, left = inner, inner
    if ONE:
        right = known & (j < width - ahead)
        left = known & (j >= behind) & (j < tl.maximum(width - ahead, columns))
    # The first window is that of the position before the segment.
    start = window_start(segment * COLUMNS, behind, width - columns)
    start = aligned(start, ALONG)
    s = window_start(i_first, before, height - rows)
    raw = sample(at, s + rows // 2, rows // 4, width, row_step, column_stride, present, TYPE)
    shift = raw.to(TYPE)
    gain = _parameter(weight, group, present, shift, WEIGHT and SINGLE, TYPE)
    offset = _parameter(bias, group, present, shift, BIAS and SINGLE, TYPE)
    e = tl.zeros([1, 1], tl.int32) if LAST else tl.arange(0, ROWS)[:, None]
    zero = tl.where(known & (e >= 0), 0.0, 0.0).to(TYPE)
    spoiled = zero
    if STAGE == "repair":
        repair = tl.load(flags + number) != 0
    else:
        none = tl.where(fronts & (e >= 0), 0.0, 0.0).to(TYPE)
        within = tl.where(inner, 1.0, 0.0).to(TYPE)
        from_right = tl.where(known & (j < behind), 1.0, 0.0).to(TYPE)
        from_left = tl.where(known & (j >= behind) & (j < columns), 1.0, 0.0).to(TYPE)

        # How far behind sums of values those of squares are.
        whole, squared = (number * 0 + planes) * count * width, (number * 0 + planes) * segments * height
        d1, d2, f1, f2, by = _first_windows(
            at, column_sums, head, s, j, lane, front, e, present, known, inner, right, left, fronts, within,
            from_right, from_left, zero, none, start, raw, shift, whole, squared, depth, height, width, rows,
            columns, ahead, behind, row_step, channel_step, column_stride, step_of_sums, size,
            TYPE, MOMENTS, BLOCKED, LAST, ONE, COLUMNS, FRONT, ROWS,
        )  # fmt: skip

        share = 1 / (((tl.zeros([1, 1], TYPE) + depth) * rows) * columns)
        for n in range(i_first, i_stop, ROWS):
            i = n + e
            begin = window_start(i, before, height - rows)
            d1s, d2s = zero, zero
            f1s, f2s = f1 + e * 0, f2 + e * 0
            # Where none of the windows moves on, there is nothing to read.
            if window_start(n + ROWS - 1, before, height - rows) > window_start(n - 1, before, height - rows):
                moves = (i > i_first) & (i < i_stop) & (begin > window_start(i - 1, before, height - rows))
                d1s, d2s, f1s, f2s = _moved_on(
                    at, head, begin, j, front, e, group, groups, right & moves, left & moves, fronts & moves,
                    moves, within, from_right, from_left, zero, none, f1s, f2s, by, squared, start, raw, shift,
                    depth, rows, columns, ahead, behind, row_step, channel_step, column_stride, step_of_sums,
                    TYPE, MOMENTS, BLOCKED, LAST, ONE, SINGLE, FRONT, ROWS,
                )  # fmt: skip
                f1 = _lowest(f1s, e, LAST, ROWS)
                f2 = _lowest(f2s, e, LAST, ROWS)
            d1s = d1 + _down(d1s, LAST, ROWS)
            d1 = _lowest(d1s, e, LAST, ROWS)
            mean = (_running(d1s, WINDOWS, LAST) + f1s) * share
            var = mean
            if MOMENTS:
                d2s = d2 + _down(d2s, LAST, ROWS)
                d2 = _lowest(d2s, e, LAST, ROWS)
                var = (_running(d2s, WINDOWS, LAST) + f2s) * share - mean * mean
            spoiled += var * 0
            var = tl.maximum(var, 0.0)
            _write(
                at, correction, weight, bias, out, variances, image, group, i + number * 0, begin, j, present,
                known, mean, var, raw, shift, gain, offset, i_stop, depth, height, width, groups, channel_step,
                row_step, column_stride, rows, columns, before, behind, out_height, out_width, step, eps, eps_rest,
                TYPE, MOMENTS, NORMALISE, CORRECTED, WEIGHT, BIAS, OUT_LAST, SINGLE,
            )  # fmt: skip
        repair = tl.sum(spoiled) != 0
    if STAGE == "first":
        # Another launch looks at it: float64 would take the registers that make this one fast.
        tl.store(flags + number, tl.sum(spoiled))
    elif repair:
        _again(
            at, correction, weight, bias, out, variances, image, group, i_first + number * 0, i_stop + number * 0,
            j, lane, inner, present, known, start, raw, shift, gain, offset, depth, height, width, groups,
            channel_step, row_step, column_stride, rows, columns, before, ahead, behind, out_height, out_width,
            step, eps, eps_rest,
            MOMENTS, NORMALISE, WINDOWS, CORRECTED, WEIGHT, BIAS, LAST, OUT_LAST, SINGLE, COLUMNS,
        )  # fmt: skip

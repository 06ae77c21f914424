"""The kernels: one pass over a plane with running sums.

Float64 sums of every column over the rows of a window move down the plane with it; a sum of them that moves along
the row takes one column in and one out for each window, whatever the window's size. Sums are of ``x − shift``, the
shift about the plane's mean, so that nothing cancels.

Each kernel does the units [start, stop), a unit being a band of a plane's rows (or a plane). Planes are
(P, D, H, W): D channels share a statistic. ``spoiled[unit]`` tells that a sum ended up NaN or infinite:
that plane is to be computed in another way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..._windows import before
from .compiling import compiled, padded, total, window_sums, window_sums_of_two
from .steps import (
    combine,
    corrected_mean,
    corrected_var,
    enter,
    means,
    means_corrected,
    move,
    normalise,
    replicate,
    scales,
    scales_corrected,
    scales_of_any_size,
    shift_of,
    variances,
    variances_corrected,
    widen,
)

__all__ = ["Affine", "Correcting", "Readings", "Size", "grid", "meet", "norm", "slide"]


_before = compiled(before)


class Size(NamedTuple):
    """Size of the windows, no larger than the map."""

    rows: int
    columns: int


class Correcting(NamedTuple):
    """A correction's rows for each plane (or group), (P, 8), and how much of it each window takes.

    Window (i, j) takes ``across[j] − down[i]``, the share of its outline that lies inside the map.
    """

    wanted: bool
    coefficients: Any
    down: Any
    across: Any


class Affine(NamedTuple):
    """Weight and bias of the planes' groups, (G, D) each, over and over; and eps."""

    weight: Any
    bias: Any
    eps: float


class Readings(NamedTuple):
    """For each row and column the evaluated windows on either side of its own, and the second one's share.

    ``left``: −1, or where on the row the grid's own row lies, each window on its position.
    """

    down: Any
    down_share: Any
    across: Any
    across_share: Any
    left: int


# Below the first and above the second, 1/sqrt(var + eps) can be begun in single precision.
FITS = 1e30
SMALLEST_EPS = 1e-30


@compiled
def slide(x, windows, moments, placed, correcting, bands, mean, var, spoiled, start, stop):
    """Mean, and variance, of the windows that start at every position; ``placed``: one for every position."""
    rows, columns = windows.rows, windows.columns
    depth, height, width = x.shape[1:]
    first, second = padded(width), padded(width)
    sums, squares = padded(width), padded(width)
    share = 1.0 / (depth * rows * columns)
    above = _before(rows) if placed else 0
    left = _before(columns) if placed else 0
    count, last, lines = width - columns + 1, height - rows, mean.shape[1]
    for unit in range(start, stop):
        p, band = unit // bands, unit % bands
        shift = shift_of(x[p])
        begin, end = band * lines // bands, (band + 1) * lines // bands
        first[:] = 0.0
        second[:] = 0.0
        top = -1
        for i in range(begin, end):
            at = min(max(i - above, 0), last)
            if at == top:
                mean[p, i] = mean[p, i - 1]
                if moments:
                    var[p, i] = var[p, i - 1]
                continue
            for d in range(depth):
                if top < 0:
                    enter(x[p, d], at, at + rows, shift, moments, first, second)
                else:
                    move(x[p, d, at + rows - 1], x[p, d, at - 1], shift, moments, first, second)
            top = at
            if moments:
                window_sums_of_two(first, second, columns, sums, squares)
            else:
                window_sums(first, columns, sums)
            line = mean[p, i, left : left + count]
            if correcting.wanted:
                k = correcting.coefficients[p]
                across, down = correcting.across, correcting.down[at]
                means_corrected(sums, share, shift, k, across, down, line)
                if moments:
                    line2 = var[p, i, left : left + count]
                    variances_corrected(sums, squares, share, shift, k, across, down, line2)
            else:
                means(sums, share, shift, line)
                if moments:
                    variances(sums, squares, share, var[p, i, left : left + count])
            if placed:
                replicate(mean[p, i], left, count)
                if moments:
                    replicate(var[p, i], left, count)
        spoiled[unit] = not np.isfinite(total(first) + (total(second) if moments else 0.0))


@compiled
def norm(x, windows, affine, correcting, bands, out, spoiled, start, stop):
    """Normalise every position by its window."""
    rows, columns = windows.rows, windows.columns
    depth, height, width = x.shape[1:]
    first, second = padded(width), padded(width)
    sums, squares = padded(width), padded(width)
    mean, scale = np.empty(width), np.empty(width)
    share = 1.0 / (depth * rows * columns)
    above, left = _before(rows), _before(columns)
    count, last = width - columns + 1, height - rows
    mean_line, scale_line = mean[left : left + count], scale[left : left + count]
    groups = affine.weight.shape[0]
    for unit in range(start, stop):
        p, band = unit // bands, unit % bands
        group = p % groups
        shift = shift_of(x[p])
        first[:] = 0.0
        second[:] = 0.0
        top = -1
        for i in range(band * height // bands, (band + 1) * height // bands):
            at = min(max(i - above, 0), last)
            if at != top:
                for d in range(depth):
                    if top < 0:
                        enter(x[p, d], at, at + rows, shift, True, first, second)
                    else:
                        move(x[p, d, at + rows - 1], x[p, d, at - 1], shift, True, first, second)
                top = at
                window_sums_of_two(first, second, columns, sums, squares)
                # No window's variance exceeds the row's sum of squares.
                largest = total(second) * share + affine.eps
                if correcting.wanted:
                    scales_corrected(
                        sums, squares, share, shift, affine.eps, correcting.coefficients[group],
                        correcting.across, correcting.down[at], mean_line, scale_line,
                    )  # fmt: skip
                elif largest < FITS and affine.eps > SMALLEST_EPS:
                    scales(sums, squares, share, shift, affine.eps, mean_line, scale_line)
                else:
                    scales_of_any_size(sums, squares, share, shift, affine.eps, mean_line, scale_line)
                replicate(mean, left, count)
                replicate(scale, left, count)
            for d in range(depth):
                weight, bias = affine.weight[group, d], affine.bias[group, d]
                normalise(x[p, d, i], mean, scale, weight, bias, out[p, d, i])
        spoiled[unit] = not np.isfinite(total(first) + total(second))


@compiled
def grid(x, tops, lefts, windows, moments, correcting, means, variances, spoiled, start, stop):
    """Mean, and variance, of the windows at ``tops`` × ``lefts``: sums of all rows above, read at their ends."""
    rows, columns = windows.rows, windows.columns
    depth, width = x.shape[1], x.shape[3]
    first, second = padded(width), padded(width)
    sums, squares = padded(width), padded(width)
    share = 1.0 / (depth * rows * columns)
    down, across = tops.shape[0], lefts.shape[0]
    mean, square = np.empty((down, across)), np.empty((down, across))
    for p in range(start, stop):
        shift = shift_of(x[p])
        first[:] = 0.0
        second[:] = 0.0
        mean[:] = 0.0
        square[:] = 0.0
        opened = closed = i = 0
        while closed < down:
            following = tops[closed] + rows
            if opened < down:
                following = min(following, tops[opened])
            for d in range(depth):
                enter(x[p, d], i, following, shift, moments, first, second)
            i = following
            if moments:
                window_sums_of_two(first, second, columns, sums, squares)
            else:
                window_sums(first, columns, sums)
            opens, closes = opened < down and tops[opened] == i, tops[closed] + rows == i
            for c in range(across):
                inside = sums[lefts[c]]
                inside2 = squares[lefts[c]] if moments else 0.0
                if opens:
                    mean[opened, c] -= inside
                    square[opened, c] -= inside2
                if closes:
                    mean[closed, c] += inside
                    square[closed, c] += inside2
            opened += opens
            closed += closes
        for a in range(down):
            for c in range(across):
                value = mean[a, c] * share
                var = max(square[a, c] * share - value * value, 0.0)
                value += shift
                if correcting.wanted:
                    weight = correcting.across[c] - correcting.down[a]
                    var = corrected_var(var, value, correcting.coefficients[p], weight)
                    value = corrected_mean(value, correcting.coefficients[p], weight)
                means[p, a, c] = value
                if moments:
                    variances[p, a, c] = var
        spoiled[p] = not np.isfinite(total(first) + (total(second) if moments else 0.0))


@compiled
def meet(operation, x, grid, readings, out, start, stop):
    """``x`` with the value of each position's window: one of ``grid``, or linear between those around it."""
    down, down_share, left = readings.down, readings.down_share, readings.left
    across, across_share = readings.across, readings.across_share
    height, width = out.shape[1:]
    values = np.empty(width, out.dtype)
    lower, upper = np.empty(width, out.dtype), np.empty(width, out.dtype)
    one = np.ones(1, out.dtype)[0]
    for p in range(start, stop):
        ready = done = -1
        for i in range(height):
            a, b, t = down[i, 0], down[i, 1], down_share[i]
            if left >= 0:
                if a != ready:
                    values[left : left + grid.shape[2]] = grid[p, a]
                    replicate(values, left, grid.shape[2])
                    ready = a
                combine(operation, x[p, i], values, out[p, i])
                continue
            if a != ready:
                if a == done:
                    lower[:] = upper
                else:
                    widen(grid[p, a], across, across_share, one, lower)
                ready = a
            if t == 0:
                combine(operation, x[p, i], lower, out[p, i])
                continue
            if b != done:
                widen(grid[p, b], across, across_share, one, upper)
                done = b
            s = one - t
            for j in range(width):
                values[j] = s * lower[j] + t * upper[j]
            combine(operation, x[p, i], values, out[p, i])

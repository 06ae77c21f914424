"""Local statistics on the CPU: one pass with running sums, compiled by Numba.

Per plane, float64 sums of every column over the rows of a window move down with it; a prefix sum along the row
then gives each window's sum as one difference, whatever the window's size. Sums are of ``x − shift``, the shift
about the plane's mean, so that nothing cancels. A NaN or Inf stays in a column's sum once it is in, and so shows
at the end of a plane: that plane is computed again by :mod:`tlsc._statistics.reference`.

Planes, or bands of rows where planes are few, are shared out among threads by :mod:`.threads` (the kernels
release the GIL) and not among Numba's own: those do not survive a fork, and take longer to compile. How a plane is
cut depends on its size alone, so that results do not depend on the number of threads.

Indices are slices wherever they are not a loop's own variable: an index that might be negative is Python's from
the end, and the test for that keeps the compiler from vectorising (3 to 5 times slower).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ..._windows import Axis, Windows, before
from .. import reference as _reference
from ..correction import Correction
from .compiling import compiled
from .threads import share_out

__all__ = ["grid_means", "grid_moments", "local_group_norm", "local_mean", "local_var_mean", "meet"]

_before = compiled(before)

OPERATIONS = {"take": 0, "mul": 1, "add": 2, "sub": 3}


def why_unusable() -> str | None:
    """Why the kernels cannot run here."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined,unused-ignore]
        return "NUMBA_DISABLE_JIT is set, and without compilation Python itself would run the kernels"
    return None


def why_not(x: Tensor) -> str | None:
    """Why this tensor cannot be taken."""
    return None if x.device.type == "cpu" else f"runs on the CPU, and the tensor is on {x.device}"


# --------------------------------------------------------------------------------------------- steps of the kernels


@compiled
def _shift(planes):
    """About the mean of (D, H, W), from a coarse sample; exactly the value of a constant plane."""
    depth, height, width = planes.shape
    rows, columns = max(1, height // 16), max(1, width // 16)
    total, count = 0.0, 0
    for d in range(depth):
        for i in range(0, height, rows):
            for j in range(0, width, columns):
                total += np.float64(planes[d, i, j])
                count += 1
    mean = total / count
    return mean if np.isfinite(mean) else 0.0


@compiled
def _enter(row, shift, moments, first, second):
    """Add a row to the columns' sums, and its squares."""
    if moments:
        for j in range(row.shape[0]):
            value = np.float64(row[j]) - shift
            first[j] += value
            second[j] += value * value
    else:
        for j in range(row.shape[0]):
            first[j] += np.float64(row[j]) - shift


@compiled
def _move(enters, leaves, shift, moments, first, second):
    """Add one row to the columns' sums and take another out."""
    if moments:
        for j in range(enters.shape[0]):
            new = np.float64(enters[j]) - shift
            old = np.float64(leaves[j]) - shift
            first[j] += new - old
            second[j] += new * new - old * old
    else:
        for j in range(enters.shape[0]):
            first[j] += np.float64(enters[j]) - np.float64(leaves[j])


@compiled
def _prefix(sums, prefix):
    """``prefix[j] = sums[0] + … + sums[j − 1]``, four at a time: one addition a step depends on the last."""
    before = 0.0
    prefix[0] = 0.0
    count = sums.shape[0]
    for block in range(count // 4):
        s = sums[4 * block : 4 * block + 4]
        p = prefix[4 * block + 1 : 4 * block + 5]
        a, b, c, d = s[0], s[1], s[2], s[3]
        b += a
        d += c
        c += b
        d += b
        p[0] = before + a
        p[1] = before + b
        p[2] = before + c
        p[3] = before + d
        before += d
    for j in range(count // 4 * 4, count):
        before += sums[j]
        prefix[j + 1] = before


@compiled
def _prefixes(sums, squares, prefix, prefix2):
    """:func:`_prefix` of both at once: while one waits for its last addition, the other goes on."""
    before, before2 = 0.0, 0.0
    prefix[0] = 0.0
    prefix2[0] = 0.0
    count = sums.shape[0]
    for block in range(count // 4):
        s, t = sums[4 * block : 4 * block + 4], squares[4 * block : 4 * block + 4]
        p, q = prefix[4 * block + 1 : 4 * block + 5], prefix2[4 * block + 1 : 4 * block + 5]
        a, b, c, d = s[0], s[1], s[2], s[3]
        e, f, g, h = t[0], t[1], t[2], t[3]
        b += a
        f += e
        d += c
        h += g
        c += b
        g += f
        d += b
        h += f
        p[0] = before + a
        p[1] = before + b
        p[2] = before + c
        p[3] = before + d
        q[0] = before2 + e
        q[1] = before2 + f
        q[2] = before2 + g
        q[3] = before2 + h
        before += d
        before2 += h
    for j in range(count // 4 * 4, count):
        before += sums[j]
        before2 += squares[j]
        prefix[j + 1] = before
        prefix2[j + 1] = before2


@compiled
def _means(prefix, columns, share, shift, out):
    ends = prefix[columns:]
    for j in range(ends.shape[0]):
        out[j] = (ends[j] - prefix[j]) * share + shift


@compiled
def _variances(first, second, columns, share, out):
    ends, squares = first[columns:], second[columns:]
    for j in range(ends.shape[0]):
        mean = (ends[j] - first[j]) * share
        out[j] = max((squares[j] - second[j]) * share - mean * mean, 0.0)


@compiled
def _corrected_mean(mean, correction, weight):
    """See :class:`tlsc._correction.Correction`, whose fields are the entries here."""
    clipped = min(max(mean, correction[6]), correction[7])
    return mean + weight * ((correction[3] - 1.0) * clipped + correction[4])


@compiled
def _corrected_var(var, mean, correction, weight):
    clipped = min(max(mean, correction[6]), correction[7])
    more = (correction[0] - 1.0) * min(var, correction[5]) + correction[1] + correction[2] * (clipped * clipped)
    return max(var + weight * more, 0.0)


@compiled
def _means_corrected(prefix, columns, share, shift, correction, across, down, out):
    """:func:`_means`, corrected with the weights ``across − down``."""
    ends = prefix[columns:]
    for j in range(ends.shape[0]):
        out[j] = _corrected_mean((ends[j] - prefix[j]) * share + shift, correction, across[j] - down)


@compiled
def _variances_corrected(first, second, columns, share, shift, correction, across, down, out):
    ends, squares = first[columns:], second[columns:]
    for j in range(ends.shape[0]):
        mean = (ends[j] - first[j]) * share
        var = max((squares[j] - second[j]) * share - mean * mean, 0.0)
        out[j] = _corrected_var(var, mean + shift, correction, across[j] - down)


@compiled
def _scales(first, second, columns, share, shift, eps, mean, scale):
    """Mean and ``1/sqrt(var + eps)``: single precision and a step of Newton's, right to 46 bits."""
    ends, squares = first[columns:], second[columns:]
    for j in range(ends.shape[0]):
        value = (ends[j] - first[j]) * share
        total = max((squares[j] - second[j]) * share - value * value, 0.0) + eps
        guess = np.float64(np.float32(1.0) / np.sqrt(np.float32(total)))
        scale[j] = guess * (1.5 - 0.5 * total * guess * guess)
        mean[j] = value + shift


@compiled
def _scales_anywhere(first, second, columns, share, shift, eps, correction, across, down, mean, scale):
    """The same beyond the range of single precision, and with a correction."""
    ends, squares = first[columns:], second[columns:]
    for j in range(ends.shape[0]):
        value = (ends[j] - first[j]) * share
        var = max((squares[j] - second[j]) * share - value * value, 0.0)
        value += shift
        var = _corrected_var(var, value, correction, across[j] - down)
        scale[j] = 1.0 / np.sqrt(var + eps)
        mean[j] = _corrected_mean(value, correction, across[j] - down)


@compiled
def _replicate(row, left, count):
    """Fill a row on both sides of ``count`` values that begin at ``left``."""
    first, last = row[left], row[left + count - 1]
    row[:left] = first
    row[left + count :] = last


@compiled
def _normalise(row, mean, scale, weight, bias, out):
    for j in range(row.shape[0]):
        out[j] = (np.float64(row[j]) - mean[j]) * (scale[j] * weight) + bias


@compiled
def _combine(operation, row, values, out):
    if operation == 0:
        out[:] = values
    elif operation == 1:
        for j in range(row.shape[0]):
            out[j] = row[j] * values[j]
    elif operation == 2:
        for j in range(row.shape[0]):
            out[j] = row[j] + values[j]
    else:
        for j in range(row.shape[0]):
            out[j] = row[j] - values[j]


# --------------------------------------------------------------------------------------------------- the kernels
#
# Each does the units [start, stop), a unit being a band of a plane's rows (or a plane). Planes are (P, D, H, W): D
# channels share a statistic. ``spoiled[unit]`` tells that a sum ended up NaN or infinite.


@compiled
def _slide(
    x, rows, columns, moments, placed, corrected, coefficients, down, across, bands, means, variances, spoiled,
    start, stop,
):  # fmt: skip
    """Mean, and variance, of the windows that start at every position; ``placed``: one for every position."""
    depth, height, width = x.shape[1:]
    first, second = np.empty(width), np.empty(width)
    sums, squares = np.empty(width + 1), np.empty(width + 1)
    share = 1.0 / (depth * rows * columns)
    above = _before(rows) if placed else 0
    left = _before(columns) if placed else 0
    count, last, lines = width - columns + 1, height - rows, means.shape[1]
    for unit in range(start, stop):
        p, band = unit // bands, unit % bands
        shift = _shift(x[p])
        begin, end = band * lines // bands, (band + 1) * lines // bands
        first[:] = 0.0
        second[:] = 0.0
        top = -1
        for i in range(begin, end):
            at = min(max(i - above, 0), last)
            if at == top:
                means[p, i] = means[p, i - 1]
                if moments:
                    variances[p, i] = variances[p, i - 1]
                continue
            for d in range(depth):
                if top < 0:
                    for k in range(at, at + rows):
                        _enter(x[p, d, k], shift, moments, first, second)
                else:
                    _move(x[p, d, at + rows - 1], x[p, d, at - 1], shift, moments, first, second)
            top = at
            _prefix(first, sums)
            if moments:
                _prefix(second, squares)
            if corrected:
                k = coefficients[p]
                _means_corrected(sums, columns, share, shift, k, across, down[at], means[p, i, left:])
                if moments:
                    line = variances[p, i, left:]
                    _variances_corrected(sums, squares, columns, share, shift, k, across, down[at], line)
            else:
                _means(sums, columns, share, shift, means[p, i, left:])
                if moments:
                    _variances(sums, squares, columns, share, variances[p, i, left:])
            if placed:
                _replicate(means[p, i], left, count)
                if moments:
                    _replicate(variances[p, i], left, count)
        total = first.sum() + (second.sum() if moments else 0.0)
        spoiled[unit] = not np.isfinite(total)


@compiled
def _norm(
    x, rows, columns, weight, bias, eps, corrected, coefficients, down, across, bands, out, spoiled, start, stop
):  # fmt: skip
    """Normalise every position by its window; parameters are of the planes' groups, over and over."""
    depth, height, width = x.shape[1:]
    first, second = np.empty(width), np.empty(width)
    sums, squares = np.empty(width + 1), np.empty(width + 1)
    mean, scale = np.empty(width), np.empty(width)
    share = 1.0 / (depth * rows * columns)
    above, left = _before(rows), _before(columns)
    count, last = width - columns + 1, height - rows
    groups = weight.shape[0]
    for unit in range(start, stop):
        p, band = unit // bands, unit % bands
        group = p % groups
        shift = _shift(x[p])
        first[:] = 0.0
        second[:] = 0.0
        top = -1
        for i in range(band * height // bands, (band + 1) * height // bands):
            at = min(max(i - above, 0), last)
            if at != top:
                for d in range(depth):
                    if top < 0:
                        for k in range(at, at + rows):
                            _enter(x[p, d, k], shift, True, first, second)
                    else:
                        _move(x[p, d, at + rows - 1], x[p, d, at - 1], shift, True, first, second)
                top = at
                _prefixes(first, second, sums, squares)
                # No window's variance exceeds the row's sum of squares.
                if not corrected and eps > 1e-30 and squares[width] * share + eps < 1e30:
                    _scales(sums, squares, columns, share, shift, eps, mean[left:], scale[left:])
                else:
                    _scales_anywhere(
                        sums, squares, columns, share, shift, eps, coefficients[group], across, down[at],
                        mean[left:], scale[left:],
                    )  # fmt: skip
                _replicate(mean, left, count)
                _replicate(scale, left, count)
            for d in range(depth):
                _normalise(x[p, d, i], mean, scale, weight[group, d], bias[group, d], out[p, d, i])
        spoiled[unit] = not np.isfinite(first.sum() + second.sum())


@compiled
def _grid(
    x, tops, lefts, rows, columns, moments, corrected, coefficients, down_weights, across_weights, means, variances,
    spoiled, start, stop,
):  # fmt: skip
    """Mean, and variance, of the windows at ``tops`` × ``lefts``: sums of all rows above, read at their ends."""
    depth, height, width = x.shape[1:]
    first, second = np.empty(width), np.empty(width)
    sums, squares = np.empty(width + 1), np.empty(width + 1)
    share = 1.0 / (depth * rows * columns)
    down, across = tops.shape[0], lefts.shape[0]
    mean, square = np.empty((down, across)), np.empty((down, across))
    for p in range(start, stop):
        shift = _shift(x[p])
        first[:] = 0.0
        second[:] = 0.0
        mean[:] = 0.0
        square[:] = 0.0
        opened = closed = 0
        for i in range(height + 1):
            opens = opened < down and tops[opened] == i
            closes = tops[closed] + rows == i
            if opens or closes:
                _prefix(first, sums)
                if moments:
                    _prefix(second, squares)
                for c in range(across):
                    inside = sums[lefts[c] + columns] - sums[lefts[c]]
                    inside2 = squares[lefts[c] + columns] - squares[lefts[c]] if moments else 0.0
                    if opens:
                        mean[opened, c] -= inside
                        square[opened, c] -= inside2
                    if closes:
                        mean[closed, c] += inside
                        square[closed, c] += inside2
                opened += opens
                closed += closes
            if i < height:
                for d in range(depth):
                    _enter(x[p, d, i], shift, moments, first, second)
        for a in range(down):
            for c in range(across):
                value = mean[a, c] * share
                var = max(square[a, c] * share - value * value, 0.0)
                value += shift
                if corrected:
                    weight = across_weights[c] - down_weights[a]
                    var = _corrected_var(var, value, coefficients[p], weight)
                    value = _corrected_mean(value, coefficients[p], weight)
                means[p, a, c] = value
                if moments:
                    variances[p, a, c] = var
        spoiled[p] = not np.isfinite(first.sum() + (second.sum() if moments else 0.0))


@compiled
def _meet(operation, x, grid, down, down_share, across, across_share, left, out, start, stop):
    """``x`` with the value of each position's window: one of ``grid``, or linear between those around it.

    ``down``, ``across``: for each row and column the window below and above. ``left``: −1, or where on the row
    the grid's own row lies, each window on its position.
    """
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
                    _replicate(values, left, grid.shape[2])
                    ready = a
                _combine(operation, x[p, i], values, out[p, i])
                continue
            if a != ready:
                if a == done:
                    lower[:] = upper
                else:
                    _widen(grid[p, a], across, across_share, one, lower)
                ready = a
            if t == 0:
                _combine(operation, x[p, i], lower, out[p, i])
                continue
            if b != done:
                _widen(grid[p, b], across, across_share, one, upper)
                done = b
            s = one - t
            for j in range(width):
                values[j] = s * lower[j] + t * upper[j]
            _combine(operation, x[p, i], values, out[p, i])


@compiled
def _widen(row, across, share, one, out):
    """A row of the grid at every column; a share of zero reads one window only, whatever is in the other."""
    for j in range(out.shape[0]):
        t = share[j]
        low = row[across[j, 0]]
        out[j] = low if t == 0 else (one - t) * low + t * row[across[j, 1]]


# Elements of a staged piece.
STAGED = 2**22


def _bands(planes: int, lines: int, rows: int) -> int:
    """Bands into which a plane's lines are cut: more than one where planes are few and starting one is cheap."""
    if planes >= 12:
        return 1
    return max(1, min(-(-16 // planes), lines // 16, max(-(-4 // planes), 2 * lines // rows)))


# ------------------------------------------------------------------------------------------- from tensors to planes


def _over(
    x: Tensor, outs: list[Tensor], run: Callable[[Tensor, list[Tensor], int], list[int]], spare: Callable[..., Any]
) -> None:
    """``run(planes, outs, first)`` on all planes of (N, K, …), at once or copied piece by piece.

    Half types and maps that are not contiguous are copied. ``run`` returns the planes that are spoiled;
    ``spare(planes, first)`` gives their results.
    """
    dtype = _work_dtype(x)
    batch, kept = x.shape[:2]
    straight = x.dtype == dtype and x.is_contiguous() and all(o.is_contiguous() and o.dtype == dtype for o in outs)
    if straight:
        pieces = [(slice(0, batch), slice(0, kept))]
    else:
        size = math.prod(x.shape[2:])
        step = max(16 if x.stride(1) == 1 else 1, STAGED // size)
        images = max(1, step // kept)
        pieces = [
            (slice(n, n + images), slice(k, min(k + step, kept)))
            for n in range(0, batch, images)
            for k in range(0, kept, step)
        ]
    for at in pieces:
        part = x[at].to(dtype).contiguous()
        results = [o[at] if straight else torch.empty(o[at].shape, dtype=dtype) for o in outs]
        planes = part.reshape(-1, *x.shape[2:])
        flat = [o.view(-1, *o.shape[2:]) for o in results]
        first = (at[0].start or 0) * kept + at[1].start
        for p in run(planes, flat, first):
            again = spare(planes[p : p + 1], first + p)
            for o, value in zip(flat, again, strict=True):
                o[p] = value[0]
        if not straight:
            for o, result in zip(outs, results, strict=True):
                o[at] = result


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty(x: Tensor) -> Tensor:
    """An output in the shape and memory format of ``x``."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty(
        x.shape, dtype=x.dtype, memory_format=torch.channels_last if last else torch.contiguous_format
    )


def _clipped(window: tuple[int, int], x: Tensor) -> tuple[int, int]:
    return min(window[0], x.shape[-2]), min(window[1], x.shape[-1])


def _spoiled(flags: np.ndarray, planes: int) -> list[int]:
    return np.flatnonzero(flags.reshape(planes, -1).any(1)).tolist() if flags.any() else []


def _statistics(
    x: Tensor, outs: list[Tensor], window: tuple[int, int], placed: bool, correction: Correction | None = None
) -> None:
    """Means into ``outs[0]`` and variances into ``outs[1]``, if it is there, of (N, K, H, W) or (N, K, D, H, W)."""
    rows, columns = _clipped(window, x)
    moments = len(outs) > 1

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        stack = planes.reshape(len(planes), -1, *planes.shape[-2:])
        bands = _bands(len(stack), flat[0].shape[1], rows)
        spoiled = np.zeros(len(stack) * bands, np.bool_)
        means, variances = flat[0].numpy(), flat[-1].numpy()
        args = (
            stack.numpy(),
            rows,
            columns,
            moments,
            placed,
            correction is not None,
            coefficients[first:],
            *weights,
            bands,
            means,
            variances,
            spoiled,
        )
        share_out(_slide, args, len(spoiled), planes.numel())
        return _spoiled(spoiled, len(stack))

    def spare(planes: Tensor, first: int) -> tuple[Tensor, ...]:
        maps, own = planes.unsqueeze(0), _of_plane(correction, first % x.shape[1])
        if moments:
            var, mean = _reference.grid_moments(maps, window, 1, own)
        else:
            var = mean = _reference.grid_means(maps, window, 1, own)
        if placed:
            var, mean = (_reference.place(value, window, 1, *x.shape[-2:]) for value in (var, mean))
        return (mean[0], var[0])[: len(outs)]

    coefficients = np.tile(_coefficients(correction, x.shape[1]), (x.shape[0], 1))
    weights = _weights(rows, columns, x.shape[-2] - rows + 1, x.shape[-1] - columns + 1)
    _over(x, outs, run, spare)


_NONE = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def _coefficients(correction: Correction | None, channels: int) -> np.ndarray:
    """A correction as (channels, 8); one that changes nothing where there is none."""
    if correction is None:
        return np.tile(_NONE, (channels, 1))
    return np.stack([values.detach().double().numpy() for values in correction], 1)


def _of_plane(correction: Correction | None, channel: int) -> Correction | None:
    return None if correction is None else correction.planes(slice(channel, channel + 1))


@lru_cache(256)
def _weights(rows: int, columns: int, down: int, across: int) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract for each row of windows, and from what for each column: the outline inside the map."""
    touched = np.zeros(down), np.zeros(across)
    for ends in touched:
        ends[0] += 1
        ends[-1] += 1
    outline = 2 * (rows + columns)
    return touched[0] * columns / outline, 1 - touched[1] * rows / outline


def _on_grid(
    x: Tensor, outs: list[Tensor], window: tuple[int, int], stride: int, correction: Correction | None = None
) -> None:
    """As :func:`_statistics`, of the windows on the grid of ``stride``."""
    rows, columns = _clipped(window, x)
    tops, lefts = _starts(x.shape[-2], rows, stride), _starts(x.shape[-1], columns, stride)
    moments = len(outs) > 1

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        stack = planes.reshape(len(planes), -1, *planes.shape[-2:])
        spoiled = np.zeros(len(stack), np.bool_)
        means, variances = flat[0].numpy(), flat[-1].numpy()
        args: Any = (stack.numpy(), tops, lefts, rows, columns, moments, correction is not None)
        args += coefficients[first:], *weights, means, variances, spoiled
        share_out(_grid, args, len(stack), planes.numel())
        return _spoiled(spoiled, len(stack))

    def spare(planes: Tensor, first: int) -> tuple[Tensor, ...]:
        own = _of_plane(correction, first % x.shape[1])
        if moments:
            var, mean = _reference.grid_moments(planes.unsqueeze(0), window, stride, own)
            return mean[0], var[0]
        return (_reference.grid_means(planes.unsqueeze(0), window, stride, own)[0],)

    coefficients = np.tile(_coefficients(correction, x.shape[1]), (x.shape[0], 1))
    weights = _weights(rows, columns, len(tops), len(lefts))
    _over(x, outs, run, spare)


@lru_cache(256)
def _starts(n: int, k: int, stride: int) -> np.ndarray:
    """Where the evaluated windows of an axis start."""
    return np.asarray(Axis(n, k, stride).evaluated, np.int64)


@lru_cache(256)
def _readings(n: int, k: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """For each position the evaluated windows on either side of its own (n, 2), and the second one's share."""
    below, above, share = Axis(n, k, stride).between()
    return np.stack([below, above], 1), share


# --------------------------------------------------------------------------------- what the dispatcher calls


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.local_mean`."""
    out = _empty(x)
    if stride == 1:
        _statistics(x, [out], window, True, correction)
        return out
    grid = _new_grid(x, window, stride, _work_dtype(x))
    _on_grid(x, [grid], window, stride, correction)
    return _met(x, grid, window, stride, "take", out)


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.local_var_mean`."""
    mean, var = _empty(x), _empty(x)
    _statistics(x, [mean, var], window, True)
    return var, mean


def local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correction: Correction | None = None,
) -> Tensor:
    """As :func:`tlsc._reference.local_group_norm`."""
    rows, columns = _clipped(window, x)
    depth = x.shape[1] // num_groups
    scale, offset = (
        np.full((num_groups, depth), default)
        if values is None
        else values.detach().double().reshape(num_groups, depth).contiguous().numpy()
        for values, default in ((weight, 1.0), (bias, 0.0))
    )
    coefficients = _coefficients(correction, num_groups)
    weights = _weights(rows, columns, x.shape[-2] - rows + 1, x.shape[-1] - columns + 1)

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        bands = _bands(len(planes), planes.shape[2], rows)
        spoiled = np.zeros(len(planes) * bands, np.bool_)
        turn = first % num_groups  # a piece may begin in the middle of an image
        parameters = [
            np.ascontiguousarray(np.roll(values, -turn, 0)) if turn else values
            for values in (scale, offset, coefficients)
        ]
        args = (
            planes.numpy(),
            rows,
            columns,
            parameters[0],
            parameters[1],
            eps,
            correction is not None,
            parameters[2],
            *weights,
            bands,
            flat[0].numpy(),
            spoiled,
        )
        share_out(_norm, args, len(spoiled), planes.numel())
        return _spoiled(spoiled, len(planes))

    def spare(planes: Tensor, first: int) -> tuple[Tensor, ...]:
        group = first % num_groups
        part = slice(group * depth, (group + 1) * depth)
        scaled, moved = (None if values is None else values[part] for values in (weight, bias))
        corrected = _of_plane(correction, group)
        return (_reference.local_group_norm(planes, window, 1, scaled, moved, eps, corrected),)

    out = _empty(x)
    split, split_out = (torch.unflatten(maps, 1, (num_groups, depth)) for maps in (x, out))
    _over(split, [split_out], run, spare)
    return out


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.grid_means`."""
    out = _new_grid(x, window, stride, x.dtype)
    if stride == 1:
        _statistics(x, [out], window, False, correction)
    else:
        _on_grid(x, [out], window, stride, correction)
    return out


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.grid_moments`."""
    mean, var = (_new_grid(x, window, stride, x.dtype) for _ in range(2))
    if stride == 1:
        _statistics(x, [mean, var], window, False, correction)
    else:
        _on_grid(x, [mean, var], window, stride, correction)
    return var, mean


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """As :func:`tlsc._reference.meet`."""
    return _met(x, grid, window, stride, operation, _empty(x))


def _new_grid(x: Tensor, window: tuple[int, int], stride: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((*x.shape[:2], *Windows.of(x.shape[-2:], window, stride).grid), dtype=dtype)


def _met(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str, out: Tensor) -> Tensor:
    rows, columns = _clipped(window, x)
    dtype = _work_dtype(x)
    number = np.float64 if dtype == torch.float64 else np.float32
    down, down_share = _readings(x.shape[2], rows, stride)
    across, across_share = _readings(x.shape[3], columns, stride)
    down_share, across_share = down_share.astype(number), across_share.astype(number)
    left = before(columns) if stride == 1 else -1
    grid = grid.detach()
    values = grid.reshape(-1, *grid.shape[2:])

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        part = values[first : first + len(planes)].to(dtype).contiguous()
        args = (OPERATIONS[operation], planes.numpy(), part.numpy(), down, down_share, across, across_share, left)
        share_out(_meet, (*args, flat[0].numpy()), len(planes), planes.numel())
        return []

    _over(x, [out], run, lambda *_: ())
    return out

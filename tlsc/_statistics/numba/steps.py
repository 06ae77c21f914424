"""What a kernel does with one row: enter it, move on by it, read windows off the columns' sums, write it.

Indices are slices wherever they are not a loop's own variable: an index that might be negative is Python's from
the end, and the test for that keeps the compiler from vectorising (3 to 5 times slower). All is float64, whatever
the map's precision.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .compiling import compiled

__all__ = [
    "combine",
    "corrected_mean",
    "corrected_var",
    "enter",
    "means",
    "means_corrected",
    "move",
    "normalise",
    "replicate",
    "scales",
    "scales_corrected",
    "scales_of_any_size",
    "shift_of",
    "variances",
    "variances_corrected",
    "widen",
]

step = partial(compiled, inside=True)

# ------------------------------------------------------------------------------------------- sums of columns


@step
def shift_of(planes):
    """About the mean of (D, H, W), from a coarse sample; exactly the value of a constant plane."""
    depth, height, width = planes.shape
    rows, columns = max(1, height // 8), max(1, width // 8)
    total, count = 0.0, 0
    for d in range(depth):
        for i in range(rows // 2, height, rows):
            for j in range(columns // 2, width, columns):
                total += np.float64(planes[d, i, j])
                count += 1
    mean = total / count
    return mean if np.isfinite(mean) else 0.0


@step
def enter(plane, start, stop, shift, moments, first, second):
    """Add the rows [start, stop) of a plane to the columns' sums, and their squares.

    One after the other: rows follow each other in memory, and the processor reads ahead of what is read in order.
    """
    for k in range(start, stop):
        row = plane[k]
        if moments:
            for j in range(row.shape[0]):
                value = np.float64(row[j]) - shift
                first[j] += value
                second[j] += value * value
        else:
            for j in range(row.shape[0]):
                first[j] += np.float64(row[j]) - shift


@step
def move(enters, leaves, shift, moments, first, second):
    """Add one row to the columns' sums and take another out."""
    if moments:
        for j in range(enters.shape[0]):
            new, old = np.float64(enters[j]) - shift, np.float64(leaves[j]) - shift
            more = new - old
            first[j] += more
            second[j] += more * (new + old)
    else:
        for j in range(enters.shape[0]):
            first[j] += np.float64(enters[j]) - np.float64(leaves[j])


# ------------------------------------------------------------------------------------- from sums to statistics


@step
def means(sums, share, shift, out):
    for j in range(out.shape[0]):
        out[j] = sums[j] * share + shift


@step
def variances(sums, squares, share, out):
    for j in range(out.shape[0]):
        mean = sums[j] * share
        out[j] = max((squares[j] - sums[j] * mean) * share, 0.0)


@step
def corrected_mean(mean, correction, weight):
    """See :class:`tlsc._statistics.correction.Correction`, whose rows are the entries here."""
    clipped = min(max(mean, correction[6]), correction[7])
    return mean + weight * ((correction[3] - 1.0) * clipped + correction[4])


@step
def corrected_var(var, mean, correction, weight):
    clipped = min(max(mean, correction[6]), correction[7])
    more = (correction[0] - 1.0) * min(var, correction[5]) + correction[1] + correction[2] * (clipped * clipped)
    return max(var + weight * more, 0.0)


@step
def means_corrected(sums, share, shift, correction, across, down, out):
    """:func:`means`, corrected with the weights ``across − down``."""
    for j in range(out.shape[0]):
        out[j] = corrected_mean(sums[j] * share + shift, correction, across[j] - down)


@step
def variances_corrected(sums, squares, share, shift, correction, across, down, out):
    for j in range(out.shape[0]):
        mean = sums[j] * share
        var = max((squares[j] - sums[j] * mean) * share, 0.0)
        out[j] = corrected_var(var, mean + shift, correction, across[j] - down)


def _scales(sums, squares, share, shift, eps, mean, scale):
    """Means and ``1/sqrt(var + eps)``, where single precision holds it: an estimate and a step of Newton's, right
    to 44 bits or more."""
    one = np.float32(1.0)
    for j in range(mean.shape[0]):
        value = sums[j] * share
        moved = max((squares[j] - sums[j] * value) * share + eps, eps)
        guess = np.float64(one / np.sqrt(np.float32(moved)))
        scale[j] = guess * (1.5 - 0.5 * moved * guess * guess)
        mean[j] = value + shift


scales = compiled(_scales, estimates=True, inside=True)


@step
def scales_of_any_size(sums, squares, share, shift, eps, mean, scale):
    """The same beyond the range of single precision."""
    for j in range(mean.shape[0]):
        value = sums[j] * share
        var = max((squares[j] - sums[j] * value) * share, 0.0)
        scale[j] = 1.0 / np.sqrt(var + eps)
        mean[j] = value + shift


@step
def scales_corrected(sums, squares, share, shift, eps, correction, across, down, mean, scale):
    """The same with a correction."""
    for j in range(mean.shape[0]):
        value = sums[j] * share
        var = max((squares[j] - sums[j] * value) * share, 0.0)
        value += shift
        var = corrected_var(var, value, correction, across[j] - down)
        scale[j] = 1.0 / np.sqrt(var + eps)
        mean[j] = corrected_mean(value, correction, across[j] - down)


# ------------------------------------------------------------------------------------------------ rows of results


@step
def replicate(row, left, count):
    """Fill a row on both sides of ``count`` values that begin at ``left``."""
    first, last = row[left], row[left + count - 1]
    row[:left] = first
    row[left + count :] = last


@step
def normalise(row, mean, scale, weight, bias, out):
    for j in range(row.shape[0]):
        out[j] = (np.float64(row[j]) - mean[j]) * (scale[j] * weight) + bias


@step
def combine(operation, row, values, out):
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


@step
def widen(row, across, share, one, out):
    """A row of the grid at every column; a share of zero reads one window only, whatever is in the other."""
    for j in range(out.shape[0]):
        t = share[j]
        low = row[across[j, 0]]
        out[j] = low if t == 0 else (one - t) * low + t * row[across[j, 1]]

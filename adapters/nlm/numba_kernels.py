"""Non-local means on the CPU, loaded when first used: this needs Numba.

As in :mod:`.torch_form` half of the shifts are gone through, and patches are summed by additions alone.

The work is cut into strips of rows. A strip owns the pairs (position, shift) whose position lies in it, and is run
by one thread for all shifts, so that its rows stay in the cache. A pair writes below its strip, too, so the even
strips run first and the odd ones after them: no two threads ever write the same row, and the order of the additions
(hence the result, to the last bit) does not depend on the number of threads, which are those of
:mod:`tlsc._statistics.numba.threads`.

Loops are short and over rows, with few arrays each, because that is what LLVM vectorises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from tlsc._internal.numba_tools import compiled, share_out

__all__ = ["backward", "forward"]

Array = npt.NDArray[Any]

STRIP_ROWS = 64  # measured: 32 to 128 are alike, 512 takes half as long again, out of the cache
COST = 1 / 128  # of a shift, beside that of local statistics: what is worth a second thread


@intrinsic
def _power_of_two(typing_context: Any, shifted: Any) -> Any:
    """2^n from ``n + 1.5 · 2^mantissa``, whose low bits are the integer n."""
    if shifted == types.float32:
        integer, real, exponent_bias, mantissa = ir.IntType(32), ir.FloatType(), 127, 23
    else:
        integer, real, exponent_bias, mantissa = ir.IntType(64), ir.DoubleType(), 1023, 52

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], integer)
        bits = builder.add(bits, ir.Constant(integer, exponent_bias))
        bits = builder.shl(bits, ir.Constant(integer, mantissa))
        return builder.bitcast(bits, real)

    return shifted(shifted), generate


def _exp_minus(t: Any) -> Any:
    """exp(−t) for t ≥ 0, to the last bits of its type; in a form that LLVM vectorises, unlike ``math.exp``."""
    raise NotImplementedError


@overload(_exp_minus, inline="always", jit_options={"fastmath": {"contract"}})
def _overload_exp_minus(t: Any) -> Any:
    single = t == types.float32
    real: Any = np.float32 if single else np.float64
    # ln 2 in two parts, the first with few bits, so that n · high is exact.
    high = real(0.693359375 if single else 6.93147180369123816490e-01)
    low = real(math.log(2) - 0.693359375 if single else 1.90821492927058770002e-10)
    inverse, zero = real(1 / math.log(2)), real(0)
    offset, end = real(1.5 * 2.0 ** (23 if single else 52)), real(87 if single else 708)
    power_of_two: Any = _power_of_two
    c = [real(1 / math.factorial(i)) for i in range(14)]
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = c

    def short(t: Any) -> Any:
        far = t > end
        x = -(end if far else t)
        shifted = x * inverse + offset
        n = shifted - offset
        r = (x - n * high) - n * low
        p = ((((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1) * r + c0
        return zero if far else p * power_of_two(shifted)

    def long(t: Any) -> Any:
        far = t > end
        x = -(end if far else t)
        shifted = x * inverse + offset
        n = shifted - offset
        r = (x - n * high) - n * low
        p = (((((c13 * r + c12) * r + c11) * r + c10) * r + c9) * r + c8) * r + c7
        p = ((((((p * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1) * r + c0
        return zero if far else p * power_of_two(shifted)

    return short if single else long


@compiled
def _squared_difference(a: Array, b: Array, out: Array) -> None:
    for j in range(out.size):
        d = a[j] - b[j]
        out[j] = d * d


@compiled
def _add_squared_difference(a: Array, b: Array, out: Array) -> None:
    for j in range(out.size):
        d = a[j] - b[j]
        out[j] += d * d


@compiled
def _add(a: Array, b: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] = a[j] + b[j]


@compiled
def _accumulate(a: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] += a[j]


@compiled
def _row_sums(row: Array, spare: Array, out: Array, size: int) -> None:
    """``out[j] = Σ row[j : j + size]`` from sums of 1, 2, 4, … elements; overwrites ``row`` and ``spare``.

    Additions alone, so that equal patches have distance exactly 0 and a NaN stays in its windows; a running sum
    that also subtracts has neither.
    """
    n = out.size
    done = 0
    length = 1
    a = row
    b = spare
    while True:
        if size & length:
            if done == 0:
                out[:] = a[:n]
            else:
                _accumulate(a[done : done + n], out)
            done += length
        if done == size:
            return
        valid = n + size - 2 * length
        _add(a[:valid], a[length : length + valid], b[:valid])
        a, b = b, a
        length *= 2


@compiled
def _column_sums(rows: Array, spare: Array, count: int, size: int, n: int) -> None:
    """``rows[i] = Σ rows[i : i + size]`` for ``count`` rows, n wide: three additions an element for any size.

    Within blocks of ``size`` rows the sums to the block's end are formed in place, from below; a window is one of
    them plus the beginning of the next block, which ``spare`` accumulates. ``rows`` has ``count + size - 1`` rows.
    """
    for start in range(0, count, size):
        for i in range(start + size - 2, start - 1, -1):
            _accumulate(rows[i + 1, :n], rows[i, :n])
        spare[:n] = 0
        for i in range(start + 1, min(start + size, count)):
            _accumulate(rows[i + size - 1, :n], spare[:n])
            _accumulate(spare[:n], rows[i, :n])


@compiled
def _squared_column_distances(
    y: Array, dy: int, dx: int, top: int, rows: int, left: int, wide: int, patch: int, out: Array, spare: Array
) -> None:
    """Squared differences to the shift (dy, dx), summed over columns of a patch around rows top, top + 1, …"""
    for i in range(rows + patch - 1):
        k = top - patch // 2 + i
        for c in range(y.shape[0]):
            here, there = y[c, k, left : left + wide], y[c, k + dy, left + dx : left + dx + wide]
            if c == 0:
                _squared_difference(here, there, out[i, :wide])
            else:
                _add_squared_difference(here, there, out[i, :wide])
    _column_sums(out, spare, rows, patch, wide)


@compiled
def _measure(squared: Array, power: int, floor: Any) -> None:
    """In place, d^power from the sum over the patch."""
    zero = squared.dtype.type(0)
    if floor != zero:
        for j in range(squared.size):
            excess = squared[j] - floor
            squared[j] = zero if excess < zero else excess
    if power == 1:
        for j in range(squared.size):
            squared[j] = np.sqrt(squared[j])


@compiled
def _weights(measure: Array, rate: Any, out: Array) -> None:
    for j in range(out.size):
        out[j] = _exp_minus(measure[j] * rate)


@compiled
def _weights_of_map(measure: Array, rate: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] = _exp_minus(measure[j] * rate[j])


@compiled
def _weights_of_row(measure: Array, rate: Array, p: int, q: int, a: int, dx: int, weight: Array) -> Any:
    """Weights of the neighbours in row q in the means at row p, and of p's in those at q: rows of ``weight``."""
    n = measure.size
    if rate.size == 1:
        _weights(measure, rate[0, 0], weight[0, :n])
        return weight[0, :n], weight[0, :n]
    _weights_of_map(measure, rate[p, a : a + n], weight[0, :n])
    _weights_of_map(measure, rate[q, a + dx : a + dx + n], weight[1, :n])
    return weight[0, :n], weight[1, :n]


@compiled
def _rows_of_strip(first: int, last: int, height: int, margin: int, dy: int) -> Any:
    """Rows [low, high) of a strip whose pairs with the rows ``dy`` below touch the image."""
    return max(first, margin - dy), min(last, height - margin)


@compiled
def _columns_of_shift(width: int, margin: int, dx: int) -> Any:
    """The first of the columns whose pairs with those ``dx`` to the right touch the image, and their number."""
    return margin - max(dx, 0), width - 2 * margin + abs(dx)


@compiled
def _add_weighted_difference(weight: Array, there: Array, here: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] += weight[j] * (there[j] - here[j])


@compiled
def _add_product(weight: Array, value: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] += weight[j] * value[j]


@compiled
def _forward_strip(
    x: Array,
    y: Array,
    rate: Array,
    search: int,
    patch: int,
    power: int,
    floor: Any,
    first: int,
    last: int,
    num: Array,
    den: Array,
) -> None:
    """Adds the pairs whose position lies in rows [first, last) of the extended image to ``num`` and ``den``."""
    channels, height, width = x.shape
    radius, half = search // 2, patch // 2
    margin = radius + half
    rows = np.empty((last - first + patch - 1, width), x.dtype)
    spare = np.empty(width, x.dtype)
    measures = np.empty(width, x.dtype)
    weight = np.empty((2, width), x.dtype)
    for dy in range(radius + 1):
        low, high = _rows_of_strip(first, last, height, margin, dy)
        if low >= high:
            continue
        for dx in range(-radius if dy else 1, radius + 1):
            a, n = _columns_of_shift(width, margin, dx)
            b = a + n
            _squared_column_distances(y, dy, dx, low, high - low, a - half, n + patch - 1, patch, rows, spare)
            for i in range(high - low):
                p, q = low + i, low + i + dy
                measure = measures[:n]
                _row_sums(rows[i], spare, measure, patch)
                _measure(measure, power, floor)
                here, there = _weights_of_row(measure, rate, p, q, a, dx, weight)
                for c in range(channels):
                    at_p, at_q = x[c, p, a:b], x[c, q, a + dx : b + dx]
                    _add_weighted_difference(here, at_q, at_p, num[c, p, a:b])
                    _add_weighted_difference(there, at_p, at_q, num[c, q, a + dx : b + dx])
                _accumulate(here, den[p, a:b])
                _accumulate(there, den[q, a + dx : b + dx])


@compiled
def _add_products_of_differences(g: Array, there: Array, here: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] += g[j] * (there[j] - here[j])


@compiled
def _times(a: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] *= a[j]


@compiled
def _negative(a: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] = -a[j]


@compiled
def _scaled_sum(a: Array, b: Array, scale: Any, out: Array) -> None:
    for j in range(out.size):
        out[j] = (a[j] + b[j]) * scale


@compiled
def _subtract_product(a: Array, b: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] -= a[j] * b[j]


@compiled
def _patch_gradient(
    measure: Array,
    from_p: Array,
    from_q: Array,
    rate: Array,
    p: int,
    q: int,
    a: int,
    dx: int,
    power: int,
    out: Array,
) -> None:
    """Minus the gradient of d^power, over what the guide's differences are to be multiplied by."""
    n = measure.size
    if rate.size == 1:
        _scaled_sum(from_p, from_q, -rate[0, 0], out)
    else:
        _negative(from_p, out)
        _times(rate[p, a : a + n], out)
        _subtract_product(from_q, rate[q, a + dx : a + dx + n], out)
    zero = measure.dtype.type(0)
    if power == 1:
        for j in range(out.size):
            out[j] = zero if measure[j] == zero else out[j] / measure[j]
    else:
        for j in range(out.size):
            out[j] = zero if measure[j] == zero else out[j] + out[j]


@compiled
def _add_guide_gradient(g: Array, here: Array, there: Array, spare: Array, out: Array, out_there: Array) -> None:
    for j in range(spare.size):
        spare[j] = g[j] * (here[j] - there[j])
    for j in range(out.size):
        out[j] += spare[j]
    for j in range(out_there.size):
        out_there[j] -= spare[j]


@compiled
def _spread_over_patches(
    flow: Array,
    y: Array,
    dy: int,
    dx: int,
    top: int,
    rows: int,
    left: int,
    wide: int,
    patch: int,
    spare: Array,
    grad_y: Array,
) -> None:
    """What each distance passes on (``flow``, from row ``patch - 1`` on) reaches all pixels of both patches."""
    n = wide - patch + 1
    flow[: patch - 1] = 0
    flow[rows + patch - 1 : rows + 2 * (patch - 1)] = 0
    _column_sums(flow, spare[0], rows + patch - 1, patch, n)
    right = left + wide
    for i in range(rows + patch - 1):
        p, q = top + i, top + i + dy
        padded = spare[0, : wide + patch - 1]
        padded[: patch - 1] = 0
        padded[patch - 1 : wide] = flow[i, :n]
        padded[wide:] = 0
        _row_sums(padded, spare[1], flow[i, :wide], patch)
        for c in range(y.shape[0]):
            _add_guide_gradient(
                flow[i, :wide],
                y[c, p, left:right],
                y[c, q, left + dx : right + dx],
                spare[0, :wide],
                grad_y[c, p, left:right],
                grad_y[c, q, left + dx : right + dx],
            )


@compiled
def _backward_strip(
    x: Array,
    y: Array,
    rate: Array,
    search: int,
    patch: int,
    power: int,
    floor: Any,
    first: int,
    last: int,
    g: Array,
    g_mean: Array,
    needs_image: bool,
    grad_x: Array,
    grad_y: Array,
    grad_h: Array,
) -> None:
    """Adds what the pairs of rows [first, last) contribute. ``g`` is the gradient over the weights' sum, zero
    outside the image; ``g_mean`` its product with (mean − x), summed over channels. ``grad_h`` lacks a factor of
    power / h^(power + 1)."""
    channels, height, width = x.shape
    radius, half = search // 2, patch // 2
    margin = radius + half
    rows = np.empty((last - first + patch - 1, width), x.dtype)
    flow = np.empty((last - first + 2 * (patch - 1), width), x.dtype)
    spare = np.empty((2, width + patch), x.dtype)
    measures = np.empty(width, x.dtype)
    weight = np.empty((2, width), x.dtype)
    grad_weight = np.empty((2, width), x.dtype)
    for dy in range(radius + 1):
        low, high = _rows_of_strip(first, last, height, margin, dy)
        if low >= high:
            continue
        for dx in range(-radius if dy else 1, radius + 1):
            a, n = _columns_of_shift(width, margin, dx)
            b, wide = a + n, n + patch - 1
            _squared_column_distances(y, dy, dx, low, high - low, a - half, wide, patch, rows, spare[0])
            for i in range(high - low):
                p, q = low + i, low + i + dy
                measure = measures[:n]
                _row_sums(rows[i], spare[0], measure, patch)
                _measure(measure, power, floor)
                here, there = _weights_of_row(measure, rate, p, q, a, dx, weight)
                from_p, from_q = grad_weight[0, :n], grad_weight[1, :n]
                _negative(g_mean[p, a:b], from_p)
                _negative(g_mean[q, a + dx : b + dx], from_q)
                for c in range(channels):
                    at_p, at_q = x[c, p, a:b], x[c, q, a + dx : b + dx]
                    g_p, g_q = g[c, p, a:b], g[c, q, a + dx : b + dx]
                    _add_products_of_differences(g_p, at_q, at_p, from_p)
                    _add_products_of_differences(g_q, at_p, at_q, from_q)
                    if needs_image:
                        _add_product(here, g_p, grad_x[c, q, a + dx : b + dx])
                        _add_product(there, g_q, grad_x[c, p, a:b])
                _times(here, from_p)
                _times(there, from_q)
                _add_product(from_p, measure, grad_h[p, a:b])
                _add_product(from_q, measure, grad_h[q, a + dx : b + dx])
                if needs_image:
                    out = flow[i + patch - 1, :n]
                    _patch_gradient(measure, from_p, from_q, rate, p, q, a, dx, power, out)
            if needs_image:
                _spread_over_patches(flow, y, dy, dx, low - half, high - low, a - half, wide, patch, spare, grad_y)


# The kernels: strips [start, stop) of all those of one parity, counted through the batch.


@compiled
def _strip(unit: int, height: int, search: int, patch: int, size: int, parity: int) -> Any:
    """Which image a unit of work belongs to, and its rows [first, last)."""
    begin, end = patch // 2, height - search // 2 - patch // 2
    strips = (-((begin - end) // size) + 1 - parity) // 2
    first = begin + (2 * (unit % strips) + parity) * size
    return unit // strips, first, min(first + size, end)


@compiled
def _forward(
    x: Array,
    y: Array,
    rate: Array,
    search: int,
    patch: int,
    power: int,
    floor: Any,
    num: Array,
    den: Array,
    size: int,
    parity: int,
    start: int,
    stop: int,
) -> None:
    for unit in range(start, stop):
        n, first, last = _strip(unit, x.shape[2], search, patch, size, parity)
        _forward_strip(x[n], y[n], rate[n], search, patch, power, floor, first, last, num[n], den[n])


@compiled
def _backward(
    x: Array,
    y: Array,
    rate: Array,
    search: int,
    patch: int,
    power: int,
    floor: Any,
    g: Array,
    g_mean: Array,
    needs_image: bool,
    grad_x: Array,
    grad_y: Array,
    grad_h: Array,
    size: int,
    parity: int,
    start: int,
    stop: int,
) -> None:
    for unit in range(start, stop):
        n, first, last = _strip(unit, x.shape[2], search, patch, size, parity)
        grads = (grad_x[n], grad_y[n], grad_h[n])
        of_mean = (g[n], g_mean[n], needs_image)
        _backward_strip(x[n], y[n], rate[n], search, patch, power, floor, first, last, *of_mean, *grads)


def _run(kernel: Callable[..., None], x: Tensor, search: int, patch: int, args: tuple[Any, ...]) -> None:
    """All strips of all images, even ones first."""
    margin = search // 2 + patch // 2
    size = max(STRIP_ROWS, margin + patch)  # what one strip writes must end before the next but one begins
    strips = -((patch // 2 + margin - x.shape[2]) // size)
    for parity in (0, 1):
        units = x.shape[0] * ((strips + 1 - parity) // 2)
        if units:
            share_out(kernel, (*args, size, parity), units, int(x.numel() * search**2 * COST))


def _settings(x: Tensor, y: Tensor, rate: Tensor, search: int, patch: int, power: int, floor: float) -> Any:
    x_array = _array(x)
    return x_array, _array(y), _array(rate), search, patch, power, x_array.dtype.type(floor)


def forward(
    x: Tensor, y: Tensor, rate: Tensor, search: int, patch: int, power: int, floor: float, num: Tensor, den: Tensor
) -> None:
    """Adds all pairs but the zero shift to ``num`` (N, C, H, W) and ``den`` (N, H, W), in extended coordinates."""
    settings = _settings(x, y, rate, search, patch, power, floor)
    _run(_forward, x, search, patch, (*settings, _array(num), _array(den)))


def backward(
    x: Tensor,
    y: Tensor,
    rate: Tensor,
    search: int,
    patch: int,
    power: int,
    floor: float,
    g: Tensor,
    g_mean: Tensor,
    needs_image: bool,
    grad_x: Tensor,
    grad_y: Tensor,
    grad_h: Tensor,
) -> None:
    """Adds all pairs but the zero shift to the three gradients, as :func:`_backward_strip` says."""
    settings = _settings(x, y, rate, search, patch, power, floor)
    grads = (_array(t) for t in (grad_x, grad_y, grad_h))
    _run(_backward, x, search, patch, (*settings, _array(g), _array(g_mean), needs_image, *grads))


def _array(tensor: Tensor) -> Array:
    """Its memory as an array; all are contiguous, or what is written would be lost."""
    array: Array = tensor.detach().numpy()
    return array

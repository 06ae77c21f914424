"""Local statistics on NVIDIA GPUs, in Triton, without float64 (unless the map itself is float64).

Two passes and a third that uses their result: columns walk down (:func:`_down`), every lane one column; the sums of
each row of windows are then taken along the row, tile by tile (:func:`_along`); last, every position reads its
window's value (:func:`_place`, :func:`_normalise`). Running sums are pairs of floats (Knuth's two-sum, about 48
bits), of ``(x − shift)/scale`` with both from a coarse sample of each plane, so that neither a large mean nor
large values spoil them. A NaN or Inf shows at the end of its column: that plane is computed again by
:mod:`tlsc._statistics.reference`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference as _reference
from ..correction import Correction

__all__ = ["grid_means", "grid_moments", "local_group_norm", "local_mean", "local_var_mean", "meet"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OPERATIONS = {"take": 0, "mul": 1, "add": 2, "sub": 3}
# The interpreter runs one program after the other, each step on whole blocks: few large ones are faster there.
LANES = 1024 if INTERPRETED else 128
TILE_ROWS, TILE_COLUMNS = (64, 16) if INTERPRETED else (4, 64)


def why_unusable() -> str | None:
    """Why the kernels cannot run here."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no NVIDIA GPU, and TRITON_INTERPRET=1 was not set before Triton was imported"


def why_not(x: Tensor) -> str | None:
    """Why this tensor cannot be taken."""
    if x.device.type == ("cpu" if INTERPRETED else "cuda"):
        return None
    return f"runs on {'the CPU (interpreted)' if INTERPRETED else 'CUDA devices'}, and the tensor is on {x.device}"


@triton.jit
def _plus(high, low, value):
    """A pair of floats plus a float, by Knuth's two-sum."""
    total, rest = _two_sum(high, value)
    return total, low + rest


@triton.jit
def _two_sum(a, b):
    """``a + b`` and what rounding took from it."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@triton.jit
def _two_product(a, b, TYPE: tl.constexpr):
    """``a·b`` and what rounding took from it (Dekker), from halves cut by their bits; in float64 nothing."""
    product = a * b
    if TYPE == tl.float32:  # noqa: SIM300
        ahead = (a.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
        behind = (b.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
        a_low, b_low = a - ahead, b - behind
        rest = ((ahead * behind - product) + ahead * b_low + a_low * behind) + a_low * b_low
    else:
        rest = product * 0
    return product, rest


@triton.jit
def _cut(values, COLUMNS: tl.constexpr):
    """Values as multiples of one unit per row, so coarse that sums of COLUMNS of them are exact, and the rest."""
    large = tl.max(tl.abs(values), 1)[:, None] * (4 * COLUMNS)
    coarse = (large + values) - large
    return coarse, values - coarse


@triton.jit
def _tile(sums, place, mask, whole, COLUMNS: tl.constexpr):
    """A tile of the columns' sums as coarse parts and rests."""
    coarse, rest = _cut(tl.load(sums + place, mask=mask, other=0.0), COLUMNS)
    return coarse, rest + tl.load(sums + place + whole, mask=mask, other=0.0)


@triton.jit
def _moved(sums, old, new, mask, whole, COLUMNS: tl.constexpr):
    """What each window of a tile has gained over the one before, as coarse parts and rests."""
    entered = tl.load(sums + new, mask=mask, other=0.0)
    change, lost = _two_sum(entered, -tl.load(sums + old, mask=mask, other=0.0))
    lost += tl.load(sums + new + whole, mask=mask, other=0.0) - tl.load(sums + old + whole, mask=mask, other=0.0)
    coarse, rest = _cut(change, COLUMNS)
    return coarse, rest + lost


@triton.jit
def _shared(high, low, coarse, rest, share, TYPE: tl.constexpr):
    """Running sums over a tile, times ``share``, a pair, too: the mean as a pair."""
    total, lost = _two_sum(high[:, None], tl.cumsum(coarse, 1))
    lost += low[:, None] + tl.cumsum(rest, 1)
    by = tl.load(share)
    product, part = _two_product(total, by, TYPE)
    part += total * tl.load(share + 1) + lost * by
    value = product + part
    return value, part - (value - product)


@triton.jit
def _down(
    x, shift, factor, sums, flags, depth, height, width, rows, stride, count, planes,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Sums of ``rows`` neighbours down every column, at the evaluated starts: (2 or 4, P, count, W)."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = lane < planes * width
    plane, column = lane // width, lane % width
    centre = tl.load(shift + plane, mask=there, other=0.0)
    by = tl.load(factor + plane, mask=there, other=0.0)
    first = x + plane * depth * height * width + column
    out = sums + plane * count * width + column
    whole = planes * count * width
    zero = tl.zeros([LANES], TYPE)
    high, low, high2, low2 = zero, zero, zero, zero
    for i in range(height):
        for d in range(depth):
            at = first + (d * height + i) * width
            new = (tl.load(at, mask=there, other=0.0).to(TYPE) - centre) * by
            high, low = _plus(high, low, new)
            if MOMENTS:
                square, rest = _two_product(new, new, TYPE)
                high2, low2 = _plus(high2, low2, square)
                low2 += rest
            if i >= rows:
                old = (tl.load(at - rows * width, mask=there, other=0.0).to(TYPE) - centre) * by
                high, low = _plus(high, low, -old)
                if MOMENTS:
                    square, rest = _two_product(old, old, TYPE)
                    high2, low2 = _plus(high2, low2, -square)
                    low2 -= rest
        start = i - rows + 1
        if start >= 0:  # noqa: SIM102
            if start % stride == 0 or start == height - rows:
                place = out + ((start + stride - 1) // stride) * width
                tl.store(place, high, mask=there)
                tl.store(place + whole, low, mask=there)
                if MOMENTS:
                    tl.store(place + 2 * whole, high2, mask=there)
                    tl.store(place + 3 * whole, low2, mask=there)
    end = high + low
    if MOMENTS:
        end = end + high2 + low2
    # A finite number less itself is 0; NaN and infinity are not.
    tl.store(flags + lane, tl.where(end - end == 0, 0, 1).to(tl.int8), mask=there)


@triton.jit
def _along(
    sums, mean, var, share, width, columns, stride, lines, across,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """From sums down the columns to each evaluated window's mean, a pair, and variance: (P·count, across)."""
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = line < lines
    row = line * width
    whole = lines.to(tl.int64) * width
    size = lines.to(tl.int64) * across
    step = tl.arange(0, COLUMNS)
    zero = tl.zeros([ROWS], TYPE)
    high, low, high2, low2 = zero, zero, zero, zero
    for start in range(0, columns, COLUMNS):
        at = start + step
        mask = there[:, None] & (at < columns)[None, :]
        place = row[:, None] + at[None, :]
        coarse, rest = _tile(sums, place, mask, whole, COLUMNS)
        high, low = _plus(high, low + tl.sum(rest, 1), tl.sum(coarse, 1))
        if MOMENTS:
            coarse, rest = _tile(sums + 2 * whole, place, mask, whole, COLUMNS)
            high2, low2 = _plus(high2, low2 + tl.sum(rest, 1), tl.sum(coarse, 1))
    last = width - columns
    # The window at ``start`` is the one before, less the column it leaves, plus the one it enters.
    for begin in range(0, last + 1, COLUMNS):
        start = begin + step
        valid = there[:, None] & (start <= last)[None, :]
        moved = valid & (start > 0)[None, :]
        old = row[:, None] + (start - 1)[None, :]
        new = old + columns
        coarse, rest = _moved(sums, old, new, moved, whole, COLUMNS)
        value, less = _shared(high, low, coarse, rest, share, TYPE)
        chosen = valid & ((start % stride == 0) | (start == last))[None, :]
        place = line[:, None] * across + ((start + stride - 1) // stride)[None, :]
        tl.store(mean + place, value, mask=chosen)
        tl.store(mean + size + place, less, mask=chosen)
        high, low = _plus(high, low + tl.sum(rest, 1), tl.sum(coarse, 1))
        if MOMENTS:
            coarse, rest = _moved(sums + 2 * whole, old, new, moved, whole, COLUMNS)
            second, less2 = _shared(high2, low2, coarse, rest, share, TYPE)
            square, lost = _two_product(value, value, TYPE)
            spread = (second - square) + (less2 - (lost + 2 * value * less))
            tl.store(var + place, tl.where(spread > 0, spread, 0.0), mask=chosen)
            high2, low2 = _plus(high2, low2 + tl.sum(rest, 1), tl.sum(coarse, 1))


@triton.jit
def _start(position, n, k):
    """Where the window of a position starts."""
    start = position - (k - 1) // 2
    start = tl.where(start > 0, start, 0)
    return tl.where(start < n - k, start, n - k)


@triton.jit
def _inside(s, t, last, last2, rows, columns, TYPE: tl.constexpr):
    """The share of a window's outline that lies inside the map; the window starts at (s, t)."""
    down = (s == 0).to(TYPE) + (s == last).to(TYPE)
    across = (t == 0).to(TYPE) + (t == last2).to(TYPE)
    return 1 - (columns * down + rows * across) / (2 * (rows + columns))


@triton.jit
def _clip(value, low, high):
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def _correct(
    mean, var, correction, elements, channels, rows, columns, count, across,
    MOMENTS: tl.constexpr, TYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Means, and variances, of the evaluated windows of planes, in place; ``correction``: (8, channels)."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = lane < elements
    t, above = lane % across, lane // across
    s, plane = above % count, above // count
    k = correction + plane % channels
    share = _inside(s, t, count - 1, across - 1, rows, columns, TYPE)
    m = tl.load(mean + lane, mask=there, other=0.0)
    low = tl.load(k + 6 * channels, mask=there, other=0.0)
    high = tl.load(k + 7 * channels, mask=there, other=0.0)
    clipped = _clip(m, low, high)
    if MOMENTS:
        v = tl.load(var + lane, mask=there, other=0.0)
        top = tl.load(k + 5 * channels, mask=there, other=0.0)
        more = (tl.load(k, mask=there, other=1.0) - 1) * tl.where(v < top, v, top)
        more += tl.load(k + channels, mask=there, other=0.0)
        more += tl.load(k + 2 * channels, mask=there, other=0.0) * clipped * clipped
        v += share * more
        tl.store(var + lane, tl.where(v > 0, v, v * 0), mask=there)
    d = tl.load(k + 3 * channels, mask=there, other=1.0)
    e = tl.load(k + 4 * channels, mask=there, other=0.0)
    tl.store(mean + lane, m + share * ((d - 1) * clipped + e), mask=there)


@triton.jit
def _normalise(
    x, mean, var, shift, factor, parameters, out, elements, depth, height, width, rows, columns, groups, windows,
    TYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Every position by its window's moments, in units of its plane's scale, so that nothing overflows.

    ``parameters``: (2, C) weight and bias, then (8, G) the correction, then eps.
    """
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = lane < elements
    column, above = lane % width, lane // width
    i, channel = above % height, above // height
    plane = channel // depth
    group = plane % groups
    inside = group * depth + channel % depth
    number = groups * depth
    centre = tl.load(shift + plane, mask=there, other=0.0)
    by = tl.load(factor + plane, mask=there, other=1.0)
    s, t = _start(i, height, rows), _start(column, width, columns)
    at = (plane * (height - rows + 1) + s) * (width - columns + 1) + t
    m = tl.load(mean + at, mask=there, other=0.0)
    less = tl.load(mean + windows + at, mask=there, other=0.0)
    eps = tl.load(parameters + 2 * number + 8 * groups)
    v = tl.load(var + at, mask=there, other=1.0)
    share = _inside(s, t, height - rows, width - columns, rows, columns, TYPE)
    correction = parameters + 2 * number + group
    a = tl.load(correction, mask=there, other=1.0)
    b = tl.load(correction + groups, mask=there, other=0.0)
    c = tl.load(correction + 2 * groups, mask=there, other=0.0)
    d = tl.load(correction + 3 * groups, mask=there, other=1.0)
    e = tl.load(correction + 4 * groups, mask=there, other=0.0)
    top = tl.load(correction + 5 * groups, mask=there, other=0.0)
    low = tl.load(correction + 6 * groups, mask=there, other=0.0) * by
    high = tl.load(correction + 7 * groups, mask=there, other=0.0) * by
    absolute = m + centre * by
    clipped = _clip(absolute, low, high)
    most = top * by * by
    v += share * ((a - 1) * tl.where(v < most, v, most) + b * by * by + c * clipped * clipped)
    v = tl.where(v > 0, v, v * 0)  # NaN stays
    # Within the limits from the parts of the mean: their sum is rounded.
    whole = (d - 1) * (m + less) + ((d - 1) * centre + e) * by
    moved = tl.where(clipped == absolute, whole, (d - 1) * clipped + e * by)
    value = (tl.load(x + lane, mask=there, other=0.0).to(TYPE) - centre) * by - m - less - share * moved
    value = value / tl.sqrt(v + eps * by * by)
    weight = tl.load(parameters + inside, mask=there, other=0.0)
    value = value * weight + tl.load(parameters + number + inside, mask=there, other=0.0)
    tl.store(out + lane, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def _place(
    x, grid, out, elements, height, width, rows, columns, stride, count, across,
    OPERATION: tl.constexpr, TYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """``x`` with the value of each position's window, linear between the evaluated ones around it."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = lane < elements
    column, above = lane % width, lane // width
    i, plane = above % height, above // height
    s, t = _start(i, height, rows), _start(column, width, columns)
    top, part = _between(s, height - rows, stride, count, TYPE)
    left, part2 = _between(t, width - columns, stride, across, TYPE)
    down, right = part > 0, part2 > 0
    at = grid + (plane * count + top) * across + left
    # A share of zero does not read: zero times NaN would be NaN.
    value = _mix(at, down, part, across, there, TYPE)
    value = tl.where(
        right, (1 - part2) * value + part2 * _mix(at + 1, down, part, across, there & right, TYPE), value
    )
    if OPERATION != 0:
        given = tl.load(x + lane, mask=there, other=0.0).to(TYPE)
        if OPERATION == 1:
            value = given * value
        elif OPERATION == 2:
            value = given + value
        else:
            value = given - value
    tl.store(out + lane, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def _between(start, last, stride, count, TYPE: tl.constexpr):
    """The evaluated window at or before ``start``, and the next one's share; the last lies on no multiple."""
    before = start // stride
    origin = before * stride
    gap = tl.where(origin + stride < last, stride, last - origin)
    part = (start - origin).to(TYPE) / tl.where(gap > 0, gap, 1).to(TYPE)
    return tl.where(start == last, count - 1, before), tl.where(start == last, part * 0, part)


@triton.jit
def _mix(at, down, part, across, there, TYPE: tl.constexpr):
    value = tl.load(at, mask=there, other=0.0).to(TYPE)
    below = tl.load(at + across, mask=there & down, other=0.0).to(TYPE)
    return tl.where(down, (1 - part) * value + part * below, value)


# ------------------------------------------------------------------------------------------------- host


class _Planes:
    """Means, and variances, of the evaluated windows of planes (P, D, H, W), in units of each plane's scale."""

    def __init__(self, x: Tensor, window: tuple[int, int], stride: int, moments: bool) -> None:
        self.x, self.stride = x, stride
        planes, depth, height, width = x.shape
        self.type: Any = tl.float64 if x.dtype == torch.float64 else tl.float32
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows, columns = self.window = min(window[0], height), min(window[1], width)
        self.shift, self.factor = self._sampled()
        count, across = (_count(n, k, stride) for n, k in ((height, rows), (width, columns)))
        sums = x.new_empty((4 if moments else 2, planes, count, width), dtype=self.dtype)
        flags = x.new_empty((planes, width), dtype=torch.int8)
        lanes = (triton.cdiv(planes * width, LANES),)
        sizes = (depth, height, width, rows, stride, count, planes)
        _down[lanes](x, self.shift, self.factor, sums, flags, *sizes, self.type, moments, LANES)
        means = x.new_empty((2, planes, count, across), dtype=self.dtype)
        self.mean, self.rest = means.unbind()
        self.var = x.new_empty((planes, count, across) if moments else 0, dtype=self.dtype)
        lines = planes * count
        exact = torch.tensor(1.0 / (depth * rows * columns), dtype=torch.float64)
        rounded = exact.to(self.dtype)
        share = torch.stack([rounded, (exact - rounded.double()).to(self.dtype)]).to(x.device)
        _along[(triton.cdiv(lines, TILE_ROWS),)](
            sums, means, self.var, share, width, columns, stride, lines, across,
            self.type, moments, TILE_ROWS, TILE_COLUMNS,
        )  # fmt: skip
        self.spoiled: list[int] = flags.amax(1).nonzero().flatten().tolist()

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """About each plane's mean, and one over a power of two near its spread, (P,)."""
        steps = [max(1, n // 16) for n in self.x.shape[2:]]
        sample = self.x[..., :: steps[0], :: steps[1]].double().flatten(1)
        mean = sample.mean(1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)
        largest = (sample - mean).abs().amax(1).nan_to_num(1.0, 1.0, 1.0)
        mean = mean.flatten().to(self.dtype)
        exponent = torch.where(largest > 0, largest, 1.0).log2().round().clamp(-30, 120)
        return mean, torch.exp2(-exponent).to(self.dtype)

    def means(self) -> Tensor:
        return self.mean / self.factor[:, None, None] + self.shift[:, None, None]

    def variances(self) -> Tensor:
        return self.var / self.factor[:, None, None].square()


def _count(n: int, k: int, stride: int) -> int:
    return -(-(n - k) // stride) + 1


def _stack(x: Tensor) -> Tensor:
    """(N, K, H, W) or (N, K, D, H, W) as contiguous planes (N·K, D, H, W)."""
    return x.reshape(x.shape[0] * x.shape[1], -1, *x.shape[-2:]).contiguous()


def _placed(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """``x`` (…, H, W), contiguous, with a contiguous grid of as many planes."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    height, width = x.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    kind: Any = tl.float64 if x.dtype == torch.float64 else tl.float32
    _place[(triton.cdiv(x.numel(), LANES),)](
        x, grid, out, x.numel(), height, width, rows, columns, stride, grid.shape[-2], grid.shape[-1],
        OPERATIONS[operation], kind, LANES,
    )  # fmt: skip
    return out


def _grids(x: Tensor, window: tuple[int, int], stride: int, moments: bool, correction: Correction | None) -> Any:
    """Variances (or None) and means over the evaluated windows, (N·K, h, w)."""
    stack = _stack(x)
    made = _Planes(stack, window, stride, moments)
    mean, var = made.means(), made.variances() if moments else None
    if correction is not None:
        values = torch.stack(tuple(correction)).to(x.device, made.dtype)
        sizes = (mean.numel(), x.shape[1], *made.window, *mean.shape[1:])
        target = mean if var is None else var
        _correct[(triton.cdiv(mean.numel(), LANES),)](mean, target, values, *sizes, moments, made.type, LANES)
    for p in made.spoiled:
        planes = stack[p : p + 1].unsqueeze(0)
        channel = p % x.shape[1]
        own = None if correction is None else correction.planes(slice(channel, channel + 1))
        if var is not None:
            again, value = _reference.grid_moments(planes, window, stride, own)
            var[p] = again[0, 0]
        else:
            value = _reference.grid_means(planes, window, stride, own)
        mean[p] = value[0, 0]
    return var, mean


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.local_mean`."""
    _, mean = _grids(x, window, stride, False, correction)
    return _reference._like(_placed(x.contiguous(), mean, window, stride, "take"), x)


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.local_var_mean`."""
    maps = x.contiguous()
    grids = _grids(x, window, 1, True, None)
    var, mean = (_reference._like(_placed(maps, grid, window, 1, "take"), x) for grid in grids)
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
    batch, channels, height, width = x.shape
    depth = channels // num_groups
    stack = _stack(torch.unflatten(x, 1, (num_groups, depth)))
    made = _Planes(stack, window, 1, True)
    ones, zeros = (x.new_full((n,), value, dtype=made.dtype) for n, value in ((channels, 1.0), (channels, 0.0)))
    affine = [ones if weight is None else weight, zeros if bias is None else bias]
    one, zero = ones[:num_groups], zeros[:num_groups]
    plain = [one, zero, zero, one, zero, zero, zero, zero]
    parameters = torch.cat([values.to(made.dtype) for values in (*affine, *(correction or plain))])
    parameters = torch.cat([parameters, parameters.new_full((1,), eps)])
    out = torch.empty_like(stack)
    sizes = (stack.numel(), depth, height, width, *made.window, num_groups, made.mean.numel())
    _normalise[(triton.cdiv(stack.numel(), LANES),)](
        stack, made.mean, made.var, made.shift, made.factor, parameters, out, *sizes, made.type, LANES
    )
    for p in made.spoiled:
        group = p % num_groups
        part = slice(group * depth, (group + 1) * depth)
        corrected = None if correction is None else correction.planes(slice(group, group + 1))
        scale, offset = (None if values is None else values[part] for values in (weight, bias))
        planes = stack[p : p + 1]
        out[p] = _reference.local_group_norm(planes, window, 1, scale, offset, eps, corrected)[0]
    return _reference._like(out.reshape(batch, channels, height, width), x)


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.grid_means`."""
    _, mean = _grids(x, window, stride, False, correction)
    means: Tensor = mean.to(x.dtype).reshape(*x.shape[:2], *mean.shape[1:])
    return means


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.grid_moments`."""
    grids = _grids(x, window, stride, True, correction)
    var, mean = (grid.to(x.dtype).reshape(*x.shape[:2], *grid.shape[1:]) for grid in grids)
    return var, mean


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """As :func:`tlsc._reference.meet`."""
    return _reference._like(_placed(x.contiguous(), grid.contiguous(), window, stride, operation), x)

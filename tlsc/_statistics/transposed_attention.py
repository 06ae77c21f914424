"""The numbers of transposed attention, local: which windows, their weights, and what they make of the values.

See :mod:`tlsc.attention` for what is computed, and :mod:`.any_size_attention` for graphs of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._windows import Axis, covers
from . import any_size, any_size_attention
from . import reference as _reference
from .operator import operation

__all__ = ["EPS", "attend", "default_stride", "full_precision", "overlapping", "sliding"]

EPS = 1e-12  # of F.normalize: the least length by which a vector is divided
STEPS = 12  # by default a window moves by about this part of its size


def attend(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Attention over all positions, for ``scale`` (heads or 1, 1, 1)."""
    flat_q, flat_k = (F.normalize(x.flatten(3), dim=-1) for x in (q, k))
    weights = ((flat_q @ flat_k.transpose(-2, -1)) * scale).softmax(-1)
    return (weights @ v.flatten(3)).reshape(v.shape)


@operation("transposed_attention", map="v")
def _transposed_attention(
    by: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    rows: int,
    columns: int,
    stride_rows: int,
    stride_columns: int,
) -> Tensor:
    window, stride = (rows, columns), (stride_rows, stride_columns)
    if by is any_size:
        return any_size_attention.sliding(q, k, v, scale, window, stride, EPS)
    return attend(q, k, v, scale) if covers(window, q.shape[-2:]) else _slid(q, k, v, scale, window, stride)


def sliding(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """In a sliding window: see :func:`tlsc.attention.local_transposed_attention`, which checks its arguments."""
    if any_size.applies():
        out: Tensor = _transposed_attention(q, k, v, scale, *window, *stride)
        return out
    return attend(q, k, v, scale) if covers(window, q.shape[-2:]) else _slid(q, k, v, scale, window, stride)


@operation("overlapping_attention", map="v")
def _overlapping_attention(
    by: Any, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, rows: int, columns: int
) -> Tensor:
    window = rows, columns
    if by is any_size:
        return any_size_attention.overlapping(q, k, v, scale, window, EPS)
    return attend(q, k, v, scale) if covers(window, q.shape[-2:]) else _overlapped(q, k, v, scale, window)


def overlapping(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int]) -> Tensor:
    """In overlapping windows: see :func:`tlsc.attention.overlapping_transposed_attention`, likewise."""
    if any_size.applies():
        out: Tensor = _overlapping_attention(q, k, v, scale, *window)
        return out
    return attend(q, k, v, scale) if covers(window, q.shape[-2:]) else _overlapped(q, k, v, scale, window)


def _slid(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    rows, columns = (_Blocks.of(n, w, r) for n, w, r in zip(q.shape[3:], window, stride, strict=True))
    compute = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    with full_precision(q):
        weights = _weights(q, k, scale, rows, columns).to(compute)
        for y, (top, bottom) in enumerate(rows.regions):
            x = 0
            for left, count, size in _runs(columns.regions):
                part = (..., slice(top, bottom), slice(left, left + count * size))
                mixed = weights[:, :, y, x : x + count] @ _blocks(v[part], count, compute)
                mixed = mixed.reshape(*mixed.shape[:-1], bottom - top, size).permute(0, 1, 3, 4, 2, 5)
                _split(out[part], count).copy_(mixed)
                x += count
    return out


def _overlapped(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = q.shape[3:]
    rows, columns = _spread(height, size[0]), _spread(width, size[1])
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(v.shape, dtype=wide, device=v.device)
    for top, bottom in rows:
        for left, right in columns:
            crop_q, crop_k, crop_v = (x[..., top:bottom, left:right] for x in (q, k, v))
            out[..., top:bottom, left:right] += attend(crop_q, crop_k, crop_v, scale).to(wide)
    counts = []
    for n, parts in ((height, rows), (width, columns)):
        count = [sum(begin <= i < end for begin, end in parts) for i in range(n)]
        counts.append(torch.tensor(count, dtype=wide, device=v.device))
    return (out / (counts[0].unsqueeze(-1) * counts[1])).to(v.dtype)


def _weights(q: Tensor, k: Tensor, scale: Tensor, rows: _Blocks, columns: _Blocks) -> Tensor:
    """The attention of each evaluated window: (N, heads, windows down, windows across, c, c)."""
    compute = torch.promote_types(q.dtype, torch.float32)
    products: list[list[Tensor]] = [[], [], []]
    for top, bottom in rows.segments:
        parts: list[list[Tensor]] = [[], [], []]
        for left, count, size in _runs(columns.segments):
            part = (..., slice(top, bottom), slice(left, left + count * size))
            a, b = _blocks(q[part], count, compute), _blocks(k[part], count, compute)
            parts[0].append(a @ b.transpose(-2, -1))
            # Faster than to square and to sum.
            parts[1].append(torch.linalg.vector_norm(a, dim=-1).square())
            parts[2].append(torch.linalg.vector_norm(b, dim=-1).square())
        for product, pieces in zip(products, parts, strict=True):
            product.append(torch.cat(pieces, 2))
    gram, q_square, k_square = (_window_sums(torch.stack(product, 2), rows, columns) for product in products)
    # The root of a clamped square, not a clamped root: its derivative is finite at zero.
    lengths = [square.clamp(min=EPS * EPS).sqrt() for square in (q_square, k_square)]
    cosines = gram / (lengths[0].unsqueeze(-1) * lengths[1].unsqueeze(-2))
    return (cosines * scale.to(cosines.dtype).reshape(-1, 1, 1, 1, 1)).softmax(-1)


def _split(x: Tensor, count: int) -> Tensor:
    """(N, heads, c, h, count·w) as (N, heads, c, h, count, w)."""
    return x.view(*x.shape[:-1], count, -1)


def _blocks(x: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(N, heads, c, h, count·w) as ``count`` blocks side by side: (N, heads, count, c, h·w)."""
    return _split(x, count).permute(0, 1, 4, 2, 3, 5).flatten(-2).to(dtype)


def _window_sums(x: Tensor, rows: _Blocks, columns: _Blocks) -> Tensor:
    """Sums over windows of (N, heads, segments down, segments across, …).

    A NaN or Inf reaches only the windows that contain it: where there is one, no sum is a difference.
    """
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    for dim, axis in ((3, columns), (2, rows)):
        direct = len(axis.windows) == 1 or _reference.is_traced(x) or dtype == torch.float32
        if not direct:
            running = x.cumsum(dim, dtype=dtype)
            direct = not bool(torch.isfinite(running.select(dim, -1)).all())
        if direct:
            sums = [x.narrow(dim, first, last - first).sum(dim, dtype=dtype) for first, last in axis.windows]
            x = torch.stack(sums, dim)
        else:
            running = torch.cat([torch.zeros_like(running.narrow(dim, 0, 1)), running], dim)
            first, last = (torch.tensor(ends, device=x.device) for ends in zip(*axis.windows, strict=True))
            x = running.index_select(dim, last) - running.index_select(dim, first)
    return x


@dataclass(frozen=True)
class _Blocks:
    """How the evaluated windows lie on an axis.

    ``segments``: the pieces (begin, end) into which the windows' edges cut it. ``windows``: for each window, the
    segments [first, last) that it consists of. ``regions``: for each window, the positions (begin, end) whose own
    window starts nearer to it than to any other.
    """

    segments: list[tuple[int, int]]
    windows: list[tuple[int, int]]
    regions: list[tuple[int, int]]

    @classmethod
    def of(cls, n: int, size: int, stride: int) -> _Blocks:
        axis = Axis(n, size, min(stride, n))
        k, starts = axis.size, axis.evaluated.tolist()
        cuts = sorted({edge for start in starts for edge in (start, start + k)})
        index = {cut: i for i, cut in enumerate(cuts)}
        borders = [axis.before + (below + above) // 2 + 1 for below, above in pairwise(starts)]
        return cls(
            segments=list(pairwise(cuts)),
            windows=[(index[start], index[start + k]) for start in starts],
            regions=list(zip([0, *borders], [*borders, n], strict=True)),
        )


def _runs(intervals: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Adjacent intervals of one length together: (begin, how many, length)."""
    begin, count, length = intervals[0][0], 0, intervals[0][1] - intervals[0][0]
    for first, last in intervals:
        if last - first != length:
            yield begin, count, length
            begin, count, length = first, 0, last - first
        count += 1
    yield begin, count, length


def _spread(n: int, size: int) -> list[tuple[int, int]]:
    """The published overlapping windows on an axis."""
    k = min(size, n)
    count = -(-n // k)
    step = -(-(n - k) // (count - 1)) if count > 1 else k
    return [(start, start + k) for start in [*range(0, n - k, step), n - k]]


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
    """Of the sliding form, for a window."""
    rows, columns = (_nearest_divisor(size) for size in window)
    return rows, columns


def _nearest_divisor(size: int) -> int:
    """The divisor of ``size`` nearest to a twelfth of it; the twelfth itself where none comes near.

    With a divisor, windows begin where others end, and there are half as many rectangles to sum.
    """
    wanted = max(1, round(size / STEPS))
    divisors = [d for d in range(max(1, wanted // 2), 2 * wanted) if size % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)), default=wanted)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Sums of products that are not normalised yet overflow in half precision."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()

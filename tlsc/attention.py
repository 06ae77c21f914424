"""Attention over all positions, made local: transposed (channel) attention and non-local blocks.

*Transposed attention* (Restormer) mixes channels: ``softmax(q kᵀ · temperature) v`` with a channels × channels
matrix ``q kᵀ`` summed over all positions, ``q`` and ``k`` of unit length over positions. Two local forms:

- *sliding*: the windows that start at 0, r, 2r, … and the last one are evaluated, each over its true size, and
  every position takes the output of the one that starts nearest to its own window (the lower one of two). The
  products ``q kᵀ``, ``Σq²``, ``Σk²`` are taken once for each of the rectangles into which the windows' edges cut
  the map, and summed over each window. With ``r = 1`` every position has its own window.
- *overlap*, the published one: few overlapping windows, evenly spread; where several cover a position, their
  outputs are averaged.

*Non-local blocks* mix positions: each position attends to those of its own window.

``tlsc.convert`` finds such modules by their structure, whatever their class (:func:`recognise`), and takes the
sliding form. For the published one, register a factory::

    tlsc.register(Attention, tlsc.attention.overlap)

Sources: Zamir, Arora, Khan, Hayat, Khan, Yang, "Restormer: Efficient Transformer for High-Resolution Image
Restoration", CVPR 2022, arXiv 2111.09881, section 3.1; Chu, Chen, Chen, Lu, "Improving Image Restoration by
Revisiting Global Information Aggregation", ECCV 2022, arXiv 2112.04491; Wang, Girshick, Gupta, He, "Non-local
Neural Networks", CVPR 2018, arXiv 1711.07971, section 3.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import FLOATING, as_pair
from ._statistics import any_size as _graph
from ._statistics import any_size_attention as _graph_attention
from ._statistics import operations as _dispatch
from ._statistics import reference as _reference
from ._windows import Axis, covers
from .errors import ArgumentTypeError, ArgumentValueError
from .modules import _LocalModule

__all__ = [
    "LocalNonLocalBlock",
    "LocalTransposedAttention",
    "local_non_local",
    "local_transposed_attention",
    "overlap",
    "overlapping_transposed_attention",
    "recognise",
    "transposed_attention",
]

Weighting = Literal["softmax", "mean"]
Form = Literal["sliding", "overlap"]

EPS = 1e-12  # of F.normalize: the least length by which a vector is divided
STEPS = 12  # by default a window moves by about this part of its size
LIMIT = 2**23  # attention weights of a non-local block held at once


# --------------------------------------------------------------------------------------- transposed attention


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """Attention between channels over all positions: ``softmax(q kᵀ · temperature) v``.

    Args:
        q, k, v: maps (N, heads, c, H, W), float16, bfloat16, float32 or float64; ``q`` and ``k`` are divided by
            their length over all positions, at least 1e-12.
        temperature: a number, or a tensor with one for each head.

    Returns:
        (N, heads, c, H, W).

    Raises:
        ArgumentTypeError, ArgumentValueError: the maps are not floating tensors of one 5-D shape and dtype, or
            ``temperature`` has neither one value nor one for each head.

    Example:
        >>> x = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 1, 2, 1, 2)
        >>> transposed_attention(x, x, x, temperature=1.0).flatten()
        tensor([ 0.7616,  0.7616, -0.7616, -0.7616])
    """
    return _global(q, k, v, _checked(q, k, v, temperature))


def local_transposed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor | float,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
) -> Tensor:
    """Transposed attention in a sliding window.

    Each output equals :func:`transposed_attention` on the crop that is the evaluated window nearest to the
    position's own, whatever the sizes of map, window and stride.

    Args:
        q, k, v, temperature: as in :func:`transposed_attention`.
        window: an int or (height, width), in pixels of the maps.
        stride: how far apart the evaluated windows start; 1 gives every position its own. By default on each
            axis the divisor of the window that comes nearest to a twelfth of it, or the twelfth. Needs memory
            for c × c numbers for each evaluated window and head.

    Returns:
        (N, heads, c, H, W), same dtype. Where the window covers the map, :func:`transposed_attention`.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`transposed_attention`; ``window`` or ``stride`` is not
            one or two positive ints.

    Example:
        >>> x = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).reshape(1, 1, 2, 1, 3)
        >>> local_transposed_attention(x, x, x, 1.0, window=(1, 2), stride=1)[0, 0]
        tensor([[[ 0.7616,  0.4621,  1.0000]],
        <BLANKLINE>
                [[-0.7616, -0.4621,  1.0000]]])
    """
    scale = _checked(q, k, v, temperature)
    size = as_pair(window, "window")
    steps = _default_stride(size) if stride is None else as_pair(stride, "stride")
    if _graph.applies():
        return _dispatch.transposed_attention(q, k, v, scale, size, steps)
    if covers(size, q.shape[-2:]):
        return _global(q, k, v, scale)
    return _sliding(q, k, v, scale, size, steps)


def overlapping_transposed_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | float, window: int | tuple[int, int]
) -> Tensor:
    """Transposed attention in overlapping windows whose outputs are averaged: the published local form.

    On an axis of length ``n`` with ``k' = min(window, n)`` there are ``num = ceil(n / k')`` windows; they start
    ``ceil((n - k')/(num - 1))`` apart, the last one flush with the border.

    Args:
        q, k, v, temperature: as in :func:`transposed_attention`.
        window: an int or (height, width), in pixels of the maps.

    Returns:
        (N, heads, c, H, W), same dtype. Where the window covers the map, :func:`transposed_attention`.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`local_transposed_attention`.

    Example:
        >>> x = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).reshape(1, 1, 2, 1, 3)
        >>> overlapping_transposed_attention(x, x, x, 1.0, window=(1, 2))[0, 0]
        tensor([[[ 0.7616,  0.6119,  1.0000]],
        <BLANKLINE>
                [[-0.7616, -0.6119,  1.0000]]])
    """
    scale = _checked(q, k, v, temperature)
    size = as_pair(window, "window")
    if _graph.applies():
        return _dispatch.overlapping_attention(q, k, v, scale, size)
    return _overlapping_by(False, q, k, v, scale, size)


def _overlapping(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = q.shape[3:]
    rows, columns = _spread(height, size[0]), _spread(width, size[1])
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(v.shape, dtype=wide, device=v.device)
    for top, bottom in rows:
        for left, right in columns:
            crop_q, crop_k, crop_v = (x[..., top:bottom, left:right] for x in (q, k, v))
            out[..., top:bottom, left:right] += _global(crop_q, crop_k, crop_v, scale).to(wide)
    counts = []
    for n, parts in ((height, rows), (width, columns)):
        count = [sum(begin <= i < end for begin, end in parts) for i in range(n)]
        counts.append(torch.tensor(count, dtype=wide, device=v.device))
    return (out / (counts[0].unsqueeze(-1) * counts[1])).to(v.dtype)


def _global(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    flat_q, flat_k = (F.normalize(x.flatten(3), dim=-1) for x in (q, k))
    weights = ((flat_q @ flat_k.transpose(-2, -1)) * scale).softmax(-1)
    return (weights @ v.flatten(3)).reshape(v.shape)


def _sliding(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    rows, columns = (_Blocks.of(n, w, r) for n, w, r in zip(q.shape[3:], window, stride, strict=True))
    compute = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    with _full_precision(q):
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


def _sliding_by(
    graph: bool, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """What an operator of this name runs: in a graph of any size, or at once."""
    if graph:
        return _graph_attention.sliding(q, k, v, scale, window, stride, EPS)
    return _global(q, k, v, scale) if covers(window, q.shape[-2:]) else _sliding(q, k, v, scale, window, stride)


def _overlapping_by(graph: bool, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int]) -> Tensor:
    if graph:
        return _graph_attention.overlapping(q, k, v, scale, window, EPS)
    return _global(q, k, v, scale) if covers(window, q.shape[-2:]) else _overlapping(q, k, v, scale, window)


def _non_local_by(
    graph: bool, q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], scale: float, weighting: Weighting
) -> Tensor:
    if graph:
        return _graph_attention.non_local(q, k, v, window, scale, weighting == "softmax")
    return local_non_local(q, k, v, window, scale, weighting)


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
        direct = len(axis.windows) == 1 or _reference._is_traced(x) or dtype == torch.float32
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


def _default_stride(window: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (_nearest_divisor(size) for size in window)
    return rows, columns


def _nearest_divisor(size: int) -> int:
    """The divisor of ``size`` nearest to a twelfth of it; the twelfth itself where none comes near.

    With a divisor, windows begin where others end, and there are half as many rectangles to sum.
    """
    wanted = max(1, round(size / STEPS))
    divisors = [d for d in range(max(1, wanted // 2), 2 * wanted) if size % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)), default=wanted)


def _checked(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """The temperature as (heads or 1, 1, 1), after a look at everything."""
    _check_maps({"q": q, "k": k, "v": v}, 5, "(N, heads, c, H, W)")
    if q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ArgumentValueError(f"q, k and v must have the same shape, got {shapes}")
    if not isinstance(temperature, Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise ArgumentTypeError(f"temperature must be a number or a tensor, got {temperature!r}")
        temperature = torch.tensor(float(temperature), dtype=q.dtype, device=q.device)
    if temperature.numel() not in (1, q.shape[1]):
        raise ArgumentValueError(
            f"temperature must have one value, or one for each of the {q.shape[1]} heads, "
            f"got shape {tuple(temperature.shape)}"
        )
    return temperature.reshape(-1, 1, 1)


def _check_maps(maps: dict[str, Any], dims: int, form: str) -> None:
    first = next(iter(maps.values()))
    for name, x in maps.items():
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{name} must be a tensor {form}, got {type(x).__name__}")
        if x.dtype not in FLOATING:
            raise ArgumentTypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.dtype != first.dtype:
            raise ArgumentTypeError(f"{', '.join(maps)} must have the same dtype, got {first.dtype} and {x.dtype}")
        if x.dim() != dims:
            raise ArgumentValueError(f"{name} must have {dims} dimensions {form}, got shape {tuple(x.shape)}")
        if x.shape[-2] == 0 or x.shape[-1] == 0:
            raise ArgumentValueError(f"{name} must have at least one position, got shape {tuple(x.shape)}")


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Sums of products that are not normalised yet overflow in half precision."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


# ------------------------------------------------------------------------------------------------- non-local


def local_non_local(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, int],
    scale: float = 1.0,
    weighting: Weighting = "softmax",
) -> Tensor:
    """Attention between positions, each within its own window.

    ``out_i = Σ_j w_ij v_j`` over the positions ``j`` of the window of ``i``, with ``s_ij = scale · q_i · k_j`` and
    ``w_i = softmax(s_i)`` (embedded Gaussian) or ``w_ij = s_ij / (positions of the window)`` (dot product).
    Takes tiles of neighbouring positions at once, so that at most about 2²³ weights are held.

    Args:
        q, k: maps (N, c, H, W), float16, bfloat16, float32 or float64.
        v: map (N, d, H, W).
        window: an int or (height, width), in pixels of the maps.
        scale: factor of the products.
        weighting: "softmax" or "mean".

    Returns:
        (N, d, H, W), same dtype.

    Raises:
        ArgumentTypeError, ArgumentValueError: the maps are not floating tensors of one dtype with these shapes;
            ``window`` is not one or two positive ints; ``weighting`` is neither of the two.

    Example:
        >>> q, v = torch.zeros(1, 2, 1, 4), torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
        >>> local_non_local(q, q, v, window=2)
        tensor([[[[1.5000, 3.0000, 6.0000, 6.0000]]]])
    """
    _check_maps({"q": q, "k": k, "v": v}, 4, "(N, C, H, W)")
    if q.shape != k.shape or (q.shape[0], *q.shape[2:]) != (v.shape[0], *v.shape[2:]):
        raise ArgumentValueError(
            f"q and k must have one shape and v its batch and positions, got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )
    if weighting not in ("softmax", "mean"):
        raise ArgumentValueError(f'weighting must be "softmax" or "mean", got {weighting!r}')
    size = as_pair(window, "window")
    if _graph.applies():
        return _dispatch.non_local(q, k, v, size, scale, weighting)
    kh, kw = (min(a, n) for a, n in zip(size, q.shape[2:], strict=True))
    tall, wide = _tile(q.shape[0], kh, kw)
    dtype = torch.promote_types(q.dtype, torch.float32)
    bands = []
    with _full_precision(q):
        for rows in _tiles(q.shape[2], kh, tall):
            parts = [
                _attend(q, k, v, rows, columns, (kh, kw), scale, weighting, dtype)
                for columns in _tiles(q.shape[3], kw, wide)
            ]
            bands.append(torch.cat(parts, -1))
    return torch.cat(bands, -2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    size: tuple[int, int],
    scale: float,
    weighting: Weighting,
    dtype: torch.dtype,
) -> Tensor:
    """The outputs of one tile of positions."""
    (low, high), (near, far) = (
        _span(Axis(n, m), begin, end) for (begin, end), n, m in zip((rows, columns), q.shape[2:], size, strict=True)
    )
    values = v[..., low:high, near:far]
    one_window = high - low == size[0] and far - near == size[1]
    if not one_window and not _reference._is_traced(v) and not bool(torch.isfinite(values).all()):
        # Weight zero does not keep a NaN out. Position by position, only those of a window take part.
        half = [(begin, (begin + end + 1) // 2, end) for begin, end in (rows, columns)]
        quarters = [
            [_attend(q, k, v, (a, b), (c, d), size, scale, weighting, dtype) for c, d in pairwise(half[1]) if d > c]
            for a, b in pairwise(half[0])
            if b > a
        ]
        return torch.cat([torch.cat(parts, -1) for parts in quarters], -2)
    queries = q[..., rows[0] : rows[1], columns[0] : columns[1]]
    keys = k[..., low:high, near:far]
    scores = queries.flatten(2).to(dtype).transpose(1, 2) @ keys.flatten(2).to(dtype) * scale
    if not one_window:
        outside = _outside(rows, low, high, q.shape[2], size[0], q.device)[:, None, :, None]
        outside = outside | _outside(columns, near, far, q.shape[3], size[1], q.device)[None, :, None, :]
        outside = outside.reshape(scores.shape[1:])
        scores = scores.masked_fill(outside, float("-inf") if weighting == "softmax" else 0.0)
    weights = scores.softmax(-1) if weighting == "softmax" else scores / (size[0] * size[1])
    out = weights @ values.flatten(2).to(dtype).transpose(1, 2)
    shape = (*v.shape[:2], rows[1] - rows[0], columns[1] - columns[0])
    return out.transpose(1, 2).reshape(shape).to(v.dtype)


def _span(axis: Axis, begin: int, end: int) -> tuple[int, int]:
    """What the windows of the positions [begin, end) hold together."""
    return int(axis.start(begin)), int(axis.start(end - 1)) + axis.size


def _outside(queries: tuple[int, int], begin: int, end: int, n: int, k: int, device: torch.device) -> Tensor:
    """For each query position of an axis, which of the positions [begin, end) its window leaves out."""
    starts: Tensor = Axis(n, k, 1, device).start(torch.arange(*queries, device=device)).unsqueeze(1)
    positions = torch.arange(begin, end, device=device)
    return (positions < starts) | (positions >= starts + k)


def _tile(batch: int, kh: int, kw: int) -> tuple[int, int]:
    """Height and width of a tile of positions: a quarter of the window, or less for the memory's sake."""
    tall, wide = max(1, kh // 4), max(1, kw // 4)
    while tall * wide * (kh + tall) * (kw + wide) * batch > LIMIT and tall * wide > 1:
        if tall >= wide:
            tall = (tall + 1) // 2
        else:
            wide = (wide + 1) // 2
    return tall, wide


def _tiles(n: int, k: int, size: int) -> list[tuple[int, int]]:
    """Positions (begin, end) in tiles; never one that mixes the border's one window with others."""
    axis = Axis(n, k)
    first, last = axis.before + 1, axis.last + axis.before
    out = []
    for begin, end in ((0, min(first, n)), (first, last), (max(first, last), n)):
        out += [(i, min(i + size, end)) for i in range(begin, end, size)]
    return out


# ---------------------------------------------------------------------------------------------------- modules


class LocalTransposedAttention(_LocalModule):
    """The local form of a transposed attention layer, with that layer's own parameters under their own names.

    Built by :meth:`from_module`. Where the window covers the map it computes what the original does.

    Shape:
        (N, C, H, W) → (N, C, H, W); cross attention takes two maps of that shape.

    Example:
        >>> class Attention(nn.Module):
        ...     def __init__(self, dim, heads):
        ...         super().__init__()
        ...         self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        ...         self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        ...         self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        ...         self.project_out = nn.Conv2d(dim, dim, 1)
        ...     def forward(self, x):
        ...         q, k, v = (y.unflatten(1, (len(self.temperature), -1))
        ...                    for y in self.qkv_dwconv(self.qkv(x)).chunk(3, 1))
        ...         out = transposed_attention(q, k, v, self.temperature)
        ...         return self.project_out(out.flatten(1, 2))
        >>> LocalTransposedAttention.from_module(Attention(8, 2), window=48)
        LocalTransposedAttention(
          window=(48, 48), form=sliding, stride=(4, 4)
          (qkv): Conv2d(8, 24, kernel_size=(1, 1), stride=(1, 1))
          (qkv_dwconv): Conv2d(24, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=24)
          (project_out): Conv2d(8, 8, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    form: Form
    stride: tuple[int, int]
    temperature: Tensor
    _layout: str

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        window: int | tuple[int, int],
        *,
        form: Form = "sliding",
        stride: int | tuple[int, int] | None = None,
    ) -> LocalTransposedAttention:
        """The local form of ``module``, recognised by its structure.

        Args:
            module: a transposed attention layer, see :func:`recognise`.
            window: an int or (height, width), in pixels of the map.
            form: "sliding", or "overlap" for the published one.
            stride: of the sliding form, see :func:`local_transposed_attention`.

        Raises:
            ArgumentTypeError: ``module`` does not compute transposed attention in a way that is known here.
            ArgumentValueError: ``form`` is neither of the two; as :func:`local_transposed_attention`.
        """
        if form not in ("sliding", "overlap"):
            raise ArgumentValueError(f'form must be "sliding" or "overlap", got {form!r}')
        layout = _transposed_layout(module)
        if layout is None:
            raise ArgumentTypeError(f"{type(module).__name__} is not recognised as transposed attention")
        return cls._made(module, window, layout, form, stride)

    @classmethod
    def _made(
        cls,
        module: nn.Module,
        window: int | tuple[int, int],
        layout: str,
        form: Form = "sliding",
        stride: int | tuple[int, int] | None = None,
    ) -> LocalTransposedAttention:
        new = cls._standing_in(module, window)
        new.form = form
        new.stride = _default_stride(new.window) if stride is None else as_pair(stride, "stride")
        new._layout = layout
        return new

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        parts = self._qkv(x, y)
        temperature: Tensor = self.temperature
        heads = temperature.numel()
        q, k, v = (part.reshape(part.shape[0], heads, -1, *part.shape[2:]) for part in parts)
        if not _graph.applies() and self._covers(q):
            out = _global(q, k, v, temperature.reshape(-1, 1, 1))
        elif self.form == "sliding":
            out = local_transposed_attention(q, k, v, temperature, self.window, self.stride)
        else:
            out = overlapping_transposed_attention(q, k, v, temperature, self.window)
        return self.project_out(out.flatten(1, 2))  # type: ignore[no-any-return, operator]

    def _qkv(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        parts: Any = self
        if self._layout in _CROSS:
            if y is None:
                raise ArgumentTypeError("cross attention takes two maps, got one")
            first, second = (x, y) if self._layout == "cross" else (y, x)
            return parts.q_dwconv(parts.q(first)), *parts.kv_dwconv(parts.kv(second)).chunk(2, 1)
        if y is not None:
            raise ArgumentTypeError("self-attention takes one map, got two")
        if self._layout == "linear":
            maps = parts.qkv(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        else:
            maps = getattr(self, self._layout)(parts.qkv(x))
        return tuple(maps.chunk(3, 1))

    def extra_repr(self) -> str:
        stride = f", stride={self.stride}" if self.form == "sliding" else ""
        return f"window={self.window}, form={self.form}{stride}"


class LocalNonLocalBlock(_LocalModule):
    """The local form of a non-local block: each position attends to its own window.

    Built by :meth:`from_module`, with the block's own parameters under their own names. Where the window covers
    the map it computes what the original does.

    Shape:
        (N, C, H, W) → (N, C, H, W).

    Example:
        >>> class NonLocalBlock(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        ...         self.W = nn.Conv2d(channels // 2, channels, 1)
        ...     def forward(self, x):
        ...         q, k, v = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        ...         weights = (q.transpose(1, 2) @ k).softmax(-1)
        ...         return x + self.W((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))
        >>> LocalNonLocalBlock.from_module(NonLocalBlock(4), window=48)
        LocalNonLocalBlock(
          window=(48, 48), weighting=softmax, scale=1
          (theta): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))
          (phi): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))
          (g): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))
          (W): Conv2d(2, 4, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    _block: _Block

    @classmethod
    def from_module(cls, module: nn.Module, window: int | tuple[int, int]) -> LocalNonLocalBlock:
        """The local form of ``module``, recognised by its structure.

        Raises:
            ArgumentTypeError: ``module`` does not compute a non-local block in a way that is known here.
            ArgumentValueError: ``window`` is not one or two positive ints.
        """
        block = _non_local_block(module)
        if block is None:
            raise ArgumentTypeError(f"{type(module).__name__} is not recognised as a non-local block")
        return cls._made(module, window, block)

    @classmethod
    def _made(cls, module: nn.Module, window: int | tuple[int, int], block: _Block) -> LocalNonLocalBlock:
        new = cls._standing_in(module, window)
        new._block = block
        return new

    def forward(self, x: Tensor) -> Tensor:
        block = self._block
        q, k, v = (getattr(self, name)(x) for name in block.names[:3])
        if not _graph.applies() and self._covers(x):
            scores = q.flatten(2).transpose(1, 2) @ k.flatten(2)
            scores = scores if block.scale == 1 else scores * block.scale
            weights = scores.softmax(-1) if block.weighting == "softmax" else scores / scores.shape[-1]
            mixed = (weights @ v.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        else:
            mixed = local_non_local(q, k, v, self.window, block.scale, block.weighting)
        out: Tensor = getattr(self, block.names[3])(mixed)
        if block.norm:
            out = getattr(self, block.norm)(out)
        return out + x if block.residual else out

    def extra_repr(self) -> str:
        return f"window={self.window}, weighting={self._block.weighting}, scale={self._block.scale:.6g}"


def overlap(module: nn.Module, window: tuple[int, int]) -> LocalTransposedAttention:
    """Factory for :func:`tlsc.register`: transposed attention in the published, overlapping form.

    Raises:
        ArgumentTypeError: ``module`` is not recognised as transposed attention.

    Example:
        >>> import tlsc
        >>> class Attention(nn.Module):
        ...     '''As in Restormer.'''
        >>> tlsc.register(Attention, overlap).remove()
    """
    return LocalTransposedAttention.from_module(module, window, form="overlap")


# ------------------------------------------------------------------------------------------------ recognition

Build = Callable[[nn.Module, "tuple[int, int]", int], nn.Module]


def recognise(module: nn.Module) -> tuple[str, Build] | None:
    """Whether ``module`` is an attention layer that has a local form here: its name, and what builds that form.

    A layer is recognised by the names and shapes of its parts, whatever its class:

    - transposed attention (Restormer, M3SNet, KBNet): ``temperature``, ``qkv``, ``qkv_dwconv`` or ``qkv_conv``,
      ``project_out``; with a ``Linear`` as ``qkv`` and no convolution (DITN); between two maps (HVI-CIDNet,
      CRAFT): ``q``, ``q_dwconv``, ``kv``, ``kv_dwconv``;
    - a non-local block: 1×1 convolutions ``theta``, ``phi``, ``g`` and ``W`` (or the names that timm, mmcv and
      others give them), perhaps a norm behind, perhaps the input added.

    The parts must also do what is expected of them: a copy with random parameters, in float64 on the CPU, gives
    what the local module gives with a window that covers the map. The module itself is not run, nor changed.

    Returns:
        None, or the operation's name and ``build(module, window, stride)``. A stride of 1 is taken as "the
        default" where every position's own window would cost too much.

    Example:
        >>> recognise(nn.Conv2d(3, 3, 1)) is None
        True
    """
    layout = _transposed_layout(module)
    if layout is not None:
        return "TransposedAttention", lambda module, window, stride: LocalTransposedAttention._made(
            module, window, layout, stride=None if stride == 1 else stride
        )
    block = _non_local_block(module)
    if block is not None:
        return "NonLocalBlock", lambda module, window, stride: LocalNonLocalBlock._made(module, window, block)
    return None


_CROSS = ("cross", "cross, swapped")
_NEVER = (10**6, 10**6)  # a window that covers every map
_TRIAL = (13, 17)  # neither side is a multiple of anything: attention in fixed partitions shows
_AGREES = 1e-5  # a forward may have a detour through float32


def _transposed_layout(module: nn.Module) -> str | None:
    """How a transposed attention layer computes q, k and v; None if it is not one."""
    temperature, project_out = getattr(module, "temperature", None), getattr(module, "project_out", None)
    if not isinstance(temperature, Tensor) or not _is_conv(project_out, 1) or "forward" in module.__dict__:
        return None
    dim, heads = project_out.in_channels, temperature.numel()
    if project_out.out_channels != dim or not heads or dim % heads or temperature.shape[-2:] != (1, 1):
        return None
    qkv = getattr(module, "qkv", None)
    layouts: tuple[str, ...] = ()
    if isinstance(qkv, nn.Linear) and (qkv.in_features, qkv.out_features) == (dim, 3 * dim):
        layouts = ("linear",)
    elif _is_conv(qkv, 1) and (qkv.in_channels, qkv.out_channels) == (dim, 3 * dim):
        layouts = tuple(
            name for name in ("qkv_dwconv", "qkv_conv") if _is_depthwise(getattr(module, name, None), 3 * dim)
        )
    elif _is_conv(getattr(module, "q", None), 1) and _is_conv(getattr(module, "kv", None), 1):
        convs = (
            (getattr(module, name, None), width) for name, width in (("q_dwconv", dim), ("kv_dwconv", 2 * dim))
        )
        layouts = _CROSS if all(_is_depthwise(conv, width) for conv, width in convs) else ()
    for layout in layouts:
        maps = 2 if layout in _CROSS else 1

        def build(trial: nn.Module, layout: str = layout) -> nn.Module:
            return LocalTransposedAttention._made(trial, _NEVER, layout)

        if _computes(module, build, dim, maps):
            return layout
    return None


@dataclass(frozen=True)
class _Block:
    """What a non-local block does: its parts' names (q, k, v, out), and the form of its attention."""

    names: tuple[str, str, str, str]
    norm: str
    scale: float
    weighting: Weighting
    residual: bool


_PARTS = (("theta", "phi", "g"), ("t", "p", "g"), ("query", "key", "value"), ("q", "k", "v"))
_OUTS = ("W", "w", "W_z", "z", "out", "conv_out", "out_conv", "o", "proj", "proj_out", "project_out")


def _non_local_block(module: nn.Module) -> _Block | None:
    """The form of a non-local block; None if the module is not one."""
    children = module._modules
    found = next((names for names in _PARTS if all(name in children for name in names)), None)
    if found is None or "forward" in module.__dict__:
        return None
    outs = [name for name in _OUTS if name in children]
    convs = [_pointwise_in(children[name]) for name in (*found, *outs[:1])]
    if len(outs) != 1 or any(conv is None for conv in convs):
        return None
    q, k, v, out = (conv for conv in convs if conv is not None)
    dim = q.in_channels
    if {k.in_channels, v.in_channels, out.out_channels} != {dim} or q.out_channels != k.out_channels:
        return None
    if v.out_channels != out.in_channels:
        return None
    norms = [name for name in ("norm", "bn") if isinstance(children.get(name), nn.BatchNorm2d)]
    own = getattr(module, "scale", None)
    scales = [1.0, q.out_channels**-0.5, dim**-0.5, *([own] if isinstance(own, (int, float)) else [])]
    forms: list[tuple[Weighting, float]] = [("softmax", s) for s in dict.fromkeys(float(s) for s in scales)]
    for weighting, scale in (*forms, ("mean", 1.0)):
        for residual in (True, False):
            block = _Block((*found, outs[0]), norms[0] if norms else "", scale, weighting, residual)

            def build(trial: nn.Module, block: _Block = block) -> nn.Module:
                return LocalNonLocalBlock._made(trial, _NEVER, block)

            if _computes(module, build, dim, 1):
                return block
    return None


def _is_conv(module: Any, size: int) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (size, size)
        and module.stride == (1, 1)
        and (module.groups == 1 or size > 1)
    )


def _is_depthwise(module: Any, channels: int) -> TypeGuard[nn.Conv2d]:
    return _is_conv(module, 3) and module.groups == module.in_channels == module.out_channels == channels


def _pointwise_in(module: nn.Module | None) -> nn.Conv2d | None:
    """The 1×1 convolution that a part of a non-local block is, alone or before a norm; also inside a wrapper."""
    if module is None:
        return None
    convs = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    # Any other layer with weights, or one that pools, makes it something else.
    others = [
        part
        for part in module.modules()
        if not isinstance(part, (nn.Conv2d, nn.BatchNorm2d, nn.Identity, nn.ReLU)) and not part._modules
    ]
    return convs[0] if len(convs) == 1 and _is_conv(convs[0], 1) and not others else None


def _computes(module: nn.Module, build: Callable[[nn.Module], nn.Module], dim: int, maps: int) -> bool:
    """Whether ``module`` computes what ``build`` makes of it, on copies with random parameters."""
    generator = torch.Generator().manual_seed(0)
    images = [_random((1, dim, *_TRIAL), generator) for _ in range(maps)]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            trial = _randomised(module, generator, {})
            expected = trial(*images)
            if not isinstance(expected, Tensor) or expected.shape != images[0].shape:
                return False
            error = (build(trial)(*images) - expected).abs().max()
            return bool(error <= _AGREES * expected.abs().max())
    except Exception:  # it takes other arguments, or needs what a copy does not have: not what we look for
        return False


def _randomised(module: nn.Module, generator: torch.Generator, made: dict[int, nn.Module]) -> nn.Module:
    """A copy in evaluation mode without hooks, its tensors random float64 ones on the CPU."""
    if id(module) in made:
        return made[id(module)]
    new: nn.Module = module.__class__.__new__(module.__class__)
    made[id(module)] = new
    state = dict(module.__dict__)
    for name, value in state.items():
        if isinstance(value, OrderedDict) and name.endswith("_hooks"):
            state[name] = OrderedDict()
        elif isinstance(value, Tensor):
            state[name] = _stand_in(value, generator)
    state["_parameters"] = {
        name: None if value is None else nn.Parameter(_stand_in(value, generator), requires_grad=False)
        for name, value in module._parameters.items()
    }
    state["_buffers"] = {
        name: None
        if value is None
        else _stand_in(value, generator).abs() + (0.5 if value.is_floating_point() else 0)
        for name, value in module._buffers.items()
    }
    state["_modules"] = {
        name: None if child is None else _randomised(child, generator, made)
        for name, child in module._modules.items()
    }
    state["training"] = False
    state["_compiled_call_impl"] = None
    new.__dict__.update(state)
    return new


def _stand_in(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value.detach().cpu() if not value.is_meta else torch.zeros(value.shape, dtype=value.dtype)
    fan_in = max(1, math.prod(value.shape[1:]))
    return _random(tuple(value.shape), generator) * (2 / math.sqrt(fan_in))


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)

"""The numbers of non-local blocks, local: each position attends to those of its own window.

See :func:`tlsc.attention.local_non_local` for what is computed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from .._windows import Axis
from . import any_size, any_size_attention
from . import reference as _reference
from .operator import operation
from .transposed_attention import full_precision

__all__ = ["Weighting", "non_local"]

Weighting = Literal["softmax", "mean"]

LIMIT = 2**23  # attention weights held at once


@operation("non_local", map="v")
def _non_local(
    by: Any, q: Tensor, k: Tensor, v: Tensor, rows: int, columns: int, scale: float, weighting: str
) -> Tensor:
    if by is any_size:
        return any_size_attention.non_local(q, k, v, (rows, columns), scale, weighting == "softmax")
    return _tiled(q, k, v, (rows, columns), scale, weighting)


def non_local(
    q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], scale: float, weighting: Weighting
) -> Tensor:
    """See :func:`tlsc.attention.local_non_local`, which checks its arguments."""
    if any_size.applies():
        out: Tensor = _non_local(q, k, v, *window, scale, weighting)
        return out
    return _tiled(q, k, v, window, scale, weighting)


def _tiled(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], scale: float, weighting: str) -> Tensor:
    kh, kw = (min(a, n) for a, n in zip(window, q.shape[2:], strict=True))
    tall, wide = _tile(q.shape[0], kh, kw)
    dtype = torch.promote_types(q.dtype, torch.float32)
    bands = []
    with full_precision(q):
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
    weighting: str,
    dtype: torch.dtype,
) -> Tensor:
    """The outputs of one tile of positions."""
    (low, high), (near, far) = (
        _span(Axis(n, m), begin, end) for (begin, end), n, m in zip((rows, columns), q.shape[2:], size, strict=True)
    )
    values = v[..., low:high, near:far]
    one_window = high - low == size[0] and far - near == size[1]
    if not one_window and not _reference.is_traced(v) and not bool(torch.isfinite(values).all()):
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

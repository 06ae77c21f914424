"""Local attention for graphs that must hold at every image size: see :mod:`tlsc._statistics.any_size`.

The windows are those of :mod:`tlsc.attention`. What is a loop over rectangles there is a gather into blocks of
constant size here, and a 0/1 matrix, built from the length of the axis, that says which blocks make up which
window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._windows import Axis, Windows

__all__ = ["non_local", "overlapping", "sliding"]


def sliding(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], stride: tuple[int, int], eps: float
) -> Tensor:
    """As :func:`tlsc.attention.local_transposed_attention`, for ``scale`` (heads or 1, 1, 1)."""
    compute = torch.promote_types(q.dtype, torch.float32)
    height, width = q.shape[3:]
    rows = _Blocks.of(height, window[0], stride[0], q.device)
    columns = _Blocks.of(width, window[1], stride[1], q.device)
    a, b = (_parts(x.to(compute), rows, columns) for x in (q, k))
    gram = _window_sums(a @ b.transpose(-2, -1), rows, columns)
    lengths = [_window_sums(x.square().sum(-1), rows, columns).clamp(min=eps * eps).sqrt() for x in (a, b)]
    cosines = gram / (lengths[0].unsqueeze(-1) * lengths[1].unsqueeze(-2))
    weights = (cosines * scale.to(compute).reshape(-1, 1, 1, 1, 1)).softmax(-1)
    weights = weights.index_select(2, rows.served_by).index_select(3, columns.served_by)
    served = v.to(compute).index_select(-2, rows.served).index_select(-1, columns.served)
    out = _joined(weights @ _blocks(served, rows.size, columns.size), rows.size, columns.size)
    return out.index_select(-2, rows.back).index_select(-1, columns.back).to(v.dtype)


def overlapping(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], eps: float) -> Tensor:
    """As :func:`tlsc.attention.overlapping_transposed_attention`, for ``scale`` (heads or 1, 1, 1)."""
    compute = torch.promote_types(q.dtype, torch.float32)
    rows, columns = (_Overlap.of(n, size, q.device) for n, size in zip(q.shape[3:], window, strict=True))
    a, b, c = (
        _blocks(
            x.to(compute)
            .index_select(-2, rows.held)
            .index_select(-1, columns.held)
            .masked_fill(~(rows.mask.unsqueeze(-1) & columns.mask), 0.0),
            *window,
        )
        for x in (q, k, v)
    )
    a, b = (x / x.square().sum(-1, keepdim=True).clamp(min=eps * eps).sqrt() for x in (a, b))
    weights = ((a @ b.transpose(-2, -1)) * scale.to(compute).reshape(-1, 1, 1, 1, 1)).softmax(-1)
    out = _joined(weights @ c, *window)
    for dim, axis in ((-2, rows), (-1, columns)):
        out = axis.mean(out, dim)
    return out.to(v.dtype)


def non_local(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], scale: float, softmax: bool) -> Tensor:
    """As :func:`tlsc.attention.local_non_local`, but with all weights at once, as many as the global block has."""
    height, width = q.shape[2:]
    dtype = torch.promote_types(q.dtype, torch.float32)
    windows = Windows.of((height, width), window, 1, q.device, free=True)
    inside = None
    for axis, shape in zip(windows, ((height, 1, height, 1), (1, width, 1, width)), strict=True):
        start = axis.starts.unsqueeze(1)
        at = torch.arange(axis.n, device=q.device)
        held = ((at >= start) & (at < start + axis.k)).reshape(shape)
        inside = held if inside is None else inside & held
    assert inside is not None
    scores = (q.flatten(2).to(dtype).transpose(1, 2) @ k.flatten(2).to(dtype)) * scale
    inside = inside.reshape(height * width, height * width)
    if softmax:
        weights = scores.masked_fill(~inside, float("-inf")).softmax(-1)
    else:
        weights = scores.masked_fill(~inside, 0.0) / windows.positions
    out = (weights @ v.flatten(2).to(dtype).transpose(1, 2)).transpose(1, 2)
    return torch.unflatten(out, 2, (height, width)).to(v.dtype)


@dataclass(frozen=True)
class _Blocks:
    """How the evaluated windows lie on an axis, in blocks of ``size``.

    Sums: the blocks are gathered by ``held`` (positions) and ``mask`` (1 where a position counts); row ``w`` of
    ``windows`` has a 1 for each block of window ``w``. The last window may start inside a block, and all may
    end inside one: such parts stand behind the whole blocks, as blocks of their own.

    Results: blocks gathered by ``served``, each served by one window, ``served_by``; position ``i`` then stands
    at ``back[i]``. The block in which the last window takes over in the middle is there twice.
    """

    size: int
    held: Tensor
    mask: Tensor
    windows: Tensor
    served: Tensor
    served_by: Tensor
    back: Tensor

    @classmethod
    def of(cls, n: int, window: int, stride: int, device: torch.device) -> _Blocks:
        axis = Axis(n, window, stride, device, free=True)
        last = axis.last
        regular = (last + stride - 1) // stride  # windows at 0, r, 2r, … before the last one
        count = n // stride + 2  # at least the blocks that there are; further ones hold and serve nothing
        held, mask, windows = _sums(n, window, stride, count, last, device)

        # Where one window takes over from the one before it: at `first`, then every `stride`, at last at `final`.
        first = axis.before + stride // 2 + 1
        below = torch.sym_max(regular - 1, 0) * stride
        final = axis.before + (below + last) // 2 + 1
        lead = -first % stride  # so that they take over between blocks
        shared = (final + lead) // stride
        main = torch.arange(count * stride, device=device) - lead
        again = torch.arange(stride, device=device) + (shared * stride - lead)
        starts = torch.arange(count, device=device) * stride - lead
        at = torch.cat([starts, again[-1:]]).clamp(min=0).clamp(max=n - 1)
        start = axis.start(at)
        lower = start // stride
        upper = ((lower + 1) * stride).clamp(max=last)
        index = lower + (start > (lower * stride + upper) // 2).to(lower.dtype)
        served_by = torch.where(index >= regular, count, index)  # the last window stands behind the others
        at = torch.arange(n, device=device)
        here = at + lead
        late = (at >= final) & (here // stride == shared)
        back = torch.where(late, here % stride + count * stride, here)
        served = torch.cat([main, again]).clamp(min=0).clamp(max=n - 1)
        return cls(stride, held, mask, windows, served, served_by, back)


@dataclass(frozen=True)
class _Overlap:
    """The overlapping windows of an axis, one behind the other: what each holds, and where positions find theirs.

    ``held`` (positions) and ``mask`` (1 where one counts): windows of constant size, the map continued where it is
    smaller. ``back`` and ``there``: up to three windows hold a position; where it stands in each, and whether.
    """

    held: Tensor
    mask: Tensor
    back: Tensor
    there: Tensor

    @classmethod
    def of(cls, n: int, window: int, device: torch.device) -> _Overlap:
        axis = Axis(n, window, 1, device, free=True)
        inside, last = axis.size, axis.last
        at = torch.arange(n, device=device)
        # One more than there are, which nobody reads: a graph would take an axis of one for always one.
        index = torch.arange((n - 1) // window + 2, device=device)
        gaps = (at.amax(0, keepdim=True) // window).clamp(min=1)
        step = ((last + gaps - 1) // gaps).clamp(min=1)
        starts = (index * step).clamp(max=last)
        offset = torch.arange(window, device=device)
        held = (starts.unsqueeze(1) + offset).clamp(max=n - 1).flatten()
        mask = (offset < inside).expand(index.shape[0], window).flatten()
        final = (last + step - 1) // step  # the first window that is flush with the border
        first = torch.minimum(((at - inside + step) // step).clamp(min=0), final)
        holders = first + torch.arange(3, device=device).unsqueeze(1)
        start = (holders * step).clamp(max=last)
        there = (holders <= final) & (start <= at)
        return cls(held, mask, torch.where(there, holders * window + at - start, 0), there)

    def mean(self, x: Tensor, dim: int) -> Tensor:
        """The mean over the windows that hold a position, along an axis on which windows lie behind each other."""
        total = None
        for back, there in zip(self.back.unbind(), self.there.unbind(), strict=True):
            part = x.index_select(dim, back).masked_fill(~(there.unsqueeze(-1) if dim == -2 else there), 0.0)
            total = part if total is None else total + part
        count = self.there.sum(0).to(x.dtype)
        assert total is not None
        return total / (count.unsqueeze(-1) if dim == -2 else count)


def _sums(
    n: int, window: int, stride: int, count: int, last: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """``held``, ``mask`` and ``windows`` of an axis."""
    whole, rest = window // stride, window % stride
    split = last // stride  # the block in which the last window starts
    blocks = torch.arange(count * stride, device=device)
    head = torch.arange(stride, device=device) + split * stride
    held, mask = [blocks, head], [blocks < n, (head >= last) & (head < n)]
    block = torch.arange(count, device=device)
    index = torch.arange(count + 1, device=device).unsqueeze(1)
    is_last = index == count
    windows = [
        # Not torch.where: ONNX Runtime has none for booleans.
        (is_last & (block > split)) | (~is_last & (block >= index) & (block < index + whole)),
        is_last,
    ]
    if rest:
        held.append(blocks)
        mask.append((blocks % stride < rest) & (blocks < n))
        windows.append(~is_last & (block == index + whole))
    return torch.cat(held).clamp(max=n - 1), torch.cat(mask), torch.cat(windows, 1)


def _parts(x: Tensor, rows: _Blocks, columns: _Blocks) -> Tensor:
    """The blocks to sum over: (N, heads, down, across, c, positions)."""
    for dim, axis in ((-2, rows), (-1, columns)):
        mask = axis.mask.unsqueeze(-1) if dim == -2 else axis.mask
        x = x.index_select(dim, axis.held).masked_fill(~mask, 0.0)
    return _blocks(x, rows.size, columns.size)


def _blocks(x: Tensor, height: int, width: int) -> Tensor:
    """(N, heads, c, H, W) as (N, heads, down, across, c, height·width)."""
    x = torch.unflatten(x, -1, (x.shape[-1] // width, width))
    x = torch.unflatten(x, -3, (x.shape[-3] // height, height))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(-2)


def _joined(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`_blocks`."""
    x = torch.unflatten(x, -1, (height, width))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(-2).flatten(-3, -2)


def _window_sums(x: Tensor, rows: _Blocks, columns: _Blocks) -> Tensor:
    """Sums over each window of (N, heads, down, across, …)."""
    tail = x.shape[4:]
    down, across = rows.windows.to(x.dtype), columns.windows.to(x.dtype)
    x = (across @ x.flatten(4)).transpose(2, 3)
    x = (down @ x.flatten(4)).transpose(2, 3)
    return torch.unflatten(x, -1, tail) if len(tail) > 1 else x

"""Local statistics for graphs that must hold at every image size: no branch on a size, no cumulative sum.

Used where a model is traced (``torch.export``, ONNX, ``torch.compile`` with symbolic sizes). Whether the window covers
the map is not known then, so it must not be asked. Instead an axis of length ``n`` is continued to ``max(n, k)`` with
the operation's neutral element: the window has its full size ``k``, a constant, and where it is larger than the map
there is just one, which holds all of it.

Window sums are built by doubling: sums of 1, 2, 4, … neighbours, of which those that make up ``k`` are added. No term
outside a window takes part in its sum, rounding errors are those of pairwise summation (so float32 does), and the graph
holds additions, slices and gathers, which every runtime has and none gets wrong.

A grid always ends with the window that is flush with the border, also where it is on the grid anyway.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from ._correction import Correction

__all__ = ["applies", "grid_maxima", "grid_means", "grid_moments", "local_group_norm", "local_mean", "local_var_mean"]

Window = tuple[int, int]
_AXES = ((-2, 0), (-1, 1))


def applies(x: Tensor) -> bool:
    """Whether ``x`` is being traced into a graph whose sizes may be free."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return True
    return torch.compiler.is_compiling() and any(not isinstance(n, int) for n in x.shape)


def local_mean(x: Tensor, window: Window, stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.local_mean`."""
    mean = grid_means(x, window, stride)
    if correction is not None:
        mean = correction.mean_of(mean)
    return place(mean, window, stride, x.shape[2], x.shape[3])


def local_var_mean(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.local_var_mean`."""
    var, mean = grid_moments(x, window)
    return place(var, window, 1, x.shape[2], x.shape[3]), place(mean, window, 1, x.shape[2], x.shape[3])


def local_group_norm(
    x: Tensor,
    window: Window,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correction: Correction | None = None,
) -> Tensor:
    """As :func:`tlsc._reference.local_group_norm`."""
    batch, channels, height, width = x.shape
    groups = x.reshape(batch, num_groups, channels // num_groups, height, width)
    shift = _shift(groups)
    centred = groups.to(shift.dtype) - shift
    var, mean = _moments(centred, window, 1)
    if correction is not None:
        absolute = mean + shift.squeeze(2)
        var = correction.var_of(var, absolute)
        mean = correction.mean_of(absolute) - shift.squeeze(2)
    scale = place((var + eps).rsqrt(), window, 1, height, width).unsqueeze(2)
    out = (centred - place(mean, window, 1, height, width).unsqueeze(2)) * scale
    out = out.reshape(batch, channels, height, width)
    if weight is not None:
        out = out * weight.to(out).reshape(-1, 1, 1)
    if bias is not None:
        out = out + bias.to(out).reshape(-1, 1, 1)
    return out.to(x.dtype)


def grid_means(x: Tensor, window: Window, stride: int = 1) -> Tensor:
    """As :func:`tlsc._reference.grid_means`."""
    groups = x if x.dim() == 5 else x.unsqueeze(2)
    shift = _shift(groups)
    mean = _means((groups.to(shift.dtype) - shift).mean(2), window, stride)
    return (mean + shift.squeeze(2)).to(x.dtype)


def grid_moments(x: Tensor, window: Window, stride: int = 1) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.grid_moments`."""
    groups = x if x.dim() == 5 else x.unsqueeze(2)
    shift = _shift(groups)
    var, mean = _moments(groups.to(shift.dtype) - shift, window, stride)
    return var.to(x.dtype), (mean + shift.squeeze(2)).to(x.dtype)


def grid_maxima(x: Tensor, window: Window, stride: int = 1) -> Tensor:
    """As :func:`tlsc._reference.grid_maxima`."""
    out = x.amax(2) if x.dim() == 5 else x
    for dim, axis in _AXES:
        k = window[axis]
        out = _sliding(_continued(out, k, dim, float("-inf")), k, dim, torch.maximum, idempotent=True)
        if stride > 1:
            count = out.shape[dim]
            starts = torch.arange((count - 1) // stride + 2, device=x.device) * stride
            out = out.index_select(dim, starts.clamp(max=count - 1))
    return out


def place(grid: Tensor, window: Window, stride: int, height: int, width: int) -> Tensor:
    """Give each position of (height, width) the value of its window in a grid (…, h, w) of evaluated ones."""
    for (dim, axis), n in zip(_AXES, (height, width), strict=True):
        start, last = window_starts(n, window[axis], grid.device)
        if stride == 1:
            grid = grid.index_select(dim, start)
            continue
        below = torch.where(start == last, grid.shape[dim] - 1, start // stride)
        origin = (below * stride).clamp(max=last)
        gap = ((below + 1) * stride).clamp(max=last) - origin
        share = (start - origin).to(grid.dtype) / gap.clamp(min=1).to(grid.dtype)
        above = torch.where(share > 0, below + 1, below)
        share = share.unsqueeze(-1) if dim == -2 else share
        grid = torch.lerp(grid.index_select(dim, below), grid.index_select(dim, above), share)
    return grid


def window_starts(n: int, k: int, device: torch.device) -> tuple[Tensor, int]:
    """Where the window of each of ``n`` positions starts, and where the last one does."""
    inside = torch.sym_min(k, n)
    last = n - inside
    return (torch.arange(n, device=device) - (inside - 1) // 2).clamp(min=0).clamp(max=last), last


def positions(x: Tensor, window: Window) -> int:
    """How many positions of the map (…, H, W) a window holds."""
    count: int = torch.sym_min(window[0], x.shape[-2]) * torch.sym_min(window[1], x.shape[-1])
    return count


def _moments(centred: Tensor, window: Window, stride: int) -> tuple[Tensor, Tensor]:
    mean = _means(centred.mean(2), window, stride)
    return (_means(centred.square().mean(2), window, stride) - mean.square()).clamp(min=0), mean


def _means(x: Tensor, window: Window, stride: int) -> Tensor:
    out = x
    for dim, axis in _AXES:
        out = _sums(_continued(out, window[axis], dim, 0.0), window[axis], dim, stride)
    return out / positions(x, window)


def _sums(x: Tensor, k: int, dim: int, stride: int) -> Tensor:
    """Sums of the windows of ``k`` along ``dim`` (of a length ≥ k): all, or those at 0, r, 2r, … and the last."""
    if stride == 1:
        return _sliding(x, k, dim, operator.add)
    n = x.shape[dim]
    regular = (n - k) // stride + 1
    whole, rest = k // stride, k % stride
    count = (n + stride - 1) // stride
    blocks = _longer(x, count * stride - n, dim, 0.0).unflatten(dim, (count, stride))
    inner = -1 if dim == -1 else -2
    parts = []
    if whole:
        totals = _sliding(blocks.sum(inner), whole, dim, operator.add)
        parts.append(totals.narrow(dim, 0, regular))
    if rest:
        parts.append(blocks.narrow(inner, 0, rest).sum(inner).narrow(dim, whole, regular))
    grid = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return torch.cat([grid, x.narrow(dim, n - k, k).sum(dim, keepdim=True)], dim)


def _sliding(
    x: Tensor, k: int, dim: int, combine: Callable[[Tensor, Tensor], Tensor], idempotent: bool = False
) -> Tensor:
    """``combine`` over ``k`` neighbours along ``dim``, for the windows that lie inside, by doubling."""
    count = x.shape[dim] - k + 1
    width = 1  # of the windows in x
    if idempotent:
        while 2 * width <= k:
            x = combine(x.narrow(dim, 0, x.shape[dim] - width), x.narrow(dim, width, x.shape[dim] - width))
            width *= 2
        return x if width == k else combine(x.narrow(dim, 0, count), x.narrow(dim, k - width, count))
    out: Tensor | None = None
    done = 0
    while True:
        if k & width:
            part = x.narrow(dim, done, count)
            out = part if out is None else combine(out, part)
            done += width
        if 2 * width > k:
            break
        x = combine(x.narrow(dim, 0, x.shape[dim] - width), x.narrow(dim, width, x.shape[dim] - width))
        width *= 2
    assert out is not None
    return out


def _continued(x: Tensor, k: int, dim: int, value: float) -> Tensor:
    """``x`` continued along ``dim`` to a length of at least ``k``."""
    return _longer(x, torch.sym_max(k - x.shape[dim], 0), dim, value)


def _longer(x: Tensor, more: int, dim: int, value: float) -> Tensor:
    shape = list(x.shape)
    shape[dim] = more
    return torch.cat([x, x.new_full(shape, value)], dim)


def _shift(groups: Tensor) -> Tensor:
    """The mean of each group of planes (N, K, D, H, W) as (N, K, 1, 1, 1), 0 where it is not finite.

    In the dtype in which sums are to run: nothing cancels where a mean is large beside the deviation.
    """
    dtype = torch.promote_types(groups.dtype, torch.float32)
    mean = groups.detach().mean((2, 3, 4), keepdim=True, dtype=dtype)
    return torch.where(mean.abs() < float("inf"), mean, torch.zeros_like(mean))


"""Local statistics for graphs that must hold at every image size: no branch on a size, no cumulative sum.

Used where a model is traced (``torch.export``, ONNX, ``torch.compile`` with symbolic sizes). Whether the window
covers the map is not known then, so it must not be asked. Instead every axis is continued by a constant number of
the operation's neutral element, and there is a window of the full, constant size ``k`` for each position it can
start at. Those that reach beyond the map's end are never read, except where the window is larger than the map:
then the one at 0 holds all of it. Sizes in the graph stay sums of an axis and a constant, without minima or
maxima: tracing would take minutes to reason about those.

Window sums are built by doubling: sums of 1, 2, 4, … neighbours, of which those that make up ``k`` are added. No
term outside a window takes part in its sum, rounding errors are those of pairwise summation (so float32 does), and
the graph holds additions, slices and gathers, which every runtime has and none gets wrong.

On a grid of stride ``r`` stand the windows at 0, r, 2r, … and behind them the one that is flush with the border.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._windows import Axis, Windows
from .._windows import smaller as _smaller
from .correction import Correction
from .reference import is_traced

__all__ = [
    "applies",
    "applies_to",
    "grid_maxima",
    "grid_means",
    "grid_moments",
    "grid_shape",
    "leaves",
    "local_group_norm",
    "local_mean",
    "local_var_mean",
    "meet",
    "place",
    "positions",
    "smaller",
]

Window = tuple[int, int]
_AXES = ((-2, 0), (-1, 1))


def applies() -> bool:
    """Whether what runs is being traced into a graph: sizes may be free then, which Dynamo does not tell."""
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or _is_jit_traced()


def applies_to(x: Tensor) -> bool:
    """The same of what is done to ``x``: a tensor with values is in no graph, which is told sooner."""
    return is_traced(x) and applies()


def leaves() -> bool:
    """Whether that graph is exported, for others to run who do not know tlsc's operators."""
    return _is_exporting() or torch.onnx.is_in_onnx_export() or _is_jit_traced()


def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


# As torch.compiler.assume_constant_result, without its import of the compiler: Dynamo calls the function while it
# traces. Of its own it takes is_exporting for true whatever is recorded (PyTorch 2.11).
_is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_jit_traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two sizes, kept open in a graph."""
    return _smaller(a, b) if applies() else min(a, b)


def local_mean(x: Tensor, window: Window, stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.local_mean`."""
    mean = grid_means(x, window, stride, correction)
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
        share = _windows(x, window, 1).outline(var.dtype)
        var = correction.var_of(var, absolute, share)
        mean = correction.mean_of(absolute, share) - shift.squeeze(2)
    scale = place((var + eps).rsqrt(), window, 1, height, width).unsqueeze(2)
    out = (centred - place(mean, window, 1, height, width).unsqueeze(2)) * scale
    out = out.reshape(batch, channels, height, width)
    if weight is not None:
        out = out * weight.to(out).reshape(-1, 1, 1)
    if bias is not None:
        out = out + bias.to(out).reshape(-1, 1, 1)
    return out.to(x.dtype)


def grid_means(x: Tensor, window: Window, stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.grid_means`."""
    groups = x if x.dim() == 5 else x.unsqueeze(2)
    shift = _shift(groups)
    mean = _means((groups.to(shift.dtype) - shift).mean(2), window, stride) + shift.squeeze(2)
    if correction is not None:
        mean = correction.mean_of(mean, _windows(x, window, stride).outline(mean.dtype))
    return mean.to(x.dtype)


def grid_moments(
    x: Tensor, window: Window, stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.grid_moments`."""
    groups = x if x.dim() == 5 else x.unsqueeze(2)
    shift = _shift(groups)
    var, mean = _moments(groups.to(shift.dtype) - shift, window, stride)
    mean = mean + shift.squeeze(2)
    if correction is not None:
        share = _windows(x, window, stride).outline(mean.dtype)
        var, mean = correction.var_of(var, mean, share), correction.mean_of(mean, share)
    return var.to(x.dtype), mean.to(x.dtype)


def grid_maxima(x: Tensor, window: Window, stride: int = 1) -> Tensor:
    """As :func:`tlsc._reference.grid_maxima`."""
    out = x.amax(2) if x.dim() == 5 else x
    for dim, number in _AXES:
        n, k = out.shape[dim], window[number]
        out = _sliding(_longer(out, k - 1, dim, float("-inf")), n, k, dim, torch.maximum, idempotent=True)
        if stride > 1:
            starts = Axis(n, k, stride, x.device, free=True).evaluated
            out = out.index_select(dim, starts.clamp(max=n - 1))
    return out


def place(grid: Tensor, window: Window, stride: int, height: int, width: int) -> Tensor:
    """Give each position of (height, width) the value of its window in a grid (…, h, w) of evaluated ones."""
    for (dim, number), n in zip(_AXES, (height, width), strict=True):
        axis = Axis(n, window[number], stride, grid.device, free=True)
        if stride == 1:
            grid = grid.index_select(dim, axis.starts)
            continue
        below, above, share = axis.between(grid.dtype)
        share = share.unsqueeze(-1) if dim == -2 else share
        grid = torch.lerp(grid.index_select(dim, below), grid.index_select(dim, above), share)
    return grid


def meet(x: Tensor, grid: Tensor, window: Window, stride: int, operation: str) -> Tensor:
    """As :func:`tlsc._reference.meet`."""
    out: Tensor = getattr(torch, operation)(x, place(grid, window, stride, x.shape[2], x.shape[3]))
    return out


def grid_shape(x: Tensor, stride: int) -> tuple[int, ...]:
    """The shape of the grids that are made here of (N, K, H, W) or (N, K, D, H, W)."""
    return *x.shape[:2], *_windows(x, (1, 1), stride).grid


def _windows(x: Tensor, window: Window, stride: int) -> Windows:
    return Windows.of(x.shape[-2:], window, stride, x.device, free=True)


def positions(x: Tensor, window: Window) -> Any:
    """How many positions of the map (…, H, W) a window holds."""
    return Windows.of(x.shape[-2:], window, free=applies()).positions


def _moments(centred: Tensor, window: Window, stride: int) -> tuple[Tensor, Tensor]:
    mean = _means(centred.mean(2), window, stride)
    return (_means(centred.square().mean(2), window, stride) - mean.square()).clamp(min=0), mean


def _means(x: Tensor, window: Window, stride: int) -> Tensor:
    out = x
    for dim, axis in _AXES:
        out = _sums(out, window[axis], dim, stride)
    means: Tensor = out / positions(x, window)
    return means


def _sums(x: Tensor, k: int, dim: int, stride: int) -> Tensor:
    """Sums of the windows of ``k`` along ``dim``: one for each start, or those at 0, r, 2r, … and the last."""
    n = x.shape[dim]
    if stride == 1:
        return _sliding(_longer(x, k - 1, dim, 0.0), n, k, dim, operator.add)
    whole, rest = k // stride, k % stride
    count = n // stride + 1  # windows on the grid; the last may start at n and hold nothing
    blocks = _longer(x, (whole + 2) * stride, dim, 0.0).narrow(dim, 0, (count + whole) * stride)
    blocks = torch.unflatten(blocks, dim, (count + whole, stride))
    inner = -1 if dim == -1 else -2
    parts = []
    if whole:
        parts.append(_sliding(blocks.sum(inner), count, whole, dim, operator.add))
    if rest:
        parts.append(blocks.narrow(inner, 0, rest).sum(inner).narrow(dim, whole, count))
    grid = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    inside = torch.arange(n, device=x.device) >= Axis(n, k, stride, x.device, free=True).last
    flush = x.masked_fill(~(inside.unsqueeze(-1) if dim == -2 else inside), 0.0).sum(dim, keepdim=True)
    return torch.cat([grid, flush], dim)


def _sliding(
    x: Tensor, count: int, k: int, dim: int, combine: Callable[[Tensor, Tensor], Tensor], idempotent: bool = False
) -> Tensor:
    """``combine`` over ``k`` neighbours along ``dim``, for windows that start at 0 to count − 1, by doubling.

    ``x`` holds ``count + k - 1`` positions.
    """
    held = k - 1  # positions of x beyond count
    width = 1  # of the windows in x
    out: Tensor | None = None
    done = 0
    while True:
        if not idempotent and k & width:
            part = x.narrow(dim, done, count)
            out = part if out is None else combine(out, part)
            done += width
        if 2 * width > k:
            break
        held -= width
        x = combine(x.narrow(dim, 0, count + held), x.narrow(dim, width, count + held))
        width *= 2
    if idempotent:
        return x if width == k else combine(x.narrow(dim, 0, count), x.narrow(dim, k - width, count))
    assert out is not None
    return out


def _longer(x: Tensor, more: int, dim: int, value: float) -> Tensor:
    """``x`` continued along ``dim``."""
    return F.pad(x, (0, more) if dim == -1 else (0, 0, 0, more), value=value) if more else x


def _shift(groups: Tensor) -> Tensor:
    """The mean of each group of planes (N, K, D, H, W) as (N, K, 1, 1, 1), 0 where it is not finite.

    In the dtype in which sums are to run: nothing cancels where a mean is large beside the deviation.
    """
    dtype = torch.promote_types(groups.dtype, torch.float32)
    mean = groups.detach().mean((2, 3, 4), keepdim=True, dtype=dtype)
    return torch.where(mean.abs() < float("inf"), mean, torch.zeros_like(mean))

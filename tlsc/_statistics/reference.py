"""Local statistics in plain PyTorch: any device, differentiable twice, the reference for faster kernels.

Everything works on stacks of planes (P, H, W), P = N·C. Sums run in float64. A window sum is the difference of
two running sums, the cheapest way; a NaN or Inf would then spread to every later window of its plane, so planes
in which that shows (the last running sum is not finite) are summed again blockwise, where no term outside a
window ever takes part in its sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .._windows import Axis, Windows, covers_axis
from .correction import Correction

__all__ = [
    "grid_maxima",
    "grid_means",
    "grid_moments",
    "is_traced",
    "local_group_norm",
    "local_mean",
    "local_var_mean",
    "meet",
    "place",
]

# Elements of a piece that is worked on at once on the CPU: its float64 temporaries then stay in the last-level
# cache (measured 3 times faster at 64×720×1280 than the whole tensor at once) and extra memory stays small.
PIECE = 2**20
_PLAIN = (Tensor, Parameter)


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """Local mean of (N, C, H, W); see :func:`tlsc.functional.local_mean`."""
    height, width = x.shape[2:]
    read = torch.promote_types(x.dtype, torch.float32)
    per_plane = None if correction is None else correction.per_plane(x.shape[0])

    def piece(planes: Tensor, part: slice) -> Tensor:
        shift = _shift(planes)
        mean = _window_means(planes - shift, window, stride) + shift
        if per_plane is not None:
            mean = per_plane.planes(part).mean_of(mean, _outline(planes, window, stride, mean))
        if stride == 1:
            return _replicate(mean.to(x.dtype), window, height, width)
        return _interpolate(mean.to(read), window, stride, height, width).to(x.dtype)

    planes = x.reshape(-1, height, width)
    return _like(_join([piece(planes[part], part) for part in _pieces(planes)], x), x)


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Local variance and mean of (N, C, H, W); see :func:`tlsc.functional.local_var_mean`."""
    height, width = x.shape[2:]
    planes = x.reshape(-1, height, width)
    variances, means = [], []
    for part in _pieces(planes):
        shift = _shift(planes[part])
        var, mean = _moments((planes[part] - shift).unsqueeze(1), window)
        variances.append(_replicate(var.to(x.dtype), window, height, width))
        means.append(_replicate((mean + shift).to(x.dtype), window, height, width))
    return _like(_join(variances, x), x), _like(_join(means, x), x)


def local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correction: Correction | None = None,
) -> Tensor:
    """Local group norm of (N, C, H, W); instance norm is the case of as many groups as channels."""
    batch, channels, height, width = x.shape
    depth = channels // num_groups
    groups = x.reshape(batch * num_groups, depth, height, width)
    per_plane = None if correction is None else correction.per_plane(batch)

    def piece(part: slice) -> Tensor:
        planes = groups[part]
        shift = _shift(planes.flatten(1, 2)).unsqueeze(1)
        centred = planes - shift
        var, mean = _moments(centred, window)
        if per_plane is not None:
            absolute = mean + shift.squeeze(1)
            own, share = per_plane.planes(part), _outline(planes, window, 1, var)
            var = own.var_of(var, absolute, share)
            mean = own.mean_of(absolute, share) - shift.squeeze(1)
        scale = _replicate((var + eps).rsqrt(), window, height, width).unsqueeze(1)
        mean = _replicate(mean, window, height, width).unsqueeze(1)
        out = (centred - mean) * scale
        if weight is not None:
            out = out * weight.to(out).reshape(num_groups, depth, 1, 1).repeat(batch, 1, 1, 1)[part]
        if bias is not None:
            out = out + bias.to(out).reshape(num_groups, depth, 1, 1).repeat(batch, 1, 1, 1)[part]
        return out.to(x.dtype)

    return _like(_join([piece(part) for part in _pieces(groups)], x), x)


# ------------------------------------------------------------------------------- statistics of evaluated windows


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """Means of (N, K, H, W), or of (N, K, D, H, W) over D too, over every evaluated window: (N, K, h, w).

    Every window that lies inside where ``stride`` is 1, else those on its grid; one where it covers the map.
    """
    per_plane = None if correction is None else correction.per_plane(x.shape[0])

    def piece(planes: Tensor, part: slice) -> Tensor:
        shift = _shift(planes.flatten(1, 2)).unsqueeze(1)
        centred = planes - shift
        first = centred.squeeze(1) if centred.shape[1] == 1 else centred.mean(1)
        mean = _window_means(first, window, stride) + shift.squeeze(1)
        return (
            mean
            if per_plane is None
            else per_plane.planes(part).mean_of(mean, _outline(planes, window, stride, mean))
        )

    planes = _stacked(x)
    return _unstacked([piece(planes[part], part).to(x.dtype) for part in _pieces(planes)], x)


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    """Biased variances and means, as :func:`grid_means`."""
    planes = _stacked(x)
    per_plane = None if correction is None else correction.per_plane(x.shape[0])
    variances, means = [], []
    for part in _pieces(planes):
        shift = _shift(planes[part].flatten(1, 2)).unsqueeze(1)
        var, mean = _moments(planes[part] - shift, window, stride)
        mean = mean + shift.squeeze(1)
        if per_plane is not None:
            own, share = per_plane.planes(part), _outline(x, window, stride, var)
            var = own.var_of(var, mean, share)
            mean = own.mean_of(mean, share)
        variances.append(var.to(x.dtype))
        means.append(mean.to(x.dtype))
    return _unstacked(variances, x), _unstacked(means, x)


def grid_maxima(x: Tensor, window: tuple[int, int], stride: int = 1) -> Tensor:
    """Maxima, as :func:`grid_means`; exact windows whatever the stride."""
    out = x.amax(2) if x.dim() == 5 else x
    for dim, size in ((-2, window[0]), (-1, window[1])):
        n = out.shape[dim]
        k = min(size, n)
        out = _valid_maxima(out, k, dim)
        if stride > 1 and k < n:
            out = out.index_select(dim, Axis(n, k, stride, x.device).evaluated)
    return out


def place(grid: Tensor, window: tuple[int, int], stride: int, height: int, width: int) -> Tensor:
    """Give each position of (H, W) the value of its window in a grid (…, h, w) of evaluated ones."""
    if stride == 1:
        return _replicate(grid, window, height, width)
    return _interpolate(grid, window, stride, height, width)


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """``x``, (N, C, H, W), "mul", "add" or "sub" the value of each position's window in ``grid``, (N, C, h, w)."""
    values = place(grid, window, stride, x.shape[2], x.shape[3])
    return cast(Tensor, getattr(torch, operation)(x, values))


def _valid_maxima(x: Tensor, k: int, dim: int) -> Tensor:
    """Maxima of ``k`` neighbours along ``dim``: of the end of one block and the beginning of the next"""
    n = x.shape[dim]
    if k == n:
        return x.amax(dim, keepdim=True)
    if k == 1:
        return x
    count = -(-n // k)
    lowest = float("-inf")
    after = count * k - n
    blocks = F.pad(x, (0, after) if dim == -1 else (0, 0, 0, after), value=lowest)
    blocks = _cut(blocks, dim, count, k)
    ends = blocks.flip(dim).cummax(dim).values.flip(dim).flatten(dim - 1, dim)
    beginnings = blocks.cummax(dim).values.flatten(dim - 1, dim)
    return torch.maximum(ends.narrow(dim, 0, n - k + 1), beginnings.narrow(dim, k - 1, n - k + 1))


def _outline(x: Tensor, window: tuple[int, int], stride: int, like: Tensor) -> Tensor:
    """The share of each evaluated window's outline that lies inside the map (…, H, W): (h, w)."""
    share: Tensor = Windows.of(x.shape[-2:], window, stride, x.device).outline(like.dtype)
    return share


def _stacked(x: Tensor) -> Tensor:
    """(N, K, H, W) or (N, K, D, H, W) as planes (N·K, D, H, W)."""
    return x.reshape(-1, x.shape[2] if x.dim() == 5 else 1, *x.shape[-2:])


def _unstacked(pieces: list[Tensor], x: Tensor) -> Tensor:
    planes = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return planes.reshape(*x.shape[:2], *planes.shape[-2:])


# ------------------------------------------------------------------------------------------ statistics


def _moments(centred: Tensor, window: tuple[int, int], stride: int = 1) -> tuple[Tensor, Tensor]:
    """Biased variance and mean over the windows of (P, D, H, W), D channels together: each (P, h, w)."""
    if centred.shape[1] == 1:
        first, second = centred.squeeze(1), centred.squeeze(1).square()
    else:
        first, second = centred.mean(1), centred.square().mean(1)
    mean = _window_means(first, window, stride)
    return (_window_means(second, window, stride) - mean.square()).clamp(min=0), mean


def _window_means(planes: Tensor, window: tuple[int, int], stride: int = 1) -> Tensor:
    """Means over the windows of (P, H, W) that lie inside, every one or those on the grid of ``stride``."""

    def sums(contained: bool) -> Tensor:
        out = planes
        for dim, size in ((-2, window[0]), (-1, window[1])):
            k = min(size, planes.shape[dim])
            step = _valid_sums if stride == 1 else partial(_grid_sums, stride)
            out = step(out, k, dim, contained)
        return out

    if is_traced(planes) or planes.dtype != torch.float64:
        # No branch on values in a graph; and without float64, running sums would cancel.
        total = sums(contained=True)
    else:
        total = sums(contained=False)
        edge = total if stride > 1 else torch.cat([total[..., -1, :], total[..., :, -1]], dim=-1)
        if not bool(torch.isfinite(edge).all()):
            total = sums(contained=True)
    means: Tensor = total / Windows.of(planes.shape[-2:], window).positions
    return means


def _valid_sums(x: Tensor, k: int, dim: int, contained: bool) -> Tensor:
    """Sums of ``k`` neighbours along ``dim``, for the n − k + 1 windows that lie inside."""
    n = x.shape[dim]
    if k == n:
        return x.sum(dim, keepdim=True)
    if k == 1:
        return x
    if contained:
        return _contained_sums(x, k, dim)
    running = x.cumsum(dim)
    difference = running.narrow(dim, k, n - k) - running.narrow(dim, 0, n - k)
    return torch.cat([running.narrow(dim, k - 1, 1), difference], dim)


def _contained_sums(x: Tensor, k: int, dim: int) -> Tensor:
    """The same without differences (van Herk): cut into blocks of ``k``; a window is the end of one block
    plus the beginning of the next."""
    n = x.shape[dim]
    count = -(-n // k)
    after = count * k - n
    blocks = F.pad(x, (0, after) if dim == -1 else (0, 0, 0, after))
    blocks = _cut(blocks, dim, count, k)
    ends = blocks.flip(dim).cumsum(dim).flip(dim).flatten(dim - 1, dim)
    nothing = torch.zeros_like(blocks.narrow(dim, 0, 1))
    beginnings = torch.cat([nothing, blocks.cumsum(dim).narrow(dim, 0, k - 1)], dim).flatten(dim - 1, dim)
    beginnings = torch.cat([beginnings, torch.zeros_like(beginnings.narrow(dim, 0, 1))], dim)
    return ends.narrow(dim, 0, n - k + 1) + beginnings.narrow(dim, k, n - k + 1)


def _cut(x: Tensor, dim: int, count: int, size: int) -> Tensor:
    """``dim``, the last or the one before it, as two: ``count`` blocks of ``size``."""
    rows, columns = x.shape[-2:]
    shape = (count, size, columns) if dim == -2 else (rows, count, size)
    return x.reshape(*x.shape[:-2], *shape)


def _grid_sums(stride: int, x: Tensor, k: int, dim: int, contained: bool) -> Tensor:
    """Sums of the windows that start at 0, r, 2r, … and n − k along ``dim``, from sums of blocks of r."""
    n = x.shape[dim]
    if k == n:
        return x.sum(dim, keepdim=True)
    regular = (n - k) // stride + 1
    whole, rest = k // stride, k % stride  # not divmod: torch.compile has none for dynamic shapes
    after = -n % stride
    blocks = F.pad(x, (0, after) if dim == -1 else (0, 0, 0, after))
    blocks = _cut(blocks, dim, (n + after) // stride, stride)
    totals = blocks.sum(dim)
    parts = []
    if whole:
        parts.append(_valid_sums(totals, whole, dim, contained).narrow(dim, 0, regular))
    if rest:
        parts.append(blocks.narrow(dim, 0, rest).sum(dim).narrow(dim, whole, regular))
    grid = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    if (n - k) % stride == 0:
        return grid
    block, offset = (n - k) // stride, (n - k) % stride
    first = blocks.select(dim - 1, block).narrow(dim, offset, stride - offset).sum(dim, keepdim=True)
    others = totals.narrow(dim, block + 1, totals.shape[dim] - block - 1).sum(dim, keepdim=True)
    return torch.cat([grid, first + others], dim)


# ----------------------------------------------------------------------------- from window to position


def _replicate(windows: Tensor, window: tuple[int, int], height: int, width: int) -> Tensor:
    """Give each position of (H, W) the value of its own window: the border takes the nearest one."""
    pads: list[int] = []
    for axis in (Axis(width, window[1]), Axis(height, window[0])):
        pads += [0, 0] if axis.size == axis.n else [axis.before, axis.size - 1 - axis.before]
    if any(pads):
        windows = F.pad(windows, tuple(pads), mode="replicate")
    return windows.expand(*windows.shape[:-2], height, width)


def _interpolate(grid: Tensor, window: tuple[int, int], stride: int, height: int, width: int) -> Tensor:
    """Give each position the linear interpolation between the evaluated windows around its own."""
    for dim, axis in (
        (-2, Axis(height, window[0], stride, grid.device)),
        (-1, Axis(width, window[1], stride, grid.device)),
    ):
        if covers_axis(axis.k, axis.n):
            continue
        below, above, share = axis.between(grid.dtype)
        share = share.unsqueeze(-1) if dim == -2 else share
        grid = torch.lerp(grid.index_select(dim, below), grid.index_select(dim, above), share)
    return grid.expand(*grid.shape[:-2], height, width)


# -------------------------------------------------------------------------------------------- plumbing


def is_traced(x: Tensor) -> bool:
    """Whether ``x`` stands for values that are not there to look at."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if forward_ad._current_level >= 0:  # the operators have no derivatives of that kind
        return True
    return x.is_meta or type(x) not in _PLAIN or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _shift(planes: Tensor) -> Tensor:
    """About each plane's mean, (P, 1, 1), from a coarse sample, in the dtype in which sums are to run.

    Statistics are taken of ``x − shift``: nothing cancels where a plane's mean is large, and a constant
    plane has a variance of exactly 0. Any finite value is right.
    """
    # Apple's GPUs have no float64.
    dtype = torch.float32 if planes.device.type == "mps" else torch.float64
    if is_traced(planes):
        return planes.new_zeros((planes.shape[0], 1, 1), dtype=dtype)
    rows, columns = (max(1, size // 16) for size in planes.shape[-2:])
    sample = planes.detach()[:, ::rows, ::columns].to(dtype)
    return sample.mean((-2, -1), keepdim=True).nan_to_num(0.0, 0.0, 0.0)


def _pieces(planes: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, small enough for the cache."""
    count = planes.shape[0]
    step = count
    if planes.device.type == "cpu" and not is_traced(planes):
        step = max(1, PIECE // max(1, math.prod(planes.shape[1:])))
    for first in range(0, max(1, count), step):
        yield slice(first, min(first + step, count))


def _join(pieces: list[Tensor], x: Tensor) -> Tensor:
    return (pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)).reshape(x.shape)


def _like(out: Tensor, x: Tensor) -> Tensor:
    """``out`` in the memory format of ``x``; under ``vmap`` maps have none."""
    if torch._C._functorch.is_batchedtensor(x):
        return out
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return out.contiguous(memory_format=torch.channels_last)
    return out

"""Local statistics on NVIDIA GPUs, in Triton, without float64 (unless the map itself is float64).

Exact statistics take one launch, or two where windows are large; strided ones two, and one more to read them out.
Nothing waits for the GPU and nothing is copied from the host, so that a CUDA graph can hold it all. Maps are read
and written as they lie in memory, channels first or last. The kernels say how: :mod:`.kernels` the exact ones,
:mod:`.grid_kernels` the strided ones and what reads a grid out; :mod:`.launches` over how many programs.
"""

from __future__ import annotations

import math
import os
import struct
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..correction import Correction
from . import launches
from .grid_kernels import cell_sums, grid_statistics, place
from .kernels import local_statistics
from .launching import launch
from .sums import block_sums

__all__ = [
    "grid_means",
    "grid_moments",
    "local_group_norm",
    "local_mean",
    "local_var_mean",
    "meet",
    "why_not",
    "why_unusable",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# From this stride on windows are sums of cells; below, there are so many that all are taken and some are kept.
CELLS = 4


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


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._statistics.reference.local_mean`."""
    if stride == 1:
        return _exact(x, x.shape[1], window, False, False, correction=correction)[0]
    _, grid = _grids(x, window, stride, False, correction, _wide(x.dtype))
    return _placed(x, grid, window, stride, "take")


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._statistics.reference.local_var_mean`."""
    mean, var = _exact(x, x.shape[1], window, True, False)
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
    """As :func:`tlsc._statistics.reference.local_group_norm`."""
    return _exact(x, num_groups, window, True, True, weight, bias, eps, correction)[0]


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._statistics.reference.grid_means`."""
    return _grids(x, window, stride, False, correction, x.dtype)[1]


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._statistics.reference.grid_moments`."""
    return _grids(x, window, stride, True, correction, x.dtype)


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """As :func:`tlsc._statistics.reference.meet`."""
    return _placed(x, grid, window, stride, operation)


# ------------------------------------------------------------------------------------------------------- launches


def _exact(
    x: Tensor,
    groups: int,
    window: tuple[int, int],
    moments: bool,
    normalise: bool,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 0.0,
    correction: Correction | None = None,
    step: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The result, or means, at every position, and variances; where ``step`` is given, at every such window."""
    x, last, strides = _laid_out(x)
    images, channels, height, width = x.shape
    depth = channels // groups
    rows, columns = min(window[0], height), min(window[1], width)
    how = launches.strips(images, groups, depth, height, width, rows, columns, step > 0, last)
    if step:
        count, wide = (-(-(n - k) // step) + 1 for n, k in ((height, rows), (width, columns)))
        out = _room(x, (images, groups, count, wide), dtype, last)
        out_last = last
    else:
        out = _like(x)
        out_last = not out.is_contiguous()
    variances = torch.empty_like(out) if moments and not normalise else out
    planes = images * groups
    kind: Any = tl.float64 if x.dtype == torch.float64 else tl.float32
    sizes = (planes, depth, height, width, groups, *strides)
    sums = x
    each = 2 if moments else 1
    room = _padded(each * planes * how.count * width) if how.size else 0
    room += _padded(each * planes * how.segments * height) if how.size else 0
    if room or len(how.stages) > 1:
        sums = x.new_empty(room + how.programs, dtype=_wide(x.dtype))
    align = _shared_power(x.element_size(), columns, step > 0, groups if last else width, last, strides)
    if how.size:
        launch(
            block_sums, how.block_programs, (x, sums),
            (*sizes, how.size, how.count, how.tiles, how.block_channel_tiles, columns,
             0 if step else columns - columns // 2, how.segments, how.per_plane),
            (kind, moments, last, how.block_columns, how.block_channels, how.columns, how.head, align),
        )  # fmt: skip
    numbers = (
        *sizes, rows, columns, max(step, 1), how.strips, how.strip, how.segments, how.channel_tiles, how.size or 1,
        how.count, *_pair(eps),
    )  # fmt: skip
    factors = _rows(correction, x)
    for stage in how.stages:
        launch(
            local_statistics, how.programs, (x, sums, factors, weight, bias, out, variances), numbers,
            (kind, moments, normalise, step > 0, correction is not None, weight is not None, bias is not None,
             how.size > 0, last, out_last, how.one, depth == 1, how.columns, how.front, how.rows,
             how.channels, 1 if stage == "repair" else align, stage),
            how.warps,
        )  # fmt: skip
    return out, variances


def _grids(
    x: Tensor,
    window: tuple[int, int],
    stride: int,
    moments: bool,
    correction: Correction | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Variances (if asked for) and means over the evaluated windows of (N, K, H, W) or (N, K, D, H, W)."""
    groups = x.shape[1]
    maps = x if x.dim() == 4 else x.flatten(1, 2)
    if stride < CELLS:
        mean, var = _exact(maps, groups, window, moments, False, correction=correction, step=stride, dtype=dtype)
        return var, mean
    maps, last, strides = _laid_out(maps)
    images, channels, height, width = maps.shape
    depth = channels // groups
    rows, columns = min(window[0], height), min(window[1], width)
    how = launches.cells(images, groups, height, width, rows, columns, stride, last)
    down, across = how.down, how.across
    lines, beside = down.blocks * down.parts, across.blocks * across.parts
    planes = images * groups
    kind: Any = tl.float64 if x.dtype == torch.float64 else tl.float32
    sums = x.new_empty((2 if moments else 1) * planes * lines * beside, dtype=_wide(x.dtype))
    mean = _room(x, (images, groups, down.count, across.count), dtype, last)
    var = torch.empty_like(mean) if moments else mean
    sizes = (planes, depth, height, width, groups, *strides)
    align = _shared_power(x.element_size(), columns, True, groups, True, strides) if last else 1
    launch(
        cell_sums, how.programs, (maps, sums),
        (*sizes, down.parts, down.cut, down.cut2, across.parts, across.cut, across.cut2, down.blocks, across.blocks,
         how.tiles, how.channel_tiles),
        (kind, moments, last, stride, how.span, how.blocks, how.channels, align),
    )  # fmt: skip
    launch(
        grid_statistics, how.grid_programs, (maps, sums, _rows(correction, x), mean, var),
        (*sizes, rows, columns, down.parts, down.length, down.last, lines, across.parts, across.length, across.last,
         beside, down.count, across.count),
        (kind, moments, correction is not None, stride, how.lanes, last),
        how.warps,
    )  # fmt: skip
    return var, mean


def _placed(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """``x`` (N, C, H, W) with the value of each position's window in (N, C, h, w)."""
    x, last, strides = _laid_out(x)
    images, channels, height, width = x.shape
    out = _like(x)
    rows = min(window[0], height)
    how = launches.tiles(images, channels, height, width, rows, stride, x.element_size(), last)
    kind: Any = tl.float64 if torch.float64 in (x.dtype, grid.dtype) else tl.float32
    align = 1
    if last and grid.stride(1) == 1:
        given = (*strides[2:], strides[0], grid.stride(0), *grid.stride()[2:])
        align = math.gcd(16 // x.element_size(), channels, *given)
    launch(
        place, how.programs, (x, grid, out),
        (height, width, channels, *strides, *grid.stride(), rows, min(window[1], width), *grid.shape[2:],
         how.row_tiles, how.tiles, how.channel_tiles),
        (kind, operation, stride, last, not out.is_contiguous(), how.rows, how.columns, how.channels, align),
        how.warps,
    )  # fmt: skip
    return out


# --------------------------------------------------------------------------------------------------------- layout


def _laid_out(x: Tensor) -> tuple[Tensor, bool, tuple[int, ...]]:
    """(N, C, H, W) as kernels take it: whether channels are neighbours in memory, and its strides.

    Rows, or the channels of a pixel, have to be contiguous; a map in which neither is (a transposed one) is copied.
    """
    strides = x.stride()
    if strides[3] == 1 or x.shape[3] == 1:
        return x, False, strides
    if strides[1] == 1 and x.shape[1] > 1:
        return x, True, strides
    x = x.contiguous()
    return x, False, x.stride()


def _like(x: Tensor) -> Tensor:
    """Room for a result in the shape and memory format of ``x``."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _room(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, last: bool) -> Tensor:
    """Room for (N, K, h, w), channels last where those of the map are neighbours."""
    return torch.empty(
        shape,
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(correction: Correction | None, x: Tensor) -> Tensor | None:
    """The correction as (8, C), contiguous, where ``x`` is."""
    return None if correction is None else correction.on(x.device).contiguous()


@lru_cache(maxsize=4096)
def _shared_power(size: int, columns: int, windows: bool, side: int, last: bool, strides: tuple[int, ...]) -> int:
    """The power of two up to 16 bytes' worth of elements of ``size`` bytes that divides all that loads go by.

    ``side``: the width, or the groups where channels come last.
    """
    if last:
        return math.gcd(16 // size, side, strides[0], strides[2], strides[3])
    ahead = columns if windows else columns // 2
    return math.gcd(16 // size, ahead, columns - ahead, side, *strides[:3])


def _padded(number: int) -> int:
    """As :func:`.parts.padded`."""
    return (number + 15) // 16 * 16


@lru_cache(maxsize=256)
def _pair(value: float) -> tuple[float, float]:
    """A number as the nearest float32 and what that leaves, for kernels take float32 alone."""
    high: float = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high

"""What a rewritten forward calls: statistics of windows, and the ways from them to maps."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from .. import attention, functional
from .._sites.state import SiteState
from .._sources.passes import At, Passes
from .._sources.reading import Field, grouped, normalised
from .._statistics import any_size as _graph
from .._statistics import operations as _dispatch
from .._statistics.autocast import widened
from .._statistics.correction import Correction

__all__ = [
    "CORRECTIONS",
    "Sourced",
    "attend",
    "count",
    "evaluate",
    "evaluate_weighted",
    "from_batch",
    "images",
    "local_norm",
    "meet",
    "pair",
    "spread",
    "to_batch",
    "to_canonical",
]

CORRECTIONS = "_tlsc_corrections"
"""Where a rewritten module keeps the corrections of its statistics, by the number of each among its sites."""


class Sourced(dict[int, Correction]):
    """In place of corrections, for a module whose statistics come from a source other than the window."""

    def __init__(self, passes: Passes, module: int, path: str) -> None:
        super().__init__()
        self.passes, self.module, self.path = passes, module, path

    def field(
        self, number: int, x: Tensor, window: tuple[int, int], second: bool, eps: float = 0.0
    ) -> Field | None:
        """What the source has for one of the module's statistics; None where it is the whole map's."""
        return At(self.passes, (self.module, number), self.path).field(x, window, second, eps)

    def __reduce__(self) -> tuple[Any, ...]:
        return Sourced, (self.passes, self.module, self.path)


def pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first, second


def local_norm(
    x: Tensor,
    window: tuple[int, int],
    groups: int | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    height: int,
    width: int,
    corrections: Corrections,
    number: int,
) -> Tensor:
    """Local group norm, or instance norm, of a map (N, C, H, W) or (N, C, H·W)."""
    maps = x.reshape(*x.shape[:2], height, width)
    if isinstance(corrections, Sourced):
        field = corrections.field(number, grouped(maps, groups), window, True, eps)
        if field is not None:
            return normalised(maps, field, groups, weight, bias, eps).reshape(x.shape)
        corrections = {}
    correction = _found(corrections, number, maps, "var_mean", window, eps, groups)
    out = functional._local_group_norm(maps, window, groups, weight, bias, eps, correction)
    return out.reshape(x.shape)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float, window: tuple[int, int], height: int, width: int
) -> Tensor:
    """Local attention between the channels of maps (N, c, H·W) or (N, heads, c, H·W)."""
    shape = (v.shape[0], v.shape[1] if v.dim() == 4 else 1, v.shape[-2], height, width)
    maps = q.reshape(shape), k.reshape(shape), v.reshape(shape)
    temperature = scale.reshape(-1) if isinstance(scale, Tensor) else scale
    return attention.local_transposed_attention(*maps, temperature, window).reshape(v.shape)


def to_canonical(
    x: Tensor, permutation: tuple[int, ...], kept: tuple[int, ...], gone: tuple[int, ...], height: int, width: int
) -> Tensor:
    """A map in any layout as (N, K, H, W), or (N, K, D, H, W) where D channels are reduced too."""
    x = x.permute(permutation)
    channels = 1
    for n in kept:
        channels *= n
    if not gone:
        return x.reshape(x.shape[0], channels, height, width)
    return x.reshape(x.shape[0], channels, -1, height, width)


Corrections = MutableMapping[int, Correction]


def _found(
    corrections: Corrections,
    number: int,
    x: Tensor,
    operation: str,
    window: tuple[int, int],
    eps: float = 0.0,
    groups: int | None = None,
) -> Correction | None:
    """The correction of a statistic of ``x``; while calibrating the map is noted, with what the site is."""
    if type(corrections) is not dict:
        state = SiteState(operation, window, eps=eps, groups=groups)
        corrections.note(number, x, state)  # type: ignore[attr-defined]
    return corrections.get(number)


def evaluate(
    x: Tensor,
    operation: str,
    window: tuple[int, int],
    stride: int,
    order: float,
    correction: float,
    corrections: Corrections,
    number: int,
) -> Any:
    """A statistic of every window that is evaluated: (N, K, h, w); (N, K, 1, 1) where the window covers the map."""
    height, width = x.shape[-2:]
    if x.dim() == 3:
        out = evaluate(x.unsqueeze(0), operation, window, stride, order, correction, corrections, number)
        return tuple(value.squeeze(0) for value in out) if isinstance(out, tuple) else out.squeeze(0)
    if isinstance(corrections, Sourced):
        return _from_source(x, operation, window, order, correction, corrections, number)
    corrected = _found(corrections, number, x, operation, window)
    x = widened(x, operation)
    if not _graph.applies_to(x) and window[0] >= height and window[1] >= width:
        return _global(x, operation, order, correction)
    if operation == "mean":
        return _dispatch.grid_means(x, window, stride, corrected)
    positions = _graph.positions(x, window)
    if x.dim() == 5:
        positions *= x.shape[2]
    if operation == "sum":
        return _dispatch.grid_means(x, window, stride, corrected) * positions
    if operation == "norm":
        return _norms(x, window, stride, order, positions)
    if operation == "logsumexp":
        return _log_sums(x, window, stride, positions)
    if operation in ("amax", "amin"):
        sign = 1 if operation == "amax" else -1
        return sign * _dispatch.grid_maxima(sign * x, window, stride)
    var, mean = _dispatch.grid_moments(x, window, stride, corrected)
    return _of_moments(var, mean, operation, correction, positions)


def _of_moments(var: Tensor, mean: Tensor, operation: str, correction: float, positions: Any) -> Any:
    if operation == "var_sum":
        return var * positions
    if correction:
        left = -_graph.smaller(correction - positions, 0)
        var = var * positions / left
    first = var.sqrt() if operation.startswith("std") else var
    return (first, mean) if operation.endswith("_mean") else first


def _from_source(
    x: Tensor,
    operation: str,
    window: tuple[int, int],
    order: float,
    correction: float,
    sources: Sourced,
    number: int,
) -> Any:
    """A statistic of every position, (N, K, H, W), or (N, K, 1, 1) where it is the same everywhere.

    Sums and norms are those of as many positions as the window has.
    """
    powers = x.abs().pow(order) if operation == "norm" else x
    field = sources.field(number, powers, window, operation.startswith(("var", "std")))
    if field is None:
        return _global(x, operation, order, correction)
    mean, var = (None if part is None else part.to(x.dtype) for part in field.moments())
    assert mean is not None
    if operation == "mean":
        return mean
    positions = _graph.positions(x, window) * (x.shape[2] if x.dim() == 5 else 1)
    if operation == "sum":
        return mean * positions
    if operation == "norm":
        return (mean * positions).pow(1 / order)
    assert var is not None
    return _of_moments(var, mean, operation, correction, positions)


def _norms(x: Tensor, window: tuple[int, int], stride: int, order: float, positions: Any) -> Any:
    if math.isinf(order):
        sign = 1 if order > 0 else -1
        return sign * _dispatch.grid_maxima(sign * x.abs(), window, stride)
    if order == 0:
        return _dispatch.grid_means((x != 0).to(x.dtype), window, stride) * positions
    powers = x.abs().pow(order) if order != 2.0 else x.square()
    return (_dispatch.grid_means(powers, window, stride) * positions).pow(1 / order)


def _log_sums(x: Tensor, window: tuple[int, int], stride: int, positions: Any) -> Any:
    wide = x.to(torch.float64)
    highest = _finite(wide.detach().amax((-3, -2, -1) if x.dim() == 5 else (-2, -1), keepdim=True))
    means = _dispatch.grid_means((wide - highest).exp(), window, stride)
    return ((means * positions).log() + highest.reshape(*x.shape[:2], 1, 1)).to(x.dtype)


def evaluate_weighted(x: Tensor, logits: Tensor, window: tuple[int, int], stride: int) -> Tensor:
    """Softmax-weighted mean of (N, K, H, W), weights from (N, 1, H, W), over every evaluated window: (N, K, h, w).

    The ratio of two local sums, in float64; the largest logit of each image is taken off first.
    """
    wide = logits.to(torch.float64)
    weights = (wide - _finite(wide.detach().amax((2, 3), keepdim=True))).exp()
    total = _dispatch.grid_means(weights, window, stride)
    return (_dispatch.grid_means(weights * x, window, stride) / total).to(x.dtype)


def _finite(x: Tensor) -> Tensor:
    """A shift that is not finite would spoil every window, not only those that hold what made it so."""
    return torch.where(x.abs() < float("inf"), x, torch.zeros_like(x))


def _global(x: Tensor, operation: str, order: float, correction: float) -> Any:
    """The same where the window covers the map, by PyTorch's own reductions: (N, K, 1, 1)."""
    dims = (-2, -1) if x.dim() == 4 else (2, 3, 4)

    def shaped(value: Tensor) -> Tensor:
        return value if x.dim() == 4 else value.squeeze(2)

    if operation == "norm":
        return shaped(torch.linalg.vector_norm(x, order, dims, keepdim=True))
    if operation.startswith(("var", "std")):
        var, mean = (shaped(v) for v in torch.var_mean(x, dims, correction=correction, keepdim=True))
        if operation == "var_sum":
            return var * (x.shape[-2] * x.shape[-1])
        first = var.sqrt() if operation.startswith("std") else var
        return (first, mean) if operation.endswith("_mean") else first
    return shaped(getattr(x, operation)(dims, keepdim=True))


def to_batch(grid: Tensor, item: tuple[int, ...]) -> Tensor:
    """(N, K, h, w) as N·h·w items of the shape that one image's statistic had."""
    return grid.permute(0, 2, 3, 1).reshape(count(grid), *item)


def count(grid: Tensor) -> int:
    """How many items :func:`to_batch` makes of a grid."""
    return grid.shape[0] * grid.shape[2] * grid.shape[3]


def images(grid: Tensor) -> int:
    """How many images a grid is of."""
    return grid.shape[0]


def from_batch(items: Tensor, grid: Tensor) -> Tensor:
    """The items of :func:`to_batch`, whatever their shape has become, as (N, K', h, w)."""
    batch, _, rows, columns = grid.shape
    return items.reshape(batch, rows, columns, math.prod(items.shape[1:])).permute(0, 3, 1, 2)


def spread(
    grid: Tensor,
    window: tuple[int, int],
    stride: int,
    height: int,
    width: int,
    labels: str,
    item: tuple[int, ...],
    depth: int = 1,
) -> Tensor:
    """Each position of (H, W) takes its window's value; in the layout of the map that it is to meet.

    ``depth``: how many channels are one dimension with the positions, where some are (label M).
    """
    if _graph.applies_to(grid) or tuple(grid.shape[-2:]) not in ((1, 1), (height, width)):
        grid = _dispatch.place(grid, window, stride, height, width)
    if labels == "NCHW":
        return grid
    others = [d for d, label in enumerate(labels) if label not in "NHWPM"]
    x = grid.reshape(grid.shape[0], *(item[d - 1] for d in others), *grid.shape[2:])
    if "P" in labels or "M" in labels:
        x = x.flatten(-2)
    if depth > 1 and (_graph.applies_to(x) or x.shape[-1] > 1):
        x = x.unsqueeze(-2).expand(*x.shape[:-1], depth, x.shape[-1]).flatten(-2)
    after = 1 + len(others)
    source = {"N": 0, "H": after, "W": after + 1, "P": after, "M": after}
    return x.permute([source[label] if label in source else 1 + others.index(d) for d, label in enumerate(labels)])


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """``x`` "mul", "add" or "sub" the value of each position's window, without a map of these values."""
    height, width = x.shape[-2:]
    # One value, or one for each position (a source's, or windows of one pixel), needs no placing.
    whole = not _graph.applies_to(x) and tuple(grid.shape[-2:]) in ((1, 1), (height, width))
    alike = x.dim() == grid.dim() == 4 and x.shape[0] == grid.shape[0] and x.dtype == grid.dtype
    if whole or not alike or grid.shape[1] not in (1, x.shape[1]) or not x.is_floating_point() or x.numel() == 0:
        values = grid if whole else _dispatch.place(grid, window, stride, height, width)
        out: Tensor = getattr(torch, operation)(x, values)
        return out
    return _dispatch.meet(x, grid.expand(-1, x.shape[1], -1, -1), window, stride, operation)

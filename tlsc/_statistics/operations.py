"""The operations on local statistics: for each one record, and a function that its callers use.

An operation takes tensors and numbers alone, since graphs hold nothing else: a window is two numbers, a correction
its rows. Those of attention stand beside their numbers, in :mod:`.transposed_attention` and :mod:`.non_local`.
See :mod:`.reference` for what each gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import any_size
from .correction import Correction
from .operator import operation

__all__ = [
    "grid_maxima",
    "grid_means",
    "grid_moments",
    "local_group_norm",
    "local_mean",
    "local_var_mean",
    "meet",
    "place",
]


@operation("local_mean", map="x")
def _local_mean(by: Any, x: Tensor, correction: Tensor | None, rows: int, columns: int, stride: int) -> Tensor:
    out: Tensor = by.local_mean(x, (rows, columns), stride, _correction(correction))
    return out


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """See :func:`tlsc._statistics.reference.local_mean`; so for the others."""
    out: Tensor = _local_mean(x, _rows(correction, x), *window, _step(stride, x.shape[-2:], x))
    return out


@operation("local_var_mean", map="x")
def _local_var_mean(by: Any, x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    var, mean = by.local_var_mean(x, (rows, columns))
    return var, mean


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    var, mean = _local_var_mean(x, *window)
    return var, mean


@operation("local_group_norm", map="x")
def _local_group_norm(
    by: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    correction: Tensor | None,
    rows: int,
    columns: int,
    num_groups: int,
    eps: float,
) -> Tensor:
    out: Tensor = by.local_group_norm(x, (rows, columns), num_groups, weight, bias, eps, _correction(correction))
    return out


def local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correction: Correction | None = None,
) -> Tensor:
    out: Tensor = _local_group_norm(x, weight, bias, _rows(correction, x), *window, num_groups, eps)
    return out


@operation("grid_means", map="x", result="grid")
def _grid_means(by: Any, x: Tensor, correction: Tensor | None, rows: int, columns: int, stride: int) -> Tensor:
    out: Tensor = by.grid_means(x, (rows, columns), stride, _correction(correction))
    return out


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    out: Tensor = _grid_means(x, _rows(correction, x), *window, _step(stride, x.shape[-2:], x))
    return out


@operation("grid_moments", map="x", result="grid")
def _grid_moments(
    by: Any, x: Tensor, correction: Tensor | None, rows: int, columns: int, stride: int
) -> tuple[Tensor, Tensor]:
    var, mean = by.grid_moments(x, (rows, columns), stride, _correction(correction))
    return var, mean


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    var, mean = _grid_moments(x, _rows(correction, x), *window, _step(stride, x.shape[-2:], x))
    return var, mean


@operation("grid_maxima", map="x", result="grid")
def _grid_maxima(by: Any, x: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    out: Tensor = by.grid_maxima(x, (rows, columns), stride)
    return out


def grid_maxima(x: Tensor, window: tuple[int, int], stride: int = 1) -> Tensor:
    out: Tensor = _grid_maxima(x, *window, _step(stride, x.shape[-2:], x))
    return out


@operation("place", map="grid", result="placed", reads_grid=True)
def _place(by: Any, grid: Tensor, rows: int, columns: int, stride: int, height: int, width: int) -> Tensor:
    out: Tensor = by.place(grid, (rows, columns), stride, height, width)
    return out


def place(grid: Tensor, window: tuple[int, int], stride: int, height: int, width: int) -> Tensor:
    out: Tensor = _place(grid, *window, _step(stride, (height, width), grid), height, width)
    return out


@operation("meet", map="x", reads_grid=True)
def _meet(by: Any, x: Tensor, grid: Tensor, rows: int, columns: int, stride: int, operation: str) -> Tensor:
    out: Tensor = by.meet(x, grid, (rows, columns), stride, operation)
    return out


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    out: Tensor = _meet(x, grid, *window, _step(stride, x.shape[-2:], x), operation)
    return out


def _step(stride: int, sizes: Sequence[int], x: Tensor) -> int:
    """A stride no larger than the map: from there on there is only the first and the last window of an axis.

    Room is taken in proportion to it. In a graph sizes must not be asked.
    """
    return stride if stride == 1 or any_size.applies_to(x) else min(stride, max(1, *sizes))


def _rows(correction: Correction | None, x: Tensor) -> Tensor | None:
    return None if correction is None else correction.on(x.device)


def _correction(rows: Tensor | None) -> Correction | None:
    return None if rows is None else Correction(rows)

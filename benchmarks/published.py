"""Local statistics the published way, as comparators: integral images in the input's own precision.

Chu, Chen, Chen, Lu: "Improving Image Restoration by Revisiting Global Information Aggregation", ECCV 2022,
arXiv 2112.04491, as the design document (§3, §6) describes its code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fast_mean", "instance_norm", "mean"]


def mean(x: Tensor, window: int) -> Tensor:
    """Local mean by an integral image, borders replicated."""
    rows, columns = (min(window, n) for n in x.shape[2:])
    table = F.pad(x.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    return _placed(_differences(table, rows, columns), *x.shape[2:])


def fast_mean(x: Tensor, window: int) -> Tensor:
    """The fast path: subsample by the largest factor up to 5 that divides the size, then nearest upsampling.

    Its table has no leading zeros, so that the first window is left out.
    """
    steps = [next(r for r in (5, 4, 3, 2, 1) if n % r == 0) for n in x.shape[2:]]
    table = x[:, :, :: steps[0], :: steps[1]].cumsum(-1).cumsum(-2)
    rows, columns = (min(window // r, n - 1) for r, n in zip(steps, table.shape[2:], strict=True))
    coarse = _differences(table, rows, columns)
    return _placed(F.interpolate(coarse, scale_factor=tuple(map(float, steps)), mode="nearest"), *x.shape[2:])


def instance_norm(x: Tensor, window: int, eps: float = 1e-5) -> Tensor:
    """Instance norm with both moments from integral images."""
    first = mean(x, window)
    second = mean(x.square(), window)
    return (x - first) / torch.sqrt(second - first.square() + eps)


def _differences(table: Tensor, rows: int, columns: int) -> Tensor:
    sums = table[..., rows:, columns:] - table[..., :-rows, columns:]
    sums = sums - table[..., rows:, :-columns] + table[..., :-rows, :-columns]
    return sums / (rows * columns)


def _placed(windows: Tensor, height: int, width: int) -> Tensor:
    down, right = height - windows.shape[2], width - windows.shape[3]
    return F.pad(windows, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")

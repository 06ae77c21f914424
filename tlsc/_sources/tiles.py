"""Tiles of an image or a map: where they lie, what is measured in each, and how positions read what was measured.

An axis of length ``n`` is cut into ``m = ⌈(n − k)/step⌉ + 1`` tiles of exactly ``k`` pixels whose starts are evenly
spaced, ``s_i = round(i·(n − k)/(m − 1))``: all of one size, the first and the last flush with the borders,
neighbours sharing pixels where ``n`` is no multiple. Where ``k ≥ n`` there is one tile, the axis itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Axis", "Moments", "Tiles", "cut", "measured"]

_HALF = (torch.float16, torch.bfloat16)


class Moments(NamedTuple):
    """Means, and biased variances where a site needs them: (N, K, h, w) each, in float32 or float64."""

    mean: Tensor
    var: Tensor | None

    def alike(self, change: object) -> Moments:
        """Both through one function."""
        assert callable(change)
        return Moments(change(self.mean), None if self.var is None else change(self.var))


def measured(x: Tensor, second: bool) -> Moments:
    """The moments of whole maps (N, K, H, W), or (N, K, D, H, W) where D channels are taken together."""
    wide = x.to(torch.float32) if x.dtype in _HALF else x
    wide = wide.flatten(2)
    if second:
        var, mean = torch.var_mean(wide, 2, correction=0)
        return Moments(mean[..., None, None], var[..., None, None])
    return Moments(wide.mean(2)[..., None, None], None)


@dataclass(frozen=True)
class Axis:
    """Tiles on one axis: ``length`` pixels, tiles of ``size`` that begin at ``starts``."""

    length: int
    size: int
    starts: tuple[int, ...]

    def _centres(self) -> Tensor:
        return torch.tensor(self.starts, dtype=torch.float64) + self.size / 2

    def _positions(self, n: int) -> Tensor:
        """The centres of the ``n`` pixels of a map on this axis, in pixels of the axis."""
        return (torch.arange(n, dtype=torch.float64) + 0.5) * (self.length / n)

    def nearest(self, n: int) -> Tensor:
        """For each of ``n`` pixels the tile whose centre is nearest; of two the first."""
        centres = self._centres()
        return torch.bucketize(self._positions(n), (centres[1:] + centres[:-1]) / 2)

    def between(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each of ``n`` pixels the tiles on either side, and the share of the second. Beyond the outermost
        centres it is the outermost tile alone, and a tile without a share is not named."""
        centres, at = self._centres(), self._positions(n)
        last = len(self.starts) - 1
        low = (torch.bucketize(at, centres, right=True) - 1).clamp(0, max(last - 1, 0))
        high = (low + 1).clamp(max=last)
        gap = (centres[high] - centres[low]).clamp(min=1e-9)
        share = ((at - centres[low]) / gap).clamp(0, 1)
        low = torch.where(share == 1, high, low)
        return low, torch.where(share == 0, low, high), share


def cut(n: int, size: int, step: int) -> Axis:
    """Tiles of ``size`` on an axis of ``n`` pixels, at most ``step`` apart.

    Example:
        >>> cut(10, 4, 4).starts, cut(10, 16, 16).starts
        ((0, 3, 6), (0,))
    """
    size = min(size, n)
    gaps = -(-(n - size) // step)
    starts = tuple((2 * i * (n - size) + gaps) // (2 * gaps) for i in range(gaps + 1)) if gaps else (0,)
    return Axis(n, size, starts)


class Tiles(NamedTuple):
    """Tiles of an image or of a map (H, W)."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, shape: tuple[int, int], size: tuple[int, int], step: tuple[int, int]) -> Tiles:
        """Tiles of ``size``, at most ``step`` apart, of an image of ``shape``."""
        rows, columns = (cut(*each) for each in zip(shape, size, step, strict=True))
        return cls(rows, columns)

    @property
    def boxes(self) -> tuple[tuple[int, int], ...]:
        """Where the tiles begin, row after row."""
        return tuple((i, j) for i in self.rows.starts for j in self.columns.starts)

    def measured(self, x: Tensor, second: bool) -> Moments:
        """The moments in each tile of a map: a table (N, K, rows, columns)."""
        height, width = self.rows.size, self.columns.size
        found = [measured(x[..., i : i + height, j : j + width], second) for i, j in self.boxes]
        return self.table(found)

    def table(self, found: list[Moments]) -> Moments:
        """What was measured in each tile, row after row, as one table."""
        means, variances = zip(*found, strict=True)
        shape = len(self.rows.starts), len(self.columns.starts)

        def joined(parts: tuple[Tensor, ...]) -> Tensor:
            return torch.unflatten(torch.cat([part.flatten(2) for part in parts], 2), 2, shape)

        return Moments(joined(means), None if variances[0] is None else joined(variances))

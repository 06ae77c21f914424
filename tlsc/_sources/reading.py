"""Tables of tiles read at the positions of a map, and maps normalised with what was read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .source import Pair, Source
from .tiles import Moments, Tiles

__all__ = ["Field", "grouped", "normalised"]

_BAND = 2**20  # elements that are normalised at once, so that statistics are never there for a whole map


@dataclass(frozen=True, eq=False)
class Field:
    """The moments of every position of a map of ``shape``, as a source has them from its table."""

    source: Source
    table: Moments  # prepared
    tiles: Tiles
    shape: Pair
    eps: float

    @classmethod
    def of(cls, source: Source, table: Moments, tiles: Tiles, shape: Pair, eps: float) -> Field:
        """From a table as it was measured."""
        return cls(source, source.prepared(table, eps), tiles, shape, eps)

    @property
    def uniform(self) -> bool:
        """Whether it is the same everywhere."""
        return tuple(self.table.mean.shape[-2:]) == (1, 1)

    def moments(self, rows: slice = slice(None)) -> Moments:
        """Mean and variance of some rows of the map: (N, K, h, W), or (N, K, 1, 1) where :attr:`uniform`."""
        read = self.table
        if not self.uniform:
            mean, second = (None if part is None else self._read(part, rows) for part in self.table)
            assert mean is not None
            read = Moments(mean, second)
        return Moments(read.mean, None if read.var is None else self.source.variance(read.var, self.eps))

    def _read(self, table: Tensor, rows: slice) -> Tensor:
        for dim, axis, n, part in (
            (2, self.tiles.rows, self.shape[0], rows),
            (3, self.tiles.columns, self.shape[1], slice(None)),
        ):
            if not self.source.interpolated:
                table = table.index_select(dim, axis.nearest(n)[part].to(table.device))
                continue
            low, high, share = (each[part].to(table.device) for each in axis.between(n))
            weight = share.to(table.dtype).reshape(-1, *[1] * (3 - dim))
            table = torch.lerp(table.index_select(dim, low), table.index_select(dim, high), weight)
        return table


def grouped(x: Tensor, groups: int | None) -> Tensor:
    """A map (N, C, H, W) with each group's channels as a dimension of their own: (N, groups, C/groups, H, W)."""
    return x if groups is None else torch.unflatten(x, 1, (groups, -1))


def normalised(
    x: Tensor, field: Field, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``(x − mean)/√(var + eps) · weight + bias`` of a map (N, C, H, W), some rows at a time."""
    rows = max(1, _BAND // max(1, x[:, :, :1].numel()))
    if torch.is_grad_enabled() or field.uniform or x.shape[2] <= rows:
        return _normalised(x, field.moments(), groups, weight, bias, eps)
    out = torch.empty_like(x)
    for first in range(0, x.shape[2], rows):
        part = slice(first, first + rows)
        out[:, :, part] = _normalised(x[:, :, part], field.moments(part), groups, weight, bias, eps)
    return out


def _normalised(
    x: Tensor, moments: Moments, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    assert moments.var is not None
    mean, scale = moments.mean, (moments.var + eps).rsqrt()
    if groups is not None:
        mean, scale = (part.repeat_interleave(x.shape[1] // groups, 1) for part in (mean, scale))
    if weight is not None:
        scale = scale * weight.reshape(-1, 1, 1)
    out = (x - mean) * scale
    return (out if bias is None else out + bias.reshape(-1, 1, 1)).to(x.dtype)

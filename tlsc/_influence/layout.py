"""Where the positions are in the tensors inside a network, and which of them lie around one pixel of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Layout", "Places", "under"]


@dataclass(frozen=True)
class Places:
    """A view of a tensor with the index of the region around a pixel, and that of the middle of the region.

    ``first``: the first axis of positions in the view; None where there are none, and both are everything.
    """

    view: Tensor
    region: Any
    middle: Any
    first: int | None


@dataclass(frozen=True)
class Layout:
    """The size of the input, the pixel to look around, and the number of images."""

    size: tuple[int, int]
    centre: tuple[int, ...]
    batch: int

    def places(self, leaf: Any, reach: tuple[int, int]) -> Places | None:
        """The places within ``reach`` pixels of the input around the centre.

        Where there are no positions (a gate, a vector) these are everything. None where it is not clear which axes
        are positions: such a tensor passes unseen, and the next one tells.
        """
        if not isinstance(leaf, Tensor) or leaf.numel() == 0 or leaf.layout != torch.strided:
            return None
        found = self._flat(leaf) if leaf.dim() <= 3 else self._map(leaf)
        if found is None:
            return None
        view, first = found
        if first is None:
            return Places(view, (...,), (...,), None)
        region, middle = [], []
        for n, m, c, wide in zip(view.shape[first : first + 2], self.size, self.centre, reach, strict=True):
            at = under(c, m, n)
            spread = max(0, min(wide * n // m, at - 1, n - 2 - at))  # the outermost positions stay as they are
            region.append(slice(at - spread, at + spread + 1))
            inner = min(1, spread // 2)
            middle.append(slice(at - inner, at + inner + 1))
        before = (slice(None),) * first
        return Places(view, (*before, *region), (*before, *middle), first)

    def _flat(self, leaf: Tensor) -> tuple[Tensor, int | None] | None:
        """A number, a vector, tokens (N, L, C) or (N, C, L), or a map without channels."""
        shape = leaf.shape
        whole = (leaf, None) if leaf.numel() <= 1 or shape[0] == self.batch else None
        if leaf.dim() < 3:
            return whole if leaf.dim() < 2 or shape[0] == self.batch else None
        for axis in sorted((1, 2), key=lambda axis: -shape[axis]):
            grid = self._grid(shape[axis]) if shape[0] == self.batch else None
            if grid is not None:
                return leaf.view(*shape[:axis], *grid, *shape[axis + 1 :]), axis
        if self._fits(shape[1], shape[2]) and min(shape[1:]) > 1:
            return leaf, 1
        return whole if shape[0] == self.batch else None

    def _map(self, leaf: Tensor) -> tuple[Tensor, int | None] | None:
        """A map (N, C, H, W) or (N, H, W, C), or one of five axes that ends in positions."""
        shape = leaf.shape
        if leaf.dim() == 5 and self._fits(shape[3], shape[4]) and min(shape[3:]) > 1:
            return leaf, 3
        if leaf.dim() != 4:
            return None
        if shape[2] == shape[3] == 1:
            return (leaf, None) if shape[0] == self.batch else None
        first = 1 if self._fits(shape[1], shape[2]) and not self._fits(shape[2], shape[3]) else 2
        area = shape[first] * shape[first + 1]
        if shape[0] != self.batch and shape[0] * area <= self.batch * self.size[0] * self.size[1]:
            return None  # an image cut into windows, which went to the batch
        return leaf, first

    def _fits(self, rows: int, columns: int) -> bool:
        """Whether a map of this size has the shape of the image, but for rounding."""
        height, width = self.size
        return abs(rows * width - columns * height) <= 2 * max(height, width)

    def _grid(self, length: int) -> tuple[int, int] | None:
        """The map whose positions, one after the other, have this length: the image scaled down evenly."""
        height, width = self.size
        rows = round((length * height / width) ** 0.5)
        if rows < 2 or length % rows or length // rows < 2:
            return None
        exact = rows * width == (length // rows) * height and height % rows == 0
        return (rows, length // rows) if exact else None


def under(at: int, n: int, m: int) -> int:
    """The position on an axis of length ``m`` that lies under the middle of position ``at`` of ``n``."""
    return min(m - 1, (2 * at + 1) * m // (2 * n))

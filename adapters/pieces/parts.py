"""The parts of an image that a network is given, and how far one part's result is from another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tlsc.adapters.pieces.grid import Span, extent_of, up

__all__ = ["Band", "Image", "Margins", "Part", "distances"]


@dataclass(frozen=True)
class Margins:
    """What is computed around a core, per axis, and what extents have to be.

    Attributes:
        margin: pixels beyond the core.
        step: extents begin at multiples of this.
        least: the least extent, the model's window.
    """

    margin: tuple[int, int]
    step: int
    least: tuple[int, int]

    def times(self, numerator: int, denominator: int = 1) -> Margins:
        """The same with larger margins."""
        rows, columns = (up(m * numerator // denominator, self.step) for m in self.margin)
        return Margins((rows, columns), self.step, self.least)

    def span(self, size: tuple[int, int]) -> bool:
        """Whether they reach from one end of an image of this size to the other."""
        return all(m >= n for m, n in zip(self.margin, size, strict=True))

    def smallest(self, size: tuple[int, int]) -> int:
        """Pixels of the largest extent when cores of an image are as small as they get."""
        height, width = (
            min(n, extent_of(self.step, m, self.step, least) + self.step - 1)
            for n, m, least in zip(size, self.margin, self.least, strict=True)
        )
        return height * width


@dataclass(frozen=True)
class Part:
    """What is kept of a piece's result.

    Attributes:
        core: finished.
        above, left: the row and the column before the core, as the piece has computed them; None at the border.
        bottom, right: the core's last row and column.
    """

    core: Tensor
    above: Tensor | None
    left: Tensor | None
    bottom: Tensor
    right: Tensor


@dataclass(frozen=True)
class Band:
    """A row of cores beside each other.

    Attributes:
        result: finished, (N, C', rows, scale · width).
        bottom: its last row, before it was finished.
        seam: the largest step at its seams.
    """

    result: Tensor
    bottom: Tensor
    seam: float


class Image:
    """An image that is read part by part.

    Args:
        restored: (part, first row, first column) to the network's result on it.
        cut: (top, bottom, left, right) to that part, (N, C, bottom − top, right − left).
        size: (height, width).
        scale: pixels of the result per pixel, along an axis.
        finish: what becomes of a core before it is kept, such as samples of a file; as it is by default.
    """

    def __init__(
        self,
        restored: Callable[[Tensor, tuple[int, int]], Tensor],
        cut: Callable[[int, int, int, int], Tensor],
        size: tuple[int, int],
        scale: int,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.restored, self.cut, self.size, self.scale = restored, cut, size, scale
        self.finish = finish or torch.clone

    def result(self, rows: Span, columns: Span) -> Tensor:
        """What the network makes of an extent."""
        part = self.cut(rows.first, rows.last, columns.first, columns.last)
        return self.restored(part, (rows.first, columns.first))

    def sample(self, height: int, width: int) -> Tensor:
        """What is kept of the image's first corner: for measuring what that takes."""
        part = self.cut(0, height, 0, width)
        return self.finish(self.restored(part, (0, 0)))

    def part(self, rows: Span, columns: Span) -> Part:
        """The finished core of one piece, and the lines at which it can be compared with its neighbours."""
        result, s = self.result(rows, columns), self.scale
        top, left = (rows.start - rows.first) * s, (columns.start - columns.first) * s
        bottom, right = top + (rows.stop - rows.start) * s, left + (columns.stop - columns.start) * s
        core = result[..., top:bottom, left:right]
        return Part(
            self.finish(core),
            result[..., top - 1 : top, left:right].clone() if top else None,
            result[..., top:bottom, left - 1 : left].clone() if left else None,
            core[..., -1:, :].clone(),
            core[..., -1:].clone(),
        )

    def band(self, columns: Sequence[Span], parts: Iterable[Part], above: Tensor | None) -> Band:
        """Parts beside each other, and the largest step at their seams.

        At a seam two pieces have computed the same pixels, each deep in its own margin or at its core's edge: were
        both the whole, they would agree.

        Args:
            columns: where the parts lie.
            parts: one for each of the columns.
            above: the last row of what lies above, (N, C', 1, scale · width); None for the first.
        """
        out: Tensor | None = None
        seam, s, below, before = 0.0, self.scale, [], torch.empty(0)
        for column, part in zip(columns, parts, strict=True):
            if out is None:
                out = part.core.new_empty(*part.core.shape[:-1], self.size[1] * s)
            place = slice(column.start * s, column.stop * s)
            if above is not None and part.above is not None:
                seam = max(seam, _apart(part.above, above[..., place]))
            if part.left is not None:
                seam = max(seam, _apart(part.left, before))
            out[..., place] = part.core
            below.append(part.bottom)
            before = part.right
        assert out is not None
        return Band(out, torch.cat(below, -1), seam)


def distances(one: Tensor, other: Tensor) -> Tensor:
    """How far numbers are from each other; infinitely where only one is a number, not at all where neither is."""
    same = (one == other) | (one.isnan() & other.isnan())
    found = (one.double() - other.double()).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    return found.masked_fill(same, 0)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float(distances(one, other).max()) if one.numel() else 0.0

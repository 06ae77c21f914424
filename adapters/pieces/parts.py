"""The parts of an image that a network is given, and how far one part's result is from another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tlsc.adapters.pieces.grid import Span, extent_of, up

__all__ = ["Image", "Margins", "Place"]

_CANDIDATES = 144
_TRIED = 3


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

    def smallest(self, size: tuple[int, int]) -> int:
        """Pixels of the largest extent when cores of an image are as small as they get."""
        height, width = (
            min(n, extent_of(self.step, m, self.step, least) + self.step - 1)
            for n, m, least in zip(size, self.margin, self.least, strict=True)
        )
        return height * width


@dataclass(frozen=True)
class Place:
    """A small core somewhere in an image, for looking how a margin does there."""

    top: int
    left: int
    side: int


class Image:
    """An image that is read part by part.

    Args:
        restored: (part, first row, first column) to the network's result on it.
        cut: (top, bottom, left, right) to that part, (N, C, bottom − top, right − left).
        size: (height, width).
        scale: pixels of the result per pixel, along an axis.
    """

    def __init__(
        self,
        restored: Callable[[Tensor, tuple[int, int]], Tensor],
        cut: Callable[[int, int, int, int], Tensor],
        size: tuple[int, int],
        scale: int,
    ) -> None:
        self.restored, self.cut, self.size, self.scale = restored, cut, size, scale

    def result(self, rows: Span, columns: Span) -> Tensor:
        """What the network makes of an extent."""
        part = self.cut(rows.first, rows.last, columns.first, columns.last)
        return self.restored(part, (rows.first, columns.first))

    def band(self, rows: Span, columns: Sequence[Span], above: Tensor | None) -> tuple[Tensor, float]:
        """The cores of a row of pieces beside each other, and the largest step at their seams.

        At a seam two pieces have computed the same pixels, each deep in its own margin or at its core's edge: were
        both the whole, they would agree.

        Args:
            rows: the row of pieces.
            columns: its pieces.
            above: the last row of what lies above, (N, C', 1, scale · width); None for the first.
        """
        out: Tensor | None = None
        seam, s = 0.0, self.scale
        for column in columns:
            result = self.result(rows, column)
            if out is None:
                out = result.new_empty(*result.shape[:2], (rows.stop - rows.start) * s, self.size[1] * s)
            top, left = (rows.start - rows.first) * s, (column.start - column.first) * s
            right = left + (column.stop - column.start) * s
            core = result[..., top : top + out.shape[-2], left:right]
            place = slice(column.start * s, column.stop * s)
            if above is not None and top:
                seam = max(seam, _apart(result[..., top - 1 : top, left:right], above[..., place]))
            if left:
                before = out[..., place.start - 1 : place.start]
                seam = max(seam, _apart(result[..., top : top + out.shape[-2], left - 1 : left], before))
            out[..., place] = core
        assert out is not None
        return out, seam

    def telling(self, near: Margins, far: Margins) -> list[Place]:
        """The places where a larger margin is likely to matter most: where it looks different from a smaller one.

        Of some places all over the image those where mean or spread change most, in units of the spread, as a norm
        would see it.
        """
        side = near.step
        rows, columns = (_spread(n, side) for n in self.size)
        places = [Place(top, left, side) for top in rows for left in columns]
        ranked = sorted(places, key=lambda place: -self._change(place, near, far))
        return ranked[:_TRIED]

    def difference(self, place: Place, near: Margins, far: Margins) -> float:
        """How far a small core's result with one margin is from that with a larger one."""
        return _apart(self._core(place, near), self._core(place, far))

    def _core(self, place: Place, margins: Margins) -> Tensor:
        rows, columns = self._spans(place, margins)
        top, left = ((span.start - span.first) * self.scale for span in (rows, columns))
        height, width = ((span.stop - span.start) * self.scale for span in (rows, columns))
        return self.result(rows, columns)[..., top : top + height, left : left + width]

    def _spans(self, place: Place, margins: Margins) -> tuple[Span, Span]:
        rows, columns = (
            Span.around(
                start, min(start + place.side, n), n, extent_of(place.side, m, margins.step, least), margins.step
            )
            for start, n, m, least in zip(
                (place.top, place.left), self.size, margins.margin, margins.least, strict=True
            )
        )
        return rows, columns

    def _change(self, place: Place, near: Margins, far: Margins) -> float:
        mean, spread = self._look(place, near)
        other, wider = self._look(place, far)
        moved = (other - mean).abs() / spread
        return float((moved + (wider / spread).log().abs()).max())

    def _look(self, place: Place, margins: Margins) -> tuple[Tensor, Tensor]:
        """Mean and spread of an extent, from a sample of its pixels."""
        rows, columns = self._spans(place, margins)
        part = self.cut(rows.first, rows.last, columns.first, columns.last)
        sample = part[..., ::7, ::7].flatten(2).double()
        return sample.mean(-1), sample.std(-1, correction=0) + 1e-3


def _spread(length: int, side: int) -> list[int]:
    """Where cores of an axis that are looked at begin, at multiples of their side."""
    number = max(1, min(round(_CANDIDATES**0.5), length // side))
    return sorted({max(0, length - side) * (2 * i + 1) // (2 * number) // side * side for i in range(number)})


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where only one is a number."""
    if not one.numel():
        return 0.0
    same = (one == other) | (one.isnan() & other.isnan())
    found = (one.double() - other.double()).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(found.masked_fill(same, 0).max())

"""Where pieces lie: cores that tile the image, extents that reach a margin beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tlsc.errors import ArgumentValueError

__all__ = ["Grid", "Span", "extent_of", "fitted", "spans", "up"]


@dataclass(frozen=True)
class Span:
    """A piece along one axis, in pixels of the image.

    Attributes:
        start, stop: its core, [start, stop): what is kept of its result.
        first, last: its extent, [first, last): what the network is given.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def extent(self) -> int:
        """Pixels that the network is given along the axis."""
        return self.last - self.first

    @classmethod
    def around(cls, start: int, stop: int, length: int, extent: int, step: int) -> Span:
        """A core in the middle of an extent, which is moved to stay inside the image.

        Extents of one image have one length (the last one up to a step more), since a network keeps memory for each
        size that it has seen.
        """
        last_first = max(0, length - extent) // step * step
        first = min(max(0, (start + stop - extent) // 2) // step * step, last_first)
        return cls(start, stop, first, length if first == last_first else first + extent)


@dataclass(frozen=True)
class Grid:
    """The pieces of an image: each span of rows with each span of columns."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def largest(self) -> int:
        """Pixels of the largest extent."""
        return _largest(self.rows) * _largest(self.columns)

    @property
    def work(self) -> int:
        """Pixels of all extents: what the network is given altogether."""
        return sum(row.extent for row in self.rows) * sum(column.extent for column in self.columns)


def spans(length: int, number: int, margin: int, step: int = 1, least: int = 1) -> tuple[Span, ...]:
    """At most ``number`` pieces of an axis.

    Args:
        length: of the axis.
        number: of pieces; fewer where cores of whole steps need fewer.
        margin: pixels that an extent reaches beyond its core at least, where the image goes on.
        step: extents begin at multiples of this, and end there or with the image.
        least: an extent is at least this long, or as long as the image.

    Example:
        >>> spans(100, 2, margin=10, step=8)
        (Span(start=0, stop=56, first=0, last=88), Span(start=56, stop=100, first=8, last=100))
    """
    core = up(-(-length // number), step)
    extent = extent_of(core, margin, step, least)
    starts = range(0, length, core)
    return tuple(Span.around(start, min(start + core, length), length, extent, step) for start in starts)


def extent_of(core: int, margin: int, step: int, least: int) -> int:
    """How much of an axis a core of whole steps needs with its margins."""
    return up(max(core + 2 * up(margin, step), least), step)


def fitted(
    size: tuple[int, int],
    pixels: float,
    margin: tuple[int, int],
    step: int = 1,
    least: tuple[int, int] = (1, 1),
    beside: float = 0.0,
) -> Grid:
    """The pieces that give the network least to do, of those whose extents have at most so many pixels.

    Args:
        size: (height, width) of the image.
        pixels: the most that an extent may have.
        margin, step, least: as for :func:`spans`, a margin and a least extent per axis.
        beside: what every row of a core costs beside the extent, in pixels of extents: a band of the result.

    Raises:
        ArgumentValueError: no piece is that small; the message names the smallest.

    Example:
        >>> len(fitted((1000, 1000), 300 * 300, (50, 50), 8))
        30
    """
    rows = [_Line.of(line) for line in _choices(size[0], margin[0], step, least[0])]
    columns = [_Line.of(line) for line in _choices(size[1], margin[1], step, least[1])]
    fitting = (
        (down.work * across.work, i, j)
        for i, down in enumerate(rows)
        for j, across in enumerate(columns)
        if down.largest * across.largest + down.core * beside <= pixels
    )
    best = min(fitting, default=None)
    if best is None:
        raise ArgumentValueError(
            f"pieces of at most {int(pixels)} pixels are too small: with margins of {margin[0]}×{margin[1]} the "
            f"smallest has {rows[-1].largest * columns[-1].largest}"
        )
    return Grid(rows[best[1]].spans, columns[best[2]].spans)


@dataclass(frozen=True)
class _Line:
    """One way to cut an axis, and what is asked of it for every way to cut the other."""

    spans: tuple[Span, ...]
    largest: int
    core: int
    work: int

    @classmethod
    def of(cls, line: tuple[Span, ...]) -> _Line:
        extents = [span.extent for span in line]
        return cls(line, max(extents), line[0].stop - line[0].start, sum(extents))


def _largest(line: tuple[Span, ...]) -> int:
    return max(span.extent for span in line)


def _choices(length: int, margin: int, step: int, least: int) -> Iterator[tuple[Span, ...]]:
    """Pieces of an axis, from one to as many as there are steps; each core's length once."""
    known = set()
    for number in range(1, -(-length // step) + 1):
        core = up(-(-length // number), step)
        if core not in known:
            known.add(core)
            yield spans(length, number, margin, step, least)


def up(length: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-length // step) * step

"""How far the cut through an image reaches: what is missing behind it, seen by the distance from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tlsc.adapters.pieces.grid import up
from tlsc.adapters.pieces.parts import Image, Margins, distances

__all__ = ["Place", "Probe", "telling"]

_CANDIDATES = 12  # places along an axis of which the telling ones are looked for
_TRIED = 6


@dataclass(frozen=True)
class Axis:
    """One axis of an image with a cut: a part that ends there, and the same with some more behind the cut.

    Attributes:
        near: [first, last) of the part that ends at the cut.
        far: [first, last) of the other.
    """

    near: tuple[int, int]
    far: tuple[int, int]

    @classmethod
    def at(cls, start: int, length: int, near: int, behind: int, step: int, backwards: bool) -> Axis:
        """A cut ``start`` pixels from an end of an axis of ``length``, from its last where it goes backwards."""
        if not start:
            return cls((0, length), (0, length))
        if not backwards:
            last = min(length, start + near)
            return cls((start, last), (max(0, start - behind), last))
        cut = (length - start) // step * step
        first = max(0, cut - near)
        return cls((first, cut), (first, min(length, cut + behind)))

    @property
    def cut(self) -> bool:
        """Whether anything is missing."""
        return self.near != self.far

    @property
    def backwards(self) -> bool:
        """Whether the cut is at the part's end."""
        return self.near[0] == self.far[0]


@dataclass(frozen=True)
class Place:
    """A corner of an extent, somewhere in an image.

    Attributes:
        rows, columns: how far from the image's end its side is, 0 for none, and whether from the image's last.
    """

    rows: tuple[int, bool]
    columns: tuple[int, bool]

    def corner(self, size: tuple[int, int], margins: Margins, most: float) -> tuple[Axis, Axis]:
        """What tells of margins: as much behind the cuts as they reach, where the memory allows that."""
        step = margins.step
        near = [max(up(k, step), up(m + k // 2, step)) for m, k in zip(margins.margin, margins.least, strict=True)]
        behind = list(margins.margin)
        while (near[0] + behind[0]) * (near[1] + behind[1]) > most and max(behind) > step:
            behind = [max(step, b - step) for b in behind]
        rows, columns = (
            Axis.at(start, n, length, beyond, step, backwards)
            for (start, backwards), n, length, beyond in zip(
                (self.rows, self.columns), size, near, behind, strict=True
            )
        )
        return rows, columns


@dataclass(frozen=True)
class Probe:
    """Differences that a missing part makes.

    Attributes:
        off: (height, width), the largest difference at each pixel's distance from the cuts.
        cut: whether rows and columns were.
    """

    off: Tensor
    cut: tuple[bool, bool]

    @classmethod
    def of(cls, image: Image, place: Place, margins: Margins, most: float) -> Probe:
        """Two runs of the network: on a part that ends at the corner, and on one that goes on.

        Args:
            image: the image.
            place: the corner.
            margins: the largest that are asked about.
            most: pixels that the network may be given.
        """
        axes, s = place.corner(image.size, margins, most), image.scale
        near, far = (image.restored(*_part(image, *spans)) for spans in _spans(*axes))
        top, left = ((axis.near[0] - axis.far[0]) * s for axis in axes)
        off = distances(near, far[..., top : top + near.shape[-2], left : left + near.shape[-1]]).amax((0, 1))
        off = off.flip([i for i, axis in enumerate(axes) if axis.cut and axis.backwards])
        height, width = (n // s for n in off.shape)
        return cls(
            off.reshape(height, s, width, s).amax((1, 3)).cpu(),
            (axes[0].cut, axes[1].cut),
        )

    def error(self, margin: tuple[int, int]) -> float:
        """The largest difference at this distance from the cuts, and beyond."""
        rows, columns = (m if cut else 0 for cut, m in zip(self.cut, margin, strict=True))
        beyond = self.off[rows:, columns:]
        return float(beyond.max()) if beyond.numel() else 0.0


def telling(image: Image, margins: Margins, most: float) -> list[Place]:
    """The corners where a cut is likely to matter most: where the image behind it looks different.

    Of some all over the image those where mean or spread change most, in units of the spread, as a norm would see
    it.

    Args:
        image: the image.
        margins: the largest that are asked about.
        most: pixels that the network may be given.
    """
    rows, columns = (
        [(start, bool(i % 2)) for i, start in enumerate(_starts(n, least, margins.step))]
        for n, least in zip(image.size, margins.least, strict=True)
    )
    places = [Place(row, column) for row in rows for column in columns]
    return sorted(places, key=lambda place: -_change(image, place.corner(image.size, margins, most)))[:_TRIED]


def _starts(length: int, least: int, step: int) -> Sequence[int]:
    """How far from an end of an axis it is cut, in whole steps; 0, for no cut, where extents are the whole axis."""
    room = (length - up(least, step)) // step
    if room < 1:
        return [0]
    number = min(_CANDIDATES, room)
    return sorted({step * (1 + (room - 1) * (2 * i + 1) // (2 * number)) for i in range(number)})


Stretch = tuple[int, int]


def _spans(rows: Axis, columns: Axis) -> tuple[tuple[Stretch, Stretch], tuple[Stretch, Stretch]]:
    return (rows.near, columns.near), (rows.far, columns.far)


def _part(image: Image, rows: Stretch, columns: Stretch) -> tuple[Tensor, tuple[int, int]]:
    return image.cut(*rows, *columns), (rows[0], columns[0])


def _change(image: Image, axes: tuple[Axis, Axis]) -> float:
    (mean, spread), (other, wider) = (_look(_part(image, *spans)[0]) for spans in _spans(*axes))
    moved = (other - mean).abs() / spread
    return float((moved + (wider / spread).log().abs()).max())


def _look(part: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread, from a sample of the pixels."""
    sample = part[..., ::7, ::7].flatten(2).double()
    return sample.mean(-1), sample.std(-1, correction=0) + 1e-3

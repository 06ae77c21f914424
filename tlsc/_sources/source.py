"""What a source is: from where the sites of a converted model take their statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from .tiles import Moments, Tiles

__all__ = ["Pair", "Source", "View"]

Pair = tuple[int, int]
View = Callable[[Tensor, Pair], Tensor]
"""Makes of an image, or of what lies beside it, what the first pass shows the model; also told the image's size."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """From where the sites of a converted model take their statistics.

    Attributes:
        own_padding: the statistics are those of tiles of the image that went through the model one by one, each
            with the padding that its convolutions give it, as in training: a first pass over the tiles, then one
            over the image. Otherwise tiles are cut from the maps of one pass.
        keep: statistics of a first pass are kept for the next image of the same shape (the next frame of a video);
            convert again to forget them.
    """

    name: ClassVar[str]
    far: ClassVar[bool] = False  # whether the whole image is in each statistic
    interpolated: ClassVar[bool] = (
        False  # between the centres of tiles; otherwise a position reads its nearest tile
    )

    own_padding: bool = False
    keep: bool = False

    def __str__(self) -> str:
        """The name, and options that are not the usual ones."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return self.name + (f" ({', '.join(f'{name}={value}' for name, value in given)})" if given else "")

    def tiles(self, shape: Pair, size: Pair) -> Tiles:
        """The tiles, as large as a training crop, of an image or a map of ``shape``."""
        return Tiles.of(shape, size, size)

    def views(self, shape: Pair, size: Pair) -> list[View]:
        """What the first pass shows the model of an image of ``shape``: for each tile a function."""
        tiles = self.tiles(shape, size)
        return [_tile_at(box, (tiles.rows.size, tiles.columns.size)) for box in tiles.boxes]

    def prepared(self, table: Moments, eps: float) -> Moments:
        """The table as it is read; ``eps`` is what the site adds to a variance."""
        return table

    def variance(self, read: Tensor, eps: float) -> Tensor:
        """The variance, from what positions read in the prepared table."""
        return read


def _tile_at(box: Pair, size: Pair) -> View:
    def tile(x: Tensor, shape: Pair) -> Tensor:
        rows, columns = (
            _scaled(*each, x.shape[d])
            for d, each in ((-2, (box[0], size[0], shape[0])), (-1, (box[1], size[1], shape[1])))
        )
        return x[..., rows, columns]

    return tile


def _scaled(start: int, size: int, length: int, n: int) -> slice:
    """A stretch of an axis of ``length`` on a map that has ``n`` pixels there."""
    first = round(start * n / length)
    return slice(first, first + max(1, round(size * n / length)))

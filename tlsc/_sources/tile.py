"""The tile that a position lies in, as users who cut images into tiles have it; convolutions still see all.

``mean_p = mean of tile t(p)``, with t(p) the tile whose centre is nearest: statistics jump at the tiles' borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .source import Source

__all__ = ["Tile"]


@dataclass(frozen=True, kw_only=True)
class Tile(Source):
    """The tile that a position lies in."""

    name: ClassVar[str] = "tile"

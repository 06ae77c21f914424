"""The whole map: what the model does as it was trained, in the frame of a conversion.

``mean_p = Σ_q x_q / (H·W)``, the same at every position; it never becomes local. For comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .source import Pair, Source
from .tiles import Tiles

__all__ = ["Map"]


@dataclass(frozen=True, kw_only=True)
class Map(Source):
    """The whole map, as before converting."""

    name: ClassVar[str] = "map"
    far: ClassVar[bool] = True

    def tiles(self, shape: Pair, size: Pair) -> Tiles:
        return Tiles.of(shape, shape, shape)

"""Training-size crops on a grid, their borders' ring included, interpolated over the image.

Each crop goes through the model by itself, with the padding and the statistics that it had in training; with its
means μ and variances v at a site, and bilinear weights ``w_u(p)`` between the four crops with centres around p::

    mean_p = Σ_u w_u(p)·μ_u,    var_p = Σ_u w_u(p)·v_u

Nothing is fitted, and each statistic is one that the model could have seen in training. It comes from maps of the
model as it was, so that a site behind others is not told what those, interpolated, made of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._arguments import as_positive_int
from .source import Pair, Source
from .tiles import Tiles

__all__ = ["Crops"]


@dataclass(frozen=True, kw_only=True)
class Crops(Source):
    """Training-size crops on a grid, interpolated.

    Attributes:
        step: how far apart they are at most, in pixels; None is half a crop.
    """

    name: ClassVar[str] = "crops"
    interpolated: ClassVar[bool] = True

    own_padding: bool = True
    step: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None:
            as_positive_int(self.step, "step")

    def tiles(self, shape: Pair, size: Pair) -> Tiles:
        height, width = size
        step = (max(1, height // 2), max(1, width // 2)) if self.step is None else (self.step, self.step)
        return Tiles.of(shape, size, step)

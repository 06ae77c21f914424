"""A thumbnail of the image: thumbnail instance normalization.

The image, made smaller until it fits a training crop, goes through the model first; ``mean_p`` and ``var_p`` are
those of the thumbnail's map at the same site, the same at every position.

Source: Chen, Wang, Xie, Lu, Luo, "Towards ultra-resolution neural style transfer via thumbnail instance
normalization", AAAI 2022, arXiv 2103.11784.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .source import Pair, Source, View
from .tiles import Tiles

__all__ = ["Thumbnail"]


@dataclass(frozen=True, kw_only=True)
class Thumbnail(Source):
    """The whole image made small."""

    name: ClassVar[str] = "thumbnail"
    far: ClassVar[bool] = True

    own_padding: bool = True

    def tiles(self, shape: Pair, size: Pair) -> Tiles:
        return Tiles.of(shape, shape, shape)

    def views(self, shape: Pair, size: Pair) -> list[View]:
        small = self.small(shape, size)

        def thumbnail(x: Tensor, shape: Pair) -> Tensor:
            rows, columns = (max(1, round(n * k / m)) for n, k, m in zip(x.shape[-2:], small, shape, strict=True))
            maps = x.flatten(0, -4) if x.dim() > 3 else x.unsqueeze(0)
            out = F.interpolate(maps, (rows, columns), mode="bilinear", antialias=True)
            return out.reshape(*x.shape[:-2], rows, columns)

        return [thumbnail]

    @staticmethod
    def small(shape: Pair, size: Pair) -> Pair:
        """The thumbnail's size: the image's shape as nearly as multiples allow of what ``size`` is a multiple of,
        up to 32, since a model that takes ``size`` is likely to take those."""
        factor = min(k / n for n, k in zip(shape, size, strict=True))
        rows, columns = (
            min(k, max(math.gcd(k, 32), round(n * factor / math.gcd(k, 32)) * math.gcd(k, 32)))
            for n, k in zip(shape, size, strict=True)
        )
        return rows, columns

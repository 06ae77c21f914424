"""A table over tiles, averaged over neighbours: kernelized instance normalization.

With μ and σ the tables of the tiles' means and standard deviations, padded by repetition, and a box of
``kernel × kernel`` tiles around tile t(p), that in which p lies::

    mean_p = Σ_{u ∈ box} μ_u / kernel²,    σ_p = Σ_{u ∈ box} σ_u / kernel²,    var_p = σ_p²

Source: Ho, Chao, Chen, Lin, "Ultra-high-resolution unpaired stain transformation via kernelized instance
normalization", ECCV 2022, arXiv 2208.10730; the constant kernel. Published with the tiles' own padding, of which
``own_padding=True`` makes a first pass, and with images put together from tiles, which this is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .._arguments import as_positive_int
from ..errors import ArgumentValueError
from .source import Source
from .tiles import Moments

__all__ = ["Table"]


@dataclass(frozen=True, kw_only=True)
class Table(Source):
    """A table over tiles, each entry averaged with its neighbours'.

    Attributes:
        kernel: side of the box of tiles; odd.
    """

    name: ClassVar[str] = "table"

    kernel: int = 3

    def __post_init__(self) -> None:
        if as_positive_int(self.kernel, "kernel") % 2 == 0:
            raise ArgumentValueError(f"kernel must be odd, to have a centre, got {self.kernel}")

    def prepared(self, table: Moments, eps: float) -> Moments:
        sigma = None if table.var is None else self._boxed(table.var.sqrt())
        return Moments(self._boxed(table.mean), sigma)

    def variance(self, read: Tensor, eps: float) -> Tensor:
        return read.square()

    def _boxed(self, table: Tensor) -> Tensor:
        around = self.kernel // 2
        return F.avg_pool2d(F.pad(table, (around,) * 4, mode="replicate"), self.kernel, 1)

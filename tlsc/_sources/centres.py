"""Interpolated between the centres of tiles: dense normalization.

With μ and ``ρ = 1/√(var + eps)`` of tiles that went through the model with their own padding, and bilinear
weights ``w_u(p)`` between the four centres around p (the outermost ones beyond them)::

    mean_p = Σ_u w_u(p)·μ_u,    1/√(var_p + eps) = Σ_u w_u(p)·ρ_u

Source: Ho, Wu, Wu, Tseng, "Every pixel has its moments: ultra-high-resolution unpaired image-to-image translation
via dense normalization", ECCV 2024. There the image is put together from tiles; here it passes whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .source import Source
from .tiles import Moments

__all__ = ["Centres"]

_LEAST = 1e-5  # added to a variance where the site adds nothing, so that one over it is finite


@dataclass(frozen=True, kw_only=True)
class Centres(Source):
    """Interpolated between the centres of tiles: the mean, and one over the standard deviation."""

    name: ClassVar[str] = "centres"
    interpolated: ClassVar[bool] = True

    own_padding: bool = True

    def prepared(self, table: Moments, eps: float) -> Moments:
        return Moments(table.mean, None if table.var is None else (table.var + (eps or _LEAST)).rsqrt())

    def variance(self, read: Tensor, eps: float) -> Tensor:
        return (read.square().reciprocal() - (eps or _LEAST)).clamp(min=0)

"""The correction that a site's statistics pass through before they are used; identity unless one is fitted."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Correction"]


class Correction(NamedTuple):
    """``var' = a·var + b + c·mean²`` and ``mean' = d·mean + e``, each coefficient a tensor (C,).

    A training crop's statistics contain the ring of features that zero padding spoils; a window inside a
    whole image has none. This map carries one to the other. ``C`` counts channels, or groups in group norm.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    e: Tensor

    def per_plane(self, batch: int) -> Correction:
        """The coefficients for ``batch``·C planes, image after image."""
        return Correction(*(coefficient.repeat(batch) for coefficient in self))

    def planes(self, part: slice) -> Correction:
        """The coefficients of some of the planes."""
        return Correction(*(coefficient[part] for coefficient in self))

    def mean_of(self, mean: Tensor) -> Tensor:
        """Corrected mean of planes (P, h, w), for coefficients (P,)."""
        d, e = (coefficient.to(mean).view(-1, 1, 1) for coefficient in (self.d, self.e))
        return d * mean + e

    def var_of(self, var: Tensor, mean: Tensor) -> Tensor:
        """Corrected variance of planes (P, h, w), never negative; ``mean`` as it was before correction."""
        a, b, c = (coefficient.to(var).view(-1, 1, 1) for coefficient in (self.a, self.b, self.c))
        return (a * var + b + c * mean.square()).clamp(min=0)

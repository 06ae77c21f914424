"""The correction that a site's statistics pass through before they are used; none unless one is fitted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Correction", "inside", "share_of"]


class Correction(NamedTuple):
    """``var' = a·var + b + c·mean²`` and ``mean' = d·mean + e``, each coefficient a tensor (C,).

    A training crop's statistics contain the ring of features that zero padding spoils; a window inside a whole
    image has none. This map carries one to the other. ``C`` counts channels, or groups in group norm.

    Nothing is extrapolated: of a variance above ``top`` the excess is added as it is, and so for means outside
    [``low``, ``high``]. A window at the map's own border contains part of a ring already: only the share ``w`` of
    its outline that lies inside the map counts, down to none where the window covers the map::

        var' = var + w·((a − 1)·min(var, top) + b + c·m²),  mean' = mean + w·((d − 1)·m + e),  m = clip(mean)
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    e: Tensor
    top: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def unlimited(cls, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Correction:
        """One that holds for any variance and mean."""
        infinite = torch.full_like(a, float("inf"))
        return cls(a, b, c, d, e, infinite, -infinite, infinite)

    def per_plane(self, batch: int) -> Correction:
        """The coefficients for ``batch``·C planes, image after image."""
        return Correction(*(coefficient.repeat(batch) for coefficient in self))

    def planes(self, part: slice) -> Correction:
        """The coefficients of some of the planes."""
        return Correction(*(coefficient[part] for coefficient in self))

    def mean_of(self, mean: Tensor, share: Tensor) -> Tensor:
        """Corrected means of windows, (…, P, h, w), for coefficients (P,); ``share``: w of each window, (h, w)."""
        d, e, low, high = (k.to(mean).view(-1, 1, 1) for k in (self.d, self.e, self.low, self.high))
        return mean + share * ((d - 1) * mean.maximum(low).minimum(high) + e)

    def var_of(self, var: Tensor, mean: Tensor, share: Tensor) -> Tensor:
        """Corrected variances, never negative; ``mean`` as it was before correction."""
        columns = self.a, self.b, self.c, self.top, self.low, self.high
        a, b, c, top, low, high = (k.to(var).view(-1, 1, 1) for k in columns)
        more = (a - 1) * var.minimum(top) + b + c * mean.maximum(low).minimum(high).square()
        return (var + share * more).clamp(min=0)


def inside(windows: Tensor, window: tuple[int, int]) -> Tensor:
    """The share of each window's outline that lies inside the map, (h, w), for evaluated windows (…, h, w).

    Args:
        windows: anything with one value for each; the first and the last of an axis lie at the map's border.
        window: their size, no larger than the map.
    """
    return share_of(_ends(windows.shape[-2], windows), _ends(windows.shape[-1], windows), window)


def share_of(down: Tensor, across: Tensor, window: tuple[Any, Any]) -> Tensor:
    """The same, from how many of the map's ends the windows touch: rows of windows (h,), columns (w,)."""
    rows, columns = window
    share: Tensor = 1 - (columns * down.unsqueeze(1) + rows * across) / (2 * (rows + columns))
    return share


def _ends(count: int, like: Tensor) -> Tensor:
    """How many of the map's two ends on an axis each of its windows touches."""
    place = torch.arange(count, device=like.device)
    return (place == 0).to(like.dtype) + (place == count - 1).to(like.dtype)

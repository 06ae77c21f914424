"""The correction that a site's statistics pass through before they are used; none unless one is fitted.

The formula stands here once, for tensors and for NumPy's arrays alike. The kernels of Numba and Triton have their
own text of it (about a plane's sample, in pairs of numbers); tests/statistics/test_correction.py compares all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAMES", "NOTHING", "Correction", "corrected_mean", "corrected_var", "weakened"]

NAMES = ("a", "b", "c", "d", "e", "top", "low", "high")
"""The rows of a correction, in the order in which they are stored everywhere: tensors, plans, kernels."""
NOTHING = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
"""The rows of one that changes nothing."""


def corrected_var(of: Any, rows: Any, var: Any, mean: Any, share: Any = 1.0) -> Any:
    """``max(var + w·((a − 1)·min(var, top) + b + c·clip(mean, low, high)²), 0)``.

    Args:
        of: ``torch`` or ``numpy``, whose functions are used.
        rows: eight tensors or arrays in the order of ``NAMES``, which broadcast against ``var``.
        var: variances of windows.
        mean: their means as they were before correction.
        share: w, the part of each window's outline that lies inside the map.
    """
    a, b, c, _, _, top, low, high = rows
    clipped = of.minimum(of.maximum(mean, low), high)
    more = (a - 1) * of.minimum(var, top) + b + c * (clipped * clipped)
    return of.clip(var + share * more, 0, None)


def corrected_mean(of: Any, rows: Any, mean: Any, share: Any = 1.0) -> Any:
    """``mean + w·((d − 1)·clip(mean, low, high) + e)``; arguments as of :func:`corrected_var`."""
    _, _, _, d, e, _, low, high = rows
    return mean + share * ((d - 1) * of.minimum(of.maximum(mean, low), high) + e)


def weakened(rows: Sequence[Sequence[float]], strength: float) -> tuple[tuple[float, ...], ...]:
    """The rows of a correction that changes statistics by ``strength`` times as much.

    Example:
        >>> weakened([[3.0], [1.0], [0.0], [1.0], [0.5], [9.0], [-1.0], [1.0]], 0.5)
        ((2.0,), (0.5,), (0.0,), (1.0,), (0.25,), (9.0,), (-1.0,), (1.0,))
    """
    found = []
    for name, row, nothing in zip(NAMES, rows, NOTHING, strict=True):
        limit = name in ("top", "low", "high")
        found.append(tuple(value if limit else nothing + strength * (value - nothing) for value in row))
    return tuple(found)


class Correction:
    """``var' = a·var + b + c·mean²`` and ``mean' = d·mean + e``, with limits: one tensor ``rows``, (8, C).

    A training crop's statistics contain the ring of features that zero padding spoils; a window inside a whole
    image has none. This map carries one to the other. ``C`` counts channels, or groups in group norm.

    Nothing is extrapolated: of a variance above ``top`` the excess is added as it is, and so for means outside
    [``low``, ``high``]. A window at the map's own border contains part of a ring already: only the share ``w`` of
    its outline that lies inside the map counts, down to none where the window covers the map::

        var' = var + w·((a − 1)·min(var, top) + b + c·m²),  mean' = mean + w·((d − 1)·m + e),  m = clip(mean)
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._elsewhere: dict[torch.device, Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Correction, (self.rows,)  # copies on other devices are not the model's

    @classmethod
    def of(cls, *rows: Tensor | Sequence[float]) -> Correction:
        """From the eight rows, (C,) each, in the order of ``NAMES``."""
        return cls(torch.stack([torch.as_tensor(row) for row in rows]))

    @classmethod
    def unlimited(cls, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Correction:
        """One that holds for any variance and mean."""
        infinite = torch.full_like(a, float("inf"))
        return cls.of(a, b, c, d, e, infinite, -infinite, infinite)

    a = property(lambda self: self.rows[0])
    b = property(lambda self: self.rows[1])
    c = property(lambda self: self.rows[2])
    d = property(lambda self: self.rows[3])
    e = property(lambda self: self.rows[4])
    top = property(lambda self: self.rows[5])
    low = property(lambda self: self.rows[6])
    high = property(lambda self: self.rows[7])

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows.unbind())

    def on(self, device: torch.device) -> Tensor:
        """``rows`` on a device; a copy is made once for each, also where the model was moved after calibration."""
        if self.rows.device == device:
            return self.rows
        if torch.compiler.is_compiling():
            return self.rows.to(device)
        if device not in self._elsewhere:
            # Apple's GPUs have no float64.
            rows = self.rows.float() if device.type == "mps" else self.rows
            self._elsewhere[device] = rows.to(device)
        return self._elsewhere[device]

    def per_plane(self, batch: int) -> Correction:
        """The coefficients for ``batch``·C planes, image after image."""
        return Correction(self.rows.repeat(1, batch))

    def planes(self, part: slice) -> Correction:
        """The coefficients of some of the planes."""
        return Correction(self.rows[:, part])

    def mean_of(self, mean: Tensor, share: Tensor) -> Tensor:
        """Corrected means of windows, (…, P, h, w), for coefficients (P,); ``share``: w of each window, (h, w)."""
        out: Tensor = corrected_mean(torch, self._beside(mean), mean, share)
        return out

    def var_of(self, var: Tensor, mean: Tensor, share: Tensor) -> Tensor:
        """Corrected variances, never negative; ``mean`` as it was before correction."""
        out: Tensor = corrected_var(torch, self._beside(var), var, mean, share)
        return out

    def _beside(self, values: Tensor) -> tuple[Tensor, ...]:
        return self.rows.to(values).unsqueeze(-1).unsqueeze(-1).unbind()

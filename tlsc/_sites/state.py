"""What a site knows about itself when it runs: one frozen object in place of arguments that travel together.

A local module holds one, and a rewritten module one for each of its statistics. Whoever changes a site, as
calibration does, puts another state in its place. Nothing is changed inside one, so that a thread that runs the
site sees the old state or the new one, and never half of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .._statistics.correction import Correction

__all__ = ["SiteState", "Watcher"]

Watcher = Callable[["SiteState", Tensor], Any]
"""Called with the state and the map (N, K, H, W) that reaches the site, before the statistic is taken."""


@dataclass(frozen=True, eq=False)
class SiteState:
    """The settings of one statistic.

    Attributes:
        operation: the statistic, by the name of the PyTorch function: ``mean``, ``var_mean``, ``amax``, ….
        window: its size on each spatial axis, in pixels of the map.
        stride: grid on which windows are evaluated; 1 is exact.
        eps: added to a variance, in squared units of the map; 0 where nothing is normalised.
        groups: number of groups of channels that share a statistic; None: each channel has its own.
        order: of a norm.
        ddof: what a variance takes off the number of positions before it divides by it.
        correction: what calibration found; None: nothing is corrected.
        watcher: told about every map that reaches the site, while calibrating; None otherwise.
    """

    operation: str
    window: tuple[int, ...]
    stride: int = 1
    eps: float = 0.0
    groups: int | None = None
    order: float = 2.0
    ddof: float = 0.0
    correction: Correction | None = None
    watcher: Watcher | None = None

    @property
    def moments(self) -> int:
        """The highest moment that the statistic is made of: 1 for a mean, 2 for a variance, 0 for another one."""
        if self.operation in ("mean", "sum"):
            return 1
        return 2 if self.operation.startswith(("var", "std")) else 0

    def corrected(self, correction: Correction | None) -> SiteState:
        """The same site with another correction."""
        return replace(self, correction=correction)

    def watched(self, watcher: Watcher | None) -> SiteState:
        """The same site with another watcher."""
        return replace(self, watcher=watcher)

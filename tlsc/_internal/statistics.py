"""The formula of a correction, how to weaken one, and which operators take the whole map."""

from __future__ import annotations

from .._statistics.correction import corrected_mean, corrected_var, weakened
from .._surgery.positions.findings import takes_the_map

__all__ = ["corrected_mean", "corrected_var", "takes_the_map", "weakened"]

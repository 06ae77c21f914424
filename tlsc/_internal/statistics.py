"""The formula of a correction, and which operators take the whole map: for showing what happens to statistics."""

from __future__ import annotations

from .._statistics.correction import corrected_mean, corrected_var
from .._surgery.positions.findings import takes_the_map

__all__ = ["corrected_mean", "corrected_var", "takes_the_map"]

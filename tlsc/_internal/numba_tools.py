"""Compiling for the CPU, and its threads. Imports Numba."""

from __future__ import annotations

from .._statistics.numba.compiling import compiled
from .._statistics.numba.threads import share_out

__all__ = ["compiled", "share_out"]

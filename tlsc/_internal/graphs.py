"""Whether a graph is being recorded, and who will run it."""

from __future__ import annotations

from .._statistics.any_size import applies, leaves
from .._statistics.reference import is_traced

__all__ = ["applies", "is_traced", "leaves"]

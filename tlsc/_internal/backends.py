"""Which back end answers, and what happens where one fails."""

from __future__ import annotations

from .._statistics.backends import BACK_ENDS, instead, named

__all__ = ["BACK_ENDS", "instead", "named"]

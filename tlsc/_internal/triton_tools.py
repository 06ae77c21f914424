"""How Triton's kernels run here. Imports Triton."""

from __future__ import annotations

from .._statistics.triton.planes import INTERPRETED

__all__ = ["INTERPRETED"]

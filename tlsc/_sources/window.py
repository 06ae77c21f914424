"""The window around each position: Chu, Chen, Chen, Lu, ECCV 2022, arXiv 2112.04491 (TLC). What this package does.

``mean_p = Σ_{q ∈ W(p)} x_q / |W(p)|`` and ``var_p = Σ_{q ∈ W(p)} (x_q − mean_p)² / |W(p)|``, with W(p) the window
that is centred on p, shifted to stay inside (:mod:`tlsc.functional`). Sites do it themselves, by kernels of their
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .source import Source

__all__ = ["Window"]


@dataclass(frozen=True, kw_only=True)
class Window(Source):
    """Each position's own window: the default."""

    name: ClassVar[str] = "window"

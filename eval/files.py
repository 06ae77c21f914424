"""Files that are either whole or not there."""

from __future__ import annotations

from tlsc._files import replacing

__all__ = ["replacing"]

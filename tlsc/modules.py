"""Thin modules over :mod:`tlsc.functional`, built from the global layers they stand in for."""

from __future__ import annotations

from ._sites.average_pool import LocalAvgPool2d
from ._sites.group_norm import LocalGroupNorm
from ._sites.instance_norm import LocalInstanceNorm2d

__all__ = ["LocalAvgPool2d", "LocalGroupNorm", "LocalInstanceNorm2d"]

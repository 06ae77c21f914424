"""Local statistics at test time: convert a trained image restorer in one line, without training.

>>> import tlsc
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8))
>>> model = tlsc.convert(model, base_size=384)
"""

from __future__ import annotations

from . import errors, functional
from ._dispatch import backend
from ._export import Export, export
from ._influence import Influence, influence
from ._kinds import register
from ._plan import Plan, Site
from ._surgery import convert, converted, plan, revert
from .errors import BackendError, ExportError, NoSiteError, ProbeError, TLSCError, TLSCWarning
from .modules import LocalAvgPool2d, LocalGroupNorm, LocalInstanceNorm2d

__all__ = [
    "BackendError",
    "Export",
    "ExportError",
    "Influence",
    "LocalAvgPool2d",
    "LocalGroupNorm",
    "LocalInstanceNorm2d",
    "NoSiteError",
    "Plan",
    "ProbeError",
    "Site",
    "TLSCError",
    "TLSCWarning",
    "backend",
    "convert",
    "converted",
    "errors",
    "export",
    "functional",
    "influence",
    "plan",
    "register",
    "revert",
]

__version__ = "0.1.0"

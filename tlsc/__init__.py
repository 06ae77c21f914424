"""Local statistics at test time: convert a trained image restorer in one line, without training.

>>> import tlsc
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8))
>>> model = tlsc.convert(model, base_size=384)
"""

from __future__ import annotations

from . import errors, functional
from ._calibration.calibrate import calibrate
from ._convert import convert, converted, plan, revert
from ._export.export import Export, export
from ._influence.influence import Influence, influence
from ._plan import Plan, Site
from ._sites.kind import register
from ._statistics.backends import backend, backends
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
    "backends",
    "calibrate",
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

"""The public names, each from where it lives. This file imports PyTorch, so ``tlsc/__init__.py`` waits with it."""

from __future__ import annotations

from . import attention, functional, modules, sources
from ._calibration.calibrate import calibrate
from ._convert import convert, converted, plan, revert
from ._export.export import Export, export
from ._influence.influence import Influence, influence
from ._plan import Plan, Site
from ._prediction.predict import predict
from ._prediction.result import Prediction
from ._sites.kind import register
from ._statistics.backends import backend, backends
from .modules import LocalAvgPool2d, LocalGroupNorm, LocalInstanceNorm2d

__all__ = [
    "Export",
    "Influence",
    "LocalAvgPool2d",
    "LocalGroupNorm",
    "LocalInstanceNorm2d",
    "Plan",
    "Prediction",
    "Site",
    "attention",
    "backend",
    "backends",
    "calibrate",
    "convert",
    "converted",
    "export",
    "functional",
    "influence",
    "modules",
    "plan",
    "predict",
    "register",
    "revert",
    "sources",
]

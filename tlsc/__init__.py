"""Local statistics at test time: convert a trained image restorer in one line, without training.

>>> import tlsc
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8))
>>> model = tlsc.convert(model, base_size=384)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import BackendError, ExportError, NoSiteError, ProbeError, TLSCError, TLSCWarning

if TYPE_CHECKING:
    from ._surface import (
        Export,
        Influence,
        LocalAvgPool2d,
        LocalGroupNorm,
        LocalInstanceNorm2d,
        Plan,
        Site,
        backend,
        backends,
        calibrate,
        convert,
        converted,
        export,
        functional,
        influence,
        plan,
        register,
        revert,
    )

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


def __getattr__(name: str) -> Any:
    """Import the package's contents, and with them PyTorch, when one is asked for (PEP 562).

    ``tlsc --help`` asks for none, and ``import tlsc`` of a program that may not convert anything does not either.
    All come at once, so that there are two states only: nothing imported, or everything.
    """
    if name in __all__ or name in ("attention", "modules"):
        surface = import_module("._surface", __name__)
        globals().update({each: getattr(surface, each) for each in surface.__all__})
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "attention", "modules"})

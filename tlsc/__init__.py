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
from ._memory import keep_memory
from .errors import (
    BackendError,
    ExportError,
    MissingPackageError,
    NoSiteError,
    ProbeError,
    TLSCError,
    TLSCWarning,
)

if TYPE_CHECKING:
    from . import functional
    from ._surface import (
        Export,
        Influence,
        LocalAvgPool2d,
        LocalGroupNorm,
        LocalInstanceNorm2d,
        Plan,
        Prediction,
        Site,
        backend,
        backends,
        calibrate,
        convert,
        converted,
        export,
        influence,
        plan,
        predict,
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
    "MissingPackageError",
    "NoSiteError",
    "Plan",
    "Prediction",
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
    "keep_memory",
    "plan",
    "predict",
    "register",
    "revert",
]

__version__ = "0.2.0"


_MODULES = ("attention", "functional", "modules", "sources")


if not TYPE_CHECKING:  # a type checker is to refuse names that are not there

    def __getattr__(name: str) -> Any:
        """Import the package's contents, and with them PyTorch, when one is asked for (PEP 562).

        ``tlsc --help`` asks for none, nor does ``import tlsc`` in a program that may not convert anything.
        """
        if name in _MODULES:
            # These alone, as the package's own modules ask for them before the rest can be imported.
            return import_module(f".{name}", __name__)
        if name in __all__:
            surface = import_module("._surface", __name__)
            globals().update({each: getattr(surface, each) for each in surface.__all__})
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

"""Every kind of site that the package brings: the modules of this folder, each of which registers its own.

Whoever asks for kinds imports :func:`kind_of` from here, so that they are all there. A new file is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

from .kind import kind_of

__all__ = ["kind_of"]

_FOLDER = __name__.rpartition(".")[0]

for _module in pkgutil.iter_modules(importlib.import_module(_FOLDER).__path__):
    importlib.import_module(f"{_FOLDER}.{_module.name}")

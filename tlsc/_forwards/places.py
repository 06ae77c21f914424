"""Which line of somebody's code a reason is about."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

__all__ = ["came_through", "here"]

_OURS = tuple(str(Path(str(module.__file__)).parent) + os.sep for module in (torch, sys.modules[str(__package__)]))


_LONG = 90


def came_through(error: Exception) -> str:
    """The last line of somebody's own code that an error came through; "" if there is none."""
    return _line(traceback.extract_tb(error.__traceback__))


def here() -> str:
    """The line of somebody's own code that is running."""
    return _line(traceback.extract_stack())


def _line(frames: Iterable[traceback.FrameSummary]) -> str:
    own = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    if not own:
        return ""
    place = f"line {own[-1].lineno} of {Path(own[-1].filename).name}"
    line = own[-1].line or ""
    return f"{place}: {line if len(line) <= _LONG else line[: _LONG - 1] + '…'}" if line else place

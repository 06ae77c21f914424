"""Memory for large results, asked for in pieces.

The C library takes memory for a large tensor anew from the system each time, and the system hands it out page by
page of 4 KiB, when each is first written to: up to half of the time of a local norm. Linux can give all pages of a
piece in one call (since 5.14), which takes a fifth less. Only what will be written anyway is asked for.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["PIECE", "are_new", "ask_for"]

# Bytes of results that the C library always takes from the system.
LARGE = 2**25
# Bytes asked for at once: few enough to be in a cache still when they are written.
PIECE = 2**20
POPULATE_WRITE = 23


def are_new(result: np.ndarray) -> bool:
    """Whether a large array without values has no pages yet, and they can be asked for; those that are there would
    only be looked up."""
    if result.nbytes < LARGE or _advise() is None:
        return False
    return not any(_is_there(result.ctypes.data + result.nbytes * part // 4) for part in (1, 2, 3))


def _is_there(address: int) -> bool:
    told = ctypes.c_ubyte(1)
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    failed: int = ctypes.CDLL(None).mincore(ctypes.c_void_p(page), ctypes.c_size_t(1), ctypes.byref(told))
    return failed != 0 or bool(told.value & 1)


def ask_for(result: np.ndarray, start: int, stop: int, units: int) -> None:
    """Have memory at hand for the units [start, stop) of ``units``, each an equal part of a contiguous array."""
    first, last = (
        -(-(result.ctypes.data + result.nbytes * unit // units) // mmap.PAGESIZE) * mmap.PAGESIZE
        for unit in (start, stop)
    )
    last = min(last, (result.ctypes.data + result.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE)
    advise = _advise()
    if advise is not None and first < last:
        advise(first, last - first, POPULATE_WRITE)  # where it fails, writing asks page by page


@lru_cache(1)
def _advise() -> Any:
    """``madvise(address, bytes, advice)`` of a system that knows this advice; None of others."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes, advise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return advise if advise(None, 0, POPULATE_WRITE) == 0 else None

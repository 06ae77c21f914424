"""Keeping memory that was freed, for programs that run networks on large images on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_memory"]

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # names of mallopt's settings in glibc
_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> bool:
    """Have this process keep the memory that it frees, from now on: networks run faster on large images on a CPU.

    When a large feature map is freed, glibc returns its memory to the system, and the next map needs new pages,
    which the system fills with zeros. On whole photographs this took 40 to 45 % of a network's time. With this
    function, HINet took 1.8 s instead of 3.1 s and MPRNet 5.0 s instead of 9.2 s at 720×1280 on two cores, for
    7 to 24 % more memory at the peak. The setting holds for the whole process and cannot be undone. So
    ``import tlsc`` does not make it; the ``tlsc`` command does, unless memory is limited. Call the function at
    the start of a script.

    Returns:
        Whether memory is kept now. False, with nothing changed, on systems other than Linux with glibc, and if
        the environment already has settings of malloc (``MALLOC_TRIM_THRESHOLD_`` and the like), which then
        hold.

    Example:
        >>> import tlsc
        >>> kept = tlsc.keep_memory()  # doctest: +SKIP
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))

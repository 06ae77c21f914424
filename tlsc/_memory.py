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

    glibc gives a large feature map back to the system when it is freed, and the next one is handed out anew, zeroed
    page by page: on whole photographs that was 40 to 45 % of a network's time (HINet 3.1 s → 1.8 s, MPRNet 9.2 s →
    5.0 s at 720×1280, two cores), for 7 to 24 % more memory at the peak. It is a matter of the whole process, and
    there is no way back, so the ``tlsc`` command does it (but where memory is limited), ``import tlsc`` does not.
    Call it at the start of a script.

    Returns:
        Whether memory is kept now. It is not, and nothing has changed, elsewhere than on Linux with glibc, and
        where the environment has settings of malloc's (``MALLOC_TRIM_THRESHOLD_`` and the like), which hold.

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

"""Memory for large results, asked for in pieces.

The C library takes memory for a large tensor anew from the system each time, and the system hands it out page by
page of 4 KiB, when each is first written to: up to half of the time of a local norm. Linux can give all pages of a
piece in one call (since 5.14), which takes a fifth less, and can give it as huge pages (of 2 MiB), which takes two
thirds less. Only what will be written anyway is asked for.

Huge pages are quickly had only while memory lies free in blocks of that size. Otherwise Linux moves other pages to
make room. And what a virtual machine has not used for a while may be its host's, who gives it back slowly. So huge
pages are wished for only where twice as much as needed lies free; each is timed; and as soon as they have cost
more than ordinary ones, the rest of the result is ordinary, and so are others for a while.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["PIECE", "Supply", "are_new"]

# Bytes of results that the C library always takes from the system.
LARGE = 2**25
# Bytes asked for at once: few enough to be in a cache still when they are written.
PIECE = 2**20
# Advices of madvise.
HUGE, NOT_HUGE, POPULATE_WRITE = 14, 15, 23
# Huge pages may lose the time that ordinary ones would take for so many of them; then they are given up for so many
# times as long as what they have lost: 3 % of the time at worst.
PATIENCE, PAUSE = 8, 32.0
# Some systems have huge pages that are larger than a result.
LARGEST = 2**22

_not_before = 0.0
_settings = Path("/sys/kernel/mm/transparent_hugepage")
_free_blocks = Path("/proc/buddyinfo")


class _Span(NamedTuple):
    start: int
    stop: int


_NOTHING = _Span(0, 0)


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


class Supply:
    """The pages of a contiguous array without values, of ``units`` equal parts, while it is written.

    Several threads may ask at once. Until :meth:`end`, its inner part is marked as wanted in huge pages. Where they
    cannot be had, writing asks page by page, as it would without this class.
    """

    def __init__(self, result: np.ndarray, units: int) -> None:
        self._first, self._bytes, self._units = result.ctypes.data, result.nbytes, units
        self._huge = _huge_page()
        self._inner = self._wished = self._wish()
        self._spent, self._pages = 0.0, 0

    def _wish(self) -> _Span:
        """The part that is to have huge pages."""
        if not self._huge or time.monotonic() < _not_before:
            return _NOTHING
        inner = _Span(_up(self._first, self._huge), (self._first + self._bytes) // self._huge * self._huge)
        wanted = inner.stop - inner.start
        if wanted <= 0 or _free(self._huge) < 2 * wanted or not _told(inner, HUGE):
            return _NOTHING
        return inner

    def ask_for(self, start: int, stop: int) -> None:
        """Have memory at hand for the units [start, stop)."""
        at, last = (_up(self._first + self._bytes * unit // self._units, mmap.PAGESIZE) for unit in (start, stop))
        last = min(last, (self._first + self._bytes) // mmap.PAGESIZE * mmap.PAGESIZE)
        while at < last:
            inner = self._inner
            if inner.start <= at < inner.stop:
                # The piece in which a huge page begins asks for it.
                if at % self._huge == 0:
                    self._take(at)
                at = at // self._huge * self._huge + self._huge
            else:
                end = inner.start if at < inner.start < last else last
                _told(_Span(at, end), POPULATE_WRITE)
                at = end

    def _take(self, page: int) -> None:
        """One huge page, and no more if they have become dear."""
        global _not_before
        begun = time.thread_time()
        _told(_Span(page, page + self._huge), POPULATE_WRITE)
        self._spent += time.thread_time() - begun
        self._pages += 1
        ordinary = _time_of_ordinary(self._huge)
        lost = self._spent - self._pages * ordinary
        if lost > PATIENCE * ordinary:
            _not_before = time.monotonic() + PAUSE * lost
            self.end()

    def end(self) -> None:
        """The array is written, or no more huge pages are wanted: those that are there stay."""
        wished, self._wished, self._inner = self._wished, _NOTHING, _NOTHING
        if wished != _NOTHING:
            _told(wished, NOT_HUGE)


def _up(address: int, page: int) -> int:
    return -(-address // page) * page


def _told(span: _Span, advice: int) -> bool:
    """Whether the system has taken the advice."""
    advise = _advise()
    return advise is not None and advise(span.start, span.stop - span.start, advice) == 0


@lru_cache(1)
def _huge_page() -> int:
    """Bytes of a huge page of a system that gives them to those who ask; 0 of others, and where all get them."""
    try:
        size = int((_settings / "hpage_pmd_size").read_text(encoding="ascii"))
        asked = "[madvise]" in (_settings / "enabled").read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    return size if asked and mmap.PAGESIZE < size <= LARGEST else 0


def _free(page: int) -> int:
    """Bytes that lie free in blocks of at least a page of this size."""
    try:
        lines = _free_blocks.read_text(encoding="ascii").splitlines()
        # "Node 0, zone Normal", then how many blocks are free of 1, 2, 4, … ordinary pages
        blocks = [[int(count) for count in line.split()[4:]] for line in lines]
    except (OSError, ValueError):
        return 0
    sizes = ((count, mmap.PAGESIZE << order) for zone in blocks for order, count in enumerate(zone))
    return sum(count * size for count, size in sizes if size >= page)


@lru_cache(1)
def _time_of_ordinary(size: int) -> float:
    """Seconds that ordinary pages for so many bytes take, given and taken back: the best of three tries.

    Taking back huge pages takes next to none.
    """
    times = []
    for _ in range(3):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, np.uint8)
        span = _Span(array.ctypes.data, array.ctypes.data + size)
        del array
        begun = time.thread_time()
        _told(span, POPULATE_WRITE)
        memory.close()
        times.append(time.thread_time() - begun)
    return min(times)


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

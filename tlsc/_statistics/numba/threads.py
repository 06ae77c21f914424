"""Threads for kernels that release the GIL: those of PyTorch's OpenMP, or plain ones.

PyTorch's own threads keep a core busy for some milliseconds after each of its operations, waiting for the next.
Other threads would have to share that core with them (a network with 80 gates lost 5 % to it), so kernels run on
the very same ones: ``GOMP_parallel``, as the compiler calls it at a ``#pragma omp parallel``, of the library that
PyTorch has loaded. Where there is none, and in a forked process, whose OpenMP threads are its parent's, it is plain
threads.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import pages

__all__ = ["share_out"]

# Elements that are not worth a second thread.
SMALL = 2**15

_pool: tuple[int, ThreadPoolExecutor] | None = None
_forked = False
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _forget() -> None:
    """After a fork: the threads are the parent's."""
    global _pool, _forked
    _pool, _forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share_out(
    kernel: Callable[..., None],
    args: tuple[Any, ...],
    units: int,
    elements: int,
    results: Sequence[np.ndarray] = (),
) -> None:
    """Call ``kernel(*args, start, stop)`` until all units are done, on as many threads as PyTorch uses.

    ``results``, without values yet, are written by it, each unit an equal part of them.
    """
    threads = min(torch.get_num_threads(), units, elements // SMALL)
    new = [result for result in results if pages.are_new(result)]
    if threads <= 1 and not new:
        kernel(*args, 0, units)
        return
    step = max(1, units // (threads * 8))
    if new:
        step = min(step, max(1, units * pages.PIECE // new[0].nbytes))
    supplies = [pages.Supply(result, units) for result in new]
    turn = itertools.count()

    def work() -> None:
        while (start := next(turn) * step) < units:
            stop = min(start + step, units)
            for supply in supplies:
                supply.ask_for(start, stop)
            kernel(*args, start, stop)

    try:
        _run(work, threads)
    finally:
        for supply in supplies:
            supply.end()


def _run(work: Callable[[], None], threads: int) -> None:
    """On so many threads at once."""
    team = None if _forked or threads <= 1 else _openmp()
    if threads <= 1:
        work()
    elif team is None:
        _on_plain_threads(work, threads)
    else:
        _on_openmp(team, work, threads)


def _on_plain_threads(work: Callable[[], None], threads: int) -> None:
    others = [_workers(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            other.result()


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[0] < count:
        _pool = count, ThreadPoolExecutor(count, thread_name_prefix="tlsc")
    return _pool[1]


def _on_openmp(team: Any, work: Callable[[], None], threads: int) -> None:
    errors: list[BaseException] = []

    def body(_: object) -> None:
        try:
            work()
        except BaseException as error:  # none may pass through the compiled frames between here and the caller
            errors.append(error)

    team(_Body(body), None, threads, 0)
    if errors:
        raise errors[0]


@lru_cache(1)
def _openmp() -> Any:
    """``GOMP_parallel(body, data, threads, flags)`` as PyTorch itself finds it; None where it does not."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        # Looked up from PyTorch's library on, whatever the name of the OpenMP library that it was linked with.
        team = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    team.argtypes, team.restype = (_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return team

"""Memory of large results, which Linux gives in pieces."""

from __future__ import annotations

import mmap
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import tlsc
from tlsc._statistics.numba import pages
from tlsc.functional import local_instance_norm, local_var_mean


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


@pytest.mark.skipif(pages._advise() is None, reason="this system does not give pages in advance")
def test_pages_are_there_before_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        array = np.frombuffer(memory, np.float32).reshape(64, -1)
        assert not pages.are_new(array)  # too small
        monkeypatch.setattr(pages, "LARGE", array.nbytes)
        assert pages.are_new(array)
        before = _resident()
        pages.ask_for(array, 0, 48, 64)
        assert 48 <= _resident() - before < 64
        assert not pages.are_new(array)
        del array


def test_whole_pages_of_a_result_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units need not begin at a page's; nothing outside of the result is touched."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_advise", lambda: lambda first, size, _: asked.append((first, first + size)))
    result = np.empty(7 * mmap.PAGESIZE // 4 + 100, np.float32)
    for start in range(0, 10, 2):
        pages.ask_for(result, start, start + 2, 10)
    start, end = result.ctypes.data, result.ctypes.data + result.nbytes
    assert asked[0][0] - start < mmap.PAGESIZE
    assert end - asked[-1][1] < mmap.PAGESIZE
    assert all(first % mmap.PAGESIZE == last % mmap.PAGESIZE == 0 for first, last in asked)
    assert all(start <= first < last <= end for first, last in asked)
    assert all(before[1] == after[0] for before, after in pairwise(asked))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("failing", [False, True])
def test_results_are_the_same(threads: int, failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system refuses."""
    x = torch.randn(1, 24, 61, 67, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with tlsc.backend("numba"):
            expected = local_instance_norm(x, 9), *local_var_mean(x, 9)
            asked: list[int] = []
            advise = pages._advise()
            real = advise is not None and not failing
            monkeypatch.setattr(
                pages, "_advise", lambda: lambda *a: (asked.append(a[1]), advise(*a) if real else -1)[1]
            )
            monkeypatch.setattr(pages, "are_new", lambda result: True)
            monkeypatch.setattr(pages, "PIECE", x.nbytes // 8)
            for value, other in zip((local_instance_norm(x, 9), *local_var_mean(x, 9)), expected, strict=True):
                assert torch.equal(value, other)
    finally:
        torch.set_num_threads(before)
    assert len(asked) >= 3 * 8


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pages._advise.__wrapped__() is None

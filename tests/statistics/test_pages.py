"""Memory of large results, which Linux gives in pieces."""

from __future__ import annotations

import mmap
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tlsc
from tlsc._statistics.numba import pages
from tlsc._statistics.numba.threads import share_out
from tlsc.functional import local_instance_norm, local_var_mean

HUGE = 2**21
Call = tuple[int, int, int]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def _in_huge_pages(start: int, stop: int) -> tuple[int, set[str]]:
    """KiB of huge pages of the mappings within [start, stop), and the flags that only some of them have."""
    huge, flags, inside = 0, set(), False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            first, last = (int(end, 16) for end in name.split("-"))
            inside = start <= first and last <= stop
        elif inside and name == "AnonHugePages:":
            huge += int(rest.split()[0])
        elif inside and name == "VmFlags:":
            flags |= {flag for flag in rest.split() if flag in ("hg", "nh")}
    return huge, flags


def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_huge_page", lambda: 0)


def _is_huge(first: int, last: int) -> bool:
    return first % HUGE == 0 and last - first == HUGE


class Asked:
    """A system that gives huge pages, notes what it is told, and takes some time for each; a stand-in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float] = lambda page: 0.1) -> None:
        self.calls: list[Call] = []
        self.now = 1000.0
        self.seconds = seconds
        clock = SimpleNamespace(thread_time=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(pages, "time", clock)
        monkeypatch.setattr(pages, "_advise", lambda: self.advise)
        monkeypatch.setattr(pages, "_huge_page", lambda: HUGE)
        monkeypatch.setattr(pages, "_free", lambda page: 2**40)
        monkeypatch.setattr(pages, "_time_of_ordinary", lambda size: 1.0)
        monkeypatch.setattr(pages, "_not_before", 0.0)

    def advise(self, first: int, size: int, advice: int) -> int:
        if advice == pages.POPULATE_WRITE and _is_huge(first, first + size):
            self.now += self.seconds(sum(_is_huge(*span) for span in self.given(advice)))
        self.calls.append((first, first + size, advice))
        return 0

    def given(self, advice: int) -> list[tuple[int, int]]:
        return [call[:2] for call in self.calls if call[2] == advice]


@pytest.mark.skipif(pages._advise() is None, reason="this system does not give pages in advance")
def test_pages_are_there_before_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    _plain(monkeypatch)
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        array = np.frombuffer(memory, np.float32).reshape(64, -1)
        assert not pages.are_new(array)  # too small
        monkeypatch.setattr(pages, "LARGE", array.nbytes)
        assert pages.are_new(array)
        before = _resident()
        pages.Supply(array, 64).ask_for(0, 48)
        assert 48 <= _resident() - before < 64
        assert not pages.are_new(array)
        del array


@pytest.mark.skipif(pages._huge_page() != HUGE, reason="this system does not give huge pages to those who ask")
def test_huge_pages_are_there_before_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is asked for, up to the end of its last huge page; and afterwards no more are wished for."""
    if pages._free(HUGE) < 2**27:
        pytest.skip("too little memory lies free in one piece")
    monkeypatch.setattr(pages, "_not_before", 0.0)
    monkeypatch.setattr(pages, "_time_of_ordinary", lambda size: 10.0)
    with mmap.mmap(-1, 8 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        array = np.frombuffer(memory, np.uint8)
        start, stop = array.ctypes.data, array.ctypes.data + array.nbytes
        supply = pages.Supply(array, 16)
        before = _resident()
        supply.ask_for(0, 9)
        assert 4.5 * HUGE <= (_resident() - before) * mmap.PAGESIZE <= 5.6 * HUGE
        huge, flags = _in_huge_pages(start, stop)
        assert huge >= 3 * HUGE // 1024
        assert "hg" in flags
        supply.end()
        assert _in_huge_pages(start, stop)[0] == huge
        assert "hg" not in _in_huge_pages(start, stop)[1]
        del array


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize("offset", [0, 4, 8192, HUGE - 100])
@pytest.mark.parametrize("units", [5, 11, 64])
def test_pages_of_a_result_are_asked_for_once(
    huge: bool, offset: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units need not begin at a page's; they come in any order; nothing outside of the result is touched."""
    asked = Asked(monkeypatch)
    if not huge:
        _plain(monkeypatch)
    result = np.empty(9 * HUGE, np.uint8)[offset : offset + 7 * HUGE + 300]
    supply = pages.Supply(result, units)
    pieces = [(start, min(start + 2, units)) for start in range(0, units, 2)]
    random.Random(0).shuffle(pieces)
    for piece in pieces:
        supply.ask_for(*piece)
    supply.end()
    start, end = result.ctypes.data, result.ctypes.data + result.nbytes
    given = sorted(asked.given(pages.POPULATE_WRITE))
    assert given[0][0] - start < mmap.PAGESIZE
    assert end - given[-1][1] < mmap.PAGESIZE
    assert all(first % mmap.PAGESIZE == last % mmap.PAGESIZE == 0 for first, last in given)
    assert all(start <= first < last <= end for first, last in given)
    assert all(before[1] == after[0] for before, after in pairwise(given))
    inner = (-(-start // HUGE) * HUGE, end // HUGE * HUGE)
    wished = [inner] if huge else []
    assert asked.given(pages.HUGE) == asked.given(pages.NOT_HUGE) == wished
    assert all(asked.calls[n][2] == pages.POPULATE_WRITE for n in range(huge, len(asked.calls) - huge))
    if huge:
        expected = [(page, page + HUGE) for page in range(*inner, HUGE)]
        assert [span for span in given if inner[0] <= span[0] < inner[1]] == expected


@pytest.mark.parametrize("dear", [0, 3])
def test_dear_huge_pages_are_given_up_for_a_while(dear: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From page ``dear`` on each takes five times as long as ordinary ones, those before it half as long."""
    asked = Asked(monkeypatch, lambda page: 0.5 if page < dear else 5.0)
    result = np.empty(16 * HUGE, np.uint8)

    def write() -> float:
        asked.calls.clear()
        begun, supply = asked.now, pages.Supply(result, 15)
        for unit in range(15):
            supply.ask_for(unit, unit + 1)
        supply.end()
        return asked.now - begun

    seconds = write()
    huge = sum(_is_huge(*span) for span in asked.given(pages.POPULATE_WRITE))
    lost = seconds - huge
    assert pages.PATIENCE < lost <= pages.PATIENCE + 4.0
    assert huge == dear + 3
    given = sorted(asked.given(pages.POPULATE_WRITE))
    # The rest is in ordinary pages, from the middle of the last huge one if a unit begins there.
    again = [before[1] - after[0] for before, after in pairwise(given)]
    assert min(again) == 0 <= sum(again) < HUGE
    assert result.ctypes.data + result.nbytes - given[-1][1] < mmap.PAGESIZE
    assert asked.given(pages.HUGE) == asked.given(pages.NOT_HUGE)
    # At most a thirtieth of the time is lost in this way.
    asked.now += 29 * lost
    write()
    assert not asked.given(pages.HUGE)
    asked.now += 4 * lost
    write()
    assert asked.given(pages.HUGE)


def test_huge_pages_are_wished_for_only_where_they_lie_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = pages._free
    asked = Asked(monkeypatch)
    monkeypatch.setattr(pages, "_free", free)
    monkeypatch.setattr(pages, "_free_blocks", tmp_path / "buddyinfo")
    result = np.empty(9 * HUGE, np.uint8)
    pages.Supply(result, 1).ask_for(0, 1)
    assert not asked.given(pages.HUGE)  # nothing is known
    order = (HUGE // mmap.PAGESIZE).bit_length() - 1
    for small, right, large, enough in ((10**6, 15, 0, False), (0, 10, 3, True), (0, 8, 3, False)):
        counts = " ".join(["1"] * (order - 1) + [str(small), str(right), str(large)])
        zone = " ".join(["0"] * (order + 2))
        text = f"Node 0, zone      DMA {zone}\nNode 0, zone   Normal {counts}\n"
        (tmp_path / "buddyinfo").write_text(text, encoding="ascii")
        assert pages._free(HUGE) == (right + 2 * large) * HUGE
        pages.Supply(result, 1)
        assert bool(asked.given(pages.HUGE)) == enough
        asked.calls.clear()


@pytest.mark.parametrize(
    ("enabled", "size", "expected"),
    [
        ("always [madvise] never", HUGE, HUGE),
        ("[always] madvise never", HUGE, 0),
        ("always madvise [never]", HUGE, 0),
        ("always [madvise] never", 2**29, 0),
        ("always [madvise] never", None, 0),
    ],
)
def test_settings_of_the_system(
    enabled: str, size: int | None, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "_settings", tmp_path)
    (tmp_path / "enabled").write_text(enabled + "\n", encoding="ascii")
    if size is not None:
        (tmp_path / "hpage_pmd_size").write_text(f"{size}\n", encoding="ascii")
    assert pages._huge_page.__wrapped__() == expected


def test_an_error_ends_the_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    monkeypatch.setattr(pages, "are_new", lambda result: True)

    def kernel(start: int, stop: int) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        share_out(kernel, (), 64, 2**20, [np.empty(8 * HUGE, np.uint8)])
    assert asked.given(pages.HUGE) == asked.given(pages.NOT_HUGE) != []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("huge", [0, 4 * mmap.PAGESIZE])
def test_results_are_the_same(threads: int, failing: bool, huge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system refuses, and with huge pages, which would not be so small."""
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
            monkeypatch.setattr(pages, "_huge_page", lambda: huge)
            monkeypatch.setattr(pages, "_free", lambda page: 2**40)
            monkeypatch.setattr(pages, "_not_before", 0.0)
            for value, other in zip((local_instance_norm(x, 9), *local_var_mean(x, 9)), expected, strict=True):
                assert torch.equal(value, other)
    finally:
        torch.set_num_threads(before)
    assert len(asked) >= 3 * 8


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pages._advise.__wrapped__() is None

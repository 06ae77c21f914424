"""``tlsc._windows`` against loops over positions, on axes of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from tlsc._windows import Axis, Windows, before, covers

from ..oracles import reference_window

AXES = list(itertools.product((1, 2, 5, 13), (1, 2, 3, 5, 20), (1, 2, 3, 5, 40)))
CPU = torch.device("cpu")


def _starts(n: int, k: int, stride: int) -> list[int]:
    """Where the evaluated windows start: at 0, r, 2r, … and flush with the end."""
    last = n - min(k, n)
    return sorted({*range(0, last, stride), last})


def _reading(i: int, n: int, k: int, stride: int) -> dict[int, Fraction]:
    """The weight of each evaluated window, by where it starts, at position ``i``."""
    start = reference_window(i, n, k).start
    starts = _starts(n, k, stride)
    below = max(s for s in starts if s <= start)
    above = min(s for s in starts if s >= start)
    if below == above:
        return {below: Fraction(1)}
    share = Fraction(start - below, above - below)
    return {below: 1 - share, above: share}


def _on_numpy(n: int, k: int, r: int) -> Axis:
    return Axis(n, k, r)


def _on_device(n: int, k: int, r: int) -> Axis:
    return Axis(n, k, r, CPU)


def _free(n: int, k: int, r: int) -> Axis:
    return Axis(n, k, r, CPU, free=True)


@pytest.mark.parametrize("make", [_on_numpy, _on_device, _free])
def test_axis(make: Callable[[int, int, int], Axis]) -> None:
    """Starts, the evaluated windows, and which of them each position reads; none with a share of zero."""
    for n, k, r in AXES:
        axis = make(n, k, r)
        assert list(axis.starts) == [reference_window(i, n, k).start for i in range(n)]
        evaluated = [int(s) for s in axis.evaluated]
        assert len(evaluated) == axis.count
        if make is not _free:
            assert evaluated == _starts(n, k, r)
        below, above, share = axis.between()
        for i in range(n):
            got: dict[int, float] = {}
            for index, weight in ((below[i], 1 - share[i]), (above[i], share[i])):
                start = evaluated[int(index)]
                got[start] = got.get(start, 0.0) + float(weight)
            wanted = _reading(i, n, k, r)
            assert {s: w for s, w in got.items() if w} == pytest.approx({s: float(w) for s, w in wanted.items()})
            # A window that is wholly read is read alone: a NaN in another one must not come in.
            assert len(wanted) > 1 or below[i] == above[i], (n, k, r, i)
        touched = [(s == 0) + (s == n - min(k, n)) for s in evaluated]
        assert list(axis.ends()) == touched


def test_matrices() -> None:
    """P B is the strided local mean, by interpolation of means of slices."""
    x = np.random.default_rng(0).normal(size=13)
    for n, k, r in AXES:
        axis = Axis(n, k, r)
        means = {s: x[s : s + min(k, n)].mean() for s in _starts(n, k, r)}
        wanted = [sum(float(w) * means[s] for s, w in _reading(i, n, k, r).items()) for i in range(n)]
        np.testing.assert_allclose(axis.placing @ (axis.averaging @ x[:n]), wanted, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(9,), (7, 9), (5, 7, 4)])
@pytest.mark.parametrize("device", [None, CPU])
def test_outline(sizes: tuple[int, ...], device: torch.device | None) -> None:
    """Of all faces of a box, counted one by one, the part that does not lie on the map's border."""
    window = (3, 20, 2)[: len(sizes)]
    windows = Windows.of(sizes, window, 2, device)
    assert windows.sizes == tuple(min(k, n) for k, n in zip(window, sizes, strict=True))
    assert windows.positions == np.prod(windows.sizes)
    assert covers(window, sizes) == all(k >= n for k, n in zip(window, sizes, strict=True))
    got = windows.outline()
    assert tuple(got.shape) == windows.grid
    starts = [_starts(n, k, 2) for n, k in zip(sizes, window, strict=True)]
    for index in itertools.product(*(range(len(s)) for s in starts)):
        inner = whole = 0
        for axis, n in enumerate(sizes):
            face = int(np.prod([m for other, m in enumerate(windows.sizes) if other != axis]))
            start = starts[axis][index[axis]]
            inner += face * ((start > 0) + (start + windows.sizes[axis] < n))
            whole += 2 * face
        assert float(got[index]) == pytest.approx(inner / whole)


def test_before() -> None:
    assert [before(k) for k in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]

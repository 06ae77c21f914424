"""Where a window lies: the only place that says so.

An axis has ``n`` positions and windows of ``k`` of them, ``size = min(k, n)`` in fact. The window of position ``i``
starts at ``clamp(i − (size − 1)//2, 0, last)`` with ``last = n − size``: shifted to stay inside, never padded.
Of all windows, those are *evaluated* that start at 0, r, 2r, … and at ``last``, for a stride ``r``; position ``i``
reads by linear interpolation between the evaluated windows on either side of its own.

In matrices: ``averaging`` (windows × n) takes the mean of every evaluated window, ``placing`` (n × windows) brings
windows' values back to positions. A strided local mean of a map X is P B X Bᵀ Pᵀ. That is the definition, and what
everything else is tested against; to compute so at large sizes would be slow.

The same few lines serve arrays of NumPy (:meth:`Windows.known`), tensors on a device (:meth:`Windows.on`), and
graphs in which sizes are free (:meth:`Windows.open`), where no size may be asked and a grid has n//r + 2 windows:
the last is the flush one, and some before it are never read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

__all__ = ["Axis", "Windows", "smaller"]


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two sizes, kept open where one of them is free in a graph."""
    if torch.compiler.is_compiling() or isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        return torch.sym_min(a, b)
    return min(a, b)


@dataclass(frozen=True)
class Axis:
    """One spatial axis: what stands in tables has one value for each position, or for each evaluated window.

    Attributes:
        n: positions.
        k: the window, which may be larger than the axis.
        stride: between evaluated windows; 1 for all.
        device: where the tables are; None for NumPy's arrays.
        is_open: whether ``n`` is free in a graph.
    """

    n: Any
    k: Any
    stride: int = 1
    device: torch.device | None = None
    is_open: bool = False

    @cached_property
    def size(self) -> Any:
        """How many positions a window holds."""
        return smaller(self.k, self.n) if self.is_open else min(self.k, self.n)

    @property
    def last(self) -> Any:
        """Where the last window starts."""
        return self.n - self.size

    @property
    def before(self) -> Any:
        """How many positions of a window that touches no border lie before its own."""
        return (self.size - 1) // 2

    @property
    def covers(self) -> bool:
        """Whether the window holds the whole axis; not to be asked of an open one."""
        return bool(self.k >= self.n)

    @property
    def step(self) -> int:
        """The stride, no larger than what makes a difference: a larger one leaves the first and the last window."""
        return self.stride if self.is_open else max(1, min(self.stride, self.last))

    @property
    def count(self) -> Any:
        """How many windows are evaluated."""
        if self.is_open:
            return self.n if self.stride == 1 else self.n // self.stride + 2
        return -(-self.last // self.step) + 1

    def _range(self, count: Any) -> Any:
        return np.arange(count) if self.device is None else torch.arange(count, device=self.device)

    def _where(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b) if self.device is None else torch.where(condition, a, b)

    @cached_property
    def starts(self) -> Any:
        """Of each position's window, (n,)."""
        return (self._range(self.n) - self.before).clip(0).clip(None, self.last)

    @cached_property
    def evaluated(self) -> Any:
        """Where the evaluated windows start, (count,); of an open axis some lie behind ``last``, unread."""
        if not self.is_open:
            return (self._range(self.count) * self.step).clip(None, self.last)
        if self.stride == 1:
            return self._range(self.n)
        regular = self._range(self.n // self.stride + 1) * self.stride
        return torch.cat([regular, torch.zeros_like(regular[:1]) + self.last])

    @cached_property
    def between(self) -> tuple[Any, Any, Any]:
        """The evaluated windows on either side of each position's own, and the share of the second: (n,) each.

        A share of zero must not read its other window, since zero times NaN is NaN: the first stands there twice.
        """
        start, step, last = self.starts, self.step, self.last
        if self.is_open and self.stride == 1:
            return start, start, 0.0 * start
        flush = self.count - 1
        at_end = start == last
        lower = self._where(at_end, last, start // step * step)
        upper = (lower + step).clip(None, last)
        share = (start - lower) / (upper - lower).clip(1)
        below = self._where(at_end, flush, start // step)
        above = self._where(share > 0, self._where(upper == last, flush, upper // step), below)
        return below, above, share

    @cached_property
    def ends(self) -> Any:
        """How many of the map's two ends each evaluated window touches, (count,)."""
        start = self.evaluated
        return 1 * (start == 0) + 1 * (start == self.last)

    @property
    def averaging(self) -> Any:
        """B, (count, n): the mean of each evaluated window. Of known axes."""
        at, start = np.arange(self.n), self.evaluated[:, None]
        return ((at >= start) & (at < start + self.size)) / self.size

    @property
    def placing(self) -> Any:
        """P, (n, count): the values of evaluated windows back at the positions. Of known axes."""
        below, above, share = self.between
        out = np.zeros((self.n, self.count))
        np.add.at(out, (np.arange(self.n), below), 1 - share)
        np.add.at(out, (np.arange(self.n), above), share)
        return out


class Windows(tuple[Axis, ...]):
    """The windows of a map: an axis for each of its spatial dimensions, in order."""

    @staticmethod
    def known(sizes: Sequence[int], window: Sequence[int], stride: int = 1) -> Windows:
        """Of sizes that are known: tables are NumPy's arrays, and kept. They are shared, not to be written to."""
        return _known(tuple(sizes), tuple(window), stride)

    @staticmethod
    def on(device: torch.device, sizes: Sequence[int], window: Sequence[int], stride: int = 1) -> Windows:
        """The same with tables that are tensors on a device, made there without a copy from the host."""
        return Windows(Axis(n, k, stride, device) for n, k in zip(sizes, window, strict=True))

    @staticmethod
    def open(device: torch.device, sizes: Sequence[Any], window: Sequence[Any], stride: int = 1) -> Windows:
        """Of sizes that are free in a graph: asks none of them, and has n//r + 2 evaluated windows an axis."""
        return Windows(Axis(n, k, stride, device, True) for n, k in zip(sizes, window, strict=True))

    @property
    def covers(self) -> bool:
        """Whether one window is the whole map."""
        return all(axis.covers for axis in self)

    @property
    def sizes(self) -> tuple[Any, ...]:
        """How large a window is."""
        return tuple(axis.size for axis in self)

    @property
    def grid(self) -> tuple[Any, ...]:
        """How many windows are evaluated along each axis."""
        return tuple(axis.count for axis in self)

    @property
    def positions(self) -> Any:
        """How many positions a window holds."""
        return math.prod(self.sizes)

    @property
    def outline(self) -> Any:
        """The share of each evaluated window's outline that lies inside the map, in the shape of the grid."""
        faces = [math.prod(other.size for other in self if other is not axis) for axis in self]
        touched: Any = 0
        for place, (axis, face) in enumerate(zip(self, faces, strict=True)):
            touched = touched + face * axis.ends.reshape(-1, *[1] * (len(self) - 1 - place))
        return 1 - touched / (2 * sum(faces))


@lru_cache(maxsize=512)
def _known(sizes: tuple[int, ...], window: tuple[int, ...], stride: int) -> Windows:
    return Windows(Axis(n, k, stride) for n, k in zip(sizes, window, strict=True))

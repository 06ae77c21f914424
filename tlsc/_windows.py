"""Where a window lies: the only place that says so.

An axis has ``n`` positions and windows of ``size = min(k, n)`` of them. The window of position ``i`` starts at
``clamp(i − before(size), 0, last)`` with ``last = n − size``: shifted to stay inside, never padded. Of all windows,
those are *evaluated* that start at 0, r, 2r, … and at ``last``, for a stride ``r``; position ``i`` reads by linear
interpolation between the evaluated windows on either side of its own.

In matrices: ``averaging`` (windows × n) takes the mean of every evaluated window, ``placing`` (n × windows) brings
windows' values back to positions. A strided local mean of a map X is P B X Bᵀ Pᵀ. That is the definition, against
which everything else is tested; to compute so at large sizes would be slow.

The same lines serve NumPy's arrays (no device), tensors on a device, and graphs in which sizes are free: there no
size may be asked, and an axis with a stride has n//r + 2 windows, of which the last is flush with the border and
some before it are never read. Nothing is cached on an axis, since ``torch.compile`` traces through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Axis", "Windows", "before", "covers", "covers_axis", "smaller"]


def before(size):  # type: ignore[no-untyped-def]
    """How many positions of a window lie before its own, where it touches no border.

    Numba and Triton compile this very function: sizes of every kind come in.
    """
    return (size - 1) // 2


def covers(window: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether one window is the whole map; not to be asked where sizes are free in a graph."""
    return all(covers_axis(k, n) for k, n in zip(window, sizes, strict=True))


def covers_axis(k: int, n: int) -> bool:
    """Whether a window holds a whole axis."""
    return bool(k >= n)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two sizes, kept open in a graph. TorchScript's tracer has tensors for sizes."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    # Dynamo takes open sizes for int and keeps their minimum open; of sym_min older versions refuse two numbers.
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else torch.sym_min(a, b)


def _product(sizes: Sequence[Any]) -> Any:
    """``math.prod``, which graphs do not know."""
    total = sizes[0] if sizes else 1
    for size in sizes[1:]:
        total = total * size
    return total


@dataclass(frozen=True)
class Axis:
    """One spatial axis. Tables hold one value for each position, or one for each evaluated window.

    Attributes:
        n: positions.
        k: the window, which may be larger than the axis.
        stride: between evaluated windows; 1 for all.
        device: where tables are made; None for NumPy's arrays.
        free: whether ``n`` is free in a graph.
    """

    n: Any
    k: Any
    stride: int = 1
    device: torch.device | None = None
    free: bool = False

    @property
    def size(self) -> Any:
        """How many positions a window holds."""
        return smaller(self.k, self.n) if self.free else min(self.k, self.n)

    @property
    def last(self) -> Any:
        """Where the last window starts."""
        return self.n - self.size

    @property
    def before(self) -> Any:
        """How many positions of a window that touches no border lie before its own."""
        return before(self.size)  # type: ignore[no-untyped-call]

    @property
    def count(self) -> Any:
        """How many windows are evaluated."""
        if self.free:
            return self.n if self.stride == 1 else self.n // self.stride + 2
        return (self.last + self.stride - 1) // self.stride + 1

    def start(self, position: Any) -> Any:
        """Where the windows of these positions, an array or a tensor, start."""
        if isinstance(position, torch.Tensor):
            return (position - self.before).clamp(min=0).clamp(max=self.last)
        return np.clip(position - self.before, 0, self.last)

    @property
    def starts(self) -> Any:
        """Where the window of each position starts, (n,)."""
        return self.start(self._range(self.n))

    @property
    def evaluated(self) -> Any:
        """Where the evaluated windows start, (count,); of a free axis some lie behind ``last``, unread."""
        if not self.free:
            return self._clamped(self._range(self.count) * self.stride, most=self.last)
        if self.stride == 1:
            return self._range(self.n)
        regular = self._range(self.n // self.stride + 1) * self.stride
        return torch.cat([regular, torch.zeros_like(regular[:1]) + self.last])

    def between(self, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
        """The evaluated windows on either side of each position's own, and the share of the second: (n,) each.

        A window whose share is zero must not be read, since zero times NaN is NaN: where a position's own window
        is evaluated, it stands there twice.

        Args:
            dtype: of the shares, where tables are tensors.
        """
        where = np.where if self.device is None else torch.where
        start, stride, last = self.starts, self.stride, self.last
        index = start // stride
        at_end = start == last
        flush = last if self.free and stride == 1 else self.count - 1
        lower = where(at_end, last, index * stride)
        upper = self._clamped(lower + stride, most=last)
        gap = self._clamped(upper - lower, least=1)
        share = (start - lower) / gap if self.device is None else (start - lower).to(dtype) / gap.to(dtype)
        below = where(at_end, flush, index)
        above = where(share > 0, where(upper == last, flush, index + 1), below)
        return below, above, share

    def ends(self, dtype: torch.dtype = torch.float64) -> Any:
        """How many of the map's two ends each evaluated window touches, (count,)."""
        start = self.evaluated
        if self.device is None:
            return 1.0 * (start == 0) + 1.0 * (start == self.last)
        return (start == 0).to(dtype) + (start == self.last).to(dtype)

    @property
    def averaging(self) -> Any:
        """B, (count, n): the mean of each evaluated window. Of an axis without a device."""
        at, start = np.arange(self.n), self.evaluated[:, None]
        return ((at >= start) & (at < start + self.size)) / self.size

    @property
    def placing(self) -> Any:
        """P, (n, count): the values of evaluated windows at the positions. Of an axis without a device."""
        below, above, share = self.between()
        out = np.zeros((self.n, self.count))
        np.add.at(out, (np.arange(self.n), below), 1 - share)
        np.add.at(out, (np.arange(self.n), above), share)
        return out

    def _clamped(self, values: Any, least: Any = None, most: Any = None) -> Any:
        return np.clip(values, least, most) if self.device is None else values.clamp(min=least, max=most)

    def _range(self, count: Any) -> Any:
        return np.arange(count) if self.device is None else torch.arange(count, device=self.device)


@dataclass(frozen=True)
class Windows:
    """The windows of a map: an axis for each of its spatial dimensions, in order."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(
        cls,
        sizes: Sequence[Any],
        window: Sequence[Any],
        stride: int = 1,
        device: torch.device | None = None,
        free: bool = False,
    ) -> Windows:
        """Of a map with spatial ``sizes``; the other arguments are those of :class:`Axis`."""
        return cls(tuple([Axis(n, k, stride, device, free) for n, k in zip(sizes, window, strict=True)]))

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    @property
    def sizes(self) -> tuple[Any, ...]:
        """How large a window is."""
        return tuple([axis.size for axis in self.axes])

    @property
    def grid(self) -> tuple[Any, ...]:
        """How many windows are evaluated along each axis."""
        return tuple([axis.count for axis in self.axes])

    @property
    def positions(self) -> Any:
        """How many positions a window holds."""
        return _product(self.sizes)

    def outline(self, dtype: torch.dtype = torch.float64) -> Any:
        """The share of each evaluated window's outline that lies inside the map, in the shape of the grid."""
        sizes = self.sizes
        touched: Any = 0
        around: Any = 0
        for place, axis in enumerate(self.axes):
            face = _product((*sizes[:place], *sizes[place + 1 :]))
            around = around + face
            touched = touched + face * axis.ends(dtype).reshape(-1, *[1] * (len(sizes) - 1 - place))
        return 1 - touched / (2 * around)

"""What several kernels are made of: where windows start, samples of a plane, types, shares of windows."""

from __future__ import annotations

from types import FunctionType

import triton
import triton.language as tl

from ... import _windows

__all__ = [
    "aligned",
    "before_own",
    "clip",
    "inside",
    "narrowed",
    "padded",
    "sample",
    "widened",
    "window_start",
]


# The one definition, among this file's globals: Triton's interpreter looks for its language there.
before_own = triton.jit(FunctionType(_windows.before.__code__, globals(), "before"))


@triton.jit
def sample(at, row, spread, width, row_stride, column_stride, there, TYPE: tl.constexpr):
    """One value of a plane near its mean, as it is stored: the median of three, ``spread`` rows apart.

    One odd value, or one NaN, does not decide.
    """
    a = tl.load(at + (row - spread) * row_stride + (width // 4) * column_stride, mask=there, other=0.0).to(TYPE)
    b = tl.load(at + row * row_stride + (width // 2) * column_stride, mask=there, other=0.0).to(TYPE)
    far = width - 1 - width // 4
    c = tl.load(at + (row + spread) * row_stride + far * column_stride, mask=there, other=0.0).to(TYPE)
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c)).to(at.dtype.element_ty)


@triton.jit
def padded(number):
    """How many elements are set aside for ``number``: what stands behind them starts a line of memory anew."""
    return (number + 15) // 16 * 16


@triton.jit
def aligned(number, ALIGN: tl.constexpr):
    """The number, which ALIGN divides, so that the compiler knows it."""
    return number // ALIGN * ALIGN


@triton.jit
def window_start(position, before, last):
    """Where the window of a position starts: shifted to stay inside."""
    return tl.minimum(tl.maximum(position - before, 0), last)


@triton.jit
def widened(value, TYPE: tl.constexpr):
    """What was loaded, as TYPE; half types by way of float32, for the interpreter knows no other."""
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value.to(TYPE)


@triton.jit
def narrowed(value, at):
    """What is to be stored at a pointer, in its type; likewise."""
    if at.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value.to(at.dtype.element_ty)


@triton.jit
def clip(value, low, high):
    """Within limits; NaN stays."""
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def inside(s, t, last_row, last_column, rows, columns, TYPE: tl.constexpr):
    """The share of a window's outline that lies inside the map; the window starts at (s, t)."""
    down = tl.where(s == 0, 1.0, 0.0) + tl.where(s == last_row, 1.0, 0.0)
    across = tl.where(t == 0, 1.0, 0.0) + tl.where(t == last_column, 1.0, 0.0)
    return 1 - (columns * down.to(TYPE) + rows * across.to(TYPE)) / (tl.zeros([1], TYPE) + 2 * (rows + columns))

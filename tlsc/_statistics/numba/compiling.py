"""How kernels are compiled: without the GIL, cached beside the source where that can be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["PADDING", "compiled", "padded", "total", "window_sums", "window_sums_of_two"]


def compiled(
    function: Callable[..., Any], estimates: bool = False, inside: bool = False, reordered: bool = False
) -> Any:
    """``function`` as machine code, compiled at its first call and kept on disk where that can be written to.

    Args:
        function: in the part of Python that Numba knows.
        estimates: divisions and roots in single precision by the processor's estimate and a step of Newton's,
            where it has one; right to about two units in the last place.
        inside: part of each caller, which then neither passes arrays nor counts references to them; both cost as
            much as the arithmetic of a short row.
        reordered: additions in any order, the same at each call.
    """
    fastmath = {"contract"}
    if estimates:
        fastmath |= {"arcp", "afn", "nsz"}
    if reordered:
        fastmath |= {"reassoc"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath, "forceinline": inside}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(**options)(function)


# ------------------------------------------------------------------------------------- sums of windows along a row
#
# A sum that moves along a row waits for each addition before the next, and stores one number at a time: as Python
# says it, it is bound by stores, at 1 a cycle. Here four are summed among themselves in two steps, and only the sum
# of all before waits, once for eight. LLVM does not find that by itself; it is written in its own words, for any
# processor. Vectors are of four, also where the processor has wider ones: moving eight numbers by one place in a
# register takes AMD's processors five times as long as this.

LANES = 4
# What is done before the next sum of all before.
BLOCK = 2 * LANES
# Elements beyond the last column that are read (which must be finite) and written.
PADDING = 16
_WIDE = ir.VectorType(ir.DoubleType(), LANES)
_INDEX = ir.IntType(32)
_ZERO = ir.Constant(_WIDE, [ir.Constant(ir.DoubleType(), 0.0)] * LANES)


def _place(builder: Any, pointer: Any, at: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [at]), _WIDE.as_pointer())


def _read(builder: Any, pointer: Any, at: Any) -> Any:
    values = builder.load(_place(builder, pointer, at))
    values.align = 8
    return values


def _chosen(builder: Any, values: Any, lanes: list[int | None]) -> Any:
    """These lanes of a vector; zero where there is None."""
    mask = [ir.Constant(_INDEX, 0 if lane is None else LANES + lane) for lane in lanes]
    return builder.shuffle_vector(_ZERO, values, ir.Constant(ir.VectorType(_INDEX, LANES), mask))


def _last(builder: Any, values: Any) -> Any:
    """The last lane, in each."""
    return _chosen(builder, values, [LANES - 1] * LANES)


def _summed(builder: Any, values: Any) -> Any:
    """``[s0, s0 + s1, …]``."""
    pairs = builder.fadd(values, _chosen(builder, values, [None, 0, None, 2]))
    return builder.fadd(pairs, _chosen(builder, pairs, [None, None, 1, 1]))


def _everywhere(builder: Any, number: Any) -> Any:
    one = builder.insert_element(_ZERO, number, ir.Constant(_INDEX, 0))
    return _chosen(builder, one, [0] * LANES)


def _loop(builder: Any, count: Any, states: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> None:
    """``states = body(index, states)`` for each index below ``count``, which is at least 1."""
    before, inside = builder.block, builder.append_basic_block("sums")
    after = builder.append_basic_block("sums.end")
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(count.type)
    index.add_incoming(ir.Constant(count.type, 0), before)
    current = [builder.phi(state.type) for state in states]
    for phi, state in zip(current, states, strict=True):
        phi.add_incoming(state, before)
    results = body(index, list(current))
    following = builder.add(index, ir.Constant(count.type, 1))
    index.add_incoming(following, builder.block)
    for phi, result in zip(current, results, strict=True):
        phi.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)


def _generated(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The sums of windows of each source into its target; while one waits, the other goes on."""
    columns, blocks, *rest = arguments
    count = len(rest) // 3
    pointers = [
        context.make_array(kind)(context, builder, value).data
        for kind, value in zip(signature.args[2 : 2 + 2 * count], rest[: 2 * count], strict=True)
    ]
    sources, targets, firsts = pointers[:count], pointers[count:], rest[2 * count :]
    for target, number in zip(targets, firsts, strict=True):
        builder.store(number, target)

    def body(index: Any, before: list[Any]) -> list[Any]:
        start = builder.mul(index, ir.Constant(index.type, BLOCK))
        following = []
        for source, target, total in zip(sources, targets, before, strict=True):
            added = None
            for step in range(0, BLOCK, LANES):
                at = builder.add(start, ir.Constant(index.type, step))
                enters = _read(builder, source, builder.add(at, columns))
                here = _summed(builder, builder.fsub(enters, _read(builder, source, at)))
                added = here if added is None else builder.fadd(_last(builder, added), here)
                place = _place(builder, target, builder.add(at, ir.Constant(index.type, 1)))
                builder.store(builder.fadd(total, added), place).align = 8
            following.append(builder.fadd(total, _last(builder, added)))
        return following

    with builder.if_then(builder.icmp_signed(">", blocks, ir.Constant(blocks.type, 0))):
        _loop(builder, blocks, [_everywhere(builder, number) for number in firsts], body)
    return context.get_dummy_value()


def _signature(rows: tuple[Any, ...], numbers: tuple[Any, ...]) -> Any:
    fits = all(kind == types.Array(types.float64, 1, "C") for kind in rows)
    fits = fits and all(kind == types.float64 for kind in numbers)
    return (types.void(types.intp, types.intp, *rows, *numbers), _generated) if fits else None


def _moving_sums(typing: Any, columns: Any, blocks: Any, row: Any, out: Any, first: Any) -> Any:
    """``out[j] = first + Σ (row[i + columns] − row[i])``, i < j, for all j up to ``BLOCK * blocks``."""
    return _signature((row, out), (first,))


def _moving_sums_of_two(
    typing: Any,
    columns: Any,
    blocks: Any,
    row: Any,
    row2: Any,
    out: Any,
    out2: Any,
    first: Any,
    first2: Any,
) -> Any:
    """:func:`_moving_sums` of both at once."""
    return _signature((row, row2, out, out2), (first, first2))


_moving: Any = intrinsic(_moving_sums)
_moving_of_two: Any = intrinsic(_moving_sums_of_two)


def _total(row):
    total = 0.0
    for j in range(row.shape[0]):
        total += row[j]
    return total


total = compiled(_total, reordered=True, inside=True)


def _window_sums(source, columns, out):
    """``out[j] = source[j] + … + source[j + columns − 1]``, of arrays that end with ``PADDING`` more elements."""
    windows = source.shape[0] - PADDING - columns + 1
    _moving(columns, (windows + BLOCK - 2) // BLOCK, source, out, total(source[:columns]))


def _window_sums_of_two(first, second, columns, out, out2):
    """:func:`window_sums` of both at once."""
    windows = first.shape[0] - PADDING - columns + 1
    blocks = (windows + BLOCK - 2) // BLOCK
    _moving_of_two(columns, blocks, first, second, out, out2, total(first[:columns]), total(second[:columns]))


window_sums = compiled(_window_sums, inside=True)
window_sums_of_two = compiled(_window_sums_of_two, inside=True)


@compiled
def padded(width):
    """Zeros for ``width`` columns, and what :func:`window_sums` reads and writes beyond them.

    They begin with a line of the cache: a vector that lies in two takes two reads or writes.
    """
    line = 64 // 8
    zeros = np.zeros(width + PADDING + line)
    start = -(zeros.ctypes.data // 8) % line
    return zeros[start : start + width + PADDING]

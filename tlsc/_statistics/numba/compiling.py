"""How kernels are compiled: without the GIL, cached beside the source where that can be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["PADDING", "compiled", "padded", "running_sums", "running_sums_of_two"]


def compiled(function: Callable[..., Any], estimates: bool = False, inside: bool = False) -> Any:
    """``function`` as machine code, compiled at its first call and kept on disk where that can be written to.

    Args:
        function: in the part of Python that Numba knows.
        estimates: divisions and roots in single precision by the processor's estimate and a step of Newton's,
            where it has one; right to about two units in the last place.
        inside: part of each caller, which then neither passes arrays nor counts references to them; both cost as
            much as the arithmetic of a short row.
    """
    fastmath = {"contract", "arcp", "afn", "nsz"} if estimates else {"contract"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath, "forceinline": inside}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(**options)(function)


# ----------------------------------------------------------------------------------------------- running sums
#
# A running sum waits for each addition before the next, and stores one number at a time: as Python says it, it is
# bound by stores, at 1 a cycle. Eight at once are summed among themselves in three steps, and only the sum of all
# before waits, once for eight. LLVM does not find that by itself; it is written in its own words here, for any
# processor.

LANES = 8
# Elements beyond the last column that are read (which must be finite) and written.
PADDING = 16
_WIDE = ir.VectorType(ir.DoubleType(), LANES)
_ZERO = ir.Constant(_WIDE, [ir.Constant(ir.DoubleType(), 0.0)] * LANES)


def _place(builder: Any, pointer: Any, at: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [at]), _WIDE.as_pointer())


def _chosen(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """These lanes of two vectors, counted on from the first to the second."""
    mask = [ir.Constant(ir.IntType(32), lane) for lane in lanes]
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask))


def _moved(builder: Any, values: Any, step: int) -> Any:
    """Moved on by some lanes, with zeros before."""
    return _chosen(builder, _ZERO, values, list(range(LANES - step, 2 * LANES - step)))


def _summed(builder: Any, pointer: Any, at: Any) -> Any:
    """``[s0, s0 + s1, …]`` of the vector from ``at`` on."""
    total = builder.load(_place(builder, pointer, at))
    total.align = 8
    for step in (1, 2, 4):
        total = builder.fadd(total, _moved(builder, total, step))
    return total


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    return [
        context.make_array(kind)(context, builder, value).data
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _blocks(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """How many vectors hold the columns of the first array."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    length = builder.extract_value(array.shape, 0)
    more = ir.Constant(length.type, LANES - 1 - PADDING)
    return builder.sdiv(builder.add(length, more), ir.Constant(length.type, LANES))


def _loop(builder: Any, count: Any, states: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """``states = body(index, states)`` for each index below ``count``, which is at least 1; the last states."""
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
    return results


def _is_row(*kinds: Any) -> bool:
    return all(kind == types.Array(types.float64, 1, "C") for kind in kinds)


def _generated(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The running sums of the first half of the arrays into the second; while one waits, the other goes on."""
    pointers = _pointers(context, builder, signature, arguments)
    sources, targets = pointers[: len(pointers) // 2], pointers[len(pointers) // 2 :]
    blocks = _blocks(context, builder, signature, arguments)

    def body(index: Any, before: list[Any]) -> list[Any]:
        at = builder.mul(index, ir.Constant(index.type, LANES))
        following = []
        for source, target, total in zip(sources, targets, before, strict=True):
            here = _summed(builder, source, at)
            # From ``at`` on and not from the next: a read of these columns soon after finds them in one write.
            builder.store(builder.fadd(total, _moved(builder, here, 1)), _place(builder, target, at)).align = 8
            following.append(builder.fadd(total, _chosen(builder, here, here, [LANES - 1] * LANES)))
        return following

    totals = _loop(builder, blocks, [_ZERO for _ in sources], body)
    end = builder.mul(blocks, ir.Constant(blocks.type, LANES))
    for total, target in zip(totals, targets, strict=True):
        last = builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
        builder.store(last, builder.gep(target, [end]))
    return context.get_dummy_value()


def _running_sums(typing_context: Any, sums: Any, prefix: Any) -> Any:
    """``prefix[j] = sums[0] + … + sums[j − 1]``, of arrays that end with ``PADDING`` more elements."""
    return (types.void(sums, prefix), _generated) if _is_row(sums, prefix) else None


def _running_sums_of_two(typing_context: Any, sums: Any, squares: Any, prefix: Any, prefix2: Any) -> Any:
    """:func:`running_sums` of both at once."""
    kinds = (sums, squares, prefix, prefix2)
    return (types.void(*kinds), _generated) if _is_row(*kinds) else None


# What a kernel calls: without the first argument, which the compiler gives.
running_sums: Any = intrinsic(_running_sums)
running_sums_of_two: Any = intrinsic(_running_sums_of_two)


@compiled
def padded(width):
    """Zeros for ``width`` columns, and what :func:`running_sums` reads and writes beyond them.

    They begin with a line of the cache: a vector that lies in two takes two reads or writes.
    """
    line = 64 // 8
    zeros = np.zeros(width + PADDING + line)
    start = -(zeros.ctypes.data // 8) % line
    return zeros[start : start + width + PADDING]

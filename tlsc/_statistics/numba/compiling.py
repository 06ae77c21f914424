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


def compiled(function: Callable[..., Any], estimates: bool = False) -> Any:
    """``function`` compiled on its first call, and then read from the cache.

    ``estimates``: divisions and roots in single precision by the processor's estimate and a step of Newton's,
    where it has one; right to about two units in the last place.
    """
    fastmath = {"contract", "arcp", "afn", "ninf", "nsz"} if estimates else {"contract"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(**options)(function)


# ----------------------------------------------------------------------------------------------- running sums
#
# A running sum waits for each addition before the next, and stores one number at a time: as Python says it, it is
# bound by stores, at 1 a cycle. Four at once: ``p[j + 4] = p[j] + (s[j] + s[j + 1] + s[j + 2] + s[j + 3])`` for
# four neighbours j is plain arithmetic on vectors of four, which overlap where they are loaded. LLVM does not find
# that by itself; it is written in its own words here, for any processor.

LANES = 4
# Elements beyond the last column that are read (which must be finite) and written.
PADDING = 16
_WIDE = ir.VectorType(ir.DoubleType(), LANES)


def _loaded(builder: Any, pointer: Any, at: Any) -> Any:
    loaded = builder.load(builder.bitcast(builder.gep(pointer, [at]), _WIDE.as_pointer()))
    loaded.align = 8
    return loaded


def _stored(builder: Any, value: Any, pointer: Any, at: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(pointer, [at]), _WIDE.as_pointer())).align = 8


def _first(builder: Any, pointer: Any, start: int, count: int) -> Any:
    """``[0, s0, s0 + s1, …]`` from ``start`` on: sums of the first ``start`` … ``start + LANES − 1`` values."""
    number, place = ir.DoubleType(), ir.IntType(64)
    total: Any = ir.Constant(number, 0.0)
    out: Any = ir.Constant(_WIDE, ir.Undefined)
    for at in range(count):
        if at >= start:
            out = builder.insert_element(out, total, ir.Constant(ir.IntType(32), at - start))
        total = builder.fadd(total, builder.load(builder.gep(pointer, [ir.Constant(place, at)])))
    return out


def _four(builder: Any, pointer: Any, at: Any) -> Any:
    """``s[j] + s[j + 1] + s[j + 2] + s[j + 3]`` for the vector of j from ``at`` on."""
    total = _loaded(builder, pointer, at)
    for more in range(1, LANES):
        total = builder.fadd(total, _loaded(builder, pointer, builder.add(at, ir.Constant(at.type, more))))
    return total


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    return [
        context.make_array(kind)(context, builder, value).data
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _blocks(context: Any, builder: Any, signature: Any, arguments: Any, size: int) -> Any:
    """How many blocks of ``size`` hold the running sums of the first array."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    length = builder.extract_value(array.shape, 0)
    columns = builder.sub(length, ir.Constant(length.type, PADDING))
    return builder.add(builder.sdiv(columns, ir.Constant(length.type, size)), ir.Constant(length.type, 1))


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


def _is_row(*kinds: Any) -> bool:
    return all(kind == types.Array(types.float64, 1, "C") for kind in kinds)


@intrinsic
def running_sums(typing_context: Any, sums: Any, prefix: Any) -> Any:
    """``prefix[j] = sums[0] + … + sums[j − 1]``, of arrays that end with ``PADDING`` more elements."""
    if not _is_row(sums, prefix):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = _pointers(context, builder, signature, arguments)
        size = 2 * LANES
        blocks = _blocks(context, builder, signature, arguments, size)
        states = [
            _first(builder, source, 0, LANES),
            _first(builder, source, LANES, size),
            _four(builder, source, ir.Constant(blocks.type, 0)),
        ]

        def body(index: Any, states: list[Any]) -> list[Any]:
            low, high, here = states
            at = builder.mul(index, ir.Constant(index.type, size))
            middle = builder.add(at, ir.Constant(index.type, LANES))
            _stored(builder, low, target, at)
            _stored(builder, high, target, middle)
            there = _four(builder, source, middle)
            following = _four(builder, source, builder.add(at, ir.Constant(index.type, size)))
            low = builder.fadd(low, builder.fadd(here, there))
            return [low, builder.fadd(high, builder.fadd(there, following)), following]

        _loop(builder, blocks, states, body)
        return context.get_dummy_value()

    return types.void(sums, prefix), generate


@intrinsic
def running_sums_of_two(typing_context: Any, sums: Any, squares: Any, prefix: Any, prefix2: Any) -> Any:
    """:func:`running_sums` of both at once: while one waits for its last addition, the other goes on."""
    if not _is_row(sums, squares, prefix, prefix2):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *sources, target, target2 = _pointers(context, builder, signature, arguments)
        blocks = _blocks(context, builder, signature, arguments, LANES)

        def body(index: Any, states: list[Any]) -> list[Any]:
            at = builder.mul(index, ir.Constant(index.type, LANES))
            for state, out in zip(states, (target, target2), strict=True):
                _stored(builder, state, out, at)
            return [
                builder.fadd(state, _four(builder, source, at))
                for state, source in zip(states, sources, strict=True)
            ]

        _loop(builder, blocks, [_first(builder, source, 0, LANES) for source in sources], body)
        return context.get_dummy_value()

    return types.void(sums, squares, prefix, prefix2), generate


@compiled
def padded(width):
    """Zeros for ``width`` columns, and what :func:`running_sums` reads and writes beyond them."""
    return np.zeros(width + PADDING)

"""The operations: how each is called, and what PyTorch knows of it.

Called with plain tensors and nothing to differentiate, a kernel is called directly (:mod:`.backends` says whose).
To autograd and to ``torch.compile`` the operations are known as ``torch.ops.tlsc.*``: opaque, with shapes for fake
tensors, and with the derivatives of :mod:`.reference`, which runs again in the backward pass (and so twice
differentiable). Where a graph is traced to be exported, under ``vmap``, and on tensors without values, PyTorch's
operations are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._windows import Axis, Windows
from . import any_size as _graph
from . import backends
from . import onnx_functions as _onnx
from . import reference as _reference
from .correction import Correction

__all__ = [
    "grid_maxima",
    "grid_means",
    "grid_moments",
    "local_group_norm",
    "local_mean",
    "local_var_mean",
    "meet",
    "non_local",
    "overlapping_attention",
    "place",
    "transposed_attention",
]

DEVICES = ("cpu", "cuda")


# ----------------------------------------------------------------------------------- how an operation is called


def _call(name: str, tensors: Sequence[Tensor | None], *arguments: Any) -> Any:
    """The operation on its tensors, the first of which is the map; the other arguments follow."""
    x = tensors[0]
    assert x is not None
    if _graph.applies():
        return _call_of_any_size(name, tensors, *arguments)
    if _reference._is_traced(x):
        return _FUNCTIONS[name](_reference, *tensors, *arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return getattr(torch.ops.tlsc, name)(*tensors, *arguments)
    function = _FUNCTIONS[name]
    return backends.answer(name, x, lambda by: function(by, *tensors, *arguments))


def _call_of_any_size(name: str, tensors: Sequence[Tensor | None], *arguments: Any) -> Any:
    """The operation in a graph whose sizes are free: an operator of tlsc's where that will run it, else PyTorch's.

    While ONNX is written, a call of a function of that file.
    """
    x = tensors[0]
    assert x is not None
    functions = _onnx.collected()
    if functions is not None and name in _SHAPES:
        there = [t for t in tensors if t is not None]

        def compute(*given: Tensor) -> Any:
            left = iter(given)
            return _FUNCTIONS[name](_graph, *(None if t is None else next(left) for t in tensors), *arguments)

        settings = (*(t is None for t in tensors), *arguments)
        return functions.call(name, compute, there, settings, _SHAPES[name](*tensors, *arguments))
    if _graph.leaves() or x.device.type not in DEVICES:
        return _FUNCTIONS[name](_graph, *tensors, *arguments)
    return getattr(torch.ops.tlsc, f"free_{name}" if name in _FREE else name)(*tensors, *arguments)


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """See :func:`tlsc._statistics.reference.local_mean`; so for the others."""
    out: Tensor = _call("local_mean", (x, _rows(correction, x)), *window, _step(stride, x.shape[-2:]))
    return out


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    var, mean = _call("local_var_mean", (x,), *window)
    return var, mean


def local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correction: Correction | None = None,
) -> Tensor:
    out: Tensor = _call("local_group_norm", (x, weight, bias, _rows(correction, x)), *window, num_groups, eps)
    return out


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    out: Tensor = _call("grid_means", (x, _rows(correction, x)), *window, _step(stride, x.shape[-2:]))
    return out


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    var, mean = _call("grid_moments", (x, _rows(correction, x)), *window, _step(stride, x.shape[-2:]))
    return var, mean


def grid_maxima(x: Tensor, window: tuple[int, int], stride: int = 1) -> Tensor:
    out: Tensor = _call("grid_maxima", (x,), *window, _step(stride, x.shape[-2:]))
    return out


def place(grid: Tensor, window: tuple[int, int], stride: int, height: int, width: int) -> Tensor:
    out: Tensor = _call("place", (grid,), *window, _step(stride, (height, width)), height, width)
    return out


def transposed_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    out: Tensor = _call("transposed_attention", (q, k, v, scale), *window, *stride)
    return out


def overlapping_attention(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, window: tuple[int, int]) -> Tensor:
    out: Tensor = _call("overlapping_attention", (q, k, v, scale), *window)
    return out


def non_local(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], scale: float, weighting: str) -> Tensor:
    out: Tensor = _call("non_local", (v, q, k), *window, scale, weighting)
    return out


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    out: Tensor = _call("meet", (x, grid), *window, _step(stride, x.shape[-2:]), operation)
    return out


# ---------------------------------------------------------------- the operations on tensors and numbers alone


def _step(stride: int, sizes: Sequence[int]) -> int:
    """A stride no larger than the map: from there on there is only the first and the last window of an axis.

    Room is taken in proportion to it. In a graph sizes must not be asked.
    """
    return stride if _graph.applies() else min(stride, max(1, *sizes))


def _rows(correction: Correction | None, x: Tensor) -> Tensor | None:
    return None if correction is None else correction.on(x.device)


def _correction(rows: Tensor | None) -> Correction | None:
    return None if rows is None else Correction(rows)


def _mean_by(by: Any, x: Tensor, correction: Tensor | None, rows: int, columns: int, stride: int) -> Any:
    return by.local_mean(x, (rows, columns), stride, _correction(correction))


def _var_mean_by(by: Any, x: Tensor, rows: int, columns: int) -> Any:
    return by.local_var_mean(x, (rows, columns))


def _norm_by(
    by: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    correction: Tensor | None,
    rows: int,
    columns: int,
    num_groups: int,
    eps: float,
) -> Any:
    return by.local_group_norm(x, (rows, columns), num_groups, weight, bias, eps, _correction(correction))


def _grid_means_by(by: Any, x: Tensor, correction: Tensor | None, rows: int, columns: int, stride: int) -> Any:
    return by.grid_means(x, (rows, columns), stride, _correction(correction))


def _grid_moments_by(by: Any, x: Tensor, correction: Tensor | None, rows: int, columns: int, stride: int) -> Any:
    return by.grid_moments(x, (rows, columns), stride, _correction(correction))


def _meet_by(by: Any, x: Tensor, grid: Tensor, rows: int, columns: int, stride: int, operation: str) -> Any:
    return by.meet(x, grid, (rows, columns), stride, operation)


def _grid_maxima_by(by: Any, x: Tensor, rows: int, columns: int, stride: int) -> Any:
    return (by if by is _graph else _reference).grid_maxima(x, (rows, columns), stride)


def _place_by(by: Any, grid: Tensor, rows: int, columns: int, stride: int, height: int, width: int) -> Any:
    return (by if by is _graph else _reference).place(grid, (rows, columns), stride, height, width)


def _transposed_by(by: Any, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, *sizes: int) -> Any:
    from .. import attention

    return attention._sliding_by(by is _graph, q, k, v, scale, sizes[:2], sizes[2:])  # type: ignore[arg-type]


def _overlapping_by(by: Any, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, rows: int, columns: int) -> Any:
    from .. import attention

    return attention._overlapping_by(by is _graph, q, k, v, scale, (rows, columns))


def _non_local_by(
    by: Any, v: Tensor, q: Tensor, k: Tensor, rows: int, columns: int, scale: float, weighting: str
) -> Any:
    from .. import attention

    return attention._non_local_by(by is _graph, q, k, v, (rows, columns), scale, weighting)  # type: ignore[arg-type]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "local_mean": _mean_by,
    "local_var_mean": _var_mean_by,
    "local_group_norm": _norm_by,
    "grid_means": _grid_means_by,
    "grid_moments": _grid_moments_by,
    "meet": _meet_by,
    "grid_maxima": _grid_maxima_by,
    "place": _place_by,
    "transposed_attention": _transposed_by,
    "overlapping_attention": _overlapping_by,
    "non_local": _non_local_by,
}


def _free_grid(name: str) -> Callable[..., Any]:
    """An operation whose grid gets the size that it has in a graph: its last window, repeated, fills it up."""

    def function(by: Any, x: Tensor, *rest: Any) -> Any:
        made, stride = _FUNCTIONS[name](by, x, *rest), rest[-1]
        sides = _graph.grid_shape(x, stride)[-2:]
        grids = tuple(_filled(grid, sides) for grid in (made if isinstance(made, tuple) else (made,)))
        return grids if isinstance(made, tuple) else grids[0]

    return function


def _filled(grid: Tensor, sides: Sequence[int]) -> Tensor:
    for dim, n in zip((-2, -1), sides, strict=True):
        last = grid.narrow(dim, grid.shape[dim] - 1, 1)
        shape = list(grid.shape)
        shape[dim] = n - grid.shape[dim]
        grid = torch.cat([grid, last.expand(shape)], dim)
    return grid


def _emptied(grid: Tensor, windows: Sequence[int], stride: int, sides: Sequence[int]) -> Tensor:
    """The inverse of :func:`_filled`."""
    for dim, k, n in zip((-2, -1), windows, sides, strict=True):
        others = Axis(n, k, stride).count - 1
        grid = torch.cat([grid.narrow(dim, 0, others), grid.narrow(dim, grid.shape[dim] - 1, 1)], dim)
    return grid


def _free_meet(by: Any, x: Tensor, grid: Tensor, rows: int, columns: int, stride: int, operation: str) -> Any:
    return _meet_by(by, x, _emptied(grid, (rows, columns), stride, x.shape[-2:]), rows, columns, stride, operation)


def _free_place(by: Any, grid: Tensor, rows: int, columns: int, stride: int, height: int, width: int) -> Any:
    grid = _emptied(grid, (rows, columns), stride, (height, width))
    return _place_by(by, grid, rows, columns, stride, height, width)


# In a graph grids have sizes that follow from the map's without a minimum.
_FREE: dict[str, Callable[..., Any]] = {
    "grid_means": _free_grid("grid_means"),
    "grid_moments": _free_grid("grid_moments"),
    "grid_maxima": _free_grid("grid_maxima"),
    "meet": _free_meet,
    "place": _free_place,
}

# Of what is recorded for an ONNX file, the shapes of the results.
_SHAPES: dict[str, Callable[..., Sequence[Sequence[int]]]] = {
    "local_mean": lambda x, *_: (x.shape,),
    "local_var_mean": lambda x, *_: (x.shape, x.shape),
    "local_group_norm": lambda x, *_: (x.shape,),
    "grid_means": lambda x, correction, rows, columns, stride: (_graph.grid_shape(x, stride),),
    "grid_moments": lambda x, correction, rows, columns, stride: (_graph.grid_shape(x, stride),) * 2,
    "grid_maxima": lambda x, rows, columns, stride: (_graph.grid_shape(x, stride),),
    "meet": lambda x, *_: (x.shape,),
    "transposed_attention": lambda q, k, v, *_: (v.shape,),
    "overlapping_attention": lambda q, k, v, *_: (v.shape,),
    "non_local": lambda v, *_: (v.shape,),
}


# ------------------------------------------------------------------------------------ as PyTorch knows them


def _like(x: Tensor, *_: Any) -> Tensor:
    """An output without values, in the shape and memory format of ``x``."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _grid(x: Tensor, *arguments: Any) -> Tensor:
    *window, stride = arguments[-3:]
    return x.new_empty((x.shape[0], x.shape[1], *Windows.of(x.shape[-2:], window, stride).grid))


_SCHEMAS = {
    "local_mean": "(Tensor x, Tensor? correction, SymInt rows, SymInt columns, SymInt stride) -> Tensor",
    "local_var_mean": "(Tensor x, SymInt rows, SymInt columns) -> (Tensor, Tensor)",
    "local_group_norm": "(Tensor x, Tensor? weight, Tensor? bias, Tensor? correction, SymInt rows, SymInt columns, "
    "SymInt num_groups, float eps) -> Tensor",
    "grid_means": "(Tensor x, Tensor? correction, SymInt rows, SymInt columns, SymInt stride) -> Tensor",
    "grid_moments": "(Tensor x, Tensor? correction, SymInt rows, SymInt columns, SymInt stride) "
    "-> (Tensor, Tensor)",
    "grid_maxima": "(Tensor x, SymInt rows, SymInt columns, SymInt stride) -> Tensor",
    "place": "(Tensor grid, SymInt rows, SymInt columns, SymInt stride, SymInt height, SymInt width) -> Tensor",
    "transposed_attention": "(Tensor q, Tensor k, Tensor v, Tensor scale, SymInt rows, SymInt columns, "
    "SymInt stride_rows, SymInt stride_columns) -> Tensor",
    "overlapping_attention": "(Tensor q, Tensor k, Tensor v, Tensor scale, SymInt rows, SymInt columns) -> Tensor",
    "non_local": "(Tensor v, Tensor q, Tensor k, SymInt rows, SymInt columns, float scale, str weighting) "
    "-> Tensor",
    "meet": "(Tensor x, Tensor grid, SymInt rows, SymInt columns, SymInt stride, str operation) -> Tensor",
}

_FAKES: dict[str, Callable[..., Any]] = {
    "local_mean": _like,
    "local_var_mean": lambda x, *_: (_like(x), _like(x)),
    "local_group_norm": _like,
    "grid_means": _grid,
    "grid_moments": lambda x, *arguments: (_grid(x, *arguments), _grid(x, *arguments)),
    "meet": _like,
    "grid_maxima": _grid,
    "place": lambda grid, rows, columns, stride, *size: grid.new_empty((*grid.shape[:2], *size)),
    "transposed_attention": lambda q, k, v, *_: v.new_empty(v.shape),
    "overlapping_attention": lambda q, k, v, *_: v.new_empty(v.shape),
    "non_local": lambda v, *_: v.new_empty(v.shape),
}


def _free_like(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(_graph.grid_shape(x, arguments[-1]))


_FREE_FAKES: dict[str, Callable[..., Any]] = {
    "grid_means": _free_like,
    "grid_moments": lambda x, *arguments: (_free_like(x, *arguments), _free_like(x, *arguments)),
    "grid_maxima": _free_like,
}


def _register(name: str, function: Callable[..., Any], schema: str, fake: Callable[..., Any]) -> None:

    def run(*arguments: Any) -> Any:
        detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        out = backends.answer(name, detached[0], lambda by: function(by, *detached))
        # Autograd takes a view of a tensor that nobody else sees for one that must not be changed in place.
        return tuple(part.data for part in out) if isinstance(out, tuple) else out.data

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))
        ctx.inputs = [None if isinstance(a, Tensor) else (a,) for a in inputs]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        arguments = [next(saved) if a is None else a[0] for a in ctx.inputs]
        needed = [i for i, needs in enumerate(ctx.needs_input_grad) if needs]
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            if not twice:
                for i in needed:
                    arguments[i] = arguments[i].detach().requires_grad_()
            out = function(_reference, *arguments)
        found = torch.autograd.grad(
            out, [arguments[i] for i in needed], grads, create_graph=twice, allow_unused=True
        )
        result: list[Tensor | None] = [None] * len(arguments)
        for i, grad in zip(needed, found, strict=True):
            result[i] = grad
        return tuple(result)

    operator = torch.library.custom_op(f"tlsc::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup)


for _name in _FUNCTIONS:
    _register(_name, _FUNCTIONS[_name], _SCHEMAS[_name], _FAKES[_name])
for _name in _FREE:
    _register(f"free_{_name}", _FREE[_name], _SCHEMAS[_name], _FREE_FAKES.get(_name, _FAKES[_name]))

"""An operator of ours: one record, from which PyTorch, back ends and ONNX learn all they need.

Called with plain tensors and nothing to differentiate, a kernel is called directly (:mod:`.backends` says whose).
To autograd and to ``torch.compile`` an operation is known as ``torch.ops.tlsc.*``: opaque, with shapes for fake
tensors, and with the derivatives of :mod:`.reference`, which runs again in the backward pass (and so twice
differentiable). Where a graph is traced to be exported, under ``vmap``, and on tensors without values, PyTorch's
operations are used.

In a graph whose sizes are free a grid of windows has a size that follows from the map's without a minimum. An
operation that makes or reads a grid is therefore registered a second time, as ``torch.ops.tlsc.free_*``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._windows import Windows
from . import any_size, backends, onnx_functions, reference

__all__ = ["Operation", "operation"]

DEVICES = ("cpu", "cuda")
SCHEMA = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "int": "SymInt", "float": "float", "str": "str"}

Result = Literal["map", "grid", "placed"]


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        name: PyTorch knows it as ``torch.ops.tlsc.<name>``.
        compute: ``compute(by, *arguments)``, where ``by`` is the module whose functions do the work.
        arguments: their names, without ``by``.
        types: their annotations.
        results: how many tensors come out.
        map: which of the arguments is the map, whose device decides.
        result: in the shape of the map; a grid with one value for each evaluated window; or one value for each
            position of (height, width), two arguments.
        reads_grid: whether the argument ``grid`` is a grid of evaluated windows.
    """

    name: str
    compute: Callable[..., Any]
    arguments: tuple[str, ...]
    types: tuple[str, ...]
    results: int
    map: int
    result: Result
    reads_grid: bool

    def run(self, by: Any, *arguments: Any) -> Any:
        """Computed by the functions of a module: a back end's where it names this one, else PyTorch's."""
        has_it = by is any_size or self.name in by.__all__
        return self.compute(by if has_it else reference, *arguments)

    @property
    def schema(self) -> str:
        """As ``torch.library`` wants it."""
        inputs = ", ".join(
            f"{SCHEMA[type_]} {name}" for name, type_ in zip(self.arguments, self.types, strict=True)
        )
        return f"({inputs}) -> " + ("Tensor" if self.results == 1 else f"({', '.join(['Tensor'] * self.results)})")

    @property
    def has_free_form(self) -> bool:
        return self.result == "grid" or self.reads_grid

    def tensors(self, arguments: Sequence[Any]) -> list[Tensor | None]:
        """Those of the arguments that are tensors, or might be."""
        return [a for a, type_ in zip(arguments, self.types, strict=True) if type_.startswith("Tensor")]

    def value(self, name: str, arguments: Sequence[Any]) -> Any:
        """One argument, by its name."""
        return arguments[self.arguments.index(name)]

    def window(self, arguments: Sequence[Any]) -> tuple[int, int]:
        return self.value("rows", arguments), self.value("columns", arguments)

    def sizes(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Of the map whose windows stand in the grid."""
        if self.result == "placed":
            return self.value("height", arguments), self.value("width", arguments)
        shape: Sequence[Any] = arguments[self.map].shape[-2:]
        return shape

    def fake(self, free: bool, *arguments: Any) -> Any:
        """Results without values."""
        x: Tensor = arguments[self.map]
        made = []
        for _ in range(self.results):
            if self.result == "map":
                made.append(_like(x))
            elif self.result == "placed":
                made.append(x.new_empty((*x.shape[:-2], *self.sizes(arguments))))
            else:
                made.append(x.new_empty((*x.shape[:2], *self.grid(free, arguments))))
        return tuple(made) if self.results > 1 else made[0]

    def grid(self, free: bool, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The sides of the grid: how many windows are evaluated down and across."""
        stride = self.value("stride", arguments)
        sizes = self.sizes(arguments)
        return Windows.of(sizes, self.window(arguments), stride, free=free).grid

    def run_free(self, by: Any, *arguments: Any) -> Any:
        """As :meth:`run`, with grids of the size that they have in a graph."""
        given = list(arguments)
        if self.reads_grid:
            at = self.arguments.index("grid")
            given[at] = _emptied(given[at], self.grid(False, arguments))
        out = self.run(by, *given)
        if self.result != "grid":
            return out
        sides = self.grid(True, arguments)
        return tuple(_filled(part, sides) for part in out) if self.results > 1 else _filled(out, sides)


def operation(
    name: str, *, map: str, result: Result = "map", reads_grid: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``compute(by, *arguments)`` as an operator, and return what calls it: ``call(*arguments)``.

    The annotations, each a key of ``SCHEMA``, make the schema. See :class:`Operation` for the settings.
    """

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(compute)
        parameters = list(signature.parameters.values())[1:]
        names = tuple(parameter.name for parameter in parameters)
        types = tuple(str(parameter.annotation) for parameter in parameters)
        results = str(signature.return_annotation).count("Tensor")
        own = Operation(name, compute, names, types, results, names.index(map), result, reads_grid)
        _register(own, own.name, own.run, free=False)
        if own.has_free_form:
            _register(own, f"free_{own.name}", own.run_free, free=True)

        def call(*arguments: Any) -> Any:
            return _call(own, arguments)

        return call

    return register


# ----------------------------------------------------------------------------------- how an operation is called


def _call(own: Operation, arguments: tuple[Any, ...]) -> Any:
    x = arguments[own.map]
    if reference.is_traced(x):
        return _call_of_any_size(own, arguments) if any_size.applies() else own.run(reference, *arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in own.tensors(arguments)):
        return getattr(torch.ops.tlsc, own.name)(*arguments)
    return backends.answer(own.name, x, lambda by: own.run(by, *arguments))


def _call_of_any_size(own: Operation, arguments: tuple[Any, ...]) -> Any:
    """The operation in a graph whose sizes are free: an operator of tlsc's where that will run it, else PyTorch's.

    While ONNX is written, a call of a function of that file.
    """
    functions = onnx_functions.collected()
    if functions is not None and own.result != "placed":
        return _call_in_file(own, functions, arguments)
    if any_size.leaves() or arguments[own.map].device.type not in DEVICES:
        return own.run(any_size, *arguments)
    return getattr(torch.ops.tlsc, f"free_{own.name}" if own.has_free_form else own.name)(*arguments)


def _call_in_file(own: Operation, functions: onnx_functions.Functions, arguments: tuple[Any, ...]) -> Any:
    x = arguments[own.map]
    shape = (*x.shape[:2], *own.grid(True, arguments)) if own.result == "grid" else x.shape
    given = [isinstance(a, Tensor) for a in arguments]

    def compute(*tensors: Tensor) -> Any:
        left = iter(tensors)
        return own.run(any_size, *(next(left) if there else a for there, a in zip(given, arguments, strict=True)))

    tensors = [a for a in arguments if isinstance(a, Tensor)]
    settings = [None if there else (a,) for there, a in zip(given, arguments, strict=True)]
    return functions.call(own.name, compute, tensors, settings, (shape,) * own.results)


# ---------------------------------------------------------------------------------------- as PyTorch knows them


def _register(own: Operation, name: str, function: Callable[..., Any], free: bool) -> None:

    def run(*arguments: Any) -> Any:
        detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        out = backends.answer(name, detached[own.map], lambda by: function(by, *detached))
        parts = out if isinstance(out, tuple) else (out,)
        if own.result == "grid":  # as :meth:`Operation.fake` says, whatever the layout that a kernel writes best
            parts = tuple(part.contiguous() for part in parts)
        # Autograd takes a view of a tensor that nobody else sees for one that must not be changed in place.
        parts = tuple(part.data for part in parts)
        return parts if own.results > 1 else parts[0]

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
            out = function(reference, *arguments)
        found = torch.autograd.grad(
            out, [arguments[i] for i in needed], grads, create_graph=twice, allow_unused=True
        )
        result: list[Tensor | None] = [None] * len(arguments)
        for i, grad in zip(needed, found, strict=True):
            result[i] = grad
        return tuple(result)

    operator = torch.library.custom_op(f"tlsc::{name}", run, mutates_args=(), schema=own.schema)
    operator.register_fake(lambda *arguments: own.fake(free, *arguments))
    operator.register_autograd(backward, setup_context=setup)


def _like(x: Tensor) -> Tensor:
    """An output without values, in the shape and memory format of ``x``."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _filled(grid: Tensor, sides: Sequence[int]) -> Tensor:
    """A grid as large as it is in a graph: its last window, repeated, fills it up."""
    for dim, n in zip((-2, -1), sides, strict=True):
        last = grid.narrow(dim, grid.shape[dim] - 1, 1)
        shape = list(grid.shape)
        shape[dim] = n - grid.shape[dim]
        grid = torch.cat([grid, last.expand(shape)], dim)
    return grid


def _emptied(grid: Tensor, sides: Sequence[int]) -> Tensor:
    """The inverse of :func:`_filled`: the last window stands at the end of a grid of any size."""
    for dim, n in zip((-2, -1), sides, strict=True):
        grid = torch.cat([grid.narrow(dim, 0, n - 1), grid.narrow(dim, grid.shape[dim] - 1, 1)], dim)
    return grid

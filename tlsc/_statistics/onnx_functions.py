"""Local statistics as functions of an ONNX file.

While a model is exported, each operation of :mod:`.any_size` is recorded as one call of a function that does not
exist yet: tracing a network then costs no more than tracing the original. Afterwards each function is exported by
itself, once for all its calls, on plain axes (which are quick to reason about), and put in place of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Functions", "collected", "collecting"]

_DOMAIN = "tlsc"
_collecting: ContextVar[Functions | None] = ContextVar("functions", default=None)
_KEPT = 64
_exported: dict[Any, Any] = {}
"""Functions that were exported before, serialised, by what they depend on: at most ``_KEPT``."""


@dataclass(frozen=True)
class _Function:
    key: Any
    compute: Callable[..., Any]
    examples: tuple[Tensor, ...]


class Functions:
    """The functions that a graph calls, by name."""

    def __init__(self) -> None:
        self._made: dict[str, _Function] = {}
        self._names: dict[Any, str] = {}

    def call(
        self,
        operation: str,
        compute: Callable[..., Any],
        tensors: Sequence[Tensor],
        settings: Sequence[Any],
        shapes: Sequence[Sequence[int]],
    ) -> Any:
        """A call of ``compute(*tensors)``, whose results have these shapes and the dtype of the first tensor.

        Two calls are of one function where operation, settings, and the tensors' dtypes and channels agree. Of maps
        (four dimensions or more) the first and the last two axes are free.
        """
        forms = tuple(
            (t.dtype, *(-1 if _is_free(d, t) else int(n) for d, n in enumerate(t.shape))) for t in tensors
        )
        key = operation, tuple(settings), forms
        if key not in self._names:
            name = f"{operation}_{len(self._names)}"
            self._names[key] = name
            self._made[name] = _Function(key, compute, tuple(_example(t) for t in tensors))
        name = f"{_DOMAIN}::{self._names[key]}"
        dtype = tensors[0].dtype
        if len(shapes) == 1:
            return torch.onnx.ops.symbolic(name, list(tensors), dtype=dtype, shape=shapes[0], version=1)
        return tuple(
            torch.onnx.ops.symbolic_multi_out(
                name, list(tensors), dtypes=[dtype] * len(shapes), shapes=shapes, version=1
            )
        )

    def put_into(self, model: Any, opset: int) -> None:
        """Replace the calls in an ONNX model by what the functions compute."""
        import onnx_ir
        from onnx_ir.passes.common import InlinePass

        if not self._made:
            return
        for name, function in self._made.items():
            made = _function(onnx_ir, function, opset)
            made.name = name
            model.functions[made.identifier()] = made
        InlinePass()(model)
        model.opset_imports.pop(_DOMAIN, None)


@contextmanager
def collecting() -> Iterator[Functions]:
    """Inside, operations are recorded as calls of functions that are defined afterwards."""
    functions = Functions()
    token = _collecting.set(functions)
    try:
        yield functions
    finally:
        _collecting.reset(token)


def collected() -> Functions | None:
    """What records operations now; None outside of :func:`collecting`."""
    # A context variable is nothing that Dynamo can trace; and no ONNX file is written through Dynamo.
    return None if torch.compiler.is_dynamo_compiling() else _collecting.get()


class _Body(nn.Module):
    def __init__(self, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.compute = compute
        self.eval()

    def forward(self, *tensors: Tensor) -> Any:
        return self.compute(*tensors)


def _function(onnx_ir: Any, function: _Function, opset: int) -> Any:
    """The function in ONNX; exporting takes seconds, so that what was exported is read back."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    key = function.key, opset, torch.get_default_dtype(), half
    kept = _exported.get(key)
    if kept is None:
        if len(_exported) >= _KEPT:
            _exported.clear()
        kept = _exported[key] = onnx_ir.serde.serialize_function(_export(onnx_ir, function, opset))
    return onnx_ir.serde.deserialize_function(kept)


def _export(onnx_ir: Any, function: _Function, opset: int) -> Any:
    dynamic = torch.export.Dim.DYNAMIC
    free = [{d: dynamic for d in range(t.dim()) if _is_free(d, t)} for t in function.examples]
    token = _collecting.set(None)
    try:
        program = torch.onnx.export(
            _Body(function.compute),
            function.examples,
            dynamo=True,
            dynamic_shapes=(tuple(free),),
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
    finally:
        _collecting.reset(token)
    graph = program.model.graph
    # A function has no initializers.
    for value in list(graph.initializers.values()):
        node = onnx_ir.node("Constant", [], {"value": value.const_value})
        first = next(iter(graph), None)
        if first is None:
            graph.append(node)
        else:
            graph.insert_before(first, node)
        onnx_ir.convenience.replace_all_uses_with(value, node.outputs[0], replace_graph_outputs=True)
        del graph.initializers[str(value.name)]
    # Names of sizes would be taken for the same size in every call.
    for node in graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    graph.opset_imports.update(program.model.opset_imports)
    return onnx_ir.Function(_DOMAIN, function.key[0], graph=graph, attributes=[])


def _is_free(dim: int, x: Tensor) -> bool:
    return x.dim() >= 4 and dim in (0, x.dim() - 2, x.dim() - 1)


def _example(x: Tensor) -> Tensor:
    sizes = {0: 2, x.dim() - 2: 37, x.dim() - 1: 50} if x.dim() >= 4 else {}
    return torch.zeros([sizes[d] if d in sizes else int(n) for d, n in enumerate(x.shape)], dtype=x.dtype)

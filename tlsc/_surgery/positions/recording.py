"""Recording the operations of a run, each with the call of the module whose own code it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..._models.slots import Slot
from . import table
from .operation import LEAVING, Operation, Seen, described
from .work import multiplications

__all__ = ["CallRecord", "Recorder", "Recurrences", "operation_of"]

CONSTANT = -1
"""The depth of a tensor that does not depend on the image."""
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# Operations that make a map, whatever they are given.
_MAKING = ("convolution", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d")
# Operations that take from a tensor its shape at most.
_EMPTY = (
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
)


@dataclass(eq=False)
class CallRecord:
    """One call of a module with code of its own: its operations, and the sizes of the maps that it met."""

    slot: Slot
    operations: list[Operation] = field(default_factory=list)
    maps: set[tuple[int, int]] = field(default_factory=set)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation, by the call of the module it belongs to.

    It looks at the operations that everything is made of in the end, so that no spelling escapes it.

    Attributes:
        calls: of each slot, in order.
        work: the multiplications of all operations.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[Slot, list[CallRecord]] = {}
        self.work = 0
        self._inside: list[CallRecord | None] = []
        self._layers: list[nn.Module] = []
        self._depth: Any = WeakTensorKeyDictionary()
        for tensor in constants:
            self._depth[tensor] = CONSTANT
        self._known: set[tuple[int, int]] = set()  # sizes of all maps that came in or that a layer made
        self._batch = 0

    @contextmanager
    def call(self, slot: Slot, given: Iterable[Tensor], silent: bool = False) -> Iterator[None]:
        """While in here, operations belong to a new call of the slot's module; ``silent``: to nobody."""
        given = list(given)
        if not self._known:
            self._batch = next((leaf.shape[0] for leaf in given if leaf.dim() == 4), 0)
            self._known |= {(leaf.shape[2], leaf.shape[3]) for leaf in given if leaf.dim() == 4}
        record = CallRecord(slot)
        record.maps = set().union(*(self._sizes(leaf) for leaf in given))
        if self._inside and self._inside[-1] is not None:
            record.maps |= self._inside[-1].maps
        if not silent:
            self.calls.setdefault(slot, []).append(record)
        self._inside.append(None if silent else record)
        try:
            yield
        finally:
            self._inside.pop()

    @contextmanager
    def layer(self, module: nn.Module) -> Iterator[None]:
        """While in here, operations are a part of a layer of PyTorch."""
        self._layers.append(module)
        try:
            yield
        finally:
            self._layers.pop()

    def whole(self, name: str, args: dict[str, Any], run: Callable[[], Any]) -> Any:
        """Run something that counts as one operation, whatever it does inside."""
        record = self._inside[-1] if self._inside else None
        depth = self._deepest(args)
        seen = described(list(args.values()), self._seen)
        self._inside.append(None)
        try:
            out = run()
        finally:
            self._inside.pop()
        self._note(out, depth + 1)
        if record is not None:
            outputs = tuple(self._seen(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            made = Operation(name, dict(zip(args, seen, strict=True)), outputs, False, self._layer(), depth + 1)
            record.operations.append(made)
        return out

    def _layer(self) -> nn.Module | None:
        return self._layers[-1] if self._layers else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        if space == "aten" and not table.knows(name):
            with self:  # under inference mode operations come as they were called
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        record = self._inside[-1] if self._inside else None
        depth = CONSTANT if name in _EMPTY else self._deepest((args, kwargs))
        # As they are before the operation, which may change them.
        named = {} if record is None else _named(func, args, kwargs, self._seen)
        out = func(*args, **kwargs)
        if not func.is_view:
            self.work += multiplications(name, args, out)
        # Writing or adding to a part of a tensor makes no chain of the parts.
        longer = depth != CONSTANT and not (func.is_view or func._schema.is_mutable)
        self._note(out, depth + longer)
        if func._schema.is_mutable:
            self._changed(func, args, kwargs, depth)
        self._see_map(out, name, record)
        if record is not None:
            outputs = tuple(self._seen(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            harmless = func.is_view or torch.Tag.pointwise in func.tags
            shown = name if space == "aten" else f"{space}::{name}"
            record.operations.append(Operation(shown, named, outputs, harmless, self._layer(), depth + longer))
        return out

    def _see_map(self, out: Any, name: str, record: CallRecord | None) -> None:
        """Remember the size of a map that was just made."""
        if isinstance(out, Tensor) and out.dim() == 4 and name in _MAKING and len(out) == self._batch:
            self._known.add((out.shape[2], out.shape[3]))
            if record is not None:
                record.maps |= self._sizes(out)

    # ------------------------------------------------------------------------------------ what a tensor depends on

    def _depth_of(self, tensor: Tensor) -> int:
        own: int = self._depth.get(tensor, 0)
        if own == CONSTANT and tensor._base is not None:
            own = self._depth.get(tensor._base, own)
        return own

    def _deepest(self, values: Any) -> int:
        return max(
            (self._depth_of(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), default=CONSTANT
        )

    def _note(self, values: Any, depth: int) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._depth[leaf] = depth

    def _changed(self, func: Any, args: Any, kwargs: Any, depth: int) -> None:
        for at, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[at] if at < len(args) else kwargs.get(argument.name)
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor):
                    self._depth[leaf] = depth
                    if leaf._base is not None:
                        self._depth[leaf._base] = max(depth, self._depth.get(leaf._base, 0))

    def _seen(self, tensor: Tensor) -> Seen:
        numbers = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        return Seen(tuple(map(int, tensor.shape)), self._depth_of(tensor) != CONSTANT, not numbers)

    def _sizes(self, x: Tensor) -> set[tuple[int, int]]:
        """The sizes that a map may have, channels first or last."""
        if x.dim() != 4:
            return set()
        sizes = {(x.shape[2], x.shape[3]), (x.shape[1], x.shape[2])}
        return {size for size in sizes if math.prod(size) > 1} & self._known


def operation_of(func: Any, args: Any, kwargs: Any, seen: Callable[[Tensor], Seen]) -> Operation:
    """An operation by itself, before it ran."""
    space, _, name = func._schema.name.partition("::")
    shown = name if space == "aten" else f"{space}::{name}"
    harmless = func.is_view or torch.Tag.pointwise in func.tags
    return Operation(shown, _named(func, args, kwargs, seen), (), harmless)


def _named(func: Any, args: Any, kwargs: Any, seen: Callable[[Tensor], Seen]) -> dict[str, Any]:
    """The arguments of an operation by the names of its schema, with what it fills in."""
    named = {}
    for at, argument in enumerate(func._schema.arguments):
        if at < len(args):
            value = args[at]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
        else:
            value = argument.default_value
        named[argument.name] = described(value, seen)
    return named


class Recurrences(TorchFunctionMode):
    """Recurrent layers count as one operation: what they are made of differs with the length of the sequence.
    So do the ways out of PyTorch, which are no operations of its own.

    While it is on, PyTorch also takes no short cut through attention layers that would hide what they do.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in LEAVING and args and isinstance(args[0], Tensor):
            return self.recorder.whole(name, {"self": args[0]}, lambda: func(*args, **kwargs))
        if name not in RECURRENT or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        last = args[-1] if isinstance(args[-1], bool) else False
        named = {"input": args[0], "batch_first": last and isinstance(args[2], (list, tuple))}
        return self.recorder.whole(name, named, lambda: func(*args, **kwargs))

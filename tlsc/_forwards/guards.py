"""What a forward read while it was traced, and whether it would read the same now.

A traced forward is valid as long as everything holds on which its course depended: attributes of modules, global
variables and variables of enclosing functions that its code names, arguments that are no tensors, and the modes of
the thread where its code switches or asks for them.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .modes import Modes
from .opaque import is_whole

__all__ = ["MISSING", "Read", "Reads", "Variable", "is_simple", "part_at", "token", "variables_of"]


class _Missing:
    """Stands for an attribute or variable that is not there."""

    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()
SIMPLE = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size)
CONTAINERS = (list, tuple, dict, set, frozenset, OrderedDict, defaultdict, deque)
DEPTH = 4


def is_simple(value: Any) -> bool:
    """Whether a value is compared by equality, and never changes."""
    return isinstance(value, (*SIMPLE, enum.Enum, slice, range))


class Same:
    """A value that is compared by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return type(self.value).__name__


def token(value: Any, depth: int = DEPTH) -> Any:
    """What is compared of a value: it equals that of a later value where the two are the same to a forward."""
    if isinstance(value, float) and value != value:
        return "nan"
    if is_simple(value):
        return (type(value), value)
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, tuple(value.shape))
    if isinstance(value, nn.Module):
        return ("module", type(value))
    if type(value) in CONTAINERS and depth:
        if isinstance(value, dict):
            return (type(value), [(token(key, 1), token(item, depth - 1)) for key, item in value.items()])
        return (type(value), [token(item, depth - 1) for item in value])
    if depth and not isinstance(value, (type, types.ModuleType, types.FunctionType, types.MethodType)):
        inside = getattr(value, "__dict__", None)
        if isinstance(inside, dict) and not is_whole(value):
            return (Same(value), [(key, token(item, depth - 2 if depth > 1 else 0)) for key, item in inside.items()])
    return Same(value)


def part_at(module: nn.Module, path: str) -> Any:
    """The module at a path; MISSING if it is no longer there."""
    found: Any = module
    for name in path.split(".") if path else ():
        found = found._modules.get(name)
        if found is None:
            return MISSING
    return found


@dataclass(eq=False)
class Read:
    """An attribute that was read: ``now`` is its token at that time. ``path``: of the module, from the traced one."""

    path: str
    name: str
    now: Any

    def holds(self, module: nn.Module) -> bool:
        """Whether it would read the same."""
        part = part_at(module, self.path)
        if part is MISSING:
            return False
        if type(self.now) is tuple and self.now[0] == "hooks":
            return self.now[1] == _is_hooked(part)
        if type(self.now) is tuple and self.now[0] == "value":
            value = getattr(part, self.name, MISSING)
            return isinstance(value, Tensor) and value.numel() == 1 and value.item() == self.now[1]
        return bool(token(getattr(part, self.name, MISSING)) == self.now)

    def __str__(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


def _is_hooked(module: nn.Module) -> bool:
    return any(module.__dict__.get(name) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))


class Variable:
    """A variable that code names: of a Python module (or any dictionary of globals), or of an enclosing function."""

    def __init__(self, holder: Any, name: str, now: Any) -> None:
        self.holder, self.name, self.now = holder, name, now

    def holds(self) -> bool:
        """Whether it has the same value still."""
        if self.holder is None:
            return True
        return bool(token(self.value()) == self.now)

    def value(self) -> Any:
        """What it is now."""
        if isinstance(self.holder, dict):
            return self.holder.get(self.name, MISSING)
        if isinstance(self.holder, types.CellType):
            return _content(self.holder)
        return getattr(self.holder, self.name, MISSING)

    def __str__(self) -> str:
        return f"the variable {self.name}"

    def __deepcopy__(self, memo: Any) -> Variable:
        return self

    def __reduce__(self) -> Any:
        # In another process only what can be imported can be looked at.
        holder = self.holder
        if isinstance(holder, dict):
            holder = sys.modules.get(str(holder.get("__name__")))
        if not isinstance(holder, types.ModuleType) or not is_simple(self.value()):
            return Variable, (None, self.name, None)
        return _variable, (holder.__name__, self.name, self.now)


def _variable(module: str, name: str, now: Any) -> Variable:
    return Variable(sys.modules.get(module), name, now)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


@dataclass(eq=False)
class Reads:
    """All that a traced forward depends on but for the shapes of its arguments.

    ``modes``: those of the call, if its code switches them or asks for them. ``types``: whether it asked for types
    or devices of tensors. ``axes``: the arguments' sizes that count, by the number of the tensor and its dimension.
    """

    attributes: dict[tuple[str, str], Read] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    modes: Modes | None = None
    types: bool = False

    def attribute(self, path: str, name: str, now: Any) -> None:
        """Note that an attribute was read. The first reading counts."""
        self.attributes.setdefault((path, name), Read(path, name, now))

    def changed(self, module: nn.Module) -> Iterator[str]:
        """What no longer holds, for people."""
        for read in self.attributes.values():
            if not read.holds(module):
                yield str(read)
        for variable in self.variables:
            if not variable.holds():
                yield str(variable)

    def hold(self, module: nn.Module) -> bool:
        """Whether everything would be read again."""
        return next(self.changed(module), None) is None


ASKING = {"is_grad_enabled", "is_inference_mode_enabled", "is_inference", "requires_grad", "inference_mode"}
"""Names in code that may look at the modes without switching them, or switch them unseen."""
CASTING = {"is_autocast_enabled", "get_autocast_dtype", "is_autocast_cpu_enabled", "get_autocast_gpu_dtype"}


def variables_of(function: Any, seen: set[int] | None = None) -> Iterator[Variable | str]:
    """The variables outside a function that its code, and the functions it calls by name, may read; and the names
    of :data:`ASKING` and :data:`CASTING` among them.

    Functions of PyTorch and of the standard library are not looked into.
    """
    seen = set() if seen is None else seen
    if not isinstance(function, types.FunctionType) or id(function) in seen or is_foreign(function):
        return
    seen.add(id(function))
    names = _names(function.__code__)
    yield from (name for name in names if name in ASKING or name in CASTING)
    holders: list[tuple[Any, str, Any]] = [
        (function.__globals__, name, function.__globals__[name]) for name in names if name in function.__globals__
    ]
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    holders += [(cell, name, _content(cell)) for name, cell in cells if name != "__class__"]
    for holder, name, value in holders:
        if isinstance(value, types.FunctionType):
            yield from variables_of(value, seen)
            if isinstance(holder, types.CellType) or not is_foreign(value):
                yield Variable(holder, name, token(value))
        elif isinstance(value, types.ModuleType):
            if not is_foreign_module(value):
                inside = vars(value)
                for other in names:
                    if other in inside and (is_simple(inside[other]) or type(inside[other]) in CONTAINERS):
                        yield Variable(value, other, token(inside[other]))
                    elif isinstance(inside.get(other), types.FunctionType):
                        yield from variables_of(inside[other], seen)
        elif isinstance(value, nn.Module):
            yield Variable(holder, name, token(value))
            for part in value.modules():
                for key, item in list(part.__dict__.items()):
                    if is_simple(item):
                        yield Variable(part, key, token(item))
        elif not isinstance(value, (type, types.BuiltinFunctionType)) and value is not MISSING:
            yield Variable(holder, name, token(value))


def _names(code: types.CodeType) -> list[str]:
    """The names in a function's code and in that of functions inside it."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_names(constant)))
    return list(names)


_FOREIGN = {"torch", "torchvision", "numpy", "einops", "math", "functools", "typing", "collections", "timm"}


def is_foreign(function: types.FunctionType) -> bool:
    """Whether a function is a library's, whose variables are not looked at."""
    return _is_foreign(function.__module__ or "")


def is_foreign_module(module: types.ModuleType) -> bool:
    """Whether a module is a library's."""
    return _is_foreign(module.__name__)


def _is_foreign(name: str) -> bool:
    first = name.partition(".")[0]
    return first in _FOREIGN or first in sys.stdlib_module_names

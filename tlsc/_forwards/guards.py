"""What a forward read while it was recorded, and whether it would read the same now.

A recorded forward is valid as long as everything holds on which its course depended: attributes of modules,
variables outside functions that its code names, and the modes of the thread where its code switches or asks for
them.
"""

from __future__ import annotations

import enum
import functools
import os
import sys
import types
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._models.slots import ORIGINAL, is_hooked

__all__ = [
    "MISSING",
    "EnvironmentVariable",
    "Modes",
    "Reads",
    "Variable",
    "ambient",
    "depth_of_autocast",
    "is_simple",
    "token",
]


class _Missing:
    """Stands for an attribute or variable that is not there."""

    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size)
_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque)
_DEPTH = 8
"""How deep settings inside settings are compared by what they hold; below that, by identity."""
_CODE = 4
"""The same for what functions enclose."""
_MANY = 500
"""Settings of one value up to which those inside are compared by what they hold."""


def is_simple(value: Any) -> bool:
    """Whether a value is compared by equality, and never changes."""
    return isinstance(value, (*_SIMPLE, enum.Enum, slice, range))


class Same:
    """A value that is compared by identity. In a copy or another process it equals nothing but itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


class Function:
    """A function, compared by its code, what it encloses and its defaults: copies of a model, and what is made anew
    from its pickle, have the same."""

    def __init__(self, value: Any, depth: int = 0, tokens: _Tokens | None = None) -> None:
        function = getattr(value, "__func__", value)
        code = getattr(function, "__code__", None)
        self.code: list[Any] = [getattr(function, "__qualname__", "")]
        if code is not None and depth > 0:
            constants = [constant for constant in code.co_consts if is_simple(constant)]
            enclosed = [_enclosed(cell) for cell in function.__closure__ or ()]
            self.code += [code.co_code, constants, code.co_names]
            tokens = tokens or _Tokens()
            self.code += [tokens.of(inner, depth - 1) for inner in (*enclosed, function.__defaults__)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and other.code == self.code

    __hash__ = None  # type: ignore[assignment]


class Method:
    """A method of a class of modules."""

    def __init__(self, function: Any) -> None:
        self.function, self.code = function, Function(function, 2)

    def is_that_of(self, part: nn.Module, name: str) -> bool:
        """Whether a module has the same still. (What stands in for a module may have no such method.)"""
        if name in part.__dict__:
            return False
        now = getattr(type(part), name, None)
        return now is None or now is self.function or Function(now, 2) == self.code

    def __reduce__(self) -> Any:
        return _method, (self.code,)

    def __deepcopy__(self, memo: Any) -> Method:
        return self


def _method(code: Function) -> Method:
    made = Method(None)
    made.code = code
    return made


def _enclosed(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def token(value: Any, depth: int = _DEPTH) -> Any:
    """What is compared of a value: it equals that of a later value where the two are the same to a forward."""
    return _Tokens().of(value, depth)


class _Tokens:
    """Makes the token of one value. Of what is held by many, or by itself, the identity counts."""

    def __init__(self) -> None:
        self.left = _MANY
        self.within: set[int] = set()

    def of(self, value: Any, depth: int) -> Any:
        if isinstance(value, float) and value != value:
            return "nan"
        if is_simple(value):
            return type(value), value
        if isinstance(value, Tensor):
            return "tensor", value.dtype, tuple(value.shape)
        if isinstance(value, nn.Module):
            return "module", type(value.__dict__.get(ORIGINAL, value))
        if isinstance(value, (np.ndarray, np.generic)):
            return "array", value.dtype.str, value.shape, _checksum(value)
        if isinstance(value, functools.partial):
            return self.of(value.func, depth), self.of(value.args, depth - 1), self.of(value.keywords, depth - 1)
        if isinstance(value, type) or _is_named(value):
            return getattr(value, "__module__", ""), value.__qualname__
        if id(value) in self.within or self.left <= 0 or depth <= 0:
            return "again" if id(value) in self.within else self._named_or_same(value)
        self.within.add(id(value))
        try:
            if isinstance(value, (types.FunctionType, types.MethodType)):
                return Function(value, min(depth, _CODE), self)
            return self._inside(value, depth)
        finally:
            self.within.discard(id(value))

    def _named_or_same(self, value: Any) -> Any:
        return Function(value) if isinstance(value, (types.FunctionType, types.MethodType)) else Same(value)

    def _inside(self, value: Any, depth: int) -> Any:
        """What a container holds, or an object with settings: so a copied model finds its own as they were."""
        contents: Any = []
        if isinstance(value, dict):
            contents = [(self.of(key, 2), self.of(item, depth - 1)) for key, item in self._some(value.items())]
        elif isinstance(value, (set, frozenset)):
            contents = {_hashable(item) for item in value}
        elif isinstance(value, _CONTAINERS):
            contents = [self.of(item, depth - 1) for item in self._some(value)]
        settings = _settings(value)
        if settings is None:
            return (type(value), contents) if isinstance(value, (dict, *_CONTAINERS)) else Same(value)
        return type(value), contents, [(key, self.of(item, depth - 1)) for key, item in self._some(settings)]

    def _some(self, items: Any) -> list[Any]:
        taken = list(items)
        self.left -= len(taken)
        return taken


def _is_named(value: Any) -> bool:
    """Whether a callable has a name of its own, as builtin functions have."""
    if isinstance(value, (dict, *_CONTAINERS, types.FunctionType, types.MethodType)) or not callable(value):
        return False
    return isinstance(getattr(value, "__qualname__", None), str)


def _hashable(value: Any) -> Any:
    return (type(value), value) if is_simple(value) else value


def _settings(value: Any) -> list[tuple[str, Any]] | None:
    """The attributes of an object of a class written in Python; None for any other."""
    inside = getattr(value, "__dict__", None)
    if isinstance(value, types.ModuleType) or not (isinstance(inside, dict) or hasattr(type(value), "__slots__")):
        return None
    slots = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
    return [*list((inside or {}).items()), *[(name, getattr(value, name)) for name in slots]]


def _slots(cls: type) -> tuple[str, ...]:
    names = cls.__dict__.get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _checksum(value: Any) -> Any:
    if value.dtype.hasobject:
        return Same(value)
    return zlib.crc32(np.ascontiguousarray(value).view(np.uint8).data if value.size else b"")


class Modes(NamedTuple):
    """The modes of a thread that code can switch. ``autocast``: for a type of device, whether it is on, and the
    type that it casts to."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]


def ambient(devices: tuple[str, ...]) -> Modes:
    """The modes of this thread now."""
    return Modes(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tuple(
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in devices
            if torch.amp.is_autocast_available(device)
        ),
    )


def depth_of_autocast() -> int:
    """In how many autocast blocks this thread is; PyTorch tells it only on the way in and out."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


class Variable:
    """A variable that code names: of a Python module (a dictionary of globals), of an enclosing function, or of a
    class."""

    def __init__(self, holder: Any, name: str, now: Any) -> None:
        self.holder, self.name, self.now = holder, name, now

    def holds(self) -> bool:
        """Whether it has the same value still."""
        return self.holder is None or bool(token(self._value()) == self.now)

    def _value(self) -> Any:
        if isinstance(self.holder, dict):
            return self.holder.get(self.name, MISSING)
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.name, MISSING)
        try:
            return self.holder.cell_contents
        except ValueError:
            return MISSING

    def __deepcopy__(self, memo: Any) -> Variable:
        return self

    def __reduce__(self) -> Any:
        # In another process only what can be imported can be looked at.
        name = self.holder.get("__name__") if isinstance(self.holder, dict) else None
        return _variable, (name, self.name, self.now if is_simple(self._value()) else None)


class EnvironmentVariable(Variable):
    """An environment variable that code looks up."""

    def __init__(self, name: str, now: Any) -> None:
        super().__init__(os.environ, name, token(now))

    def _value(self) -> Any:
        return os.environ.get(self.name, MISSING)

    def __reduce__(self) -> Any:
        return EnvironmentVariable, (self.name, self.now[1] if type(self.now) is tuple else MISSING)


def _variable(module: str | None, name: str, now: Any) -> Variable:
    found = sys.modules.get(str(module))
    return Variable(None if found is None or now is None else vars(found), name, now)


@dataclass(eq=False)
class Reads:
    """All that a recorded forward depends on but for its arguments.

    ``attributes``: tokens by the path of the module and the name; a name beginning with ``=`` is that of a number
    in a tensor. ``unhooked``: paths of modules that were entered, which must have no hooks. ``grad``, ``cast``:
    whether the modes of gradients, or of autocast, count.
    With ``~`` it is that of a number of which the type alone counts, with ``!`` whether a tensor asks for a
    gradient; ``#`` are the names of the children. With ``^`` it is a method.
    """

    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    unhooked: set[str] = field(default_factory=set)
    variables: dict[tuple[int, str], Variable] = field(default_factory=dict)
    grad: bool = False
    cast: bool = False

    def attribute(self, path: str, name: str, value: Any) -> None:
        """Note that an attribute was read. The first reading counts."""
        if (path, name) not in self.attributes:
            self.attributes[path, name] = token(value)

    def method(self, path: str, name: str, function: Any) -> None:
        """Note that a method was called, which an object, or its class, may be given anew."""
        self.attributes.setdefault((path, f"^{name}"), Method(function))

    def free(self, path: str, name: str, value: Any) -> None:
        """Note that a number was read of which any value will do: only its type counts."""
        self.attributes.setdefault((path, f"~{name}"), type(value))

    def holds(self, module: nn.Module) -> bool:
        """Whether everything is as it was."""
        parts: dict[str, Any] = {}
        for (path, name), now in self.attributes.items():
            if path not in parts:
                parts[path] = _part(module, path)
            if not _holds(parts[path], name, now):
                return False
        for path in self.unhooked:
            part = parts[path] if path in parts else _part(module, path)
            if part is MISSING or is_hooked(part):
                return False
        return all(variable.holds() for variable in self.variables.values())

    def changed_attributes(self, module: nn.Module) -> Iterator[tuple[str, str]]:
        """Path and name of each attribute that is another now."""
        for (path, name), now in self.attributes.items():
            if not _holds(_part(module, path), name, now):
                yield path, name

    def changed(self, module: nn.Module) -> Iterator[str]:
        """What no longer holds, for people."""
        for path, name in self.changed_attributes(module):
            yield f"{path}.{name.lstrip('=~!#^')}".strip(".")
        for path in self.unhooked:
            part = _part(module, path)
            if part is MISSING or is_hooked(part):
                yield f"the hooks of {path}"
        for variable in self.variables.values():
            if not variable.holds():
                yield f"the variable {variable.name}"


def _part(module: nn.Module, path: str) -> Any:
    """The module at a path; MISSING if it is no longer there."""
    found: Any = module
    for name in path.split(".") if path else ():
        found = found._modules.get(name)
        if found is None:
            return MISSING
    return found


def _holds(part: Any, name: str, now: Any) -> bool:
    if part is MISSING:
        return False
    if name.startswith("="):
        value = getattr(part, name[1:], MISSING)
        return isinstance(value, Tensor) and value.numel() == 1 and bool(token(value.item()) == now)
    if name.startswith("!"):
        return bool(token(getattr(getattr(part, name[1:], None), "requires_grad", None)) == now)
    if name == "#":
        return bool(token(tuple(part._modules)) == now)
    if name.startswith("^"):
        return bool(now.is_that_of(part, name[1:]))
    if name.startswith("~"):
        return type(part.__dict__.get(name[1:], MISSING)) is now
    state = part.__dict__
    for holder in (state, state["_parameters"], state["_buffers"], state["_modules"]):
        if name in holder:
            return _is(holder[name], now)
    return _is(getattr(part, name, MISSING), now)


def _is(value: Any, now: Any) -> bool:
    """Whether :func:`token` of a value is ``now``; the usual ones without making it."""
    if type(now) is not tuple or not now:
        return bool(token(value) == now)
    first = now[0]
    if first is type(value) and first in _PLAIN:
        return bool(value == now[1])
    if first == "tensor":
        return isinstance(value, Tensor) and value.dtype is now[1] and value.shape == now[2]
    if first == "module":
        return isinstance(value, nn.Module) and type(value.__dict__.get(ORIGINAL, value)) is now[1]
    return bool(token(value) == now)

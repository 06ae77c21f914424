"""What code can change in place: containers, objects with settings, outer variables, attributes of classes.

Noted before somebody's code runs, to see afterwards what it changed, and to put that back.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = [
    "Contents",
    "Stores",
    "has_settings",
    "imports",
    "is_only_called",
    "names_in",
    "outside_kept",
    "stores_of",
]

_MISSING: Any = object()
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
_PLAIN = (bool, int, float, complex, str, bytes, tuple)
_FOREIGN = {"torch", "torchvision", "numpy", "einops", "tlsc", *sys.stdlib_module_names} - {"__main__"}
_DEPTH = 4
_MANY = 1000  # entries of a container up to which those inside are looked at


class Stores(NamedTuple):
    """The names that a function's code, and that of functions inside it, gives new values: of global variables, of
    variables of enclosing functions, and of attributes."""

    globals: frozenset[str]
    cells: frozenset[str]
    attributes: frozenset[str]


@functools.lru_cache(4096)
def stores_of(code: types.CodeType) -> Stores:
    """See :class:`Stores`."""
    names: dict[str, set[str]] = {"GLOBAL": set(), "DEREF": set(), "ATTR": set()}
    for step in dis.get_instructions(code):
        action, _, what = step.opname.partition("_")
        if action in ("STORE", "DELETE") and what in names:
            names[what].add(str(step.argval))
    cells = names["DEREF"] & set(code.co_freevars)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = stores_of(inner)
            names["GLOBAL"] |= more.globals
            cells |= more.cells & set(code.co_freevars)
            names["ATTR"] |= more.attributes
    return Stores(frozenset(names["GLOBAL"]), frozenset(cells), frozenset(names["ATTR"]))


@functools.lru_cache(4096)
def is_only_called(code: types.CodeType, name: str) -> bool:
    """Whether a function's code, and that inside it, reads a global variable for nothing but to call it.

    Before Python 3.11 this does not show, and is False.
    """
    loads = [step for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL" and step.argval == name]
    inner = (is_only_called(constant, name) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return all("NULL" in step.argrepr for step in loads) and all(inner)


@functools.lru_cache(4096)
def imports(code: types.CodeType) -> bool:
    """Whether a function's code, or that inside it, imports while it runs."""
    inner = (imports(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return any(step.opname == "IMPORT_NAME" for step in dis.get_instructions(code)) or any(inner)


class Contents:
    """What was noted, with what it held."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[Any, Any, str]] = {}
        self._variables: dict[tuple[int, str], tuple[Any, str, Any]] = {}

    def value(self, value: Any, name: str, depth: int = _DEPTH) -> None:
        """Note a container, or an object with settings, and those inside it; ``name`` is for people."""
        if id(value) in self._values or depth < 0:
            return
        if type(value) in _CONTAINERS:
            held: Any = value.copy()
            inside: Iterable[Any] = held.values() if isinstance(held, dict) else held
        elif type(value) is tuple:
            held, inside = None, value
        elif has_settings(value):
            held = dict(value.__dict__)
            inside = held.values()
        else:
            return
        self._values[id(value)] = value, held, name
        if held is None or len(held) <= _MANY:
            for inner in inside:
                self.value(inner, name, depth - 1)

    def variable(self, holder: Any, name: str) -> None:
        """Note a variable: of a dictionary of globals, of a cell (with any name), or an attribute of a class."""
        self._variables.setdefault((id(holder), name), (holder, name, _read(holder, name)))

    def changed(self) -> Iterator[str]:
        """The names of what is not as it was."""
        for value, held, name in self._values.values():
            if held is not None and not _same(_inside(value), held):
                yield name
        for holder, name, was in self._variables.values():
            if not _equal(_read(holder, name), was):
                yield name

    def put_back(self) -> None:
        """Give everything that is not as it was what it held."""
        for value, held, _ in self._values.values():
            if held is not None and not _same(_inside(value), held):
                _refill(value, held)
        for holder, name, was in self._variables.values():
            if not _equal(_read(holder, name), was):
                _write(holder, name, was)


def has_settings(value: Any) -> bool:
    """Whether a value is an object of somebody's own class, with attributes."""
    if isinstance(value, (type, types.ModuleType, types.FunctionType, types.MethodType, nn.Module, Tensor)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and not _is_foreign(type(value).__module__)


def _is_foreign(name: Any) -> bool:
    return str(name).partition(".")[0] in _FOREIGN


def _inside(value: Any) -> Any:
    return value if type(value) in _CONTAINERS else value.__dict__


def _same(now: Any, was: Any) -> bool:
    if len(now) != len(was):
        return False
    if isinstance(was, dict):
        pairs = zip(now.items(), was.items(), strict=True)
        return all(_equal(a, c) and _equal(b, d) for (a, b), (c, d) in pairs)
    if isinstance(was, set):
        return bool(now == was)
    return all(_equal(a, b) for a, b in zip(now, was, strict=True))


def _equal(now: Any, was: Any) -> bool:
    if now is was:
        return True
    if type(now) is not type(was) or type(now) not in _PLAIN:
        return False
    return _same(now, was) if type(now) is tuple else bool(now == was)


def _refill(value: Any, held: Any) -> None:
    inside = _inside(value)
    inside.clear()
    if isinstance(inside, (list, deque)):
        inside.extend(held)
    else:
        inside.update(held)


def _read(holder: Any, name: str) -> Any:
    if isinstance(holder, types.CellType):
        try:
            return holder.cell_contents
        except ValueError:
            return _MISSING
    return (holder if isinstance(holder, dict) else vars(holder)).get(name, _MISSING)


def _write(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, types.CellType):
        if value is _MISSING:
            del holder.cell_contents
        else:
            holder.cell_contents = value
    elif isinstance(holder, dict):
        holder.pop(name, None)
        if value is not _MISSING:
            holder[name] = value
    elif value is _MISSING:
        delattr(holder, name)
    else:
        setattr(holder, name, value)


# ------------------------------------------------------------------------------------------- outside of a model


@contextmanager
def outside_kept(model: Any) -> Iterator[None]:
    """What the code of a model changes outside of the model while it runs in here is put back: variables and
    containers that its functions name, defaults of arguments, attributes of classes, objects with settings.

    Only what has changed is touched. Who changed it cannot be told: what another thread that runs the same code
    changes in the meantime is lost, too.
    """
    contents = _outside(model)
    try:
        yield
    finally:
        contents.put_back()


def _outside(model: Any) -> Contents:
    walk = _Walk()
    for module in model.modules() if isinstance(model, nn.Module) else ():
        walk.classes(type(module))
        for name, value in list(module.__dict__.items()):
            walk.held(value, name)
    return walk.finish()


class _Walk:
    """Through the functions that a model's code may call, and what they name."""

    def __init__(self) -> None:
        self.contents = Contents()
        self._seen: set[int] = set()
        self._left: list[types.FunctionType] = []
        self._classes: dict[type, None] = {}
        self._stored: set[str] = set()  # names of attributes to which some code gives values

    def classes(self, of: type) -> None:
        for cls in of.__mro__:
            if cls in self._classes or _is_foreign(cls.__module__):
                continue
            self._classes[cls] = None
            for name, value in list(vars(cls).items()):
                if name.startswith("__") and name not in ("__call__", "__getattr__"):
                    continue
                self.named(value, name)

    def held(self, value: Any, name: str, depth: int = _DEPTH) -> None:
        """What an instance holds: its own containers are never run on, but objects in them are."""
        if type(value) in (*_CONTAINERS, tuple) and depth and len(value) <= _MANY:
            for inner in list(value.values() if isinstance(value, dict) else value):
                self.held(inner, name, depth - 1)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)) or has_settings(value):
            self.named(value, name)

    def named(self, value: Any, name: str) -> None:
        """What a function names, or a class or instance holds."""
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            value = value.__func__
        if isinstance(value, functools.partial):
            self.named(value.func, name)
            for inner in (*value.args, *value.keywords.values()):
                self.contents.value(inner, name)
        elif isinstance(value, property):
            for accessor in (value.fget, value.fset):
                self.named(accessor, name)
        elif isinstance(value, types.FunctionType):
            if id(value) not in self._seen and not _is_foreign(value.__module__):
                self._seen.add(id(value))
                self._left.append(value)
        elif isinstance(value, type):
            self.classes(value)
        else:
            self.contents.value(value, name)
            if has_settings(value):
                self.classes(type(value))

    def finish(self) -> Contents:
        """All that was noted, when every function has been looked at."""
        while self._left:
            self._function(self._left.pop())
        for cls in self._classes:
            for name in self._stored - {"training"}:
                if not name.startswith("__"):
                    self.contents.variable(cls, name)
        return self.contents

    def _function(self, function: types.FunctionType) -> None:
        stores = stores_of(function.__code__)
        self._stored |= stores.attributes
        for name in stores.globals:
            self.contents.variable(function.__globals__, name)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.named(default, function.__name__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name in stores.cells:
                self.contents.variable(cell, name)
            self._variable(_read(cell, name), name, function)
        for name in names_in(function.__code__):
            self._variable(function.__globals__.get(name, _MISSING), name, function)

    def _variable(self, value: Any, name: str, function: types.FunctionType) -> None:
        if isinstance(value, types.ModuleType):
            if not _is_foreign(value.__name__):
                for inner in names_in(function.__code__) & vars(value).keys():
                    self.contents.variable(vars(value), inner)
                    if not isinstance(vars(value)[inner], types.ModuleType):
                        self.named(vars(value)[inner], inner)
        elif value is not _MISSING:
            self.named(value, name)


@functools.lru_cache(4096)
def names_in(code: types.CodeType) -> frozenset[str]:
    """The names in a function's code and in that of functions inside it."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*inner)

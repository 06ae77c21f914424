"""Functions as code that is being recorded is to see them.

A recorded value is no tensor, so that code which looks at types, or hands it to what is not written in Python, must
be given something else in its place. Nothing is replaced in the process: a function that names such a thing is made
anew, from the same code, with variables of its own.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import checkpoint

from .._models.contents import Contents, Stores, has_settings, imports, is_only_called, names_in, stores_of
from .guards import MISSING, Reads, Variable, is_simple, token
from .outside import LINKED, Draw, Environment, is_generator, name_of_draw, owner_of, refused
from .proxies import kind_of, real_number, whole_number
from .values import Cannot

__all__ = ["Linker", "Whole"]

_ASKING_GRAD = {"is_grad_enabled", "is_inference_mode_enabled", "is_inference", "enable_grad", "set_grad_enabled"}
_ASKING_GRAD |= {"inference_mode", "requires_grad"}
_ASKING_CAST = {"is_autocast_enabled", "get_autocast_dtype", "is_autocast_cpu_enabled", "get_autocast_gpu_dtype"}
_CALLED: dict[str, Callable[..., Any]] = {"int": whole_number, "float": real_number, "type": kind_of}
"""What is called in place of classes that are nothing but called."""
_FOREIGN = {"torch", "torchvision", "numpy", "math", "functools", "typing", "collections"}


class Whole:
    """A callable that is one operation of a recorded forward: nothing inside it can be, and its own gradient stays
    its own."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.call: Callable[..., Any] = function.apply if _is_autograd(function) else function
        self.__name__ = f"whole_{getattr(function, '__name__', 'function')}"
        self.__qualname__ = self.__name__
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Whole, (self.function,)

    def __deepcopy__(self, memo: Any) -> Whole:
        return self


def _is_autograd(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.autograd.Function)


class _Namespace:
    """A Python module, or class, whose functions are linked."""

    def __init__(self, linker: Linker, of: Any) -> None:
        self.__dict__.update(_linker=linker, _of=of)

    def __getattr__(self, name: str) -> Any:
        return self._linker.named(vars(self._of), name, getattr(self._of, name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise Cannot(f"its forward sets {name} of {self._of.__name__}")


class _Refusing:
    """A generator of random numbers that is not the process' own."""

    def __getattr__(self, name: str) -> Any:
        return refused


class Linker:
    """Links functions for one recording.

    Args:
        reads: what outside variables were named is noted here.
        stubs: what is called in place of other things, by the identity of these.
        whole: calls a :class:`Whole` with recorded values.
        drawing: calls a :class:`.outside.Draw`.
        memoised: what is called in place of a function with a cache.
        contents: what the code could change is noted here.
    """

    def __init__(
        self,
        reads: Reads,
        stubs: dict[Any, Callable[..., Any]],
        whole: Callable[[Whole], Callable[..., Any]],
        memoised: Callable[[Any], Callable[..., Any]],
        drawing: Callable[[Draw], Callable[..., Any]],
        contents: Contents,
    ) -> None:
        self.reads, self.contents = reads, contents
        self.stubs: dict[int, Any] = {id(key): stub for key, stub in stubs.items()}
        self.whole, self.memoised, self.drawing = whole, memoised, drawing
        environment = Environment(reads)
        self.stubs.update({id(os.environ): environment, id(os.getenv): environment.get})
        self._kept = list(stubs)
        self._seen: dict[int, Any] = {}

    def linked(self, value: Any) -> Any:
        """What recorded code is to see in place of a value; often the value itself."""
        if id(value) in self.stubs:
            return self.stubs[id(value)]
        if id(value) in self._seen:
            return self._seen[id(value)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if _is_autograd(value):
            return self._note(value, _Applied(value, self.whole(Whole(value))))
        if isinstance(value, torch.jit.ScriptFunction):
            return self._note(value, self.whole(Whole(value)))
        if isinstance(value, functools._lru_cache_wrapper):
            return self._note(value, self.memoised(value))
        bound = owner_of(value)
        if _is_autograd(bound) and getattr(value, "__name__", "") == "apply":
            return self._note(value, self.whole(Whole(bound)))
        if is_generator(value):
            return self._note(value, self._generator(value))
        if isinstance(value, types.ModuleType) and self._is_linked_module(value):
            return self._note(value, _Namespace(self, value))
        return value

    def _generator(self, value: Any) -> Any:
        """In place of a generator of random numbers, or a method of one."""
        place = name_of_draw(value)
        if place is not None:
            return self.drawing(Draw(*place))
        return refused if callable(value) else _Refusing()

    def _note(self, value: Any, made: Any) -> Any:
        self._seen[id(value)] = made
        self._kept.append(value)
        return made

    def _is_linked_module(self, module: types.ModuleType) -> bool:
        if module.__name__ in ("torch", "torch.utils", "torch.utils.checkpoint", "einops", *LINKED):
            return True
        return not _is_foreign(module.__name__)

    def _function(self, function: types.FunctionType) -> Any:
        if _is_foreign(function.__module__ or ""):
            return function
        self._note(function, function)  # until it is known: functions may call each other
        names, stores = names_in(function.__code__), stores_of(function.__code__)
        self.reads.grad |= bool(names & _ASKING_GRAD)
        self.reads.cast |= bool(names & _ASKING_CAST)
        changed = {
            name: made
            for name in names
            if (value := self._global(function, name)) is not MISSING
            and (made := self.named(function.__globals__, name, value, stores)) is not value
        }
        for name, called in _CALLED.items():
            if name in names and name not in function.__globals__ and is_only_called(function.__code__, name):
                changed[name] = called
        cells = self._cells(function, stores)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.contents.value(default, f"a default of {function.__name__}")
        if imports(function.__code__):
            changed["__builtins__"] = {**vars(builtins), "__import__": self._import}
        if not changed and all(a is b for a, b in zip(cells, function.__closure__ or (), strict=True)):
            self._given(stores, function.__globals__)
            return function
        scope = {**function.__globals__, **changed}
        self._given(stores, scope)
        new = types.FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, tuple(cells) or None
        )
        new.__kwdefaults__ = function.__kwdefaults__
        new.__dict__.update(function.__dict__)
        return self._note(function, new)

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """In place of ``__import__`` for code that imports while it runs."""
        return self.linked(builtins.__import__(name, *args, **kwargs))

    def _cells(self, function: types.FunctionType, stores: Stores) -> list[types.CellType]:
        """The variables of enclosing functions."""
        cells = []
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = _content(cell)
            made = self.named(cell, name, value, stores)
            cells.append(cell if made is value else types.CellType(made))
            if name in stores.cells:
                self.contents.variable(cells[-1], name)
        return cells

    def _global(self, function: types.FunctionType, name: str) -> Any:
        found = function.__globals__.get(name, MISSING)
        return getattr(builtins, name, MISSING) if found is MISSING else found

    def _given(self, stores: Stores, scope: dict[str, Any]) -> None:
        for name in stores.globals:
            self.contents.variable(scope, name)

    def named(self, holder: Any, name: str, value: Any, stores: Stores | None = None) -> Any:
        """What code is to see of a variable that it names; noted if another value would change what the code does.

        ``stores``: the attributes that the code gives values, which may be those of a class.
        """
        made = self.linked(value)
        if isinstance(value, types.FunctionType) and not _is_foreign(value.__module__ or ""):
            self.reads.variables.setdefault((id(holder), name), Variable(holder, name, token(value)))
        if made is not value or name == "__class__" or name in vars(builtins):
            return made
        if is_simple(value) or type(value) in (list, dict, set, tuple) or has_settings(value):
            self.reads.variables.setdefault((id(holder), name), Variable(holder, name, token(value)))
            self.contents.value(value, name)
        elif isinstance(value, type) and not _is_foreign(value.__module__):
            self._class(value, stores)
        return made

    def _class(self, cls: type, stores: Stores | None) -> None:
        """A class that code names: its attributes are variables."""
        for name in () if stores is None else stores.attributes:
            self.contents.variable(cls, name)
        for name, value in list(vars(cls).items()):
            if not name.startswith("__") and (is_simple(value) or type(value) in (list, dict, set, tuple)):
                self.reads.variables.setdefault((id(cls), name), Variable(cls, name, token(value)))
                self.contents.value(value, name)


class _Applied:
    """An autograd function whose ``apply`` is recorded as one operation."""

    def __init__(self, function: Any, apply: Callable[..., Any]) -> None:
        self._function, self.apply = function, apply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In place of a gradient checkpoint, which changes what is kept and not what is computed."""
    own = {"use_reentrant", "context_fn", "determinism_check", "debug", "preserve_rng_state", "early_stop"}
    return function(*args, **{name: value for name, value in kwargs.items() if name not in own})


CHECKPOINT = checkpoint.checkpoint


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _is_foreign(name: str) -> bool:
    first = name.partition(".")[0]
    return first in _FOREIGN or first in sys.stdlib_module_names

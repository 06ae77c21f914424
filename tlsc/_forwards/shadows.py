"""Modules whose forward can be recorded: what is read of them is noted, and what they are given is.

A shadow is an object of a class derived from the module's own, with the same attributes; its children are shadows.
Neither the module nor any class is changed, so that other threads may run whatever they like.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from typing import Any, Protocol

from torch import Tensor, fx, nn

from .._models.contents import Contents
from .._models.slots import HOOKS
from .arguments import is_number
from .guards import MISSING, Reads, is_simple
from .linking import Linker

__all__ = ["Recording", "Shadows"]

_OWN = "_tlsc_shadow"
_PLAIN = {
    "_modules",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
    "_version",
    "call_super_init",
    *HOOKS,
}


class Recording(Protocol):
    """The recorder, as shadows see it."""

    reads: Reads
    linker: Linker
    contents: Contents

    def tensor_of(self, path: str, name: str, value: Tensor) -> Any:
        """The recorded value of a parameter, buffer or other tensor of the module at ``path``."""

    def called(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Record a call of the module at ``path``."""

    def is_entered(self, path: str) -> bool:
        """Whether the code of the module at ``path`` is recorded, too."""

    by_size: bool
    """Whether dictionaries are looked into by sizes."""

    def dictionary_of(self, path: str, name: str, value: dict[Any, Any]) -> Any:
        """A dictionary that the module at ``path`` holds, as recorded code is to see it."""

    def number_of(self, path: str, name: str, value: Any) -> Any:
        """A number that the module at ``path`` holds, as recorded code is to see it."""

    def entered(self, path: str) -> None:
        """Note that what the module at ``path`` does is part of what is recorded; refused where it has hooks."""

    def kept(self, path: str, name: str, value: Any) -> None:
        """Record that the module at ``path`` is given an attribute."""


class _Place:
    """Whose shadow it is, and where."""

    def __init__(self, shadows: Shadows, path: str, module: nn.Module) -> None:
        self.shadows, self.path, self.module = shadows, path, module


class Shadows:
    """The shadows of a module and of all below it, for one recording."""

    def __init__(self, recording: Recording, root: nn.Module) -> None:
        self.recording = recording
        self._classes: dict[type, type] = {}
        self._own: dict[type, set[str]] = {}
        self._made: dict[int, nn.Module] = {}
        self.root = self._of(root, "")

    def _of(self, module: nn.Module, path: str) -> nn.Module:
        if id(module) in self._made:
            return self._made[id(module)]
        shadow: nn.Module = object.__new__(self._class(type(module)))
        self._made[id(module)] = shadow
        children = {
            name: child if child is None else self._of(child, f"{path}.{name}" if path else name)
            for name, child in module._modules.items()
        }
        state = {**module.__dict__, "_modules": children, _OWN: _Place(self, path, module)}
        state["_parameters"], state["_buffers"] = (dict(module.__dict__[n]) for n in ("_parameters", "_buffers"))
        object.__setattr__(shadow, "__dict__", state)
        return shadow

    def _class(self, of: type) -> type:
        if of not in self._classes:
            made = types.new_class(of.__name__, (_Shadow, of), {"metaclass": type(of)})
            self._classes[of], self._own[made] = made, set(vars(made))
        return self._classes[of]

    def given(self) -> list[str]:
        """The attributes that recorded code has given to a class."""
        return [name for made, own in self._own.items() for name in vars(made) if name not in own]

    def seen(self, value: Any) -> Any:
        """An attribute as recorded code is to see it: with shadows in place of modules."""
        if isinstance(value, nn.Module):
            return self._made.get(id(value), value)
        if type(value) in (list, tuple) and any(isinstance(v, (nn.Module, list, tuple)) for v in value):
            return type(value)(self.seen(inner) for inner in value)
        if type(value) is dict and any(isinstance(v, (nn.Module, list, tuple)) for v in value.values()):
            return {key: self.seen(inner) for key, inner in value.items()}
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            function = self.recording.linker.linked(value.__func__)
            return types.MethodType(function, self.seen(value.__self__))
        return self.recording.linker.linked(value)


class _Shadow:
    """What makes a class of modules one of shadows."""

    def __init_subclass__(cls, **_: Any) -> None:
        """Nothing: what the module's class does with classes derived from it is not for shadows."""

    def __getattribute__(self, name: str) -> Any:
        if name == "_modules":  # to go through them
            own = object.__getattribute__(self, "__dict__")
            own[_OWN].shadows.recording.reads.attribute(own[_OWN].path, "#", tuple(own["_modules"]))
        if name in _PLAIN or (name.startswith("__") and name != "__call__"):
            return object.__getattribute__(self, name)
        state = object.__getattribute__(self, "__dict__")
        place = state[_OWN]
        if isinstance(_of_class(type(self), name), property):
            return object.__getattribute__(self, name)
        for holder in (state, state["_parameters"], state["_buffers"]):
            if name in holder:
                return holder[name] if name.startswith("_tlsc") else _attribute(place, holder, name)
        if name in state["_modules"]:
            if state["_modules"][name] is None:
                place.shadows.recording.reads.attribute(place.path, name, None)
            return state["_modules"][name]
        return _inherited(self, place, name)

    def __getattr__(self, name: str) -> Any:
        place = self.__dict__[_OWN]
        given = getattr(super(), "__getattr__", None)
        own = type(self).__mro__[2].__dict__.get("__getattr__")
        if own is not None and given is not None:  # the class finds attributes in a way of its own
            return given(name)
        place.shadows.recording.reads.attribute(place.path, name, MISSING)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(_of_class(type(self), name), property):
            object.__setattr__(self, name, value)
            return
        state = self.__dict__
        place = state[_OWN]
        place.shadows.recording.kept(place.path, name, value)
        for holder in (state["_parameters"], state["_buffers"]):
            if name in holder:
                holder[name] = value
                return
        state[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        place = self.__dict__[_OWN]
        recording = place.shadows.recording
        if not recording.is_entered(place.path):
            return recording.called(place.path, place.module, args, kwargs)
        recording.entered(place.path)
        return self.forward(*args, **kwargs)


def _attribute(place: _Place, holder: dict[str, Any], name: str) -> Any:
    """An attribute, parameter or buffer of the instance."""
    value = holder[name]
    recording = place.shadows.recording
    if isinstance(value, fx.Proxy) or place.module.__dict__.get(name, value) is not value:
        return value  # given while recording
    if name in ("_parameters", "_buffers"):
        return {
            key: inner
            if inner is None or isinstance(inner, fx.Proxy)
            else recording.tensor_of(place.path, key, inner)
            for key, inner in value.items()
        }
    if isinstance(value, Tensor):
        return recording.tensor_of(place.path, name, value)
    if is_number(value):
        return recording.number_of(place.path, name, value)
    if recording.by_size and type(value) in (dict, OrderedDict):
        return recording.dictionary_of(place.path, name, value)
    if not isinstance(value, nn.Module):
        recording.reads.attribute(place.path, name, value)
        recording.contents.value(value, name)
    return place.shadows.seen(value)


def _inherited(shadow: Any, place: _Place, name: str) -> Any:
    """An attribute of the class; a method of it sees the shadow."""
    value = object.__getattribute__(shadow, name)
    linker = place.shadows.recording.linker
    if isinstance(value, types.MethodType):
        if value.__self__ is shadow and name != "forward":
            place.shadows.recording.reads.method(place.path, name, value.__func__)
        return types.MethodType(linker.linked(value.__func__), value.__self__)
    if is_simple(value):
        place.shadows.recording.reads.attribute(place.path, name, value)
    place.shadows.recording.contents.value(value, name)
    return linker.linked(value)


def _of_class(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None

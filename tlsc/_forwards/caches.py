"""What code keeps by the size of a map: masks and grids in a dictionary of the module, or in a function's cache.

A recorded size is no number yet, so that nothing can be looked up by it. What is kept is then made anew at each
call, of the call's sizes, and given to the dictionary, or taken from it if it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from .places import here
from .proxies import Numeral
from .values import Cannot, Number

__all__ = ["Cache", "Caches", "Memoised", "drop_", "keep_by_size_", "memoised"]


def keep_by_size_(owner: nn.Module, path: str, name: str, key: Any, made: Any) -> Any:
    """What a dictionary of a module holds for a key; ``made`` if there was nothing."""
    return getattr(owner.get_submodule(path), name).setdefault(key, made)


def drop_(owner: nn.Module, path: str, name: str, method: str, args: tuple[Any, ...]) -> None:
    """Take something from a dictionary of a module."""
    getattr(getattr(owner.get_submodule(path), name), method)(*args)


class Memoised:
    """A function with a cache, called with sizes; without its cache where tensors have no values."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = f"memoised_{getattr(function, '__name__', 'function')}"
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fake = any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())
        return (self.function.__wrapped__ if fake else self.function)(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Memoised, (self.function,)

    def __deepcopy__(self, memo: Any) -> Memoised:
        return self


def is_sized(key: Any) -> bool:
    """Whether a recorded size is part of a key."""
    return isinstance(key, Numeral) or (isinstance(key, (tuple, list)) and any(map(is_sized, key)))


class Caches:
    """The dictionaries of modules that one recording looks into by sizes."""

    def __init__(self, tracer: Any, owner: fx.Node) -> None:
        self.tracer, self.owner = tracer, owner
        self.made: dict[Any, Any] = {}
        self.asked: dict[Any, str] = {}

    def missing(self) -> Iterator[str]:
        """The lines that look up what the code does not make where it is missing."""
        return (line for key, line in self.asked.items() if key not in self.made)


class Cache(dict[Any, Any]):
    """A dictionary of a module, as code that is being recorded is to see it.

    ``read`` is told that what it holds counts. By a key with a size in it nothing is found but what was given.
    """

    def __init__(
        self, caches: Caches, held: dict[Any, Any], place: tuple[str, str], read: Callable[[], None]
    ) -> None:
        super().__init__(held)
        self._caches, self._place, self._read = caches, place, read

    def _key(self, key: Any) -> Any:
        found = (*self._place, _structure(key))
        self._caches.asked.setdefault(found, here())
        return found

    def __contains__(self, key: Any) -> bool:
        if is_sized(key):
            return self._key(key) in self._caches.made
        self._read()
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        if is_sized(key):
            return self._caches.made.get(self._key(key), default)
        self._read()
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        if is_sized(key):
            return self._caches.made[self._key(key)]
        self._read()
        return super().__getitem__(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if not is_sized(key):
            self._changed()
        parts = tree_leaves(value)
        if not parts or not all(_is_of_sizes(part) for part in parts):
            raise Cannot(f"its forward keeps in {self._place[1]} what is not made of sizes alone")
        self._caches.made[self._key(key)] = _kept(self._caches.owner, self._place, key, value)

    def _changed(self, *_: Any, **__: Any) -> Any:
        raise Cannot(f"its forward changes {self._place[1]} in place, which outlives the call")

    __ior__ = update = _changed

    def clear(self) -> None:
        self._without("clear")

    def __delitem__(self, key: Any) -> None:
        self._without("pop", key)

    def pop(self, key: Any, *default: Any) -> Any:
        self._without("pop", key, *default)
        return super().get(key, *default)

    def popitem(self, *last: Any, **named: Any) -> Any:
        first = (*last, *named.values()) == (False,)
        key = next(iter(self) if first else reversed(self))
        self._without("pop", key)
        return key, super().get(key)

    def move_to_end(self, key: Any, last: bool = True) -> None:
        """As in an ``OrderedDict``; what is kept by sizes stays in the order in which it was made."""
        if not is_sized(key):
            self._changed()

    def _without(self, method: str, *args: Any) -> None:
        """Record that something is no longer kept, as where there is too much of it."""
        self._read()
        if any(map(is_sized, args)):
            self._changed()
        node = self._caches.tracer.create_node(
            "call_function", drop_, (self._caches.owner, *self._place, method, args), {}
        )
        node.meta.update(value=None, kind=None)

    def __iter__(self) -> Iterator[Any]:
        self._read()
        return super().__iter__()

    def __len__(self) -> int:
        self._read()
        return super().__len__()

    def keys(self) -> Any:
        self._read()
        return super().keys()

    def values(self) -> Any:
        self._read()
        return super().values()

    def items(self) -> Any:
        self._read()
        return super().items()

    def __eq__(self, other: object) -> bool:
        self._read()
        return super().__eq__(other)

    __hash__ = None


def _is_of_sizes(value: Any) -> bool:
    kind = value.node.meta["kind"] if isinstance(value, fx.Proxy) else None
    if isinstance(value, Tensor) or not (kind is None or isinstance(kind, Number)):
        return False
    return not isinstance(kind, Number) or kind.labels <= set("NHWPM")


def _kept(owner: fx.Node, place: tuple[str, str], key: Any, value: Any) -> Any:
    """Record that a value is kept, or found."""
    proxy = next((part for part in tree_leaves(value) if isinstance(part, fx.Proxy)), None)
    if proxy is None:
        return value
    tracer: Any = proxy.tracer
    made = tracer.create_arg(value)
    node = tracer.create_node(
        "call_function", keep_by_size_, (owner, *place, tracer.create_arg(_plain(key)), made), {}
    )
    node.meta["value"] = fx.node.map_arg(made, lambda n: n.meta["value"])
    labels = [n.meta["kind"].labels for n in node.all_input_nodes if isinstance(n.meta["kind"], Number)]
    node.meta["kind"] = Number(frozenset().union(*labels))
    return tracer.proxy(node)


def _plain(key: Any) -> Any:
    return tuple(map(_plain, key)) if isinstance(key, tuple) else key


def _structure(value: Any) -> Any:
    """What is equal for two keys, or recorded numbers, that come from the same sizes in the same way."""
    if isinstance(value, fx.Proxy):
        return _structure(value.node)
    if isinstance(value, fx.Node):
        numbers = isinstance(value.meta.get("kind"), Number) and value.op != "placeholder"
        return (value.op, value.target, _structure(value.args)) if numbers else value
    return tuple(map(_structure, value)) if isinstance(value, (tuple, list)) else value


def memoised(function: Any, tracer: Any, linked: Callable[[Any], Any]) -> Callable[..., Any]:
    """In place of a function with a cache."""
    whole = Memoised(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if any(isinstance(inner, Numeral) for arg in given for inner in tree_leaves(arg)) and not any(
            isinstance(inner, nn.Module) or (isinstance(inner, fx.Proxy) and not isinstance(inner, Numeral))
            for arg in given
            for inner in tree_leaves(arg)
        ):
            return tracer.create_proxy("call_function", whole, args, kwargs)
        return linked(function.__wrapped__)(*args, **kwargs)

    return call

"""What a forward asks of the process: random numbers of Python and NumPy, and environment variables.

Numbers are drawn at each call of the local form, as they were before; a course that depends on one has no local
form.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx

from .guards import MISSING, EnvironmentVariable, Reads
from .values import Cannot

__all__ = [
    "LINKED",
    "Draw",
    "Environment",
    "Seed",
    "drawn",
    "is_generator",
    "name_of_draw",
    "owner_of",
    "refused",
    "seeding",
]

LINKED = ("random", "numpy", "numpy.random", "os", "math", "torch.random", "torch.cuda")
"""Python modules of which recorded code sees something else."""
_MODULES = ("random", "numpy.random")


def _generators() -> tuple[type, ...]:
    """Of Python, and of NumPy where it was imported: NumPy imports its random numbers when they are asked for."""
    loaded = sys.modules.get("numpy.random")
    return (random.Random,) if loaded is None else (random.Random, loaded.RandomState, loaded.Generator)


class _Outside:
    """A function of a module that moves a generator of the process.

    Its name ends in ``_`` because it has an effect: a draw that nobody reads moves the next one.
    """

    _verb = ""

    def __init__(self, module: str, name: str) -> None:
        self.function: Callable[..., Any] = getattr(sys.modules[module], name)
        self.place = module, name
        self.__name__ = self.__qualname__ = f"{self._verb}{name}_"
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> Any:
        return type(self), self.place

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Draw(_Outside):
    """A function of ``random`` or ``numpy.random`` that draws a number."""

    _verb = "draw_"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = super().__call__(*args, **kwargs)
        return value.item() if isinstance(value, np.generic) else value

    def __str__(self) -> str:
        return ".".join(self.place)


class Seed(_Outside):
    """A function that seeds PyTorch's generators."""


def seeding(whole: Callable[[Any], Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """What is called in place of the functions that set PyTorch's random numbers; ``whole`` records a call."""
    made: dict[Any, Callable[..., Any]] = {
        getattr(sys.modules[module], name): whole(Seed(module, name))
        for module, name in (
            ("torch", "manual_seed"),
            ("torch.cuda", "manual_seed"),
            ("torch.cuda", "manual_seed_all"),
        )
    }
    return {**made, torch.random.fork_rng: _forked, torch.set_rng_state: _forked}


def _forked(*_: Any, **__: Any) -> Any:
    raise Cannot("its forward puts PyTorch's random numbers back; draw them outside of it")


def owner_of(method: Any) -> Any:
    """What a method is bound to; None for what is none.

    An object that finds attributes itself may raise anything.
    """
    try:
        return getattr(method, "__self__", None)
    except Exception:
        return None


def name_of_draw(value: Any) -> tuple[str, str] | None:
    """Where a function is found that draws from a generator of the process; None for any other value."""
    owner = owner_of(value)
    if not isinstance(owner, _generators()):
        return None
    name = getattr(value, "__name__", "")
    for module in _MODULES:
        if getattr(getattr(sys.modules.get(module), name, None), "__self__", None) is owner:
            return module, name
    return None


def is_generator(value: Any) -> bool:
    """Whether a value draws random numbers in a way of its own: a generator, or a method of one."""
    kinds = _generators()
    return isinstance(value, kinds) or isinstance(owner_of(value), kinds)


def refused(*_: Any, **__: Any) -> Any:
    """In place of a method of a generator that is not the process' own."""
    raise Cannot("its forward draws from a random generator of its own; use PyTorch's random numbers")


def drawn(node: fx.Node) -> Iterator[Draw]:
    """The draws that a number is computed from."""
    left, seen = [node], {node}
    while left:
        one = left.pop()
        if isinstance(one.target, Draw):
            yield one.target
        left += [inner for inner in one.all_input_nodes if inner not in seen]
        seen.update(left)


class Environment:
    """``os.environ`` as recorded code sees it: what was looked up is noted."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def _note(self, name: Any) -> None:
        value = os.environ.get(name, MISSING)
        self._reads.variables.setdefault((id(os.environ), str(name)), EnvironmentVariable(str(name), value))

    def get(self, key: Any, default: Any = None) -> Any:
        """As ``os.environ.get``, and ``os.getenv``."""
        self._note(key)
        return os.environ.get(key, default)

    def __getitem__(self, key: Any) -> str:
        self._note(key)
        return os.environ[key]

    def __contains__(self, key: Any) -> bool:
        self._note(key)
        return key in os.environ

    def __getattr__(self, name: str) -> Any:
        raise Cannot(f"its forward uses {name} of os.environ")

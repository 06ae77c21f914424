"""The arguments of a call: a structure of containers and constants, with tensors and numbers as its leaves."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .guards import is_simple, token

__all__ = ["flattened", "is_number", "mapped"]

_LISTS = (list, tuple, torch.Size)
_DICTIONARIES = (dict, OrderedDict, defaultdict)


def is_number(value: Any) -> bool:
    """Whether a value is an int or float, and no flag."""
    return type(value) is int or type(value) is float


def flattened(value: Any, leaves: list[Any]) -> Any:
    """The structure of a value, compared with ``==``; its leaves are added to ``leaves``."""
    if isinstance(value, Tensor) or is_number(value):
        leaves.append(value)
        return "tensor" if isinstance(value, Tensor) else "number"
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) in _LISTS or _is_named(value):
        return (type(value), *[flattened(inner, leaves) for inner in value])
    if type(value) in _DICTIONARIES:
        return (type(value), *[(key, flattened(inner, leaves)) for key, inner in value.items()])
    if _is_record(value):
        parts = [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
        return (type(value), *[(name, flattened(inner, leaves)) for name, inner in parts])
    return "other", token(value)


def mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A copy of a value with other leaves, taken in the order of :func:`flattened`."""
    if isinstance(value, Tensor) or is_number(value):
        return leaf(value)
    if _is_named(value):
        return type(value)(*[mapped(inner, leaf) for inner in value])
    if type(value) in _LISTS:
        made = [mapped(inner, leaf) for inner in value]
        return made if type(value) is list else tuple(made)
    if type(value) in _DICTIONARIES:
        copied = value.copy()
        for key, inner in value.items():
            copied[key] = mapped(inner, leaf)
        return copied
    if _is_record(value):
        copied = object.__new__(type(value))
        for name, inner in vars(value).items():
            object.__setattr__(copied, name, mapped(inner, leaf))
        return copied
    return value


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def _is_record(value: Any) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and not is_simple(value)
        and hasattr(value, "__dict__")
    )

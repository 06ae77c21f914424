"""Dataclasses from JSON, field by field: what a file may say is what their annotations say.

What has a default may be missing: files of earlier versions are read.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["from_json"]


def from_json(kind: Any, value: Any) -> Any:
    """``value``, as JSON has it, as the type of a field.

    Args:
        kind: a dataclass, a tuple, a Literal, an optional type, or one of JSON's own.
        value: what the file says.

    Raises:
        TypeError, ValueError: it is something else.
    """
    inner = get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value)
    if get_origin(kind) is tuple:
        return _tuple(kind, inner, value)
    if get_origin(kind) is Literal:
        if value not in inner:
            raise ValueError(f"expected one of {', '.join(inner)}, got {value!r:.50}")
        return value
    if type(None) in inner:
        return None if value is None else from_json(inner[0], value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r:.50}")
    if kind is float and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    return value


def _dataclass(kind: type, value: Any) -> Any:
    hints = get_type_hints(kind)
    named = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if not isinstance(value, dict) or not needed <= set(value) <= named:
        raise ValueError(f"a {kind.__name__} has the fields {', '.join(hints)}")
    return kind(**{name: from_json(hints[name], value[name]) for name in hints if name in value})


def _tuple(kind: Any, inner: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or (inner[-1] is not ... and len(value) != len(inner)):
        raise ValueError(f"expected a list, {kind}, got {value!r:.50}")
    kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
    return tuple(from_json(one, part) for one, part in zip(kinds, value, strict=True))

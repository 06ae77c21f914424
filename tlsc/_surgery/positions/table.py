"""The table of rules: for each operation of PyTorch, whether it takes positions of a map together.

The burden is on the rule: an operation is harmless only if a rule, or PyTorch itself, says so. One without a rule
that meets positions is reported.

A rule is a function of a :class:`Change` that returns the name by which the operation is shown, or an empty string
where it is harmless. To add one, write it into the file of its family, or in a file of your own that is imported
in ``findings.py``::

    @rule("cumsum", "cumprod")
    def along(change: Change) -> str:
        return change.small.name if dims(change, "dim") & change.grown() else ""
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .operation import Change

__all__ = ["Rule", "dims", "harmless", "is_harmless", "knows", "rule", "shown_if", "taken"]

Rule = Callable[[Change], str]

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations, by their names without ``aten::``."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"{name} has a rule already")
            _RULES[name] = function
        return function

    return register


def harmless(*names: str) -> None:
    """Register operations that take no positions together, however they are called."""
    rule(*names)(_nothing)


def _nothing(change: Change) -> str:
    return ""


def is_harmless(name: str) -> bool:
    """Whether an operation takes no positions together, however it is called."""
    return _RULES.get(name) is _nothing or _RULES.get(name.removesuffix("_")) is _nothing


def knows(name: str) -> bool:
    """Whether an operation of PyTorch has a rule."""
    return name in _RULES or name.removesuffix("_") in _RULES


def taken(change: Change) -> str:
    """What an operation takes together, by its rule; empty where it is harmless."""
    name = change.small.name
    found = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
    if found is not None:
        return found(change)
    namespace, _, own = name.rpartition("::")
    if change.small.harmless or namespace == "tlsc":
        return ""
    return (own if not namespace else name) if change.anything() else ""


def shown_if(condition: Any, change: Change, name: str = "") -> str:
    """The name of the operation, or of what it stands for, where the condition holds."""
    return (name or change.small.name.removeprefix("_").removesuffix("_")) if condition else ""


def dims(change: Change, name: str = "dim", key: Any = "self") -> frozenset[int]:
    """The dimensions of a tensor that an argument names; all of them where it names none."""
    seen = change.small.tensor(key)
    rank = len(seen.shape) if seen is not None else 0
    given: Any = change.small.args.get(name)
    if isinstance(given, int) and not isinstance(given, bool):
        given = [given]
    if not isinstance(given, list) or not given:
        return frozenset(range(rank))
    return frozenset(at % rank for at in given) if rank else frozenset()

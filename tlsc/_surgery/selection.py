"""Which layers the caller wants treated."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from torch import nn

from .._arguments import shown
from .._models.slots import Slot
from ..errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Selection", "excluded"]

Selection = str | Sequence[str] | Callable[[nn.Module, str], bool]


def excluded(
    slots: list[Slot],
    include: Selection | None,
    exclude: Selection | None,
    source: Callable[[nn.Module], nn.Module],
) -> dict[Slot, str]:
    """The slots that the caller does not want treated, with the reason. ``source``: the caller's own modules."""
    out: dict[Slot, str] = {}
    if include is not None:
        chosen = _selected(slots, include, "include", source)
        out.update((slot, "not in include") for slot in slots if slot not in chosen)
    if exclude is not None:
        out.update((slot, "in exclude") for slot in _selected(slots, exclude, "exclude", source))
    return out


def _selected(
    slots: list[Slot], selection: Selection, name: str, source: Callable[[nn.Module], nn.Module]
) -> set[Slot]:
    if callable(selection):
        return {slot for slot in slots if any(selection(source(slot.module), path) for path in slot.paths)}
    patterns = [selection] if isinstance(selection, str) else selection
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentTypeError(
            f"{name} must be a predicate (module, path) -> bool or glob patterns over paths, got {shown(selection)}"
        )
    chosen: set[Slot] = set()
    for pattern in patterns:
        matching = {slot for slot in slots if any(fnmatch.fnmatchcase(path, pattern) for path in slot.paths)}
        if not matching:
            raise ArgumentValueError(f"{name}: the pattern {pattern!r} matches no path of the model")
        chosen |= matching
    return chosen

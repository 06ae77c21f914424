"""Rows of tables that differ in their place only become one, with a pattern for their paths."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

__all__ = ["SIMILAR", "end_of", "in_groups", "pattern"]

SIMILAR = 5
"""So many sites that differ in their place only are one row."""

Item = TypeVar("Item")


def end_of(path: str) -> tuple[str, ...]:
    """The end of a path, which says what a module is, without numbers.

    Example:
        >>> end_of("encoder.3.CA.avg_pool"), end_of("body.7.1")
        (('CA', 'avg_pool'), ())
    """
    return tuple(part for part in path.split(".")[-2:] if not part.isdecimal())


def in_groups(items: Iterable[Item], likeness: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Those that are alike together where there are many of them, else each by itself; by the first one's place.

    Example:
        >>> in_groups("abababababc", str)
        [['a', 'a', 'a', 'a', 'a'], ['b', 'b', 'b', 'b', 'b'], ['c']]
    """
    alike: dict[Hashable, list[tuple[int, Item]]] = {}
    for number, item in enumerate(items):
        alike.setdefault(likeness(item), []).append((number, item))
    groups: list[list[tuple[int, Item]]] = []
    for group in alike.values():
        groups += [group] if len(group) >= SIMILAR else [[one] for one in group]
    return [[item for _, item in group] for group in sorted(groups, key=lambda group: group[0][0])]


def pattern(paths: Sequence[str]) -> str:
    """What paths begin and end with, in whole parts, and a star between.

    Example:
        >>> pattern(["a.0.CA.pool", "a.1.CA.pool", "a.1.body.2.CA.pool"])
        'a.*.CA.pool'
    """
    parts = [path.split(".") for path in paths]
    shortest = min(map(len, parts))
    begin = next((n for n in range(shortest) if len({own[n] for own in parts}) > 1), shortest)
    rest = shortest - begin
    end = next((n for n in range(rest) if len({own[-1 - n] for own in parts}) > 1), rest)
    return ".".join([*parts[0][:begin], "*", *parts[0][len(parts[0]) - end :]])

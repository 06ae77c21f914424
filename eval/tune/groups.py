"""Sites that are decided together, and the plan that a choice of windows for them stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tlsc
from tlsc.errors import ArgumentValueError

__all__ = ["LEFT", "MOST", "Choice", "Group", "groups_of", "plan_for", "shown"]

Size = tuple[int, int]
Choice = tuple[Size | None, ...]
"""A window at the network's input for each group; None: left as trained."""

MOST = 8
"""Groups at most: each costs a few runs over the photographs."""
LEFT = "left: converting it did not help where the plan was tuned"


@dataclass(frozen=True)
class Group:
    """Sites that become local together, or stay.

    Attributes:
        name: in words.
        sites: their numbers in the plan.
    """

    name: str
    sites: tuple[int, ...]


def groups_of(plan: tlsc.Plan) -> list[Group]:
    """Each site by itself, in the order in which the network reaches them; of more than ``MOST`` those alike.

    Sites whose statistics one forward takes stay together. Alike are those of one operation on maps of one size; of
    more than ``MOST`` kinds neighbours are joined.

    Example:
        >>> from tlsc.adapters import load_demo_network
        >>> [group.name for group in groups_of(tlsc.plan(load_demo_network("se"), 64))]
        ['encoder.0.attention.gate.0', 'encoder.1.attention.gate.0', 'encoder.2.attention.gate.0']
    """
    kinds: list[Any] = [(site.operation, site.feature_size) for site in plan]
    units: dict[Any, list[int]] = {}
    for n, site in enumerate(plan):
        if site.converted:
            units.setdefault(site.owner if site.owner is not None else (n,), []).append(n)
    if len(units) <= MOST:
        return [Group(_path(plan, numbers), tuple(numbers)) for numbers in units.values()]
    groups: dict[Any, list[int]] = {}
    for numbers in units.values():
        groups.setdefault(tuple(sorted({str(kinds[n]) for n in numbers})), []).extend(numbers)
    ordered = sorted((sorted(numbers) for numbers in groups.values()), key=lambda numbers: numbers[0])
    share = math.ceil(len(ordered) / MOST)
    joined = [[n for one in ordered[i : i + share] for n in one] for i in range(0, len(ordered), share)]
    return [Group(_name(plan, numbers), tuple(sorted(numbers))) for numbers in joined]


def _path(plan: tlsc.Plan, numbers: list[int]) -> str:
    path = plan[numbers[0]].path or "(the model)"
    return path if len(numbers) == 1 else f"{path} and {len(numbers) - 1} more"


def _name(plan: tlsc.Plan, numbers: list[int]) -> str:
    kinds = dict.fromkeys((plan[n].operation, plan[n].feature_size) for n in numbers)
    name = " and ".join(f"{operation} on {shown(size)}" for operation, size in kinds)
    return f"{len(numbers)} × {name}" if len(numbers) > 1 else name


def shown(size: Size | None) -> str:
    """``96`` or ``96×128``; what is left has no window.

    Example:
        >>> shown((96, 96)), shown((96, 128)), shown(None)
        ('96×96', '96×128', 'left')
    """
    return "left" if size is None else f"{size[0]}×{size[1]}"


def plan_for(
    groups: Sequence[Group], choice: Choice, planned: Callable[[Size], tlsc.Plan], base: Size
) -> tlsc.Plan:
    """The plan of a choice.

    Args:
        groups: as :func:`groups_of` gave them.
        choice: a window for each.
        planned: gives the plan of the whole network at a window.
        base: the window that a plan which leaves every site names.

    Raises:
        ArgumentValueError: the network has other sites at one window than at another.
    """
    largest = max((size for size in choice if size is not None), key=math.prod, default=base)
    first = planned(largest)
    sites = list(first.sites)
    for group, size in zip(groups, choice, strict=True):
        for n in group.sites:
            sites[n] = _site(sites[n], n, size, largest, planned)
    return replace(first, sites=tuple(sites))


def _site(
    site: tlsc.Site, n: int, size: Size | None, largest: Size, planned: Callable[[Size], tlsc.Plan]
) -> tlsc.Site:
    if size is None:
        return replace(site, action="left global", window=None, owner=None, reason=LEFT)
    if size == largest:
        return site
    own = planned(size)[n]
    if (own.path, own.operation) != (site.path, site.operation):
        raise ArgumentValueError(f"the network has other sites at {shown(size)} than at {shown(largest)}")
    return replace(site, window=own.window, base_size=size)

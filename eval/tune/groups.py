"""Sites that are decided together, and the plan that a choice of windows for them stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import tlsc
from tlsc.errors import ArgumentValueError

__all__ = ["LEFT", "MOST", "Choice", "Group", "Local", "as_choice", "groups_of", "plan_for", "shown"]

Size = tuple[int, int]


class Local(NamedTuple):
    """How the sites of a group become local.

    Attributes:
        size: (height, width) of the window at the network's input.
        strength: of the correction of their statistics: 0 is none, 1 as calibration finds it.
    """

    size: Size
    strength: float = 0.0


Choice = tuple[Local | None, ...]
"""For each group; None: left as trained."""

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
    name = " and ".join(f"{operation} on {sized(size)}" for operation, size in kinds)
    return f"{len(numbers)} × {name}" if len(numbers) > 1 else name


def as_choice(data: Sequence[Any]) -> Choice:
    """A choice as JSON gives it back: lists in place of tuples.

    Raises:
        TypeError, ValueError: it is none.

    Example:
        >>> as_choice([[[96, 128], 0.5], None])
        (Local(size=(96, 128), strength=0.5), None)
    """

    def local(one: Any) -> Local | None:
        if one is None:
            return None
        (height, width), strength = one
        return Local((height, width), float(strength))

    return tuple(map(local, data))


def shown(one: Local | None) -> str:
    """In words: the window, and how far its statistics are corrected.

    Example:
        >>> shown(Local((96, 96))), shown(Local((96, 128), 1.0)), shown(Local((96, 96), 0.5)), shown(None)
        ('96×96', '96×128 corrected', '96×96 50% corrected', 'left')
    """
    if one is None:
        return "left"
    size = sized(one.size)
    if not one.strength:
        return size
    return f"{size} corrected" if one.strength == 1 else f"{size} {one.strength:.0%} corrected"


def sized(size: Size | None) -> str:
    """``96×128``."""
    return "–" if size is None else f"{size[0]}×{size[1]}"


def plan_for(
    groups: Sequence[Group], choice: Choice, planned: Callable[[Size], tlsc.Plan], base: Size
) -> tlsc.Plan:
    """The plan of a choice, without corrections.

    Args:
        groups: as :func:`groups_of` gave them.
        choice: what becomes of each.
        planned: gives the plan of the whole network at a window.
        base: the window that a plan which leaves every site names.

    Raises:
        ArgumentValueError: the network has other sites at one window than at another.
    """
    largest = max((one.size for one in choice if one is not None), key=math.prod, default=base)
    first = planned(largest)
    sites = list(first.sites)
    for group, one in zip(groups, choice, strict=True):
        for n in group.sites:
            sites[n] = _site(sites[n], n, None if one is None else one.size, largest, planned)
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
        raise ArgumentValueError(f"the network has other sites at {sized(size)} than at {sized(largest)}")
    return replace(site, window=own.window, base_size=size)

"""A conversion by a plan that was made before: the sites that it converts, each with its own window."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .._models.slots import Slot
from .._plan import Plan, Site
from ..errors import ArgumentTypeError, ArgumentValueError
from .planner import Decided, plan_for
from .probe import Inputs

__all__ = ["ByPlan", "decided_by", "keys_of"]

Key = tuple[str, str, int]
"""Path and operation of a site, and how many of them stand before it."""
Size = tuple[int, int]

BY_PLAN = "left by the plan"


@dataclass(frozen=True)
class ByPlan:
    """As :class:`Decided`, put together from a plan for each window."""

    plan: Plan
    parts: tuple[Decided, ...]
    inputs: Inputs | None
    work: int

    def local(self, slots: list[Slot]) -> list[tuple[Slot, nn.Module]]:
        """The local modules for places of the model."""
        return [pair for part in self.parts for pair in part.local(slots)]


def keys_of(plan: Plan) -> list[Key]:
    """What names each site of a plan, whether it is converted or not."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for site in plan:
        found.append((site.path, site.operation, seen[site.path, site.operation]))
        seen[site.path, site.operation] += 1
    return found


def decided_by(model: nn.Module, given: Any, example_input: Any) -> ByPlan:
    """What a plan does to a model.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is no plan, or one of another model.
        ProbeError: as :func:`tlsc.convert`.
    """
    if not isinstance(given, Plan):
        raise ArgumentTypeError(f"plan must be a tlsc.Plan, got {type(given).__name__}")
    if given.source != "window":
        raise ArgumentValueError(
            f"the plan has its statistics from {given.source!r}: give convert base_size and source= instead"
        )
    named = dict(zip(keys_of(given), given, strict=True))
    wanted = {key: site for key, site in named.items() if site.converted}
    sizes = dict.fromkeys([given.base_size, *(_own(site, given) for site in wanted.values())])
    whole = {size: plan_for(model, size, given.stride, example_input, None, None) for size in sizes}
    for key, site in wanted.items():
        _check(key, site, given, whole[_own(site, given)].plan)
    first = whole[given.base_size]
    sites = tuple(
        _site(own, named.get(key), given) for key, own in zip(keys_of(first.plan), first.plan, strict=True)
    )
    chosen = {size: [key for key, site in wanted.items() if _own(site, given) == size] for size in sizes}
    parts = tuple(_part(decided, chosen[size], wanted) for size, decided in whole.items())
    made = Plan(given.base_size, given.stride, sites, given.calibration)
    return ByPlan(made, parts, first.inputs, first.work)


def _own(site: Site, plan: Plan) -> Size:
    return site.base_size or plan.base_size


def _check(key: Key, site: Site, given: Plan, now: Plan) -> None:
    """Whether a site that the plan converts is there, and would become what the plan says."""
    found = dict(zip(keys_of(now), now, strict=True)).get(key)
    name = site.path or "(the model)"
    if found is None or not found.converted:
        why = "it has no such site" if found is None else f"it cannot become local: {found.reason}"
        raise ArgumentValueError(f"the plan is of another model: {name}, {site.operation}: {why}")
    if (found.window, found.owner, found.action) != (site.window, site.owner, site.action):
        raise ArgumentValueError(
            f"the plan is of another model: {name} would have the window {found.window}, not {site.window}, in "
            f"{found.owner or 'its own module'}, not {site.owner or 'its own module'}"
        )
    sharing = [own for own in given if own.converted and own.owner == site.owner is not None]
    if len({_own(own, given) for own in sharing}) > 1:
        raise ArgumentValueError(f"the plan gives the sites of {site.owner} different windows: one forward has one")


def _site(own: Site, asked: Site | None, given: Plan) -> Site:
    """A site of the model as the plan has it."""
    if asked is not None and asked.converted:
        return replace(own, window=asked.window, base_size=asked.base_size, fit=asked.fit, owner=asked.owner)
    if not own.converted:
        return own
    reason = BY_PLAN if asked is None else asked.reason
    return replace(own, action="left global", window=None, owner=None, reason=reason)


def _part(decided: Decided, chosen: list[Key], wanted: dict[Key, Site]) -> Decided:
    """What is to be done with one window."""
    owners = {wanted[key].owner for key in chosen}
    keys = dict(zip(keys_of(decided.plan), decided.sites, strict=True))
    return replace(
        decided,
        sites=tuple(keys[key] for key in chosen),
        owners=tuple(owner for owner in decided.owners if owner.slot.paths[0] in owners),
    )

"""Sites whose statistics come from a source other than the window: whether they can, and how they are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from .._forwards.runtime import CORRECTIONS, Sourced
from .._models.slots import Slot
from .._plan import Plan
from .._sources.passes import AT, At, Passes
from .._sources.source import Source
from ..errors import ArgumentValueError
from .planner import Decided
from .swapping import OWN_SITES

__all__ = ["local_modules", "planned"]


def planned(decided: Decided, source: Source) -> Plan:
    """The plan, of sites that have their statistics from ``source``.

    Raises:
        ArgumentValueError: a site takes none that could come from there.
    """
    for path, operation in _without_source(decided):
        raise ArgumentValueError(
            f"{path or '(the model)'}: {operation} takes no mean and no variance that could come from source "
            f"{source.name!r}: leave it out (exclude={path!r}) or take source='window'"
        )
    sites = (replace(site, action=source.name) if site.converted else site for site in decided.plan)  # type: ignore[arg-type]
    return replace(decided.plan, sites=tuple(sites), source=str(source))


def _without_source(decided: Decided) -> Iterator[tuple[str, str]]:
    for slot, site in decided.sites:
        if site.converted and site.owner is None and not decided.asked.kinds[slot].sourced:
            yield site.path, site.operation
    for owner in decided.owners:
        path = owner.slot.paths[0]
        for own in owner.sites:
            if not own.sourced:
                yield ".".join(part for part in (path, own.child) if part), own.operation


def local_modules(decided: Decided, slots: list[Slot], passes: Passes) -> list[tuple[Slot, nn.Module]]:
    """As :meth:`Decided.local`, of modules that ask ``passes`` for their statistics."""
    made = decided.local(slots)
    for number, (slot, module) in enumerate(made):
        if AT in module.__dict__:
            continue  # in several places
        path = slot.paths[0]
        module.__dict__[AT] = At(passes, (number, 0), path)
        if OWN_SITES in module.__dict__:
            module.__dict__[CORRECTIONS] = Sourced(passes, number, path)
    return made

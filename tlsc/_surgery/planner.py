"""What is to become of each site of a model, as a line of results: probed, owned, tried, decided.

All of it looks at a copy of the model's structure. The model itself is only read, and other threads may run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._arguments import as_pair, as_positive_int
from .._forwards.variants import stand_in
from .._models.copies import structure_of
from .._models.fakes import no_fakes_left
from .._models.slots import Slot, is_hooked, slots_of
from .._plan import Action, Plan, Site
from .._sites.all_kinds import kind_of
from .._sites.kind import Kind
from ..errors import ArgumentTypeError, ProbeError, TLSCError
from . import probe
from .left import scripted, why_layer_left
from .owners import Found, OwnedSite, Owner, find_owners
from .positions.findings import ATTENDING, Finding, decisive, findings_of
from .probe import Inputs, Run
from .selection import Selection, excluded
from .swapping import OWN_SITES, build, dressed, original_of
from .trial import larger_sizes, refused_pools

__all__ = ["Decided", "plan_for"]


@dataclass(frozen=True)
class Asked:
    """What the caller wants, checked; and the places of the model's copy.

    ``kinds``: the slots that hold a known module. ``unwanted``: those to leave, with the reason.
    """

    model: nn.Module
    base_size: tuple[int, int]
    stride: int
    given: bool
    inputs: tuple[Inputs, ...]
    slots: tuple[Slot, ...]
    kinds: Mapping[Slot, Kind]
    unwanted: Mapping[Slot, str]

    def whole(self) -> dict[Slot, Kind]:
        """The slots of known types whose forward is not to be traced."""
        return {slot: kind for slot, kind in self.kinds.items() if not kind.own_forward}


@dataclass(frozen=True)
class Probed:
    """What a run at ``base_size`` saw, and one on a larger image; None where the model takes no larger one."""

    run: Run
    inputs: Inputs
    larger: Run | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Pools:
    """``hard``: pools that replacing alone would not mend; ``refused``: those whose successors take no map."""

    hard: tuple[Slot, ...]
    refused: Mapping[Slot, str]


@dataclass(frozen=True)
class Decided:
    """The plan, and the means to carry it out; and how the model is called, and how many multiplications a forward
    at ``base_size`` is. None and 0 where it was not run."""

    plan: Plan
    asked: Asked
    sites: tuple[tuple[Slot, Site], ...]
    owners: tuple[Owner, ...]
    inputs: Inputs | None = None
    work: int = 0

    def local(self, slots: list[Slot]) -> list[tuple[Slot, nn.Module]]:
        """The local modules for places of the model, ``slots`` as :func:`slots_of` gives them. One module stays
        one where its windows agree."""
        real = dict(zip(self.asked.slots, slots, strict=True))
        return [*self._replaced(real), *self._rewritten(real)]

    def _replaced(self, real: Mapping[Slot, Slot]) -> Iterator[tuple[Slot, nn.Module]]:
        made: dict[tuple[int, tuple[int, int]], nn.Module] = {}
        for planned, site in self.sites:
            if not site.converted or site.window is None or site.owner is not None:
                continue
            slot, kind = real[planned], self.asked.kinds[planned]
            key = id(slot.module), site.window
            if key not in made:
                made[key] = build(kind, slot.module, slot.paths[0], site.window, self.plan.stride)
                if any(made[key] is other for at, other in made.items() if at != key):
                    raise TLSCError(
                        f"{slot.paths[0]}: the factory registered for {kind.operation} returned one "
                        "module for two layers; return a new one each time"
                    )
            yield slot, made[key]

    def _rewritten(self, real: Mapping[Slot, Slot]) -> Iterator[tuple[Slot, nn.Module]]:
        made: dict[tuple[int, str], nn.Module] = {}
        for owner in self.owners:
            slot = real[owner.slot]
            key = id(slot.module), str(owner.graph)
            if key not in made:
                made[key] = dressed(stand_in(slot.module, owner.recipe), slot.module)
                made[key].__dict__[OWN_SITES] = tuple(own.child for own in owner.sites)
            yield slot, made[key]


def plan_for(
    model: nn.Module,
    base_size: int | tuple[int, int],
    stride: int,
    example_input: Any,
    include: Selection | None,
    exclude: Selection | None,
) -> Decided:
    """Plan the conversion of a model, or of the original of a converted one.

    Raises:
        ArgumentTypeError, ArgumentValueError, ProbeError: as :func:`tlsc.convert`.
    """
    asked = _ask(model, base_size, stride, example_input, include, exclude)
    if not asked.kinds and not _own_code(asked.slots):
        return Decided(Plan(asked.base_size, asked.stride, ()), asked, (), ())
    with no_fakes_left():
        return _planned(asked)


def _planned(asked: Asked) -> Decided:
    """A function of its own, so that with its end go the tensors without values that it holds."""
    probed = _probe(asked)
    ready, hard, skip = _divided(asked, probed)
    pools = [slot for slot in (*ready, *hard) if slot not in skip]
    found = find_owners(asked.model, list(asked.slots), probed.run, pools, skip, asked.stride)
    tried = _try(asked, probed, found, ready, hard)
    sites = tuple(_decide(asked, probed, found, tried))
    plan = Plan(asked.base_size, asked.stride, tuple(site for _, site in sites))
    return Decided(plan, asked, sites, tuple(found.owners), probed.inputs, probed.run.work)


# ---------------------------------------------------------------------------------------------------- asking


def _ask(
    model: nn.Module,
    base_size: int | tuple[int, int],
    stride: int,
    example_input: Any,
    include: Selection | None,
    exclude: Selection | None,
) -> Asked:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ProbeError(
            f"{type(model).__name__} has lazy layers whose shapes are not known yet: run it once on an image "
            "of the kind it is meant for, then convert it"
        )
    pair, checked = as_pair(base_size, "base_size"), as_positive_int(stride, "stride")
    copied = structure_of(model, original=original_of, to_run=False)
    slots = slots_of(copied.model)
    return Asked(
        model=copied.model,
        base_size=pair,
        stride=checked,
        given=example_input is not None,
        kinds=_candidates(slots),
        unwanted=excluded(slots, include, exclude, copied.source),
        inputs=tuple(probe.inputs_of(copied.model, example_input, pair)),
        slots=tuple(slots),
    )


def _candidates(slots: list[Slot]) -> dict[Slot, Kind]:
    """The slots that hold a known module, less those inside another one."""
    kinds: dict[Slot, Kind] = {}
    owned: set[int] = set()
    for slot in slots:
        kind = scripted(slot.module) or kind_of(slot.module)
        if kind is None or id(slot.parent) in owned:
            if id(slot.parent) in owned:
                owned.add(id(slot.module))
            continue
        kinds[slot] = kind
        owned.add(id(slot.module))
    return kinds


def _own_code(slots: tuple[Slot, ...]) -> list[Slot]:
    """The slots whose module has a forward of its own or calls other modules: not a single PyTorch layer."""
    return [
        slot
        for slot in slots
        if not isinstance(slot.module, torch.jit.ScriptModule)
        and not _is_compiled(slot.module)
        and (slot.parent is None or slot.module._modules or not _is_pytorch_s(slot.module))
    ]


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` made."""
    return "_orig_mod" in module._modules


def _is_pytorch_s(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules")


# ---------------------------------------------------------------------------------------------------- probing


def _probe(asked: Asked) -> Probed:
    """Run the model at ``base_size``, the first way that works, and on a larger image."""
    first: Exception | None = None
    observed = _own_code(asked.slots)
    layers = [slot for slot in asked.slots if _is_pytorch_s(slot.module) and not slot.module._modules]
    watched = dict.fromkeys(asked.whole(), False)
    for inputs in asked.inputs:
        try:
            run = probe.run(asked.model, inputs, asked.base_size, watched, observed=observed, layers=layers)
            break
        except Exception as error:
            first = first or error
    else:
        assert first is not None
        if isinstance(first, TLSCError):
            raise first
        raise probe.failure(first, asked.base_size, asked.given) from first
    larger: Run | None = None
    size = asked.base_size
    for size in larger_sizes(asked.base_size, not run.fake):
        try:
            larger = probe.run(asked.model, inputs, size, watched, None, run.fake, observed, layers)
            break
        except Exception:
            continue
    run.findings = findings_of(run.records, None if larger is None else larger.records)
    return Probed(run, inputs, larger, size)


def _divided(asked: Asked, probed: Probed) -> tuple[list[Slot], list[Slot], set[Slot]]:
    """Pools that can be replaced alone, those that cannot, and the slots to leave alone."""
    kinds, run = asked.kinds, probed.run
    ready = [slot for slot in run.calls if kinds[slot].pools and _why_left(asked, slot, run) is None]
    hard = [slot for slot in run.calls if _is_hard(asked, slot, run)]
    hooked = {slot for slot in run.calls if is_hooked(slot.module)}
    skip = {*asked.unwanted, *hooked, *_inside(asked.slots, asked.whole())}
    return ready, hard, skip


def _inside(slots: tuple[Slot, ...], kinds: dict[Slot, Kind]) -> list[Slot]:
    """The slots below a module that is treated as a whole, and that module."""
    wholes = {id(slot.module) for slot in kinds if slot.module._modules}
    out = []
    for slot in slots:
        if id(slot.module) in wholes or id(slot.parent) in wholes:
            wholes.add(id(slot.module))
            out.append(slot)
    return out


def _is_hard(asked: Asked, slot: Slot, run: Run) -> bool:
    """Whether a known module is global here, but not in a way that replacing it alone could mend."""
    kind = asked.kinds[slot]
    if slot in asked.unwanted or _why_left(asked, slot, run) is None:
        return False
    return kind.needs_owner(slot.module) or (kind.why_left(slot.module) is None and kind.build is not None)


def _try(asked: Asked, probed: Probed, found: Found, ready: list[Slot], hard: list[Slot]) -> Pools:
    """Pools that no owner takes over are replaced alone, where the layers behind them can take a map."""
    served = {place for owner in found.owners for place in _served(owner)}
    alone = [slot for slot in ready if slot.parent is not None and (id(slot.parent), slot.name) not in served]
    if not alone or probed.larger is None:
        # A model that takes one size only: its pools never see a map larger than their window.
        return Pools(tuple(hard), {})
    refused = refused_pools(asked.model, probed.inputs, probed.size, probed.larger, alone)
    return Pools((*hard, *refused), refused)


def _served(owner: Owner) -> list[tuple[int, str]]:
    """The places of the children whose statistics an owner takes over."""
    places = [_place(owner.slot.module, site.child) for site in owner.sites if site.child is not None]
    return [(id(parent), name) for parent, name in places]


def _place(owner: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The parent and the name of the module at ``path``."""
    head, _, name = path.rpartition(".")
    return owner.get_submodule(head), name


# ---------------------------------------------------------------------------------------------------- deciding


def _decide(asked: Asked, probed: Probed, found: Found, pools: Pools) -> Iterator[tuple[Slot, Site]]:
    """Every site, in the order in which a forward pass reaches them."""
    run = probed.run
    reducing = run.reducing
    covered = _covered(found)
    places = [slot for slot in asked.slots if (id(slot.parent), slot.name) in covered]
    owners = {owner.slot for owner in found.owners}
    traced = {*found.refused, *owners, *(asked.unwanted.keys() & reducing)}
    for slot in dict.fromkeys([*run.order, *asked.kinds, *places]):
        at = id(slot.parent), slot.name
        for owner in found.owners:
            if owner.slot is slot:
                yield from ((slot, _owned(asked, owner, own, slot)) for own in owner.sites if not own.child)
        if slot in found.refused:
            yield from _left(asked, slot, run.findings[slot], found.refused[slot])
        elif slot in reducing and slot in asked.unwanted:
            yield from _left(asked, slot, run.findings[slot], asked.unwanted[slot])
        elif slot in owners and slot in reducing:
            yield from _beside(asked, slot, run.findings[slot], covered)
        if at in covered:
            yield from ((slot, _owned(asked, owner, own, slot)) for owner, own in covered[at])
        elif slot in asked.kinds and not (asked.kinds[slot].own_forward and slot in traced):
            yield slot, _known(asked, slot, run, found, pools)


def _covered(found: Found) -> dict[tuple[int, str], list[tuple[Owner, OwnedSite]]]:
    """The layers whose statistics their owners take over: by parent and name, who does and for what."""
    covered: dict[tuple[int, str], list[tuple[Owner, OwnedSite]]] = {}
    for owner in found.owners:
        for owned in owner.sites:
            if owned.child is not None:
                parent, name = _place(owner.slot.module, owned.child)
                covered.setdefault((id(parent), name), []).append((owner, owned))
    return covered


def _owned(asked: Asked, owner: Owner, site: OwnedSite, slot: Slot) -> Site:
    return Site(
        path=slot.paths[0],
        operation=site.operation,
        feature_size=site.size,
        window=site.size,
        action="strided" if asked.stride > 1 and not site.normalises else "exact",
        aliases=tuple(slot.paths[1:]),
        owner=owner.slot.paths[0],
    )


def _known(asked: Asked, slot: Slot, run: Run, found: Found, pools: Pools) -> Site:
    """The site of a module of a known type, which is replaced alone or left."""
    kind = asked.kinds[slot]
    left = _why_left(asked, slot, run)
    if left is None and slot in pools.refused:
        left = "left global", pools.refused[slot]
    if left is not None and slot.parent is not None and slot in pools.hard:
        around = next((why for other, why in found.why.items() if other.module is slot.parent), "")
        left = left[0], left[1] + (f"; {around}" if around else "")
    size = _feature_size(run, slot)
    action: Action = "strided" if kind.strided and asked.stride > 1 else "exact"
    return Site(
        path=slot.paths[0],
        operation=kind.operation,
        feature_size=size,
        window=None if left else size,
        action=action if left is None else left[0],
        reason=left[1] if left else "",
        aliases=tuple(slot.paths[1:]),
    )


def _left(asked: Asked, slot: Slot, findings: list[Finding], reason: str) -> Iterator[tuple[Slot, Site]]:
    """The sites of a forward that stays as it is: what decided that, and everything else in it."""
    first = decisive(findings)
    for finding in sorted(dict.fromkeys(findings), key=lambda finding: finding.operation != first):
        layer = _slot_of(asked, finding)
        if layer is not None:
            yield layer, _global(layer, type(layer.module).__name__, why_layer_left(layer.module) or reason)
        elif finding.operation == first:
            whole = _is_pytorch_s(slot.module) and not isinstance(slot.module, nn.Sequential)
            yield slot, _global(slot, type(slot.module).__name__ if whole else first, reason)
        elif first not in ATTENDING and not _is_pytorch_s(slot.module):
            why = f"in a forward that stays as it is: {reason}"
            yield slot, _global(slot, finding.operation, why)


def _beside(
    asked: Asked, slot: Slot, findings: list[Finding], covered: Mapping[tuple[int, str], Any]
) -> Iterator[tuple[Slot, Site]]:
    """Layers in a rewritten forward that stay global."""
    for finding in dict.fromkeys(findings):
        layer = _slot_of(asked, finding)
        if layer is not None and (id(layer.parent), layer.name) not in covered:
            yield layer, _global(layer, type(layer.module).__name__, why_layer_left(layer.module))


def _slot_of(asked: Asked, finding: Finding) -> Slot | None:
    """The place of the layer that an operation is a part of, if that is shown as a site of its own."""
    if finding.layer is None or not why_layer_left(finding.layer):
        return None
    return next((slot for slot in asked.slots if slot.module is finding.layer and slot.parent is not None), None)


def _global(slot: Slot, operation: str, reason: str) -> Site:
    return Site(slot.paths[0], operation, None, None, "left global", reason, tuple(slot.paths[1:]))


def _feature_size(run: Run, slot: Slot) -> tuple[int, int] | None:
    shapes = run.calls.get(slot)
    if not shapes or len(shapes[0]) < 3:
        return None
    return shapes[0][-2], shapes[0][-1]


def _why_left(asked: Asked, slot: Slot, run: Run) -> tuple[Action, str] | None:
    kind = asked.kinds[slot]
    left = kind.why_left(slot.module)
    if left is not None:
        return left
    if slot in asked.unwanted:
        return "left global", asked.unwanted[slot]
    shapes = run.calls.get(slot, [])
    if not shapes:
        return "left global", "not called on an input of base_size"
    for shape in shapes:
        if len(shape) not in kind.ranks:
            return "left global", f"called on a tensor of shape {shape}, not on a map (N, C, H, W)"
    sizes = dict.fromkeys(shape[-2:] for shape in shapes)
    if len(sizes) > 1:
        listed = ", ".join(f"{height}×{width}" for height, width in sizes)
        return "left global", f"called on maps of several sizes ({listed}): one window cannot serve them"
    return None

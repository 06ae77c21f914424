"""The modules whose own ``forward`` has to change: they take a statistic themselves, or use that of a pool.

An owner is rewritten as a whole, from the statistic to where its result meets the map again. Where the result
leaves a module first (the gate of a squeeze-excitation in a Sequential), the module around it is taken, and the
inner one entered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .._forwards.courses import explored
from .._forwards.names import name_of
from .._forwards.rewriter import rewrite
from .._forwards.sizes import is_divided
from .._forwards.trace import Trace, trace
from .._forwards.values import Cannot, Reduction
from .._forwards.variants import Recipe, recipe_of
from .probe import ATTENDING, FORMLESS, FakeMode, Run, Slot, is_hooked, make_fake, silent_fakes, undisturbed

__all__ = ["Owner", "find_owners"]


@dataclass(eq=False)
class Owner:
    """A module to be rewritten: ``graph`` is its new forward, ``recipe`` what it is made of."""

    slot: Slot
    graph: fx.Graph
    recipe: Recipe
    sites: list[OwnedSite] = field(default_factory=list)


@dataclass(frozen=True)
class OwnedSite:
    """A statistic of an owner: the child that takes it (a path from the owner) or None, and what it is.

    ``sourced``: whether it is made of means and variances, which may come from elsewhere than the window.
    """

    child: str | None
    operation: str
    size: tuple[int, int]
    normalises: bool = False
    sourced: bool = False


@dataclass
class Found:
    """``owners`` to rewrite; ``refused``: slots with a statistic of their own that stays as it is, with the reason;
    ``why``: the same for every module that was tried."""

    owners: list[Owner]
    refused: dict[Slot, str]
    why: dict[Slot, str]


def find_owners(
    model: nn.Module, slots: list[Slot], run: Run, pools: list[Slot], skip: set[Slot], stride: int
) -> Found:
    """Trace the modules that took a statistic in ``run``, and those around the ``pools``.

    ``skip``: pools and modules to leave alone.
    """
    mode = FakeMode()
    hooked = {id(module) for module in model.modules() if is_hooked(module)}  # below, none is
    with undisturbed(model), silent_fakes():
        make_fake(model, mode)
        return _find(slots, run, pools, skip, hooked, stride, mode)


class _Candidates:
    """Modules that may have to be rewritten, each with the children whose forwards are entered on the way."""

    def __init__(self, slots: list[Slot], run: Run) -> None:
        self.holding: dict[int, list[Slot]] = {}
        for slot in slots:
            if slot in run.arguments:
                self.holding.setdefault(id(slot.module), []).append(slot)
        self.depth = {slot: slot.paths[0].count(".") + 1 if slot.paths[0] else 0 for slot in slots}
        self.entered: dict[Slot, set[str]] = {}
        self.at = {path: slot.module for slot in slots for path in slot.paths}

    def begin_with(self, modules: Iterable[nn.Module | None]) -> None:
        for module in modules:
            if module is not None:
                self.propose(module)

    def propose(self, module: nn.Module, paths: tuple[str, ...] = ()) -> None:
        for slot in self.holding.get(id(module), []):
            self.entered.setdefault(slot, set()).update(paths)

    def __iter__(self) -> Iterator[tuple[Slot, tuple[str, ...]]]:
        """The deepest first; others may be proposed on the way."""
        while self.entered:
            slot = max(self.entered, key=lambda candidate: self.depth[candidate])
            yield slot, tuple(sorted(self.entered.pop(slot)))

    def reading_sizes(self, slot: Slot) -> str:
        """The nearest module around a place whose own code reads sizes of tensors; "" if there is none."""
        for path in slot.paths:
            while path:
                path = path.rpartition(".")[0]
                module = self.at.get(path)
                if module is not None and _reads_sizes(type(module)):
                    return f"{path or 'the model'} ({type(module).__name__})"
        return ""

    def inside(self, slot: Slot, entered: tuple[str, ...]) -> list[Slot]:
        """The places of the children that are entered."""
        return [other for path in entered for other in self.holding.get(id(slot.module.get_submodule(path)), [])]


def _find(
    slots: list[Slot],
    run: Run,
    pools: list[Slot],
    skip: set[Slot],
    hooked: set[int],
    stride: int,
    mode: FakeTensorMode,
) -> Found:
    candidates = _Candidates(slots, run)
    candidates.begin_with([slot.module for slot in run.reducing if slot not in skip])
    candidates.begin_with([pool.parent for pool in pools])
    owners: dict[Slot, Owner] = {}
    why: dict[Slot, str] = {}
    for slot, entered in candidates:
        inner = candidates.inside(slot, entered)
        try:
            owner = _attempt(slot, run, candidates, entered, skip, hooked, stride, mode)
        except Cannot as error:
            why[slot] = _with_way_out(str(error), slot)
            if error.escapes and slot.parent is not None and id(slot.module) not in hooked:
                candidates.propose(slot.parent, (slot.name, *(f"{slot.name}.{path}" for path in entered)))
            for other in inner:
                if other in why:
                    why[other] += f"; in {slot.paths[0] or 'the model'}: {error}"
            continue
        if owner is not None:
            owners[slot] = owner
            for other in inner:
                why.pop(other, None)
    # One module in several places: rewritten in all of them or in none.
    whole = [owner for slot, owner in owners.items() if not why.keys() & set(candidates.holding[id(slot.module)])]
    return Found(whole, {slot: reason for slot, reason in why.items() if slot in run.reducing}, why)


def _attempt(
    slot: Slot,
    run: Run,
    candidates: _Candidates,
    entered: tuple[str, ...],
    skip: set[Slot],
    hooked: set[int],
    stride: int,
    mode: FakeTensorMode,
) -> Owner | None:
    calls = run.arguments.get(slot, [])
    if not calls:
        raise Cannot("not called on an input of base_size")
    if len({str(_sizes(call)) for call in calls}) > 1:
        raise Cannot("called on maps of several sizes: one window cannot serve them")
    if "forward" in slot.module.__dict__:
        raise Cannot("its forward was replaced on the instance")
    args, kwargs = calls[0]
    skipped = tuple(path for inner in skip if (path := _path_from(slot, inner)) is not None)
    made = trace(slot.module, args, kwargs, entered, skipped, mode)
    try:
        for path in made.recorded.reads.unhooked if made.recorded else ():
            if path and id(slot.module.get_submodule(path)) in hooked:
                raise Cannot(f"{path} has hooks, which would not be called")
        owner = _owner(slot, run, candidates, made, recipe_of(slot.module, entered, skipped, stride))
        if owner is not None:
            explored(made, args, kwargs, skipped, mode, stride)
        return owner
    finally:
        made.forget()


def _owner(slot: Slot, run: Run, candidates: _Candidates, made: Trace, recipe: Recipe) -> Owner | None:
    if made.unknown:
        raise Cannot(f"its {made.unknown[0]} has no local form here")
    if not made.reductions and not made.norms and not made.attentions:
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in slot.module.modules())
        if slot in run.reducing and not scripted:  # a scripted part is in the plan by itself
            raise Cannot(_no_form(slot, run))
        return None
    known = made.attentions or any(node.meta["reduction"].logits is not None for node in made.reductions)
    taken = run.reducing.get(slot)
    if taken in FORMLESS or (taken in ATTENDING and not known):
        raise Cannot(_no_form(slot, run))  # beside the statistics that are understood
    sums = [node for node in made.reductions if node.meta["reduction"].operation == "sum"]
    undivided = bool(sums) and not is_divided(made.graph, made.root, sums)
    if undivided and (around := candidates.reading_sizes(slot)):
        raise Cannot(
            f"its sum is not divided by a number of positions here, and {around}, around it, reads sizes: "
            "whether it divides there does not show",
            escapes=True,
        )
    graph = rewrite(made, recipe.stride)
    recipe.add(made, graph)
    owner = Owner(slot, graph, recipe)
    for node in (*made.reductions, *made.norms, *made.attentions):
        owner.sites.append(_site(node, made))
    return owner


def _reads_sizes(kind: type[nn.Module]) -> bool:
    """Whether any method of a class of the user's, but for the making, reads a size of a tensor."""
    own = [cls for cls in kind.__mro__ if issubclass(cls, nn.Module) and not cls.__module__.startswith("torch.nn")]
    codes = [
        value.__code__
        for cls in own
        for name, value in vars(cls).items()
        if name != "__init__" and hasattr(value, "__code__")
    ]
    return any({"shape", "size", "numel", "nelement"} & set(code.co_names) for code in codes)


def _with_way_out(reason: str, slot: Slot) -> str:
    own = not type(slot.module).__module__.startswith("torch.nn.")
    if not own or "tlsc.register" in reason or "cannot be traced" in reason:
        return reason
    return f"{reason}; tlsc.register({type(slot.module).__name__}, factory) can give it one"


def _no_form(slot: Slot, run: Run) -> str:
    operation = run.reducing[slot]
    what = " (attention of a form that is not known)" if operation in ATTENDING else ""
    return (
        f"its {operation} over all positions{what} has no local form here; tlsc.register("
        f"{type(slot.module).__name__}, factory) can give it one"
    )


def _site(node: fx.Node, made: Trace) -> OwnedSite:
    size, normalises = node.meta["kind"].space.size, "norm" in node.meta
    reduction = node.meta.get("reduction")
    sourced = normalises or (reduction is not None and _is_of_moments(reduction))
    if node.op == "call_module":
        child = str(node.target)
        return OwnedSite(child, type(made.root.get_submodule(child)).__name__, size, normalises, sourced)
    if "attends" in node.meta:
        return OwnedSite(None, "transposed_attention", size)
    name = name_of(node, made.root) if reduction is None else reduction.operation
    return OwnedSite(None, name, size, normalises, sourced)


def _is_of_moments(reduction: Reduction) -> bool:
    if reduction.operation == "norm":
        return 0 < abs(reduction.order) < math.inf
    return reduction.operation in ("mean", "sum") or reduction.operation.startswith(("var", "std"))


def _sizes(call: Any) -> Any:
    args, kwargs = call
    return [tuple(value.shape) if hasattr(value, "shape") else value for value in (*args, *kwargs.values())]


def _path_from(slot: Slot, inner: Slot) -> str | None:
    """The path of ``inner`` as seen from ``slot``; None if it is not below."""
    start = slot.paths[0]
    for path in inner.paths:
        if not start:
            return path
        if path.startswith(f"{start}."):
            return path[len(start) + 1 :]
    return None

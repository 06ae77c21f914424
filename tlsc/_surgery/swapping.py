"""Local modules put in place of the originals, and back: all of them or none, whatever interrupts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace as replaced
from typing import Any

import torch
from torch import Tensor, nn

from .._models.slots import HOOKS, ORIGINAL, Slot, slots_of
from .._plan import Plan, Site
from .._sites.kind import Kind
from .._sources.passes import PASSES, Passes, install, remove
from ..errors import ArgumentTypeError, ArgumentValueError, TLSCError

__all__ = [
    "MADE_FOR",
    "OWN_SITES",
    "build",
    "dressed",
    "note_plan",
    "original_of",
    "plan_of",
    "replace",
    "reverted",
]

PLAN = "_tlsc_plan"  # the plan that a model was converted by
OWN_SITES = "_tlsc_own_sites"  # of a rewritten module: the child that takes each statistic, or None
MADE_FOR = "_tlsc_made_for"  # base_size and stride of the conversion
EXCHANGED = "_tlsc_exchanged"  # marks a local module that is the very object the caller converted


# ------------------------------------------------------------------------------------ the plan of a converted model


def plan_of(model: nn.Module) -> Plan:
    """The plan that a model was converted by.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is no module, or was not converted.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    noted = model.__dict__.get(PLAN)
    found = noted if isinstance(noted, Plan) else _plan_of_parts(model)
    return replaced(found, sites=tuple(_as_it_is(site, model) for site in found))


def _plan_of_parts(model: nn.Module) -> Plan:
    """The plan of what was converted inside a model: before a wrapper was put around it, or part by part."""
    parts: dict[str, Plan] = {
        path: part.__dict__[PLAN] for path, part in model.named_modules() if PLAN in part.__dict__
    }
    outer = {path: plan for path, plan in parts.items() if not any(path.startswith(f"{up}.") for up in parts)}
    name, plans = type(model).__name__, list(outer.values())
    if not plans and any(ORIGINAL in part.__dict__ for part in model.modules()):
        raise ArgumentValueError(
            f"{name} was converted as a part of a larger model, or put around parts of one: ask that for its plan"
        )
    if not plans:
        raise ArgumentValueError(f"{name} is not converted: use tlsc.convert(model, base_size) first")
    if len({(plan.base_size, plan.stride) for plan in plans}) > 1:
        raise ArgumentValueError(
            f"parts of {name} were converted differently ({', '.join(outer)}): ask each of them for its plan"
        )
    sites = tuple(_below(site, path) for path, plan in outer.items() for site in plan)
    return replaced(plans[0], sites=sites, calibration=plans[0].calibration if len(plans) == 1 else None)


def _below(site: Site, prefix: str) -> Site:
    """A site as it is called from further up."""

    def longer(path: str) -> str:
        return f"{prefix}.{path}" if path else prefix

    owner = None if site.owner is None else longer(site.owner)
    return replaced(site, path=longer(site.path), aliases=tuple(map(longer, site.aliases)), owner=owner)


def _as_it_is(site: Site, model: nn.Module) -> Site:
    """A site, which may have been reverted or replaced since."""
    if not site.converted:
        return site
    try:
        local = model.get_submodule(site.path if site.owner is None else site.owner)
    except AttributeError:
        return replaced(site, action="left global", window=None, reason="no longer there", owner=None)
    if ORIGINAL in local.__dict__:
        return site
    return replaced(site, action="left global", window=None, reason="reverted or replaced since", owner=None)


def note_plan(model: nn.Module, made: Plan) -> None:
    """Remember the plan of a converted model, in none of its containers."""
    model.__dict__[PLAN] = made


# --------------------------------------------------------------------------------------------- making local modules


def build(kind: Kind, original: nn.Module, path: str, window: tuple[int, int], stride: int) -> nn.Module:
    """The local module of ``original``, by its kind.

    Raises:
        TLSCError: the factory of the kind failed, or changed the ``state_dict``.
    """
    path = path or "(the model)"
    assert kind.build is not None
    try:
        local = kind.build(original, window, stride)
    except TLSCError:
        raise
    except Exception as error:
        raise TLSCError(
            f"{path}: the factory registered for {kind.operation} failed on window {window}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(local, nn.Module):
        raise TLSCError(f"{path}: the factory registered for {kind.operation} returned {local!r}, not a module")
    if local is original:
        raise TLSCError(f"{path}: the factory registered for {kind.operation} returned the module it was given")
    before, after = original.state_dict(keep_vars=True), local.state_dict(keep_vars=True)
    if list(before) != list(after) or not all(_same(before[key], after[key]) for key in before):
        raise TLSCError(
            f"{path}: the factory registered for {kind.operation} changed the state_dict, "
            f"from {_described(before)} to {_described(after)}; pass the parameters on under their names"
        )
    return dressed(local, original)


def dressed(local: nn.Module, original: nn.Module) -> nn.Module:
    """``local`` with the hooks and the flag of ``original``, which it remembers."""
    for name in (*HOOKS, "_is_full_backward_hook"):
        if name in original.__dict__:
            local.__dict__[name] = original.__dict__[name]
    local.__dict__[ORIGINAL] = original
    local.__dict__["__prepare_scriptable__"] = _not_scriptable  # asked by torch.jit.script
    local.__dict__["__module__"] = "torch.nn"  # of which torch.fx takes every module as it is, as one operation
    local.__dict__["_compiled_call_impl"] = None
    return local


def _compile_as(original: nn.Module, local: nn.Module) -> None:
    """Compile a local module in place as its original was, which keeps its own compiled call.

    What ``Module.compile`` was given is known to PyTorch's wrapper only; where that cannot be found, the local
    module runs as it is.
    """
    compiled = original.__dict__.get("_compiled_call_impl")
    if compiled is None or local.__dict__.get("_compiled_call_impl") is not None:
        return
    if original._modules:  # of single layers a kernel is called
        cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
        context = cells["self"].cell_contents if "self" in cells else None
        if callable(context):
            local.__dict__["_compiled_call_impl"] = context(local._call_impl)


def _not_scriptable() -> nn.Module:
    raise TLSCError(
        "torch.jit.script does not take a converted model, whose code is made while it runs: use torch.jit.trace, "
        "which holds at every size, or torch.export"
    )


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before is after or (
            before.shape == after.shape and before.dtype == after.dtype and torch.equal(before, after)
        )
    return bool(before is after or before == after)


def _described(state: dict[str, Any]) -> str:
    return str({key: tuple(value.shape) if isinstance(value, Tensor) else value for key, value in state.items()})


# ---------------------------------------------------------------------------------------------------- in and out

Local = Callable[[list[Slot]], list[tuple[Slot, nn.Module]]]


def original_of(module: nn.Module) -> nn.Module:
    """The module that was converted, with what its local module was given since; the module itself if none was."""
    original = module.__dict__.get(ORIGINAL)
    if not isinstance(original, nn.Module):
        return module
    _synchronise(original, module)
    return original


def _synchronise(original: nn.Module, local: nn.Module) -> None:
    """Give the original the tensors of its local module, if a factory made that with containers of its own."""
    pairs: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        (original._parameters, local._parameters),
        (original._buffers, local._buffers),
    )
    for ours, theirs in pairs:
        if ours is not theirs:
            ours.update((name, theirs[name]) for name in ours if name in theirs)


class _Journal:
    """Changes that are made together: what interrupts them has them all taken back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def put(self, slot: Slot, module: nn.Module) -> None:
        assert slot.parent is not None
        children, before = slot.parent._modules, slot.parent._modules[slot.name]

        def undo() -> None:
            children[slot.name] = before

        self._undo.append(undo)
        slot.put(module)

    def attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Set what is no parameter, buffer or child."""
        self._keep(module, name)
        module.__dict__[name] = value

    def without(self, module: nn.Module, name: str) -> None:
        self._keep(module, name)
        module.__dict__.pop(name, None)

    def _keep(self, module: nn.Module, name: str) -> None:
        held, had, before = module.__dict__, name in module.__dict__, module.__dict__.get(name)

        def undo() -> None:
            if had:
                held[name] = before
            else:
                held.pop(name, None)

        self._undo.append(undo)

    def passes(self, module: nn.Module, passes: Passes) -> None:
        """Let each call of a model be one of ``passes``."""
        self.attribute(module, PASSES, passes)
        self._undo.append(lambda: remove(module, passes))
        install(module, passes)

    def without_passes(self, module: nn.Module) -> None:
        passes = module.__dict__[PASSES]
        self.without(module, PASSES)
        self._undo.append(lambda: install(module, passes))
        remove(module, passes)

    def exchange(self, one: nn.Module, other: nn.Module) -> None:
        """Make each of two modules what the other is."""
        classes, states = (one.__class__, other.__class__), (one.__dict__, other.__dict__)

        def become(first: int) -> None:
            for module, at in ((one, first), (other, 1 - first)):
                object.__setattr__(module, "__class__", classes[at])
                object.__setattr__(module, "__dict__", states[at])

        self._undo.append(lambda: become(0))
        try:
            object.__setattr__(one, "__class__", classes[1])
        except TypeError as error:
            raise TLSCError(
                f"{classes[0].__name__} cannot become {classes[1].__name__} in place ({error}); "
                "put it into a Sequential and convert that"
            ) from error
        become(1)

    def back(self) -> None:
        while self._undo:
            self._undo[-1]()
            self._undo.pop()


@contextmanager
def _together() -> Iterator[_Journal]:
    journal = _Journal()
    try:
        yield journal
    except BaseException:  # an interrupt, too
        journal.back()
        raise


def replace(model: nn.Module, made: Plan | None, local: Local, passes: Passes | None = None) -> bool:
    """Put the originals back, then local modules in their places, and note the plan: all of it or nothing.

    Args:
        model: the model, converted or not.
        made: the plan; None for a model that is not converted after this.
        local: gives, for the places of the original model, those that change with what is to be there.
        passes: by which the local modules take their statistics; None where each takes its window's.

    Returns:
        Whether anything is local now.
    """
    with _together() as journal:
        for module in list(model.modules()):
            if PLAN in module.__dict__:
                journal.without(module, PLAN)
            if PASSES in module.__dict__:
                journal.without_passes(module)
        _take_out(model, journal)
        new = local(slots_of(model)) if made is not None else []
        for slot, module in sorted(new, key=lambda pair: not _is_in_place(pair[0])):
            assert made is not None
            if EXCHANGED in slot.module.__dict__:
                continue  # in another place of it
            module.__dict__[MADE_FOR] = made.base_size, made.stride
            _swap(slot, module, journal)
        if new:
            journal.attribute(model, PLAN, made)
            if passes is not None:
                journal.passes(model, passes)
    return bool(new)


def _is_in_place(slot: Slot) -> bool:
    """Whether somebody else holds the very object: the caller, or what ``torch.compile`` made of it."""
    return slot.parent is None or (slot.name == "_orig_mod" and hasattr(slot.parent, "dynamo_ctx"))


def _swap(slot: Slot, local: nn.Module, journal: _Journal) -> None:
    if not _is_in_place(slot) and EXCHANGED not in local.__dict__:
        local.training = local.__dict__[ORIGINAL].training
        _compile_as(local.__dict__[ORIGINAL], local)
        journal.put(slot, local)
    else:
        # Others hold this very object: it becomes local, and the other one keeps the original.
        local.training = slot.module.training
        module = slot.module
        journal.exchange(module, local)
        _compile_as(local, module)
        journal.attribute(module, ORIGINAL, local)
        journal.attribute(module, EXCHANGED, True)


def _take_out(model: nn.Module, journal: _Journal) -> list[tuple[Slot, nn.Module]]:
    """Put the originals back; return what was in their place."""
    out = []
    for slot in slots_of(model):
        original = slot.module.__dict__.get(ORIGINAL)
        if original is None:
            continue
        original.training = slot.module.training
        _synchronise(original, slot.module)
        if slot.parent is not None and EXCHANGED not in slot.module.__dict__:
            out.append((slot, slot.module))
            journal.put(slot, original)
        else:
            journal.exchange(slot.module, original)
            out.append((slot, original))
    return out


@contextmanager
def reverted(model: nn.Module) -> Iterator[None]:
    """The model as it was before any conversion; afterwards what was taken out is back."""
    noted = model.__dict__.get(PLAN) if isinstance(model, nn.Module) else None
    out: list[tuple[Slot, nn.Module]] = []
    if isinstance(model, nn.Module):
        with _together() as journal:
            journal.without(model, PLAN)
            out = _take_out(model, journal)
    try:
        yield
    finally:
        with _together() as journal:
            for slot, local in out:
                _swap(slot, local, journal)
        if noted is not None:
            note_plan(model, noted)

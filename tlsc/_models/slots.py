"""The places of a module tree, and the hooks of its modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

__all__ = ["HOOKS", "ORIGINAL", "Slot", "is_hooked", "slots_of", "unhooked"]

ORIGINAL = "_tlsc_original"  # where a local module keeps the module that it stands for

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_LISTENING = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(eq=False)
class Slot:
    """A place in the module tree: child ``name`` of ``parent``, or the model itself where parent is None."""

    parent: nn.Module | None
    name: str
    module: nn.Module
    paths: list[str] = field(default_factory=list)

    def put(self, module: nn.Module) -> None:
        """Put ``module`` in this place; not for the model itself."""
        assert self.parent is not None
        self.parent._modules[self.name] = module


def slots_of(model: nn.Module) -> list[Slot]:
    """Every place in the module tree once, with all the paths that lead to it."""
    found: dict[tuple[int, str], Slot] = {(0, ""): Slot(None, "", model, [""])}

    def walk(parent: nn.Module, prefix: str, above: tuple[int, ...]) -> None:
        for name, module in parent._modules.items():
            if module is None or id(module) in above:
                continue
            slot = found.setdefault((id(parent), name), Slot(parent, name, module))
            slot.paths.append(prefix + name)
            walk(module, f"{prefix}{name}.", (*above, id(module)))

    walk(model, "", (id(model),))
    return list(found.values())


@contextmanager
def unhooked(module: nn.Module) -> Iterator[nn.Module]:
    """A module, and all in it, without hooks: for one that nobody else uses."""
    states = [part.__dict__ for part in module.modules() if is_hooked(part)]
    hooks = [{name: state[name] for name in HOOKS if name in state} for state in states]
    for state, own in zip(states, hooks, strict=True):
        state.update({name: OrderedDict() for name in own})
    try:
        yield module
    finally:
        for state, own in zip(states, hooks, strict=True):
            state.update(own)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of ``module``."""
    hooks = (hook for name in _LISTENING for hook in (module.__dict__.get(name) or {}).values())
    return any(not getattr(getattr(hook, "__self__", None), "of_tlsc", False) for hook in hooks)

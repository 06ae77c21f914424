"""A model's structure, copied to be run: whatever its code then keeps or changes, the caller's model never sees it.

Modules and the containers among their attributes are copied, tensors are what the caller of :func:`structure_of`
makes of them, and everything else is shared. The copy is in evaluation mode, without hooks, and does not compile.
Other threads may run the caller's model meanwhile.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .slots import HOOKS

__all__ = ["Structure", "cloned", "structure_of"]


def cloned(tensor: Tensor) -> Tensor:
    """A tensor of the same values in memory of its own, a parameter if it was one."""
    new = tensor.detach().clone()
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


class Structure:
    """The copy of a model, ``model``; :meth:`of` finds the copy of one of its modules."""

    def __init__(self, copier: _Copier, model: nn.Module) -> None:
        self._copier = copier
        self.model: nn.Module = copier.module(model)

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a module of the model."""
        return self._copier.module(module)

    def source(self, module: nn.Module) -> nn.Module:
        """The module of the model that a module of the copy is of."""
        return self._copier.sources.get(id(module), module)

    def tensors(self) -> list[Tensor]:
        """The tensors that the copy holds."""
        return [made for made in self._copier.made() if isinstance(made, Tensor)]


def structure_of(
    model: nn.Module,
    tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    original: Callable[[nn.Module], nn.Module] = lambda module: module,
    to_run: bool = True,
) -> Structure:
    """Copy a model's structure.

    Args:
        model: the model, which is only read.
        tensor: what each tensor becomes, called once for each; by default the tensor is shared.
        original: the module to copy in place of a module; by default this module.
        to_run: in evaluation mode, without hooks, and not compiled; False: all that as it is.
    """
    return Structure(_Copier(tensor, original, to_run), model)


class _Copier:
    def __init__(
        self, tensor: Callable[[Tensor], Tensor], original: Callable[[nn.Module], nn.Module], to_run: bool
    ) -> None:
        self._tensor = tensor
        self._original = original
        self._to_run = to_run
        self.sources: dict[int, nn.Module] = {}
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # whose identity is a key above

    def made(self) -> list[Any]:
        return list(self._made.values())

    def module(self, module: nn.Module) -> nn.Module:
        if id(module) in self._made:
            made: nn.Module = self._made[id(module)]
            return made
        source = self._original(module)
        if isinstance(source, torch.jit.ScriptModule):
            self._note(module, source)
            return source
        new: nn.Module = object.__new__(type(source))
        self._note(module, new)
        self._note(source, new)
        self.sources[id(new)] = source
        new.__dict__.update({name: self.value(value) for name, value in list(source.__dict__.items())})
        if not self._to_run:
            return new
        new.__dict__.update({name: OrderedDict() for name in HOOKS if name in new.__dict__})
        new.__dict__.update(training=False, _compiled_call_impl=None)
        if "_orig_mod" in new._modules:  # made by torch.compile: what it compiled runs instead
            new.__dict__["forward"] = functools.partial(_call_compiled, new)
        return new

    def value(self, value: Any) -> Any:
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, Tensor):
            return self._note(value, self._tensor(value))
        if isinstance(value, nn.Module):
            return self.module(value)
        if type(value) in _COPIERS:
            return _COPIERS[type(value)](self, value)
        return value

    def _note(self, value: Any, new: Any) -> Any:
        self._made[id(value)] = new
        self._kept.append(value)
        return new

    def _mapping(self, value: Any) -> Any:
        new = self._note(value, value.copy())
        for key, inner in list(value.items()):
            new[key] = self.value(inner)
        return new

    def _sequence(self, value: Any) -> Any:
        new = self._note(value, value.copy())
        new.clear()
        new.extend(self.value(inner) for inner in list(value))
        return new

    def _set(self, value: set[Any]) -> Any:
        return self._note(value, {self.value(inner) for inner in list(value)})

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        inner = tuple(map(self.value, value))
        # One without anything to copy stays the same object, as in ``copy.deepcopy``.
        same = all(new is old for new, old in zip(inner, value, strict=True))
        return self._note(value, value if same else inner)

    def _method(self, value: types.MethodType) -> Any:
        return types.MethodType(value.__func__, self.value(value.__self__))

    def _partial(self, value: functools.partial[Any]) -> Any:
        keywords = {name: self.value(inner) for name, inner in value.keywords.items()}
        return functools.partial(self.value(value.func), *map(self.value, value.args), **keywords)


_COPIERS: dict[type, Callable[[_Copier, Any], Any]] = {
    dict: _Copier._mapping,
    OrderedDict: _Copier._mapping,
    defaultdict: _Copier._mapping,
    list: _Copier._sequence,
    deque: _Copier._sequence,
    set: _Copier._set,
    tuple: _Copier._tuple,
    types.MethodType: _Copier._method,
    functools.partial: _Copier._partial,
}


def _call_compiled(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.get_submodule("_orig_mod")(*args, **kwargs)  # as it is now: another may have taken its place

"""Tensors without values, and how none of them outlives the run that made it.

A model may put what it computes into a cache outside its modules: a dictionary of its Python module, a
``functools.lru_cache``, an object. A tensor without values that stays there is taken for a real one at the next
call, which then fails. So every one that is made is noted, and those that live on are taken out of their holders.
Only holders of these very tensors are touched.
"""

from __future__ import annotations

import functools
import gc
import logging
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from ..errors import TLSCWarning

__all__ = ["FakeMode", "fake_of", "make_fake", "no_fakes_left", "silent_fakes"]

_MADE: ContextVar[list[weakref.ref[FakeTensor]] | None] = ContextVar("made", default=None)
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


class FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors, each of them noted for :func:`no_fakes_left`."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        made = _MADE.get()
        if made is not None:
            made += [weakref.ref(leaf) for leaf in tree_leaves(out) if type(leaf) is FakeTensor]
        return out


def fake_of(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A tensor without values in place of a real one. It asks for no gradient: autocast would keep it in a cache.

    PyTorch's own conversion exchanges ``warnings.showwarning`` for the process while it looks at a tensor, so that
    it is used for unusual tensors only.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        fake: Tensor = mode.from_tensor(tensor.detach())
    else:
        # As the mode makes them, but not by way of its dispatch, which takes ten times as long.
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        fake = FakeTensor(mode, meta, tensor.device)
        made = _MADE.get()
        if made is not None:
            made.append(weakref.ref(fake))
    if isinstance(tensor, nn.Parameter):
        fake._is_param = True  # how nn.Parameter marks what is no plain tensor
    fake._tlsc_real = tensor  # type: ignore[attr-defined]  # for code that asks for a number in it
    return fake


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Give every module of a copy fake tensors."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for tensors in places:
            for name, value in tensors.items():
                if isinstance(value, Tensor):
                    tensors[name] = fake_of(mode, value)


# ------------------------------------------------------------------------------------------------- silence


@contextmanager
def silent_fakes() -> Iterator[None]:
    """Keep PyTorch from logging the traceback of an operation that fails on fake tensors, in this context only."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def _is_heard(record: logging.LogRecord) -> bool:
    return not _SILENT.get()


# There from the beginning, as other threads would see a filter come and go; elsewhere it does nothing.
logging.getLogger("torch._subclasses.fake_tensor").addFilter(_is_heard)


# ---------------------------------------------------------------------------------------------- taking back


@contextmanager
def no_fakes_left() -> Iterator[None]:
    """Afterwards, take back the fake tensors that models put into caches of their own: ``functools.lru_cache``,
    dictionaries, lists and objects outside the modules. There they would be taken for real ones later.

    Warns:
        TLSCWarning: one is kept where it cannot be taken back.
    """
    made: list[weakref.ref[FakeTensor]] = []
    token = _MADE.set(made)
    try:
        yield
    except BaseException:  # an interrupt, too
        _MADE.reset(token)
        _take_back(made)
        raise
    _MADE.reset(token)
    if not _take_back(made):
        warnings.warn(
            "the model keeps tensors without values, made while it was planned, where they cannot be taken back; "
            "clear its caches before running it",
            TLSCWarning,
            stacklevel=2,
        )


def _living(made: list[weakref.ref[FakeTensor]]) -> list[FakeTensor]:
    return [fake for reference in made if (fake := reference()) is not None]


def _take_back(made: list[weakref.ref[FakeTensor]]) -> bool:
    """Whether none of the fake tensors lives on."""
    if not _living(made):
        return True
    for generation in (1, 2):  # those that only cycles keep: young ones, without a search of the whole heap
        gc.collect(generation)
        if not (fakes := _living(made)):
            return True
    ours = {id(fake) for fake in fakes}
    for cache in [found for found in gc.get_objects() if type(found) is functools._lru_cache_wrapper]:
        if _holds(cache, ours):
            cache.cache_clear()
    for number in range(len(fakes)):
        for holder in gc.get_referrers(fakes[number]):
            if holder is not fakes:
                _let_go(holder, fakes[number])
    fakes.clear()
    return not _living(made)


def _holds(cache: Any, ours: set[int], depth: int = 4) -> bool:
    """Whether a cache holds one of our tensors, as a result or in one."""
    seen: set[int] = set()
    held = [cache]
    for _ in range(depth):
        held = [inner for inner in gc.get_referents(*held) if id(inner) not in seen and not isinstance(inner, type)]
        seen.update(map(id, held))
        if any(id(inner) in ours for inner in held):
            return True
        held = [inner for inner in held if not callable(inner) and not hasattr(inner, "__spec__")]
        held = [inner for inner in held if not (isinstance(inner, dict) and "__builtins__" in inner)]
    return False


def _let_go(holder: Any, fake: FakeTensor) -> None:
    if type(holder) in (dict, OrderedDict, defaultdict):
        for key in [key for key, value in holder.items() if value is fake]:
            if "__spec__" in holder:  # the variables of a Python module
                holder[key] = None
            else:
                del holder[key]
    elif type(holder) in (list, deque):
        kept = [value for value in holder if value is not fake]
        holder.clear()
        holder.extend(kept)
    elif isinstance(getattr(holder, "__dict__", None), dict):
        for key in [key for key, value in vars(holder).items() if value is fake]:
            object.__setattr__(holder, key, None)

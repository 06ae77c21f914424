"""Running somebody's code without a trace in the process: no flag, filter or patch of the process is changed.

What a run may draw from the generators of random numbers is drawn from generators of its own where that can be.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["OwnNumbers", "in_turn", "interruptible", "python_numbers_kept"]


class OwnNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that draw random numbers draw them from states of this mode, which begin with ``seed``.

    PyTorch's generators belong to the process. The state of one is exchanged for the length of the single
    operation that draws, and nothing at all happens in a model that draws none.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.states: dict[torch.device, Tensor] = {}

    def again(self) -> None:
        """Draw the same numbers from here on as from the beginning."""
        self.states.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        generator = _generator(args, kwargs)
        if generator is None:
            return func(*args, **kwargs)
        theirs = generator.get_state()
        try:
            if generator.device in self.states:
                generator.set_state(self.states[generator.device])
            else:
                generator.manual_seed(self.seed)
            return func(*args, **kwargs)
        finally:
            self.states[generator.device] = generator.get_state()
            generator.set_state(theirs)


def _generator(args: Any, kwargs: Any) -> torch.Generator | None:
    """The generator of the process that an operation with these arguments draws from, if there is one."""
    device = kwargs.get("device")
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            device = leaf.device
            break
    device = torch.device(device if device is not None else torch.get_default_device())
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        at = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[at]
    return None


_turn = threading.RLock()


def _forget() -> None:
    """After a fork: who held it lives in the parent."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def in_turn() -> Iterator[None]:
    """One thread at a time: PyTorch's fake tensors share a flag and a cache among all threads of a process.

    Conversions hold the interpreter's lock nearly all of their time, so that turns cost nothing.
    """
    with _turn:
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """What an interrupt leaves of modes and numbers of the process is put back.

    An interrupt may hit the very lines in which another block puts something back: a mode that is being left, the
    state of a generator. Around all of these, so that little is left for the next interrupt to hit.
    """
    modes, functions = _modes(), torch._C._len_torch_function_stack()
    numbers, grad = torch.get_rng_state(), torch.is_grad_enabled()
    lifted = torch._C._only_lift_cpu_tensors()
    try:
        yield
    except Exception:
        raise
    except BaseException:
        while _modes() > modes:
            _leave(_modes())
        while torch._C._len_torch_function_stack() > functions:
            torch._C._pop_torch_function_stack()
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch._C._set_grad_enabled(grad)
        if not torch.equal(torch.get_rng_state(), numbers):
            torch.set_rng_state(numbers)
        raise


def _modes() -> int:
    return int(torch._C._len_torch_dispatch_stack())


def _leave(depth: int) -> None:
    """Leave the mode entered last, of whose own leaving something may be done already."""
    mode: Any = torch.utils._python_dispatch._get_current_dispatch_mode()
    with suppress(IndexError):
        mode.__exit__(None, None, None)
    if _modes() == depth:
        torch._C._pop_torch_dispatch_stack(None)


@contextmanager
def python_numbers_kept() -> Iterator[None]:
    """Afterwards, Python's and NumPy's global generators are as before, if the code in here drew from them; and
    PyTorch's own one for the CPU, if it was seeded.

    Who drew cannot be told: a thread that draws from them at the same moment may be given the same numbers again.
    Putting them back only where no other thread lives would be worse: idle workers of a pool live on, and then a
    model that draws would move the caller's numbers.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state, seed = torch.get_rng_state(), torch.initial_seed()
    try:
        yield
    finally:
        if torch.initial_seed() != seed or (threading.active_count() == 1 and _moved(torch_state)):
            torch.set_rng_state(torch_state)
        if random.getstate() != python_state:
            random.setstate(python_state)
        if not _same(np.random.get_state(), numpy_state):  # noqa: NPY002
            np.random.set_state(numpy_state)  # noqa: NPY002


def _moved(state: Tensor) -> bool:
    return not torch.equal(torch.get_rng_state(), state)


def _same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True)
    )

"""Running somebody's code without a trace in the process: no flag, filter or patch of the process is changed.

What a run may draw from the generators of random numbers is drawn from generators of its own where that can be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["OwnNumbers", "python_numbers_kept"]


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


@contextmanager
def python_numbers_kept() -> Iterator[None]:
    """Afterwards, Python's and NumPy's global generators are as before, if the code in here drew from them.

    Who drew cannot be told: a thread that draws from them at the same moment may be given the same numbers again.
    Putting them back only where no other thread lives would be worse: idle workers of a pool live on, and then a
    model that draws would move the caller's numbers.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        if random.getstate() != python_state:
            random.setstate(python_state)
        if not _same(np.random.get_state(), numpy_state):  # noqa: NPY002
            np.random.set_state(numpy_state)  # noqa: NPY002


def _same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True)
    )

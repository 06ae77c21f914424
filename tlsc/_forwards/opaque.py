"""Operations that are recorded as a whole, as nothing inside them can be: autograd functions and scripted functions.

Their own gradient, and whatever else they do, stays theirs. Whether they treat each position by itself is found by
experiment, as no rule can know it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["Whole", "is_whole"]


class Whole:
    """A callable that is one operation of a traced forward."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.call: Callable[..., Any] = function.apply if _is_autograd(function) else function
        self.__name__ = f"whole_{getattr(function, '__name__', 'function')}"
        self.__qualname__ = self.__name__
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Whole, (self.function,)

    def __deepcopy__(self, memo: Any) -> Whole:
        return self

    def keeps_positions(self, args: Any, kwargs: Any, rank: int, first: int) -> bool:
        """Whether a change of some positions changes the result at these positions only.

        ``args`` and ``kwargs`` hold tensors of the right shapes, whose values do not count; of those with ``rank``
        dimensions and more than one position, the dimensions from ``first`` on are positions.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = tuple(min(n, 6) if d >= first else n for d, n in enumerate(value.shape))
            if value.dim() < rank:
                shape = tuple(value.shape)
            made = torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 2
            return made.to(value.dtype)

        def changed(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() != rank:
                return value
            other = (torch.rand(value.shape, generator=generator, dtype=torch.float64) * 40 - 20).to(value.dtype)
            return torch.where(kept.expand(value.shape), value, other)

        with torch.no_grad():
            given = tree_map(drawn, (args, kwargs))
            largest = [x for x in _tensors(given) if x.dim() == rank]
            if not largest:
                return False
            shape = torch.broadcast_shapes(*(x.shape[first:] for x in largest))
            kept = torch.rand(shape, generator=generator) < 0.5
            before = self.call(*tree_map(_copied, given[0]), **tree_map(_copied, given[1]))
            twin = tree_map(changed, given)
            after = self.call(*twin[0], **twin[1])
            if not isinstance(before, Tensor) or tuple(before.shape[first:]) != tuple(shape):
                return False
            return bool(torch.equal(before[..., kept], after[..., kept]))


def is_whole(value: Any) -> bool:
    """Whether a value that code names is to be recorded as one operation."""
    return _is_autograd(value) or isinstance(value, torch.jit.ScriptFunction)


def _is_autograd(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.autograd.Function)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, value)
    return found

"""One operation of a run, and the same operation in a run on a larger image.

Which dimensions of a tensor hold positions is not guessed: they are those that grow when the image does. So it does
not matter by which views, foldings and windows a tensor came about. The 64 positions of a window of attention stay
64, while a row, a flattened map, or the windows folded into the batch get longer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

__all__ = ["LEAVING", "Change", "Operation", "Seen", "described"]

LEAVING = ("numpy", "tolist", "__array__", "__dlpack__")
"""Ways out of PyTorch; nobody knows what the code does with the values."""


@dataclass(frozen=True)
class Seen:
    """A tensor as an operation saw it.

    Attributes:
        shape: its shape.
        counts: whether its values depend on the image.
        integers: whether it is of whole numbers, which have no local form.
    """

    shape: tuple[int, ...]
    counts: bool
    integers: bool = False


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        name: as the table of rules has it: ``mean``, or ``torchvision::nms`` for one that is not PyTorch's own.
        args: by the names of its schema; a tensor is a :class:`Seen`.
        outputs: the tensors that came out.
        harmless: PyTorch itself says that it works element by element, or is a view.
        layer: the innermost layer of PyTorch that it was a part of.
        depth: how many operations that are no views lie between the image and it, one behind the other.
    """

    name: str
    args: dict[str, Any]
    outputs: tuple[Seen, ...]
    harmless: bool
    layer: nn.Module | None = None
    depth: int = 0

    def tensors(self) -> Iterator[tuple[Any, Seen]]:
        """The tensors among the arguments, with keys by which :meth:`Change.grown` finds them."""
        for name, value in self.args.items():
            if isinstance(value, Seen):
                yield name, value
            elif isinstance(value, list):
                yield from (((name, at), inner) for at, inner in enumerate(value) if isinstance(inner, Seen))

    def tensor(self, key: Any) -> Seen | None:
        """The tensor that is an argument, if there is one."""
        value = self.args.get(key[0], [])[key[1]] if isinstance(key, tuple) else self.args.get(key)
        return value if isinstance(value, Seen) else None


@dataclass(frozen=True)
class Change:
    """An operation in a run on a small image, and the same one in a run on a large image.

    ``large`` None: there is none to compare with. Dimensions that are as long as the ``maps`` of the small run then
    count as positions.
    """

    small: Operation
    large: Operation | None
    maps: Collection[tuple[int, int]] = ()

    def grown(self, key: Any = "self") -> frozenset[int]:
        """The dimensions of a tensor that hold positions; none of one that does not depend on the image."""
        seen = self.small.tensor(key)
        if seen is None or not seen.counts:
            return frozenset()
        return self.lengths(key)

    def lengths(self, key: Any = "self") -> frozenset[int]:
        """The same, of any tensor."""
        seen = self.small.tensor(key)
        return frozenset() if seen is None else self._between(seen, self.large.tensor(key) if self.large else None)

    def grown_output(self, at: int = 0) -> frozenset[int]:
        """The dimensions of an output that hold positions."""
        if at >= len(self.small.outputs):
            return frozenset()
        other = self.large.outputs[at] if self.large is not None and at < len(self.large.outputs) else None
        return self._between(self.small.outputs[at], other)

    def differs(self, name: str) -> bool:
        """Whether an argument that is no tensor is another one on the large image."""
        return self.large is not None and self.small.args.get(name) != self.large.args.get(name)

    def anything(self) -> bool:
        """Whether any tensor that goes in has positions."""
        return any(self.grown(key) for key, _ in self.small.tensors())

    def _between(self, small: Seen, large: Seen | None) -> frozenset[int]:
        if self.large is None:
            return _as_long_as(small.shape, self.maps)
        if large is None or len(large.shape) != len(small.shape):
            return frozenset(range(len(small.shape)))
        pairs = zip(small.shape, large.shape, strict=True)
        return frozenset(at for at, (before, after) in enumerate(pairs) if before != after)


def _as_long_as(shape: tuple[int, ...], maps: Collection[tuple[int, int]]) -> frozenset[int]:
    """The dimensions that are as long as a map has rows and columns, as neighbours, or positions, as one."""
    sizes = {size for size in maps if size[0] * size[1] > 1}
    found = set()
    for at, pair in reversed(list(enumerate(pairwise(shape)))):
        if pair in sizes and at + 1 not in found:
            found |= {at, at + 1}
    areas = {height * width for height, width in sizes}
    if not found:
        found |= {at for at, length in enumerate(shape) if at and length in areas}
    return frozenset(found)


def described(value: Any, seen: Any) -> Any:
    """An argument as it is kept: tensors by ``seen``, lists and numbers as they are, nothing that holds memory."""
    if isinstance(value, Tensor):
        return seen(value)
    if isinstance(value, (list, tuple)):
        return [described(inner, seen) for inner in value]
    return value if isinstance(value, (int, float, bool, str, complex)) or value is None else str(value)

"""What a recorded value is to the positions of a map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

__all__ = [
    "Cannot",
    "Gram",
    "Map",
    "Number",
    "Opaque",
    "Partial",
    "Reduction",
    "Space",
    "Statistic",
    "Weights",
]


class Cannot(Exception):
    """The module's statistics cannot be made local; the message is the reason shown in the plan.

    ``escapes``: a statistic leaves the module, so that the module around it may know what becomes of it.
    ``line``: of the code that it is about, if it is raised elsewhere.
    """

    def __init__(self, reason: str, *, escapes: bool = False, line: str = "") -> None:
        super().__init__(reason)
        self.escapes, self.line = escapes, line


@dataclass(eq=False)
class Space:
    """The positions of one map: its size in the traced run, and where to read its size at run time.

    ``of_base``: its size at ``base_size``, where another was traced.
    """

    size: tuple[int, int]
    node: fx.Node
    row: int = 2  # the dimension of ``node`` that is the height; the width is the next
    of_base: tuple[int, int] | None = None

    @property
    def window(self) -> tuple[int, int]:
        """The window of its statistics."""
        return self.of_base or self.size


@dataclass(frozen=True)
class Map:
    """``mixed``: a statistic of the same module has entered it position by position."""

    labels: str
    space: Space
    mixed: bool = False


@dataclass(frozen=True)
class Statistic:
    """One value per image and, after conversion, per window; its first dimension is the batch."""

    space: Space


@dataclass(frozen=True)
class Partial:
    """A map reduced over one of its two spatial dimensions, on the way to a statistic."""

    operation: str
    base: fx.Node
    dims: tuple[int, ...]
    keepdim: bool
    labels: str


@dataclass(frozen=True)
class Weights:
    """A softmax over the positions of ``logits``, which are laid out as it is; ``weighted``: the map that has been
    multiplied by it, and the logits, broadcast against each other."""

    labels: str
    space: Space
    logits: fx.Node
    weighted: tuple[fx.Node, fx.Node] | None = None


@dataclass(frozen=True)
class Gram:
    """Products ``q kᵀ`` of channels, summed over positions, of vectors of unit length over them; on the way to an
    attention between channels. ``q``, ``k``: before they were given unit length, positions last. ``scale``: the
    constant by which they have been multiplied. ``soft``: the softmax has been taken."""

    q: fx.Node
    k: fx.Node
    scale: fx.Node | float | None = None
    soft: bool = False


@dataclass(frozen=True)
class Number:
    """A number, or a tensor, computed from constants and the lengths of labelled dimensions; ``space`` if a spatial
    one is among them."""

    labels: frozenset[str]
    space: Space | None = None


@dataclass(frozen=True)
class Opaque:
    """A value computed from maps in a way that is not understood."""


@dataclass(frozen=True)
class Reduction:
    """How a statistic comes from a map (N, …): the operation over positions and its original result's shape."""

    operation: str  # mean, sum, amax, amin, var, std, norm
    base: fx.Node
    dims: tuple[int, ...]
    keepdim: bool
    order: float = 2.0
    correction: float = 0.0
    child: str | None = None  # path of the module that does it
    logits: fx.Node | None = None  # of the weights of a weighted mean

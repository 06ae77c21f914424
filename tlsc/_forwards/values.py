"""What the values of a traced forward are: how each relates to the positions of a map.

A value is a *map* (its dimensions labelled N batch, C channel, H height, W width, P both flattened, M channels
and positions flattened together, 1), a *statistic* (what a reduction over all positions of a map gave, and
everything computed from that and constants alone), a number computed from sizes, or a constant (None).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

__all__ = [
    "Facts",
    "Gram",
    "Kind",
    "Map",
    "Number",
    "Opaque",
    "Partial",
    "Reduction",
    "Space",
    "Statistic",
    "UnsupportedForward",
    "Weights",
    "facts",
]


class UnsupportedForward(Exception):
    """The module's statistics cannot be made local; the message is the reason shown in the plan.

    ``escapes``: a statistic leaves the module, so that the module around it may know what becomes of it.
    """

    escapes = False


@dataclass(eq=False)
class Space:
    """The positions of one map: its size in the traced run, and where to read its size at run time."""

    size: tuple[int, int]
    node: fx.Node
    row: int = 2  # the dimension of ``node`` that is the height; the width is the next


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
    """A number computed from the lengths of labelled dimensions; ``space`` if a spatial one is among them."""

    labels: frozenset[str]
    space: Space | None = None


@dataclass(frozen=True)
class Opaque:
    """A value computed from maps in a way that is not understood. ``positions``: how many the smallest of them has."""

    positions: int = 0


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


Kind = Map | Statistic | Partial | Weights | Gram | Number | Opaque | None


@dataclass(eq=False)
class Facts:
    """What is known of one node of a traced graph."""

    value: Any = None
    """What the operation gave on fake tensors."""
    kind: Any = None
    """A :data:`Kind`; None for a constant."""
    known: bool = False
    """Whether ``value`` has been set."""
    modes: Any = None
    """The gradient and autocast modes in which the operation ran, where they are not those of the call."""
    reduction: Reduction | None = None
    """Where a statistic begins: how it comes from its map."""
    norm: bool = False
    """Whether the operation normalises a map by statistics of its own."""
    attends: tuple[Gram, fx.Node] | None = None
    """The attention between channels that ends here, and the features that it mixes."""
    source: fx.Node | None = None
    """The map of which this is a view."""
    squared: fx.Node | None = None
    """The map whose squared distance from its own mean this is."""
    centred: fx.Node | None = None
    """The map from which its own mean has been taken off."""
    shifted: bool = False
    """Whether ``centred`` is so by a subtraction alone."""
    mean_of: fx.Node | None = None
    """The map whose mean this is."""
    sum_of: tuple[fx.Node, float] | None = None
    """The map, and the factor, of whose sum this is a multiple."""
    unit_of: tuple[fx.Node, fx.Node] | None = None
    """What was divided by its norm to give this, and the norm."""
    spreads: str | None = None
    """How a statistic is brought to the size of its map here."""


def facts(node: fx.Node) -> Facts:
    """The facts of a node, which its metadata hold."""
    found: Facts = node.meta.setdefault("facts", Facts())
    return found

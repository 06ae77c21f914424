"""A map that statistics have entered, as a sum of products ``a·x + b·y`` whose factors are constant in a window."""

from __future__ import annotations

from typing import Any

from torch import fx

from .names import name_of
from .values import Map, Number, Statistic

__all__ = ["note_centred", "source_of", "terms_of"]


def note_centred(node: fx.Node, name: str) -> None:
    """Note what a difference between a map and its own mean is."""
    if name != "sub" or len(node.args) != 2:
        return
    for one, other in (node.args, reversed(node.args)):
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            mean_of = other.meta.get("mean_of")
            if mean_of is not None and source_of(mean_of) is source_of(one):
                node.meta.update(centred=one, shifted=True)


def source_of(node: fx.Node) -> fx.Node:
    """The map that ``node`` is a view of."""
    while "source" in node.meta:
        node = node.meta["source"]
    return node


_Terms = list[tuple[Any, fx.Node | None]]


def terms_of(tracer: Any, node: fx.Node) -> _Terms | None:
    """A map as a sum of products of a statistic or constant and a map without statistics (None: one everywhere).

    None if it is not one.
    """
    kind = node.meta["kind"]
    if not isinstance(kind, Map):
        return [(tracer.proxy(node), None)] if isinstance(kind, (Statistic, Number)) else None
    if "spreads" in node.meta:
        source = next(n for n in node.all_input_nodes if isinstance(n.meta["kind"], Statistic))
        return [(tracer.proxy(source), None)]
    if not kind.mixed:
        return [(1, node)]
    name, args = _two_sided(node, name_of(node, tracer.root))
    if name not in ("add", "sub", "mul", "div") or len(args) != 2 or node.kwargs:
        return None
    first, second = (_side(tracer, arg) for arg in args)
    if first is None or second is None:
        return None
    return _combined(tracer, name, first, second)


def _combined(tracer: Any, name: str, first: _Terms, second: _Terms) -> _Terms | None:
    if name in ("add", "sub"):
        return first + (second if name == "add" else [(-1 * factor, term) for factor, term in second])
    if name == "div":
        if len(second) != 1 or second[0][1] is not None:
            return None
        return [(factor / second[0][0], term) for factor, term in first]
    return [(_times(a, b), _product(tracer, x, y)) for a, x in first for b, y in second]


def _two_sided(node: fx.Node, name: str) -> tuple[str, list[Any]]:
    """An operation by its name and arguments, squares and negatives as products."""
    if name == "square" or (name == "pow" and node.args[1] == 2):
        return "mul", [node.args[0], node.args[0]]
    if name == "neg":
        return "mul", [node.args[0], -1]
    return name, list(node.args)


def _side(tracer: Any, arg: Any) -> _Terms | None:
    if isinstance(arg, fx.Node):
        return terms_of(tracer, arg)
    return [(arg, None)] if isinstance(arg, (int, float)) else None


def _times(a: Any, b: Any) -> Any:
    return b if isinstance(a, int) and a == 1 else a if isinstance(b, int) and b == 1 else a * b


def _product(tracer: Any, x: fx.Node | None, y: fx.Node | None) -> fx.Node | None:
    if x is None or y is None:
        return y if x is None else x
    one: Any = tracer.proxy(x)
    made: fx.Node = (one * tracer.proxy(y)).node
    return made

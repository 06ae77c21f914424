"""Numbers that come from sizes: those of the map, or those of a window.

At every position the local forward is the original one on the position's window. So a number of positions by which
a sum is divided is the window's, wherever in the forward it is divided; a constant as large as the map (an encoding
of positions) stays the map's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from .caches import keep_by_size_
from .names import POINTWISE, name_of
from .values import Map, Number, Opaque, Partial, Statistic, Weights

__all__ = ["follows_size", "is_divided", "is_sized", "of_windows"]

_OF_IMAGES = (Map, Opaque, Partial, Statistic, Weights)
_MORE = 7  # by how much a size is made larger, to see what becomes of a shape


def is_sized(node: fx.Node) -> bool:
    """Whether a value comes from a number of rows, columns or positions."""
    kind = node.meta["kind"]
    return isinstance(kind, Number) and bool(kind.labels & set("HWPM"))


def follows_size(node: fx.Node) -> bool:
    """Whether a value is a tensor made from sizes whose own shape changes with them."""
    value = node.meta["value"]
    if not is_sized(node) or not isinstance(value, Tensor) or value.numel() == 1:
        return False
    try:
        return bool(_larger(node, {}).shape != value.shape)
    except (RuntimeError, TypeError, ValueError):
        return True


def _larger(node: fx.Node, made: dict[fx.Node, Any]) -> Any:
    """A value as it is where every map has more rows and columns."""
    value = node.meta["value"]
    if not is_sized(node) or node.op not in ("call_method", "call_function"):
        return value
    if node in made:
        return made[node]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _larger(n, made))
    if node.target is keep_by_size_:
        made[node] = args[-1]
    elif node.target == "size" and not is_sized(node.all_input_nodes[0]):
        made[node] = value + _MORE
    elif node.op == "call_method":
        made[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        made[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return made[node]


def of_windows(graph: fx.Graph, root: Any, statistics: list[fx.Node]) -> set[fx.Node]:
    """The operations on maps, position by position, in which sizes are those of a window: all that a statistic is
    taken of, and all that one has entered."""
    met = _reached(statistics, lambda n: list(n.users)) | _reached(statistics, lambda n: n.all_input_nodes)
    return {
        n for n in graph.nodes if n in met and isinstance(n.meta.get("kind"), Map) and name_of(n, root) in POINTWISE
    }


def is_divided(graph: fx.Graph, root: Any, sums: list[fx.Node]) -> bool:
    """Whether a number of positions meets what comes of some sums, by whatever arithmetic."""
    met = _reached(sums, lambda n: list(n.users))
    return any(
        is_sized(other)
        for n in graph.nodes
        if n in met and name_of(n, root) in POINTWISE
        for other in n.all_input_nodes
    )


def _reached(starts: list[fx.Node], steps: Any) -> set[fx.Node]:
    reached: set[fx.Node] = set()
    left = list(starts)
    while left:
        for node in steps(left.pop()):
            if node not in reached and isinstance(
                node.meta.get("kind"), (Map, Opaque, Partial, Statistic, Weights)
            ):
                reached.add(node)
                left.append(node)
    return reached

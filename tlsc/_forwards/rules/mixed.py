"""Where statistics meet maps, and statistics of maps that statistics have entered."""

from __future__ import annotations


def of_statistics(tracer: Tracing, node: fx.Node, name: str, statistic: fx.Node) -> Any:
    kind: Statistic = facts(statistic).kind
    value = facts(node).value
    if not isinstance(value, Tensor) or not isinstance(facts(statistic).value, Tensor):
        return kind
    follow_mean(tracer, node, name, statistic)
    if name in ("expand", "expand_as", "repeat", "interpolate", "upsample", "broadcast_to"):
        before = tuple(facts(statistic).value.shape)
        if tuple(value.shape[-2:]) == kind.space.size and before[-2:] == (1, 1) and value.dim() == len(before):
            facts(node).spreads = name if name in ("expand", "broadcast_to") else "fill"
            return Map("N" + "C" * (value.dim() - 3) + "HW", kind.space, mixed=True)
        if tuple(value.shape) != tuple(facts(statistic).value.shape):
            raise UnsupportedForward(f"{name} of a statistic to {tuple(value.shape)} is not understood")
    if value.dim() == 0 or value.shape[0] != facts(statistic).value.shape[0]:
        raise UnsupportedForward(f"{name} of a statistic does not keep one item per image first")
    return kind


def follow_mean(tracer: Tracing, node: fx.Node, name: str, statistic: fx.Node) -> None:
    """Whether a statistic is still the mean of a map, or a sum on its way to one: ``sum_of`` is the map and the
    factor of its sum."""
    if name in (*LAYOUT, "expand", "expand_as", "broadcast_to", "contiguous"):
        node.meta.update({key: value for key, value in statistic.meta.items() if key in ("mean_of", "sum_of")})
    reduction = facts(statistic).reduction
    base, factor = statistic.meta.get("sum_of", (None, 1.0))
    if reduction is not None and reduction.operation == "sum":
        base, factor = reduction.base, 1.0
    if base is None or name not in ("div", "mul") or len(node.args) < 2 or node.args[0] is not statistic:
        return
    number = node.args[1]
    number = facts(number).value if isinstance(number, fx.Node) else number
    if not isinstance(number, (int, float)) or not number:
        return
    factor = factor / number if name == "div" else factor * number
    facts(node).sum_of = base, factor
    positions = math.prod(facts(base).kind.space.size)
    if abs(factor * positions - 1) < 1e-9 and labels_of_numbers(node):
        facts(node).mean_of = base


def of_both(tracer: Tracing, node: fx.Node, name: str, maps: list[fx.Node]) -> Any:
    """Where a statistic meets a map: each position takes its own window's value."""
    value = facts(node).value
    spaces = {
        id(facts(n).kind.space) for n in node.all_input_nodes if isinstance(facts(n).kind, (Map, Statistic))
    }
    if len(spaces) > 1:
        raise UnsupportedForward(f"{name} takes a statistic of one map together with a map of another size")
    if name in ("expand_as", "view_as", "reshape_as") and isinstance(facts(node.args[0]).kind, Statistic):  # type: ignore[union-attr]
        facts(node).spreads = "expand_as"
        if name != "expand_as":
            raise UnsupportedForward(f"{name} of a statistic is not understood")
        follow_mean(tracer, node, name, node.args[0])  # type: ignore[arg-type]
        return replace(facts(maps[0]).kind, mixed=True)
    if name not in POINTWISE or not isinstance(value, Tensor):
        raise UnsupportedForward(f"{name} takes a statistic together with a map, and not position by position")
    kind: Map = max((facts(m).kind for m in maps), key=lambda k: len(k.labels))
    note_centred(node, name)
    for n in node.all_input_nodes:
        if isinstance(facts(n).kind, Statistic):
            shape = facts(n).value.shape
            if len(shape) != len(kind.labels) or any(
                label in "HWPM" and length != 1 for label, length in zip(kind.labels, shape, strict=True)
            ):
                raise UnsupportedForward(f"{name} takes a statistic of shape {tuple(shape)} together with a map")
    out = broadcast(maps, value)
    return replace(out, mixed=True) if isinstance(out, Map) else out


def note_centred(node: fx.Node, name: str) -> None:
    """Note what a difference between a map and its own mean is."""
    if name != "sub" or len(node.args) != 2:
        return
    for one, other in (node.args, reversed(node.args)):
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            mean_of = facts(other).mean_of
            if mean_of is not None and source(mean_of) is source(one):
                node.meta.update(centred=one, shifted=True)


def mixed_sum(tracer: Tracing, x: Any, operation: str, dims: Any, keepdim: bool) -> Any:
    """The sum or mean of a map that statistics of its own have entered, as products of statistics.

    A window's statistics are constants in it: ``Σ (a·x + b·y) = a·Σx + b·Σy``. None where that is not so.
    """
    node = x.node
    kind = facts(node).kind
    if isinstance(kind, Weights) and kind.weighted and operation == "mean":
        return weighted_mean(tracer, x, dims, keepdim)
    if not isinstance(kind, Map) or not kind.mixed or facts(node).squared is not None:
        return None
    rank = len(kind.labels)
    chosen = dims_of(dims, rank)
    if {kind.labels[d] for d in chosen} != {label for label in kind.labels if label in "HWP"}:
        return None
    terms = terms(self, node)
    if terms is None:
        return None
    total: Any = None
    for factor, term in terms:
        if term is None:
            value = factor if operation == "mean" else factor * math.prod(x.shape[d] for d in chosen)
            if isinstance(value, TensorProxy) and value.dim() == rank and not keepdim:
                value = value.sum(chosen)
        else:
            value = getattr(tracer.proxy(term), operation)(chosen, keepdim=keepdim)
            if isinstance(factor, TensorProxy) and factor.dim() == rank and not keepdim:
                factor = factor.sum(chosen)
            value = value if isinstance(factor, int) and factor == 1 else value * factor
        total = value if total is None else total + value
    return total


def terms(tracer: Tracing, node: fx.Node) -> list[tuple[Any, fx.Node | None]] | None:
    """A map as a sum of products of a statistic or constant and a map without statistics (None: one everywhere).

    None if it is not one.
    """
    kind = facts(node).kind
    if not isinstance(kind, Map):
        return [(tracer.proxy(node), None)] if isinstance(kind, (Statistic, Number)) else None
    if facts(node).spreads is not None:
        source = next(n for n in node.all_input_nodes if isinstance(facts(n).kind, Statistic))
        return [(tracer.proxy(source), None)]
    if not kind.mixed:
        return [(1, node)]
    name = name_of(node, tracer.root)
    args: list[Any] = [arg if isinstance(arg, fx.Node) else (arg, None) for arg in node.args]
    if name in ("square", "pow"):
        if name == "pow" and node.args[1] != 2:
            return None
        name, args = "mul", [args[0], args[0]]
    if name == "neg":
        name, args = "mul", [args[0], (-1, None)]
    if name not in ("add", "sub", "mul", "div") or len(args) != 2 or node.kwargs:
        return None
    sides: list[list[tuple[Any, fx.Node | None]]] = []
    for arg in args:
        if isinstance(arg, tuple) and not isinstance(arg[0], (int, float)):
            return None
        side = [arg] if isinstance(arg, tuple) else terms(tracer, arg)
        if side is None:
            return None
        sides.append(side)
    first, second = sides
    if name in ("add", "sub"):
        return first + (second if name == "add" else [(-1 * factor, term) for factor, term in second])
    if name == "div":
        if len(second) != 1 or second[0][1] is not None:
            return None
        return [(factor / second[0][0], term) for factor, term in first]
    return [(times(a, b), product(tracer, x, y)) for a, x in first for b, y in second]


def times(a: Any, b: Any) -> Any:
    return b if isinstance(a, int) and a == 1 else a if isinstance(b, int) and b == 1 else a * b


def product(tracer: Tracing, x: fx.Node | None, y: fx.Node | None) -> fx.Node | None:
    if x is None or y is None:
        return y if x is None else x
    one: Any = tracer.proxy(x)
    made: fx.Node = (one * tracer.proxy(y)).node
    return made

"""Reductions: which calls take a statistic over positions, in one step or two."""

from __future__ import annotations


def reduction_of(node: fx.Node, name: str, root: nn.Module) -> Reduction | None:
    """The reduction that a call is, over whichever dimensions; None if it is none that has a local form."""
    base = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(base, fx.Node) or not isinstance(facts(base).value, Tensor):
        return None
    rank = facts(base).value.dim()
    size = tuple(facts(base).value.shape[-2:])
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        kind = {nn.AdaptiveAvgPool2d: "mean", nn.AdaptiveMaxPool2d: "amax"}.get(type(module))
        if (
            kind is None
            or module.output_size not in (1, (1, 1), [1, 1])
            or getattr(module, "return_indices", False)
        ):
            return None
        return Reduction(kind, base, (rank - 2, rank - 1), True, child=str(node.target))
    if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        if argument(node, 1, "output_size") not in (1, (1, 1), [1, 1]):
            return None
        return Reduction("mean" if "avg" in name else "amax", base, (rank - 2, rank - 1), True)
    if name in ("avg_pool2d", "max_pool2d", "_max_pool2d", "boolean_dispatch"):
        kernel = argument(node, 1, "kernel_size")
        lengths = kernel_lengths(kernel)
        padded = argument(node, 3, "padding", 0)
        if lengths != size or padded not in (0, (0, 0)) or not is_whole(kernel):
            return None
        return Reduction("mean" if "avg" in name else "amax", base, (rank - 2, rank - 1), True)
    if name in ("mean", "sum", "amax", "amin", "logsumexp"):
        dims = dims_of(argument(node, 1, "dim", node.kwargs.get("axis")), rank)
        return Reduction(name, base, dims, keep(node, 2))
    if name in ("var", "std", "var_mean", "std_mean"):
        dim, unbiased = argument(node, 1, "dim"), node.kwargs.get("unbiased", True)
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        rest = [arg for arg in node.args[2:] if isinstance(arg, bool)]
        if len(rest) == 2:
            unbiased = rest[0]
        keep = node.kwargs.get("keepdim", rest[-1] if rest else False)
        if len(rest) == 1 and "keepdim" not in node.kwargs:  # x.var(dim, unbiased): keepdim comes third
            unbiased, keep = rest[0], False
        correction: Any = node.kwargs.get("correction", 1 if unbiased else 0)
        return Reduction(
            name, base, dims_of(dim, rank), bool(keep), correction=float(1 if correction is None else correction)
        )
    if name == "norm":
        order = argument(node, 1, "p", node.kwargs.get("ord", 2))
        dims = dims_of(argument(node, 2, "dim"), rank)
        if order in (None, "fro"):
            order = 2
        if not isinstance(order, (int, float)):
            return None
        return Reduction("norm", base, dims, keep(node, 3), order=float(order))
    return None


def keep(node: fx.Node, position: int) -> bool:
    return bool(argument(node, position, "keepdim", node.kwargs.get("keepdims", False)))


def kernel_lengths(kernel: Any) -> tuple[Any, ...]:
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel, kernel)
    return tuple(facts(item).value if isinstance(item, fx.Node) else item for item in items)


def is_whole(kernel: Any) -> bool:
    """Whether a kernel's size was read off the map (a constant that happens to fit is a local pool)."""
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,)
    return all(isinstance(item, fx.Node) for item in items)


def reduced(tracer: Tracing, node: fx.Node, found: Reduction) -> Any:
    kind: Map = facts(found.base).kind
    labels = {kind.labels[d] for d in found.dims}
    there = {label for label in kind.labels if label in "HWPM"}
    if not labels & there:
        return dropped(kind, found.dims, found.keepdim)
    if labels == {"C", "H"} and found.base.op == "placeholder":
        raise ChannelsLast
    if "N" in labels:
        raise UnsupportedForward(f"it takes a {found.operation} over the batch")
    if labels & there == there:
        if "N" not in kind.labels:
            raise UnsupportedForward(f"it takes a {found.operation} of one image of the batch")
        return statistic_of(tracer, node, found)
    if labels == labels & there and found.operation in ("mean", "sum", "amax", "amin"):
        left = dropped(kind, found.dims, found.keepdim).labels
        return Partial(found.operation, found.base, found.dims, found.keepdim, left)
    return Opaque()


def continued(tracer: Tracing, node: fx.Node, name: str, base: fx.Node) -> Any:
    """The second step of a reduction in two: ``x.sum(3).sum(2)``."""
    partial: Partial = facts(base).kind
    second = reduction_of(node, name, tracer.root)
    if second is None or second.operation != partial.operation:
        return strip(tracer, partial)
    labels = {partial.labels[d] for d in second.dims}
    if not labels <= {"H", "W"} or second.keepdim != partial.keepdim:
        return strip(tracer, partial)
    dims = tuple(d for d, label in enumerate(facts(partial.base).kind.labels) if label in "HW")
    return statistic_of(tracer, node, Reduction(partial.operation, partial.base, dims, partial.keepdim))


def strip(tracer: Tracing, partial: Partial) -> Any:
    tracer.unknown.append(f"{partial.operation} over rows or columns alone")
    return Opaque()


def refuse(name: str) -> Any:
    raise UnsupportedForward(f"its {name} of a statistic over rows or columns alone has no local form here")


def unmerged(tracer: Tracing, node: fx.Node, found: Reduction) -> Reduction:
    """A reduction of channels and positions that are one dimension, as one of the map with them apart."""
    kind: Map = facts(found.base).kind
    place = kind.labels.find("M")
    if place < 0:
        return found
    x: Any = tracer.proxy(found.base)
    positions = math.prod(kind.space.size)
    depth = facts(found.base).value.shape[place] // positions
    with tracer.graph.inserting_before(node):
        given: Any = tracer.proxy(kind.space.node)
        size = [given.shape[kind.space.row + axis] for axis in (0, 1)]
        shape = x.shape
        base = x.reshape(*shape[:place], depth, *size, *shape[place + 1 :]).node
    dims = tuple(sorted(d if d < place else d + 2 for d in found.dims if d != place))
    return replace(found, base=base, dims=tuple(sorted((*dims, place, place + 1, place + 2))))


def statistic_of(tracer: Tracing, node: fx.Node, found: Reduction) -> Statistic:
    found = unmerged(tracer, node, found)
    base = found.base
    kind: Map = facts(base).kind
    centred = facts(base).squared
    if found.operation == "mean":
        facts(node).mean_of = base
    if centred is not None and found.operation in ("mean", "sum"):
        # The mean of (x - mean(x))² is the variance of each window; the mean of what neighbours differ from
        # their own windows' means is not.
        found = replace(found, operation="var" if found.operation == "mean" else "var_sum", base=centred)
    elif facts(base).centred is not None and found.operation in ("var", "std") and facts(base).shifted:
        found = replace(found, base=facts(base).centred)  # what is taken off each window changes nothing
    elif kind.mixed:
        raise UnsupportedForward(
            f"it takes the {found.operation} of a map that a statistic of its own has entered already: "
            "that has no local form here"
        )
    facts(node).reduction = found
    tracer.reductions.append(node)
    return Statistic(kind.space)


def doubt(tracer: Tracing, node: fx.Node) -> None:
    value = facts(node).value
    for base in node.all_input_nodes:
        kind = facts(base).kind
        if isinstance(kind, Map) and isinstance(value, Tensor):
            positions = math.prod(kind.space.size)
            if positions > 1 and value.numel() * positions <= facts(base).value.numel():
                tracer.unknown.append(f"{name_of(node, tracer.root)} over all positions")

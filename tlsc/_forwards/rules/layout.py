"""Layout: the labels of a map after views, permutations, indexing and broadcasts."""

from __future__ import annotations


def dims_of(value: Any, rank: int) -> tuple[int, ...]:
    if value is None:
        return tuple(range(rank))
    if isinstance(value, (tuple, list)):
        return tuple(sorted(operator.index(v) % rank for v in value)) or tuple(range(rank))
    return (operator.index(value) % rank,)


def label_of(node: fx.Node, index: int) -> str:
    """The label of a dimension; of a statistic's, N for the first and C for the others."""
    kind = facts(node).kind
    if isinstance(kind, (Map, Partial)) and len(kind.labels) == facts(node).value.dim():
        return kind.labels[index]
    if isinstance(kind, (Opaque, Weights)):
        return kind.labels[index] if isinstance(kind, Weights) else "?"
    return "N" if isinstance(kind, Statistic) and index == 0 else "C"


def labels_of_numbers(node: fx.Node) -> frozenset[str]:
    kinds = [facts(n).kind for n in node.all_input_nodes]
    return frozenset().union(*(kind.labels for kind in kinds if isinstance(kind, Number)))


def labels_of(x: Any) -> str:
    kind = facts(x.node).kind if isinstance(x, fx.Proxy) else None
    return str(getattr(kind, "labels", "")) if isinstance(kind, (Map, Partial, Weights)) else ""


def is_over(x: Any, dim: Any) -> bool:
    """Whether dimensions of a map are positions."""
    labels = labels_of(x)
    return bool(labels) and any(labels[d] in "HWPM" for d in dims_of(dim, len(labels)))


def is_map_like(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and tuple(value.shape[2:]) != (1, 1)


def settled(tracer: Tracing, node: fx.Node, labels: str = "NCHW") -> Map:
    """A map that a layer made or that came in; of a size met before, in the same space."""
    row = labels.index("H")
    size = tuple(facts(node).value.shape[row : row + 2])
    for space in tracer.spaces:
        if space.size == size:
            return Map(labels, space)
    space = Space((int(size[0]), int(size[1])), node, row)
    tracer.spaces.append(space)
    return Map(labels, space)


def number_kind(tracer: Tracing, node: fx.Node) -> Number | None:
    if node.op == "call_method" and node.target == "size":
        base, index = node.args
        space = getattr(facts(base).kind, "space", None)  # type: ignore[union-attr]
        return Number(frozenset(label_of(base, index)), space)  # type: ignore[arg-type]
    labels = labels_of_numbers(node)
    spaces = [facts(n).kind.space for n in node.all_input_nodes if isinstance(facts(n).kind, Number)]
    return Number(labels, next((space for space in spaces if space is not None), None)) if labels else None


def dropped(kind: Map, dims: tuple[int, ...], keepdim: bool) -> Map:
    labels = "".join("1" if d in dims else label for d, label in enumerate(kind.labels) if keepdim or d not in dims)
    return replace(kind, labels=labels)


def broadcast(maps: list[fx.Node], value: Tensor) -> Any:
    """The labels of a pointwise result: on each dimension the one that is not 1."""
    rank = value.dim()
    out = ["1"] * rank
    for node in maps:
        kind: Map = facts(node).kind
        if kind.space is not facts(maps[0]).kind.space:
            return Opaque()
        for label, place in zip(reversed(kind.labels), range(rank - 1, -1, -1), strict=False):
            if out[place] in ("1", label):
                out[place] = label
            elif label != "1":
                return Opaque()
    out = ["C" if label == "1" and value.shape[place] != 1 else label for place, label in enumerate(out)]
    return Map("".join(out), facts(maps[0]).kind.space, any(facts(node).kind.mixed for node in maps))


def also(tracer: Tracing, node: fx.Node, base: fx.Node, other: fx.Node) -> fx.Node:
    """What ``node`` does with ``base``, done with ``other``."""
    to_proxy: Any = lambda n: tracer.proxy(other if n is base else n)  # noqa: E731
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), to_proxy)
    made: fx.Node = tracer.create_proxy(node.op, node.target, args, kwargs).node
    return made


def laid(tracer: Tracing, node: fx.Node, name: str, base: fx.Node) -> Any:
    """A map in another layout; what is known of its values stays known."""
    kind: Map = facts(base).kind
    out = laid_out(node, name, kind)
    if isinstance(out, Opaque) and base.op == "placeholder" and kind.labels == "NCHW":
        shape, rest = tuple(facts(base).value.shape), tuple(facts(node).value.shape[1:])
        if rest == (shape[1] * shape[2], shape[3]):
            raise ChannelsLast  # its positions become one dimension
    if isinstance(out, Map) and name != "getitem" and isinstance(facts(base).value, Tensor):
        facts(node).source = base
        for key in ("squared", "centred"):
            if key in base.meta:
                node.meta[key] = also(tracer, node, base, base.meta[key])
        node.meta.update({key: base.meta[key] for key in ("shifted", "mean_of") if key in base.meta})
    return out


def laid_out(node: fx.Node, name: str, kind: Map) -> Any:
    """The labels after a change of layout."""
    labels, value = list(kind.labels), facts(node).value
    rank = len(labels)
    if name == "getitem":
        return indexed(node, kind)
    if not isinstance(value, Tensor):
        return Opaque()
    if name in ("permute", "movedim", "moveaxis", "transpose", "t"):
        # Distinct lengths tell where each dimension went.
        probe = torch.empty(tuple(range(2, rank + 2)), device="meta")
        method = str(node.target) if node.op == "call_method" else name
        moved = getattr(probe, method.rstrip("_"))(*node.args[1:], **node.kwargs)
        return replace(kind, labels="".join(labels[length - 2] for length in moved.shape))
    if name == "unsqueeze":
        place = operator.index(argument(node, 1, "dim")) % (rank + 1)
        return replace(kind, labels="".join([*labels[:place], "1", *labels[place:]]))
    if name == "squeeze":
        given = facts(node.args[0]).value.shape  # type: ignore[union-attr]
        chosen = dims_of(argument(node, 1, "dim"), rank)
        return replace(kind, labels="".join(x for d, x in enumerate(labels) if d not in chosen or given[d] != 1))
    return regrouped(kind, tuple(facts(node.args[0]).value.shape), tuple(value.shape))  # type: ignore[union-attr]


def regrouped(kind: Map, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    """The labels after a view, from which lengths of the old shape multiply to which of the new one."""
    out = ""
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while a != b or not (left or right):
            if i < len(before) and (a <= b or j == len(after)):
                a, i = a * before[i], i + 1
                left.append(i - 1)
            elif j < len(after):
                b, j = b * after[j], j + 1
                right.append(j - 1)
            else:
                return Opaque()
        old = "".join(kind.labels[d] for d in left if before[d] != 1)
        lengths = tuple(after[d] for d in right if after[d] != 1)
        if len(old) == len(lengths):
            new = old
        elif set(old) == {"C"}:
            new = "C" * len(lengths)
        elif old.lstrip("C") in ("HW", "P", "M") and lengths:
            # Channels, if any, and then positions: the last lengths tell where those are now.
            positions = math.prod(kind.space.size)
            if lengths[-2:] == kind.space.size:
                new = "C" * (len(lengths) - 2) + "HW"
            elif lengths[-1] == positions:
                new = "C" * (len(lengths) - 1) + "P"
            elif lengths[-1] % positions == 0:
                new = "C" * (len(lengths) - 1) + "M"
            else:
                return Opaque()
        else:
            return Opaque()
        names = iter(new)
        out += "".join("1" if after[d] == 1 else next(names) for d in right)
    return replace(kind, labels=out)


def indexed(node: fx.Node, kind: Map) -> Any:
    base, index = node.args
    if isinstance(facts(base).value, (tuple, list)):  # type: ignore[union-attr]
        return kind
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        place = items.index(Ellipsis)
        missing = len(kind.labels) - sum(item is not None for item in items) + 1
        items[place : place + 1] = [slice(None)] * missing
    labels, out = iter(kind.labels), ""
    for item in items:
        if item is None:
            out += "1"
            continue
        label = next(labels)
        if isinstance(item, slice):
            if label in "HWPM" and item != slice(None):
                return Opaque()
            out += label
        elif isinstance(item, int):
            if label in "HWPM":
                return Opaque()
        else:
            return Opaque()
    return replace(kind, labels=out + "".join(labels))


def source(node: fx.Node) -> fx.Node:
    """The map that ``node`` is a view of."""
    while facts(node).source is not None:
        node = facts(node).source
    return node

"""What a value is, from what it was computed of: the rules, by the names of operations."""

from __future__ import annotations


def kind_of(tracer: Tracing, node: fx.Node) -> Any:
    value = facts(node).value
    if node.op == "placeholder" and type(value) in (int, float):
        return Number(frozenset("?"))
    if node.op == "placeholder":
        if isinstance(value, Tensor) and value.dim() == 5:
            return settled(tracer, node, "NCCHW")
        return settled(tracer, node, tracer.labels) if isinstance(value, Tensor) and value.dim() == 4 else Opaque()
    if isinstance(value, (int, float)):
        return number_kind(tracer, node)
    if not isinstance(value, (Tensor, tuple, list)):
        return None  # a dtype, a device
    inputs = [n for n in node.all_input_nodes if not isinstance(facts(n).kind, (Number, type(None)))]
    kinds = [facts(n).kind for n in inputs]
    if not kinds:
        return None
    if any(isinstance(k, Gram) for k in kinds):
        return attending(tracer, node, name_of(node, tracer.root), inputs)
    if any(isinstance(k, Opaque) for k in kinds):
        if any(isinstance(k, (Statistic, Partial)) for k in kinds):
            name = name_of(node, tracer.root)
            raise UnsupportedForward(f"{name} joins a statistic with something that is not a map (N, C, H, W)")
        return settled(tracer, node) if is_map_like(value) else Opaque()
    name = name_of(node, tracer.root)
    maps = [n for n, k in zip(inputs, kinds, strict=True) if isinstance(k, Map)]
    statistics = [n for n, k in zip(inputs, kinds, strict=True) if isinstance(k, Statistic)]
    if any(isinstance(k, Weights) for k in kinds):
        return weighted(tracer, node, name, inputs)
    if any(isinstance(k, Partial) for k in kinds):
        return continued(tracer, node, name, inputs[0]) if len(inputs) == 1 else refuse(name)
    if not statistics:
        return of_maps(tracer, node, name, maps)
    space = facts(statistics[0]).kind.space
    if any(facts(n).kind.space is not space for n in statistics[1:]):
        raise UnsupportedForward(f"{name} mixes statistics of maps of different sizes")
    if not maps:
        return of_statistics(tracer, node, name, statistics[0])
    return of_both(tracer, node, name, maps)


def of_maps(tracer: Tracing, node: fx.Node, name: str, maps: list[fx.Node]) -> Any:
    base, value = maps[0], facts(node).value
    kind: Map = facts(base).kind
    if name == "matmul" and len(maps) == 2:
        return gram(tracer, *maps) or other_product(tracer, *maps)
    found = reduction_of(node, name, tracer.root)
    if found is not None and found.base is base and found.child not in tracer.skip:
        return reduced(tracer, node, found)
    if name in NORMS:
        return normed(tracer, node, name, base)
    if name in LAYOUT:
        return laid(tracer, node, name, base)
    if name in POINTWISE and isinstance(value, Tensor):
        note_centred(node, name)
        centred = facts(base).centred
        if centred is not None and name == "abs":
            node.meta.update(centred=centred, shifted=False)
        twice = name == "mul" and node.args[0] is base and node.args[1] is base
        if centred is not None and (
            name == "square" or twice or (name == "pow" and argument(node, 1, "exponent") == 2)
        ):
            facts(node).squared = centred
        return broadcast(maps, value)
    if name == "expand" and isinstance(value, Tensor):
        given = facts(base).value.shape
        before = "1" * (value.dim() - len(kind.labels)) + kind.labels
        padded = (0,) * (value.dim() - len(given)) + tuple(given)
        same = [a == b for a, b in zip(padded, value.shape, strict=True)]
        return replace(kind, labels="".join(x if y else "C" for x, y in zip(before, same, strict=True)))
    if name == "stack" and all(facts(m).kind == kind for m in maps):
        place = operator.index(argument(node, 1, "dim", 0)) % (len(kind.labels) + 1)
        labels = kind.labels[:place] + "C" + kind.labels[place:]
        return replace(kind, labels=labels) if place else Opaque()
    if name == "softmax":
        dims = dims_of(argument(node, 1, "dim"), len(kind.labels))
        if "".join(kind.labels[d] for d in dims) == "P" and not kind.mixed:
            return Weights(kind.labels, kind.space, base)
        return kind if all(kind.labels[d] in "C1" for d in dims) else Opaque()
    if name == "cat" and all(replace(facts(m).kind, mixed=False) == replace(kind, mixed=False) for m in maps):
        return replace(kind, mixed=any(facts(m).kind.mixed for m in maps))
    if name in ("chunk", "split", "tensor_split", "unbind", "getitem") and isinstance(value, (tuple, list)):
        if name != "unbind":
            return kind
        (dim,) = dims_of(argument(node, 1, "dim", 0), len(kind.labels))
        if kind.labels[dim] in "HWPM":
            return Opaque()
        return replace(kind, labels=kind.labels[:dim] + kind.labels[dim + 1 :])
    if name == "matmul" and len(maps) == 1 and isinstance(value, Tensor) and len(node.all_input_nodes) == 2:
        return multiplied(node, kind)
    if name == "linear" and kind.labels[-1] in "C1":
        return kind
    if node.op == "call_module" and isinstance(value, Tensor):
        given = facts(base).value
        module = tracer.root.get_submodule(str(node.target))
        kept = kind if not list(module.parameters()) else replace(kind, mixed=False)  # a layer makes a new map
        if value.shape == given.shape:
            return kept
        if value.dim() == given.dim() and kind.labels[-1] in "C1" and value.shape[:-1] == given.shape[:-1]:
            return kept  # a linear layer over channels that come last
    return settled(tracer, node) if is_map_like(value) and kind.labels == "NCHW" else Opaque()


def multiplied(node: fx.Node, kind: Map) -> Any:
    """A map times a constant matrix: over channels it stays a map."""
    if facts(node.args[0]).kind is kind and kind.labels[-1] in "C1":  # type: ignore[union-attr]
        return replace(kind, labels=kind.labels[:-1] + "C")
    if facts(node.args[1]).kind is kind and kind.labels[-2] in "C1":  # type: ignore[union-attr]
        labels = kind.labels[:-2] + "C" + kind.labels[-1]
        return replace(kind, labels=labels) if len(labels) == facts(node).value.dim() else Opaque()
    return Opaque()

"""Attention between channels: products of unit vectors over all positions, a softmax, and the features."""

from __future__ import annotations


def is_gram(x: Any) -> bool:
    return isinstance(x, fx.Proxy) and isinstance(facts(x.node).kind, Gram)


def gram(tracer: Tracing, first: fx.Node, second: fx.Node) -> Gram | None:
    """The product of two maps over all positions, if both have unit length over them."""
    labels = [facts(n).kind.labels.replace("1", "C") for n in (first, second)]
    if labels not in (["NCP", "NPC"], ["NCCP", "NCPC"]):
        return None
    if facts(first).kind.space is not facts(second).kind.space:
        return None
    q, k = (before_unit(tracer, n) for n in (first, second))
    if q is None or k is None:
        return None
    turned: Any = tracer.proxy(k)
    return Gram(q, turned.transpose(-2, -1).node)


def other_product(tracer: Tracing, first: fx.Node, second: fx.Node) -> Opaque:
    """The product of two maps in another way."""
    between = {facts(n).kind.labels[-place:][:1] for n, place in ((first, 1), (second, 2))}
    if between & set("PM"):
        tracer.unknown.append("matmul over all positions")
    return Opaque()


def before_unit(tracer: Tracing, node: fx.Node) -> fx.Node | None:
    """What :func:`_normalize` was given, in the layout of ``node``; None if ``node`` does not come from it."""
    if facts(node).unit_of is not None:
        base, norm = facts(node).unit_of
        tracer.serving.add(norm)
        return base  # type: ignore[no-any-return]
    if "source" not in node.meta:
        return None
    source = facts(node).source
    raw = before_unit(tracer, source)
    return None if raw is None else also(tracer, node, source, raw)


def attending(tracer: Tracing, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
    """The way of a Gram matrix to the map whose channels it mixes."""
    gram = next(n for n in inputs if isinstance(facts(n).kind, Gram))
    kind: Gram = facts(gram).kind
    others = [n for n in node.all_input_nodes if n is not gram]
    rank = facts(gram).value.dim()
    if not others and name in ("contiguous", "clone", "dropout", "Dropout", "detach"):
        return kind
    if name == "mul" and kind.scale is None and not kind.soft and len(node.args) == 2:
        factor = next(arg for arg in node.args if arg is not gram)
        if isinstance(factor, (int, float)):
            return replace(kind, scale=factor)
        if isinstance(factor, fx.Node) and facts(factor).kind is None:
            scale = facts(factor).value
            if isinstance(scale, Tensor) and is_of_heads(scale, rank):
                return replace(kind, scale=factor)
    if name == "softmax" and not kind.soft and dims_of(argument(node, 1, "dim"), rank) == (rank - 1,):
        return replace(kind, soft=True)
    if name == "matmul" and kind.soft and node.args == (gram, *others) and len(others) == 1:
        features = facts(others[0]).kind
        if alike(kind.q, others[0]) and alike(kind.k, others[0]):
            facts(node).attends = kind, others[0]
            tracer.attentions.append(node)
            return replace(features, mixed=True)
    raise UnsupportedForward(f"{name} takes an attention between channels in a way that is not understood")


def alike(first: fx.Node, second: fx.Node) -> bool:
    """Whether two values are maps of one shape and layout over the same positions."""
    one, other = facts(first).kind, facts(second).kind
    if not (isinstance(one, Map) and isinstance(other, Map)) or one.space is not other.space:
        return False
    same = all(a in ("1", b) or b == "1" for a, b in zip(one.labels, other.labels, strict=False))
    return bool(same and facts(first).value.shape == facts(second).value.shape)


def is_of_heads(scale: Tensor, rank: int) -> bool:
    """Whether a tensor has one number for all of (N, c, c) or (N, heads, c, c), or one for each head."""
    shape = (1,) * (rank - scale.dim()) + tuple(scale.shape)
    return len(shape) == rank and all(n == 1 for n in (*shape[:-3], *shape[-2:])) and (rank > 3 or shape[-3] == 1)

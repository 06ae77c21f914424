"""Softmax over positions: weights on their way to the features that they weigh."""

from __future__ import annotations


def weighted(tracer: Tracing, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
    """A softmax over positions on its way to the features it weighs, and their weighted sum."""
    weights = next(n for n in inputs if isinstance(facts(n).kind, Weights))
    kind: Weights = facts(weights).kind
    others = [n for n in inputs if n is not weights]
    if not others and name in (*LAYOUT, "contiguous", "clone", "detach", "to", "type_as", "dropout"):
        if name not in LAYOUT:
            return kind
        laid = laid_out(node, name, Map(kind.labels, kind.space))
        if isinstance(laid, Map) and not kind.weighted:
            return Weights(laid.labels, kind.space, also(tracer, node, weights, kind.logits))
    if not others and name == "sum" and kind.weighted:
        dims = dims_of(argument(node, 1, "dim"), len(kind.labels))
        taken = {kind.labels[d] for d in dims}
        left = {label for label in kind.labels if label in "HWP"} - taken
        if taken <= {"H", "W", "P"} and left:
            return replace(kind, labels=dropped(Map(kind.labels, kind.space), dims, keep(node, 2)).labels)
        if taken <= {"H", "W", "P"}:
            first, logits = kind.weighted
            reduction = Reduction("weighted", first, (), True, logits=logits)
            return statistic_of(tracer, node, reduction)
    if len(others) == 1 and isinstance(facts(others[0]).kind, Map) and not kind.weighted:
        features = others[0]
        if name == "mul":
            made = broadcast([features, kind.logits], facts(node).value)
            if isinstance(made, Map) and not made.mixed:
                return Weights(made.labels, kind.space, kind.logits, matched(tracer, features, kind.logits))
    raise UnsupportedForward(f"{name} takes a softmax over positions in a way that is not understood")


def matched(tracer: Tracing, features: fx.Node, logits: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Features and logits with the same channels, or one channel of logits for all."""

    def channels(node: fx.Node) -> list[int]:
        kind, value = facts(node).kind, facts(node).value
        return [n for n, label in zip(value.shape, kind.labels, strict=True) if label in "C1"]

    if math.prod(channels(logits)) == 1 or channels(logits) == channels(features):
        return features, logits
    one: Any = tracer.proxy(features)
    other: Any = tracer.proxy(logits)
    rank = max(one.dim(), other.dim())
    shape: list[Any] = []
    for back in range(rank, 0, -1):
        longest = [x for x in (one, other) if x.dim() >= back and facts(x.node).value.shape[-back] != 1]
        shape.append(longest[0].shape[-back] if longest else 1)
    return one.expand(shape).node, other.expand(shape).node


def weighted_mean(tracer: Tracing, x: Any, dims: Any, keepdim: bool) -> Any:
    """The mean of what a softmax weighs: the sum, divided by the number of positions."""
    chosen = dims_of(dims, x.dim())
    return x.sum(chosen, keepdim=keepdim) / math.prod(x.shape[d] for d in chosen)

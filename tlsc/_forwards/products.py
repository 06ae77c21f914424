"""Products of maps: attention between channels, and features weighed by a softmax over positions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from .layouts import broadcast, dropped, laid_out
from .names import LAYOUT, argument, dims_of
from .reductions import keeps
from .statistics import Statistics
from .values import Cannot, Gram, Map, Opaque, Reduction, Weights

__all__ = ["Products"]


_KEEPING = ("contiguous", "clone", "dropout", "Dropout", "detach")


class Products(Statistics):
    """What becomes of products that a statistic is made of."""

    def _gram(self, first: fx.Node, second: fx.Node) -> Gram | None:
        """The product of two maps over all positions, if both have unit length over them."""
        labels = [n.meta["kind"].labels.replace("1", "C") for n in (first, second)]
        if labels not in (["NCP", "NPC"], ["NCCP", "NCPC"]):
            return None
        if first.meta["kind"].space is not second.meta["kind"].space:
            return None
        q, k = (self._before_unit(n) for n in (first, second))
        if q is None or k is None:
            return None
        turned: Any = self.proxy(k)
        return Gram(q, turned.transpose(-2, -1).node)

    def _other_product(self, first: fx.Node, second: fx.Node) -> Opaque:
        """The product of two maps in another way."""
        between = {n.meta["kind"].labels[-place:][:1] for n, place in ((first, 1), (second, 2))}
        if between & set("PM"):
            self.unknown.append("matmul over all positions")
        return Opaque()

    def _before_unit(self, node: fx.Node) -> fx.Node | None:
        """What :func:`_normalize` was given, in the layout of ``node``; None if ``node`` does not come from it."""
        if "unit_of" in node.meta:
            base, norm = node.meta["unit_of"]
            self.serving.add(norm)
            return base  # type: ignore[no-any-return]
        if "source" not in node.meta:
            return None
        source = node.meta["source"]
        raw = self._before_unit(source)
        return None if raw is None else self._also(node, source, raw)

    def _attending(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
        """The way of a Gram matrix to the map whose channels it mixes."""
        gram = next(n for n in inputs if isinstance(n.meta["kind"], Gram))
        kind: Gram = gram.meta["kind"]
        others = [n for n in node.all_input_nodes if n is not gram]
        rank = gram.meta["value"].dim()
        if not others and name in _KEEPING:
            return kind
        if name == "mul" and len(node.args) == 2 and kind.scale is None and not kind.soft:
            factor = node.args[1] if node.args[0] is gram else node.args[0]
            if _is_scale(factor, rank):
                return replace(kind, scale=factor)  # type: ignore[arg-type]
        if name == "softmax" and not kind.soft and dims_of(argument(node, 1, "dim"), rank) == (rank - 1,):
            return replace(kind, soft=True)
        if name == "matmul" and kind.soft and node.args == (gram, *others) and len(others) == 1:
            return self._attended(node, kind, others[0])
        raise Cannot(f"{name} takes an attention between channels in a way that is not understood")

    def _attended(self, node: fx.Node, kind: Gram, features: fx.Node) -> Any:
        """The map whose channels an attention mixes."""
        if not (_like(kind.q, features) and _like(kind.k, features)):
            raise Cannot("its attention between channels mixes a map that is not laid out as queries and keys are")
        node.meta["attends"] = kind, features
        self.attentions.append(node)
        return replace(features.meta["kind"], mixed=True)

    def _weighted(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
        """A softmax over positions on its way to the features it weighs, and their weighted sum."""
        weights = next(n for n in inputs if isinstance(n.meta["kind"], Weights))
        kind: Weights = weights.meta["kind"]
        others = [n for n in inputs if n is not weights]
        if not others and name in (*LAYOUT, "contiguous", "clone", "detach", "to", "type_as", "dropout"):
            if name not in LAYOUT:
                return kind
            laid = laid_out(node, name, Map(kind.labels, kind.space))
            if isinstance(laid, Map) and not kind.weighted:
                return Weights(laid.labels, kind.space, self._also(node, weights, kind.logits))
        if not others and name == "sum" and kind.weighted:
            summed = self._weighted_sum(node, kind, kind.weighted)
            if summed is not None:
                return summed
        if len(others) == 1 and isinstance(others[0].meta["kind"], Map) and not kind.weighted:
            features = others[0]
            if name == "mul":
                made = broadcast([features, kind.logits], node.meta["value"])
                if isinstance(made, Map) and not made.mixed:
                    return Weights(made.labels, kind.space, kind.logits, self._matched(features, kind.logits))
        raise Cannot(f"{name} takes a softmax over positions in a way that is not understood")

    def _weighted_sum(self, node: fx.Node, kind: Weights, weighted: tuple[fx.Node, fx.Node]) -> Any:
        """The sum of what a softmax weighs, over all positions or some of their dimensions; None if over others."""
        dims = dims_of(argument(node, 1, "dim"), len(kind.labels))
        taken = {kind.labels[d] for d in dims}
        if not taken <= {"H", "W", "P"}:
            return None
        if {label for label in kind.labels if label in "HWP"} - taken:
            return replace(kind, labels=dropped(Map(kind.labels, kind.space), dims, keeps(node, 2)).labels)
        return self._statistic(node, Reduction("weighted", weighted[0], (), True, logits=weighted[1]))

    def _matched(self, features: fx.Node, logits: fx.Node) -> tuple[fx.Node, fx.Node]:
        """Features and logits with the same channels, or one channel of logits for all."""

        def channels(node: fx.Node) -> list[int]:
            kind, value = node.meta["kind"], node.meta["value"]
            return [n for n, label in zip(value.shape, kind.labels, strict=True) if label in "C1"]

        if math.prod(channels(logits)) == 1 or channels(logits) == channels(features):
            return features, logits
        one: Any = self.proxy(features)
        other: Any = self.proxy(logits)
        rank = max(one.dim(), other.dim())
        shape: list[Any] = []
        for back in range(rank, 0, -1):
            longest = [x for x in (one, other) if x.dim() >= back and x.node.meta["value"].shape[-back] != 1]
            shape.append(longest[0].shape[-back] if longest else 1)
        return one.expand(shape).node, other.expand(shape).node


def _like(first: fx.Node, second: fx.Node) -> bool:
    """Whether two values are maps of one shape and layout over the same positions."""
    one, other = first.meta["kind"], second.meta["kind"]
    if not (isinstance(one, Map) and isinstance(other, Map)) or one.space is not other.space:
        return False
    same = all(a in ("1", b) or b == "1" for a, b in zip(one.labels, other.labels, strict=False))
    return bool(same and first.meta["value"].shape == second.meta["value"].shape)


def _is_scale(factor: Any, rank: int) -> bool:
    """Whether products of channels may be multiplied by it on their way to an attention."""
    if isinstance(factor, fx.Node) and factor.meta["kind"] is None:
        scale = factor.meta["value"]
        return isinstance(scale, Tensor) and _is_of_heads(scale, rank)
    return isinstance(factor, (int, float))


def _is_of_heads(scale: Tensor, rank: int) -> bool:
    """Whether a tensor has one number for all of (N, c, c) or (N, heads, c, c), or one for each head."""
    shape = (1,) * (rank - scale.dim()) + tuple(scale.shape)
    return len(shape) == rank and all(n == 1 for n in (*shape[:-3], *shape[-2:])) and (rank > 3 or shape[-3] == 1)

"""Recorded reductions over all positions: which statistic of which map they are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from .layouts import dropped
from .names import LAYOUT, dims_of
from .proxies import Proxy, labels_of_numbers
from .reductions import reduction_of
from .terms import terms_of
from .values import Cannot, Map, Opaque, Partial, Reduction, Statistic, Weights

__all__ = ["ChannelsLast", "Statistics"]


class ChannelsLast(Exception):
    """The module's maps must be (N, H, W, C): it reduces over the two middle dimensions."""


class Statistics(fx.Tracer):
    """What becomes of reductions. ``serving``: norms that only an attention needs."""

    skip: tuple[str, ...]
    unknown: list[str]
    reductions: list[fx.Node]
    norms: list[fx.Node]
    attentions: list[fx.Node]
    serving: set[fx.Node]

    def _reduced(self, node: fx.Node, found: Reduction) -> Any:
        kind: Map = found.base.meta["kind"]
        labels = {kind.labels[d] for d in found.dims}
        there = {label for label in kind.labels if label in "HWPM"}
        if not labels & there:
            return dropped(kind, found.dims, found.keepdim)
        if labels == {"C", "H"} and found.base.op == "placeholder":
            raise ChannelsLast
        if "N" in labels:
            raise Cannot(f"it takes a {found.operation} over the batch")
        dtype = found.base.meta["value"].dtype
        if not dtype.is_floating_point:
            what = "complex" if dtype.is_complex else "whole"
            raise Cannot(
                f"its {found.operation} of {what} numbers has no local form here: make them floating before"
            )
        if labels & there == there:
            if "N" not in kind.labels:
                raise Cannot(f"it takes a {found.operation} of one image of the batch")
            return self._statistic(node, found)
        if labels == labels & there and found.operation in ("mean", "sum", "amax", "amin"):
            left = dropped(kind, found.dims, found.keepdim).labels
            return Partial(found.operation, found.base, found.dims, found.keepdim, left)
        return Opaque()

    def _continued(self, node: fx.Node, name: str, base: fx.Node) -> Any:
        """The second step of a reduction in two: ``x.sum(3).sum(2)``."""
        partial: Partial = base.meta["kind"]
        second = reduction_of(node, name, self.root)
        if second is None or second.operation != partial.operation:
            return self._strip(partial)
        labels = {partial.labels[d] for d in second.dims}
        if not labels <= {"H", "W"} or second.keepdim != partial.keepdim:
            return self._strip(partial)
        dims = tuple(d for d, label in enumerate(partial.base.meta["kind"].labels) if label in "HW")
        return self._statistic(node, Reduction(partial.operation, partial.base, dims, partial.keepdim))

    def _strip(self, partial: Partial) -> Any:
        self.unknown.append(f"{partial.operation} over rows or columns alone")
        return Opaque()

    def _unmerged(self, node: fx.Node, found: Reduction) -> Reduction:
        """A reduction of channels and positions that are one dimension, as one of the map with them apart."""
        kind: Map = found.base.meta["kind"]
        place = kind.labels.find("M")
        if place < 0:
            return found
        x: Any = self.proxy(found.base)
        positions = math.prod(kind.space.size)
        depth = found.base.meta["value"].shape[place] // positions
        with self.graph.inserting_before(node):
            given: Any = self.proxy(kind.space.node)
            size = [given.shape[kind.space.row + axis] for axis in (0, 1)]
            shape = x.shape
            base = x.reshape(*shape[:place], depth, *size, *shape[place + 1 :]).node
        dims = tuple(sorted(d if d < place else d + 2 for d in found.dims if d != place))
        return replace(found, base=base, dims=tuple(sorted((*dims, place, place + 1, place + 2))))

    def _statistic(self, node: fx.Node, found: Reduction) -> Statistic:
        found = self._unmerged(node, found)
        base = found.base
        kind: Map = base.meta["kind"]
        centred = base.meta.get("squared")
        if found.operation == "mean":
            node.meta["mean_of"] = base
        if centred is not None and found.operation in ("mean", "sum"):
            # The mean of (x - mean(x))² is the variance of each window; the mean of what neighbours differ from
            # their own windows' means is not.
            found = replace(found, operation="var" if found.operation == "mean" else "var_sum", base=centred)
        elif base.meta.get("centred") is not None and found.operation in ("var", "std") and base.meta["shifted"]:
            found = replace(found, base=base.meta["centred"])  # what is taken off each window changes nothing
        elif kind.mixed:
            raise Cannot(
                f"it takes the {found.operation} of a map that a statistic of its own has entered already: "
                "that has no local form here"
            )
        node.meta["reduction"] = found
        self.reductions.append(node)
        return Statistic(kind.space)

    def _mixed_sum(self, x: Any, operation: str, dims: Any, keepdim: bool) -> Any:
        """The sum or mean of a map that statistics of its own have entered, as products of statistics.

        A window's statistics are constants in it: ``Σ (a·x + b·y) = a·Σx + b·Σy``. None where that is not so.
        """
        node = x.node
        kind = node.meta["kind"]
        if isinstance(kind, Weights) and kind.weighted and operation == "mean":
            return self._weighted_mean(x, dims, keepdim)
        if not isinstance(kind, Map) or not kind.mixed or node.meta.get("squared") is not None:
            return None
        rank = len(kind.labels)
        chosen = dims_of(dims, rank)
        if {kind.labels[d] for d in chosen} != {label for label in kind.labels if label in "HWP"}:
            return None
        terms = terms_of(self, node)
        if terms is None:
            return None
        total: Any = None
        for factor, term in terms:
            if term is None:
                value = factor if operation == "mean" else factor * math.prod(x.shape[d] for d in chosen)
                value = _without(value, chosen, rank, keepdim)
            else:
                value = getattr(self.proxy(term), operation)(chosen, keepdim=keepdim)
                factor = _without(factor, chosen, rank, keepdim)
                value = value if isinstance(factor, int) and factor == 1 else value * factor
            total = value if total is None else total + value
        return total

    def _weighted_mean(self, x: Any, dims: Any, keepdim: bool) -> Any:
        """The mean of what a softmax weighs: the sum, divided by the number of positions."""
        chosen = dims_of(dims, x.dim())
        return x.sum(chosen, keepdim=keepdim) / math.prod(x.shape[d] for d in chosen)

    def _follow_mean(self, node: fx.Node, name: str, statistic: fx.Node) -> None:
        """Whether a statistic is still the mean of a map, or a sum on its way to one: ``sum_of`` is the map and the
        factor of its sum."""
        if name in (*LAYOUT, "expand", "expand_as", "broadcast_to", "contiguous"):
            node.meta.update({key: value for key, value in statistic.meta.items() if key in ("mean_of", "sum_of")})
        reduction = statistic.meta.get("reduction")
        base, factor = statistic.meta.get("sum_of", (None, 1.0))
        if reduction is not None and reduction.operation == "sum":
            base, factor = reduction.base, 1.0
        if base is None or name not in ("div", "mul") or len(node.args) < 2 or node.args[0] is not statistic:
            return
        number = node.args[1]
        number = number.meta["value"] if isinstance(number, fx.Node) else number
        if not isinstance(number, (int, float)) or not number:
            return
        factor = factor / number if name == "div" else factor * number
        node.meta["sum_of"] = base, factor
        positions = math.prod(base.meta["kind"].space.size)
        if abs(factor * positions - 1) < 1e-9 and labels_of_numbers(node):
            node.meta["mean_of"] = base

    def _also(self, node: fx.Node, base: fx.Node, other: fx.Node) -> fx.Node:
        """What ``node`` does with ``base``, done with ``other``."""
        to_proxy: Any = lambda n: self.proxy(other if n is base else n)  # noqa: E731
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), to_proxy)
        made: fx.Node = self.create_proxy(node.op, node.target, args, kwargs).node
        return made


def _without(value: Any, dims: tuple[int, ...], rank: int, keepdim: bool) -> Any:
    """A statistic without dimensions of which it has one entry, if they are not kept."""
    return value.sum(dims) if isinstance(value, Proxy) and value.dim() == rank and not keepdim else value

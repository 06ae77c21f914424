"""Rewrite a traced forward so that its statistics are those of each position's window.

*Positions as batch*: the statistics of all evaluated windows, (N, K, h, w), become a batch of N·h·w items of the
shape that the original statistic had for one image. Whatever the code did with one image's statistic it then does
with one window's: linear layers, views, convolutions over channels. Where the result meets a map again, it goes
back to (N, K, h, w), is brought up to full size, and each position finds its own window's value. Tails of 1×1
convolutions and pointwise operations run on (N, K, h, w) as it is, which is faster.

Where the window covers the map there is one window per image, and everything is as it was.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from .._statistics import any_size as _graph
from .names import NEW, POINTWISE, argument, name_of, spelled
from .outside import Draw
from .recorder import attribute_of
from .runtime import (
    CORRECTIONS,
    attend,
    count,
    evaluate,
    evaluate_weighted,
    from_batch,
    images,
    local_norm,
    meet,
    pair,
    spread,
    to_batch,
    to_canonical,
)
from .sizes import follows_size, is_sized, of_windows
from .tails import in_pieces, is_pointwise
from .trace import Trace
from .values import Cannot, Gram, Map, Number, Reduction, Space, Statistic

__all__ = ["rewrite"]


def rewrite(trace: Trace, stride: int) -> fx.Graph:
    """The graph of the local forward. The window of each map is its size in the traced run.

    Raises:
        Cannot: a statistic is used in a way that has no local meaning.
    """
    return _Rewriter(trace, stride).run()


class _Rewriter:
    def __init__(self, trace: Trace, stride: int) -> None:
        self.trace = trace
        self.stride = stride
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.tail: dict[tuple[fx.Node, Space | None], Any] = {}  # numbers as they are inside tails, or for maps
        self.grids: dict[Space, fx.Node] = {}  # a statistic (N, K, h, w) of each space
        # Norms that attention takes of its queries are no sites: they have no number.
        self.numbers = {node: number for number, node in enumerate((*trace.reductions, *trace.norms))}
        statistics = [node for node in trace.graph.nodes if isinstance(node.meta.get("kind"), Statistic)]
        self.of_windows = of_windows(trace.graph, trace.root, [*statistics, *trace.norms, *trace.attentions])
        self.batched = self._batched()

    def run(self) -> fx.Graph:
        regions: dict[fx.Node, Any] = {}
        for node in self.trace.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.node.map_arg(node.args[0], self._returned))
                continue
            self.new[node] = self._emit(node)
            for made in reversed(self.graph.nodes):
                if made in regions:
                    break
                regions[made] = node.meta.get("region")
        for node in self.graph.nodes:  # also those that are erased now, which others may refer to
            node.meta.clear()
            if regions.get(node) is not None:
                node.meta["region"] = regions[node]
        self.graph.eliminate_dead_code(_has_effect)
        self.graph.lint()
        return self.graph

    # ------------------------------------------------------------------------------------- which tails stay maps

    def _batched(self) -> set[Space]:
        """The spaces whose statistics must become a batch: some tail of theirs is not position by position."""
        out: set[Space] = set()
        for node in self.trace.graph.nodes:
            kind = node.meta.get("kind")
            if not isinstance(kind, Statistic) or kind.space in out:
                continue
            if not self._stays_map(node):
                out.add(kind.space)
        return out

    def _stays_map(self, node: fx.Node) -> bool:
        value = node.meta["value"]
        values = value if isinstance(value, (tuple, list)) else (value,)
        if "reduction" in node.meta and node.meta["reduction"].logits is not None:
            return False
        if any(v.dim() != 4 or tuple(v.shape[2:]) != (1, 1) for v in values):
            return False
        if "reduction" in node.meta:
            labels = node.meta["reduction"].base.meta["kind"].labels
            return bool(labels == "NCHW")
        name = name_of(node, self.trace.root)
        if node.op == "call_module":
            return is_pointwise(self.trace.root.get_submodule(str(node.target)))
        if name in ("cat", "chunk", "split"):
            return argument(node, 1 if name == "cat" else 2, "dim", 0) in (1, -3)
        if name == "getitem":
            return isinstance(node.args[0].meta["value"], (tuple, list))  # type: ignore[union-attr]
        if name in ("mean", "sum", "softmax"):
            kept = name == "softmax" or argument(node, 2, "keepdim", False)
            return bool(kept) and argument(node, 1, "dim") in (1, -3, (1,), [1])
        return name in POINTWISE and not any(isinstance(n.meta["kind"], Number) for n in node.all_input_nodes)

    # ------------------------------------------------------------------------------------------------ emission

    def _emit(self, node: fx.Node) -> fx.Node:
        kind = node.meta["kind"]
        if "reduction" in node.meta:
            return self._local(node, node.meta["reduction"])
        if "norm" in node.meta:
            return self._local_norm(node, kind)
        if "attends" in node.meta:
            return self._attention(*node.meta["attends"])
        if isinstance(kind, Statistic):
            chain = self._chain(node)
            if chain is not None:
                return chain
            return self.graph.node_copy(node, lambda n: self._in_tail(n, kind.space))
        if "spreads" in node.meta:
            source = next(n for n in node.all_input_nodes if isinstance(n.meta["kind"], Statistic))
            value = self._spread(source, node)
            if node.meta["spreads"] == "fill":
                size = [self._length(kind.space, axis) for axis in (0, 1)]
                return self.graph.call_method("expand", (value, *[-1] * (len(kind.labels) - 2), *size))
            return self.graph.node_copy(node, lambda n: value if n is source else self.new[n])
        if isinstance(kind, Map):
            meeting = self._meeting(node, kind)
            if meeting is not None:
                return meeting
            return self.graph.node_copy(node, lambda n: self._met(n, node))
        return self.graph.node_copy(node, lambda n: self.new[n])

    def _met(self, node: fx.Node, by: fx.Node) -> fx.Node:
        """A value where it meets maps."""
        if isinstance(node.meta["kind"], Statistic):
            return self._spread(node, by)
        if by in self.of_windows and is_sized(node) and not follows_size(node):
            return self._in_tail(node, by.meta["kind"].space, of_maps=True)  # type: ignore[no-any-return]
        return self.new[node]

    def _chain(self, node: fx.Node) -> fx.Node | None:
        """The modules that end at ``node``, one behind the other, as one call that runs them piece by piece."""
        if any(self._links(user) for user in node.users) and len(node.users) == 1:
            return None  # it goes on
        steps: list[fx.Node] = []
        at = node
        while self._links(at) and (at is node or len(at.users) == 1):
            steps.insert(0, at)
            at = at.all_input_nodes[0]
        if not steps:
            return None
        modules = tuple(self.graph.get_attr(str(step.target)) for step in steps)
        return self.graph.call_function(in_pieces, (modules, self.new[at]))

    def _links(self, node: fx.Node) -> bool:
        kind = node.meta.get("kind")
        if node.op != "call_module" or not isinstance(kind, Statistic) or kind.space in self.batched:
            return False
        module = self.trace.root.get_submodule(str(node.target))
        return "reduction" not in node.meta and is_pointwise(module) and len(node.all_input_nodes) == 1

    def _returned(self, node: fx.Node) -> fx.Node:
        if isinstance(node.meta["kind"], Statistic):
            value = node.meta["value"]
            shown = tuple(value.shape[1:]) if isinstance(value, Tensor) else type(value).__name__
            raise Cannot(f"its result, {shown} for each image, leaves the module as it is", escapes=True)
        return self.new[node]

    def _local(self, node: fx.Node, reduction: Reduction) -> fx.Node:
        base = reduction.base
        kind: Map = base.meta["kind"]
        space = kind.space
        canonical = self._canonical(base, reduction)
        call = self.graph.call_function
        if reduction.logits is not None:
            logits = self._canonical(reduction.logits, Reduction("mean", reduction.logits, (), False))
            grid = call(evaluate_weighted, (canonical, logits, space.window, self.stride))
            self.grids.setdefault(space, grid)
            return call(to_batch, (grid, _item(node.meta["value"])))
        grid = call(
            evaluate,
            (
                *(canonical, reduction.operation, space.window, self.stride, reduction.order, reduction.correction),
                *(self.graph.get_attr(CORRECTIONS), self.numbers.get(node, -1)),
            ),
        )
        self.grids.setdefault(
            space, grid if reduction.operation not in _PAIRS else call(operator.getitem, (grid, 0))
        )
        if space not in self.batched:
            return grid
        value = node.meta["value"]
        if reduction.operation in _PAIRS:
            parts = [call(to_batch, (call(operator.getitem, (grid, i)), _item(value[i]))) for i in (0, 1)]
            return call(pair, tuple(parts))
        return call(to_batch, (grid, _item(value)))

    def _local_norm(self, node: fx.Node, kind: Map) -> fx.Node:
        space = kind.space
        height, width = self._length(space, 0), self._length(space, 1)
        base = node.all_input_nodes[0]
        if node.op == "call_module":
            module = self.trace.root.get_submodule(str(node.target))
            eps, groups = module.eps, getattr(module, "num_groups", None)
            weight, bias = (
                None if getattr(module, name) is None else self.graph.get_attr(f"{node.target}.{name}")
                for name in ("weight", "bias")
            )
        else:
            grouped = name_of(node, self.trace.root) == "group_norm"
            groups = argument(node, 1, "num_groups") if grouped else None
            first = 2 if grouped else 1 if node.target is torch.instance_norm else 3
            weight, bias = (argument(node, first + i, name) for i, name in enumerate(("weight", "bias")))
            eps = argument(node, 4 if grouped else 7, "eps", 1e-5)
            groups, weight, bias, eps = fx.node.map_arg((groups, weight, bias, eps), self.new.__getitem__)
        args: Any = (self.new[base], space.window, groups, weight, bias, eps, height, width)
        args += (self.graph.get_attr(CORRECTIONS), self.numbers.get(node, -1))
        return self.graph.call_function(local_norm, args)

    def _attention(self, gram: Gram, features: fx.Node) -> fx.Node:
        space = features.meta["kind"].space
        maps = tuple(self.new[n] for n in (gram.q, gram.k, features))
        scale = (
            self.new[gram.scale] if isinstance(gram.scale, fx.Node) else 1.0 if gram.scale is None else gram.scale
        )
        size = (self._length(space, axis) for axis in (0, 1))
        return self.graph.call_function(attend, (*maps, scale, space.window, *size))

    def _canonical(self, base: fx.Node, reduction: Reduction) -> fx.Node:
        """The map as (N, K, D, H, W): K kept channels, D channels that are reduced with the positions."""
        kind: Map = base.meta["kind"]
        kept = [d for d, label in enumerate(kind.labels) if label not in "NHWP" and d not in reduction.dims]
        gone = [d for d, label in enumerate(kind.labels) if label not in "NHWP" and d in reduction.dims]
        order = [d for label in "NHWP" for d, x in enumerate(kind.labels) if x == label]
        permutation = (order[0], *kept, *gone, *order[1:])
        height, width = (self._length(kind.space, axis) for axis in (0, 1))
        call = self.graph.call_function
        if kind.labels == "NCHW" and not gone:
            return self.new[base]
        value = base.meta["value"]
        sizes = [[int(value.shape[d]) for d in dims] for dims in (kept, gone)]
        return call(to_canonical, (self.new[base], permutation, tuple(sizes[0]), tuple(sizes[1]), height, width))

    def _meeting(self, node: fx.Node, kind: Map) -> fx.Node | None:
        """A map times, plus or minus a statistic, as one call that never brings the statistic to full size."""
        spelled = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        operation = name_of(node, self.trace.root)
        if operation not in ("mul", "add", "sub") or node.op == "call_module" or len(node.args) != 2 or node.kwargs:
            return None
        if spelled.endswith("_") or spelled.startswith(("i", "r")) or kind.labels != "NCHW":
            return None  # in place, or turned round
        first, second = node.args
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
            return None
        source = _statistic_behind(second)
        if source is None and operation != "sub":
            first, second, source = second, first, _statistic_behind(first)
        if source is None or _statistic_behind(first) is not None or not _alike(first.meta["kind"], kind):
            return None
        space = source.meta["kind"].space
        shape = source.meta["value"].shape
        if space is not kind.space or len(shape) != 4 or tuple(shape[2:]) != (1, 1):
            return None
        call = self.graph.call_function
        value = self.new[source]
        if space in self.batched:
            value = call(from_batch, (value, self.grids[space]))
        return call(meet, (self.new[first], value, space.window, self.stride, operation))

    def _length(self, space: Space, axis: int) -> fx.Node:
        from_last = axis + space.row - int(space.node.meta["value"].dim())  # also without N
        return self.graph.call_method("size", (self.new[space.node], from_last))

    def _in_tail(self, node: fx.Node, space: Space, of_maps: bool = False) -> Any:
        """What ``node`` is inside a tail: numbers count windows instead of images, and a window's positions.

        ``of_maps``: where maps are met instead, images are counted.
        """
        kind = node.meta["kind"]
        if not isinstance(kind, Number) or node.op == "placeholder" or _is_read(node):
            return self.new[node]
        key = node, None if of_maps else space
        if key not in self.tail:
            others = [n for n in node.all_input_nodes if not isinstance(n.meta["kind"], (Number, type(None)))]
            if node.op == "call_method" and node.target == "size" and others:
                out = self._length_in_tail(node, space, of_maps)
            elif others and spelled(node.op, node.target) not in NEW:
                raise Cannot(f"{name_of(node, self.trace.root)} of a map takes part in what becomes of a statistic")
            else:
                out = self.graph.node_copy(node, lambda n: self._in_tail(n, space, of_maps))
            self.tail[key] = out
        return self.tail[key]

    def _length_in_tail(self, node: fx.Node, space: Space, of_maps: bool) -> fx.Node:
        label = next(iter(node.meta["kind"].labels))
        call = self.graph.call_function
        if label == "?":
            raise Cannot("a size of something that is not understood takes part in what becomes of a statistic")
        if label == "N":
            if of_maps:
                return self.new[node]
            return call(count if space in self.batched else images, (self.grids[space],))
        own: Space = node.meta["kind"].space or space
        if self.trace.elsewhere and own.of_base is None:
            raise Cannot(
                "the size of a map that is not there at base_size takes part in what becomes of a statistic"
            )
        window = [call(_graph.smaller, (own.window[axis], self._length(own, axis))) for axis in (0, 1)]
        if label in "HW":
            return window["HW".index(label)]
        depth = node.meta["value"] // math.prod(own.size)
        positions = call(operator.mul, tuple(window))
        return positions if depth == 1 else call(operator.mul, (positions, depth))

    def _spread(self, node: fx.Node, to: fx.Node) -> fx.Node:
        """A statistic as a map in the layout of another, or one that broadcasts against it."""
        labels = to.meta["kind"].labels
        kind: Statistic = node.meta["kind"]
        space = kind.space
        height, width = self._length(space, 0), self._length(space, 1)
        value = self.new[node]
        call = self.graph.call_function
        if space in self.batched:
            value = call(from_batch, (value, self.grids[space]))
        merged = labels.find("M")
        depth = 1 if merged < 0 else int(to.meta["value"].shape[merged]) // math.prod(space.size)
        args = (value, space.window, self.stride, height, width, labels, _item(node.meta["value"]), depth)
        return call(spread, args)


_PAIRS = ("var_mean", "std_mean")


def _alike(first: Any, second: Map) -> bool:
    """Whether two values are maps of one layout over the same positions."""
    return isinstance(first, Map) and first.space is second.space and first.labels == second.labels


def _statistic_behind(node: fx.Node) -> fx.Node | None:
    """The statistic that a node is, or that it brings to the size of a map."""
    if isinstance(node.meta["kind"], Statistic):
        return node
    if "spreads" in node.meta:
        return next(n for n in node.all_input_nodes if isinstance(n.meta["kind"], Statistic))
    return None


def _is_read(node: fx.Node) -> bool:
    """Whether a number comes from outside of the forward, once at each call."""
    return node.target is attribute_of or isinstance(node.target, Draw)


def _has_effect(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op.startswith("call_") and name.endswith("_") and not name.endswith("__")


def _item(value: Tensor) -> tuple[int, ...]:
    return tuple(int(n) for n in value.shape[1:])

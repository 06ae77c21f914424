"""What every recorded value is to the positions of a map."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from .arguments import is_number
from .layouts import broadcast, laid_out
from .names import LAYOUT, NEW, NORMS, POINTWISE, argument, dims_of, name_of, spelled
from .products import Products
from .proxies import label_of, labels_of_numbers
from .reductions import reduction_of
from .sizes import follows_size
from .statistics import ChannelsLast
from .terms import note_centred
from .values import Cannot, Gram, Map, Number, Opaque, Partial, Space, Statistic, Weights

__all__ = ["Kinds"]


class Kinds(Products):
    """Tells the kind of each value, from those of what it is computed from."""

    labels = "NCHW"
    spaces: list[Space]
    doubtful: list[str]

    def _kind(self, node: fx.Node) -> Any:
        value = node.meta["value"]
        if node.op == "placeholder":
            return self._given(node, value)
        if isinstance(value, (int, float)):
            return self._number(node)
        if not isinstance(value, (Tensor, tuple, list)):
            return None  # a dtype, a device
        inputs = [n for n in node.all_input_nodes if not isinstance(n.meta["kind"], (Number, type(None)))]
        kinds = [n.meta["kind"] for n in inputs]
        if not kinds or spelled(node.op, node.target) in NEW:
            return self._number(node)  # a constant, or a tensor made from sizes
        name = name_of(node, self.root)
        there = {type(k) for k in kinds}
        if Gram in there:
            return self._attending(node, name, inputs)
        if Opaque in there:
            if there & {Statistic, Partial}:
                raise Cannot(f"{name} joins a statistic with something that is not a map (N, C, H, W)")
            return self._settled(node) if is_map_like(value) else Opaque()
        if Weights in there:
            return self._weighted(node, name, inputs)
        if Partial in there:
            return self._continued(node, name, inputs[0]) if len(inputs) == 1 else _refuse(name)
        return self._of_maps_and_statistics(node, name, inputs)

    def _of_maps_and_statistics(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
        maps = [n for n in inputs if isinstance(n.meta["kind"], Map)]
        statistics = [n for n in inputs if isinstance(n.meta["kind"], Statistic)]
        if not statistics:
            return self._of_maps(node, name, maps)
        space = statistics[0].meta["kind"].space
        if any(n.meta["kind"].space is not space for n in statistics[1:]):
            raise Cannot(f"{name} mixes statistics of maps of different sizes")
        if not maps:
            return self._of_statistics(node, name, statistics[0])
        return self._of_both(node, name, maps)

    def _given(self, node: fx.Node, value: Any) -> Any:
        """The kind of an argument."""
        if is_number(value):
            return Number(frozenset("?"))
        labels = {4: self.labels, 5: "NCCHW"}.get(value.dim()) if isinstance(value, Tensor) else None
        return Opaque() if labels is None else self._settled(node, labels)

    def _doubt(self, node: fx.Node) -> None:
        value = node.meta["value"]
        for base in node.all_input_nodes:
            kind = base.meta["kind"]
            if isinstance(kind, Opaque) and name_of(node, self.root) in _TOGETHER:
                self.doubtful.append(name_of(node, self.root))
            if isinstance(kind, Map) and isinstance(value, Tensor):
                positions = math.prod(kind.space.size)
                if positions > 1 and value.numel() * positions <= base.meta["value"].numel():
                    self.unknown.append(f"{name_of(node, self.root).removeprefix('whole_')} over all positions")

    def _number(self, node: fx.Node) -> Number | None:
        if node.op == "call_method" and node.target == "size":
            base, index = node.args
            space = getattr(base.meta["kind"], "space", None)  # type: ignore[union-attr]
            return Number(frozenset(label_of(base, index)), space)  # type: ignore[arg-type]
        labels = labels_of_numbers(node)
        if spelled(node.op, node.target) not in NEW:
            labels |= {"?" for n in node.all_input_nodes if not isinstance(n.meta["kind"], (Number, type(None)))}
        spaces = [n.meta["kind"].space for n in node.all_input_nodes if isinstance(n.meta["kind"], Number)]
        return Number(labels, next((space for space in spaces if space is not None), None)) if labels else None

    def _settled(self, node: fx.Node, labels: str = "NCHW") -> Map:
        """A map that a layer made or that came in; of a size met before, of as many images, in the same space."""
        row = labels.index("H")
        size = tuple(node.meta["value"].shape[row : row + 2])
        for space in self.spaces:
            if space.size == size and space.node.meta["value"].shape[0] == node.meta["value"].shape[0]:
                return Map(labels, space)
        space = Space((int(size[0]), int(size[1])), node, row)
        self.spaces.append(space)
        return Map(labels, space)

    def _of_maps(self, node: fx.Node, name: str, maps: list[fx.Node]) -> Any:
        base, value = maps[0], node.meta["value"]
        if name == "matmul" and len(maps) == 2:
            return self._gram(*maps) or self._other_product(*maps)
        found = reduction_of(node, name, self.root)
        if found is not None and found.base is base and found.child not in self.skip:
            return self._reduced(node, found)
        if name in NORMS:
            return self._normed(node, name, base)
        if name in LAYOUT:
            return self._laid(node, name, base)
        if name in POINTWISE and isinstance(value, Tensor):
            return self._pointwise(node, name, maps)
        rule = _RULES.get(name)
        found_kind = _UNKNOWN if rule is None else rule(self, node, maps)
        return self._of_layer(node, base) if found_kind is _UNKNOWN else found_kind

    def _pointwise(self, node: fx.Node, name: str, maps: list[fx.Node]) -> Any:
        base = maps[0]
        note_centred(node, name)
        centred = base.meta.get("centred")
        if centred is not None and name == "abs":
            node.meta.update(centred=centred, shifted=False)
        twice = name == "mul" and node.args[0] is base and node.args[1] is base
        square = name == "square" or twice or (name == "pow" and argument(node, 1, "exponent") == 2)
        if centred is not None and square:
            node.meta["squared"] = centred
        return broadcast(maps, node.meta["value"])

    def _expanded(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        kind, value, given = maps[0].meta["kind"], node.meta["value"], maps[0].meta["value"].shape
        before = "1" * (value.dim() - len(kind.labels)) + kind.labels
        padded = (0,) * (value.dim() - len(given)) + tuple(given)
        same = [a == b for a, b in zip(padded, value.shape, strict=True)]
        return replace(kind, labels="".join(x if y else "C" for x, y in zip(before, same, strict=True)))

    def _stacked(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        kind = maps[0].meta["kind"]
        if any(m.meta["kind"] != kind for m in maps):
            return _UNKNOWN
        place = operator.index(argument(node, 1, "dim", 0)) % (len(kind.labels) + 1)
        labels = kind.labels[:place] + "C" + kind.labels[place:]
        return replace(kind, labels=labels) if place else Opaque()

    def _softmax(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        kind = maps[0].meta["kind"]
        dims = dims_of(argument(node, 1, "dim"), len(kind.labels))
        if "".join(kind.labels[d] for d in dims) == "P" and not kind.mixed:
            return Weights(kind.labels, kind.space, maps[0])
        return kind if all(kind.labels[d] in "C1" for d in dims) else Opaque()

    def _joined(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        kind = maps[0].meta["kind"]
        if any(replace(m.meta["kind"], mixed=False) != replace(kind, mixed=False) for m in maps):
            return _UNKNOWN
        (dim,) = dims_of(argument(node, 1, "dim", 0), len(kind.labels))
        if kind.labels[dim] in "HWPM":  # side by side: another map
            return self._settled(node) if kind.labels == "NCHW" else Opaque()
        return replace(kind, mixed=any(m.meta["kind"].mixed for m in maps))

    def _parted(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        kind = maps[0].meta["kind"]
        if not isinstance(node.meta["value"], (tuple, list)):
            return _UNKNOWN
        unbound = name_of(node, self.root) == "unbind"
        (dim,) = dims_of(argument(node, 1 if unbound else 2, "dim", 0), len(kind.labels))
        if kind.labels[dim] in "HWPM":  # other maps
            return Opaque()
        return replace(kind, labels=kind.labels[:dim] + kind.labels[dim + 1 :]) if unbound else kind

    def _matrix_product(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        alone = len(maps) == 1 and isinstance(node.meta["value"], Tensor) and len(node.all_input_nodes) == 2
        return _multiplied(node, maps[0].meta["kind"]) if alone else _UNKNOWN

    def _linear(self, node: fx.Node, maps: list[fx.Node]) -> Any:
        kind = maps[0].meta["kind"]
        return kind if kind.labels[-1] in "C1" else _UNKNOWN

    def _of_layer(self, node: fx.Node, base: fx.Node) -> Any:
        """What a layer, or an operation without a rule, makes of a map."""
        kind, value, given = base.meta["kind"], node.meta["value"], base.meta["value"]
        if node.op == "call_module" and isinstance(value, Tensor):
            module = self.root.get_submodule(str(node.target))
            kept = kind if not list(module.parameters()) else replace(kind, mixed=False)  # a layer makes a new map
            if value.shape == given.shape:
                return kept
            if value.dim() == given.dim() and kind.labels[-1] in "C1" and value.shape[:-1] == given.shape[:-1]:
                return kept  # a linear layer over channels that come last
        return self._settled(node) if is_map_like(value) and kind.labels == "NCHW" else Opaque()

    def _laid(self, node: fx.Node, name: str, base: fx.Node) -> Any:
        """A map in another layout; what is known of its values stays known."""
        kind: Map = base.meta["kind"]
        out = laid_out(node, name, kind)
        if isinstance(out, Opaque):
            out = self._of_frames(node, kind, base) or out
        if isinstance(out, Opaque) and base.op == "placeholder" and kind.labels == "NCHW":
            shape, rest = tuple(base.meta["value"].shape), tuple(node.meta["value"].shape[1:])
            if rest == (shape[1] * shape[2], shape[3]):
                raise ChannelsLast  # its positions become one dimension
        if isinstance(out, Map) and name != "getitem" and isinstance(base.meta["value"], Tensor):
            node.meta["source"] = base
            for key in ("squared", "centred"):
                if key in base.meta:
                    node.meta[key] = self._also(node, base, base.meta[key])
            node.meta.update({key: base.meta[key] for key in ("shifted", "mean_of") if key in base.meta})
        return out

    def _of_frames(self, node: fx.Node, kind: Map, base: fx.Node) -> Map | None:
        """Frames (N, T, C, H, W) as images of a batch, or back."""
        value, given = node.meta["value"], base.meta["value"]
        if not isinstance(value, Tensor) or not isinstance(given, Tensor) or value.numel() != given.numel():
            return None
        labels = {"NCCHW": "NCHW", "NCHW": "NCCHW"}.get(kind.labels, "")
        same = min(value.dim(), given.dim()) - 1
        frames = len(labels) == value.dim() and value.shape[-same:] == given.shape[-same:]
        return replace(self._settled(node, labels), mixed=kind.mixed) if frames else None

    def _normed(self, node: fx.Node, name: str, base: fx.Node) -> Any:
        """Instance or group norm of a map (N, C, H, W), or (N, C, P), written as a function or over P."""
        kind: Map = base.meta["kind"]
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if kind.labels == "NCHW" or getattr(module, "track_running_stats", False):
                return kind  # a site of its own, or not global
        elif name == "instance_norm" and not argument(node, 5, "use_input_stats", True):
            return kind
        if kind.labels not in ("NCHW", "NCP"):
            return Opaque()
        node.meta["norm"] = True
        self.norms.append(node)
        return kind

    def _of_statistics(self, node: fx.Node, name: str, statistic: fx.Node) -> Any:
        kind: Statistic = statistic.meta["kind"]
        value = node.meta["value"]
        if any(follows_size(n) for n in node.all_input_nodes):
            raise Cannot(f"{name} takes a statistic together with a constant as large as the map")
        if not isinstance(value, Tensor) or not isinstance(statistic.meta["value"], Tensor):
            return kind
        self._follow_mean(node, name, statistic)
        if name in ("expand", "expand_as", "repeat", "interpolate", "upsample", "broadcast_to"):
            before = tuple(statistic.meta["value"].shape)
            if tuple(value.shape[-2:]) == kind.space.size and before[-2:] == (1, 1) and value.dim() == len(before):
                node.meta["spreads"] = name if name in ("expand", "broadcast_to") else "fill"
                return Map("N" + "C" * (value.dim() - 3) + "HW", kind.space, mixed=True)
            if tuple(value.shape) != tuple(statistic.meta["value"].shape):
                raise Cannot(f"{name} of a statistic to {tuple(value.shape)} is not understood")
        if value.dim() == 0 or value.shape[0] != statistic.meta["value"].shape[0]:
            raise Cannot(f"{name} of a statistic does not keep one item per image first")
        return kind

    def _of_both(self, node: fx.Node, name: str, maps: list[fx.Node]) -> Any:
        """Where a statistic meets a map: each position takes its own window's value."""
        value = node.meta["value"]
        spaces = {
            id(n.meta["kind"].space) for n in node.all_input_nodes if isinstance(n.meta["kind"], (Map, Statistic))
        }
        if len(spaces) > 1:
            raise Cannot(f"{name} takes a statistic of one map together with a map of another size")
        if name in ("expand_as", "view_as", "reshape_as") and isinstance(node.args[0].meta["kind"], Statistic):  # type: ignore[union-attr]
            node.meta["spreads"] = "expand_as"
            if name != "expand_as":
                raise Cannot(f"{name} of a statistic is not understood")
            self._follow_mean(node, name, node.args[0])  # type: ignore[arg-type]
            return replace(maps[0].meta["kind"], mixed=True)
        if name not in POINTWISE or not isinstance(value, Tensor):
            raise Cannot(f"{name} takes a statistic together with a map, and not position by position")
        kind: Map = max((m.meta["kind"] for m in maps), key=lambda k: len(k.labels))
        note_centred(node, name)
        for n in node.all_input_nodes:
            if isinstance(n.meta["kind"], Statistic):
                shape = n.meta["value"].shape
                if len(shape) != len(kind.labels) or any(
                    label in "HWPM" and length != 1 for label, length in zip(kind.labels, shape, strict=True)
                ):
                    raise Cannot(f"{name} takes a statistic of shape {tuple(shape)} together with a map")
        out = broadcast(maps, value)
        return replace(out, mixed=True) if isinstance(out, Map) else out


_UNKNOWN: Any = object()
_TOGETHER = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm", "logsumexp",
    "softmax", "matmul", "cumsum", "sort", "topk", "median", "prod", "scaled_dot_product_attention",
}  # fmt: skip
_RULES: dict[str, Any] = {
    "expand": Kinds._expanded,
    "stack": Kinds._stacked,
    "softmax": Kinds._softmax,
    "cat": Kinds._joined,
    **dict.fromkeys(("chunk", "split", "tensor_split", "unbind"), Kinds._parted),
    "matmul": Kinds._matrix_product,
    "linear": Kinds._linear,
}


def _multiplied(node: fx.Node, kind: Map) -> Any:
    """A map times a constant matrix: over channels it stays a map."""
    if node.args[0].meta["kind"] is kind and kind.labels[-1] in "C1":  # type: ignore[union-attr]
        return replace(kind, labels=kind.labels[:-1] + "C")
    if node.args[1].meta["kind"] is kind and kind.labels[-2] in "C1":  # type: ignore[union-attr]
        labels = kind.labels[:-2] + "C" + kind.labels[-1]
        return replace(kind, labels=labels) if len(labels) == node.meta["value"].dim() else Opaque()
    return Opaque()


def _refuse(name: str) -> Any:
    raise Cannot(f"its {name} of a statistic over rows or columns alone has no local form here")


def is_map_like(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and tuple(value.shape[2:]) != (1, 1)

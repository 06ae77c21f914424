"""Trace one module's ``forward`` and tell, for every value, how it relates to the positions of a map.

A value is a *map* (its dimensions labelled N batch, C channel, H height, W width, P both flattened, 1), a
*statistic* (what a reduction over all positions of a map gave, and everything computed from that and constants
alone), a number computed from sizes, or a constant. Labels come from running the recorded operations on fake
tensors as they are traced.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = [
    "POINTWISE",
    "Cannot",
    "Map",
    "Number",
    "Opaque",
    "Reduction",
    "Space",
    "Statistic",
    "Trace",
    "argument",
    "name_of",
    "trace",
]


class Cannot(Exception):
    """The module's statistics cannot be made local; the message is the reason shown in the plan.

    ``escapes``: a statistic leaves the module, so that the module around it may know what becomes of it.
    """

    escapes = False


@dataclass(eq=False)
class Space:
    """The positions of one map: its size in the traced run, and where to read its size at run time."""

    size: tuple[int, int]
    node: fx.Node
    row: int = 2  # the dimension of ``node`` that is the height; the width is the next


@dataclass(frozen=True)
class Map:
    labels: str
    space: Space


@dataclass(frozen=True)
class Statistic:
    """One value per image and, after conversion, per window; its first dimension is the batch."""

    space: Space


@dataclass(frozen=True)
class Partial:
    """A map reduced over one of its two spatial dimensions, on the way to a statistic."""

    operation: str
    base: fx.Node
    dims: tuple[int, ...]
    keepdim: bool
    labels: str


@dataclass(frozen=True)
class Weights:
    """A softmax over the positions of ``logits``; ``weighted``: a map that has been multiplied by it."""

    labels: str
    space: Space
    logits: fx.Node
    weighted: fx.Node | None = None


@dataclass(frozen=True)
class Number:
    """A number computed from the lengths of labelled dimensions; ``space`` if a spatial one is among them."""

    labels: frozenset[str]
    space: Space | None = None


@dataclass(frozen=True)
class Opaque:
    """A value computed from maps in a way that is not understood."""


@dataclass(frozen=True)
class Reduction:
    """How a statistic comes from a map (N, …): the operation over positions and its original result's shape."""

    operation: str  # mean, sum, amax, amin, var, std, norm
    base: fx.Node
    dims: tuple[int, ...]
    keepdim: bool
    order: float = 2.0
    correction: float = 0.0
    child: str | None = None  # path of the module that does it
    logits: fx.Node | None = None  # of the weights of a weighted mean


@dataclass
class Trace:
    """``graph``'s nodes hold ``value`` (fake), ``kind`` and, where a statistic begins, ``reduction`` in meta.

    ``unknown``: operations that took all positions together in a way that is not understood.
    """

    graph: fx.Graph
    root: nn.Module
    inlined: tuple[str, ...]
    reductions: list[fx.Node] = field(default_factory=list)
    norms: list[fx.Node] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def trace(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inline: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    mode: FakeTensorMode | None = None,
) -> Trace:
    """Trace ``module.forward`` for arguments of the given shapes; children in ``inline`` are entered.

    Pools in ``skip`` are not taken for statistics. ``mode``: that of the module's tensors if they are fake.

    Raises:
        Cannot: the forward branches on values or on the size of the map, or cannot be traced.
    """
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    tracer = _Tracer(module, args, kwargs, inline, skip, mode)
    try:
        with mode:
            try:
                graph = tracer.trace(module)
            except _ChannelsLast:
                tracer = _Tracer(module, args, kwargs, inline, skip, mode)
                tracer.labels = "NHWC"
                graph = tracer.trace(module)
    except _ChannelsLast:
        raise Cannot("it reduces over channels and rows together") from None
    except Cannot:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise Cannot(f"its forward cannot be traced ({type(error).__name__}: {lines[0]})") from error
    return Trace(graph, module, inline, tracer.reductions, tracer.norms, tracer.unknown)


class _ChannelsLast(Exception):
    """The module's maps must be (N, H, W, C): it reduces over the two middle dimensions."""


def _example(value: Any) -> Any:
    """A fake tensor like a recorded argument; of two images if it was of one, to tell the batch from a 1."""
    if not isinstance(value, Tensor):
        return value
    shape = tuple(value.shape)
    if len(shape) >= 3 and shape[0] == 1:
        shape = (2, *shape[1:])
    return torch.empty(shape, dtype=value.dtype, device=value.device)


_PLAIN = nn.Module.__call__, nn.Module.__getattr__


class _Proxy(fx.Proxy):
    """A traced tensor, or tuple of tensors, whose rank and constant lengths are known."""

    tracer: _Tracer

    @property
    def _value(self) -> Any:
        return self.node.meta["value"]

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self._length(index) for index in range(self.dim()))

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._length(dim)

    def _length(self, index: int) -> Any:
        index = operator.index(index) % self.dim()
        label = _label(self.node, index)
        if label in "NHWP":
            return self.tracer.create_proxy("call_method", "size", (self, index), {})
        return self._value.shape[index]

    def dim(self) -> int:
        return int(self._value.dim())

    ndimension = dim
    ndim = property(dim)

    def is_floating_point(self) -> bool:
        return bool(self._value.is_floating_point())

    def is_contiguous(self, **_: Any) -> bool:
        return True

    def numel(self) -> Any:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._value, Tensor):
            raise Cannot("its forward iterates over a tensor")
        return iter([self[index] for index in range(len(self._value))])  # type: ignore[index]

    def __bool__(self) -> bool:
        raise Cannot("its forward branches on values")


class _Numeral(fx.Proxy):
    """A traced number that depends on sizes: free in arithmetic, refused where the code's course depends on it."""

    def _fixed(self) -> Any:
        raise _course(self.node.meta["kind"].labels)

    __bool__ = __index__ = __int__ = __float__ = _fixed


def _course(labels: frozenset[str]) -> Cannot:
    return Cannot(f"the course of its forward depends on the {'batch' if labels <= {'N'} else 'map'} size")


class _Tracer(fx.Tracer):
    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inline: tuple[str, ...],
        skip: tuple[str, ...],
        mode: FakeTensorMode,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.unknown: list[str] = []
        self.labels = "NCHW"
        with self.mode:
            self.given = [_example(value) for value in args]
            self.named = {name: _example(value) for name, value in kwargs.items()}
        self.skip = skip
        self.inline = [module.get_submodule(path) for path in inline]
        self.reductions: list[fx.Node] = []
        self.norms: list[fx.Node] = []
        self.spaces: list[Space] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m is entered for entered in self.inline)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (_Numeral if isinstance(node.meta.get("kind"), Number) else _Proxy)(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind == "get_attr":
            node.meta.update(value=self._run(node), kind=None)
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None, *_: Any
    ) -> Any:
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        value = node.meta["value"] if "value" in node.meta else self._run(node)
        if isinstance(value, bool):
            labels = _labels_of_numbers(node)
            if labels:
                raise _course(labels)
            self.graph.erase_node(node)
            return value
        node.meta["value"] = value
        node.meta["kind"] = self._kind(node)
        if isinstance(node.meta["kind"], Opaque):
            self._doubt(node)
        return self.proxy(node)

    def _run(self, node: fx.Node) -> Any:
        # While tracing, modules record what is called and read of them; here they are to run.
        recording = nn.Module.__call__, nn.Module.__getattr__
        nn.Module.__call__, nn.Module.__getattr__ = _PLAIN  # type: ignore[method-assign]
        try:
            return self._result(node)
        finally:
            nn.Module.__call__, nn.Module.__getattr__ = recording  # type: ignore[method-assign]

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        if node.op == "placeholder":
            if node.target in self.named:
                return self.named[str(node.target)]
            if self.given:
                return self.given.pop(0)
            if node.args:
                return node.args[0]
            raise Cannot(f"its argument {node.target} is not known")
        if node.op == "get_attr":
            value: Any = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        with torch.no_grad():
            if node.op == "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return self.root.get_submodule(str(node.target))(*args, **kwargs)

    # ---------------------------------------------------------------------------------------- what a value is

    def _kind(self, node: fx.Node) -> Any:
        value = node.meta["value"]
        if node.op == "placeholder":
            return self._settled(node, self.labels) if isinstance(value, Tensor) and value.dim() == 4 else Opaque()
        if isinstance(value, (int, float)):
            return self._number(node)
        if not isinstance(value, (Tensor, tuple, list)):
            return None  # a dtype, a device
        inputs = [n for n in node.all_input_nodes if not isinstance(n.meta["kind"], (Number, type(None)))]
        kinds = [n.meta["kind"] for n in inputs]
        if not kinds:
            return None
        if any(isinstance(k, Opaque) for k in kinds):
            if any(isinstance(k, (Statistic, Partial)) for k in kinds):
                raise Cannot(f"{name_of(node, self.root)} mixes a statistic with something not understood")
            return self._settled(node) if _is_map_like(value) else Opaque()
        name = name_of(node, self.root)
        maps = [n for n, k in zip(inputs, kinds, strict=True) if isinstance(k, Map)]
        statistics = [n for n, k in zip(inputs, kinds, strict=True) if isinstance(k, Statistic)]
        if any(isinstance(k, Weights) for k in kinds):
            return self._weighted(node, name, inputs)
        if any(isinstance(k, Partial) for k in kinds):
            return self._continued(node, name, inputs[0]) if len(inputs) == 1 else _refuse(name)
        if not statistics:
            return self._of_maps(node, name, maps)
        space = statistics[0].meta["kind"].space
        if any(n.meta["kind"].space is not space for n in statistics[1:]):
            raise Cannot(f"{name} mixes statistics of maps of different sizes")
        if not maps:
            return self._of_statistics(node, name, statistics[0])
        return self._of_both(node, name, maps)

    def _doubt(self, node: fx.Node) -> None:
        value = node.meta["value"]
        for base in node.all_input_nodes:
            kind = base.meta["kind"]
            if isinstance(kind, Map) and isinstance(value, Tensor):
                positions = math.prod(kind.space.size)
                if positions > 1 and value.numel() * positions <= base.meta["value"].numel():
                    self.unknown.append(name_of(node, self.root))

    def _number(self, node: fx.Node) -> Number | None:
        if node.op == "call_method" and node.target == "size":
            base, index = node.args
            space = getattr(base.meta["kind"], "space", None)  # type: ignore[union-attr]
            return Number(frozenset(_label(base, index)), space)  # type: ignore[arg-type]
        labels = _labels_of_numbers(node)
        spaces = [n.meta["kind"].space for n in node.all_input_nodes if isinstance(n.meta["kind"], Number)]
        return Number(labels, next((space for space in spaces if space is not None), None)) if labels else None

    def _settled(self, node: fx.Node, labels: str = "NCHW") -> Map:
        """A map that a layer made or that came in; of a size met before, in the same space."""
        row = labels.index("H")
        size = tuple(node.meta["value"].shape[row : row + 2])
        for space in self.spaces:
            if space.size == size:
                return Map(labels, space)
        space = Space((int(size[0]), int(size[1])), node, row)
        self.spaces.append(space)
        return Map(labels, space)

    def _of_maps(self, node: fx.Node, name: str, maps: list[fx.Node]) -> Any:
        base, value = maps[0], node.meta["value"]
        kind: Map = base.meta["kind"]
        found = _reduction(node, name, self.root)
        if found is not None and found.base is base and found.child not in self.skip:
            return self._reduced(node, found)
        if name in NORMS:
            return self._normed(node, name, base)
        if name in _LAYOUT:
            return _laid_out(node, name, kind)
        if name in POINTWISE and isinstance(value, Tensor):
            centred = base.meta.get("centred")
            twice = name == "mul" and node.args[0] is base and node.args[1] is base
            if centred is not None and (
                name == "square" or twice or (name == "pow" and argument(node, 1, "exponent") == 2)
            ):
                node.meta["squared"] = centred
            return _broadcast(maps, value)
        if name == "stack" and all(m.meta["kind"] == kind for m in maps):
            place = operator.index(argument(node, 1, "dim", 0)) % (len(kind.labels) + 1)
            return Map(kind.labels[:place] + "C" + kind.labels[place:], kind.space) if place else Opaque()
        if name == "softmax":
            dims = _dims(argument(node, 1, "dim"), len(kind.labels))
            if "".join(kind.labels[d] for d in dims) == "P":
                return Weights(kind.labels, kind.space, base)
            return kind if all(kind.labels[d] in "C1" for d in dims) else Opaque()
        if name == "cat" and all(m.meta["kind"] == kind for m in maps):
            return kind
        if name in ("chunk", "split", "tensor_split", "unbind", "getitem") and isinstance(value, (tuple, list)):
            return kind
        if node.op == "call_module" and isinstance(value, Tensor):
            given = base.meta["value"]
            if value.shape == given.shape:
                return kind
            if value.dim() == given.dim() and kind.labels[-1] in "C1" and value.shape[:-1] == given.shape[:-1]:
                return kind  # a linear layer over channels that come last
        return self._settled(node) if _is_map_like(value) and kind.labels == "NCHW" else Opaque()

    def _reduced(self, node: fx.Node, found: Reduction) -> Any:
        kind: Map = found.base.meta["kind"]
        labels = {kind.labels[d] for d in found.dims}
        there = {label for label in kind.labels if label in "HWP"}
        if not labels & there:
            return _drop(kind, found.dims, found.keepdim)
        if labels == {"C", "H"} and found.base.op == "placeholder":
            raise _ChannelsLast
        if "N" in labels:
            raise Cannot(f"it takes a {found.operation} over the batch")
        if labels & there == there:
            return self._statistic(node, found)
        if labels == labels & there and found.operation in ("mean", "sum", "amax", "amin"):
            left = _drop(kind, found.dims, found.keepdim).labels
            return Partial(found.operation, found.base, found.dims, found.keepdim, left)
        return Opaque()

    def _continued(self, node: fx.Node, name: str, base: fx.Node) -> Any:
        """The second step of a reduction in two: ``x.sum(3).sum(2)``."""
        partial: Partial = base.meta["kind"]
        second = _reduction(node, name, self.root)
        if second is None or second.operation != partial.operation:
            return Opaque()
        labels = {partial.labels[d] for d in second.dims}
        if not labels <= {"H", "W"} or second.keepdim != partial.keepdim:
            return Opaque()
        rank = partial.base.meta["value"].dim()
        dims = tuple(d for d in range(rank) if partial.base.meta["kind"].labels[d] in "HW")
        return self._statistic(node, Reduction(partial.operation, partial.base, dims, partial.keepdim))

    def _statistic(self, node: fx.Node, found: Reduction) -> Statistic:
        centred = found.base.meta.get("squared")
        if found.operation == "mean":
            node.meta["mean_of"] = found.base
        if centred is not None and found.operation in ("mean", "sum"):
            # The mean of (x - mean(x))² is the variance of each window; the mean of what neighbours differ from
            # their own windows' means is not.
            found = replace(found, operation="var" if found.operation == "mean" else "var_sum", base=centred)
        node.meta["reduction"] = found
        self.reductions.append(node)
        return Statistic(found.base.meta["kind"].space)

    def _weighted(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
        """A softmax over positions on its way to the features it weighs, and their weighted sum."""
        weights = next(n for n in inputs if isinstance(n.meta["kind"], Weights))
        kind: Weights = weights.meta["kind"]
        others = [n for n in inputs if n is not weights]
        if not others and name in _LAYOUT and kind.weighted is None:
            laid = _laid_out(node, name, Map(kind.labels, kind.space))
            return Weights(laid.labels, kind.space, kind.logits) if isinstance(laid, Map) else Opaque()
        if not others and name == "sum" and kind.weighted is not None:
            dims = _dims(argument(node, 1, "dim"), len(kind.labels))
            if {kind.labels[d] for d in dims} in ({"P"}, {"H", "W"}):
                reduction = Reduction("weighted", kind.weighted, dims, _keep(node, 2), logits=kind.logits)
                return self._statistic(node, reduction)
        if len(others) == 1 and isinstance(others[0].meta["kind"], Map) and kind.weighted is None:
            features = others[0]
            labels = features.meta["kind"].labels
            if name == "mul":
                made = _broadcast([features, _as_map(weights)], node.meta["value"])
                return (
                    Weights(made.labels, kind.space, kind.logits, features) if isinstance(made, Map) else Opaque()
                )
            if name in ("matmul", "bmm") and node.args[0] is features and labels[-1] == "P" == kind.labels[-2]:
                return self._statistic(
                    node, Reduction("weighted", features, (len(labels) - 1,), False, logits=kind.logits)
                )
            if name in ("matmul", "bmm") and node.args[1] is features and labels[-2] == "P" == kind.labels[-1]:
                return self._statistic(
                    node, Reduction("weighted", features, (len(labels) - 2,), False, logits=kind.logits)
                )
        raise Cannot(f"{name} takes a softmax over positions in a way that is not understood")

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
        if not isinstance(value, Tensor) or not isinstance(statistic.meta["value"], Tensor):
            return kind
        reduction = statistic.meta.get("reduction")
        if name == "div" and reduction is not None and reduction.operation == "sum" and len(node.args) > 1:
            divisor = node.args[1]
            value_ = divisor.meta["value"] if isinstance(divisor, fx.Node) else None
            if value_ == math.prod(kind.space.size) and _labels_of_numbers(node) & {"H", "W", "P"}:
                node.meta["mean_of"] = reduction.base
        if name in ("expand", "expand_as", "repeat", "interpolate", "upsample", "broadcast_to"):
            before = tuple(statistic.meta["value"].shape)
            if tuple(value.shape[-2:]) == kind.space.size and before[-2:] == (1, 1) and value.dim() == len(before):
                node.meta["spreads"] = name if name in ("expand", "broadcast_to") else "fill"
                return Map("N" + "C" * (value.dim() - 3) + "HW", kind.space)
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
        if name == "expand_as":
            node.meta["spreads"] = name
            return maps[0].meta["kind"]
        if name not in POINTWISE or not isinstance(value, Tensor):
            raise Cannot(f"{name} takes a statistic together with a map, and not position by position")
        kind: Map = max((m.meta["kind"] for m in maps), key=lambda k: len(k.labels))
        if name == "sub" and len(node.args) == 2 and node.args[1].meta.get("mean_of") is node.args[0]:  # type: ignore[union-attr]
            node.meta["centred"] = node.args[0]
        for n in node.all_input_nodes:
            if isinstance(n.meta["kind"], Statistic):
                shape = n.meta["value"].shape
                if len(shape) != len(kind.labels) or any(
                    label in "HWP" and length != 1 for label, length in zip(kind.labels, shape, strict=True)
                ):
                    raise Cannot(f"{name} takes a statistic of shape {tuple(shape)} together with a map")
        return _broadcast(maps, value)


def _refuse(name: str) -> Any:
    raise Cannot(f"{name} of half-reduced maps is not understood")


# -------------------------------------------------------------------------------------------- names and arguments


def name_of(node: fx.Node, root: nn.Module) -> str:
    """The operation of a call by one name for all its spellings: ``mean`` for ``torch.mean`` and ``x.mean``."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    name = name.rstrip("_") or name
    return _SAME.get(name, name)


_SAME = {
    name: to
    for to, names in {
        "add": ("iadd", "radd"),
        "sub": ("isub", "subtract", "rsub"),
        "mul": ("imul", "rmul", "multiply"),
        "div": ("truediv", "itruediv", "divide", "true_divide"),
        "pow": ("ipow",),
        "cat": ("concat", "concatenate"),
        "view": ("reshape",),
        "transpose": ("swapaxes", "swapdims"),
        "norm": ("vector_norm", "linalg_vector_norm"),
        "neg": ("negative",),
        "abs": ("absolute",),
        "clamp": ("clip",),
    }.items()
    for name in names
}

_LAYOUT = {
    "view", "view_as", "reshape_as", "flatten", "unflatten", "permute", "transpose", "movedim", "moveaxis",
    "squeeze", "unsqueeze", "getitem", "t",
}  # fmt: skip

POINTWISE = {
    "add", "sub", "mul", "div", "floordiv", "pow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "exp2",
    "expm1", "log", "log1p", "log2", "abs", "neg", "sign", "clamp", "clamp_min", "clamp_max", "maximum",
    "minimum", "where", "lerp", "addcmul", "addcdiv", "nan_to_num", "sin", "cos", "erf", "relu", "relu6",
    "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh",
    "tanhshrink", "softplus", "softsign", "softshrink", "hardshrink", "hardtanh", "hardsigmoid", "hardswish",
    "threshold", "dropout", "dropout2d", "to", "feature_dropout", "float", "double", "half", "bfloat16",
    "type", "type_as", "contiguous", "detach", "clone", "zeros_like", "ones_like",
}  # fmt: skip

NORMS = ("instance_norm", "group_norm", "InstanceNorm1d", "InstanceNorm2d", "GroupNorm")


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _dims(value: Any, rank: int) -> tuple[int, ...]:
    if value is None:
        return tuple(range(rank))
    if isinstance(value, (tuple, list)):
        return tuple(sorted(operator.index(v) % rank for v in value)) or tuple(range(rank))
    return (operator.index(value) % rank,)


def _label(node: fx.Node, index: int) -> str:
    """The label of a dimension; of a statistic's, N for the first and C for the others."""
    kind = node.meta["kind"]
    if isinstance(kind, (Map, Partial)) and len(kind.labels) == node.meta["value"].dim():
        return kind.labels[index]
    return "N" if isinstance(kind, Statistic) and index == 0 else "C"


def _labels_of_numbers(node: fx.Node) -> frozenset[str]:
    kinds = [n.meta["kind"] for n in node.all_input_nodes]
    return frozenset().union(*(kind.labels for kind in kinds if isinstance(kind, Number)))


def _is_map_like(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and tuple(value.shape[2:]) != (1, 1)


def _as_map(node: fx.Node) -> fx.Node:
    """A stand-in for the map that a node's weights are."""
    out = copy.copy(node)
    out.meta = {**node.meta, "kind": Map(node.meta["kind"].labels, node.meta["kind"].space)}
    return out


# ------------------------------------------------------------------------------------------------ reductions


def _reduction(node: fx.Node, name: str, root: nn.Module) -> Reduction | None:
    """The reduction that a call is, over whichever dimensions; None if it is none that has a local form."""
    base = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(base, fx.Node) or not isinstance(base.meta.get("value"), Tensor):
        return None
    rank = base.meta["value"].dim()
    size = tuple(base.meta["value"].shape[-2:])
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
        lengths = _values(kernel)
        padded = argument(node, 3, "padding", 0)
        if lengths != size or padded not in (0, (0, 0)) or not _is_whole(kernel):
            return None
        return Reduction("mean" if "avg" in name else "amax", base, (rank - 2, rank - 1), True)
    if name in ("mean", "sum", "amax", "amin"):
        dims = _dims(argument(node, 1, "dim", node.kwargs.get("axis")), rank)
        return Reduction(name, base, dims, _keep(node, 2))
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
            name, base, _dims(dim, rank), bool(keep), correction=float(1 if correction is None else correction)
        )
    if name == "norm":
        order = argument(node, 1, "p", node.kwargs.get("ord", 2))
        dims = _dims(argument(node, 2, "dim"), rank)
        if order in (None, "fro"):
            order = 2
        if not isinstance(order, (int, float)):
            return None
        return Reduction("norm", base, dims, _keep(node, 3), order=float(order))
    return None


def _keep(node: fx.Node, position: int) -> bool:
    return bool(argument(node, position, "keepdim", node.kwargs.get("keepdims", False)))


def _values(kernel: Any) -> tuple[Any, ...]:
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel, kernel)
    return tuple(item.meta["value"] if isinstance(item, fx.Node) else item for item in items)


def _is_whole(kernel: Any) -> bool:
    """Whether a kernel's size was read off the map (a constant that happens to fit is a local pool)."""
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,)
    return all(isinstance(item, fx.Node) for item in items)


# ---------------------------------------------------------------------------------------------------- layout


def _drop(kind: Map, dims: tuple[int, ...], keepdim: bool) -> Map:
    labels = "".join("1" if d in dims else label for d, label in enumerate(kind.labels) if keepdim or d not in dims)
    return Map(labels, kind.space)


def _broadcast(maps: list[fx.Node], value: Tensor) -> Any:
    """The labels of a pointwise result: on each dimension the one that is not 1."""
    rank = value.dim()
    out = ["1"] * rank
    for node in maps:
        kind: Map = node.meta["kind"]
        if kind.space is not maps[0].meta["kind"].space:
            return Opaque()
        for label, place in zip(reversed(kind.labels), range(rank - 1, -1, -1), strict=False):
            if out[place] in ("1", label):
                out[place] = label
            elif label != "1":
                return Opaque()
    out = ["C" if label == "1" and value.shape[place] != 1 else label for place, label in enumerate(out)]
    return Map("".join(out), maps[0].meta["kind"].space)


def _laid_out(node: fx.Node, name: str, kind: Map) -> Any:
    """The labels after a change of layout."""
    labels, value = list(kind.labels), node.meta["value"]
    rank = len(labels)
    if name == "getitem":
        return _indexed(node, kind)
    if not isinstance(value, Tensor):
        return Opaque()
    if name in ("permute", "movedim", "moveaxis", "transpose", "t"):
        # Distinct lengths tell where each dimension went.
        probe = torch.empty(tuple(range(2, rank + 2)), device="meta")
        method = str(node.target) if node.op == "call_method" else name
        moved = getattr(probe, method.rstrip("_"))(*node.args[1:], **node.kwargs)
        return Map("".join(labels[length - 2] for length in moved.shape), kind.space)
    if name == "unsqueeze":
        place = operator.index(argument(node, 1, "dim")) % (rank + 1)
        return Map("".join([*labels[:place], "1", *labels[place:]]), kind.space)
    if name == "squeeze":
        given = node.args[0].meta["value"].shape  # type: ignore[union-attr]
        chosen = _dims(argument(node, 1, "dim"), rank)
        return Map("".join(x for d, x in enumerate(labels) if d not in chosen or given[d] != 1), kind.space)
    return _regrouped(kind, tuple(node.args[0].meta["value"].shape), tuple(value.shape))  # type: ignore[union-attr]


def _regrouped(kind: Map, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
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
        elif old == "HW" and len(lengths) == 1:
            new = "P"
        elif old == "P" and lengths == kind.space.size:
            new = "HW"
        elif set(old) == {"C"}:
            new = "C" * len(lengths)
        else:
            return Opaque()
        names = iter(new)
        out += "".join("1" if after[d] == 1 else next(names) for d in right)
    return Map(out, kind.space)


def _indexed(node: fx.Node, kind: Map) -> Any:
    base, index = node.args
    if isinstance(base.meta["value"], (tuple, list)):  # type: ignore[union-attr]
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
            if label in "HWP" and item != slice(None):
                return Opaque()
            out += label
        elif isinstance(item, int):
            if label in "HWPN":
                return Opaque()
        else:
            return Opaque()
    return Map(out + "".join(labels), kind.space)

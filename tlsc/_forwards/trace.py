"""Trace one module's ``forward`` and tell, for every value, how it relates to the positions of a map.

A value is a *map* (its dimensions labelled N batch, C channel, H height, W width, P both flattened, M channels
and positions flattened together, 1), a *statistic* (what a reduction over all positions of a map gave, and
everything computed from that and constants alone), a number computed from sizes, or a constant. Labels come from
running the recorded operations on fake tensors as they are traced.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from .._models.slots import is_hooked
from .arguments import flattened, is_number, mapped
from .einops import stubs
from .guards import Modes, Reads, ambient, depth_of_autocast
from .linking import CHECKPOINT, Linker, Whole, checkpointed
from .names import LAYOUT, NEW, NORMS, POINTWISE, argument, dims_of, name_of, spelled
from .proxies import Numeral, Proxy, course, is_instance, is_tensor, label_of, labels_of_numbers
from .shadows import Shadows
from .sizes import follows_size
from .spellings import MODULES, SPELLINGS
from .values import Cannot, Gram, Map, Number, Opaque, Partial, Reduction, Space, Statistic, Weights

__all__ = ["Recorded", "TensorSpec", "Trace", "trace"]


@dataclass(frozen=True)
class TensorSpec:
    """Shape, type and device of an argument."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Those of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device)


@dataclass
class Recorded:
    """What a recorded forward is valid for.

    ``structure`` and ``leaves``: its arguments, the tensors without values. ``open``: for each leaf the dimensions
    of which any length will do, None for a number. ``fixed``: the values of numbers count. ``modes``: those of the
    thread, if they count.
    """

    reads: Reads
    structure: Any
    leaves: list[Any]
    open: list[tuple[int, ...] | None]
    fixed: bool
    modes: Modes | None
    devices: tuple[str, ...]


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
    attentions: list[fx.Node] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    recorded: Recorded | None = None

    def forget(self) -> None:
        """Let go of the fake tensors: nodes outlive what refers to them, and would have to be searched for."""
        _forget(self.graph)


def _forget(graph: fx.Graph) -> None:
    for node in graph.nodes:
        node.meta.clear()


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
    first: Cannot | None = None
    labels, fixed = "NCHW", False
    while True:
        tracer = _Tracer(module, args, kwargs, inline, skip, mode)
        tracer.labels, tracer.fixed = labels, fixed
        try:
            graph = tracer.record()
        except Exception as error:
            if hasattr(tracer, "graph"):
                _forget(tracer.graph)
            if isinstance(error, _ChannelsLast) and labels == "NCHW":
                labels = "NHWC"
                continue
            first = first or _cannot(error)
            if tracer.numbers and not fixed:
                fixed = True  # the course may depend on the values of numbers
                continue
            raise first from (None if first is error else error)
        reductions = [node for node in tracer.reductions if node not in tracer.serving]
        found = reductions, tracer.norms, tracer.attentions, tracer.unknown
        return Trace(graph, module, inline, *found, tracer.recorded())


def _cannot(error: Exception) -> Cannot:
    if isinstance(error, Cannot):
        return error
    if isinstance(error, _ChannelsLast):
        return Cannot("it reduces over channels and rows together")
    if isinstance(error, fx.proxy.TraceError):
        return Cannot("its forward branches on values")
    if "dynamo-optimized" in str(error):
        return Cannot("a part of it is compiled: convert it before compiling it")
    lines = str(error).strip().splitlines() or [""]
    return Cannot(f"its forward cannot be traced ({type(error).__name__}: {lines[0]})")


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


def keep_(owner: nn.Module, path: str, name: str, value: Any) -> None:
    """Give a module an attribute, as its code did when it was recorded."""
    setattr(owner.get_submodule(path), name, value)


class _Factories(TorchFunctionMode):
    """Tensors that code makes while it is recorded are made again each time."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._tracer.running or getattr(func, "__name__", "") not in _FACTORIES:
            return func(*args, **kwargs)
        return self._tracer.create_proxy("call_function", func, args, kwargs)


_FACTORIES = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm",
    "scalar_tensor", "tensor", "as_tensor", "zeros", "tril_indices", "triu_indices", "hann_window", "normal",
}  # fmt: skip


class _Tracer(fx.Tracer):
    """Records what a forward does, by running it on shadows of the modules."""

    labels = "NCHW"
    fixed = False

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
        self.root = module
        self.tensor_attrs = {}
        self.mode = mode
        self.running = False
        self.numbers = False
        self.unknown: list[str] = []
        self.skip = skip
        self.inline = {id(module.get_submodule(path)) for path in inline}
        self.reductions: list[fx.Node] = []
        self.norms: list[fx.Node] = []
        self.attentions: list[fx.Node] = []
        self.serving: set[fx.Node] = set()  # norms that only an attention needs
        self.spaces: list[Space] = []
        self.given: tuple[Any, Any] = (args, kwargs)
        self.leaves: list[Any] = []
        self.placed: list[fx.Node | None] = []
        self.structure = flattened(self.given, self.leaves)
        self.reads = Reads()
        own: dict[Any, Callable[..., Any]] = {
            isinstance: is_instance,
            torch.is_tensor: is_tensor,
            CHECKPOINT: checkpointed,
        }
        own.update(stubs(Proxy))
        own.update({made: self._making(made) for name in _FACTORIES if (made := getattr(torch, name, None))})
        self.linker = Linker(self.reads, own, self._whole)
        self._tensors: dict[tuple[str, str], fx.Proxy] = {}
        found = [x for x in (*self.leaves, *module.parameters(), *module.buffers()) if isinstance(x, Tensor)]
        self.devices = tuple(dict.fromkeys(x.device.type for x in found if x.device.type != "meta"))

    # ------------------------------------------------------------------------------------------- recording

    def record(self) -> fx.Graph:
        """Run the forward once; with gradients on, so that a block without them is seen."""
        self.graph = fx.Graph(tracer_cls=type(self))
        self.owner = self.graph.placeholder("owner")
        self.owner.meta.update(value=None, kind=None)
        outside = torch.is_grad_enabled()
        with self.mode, torch.enable_grad():
            self.depth = depth_of_autocast()
            self.entry = ambient(self.devices)
            args, kwargs = mapped(self.given, self._placed)
            shadows = Shadows(self, self.root)
            if hasattr(type(self.root).forward, "__code__"):
                self.linker.linked(type(self.root).forward)  # says whether it asks for modes
            if self.reads.grad and not outside:
                torch.set_grad_enabled(False)
                self.entry = ambient(self.devices)
            with _Factories(self):
                result = shadows.root.forward(*args, **kwargs)
            self.create_node("output", "output", (self.create_arg(result),), {})
        return self.graph

    def recorded(self) -> Recorded:
        """What the recorded forward is valid for."""
        leaves = [TensorSpec.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        places = [self._open(leaf, node) for leaf, node in zip(self.leaves, self.placed, strict=True)]
        modes = self.entry if self.reads.cast or self.reads.grad else None
        return Recorded(self.reads, self.structure, leaves, places, self.fixed, modes, self.devices)

    def _open(self, leaf: Any, node: fx.Node | None) -> tuple[int, ...] | None:
        if not isinstance(leaf, Tensor):
            return None
        kind = None if node is None else node.meta.get("kind")
        if isinstance(kind, Map):
            return tuple(d for d, label in enumerate(kind.labels) if label in "NHW")
        return tuple(range(leaf.dim())) if leaf.dim() > 2 else (0,)[: leaf.dim()]

    def _placed(self, leaf: Any) -> Any:
        number = is_number(leaf)
        self.numbers |= number
        if number and self.fixed:
            self.placed.append(None)
            self.graph.placeholder(f"given_{len(self.placed)}").meta.update(value=leaf, kind=None)
            return leaf
        node = self.create_node("placeholder", f"given_{len(self.placed) + 1}", (), {})
        node.meta["value"] = _example(leaf)
        node.meta["kind"] = self._kind(node)
        self.placed.append(node)
        return self.proxy(node)

    def is_entered(self, path: str) -> bool:
        """Whether the code of a module is recorded, too."""
        return id(self.root.get_submodule(path)) in self.inline

    def called(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Record the call of a module."""
        parent, _, name = path.rpartition(".")
        self.reads.attribute(parent, name, module)
        for inner, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                self.reads.attribute(f"{path}.{inner}".rstrip("."), "training", part.training)
        return self.create_proxy("call_module", path, args, kwargs)

    def tensor_of(self, path: str, name: str, value: Tensor) -> Any:
        """The recorded value of a parameter, buffer or other tensor of a module."""
        if (path, name) not in self._tensors:
            self.reads.attribute(path, name, value)
            node = self.create_node("get_attr", f"{path}.{name}".lstrip("."), (), {})
            self._tensors[path, name] = self.proxy(node)
        return self._tensors[path, name]

    def kept(self, path: str, name: str, value: Any) -> None:
        """Record that a module is given an attribute."""
        self._tensors.pop((path, name), None)
        try:
            args = self.create_arg((path, name, value))
        except NotImplementedError:
            raise Cannot(f"its forward keeps a {type(value).__name__} as {name}") from None
        node = self.create_node("call_function", keep_, (self.owner, *args), {})
        node.meta.update(value=None, kind=None)

    def asked_types(self) -> None:
        """The code asks for the type of a tensor, which autocast may change."""
        self.reads.cast = True

    def number_in(self, node: fx.Node) -> Any:
        """The number that a parameter or buffer holds; the recorded forward is valid for it alone."""
        value = node.meta["value"]
        real = getattr(value, "_tlsc_real", value)
        if node.op != "get_attr" or real.numel() != 1 or isinstance(real, FakeTensor):
            raise Cannot("its forward branches on values")
        path, _, name = str(node.target).rpartition(".")
        number = real.item()
        self.reads.attribute(path, f"={name}", number)
        return number

    def _whole(self, whole: Whole) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_function", whole, args, kwargs)

        return call

    def _making(self, factory: Any) -> Callable[..., Any]:
        """In place of a function that makes tensors, which takes no recorded size as its first argument."""

        def make(*args: Any, **kwargs: Any) -> Any:
            given = [inner for arg in args for inner in (arg if isinstance(arg, (list, tuple)) else (arg,))]
            if any(isinstance(inner, Numeral) for inner in given):
                return self.create_proxy("call_function", factory, args, kwargs)
            return factory(*args, **kwargs)

        return make

    def _region(self) -> Any:
        """The modes that the code has switched, as they are now."""
        now = ambient(self.devices)
        if depth_of_autocast() > self.depth:
            self.reads.cast = True
        pairs = zip(now.autocast, self.entry.autocast, strict=True)
        cast = tuple(a for a, b in pairs if a[:2] != b[:2] or (a[1] and a != b))
        grad = now.grad if now.grad != self.entry.grad else None
        inference = now.inference if now.inference != self.entry.inference else None
        return (grad, inference, cast) if cast or grad is not None or inference is not None else None

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            raise Cannot("it makes a tensor of its own while it runs")
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        number = isinstance(node.meta.get("kind"), Number) and not isinstance(node.meta["value"], Tensor)
        return (Numeral if number else Proxy)(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        node.meta["region"] = self._region()
        if kind == "get_attr":
            node.meta.update(value=self._run(node), kind=None)
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None, *_: Any
    ) -> Any:
        said = self._said_otherwise(kind, target, args, kwargs)
        if said is not None:
            return said
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        value = node.meta["value"] if "value" in node.meta else self._run(node)
        if isinstance(value, bool):
            labels = labels_of_numbers(node)
            if labels:
                raise course(labels)
            self.graph.erase_node(node)
            return value
        node.meta["value"] = value
        node.meta["kind"] = self._kind(node)
        if isinstance(node.meta["kind"], Opaque):
            self._doubt(node)
        return self.proxy(node)

    def _said_otherwise(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """The same in operations that are understood, for one that consists of them; None for any other."""
        x = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, Proxy)), None)
        if x is None:
            return None
        if kind == "call_module":
            module = self.root.get_submodule(target)
            said = None if is_hooked(module) else MODULES.get(type(module))
            parameters = {
                name: Proxy(self.create_node("get_attr", f"{target}.{name}", (), {}), self)
                for name, value in module._parameters.items()
                if said is not None and value is not None
            }
            return said(module, *args, **parameters, **kwargs) if said is not None else None
        said = SPELLINGS.get(spelled(kind, target))
        if said is None:
            return None
        try:
            return said(*args, **kwargs)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            return None  # called in a way that has nothing to do with positions

    def _run(self, node: fx.Node) -> Any:
        running, self.running = self.running, True
        try:
            return self._result(node)
        finally:
            self.running = running

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
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
        if node.op == "placeholder" and is_number(value):
            return Number(frozenset("?"))
        if node.op == "placeholder":
            if isinstance(value, Tensor) and value.dim() == 5:
                return self._settled(node, "NCCHW")
            return self._settled(node, self.labels) if isinstance(value, Tensor) and value.dim() == 4 else Opaque()
        if isinstance(value, (int, float)):
            return self._number(node)
        if not isinstance(value, (Tensor, tuple, list)):
            return None  # a dtype, a device
        inputs = [n for n in node.all_input_nodes if not isinstance(n.meta["kind"], (Number, type(None)))]
        kinds = [n.meta["kind"] for n in inputs]
        if not kinds or spelled(node.op, node.target) in NEW:
            return self._number(node)  # a constant, or a tensor made from sizes
        if any(isinstance(k, Gram) for k in kinds):
            return self._attending(node, name_of(node, self.root), inputs)
        if any(isinstance(k, Opaque) for k in kinds):
            if any(isinstance(k, (Statistic, Partial)) for k in kinds):
                name = name_of(node, self.root)
                raise Cannot(f"{name} joins a statistic with something that is not a map (N, C, H, W)")
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
                    self.unknown.append(f"{name_of(node, self.root)} over all positions")

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
        if name == "matmul" and len(maps) == 2:
            return self._gram(*maps) or self._other_product(*maps)
        found = _reduction(node, name, self.root)
        if found is not None and found.base is base and found.child not in self.skip:
            return self._reduced(node, found)
        if name in NORMS:
            return self._normed(node, name, base)
        if name in LAYOUT:
            return self._laid(node, name, base)
        if name in POINTWISE and isinstance(value, Tensor):
            _note_centred(node, name)
            centred = base.meta.get("centred")
            if centred is not None and name == "abs":
                node.meta.update(centred=centred, shifted=False)
            twice = name == "mul" and node.args[0] is base and node.args[1] is base
            if centred is not None and (
                name == "square" or twice or (name == "pow" and argument(node, 1, "exponent") == 2)
            ):
                node.meta["squared"] = centred
            return _broadcast(maps, value)
        if name == "expand" and isinstance(value, Tensor):
            given = base.meta["value"].shape
            before = "1" * (value.dim() - len(kind.labels)) + kind.labels
            padded = (0,) * (value.dim() - len(given)) + tuple(given)
            same = [a == b for a, b in zip(padded, value.shape, strict=True)]
            return replace(kind, labels="".join(x if y else "C" for x, y in zip(before, same, strict=True)))
        if name == "stack" and all(m.meta["kind"] == kind for m in maps):
            place = operator.index(argument(node, 1, "dim", 0)) % (len(kind.labels) + 1)
            labels = kind.labels[:place] + "C" + kind.labels[place:]
            return replace(kind, labels=labels) if place else Opaque()
        if name == "softmax":
            dims = dims_of(argument(node, 1, "dim"), len(kind.labels))
            if "".join(kind.labels[d] for d in dims) == "P" and not kind.mixed:
                return Weights(kind.labels, kind.space, base)
            return kind if all(kind.labels[d] in "C1" for d in dims) else Opaque()
        if name == "cat" and all(replace(m.meta["kind"], mixed=False) == replace(kind, mixed=False) for m in maps):
            (dim,) = dims_of(argument(node, 1, "dim", 0), len(kind.labels))
            if kind.labels[dim] in "HWPM":  # side by side: another map
                return self._settled(node) if kind.labels == "NCHW" else Opaque()
            return replace(kind, mixed=any(m.meta["kind"].mixed for m in maps))
        if name in ("chunk", "split", "tensor_split", "unbind", "getitem") and isinstance(value, (tuple, list)):
            if name != "unbind":
                return kind
            (dim,) = dims_of(argument(node, 1, "dim", 0), len(kind.labels))
            if kind.labels[dim] in "HWPM":
                return Opaque()
            return replace(kind, labels=kind.labels[:dim] + kind.labels[dim + 1 :])
        if name == "matmul" and len(maps) == 1 and isinstance(value, Tensor) and len(node.all_input_nodes) == 2:
            return _multiplied(node, kind)
        if name == "linear" and kind.labels[-1] in "C1":
            return kind
        if node.op == "call_module" and isinstance(value, Tensor):
            given = base.meta["value"]
            module = self.root.get_submodule(str(node.target))
            kept = kind if not list(module.parameters()) else replace(kind, mixed=False)  # a layer makes a new map
            if value.shape == given.shape:
                return kept
            if value.dim() == given.dim() and kind.labels[-1] in "C1" and value.shape[:-1] == given.shape[:-1]:
                return kept  # a linear layer over channels that come last
        return self._settled(node) if _is_map_like(value) and kind.labels == "NCHW" else Opaque()

    def _laid(self, node: fx.Node, name: str, base: fx.Node) -> Any:
        """A map in another layout; what is known of its values stays known."""
        kind: Map = base.meta["kind"]
        out = _laid_out(node, name, kind)
        if isinstance(out, Opaque) and base.op == "placeholder" and kind.labels == "NCHW":
            shape, rest = tuple(base.meta["value"].shape), tuple(node.meta["value"].shape[1:])
            if rest == (shape[1] * shape[2], shape[3]):
                raise _ChannelsLast  # its positions become one dimension
        if isinstance(out, Map) and name != "getitem" and isinstance(base.meta["value"], Tensor):
            node.meta["source"] = base
            for key in ("squared", "centred"):
                if key in base.meta:
                    node.meta[key] = self._also(node, base, base.meta[key])
            node.meta.update({key: base.meta[key] for key in ("shifted", "mean_of") if key in base.meta})
        return out

    def _reduced(self, node: fx.Node, found: Reduction) -> Any:
        kind: Map = found.base.meta["kind"]
        labels = {kind.labels[d] for d in found.dims}
        there = {label for label in kind.labels if label in "HWPM"}
        if not labels & there:
            return _drop(kind, found.dims, found.keepdim)
        if labels == {"C", "H"} and found.base.op == "placeholder":
            raise _ChannelsLast
        if "N" in labels:
            raise Cannot(f"it takes a {found.operation} over the batch")
        if labels & there == there:
            if "N" not in kind.labels:
                raise Cannot(f"it takes a {found.operation} of one image of the batch")
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
        if not others and name in ("contiguous", "clone", "dropout", "Dropout", "detach"):
            return kind
        if name == "mul" and kind.scale is None and not kind.soft and len(node.args) == 2:
            factor = next(arg for arg in node.args if arg is not gram)
            if isinstance(factor, (int, float)):
                return replace(kind, scale=factor)
            if isinstance(factor, fx.Node) and factor.meta["kind"] is None:
                scale = factor.meta["value"]
                if isinstance(scale, Tensor) and _is_of_heads(scale, rank):
                    return replace(kind, scale=factor)
        if name == "softmax" and not kind.soft and dims_of(argument(node, 1, "dim"), rank) == (rank - 1,):
            return replace(kind, soft=True)
        if name == "matmul" and kind.soft and node.args == (gram, *others) and len(others) == 1:
            features = others[0].meta["kind"]
            if _like(kind.q, others[0]) and _like(kind.k, others[0]):
                node.meta["attends"] = kind, others[0]
                self.attentions.append(node)
                return replace(features, mixed=True)
        raise Cannot(f"{name} takes an attention between channels in a way that is not understood")

    def _weighted_mean(self, x: Any, dims: Any, keepdim: bool) -> Any:
        """The mean of what a softmax weighs: the sum, divided by the number of positions."""
        chosen = dims_of(dims, x.dim())
        return x.sum(chosen, keepdim=keepdim) / math.prod(x.shape[d] for d in chosen)

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
        terms = _terms(self, node)
        if terms is None:
            return None
        total: Any = None
        for factor, term in terms:
            if term is None:
                value = factor if operation == "mean" else factor * math.prod(x.shape[d] for d in chosen)
                if isinstance(value, Proxy) and value.dim() == rank and not keepdim:
                    value = value.sum(chosen)
            else:
                value = getattr(self.proxy(term), operation)(chosen, keepdim=keepdim)
                if isinstance(factor, Proxy) and factor.dim() == rank and not keepdim:
                    factor = factor.sum(chosen)
                value = value if isinstance(factor, int) and factor == 1 else value * factor
            total = value if total is None else total + value
        return total

    def _weighted(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> Any:
        """A softmax over positions on its way to the features it weighs, and their weighted sum."""
        weights = next(n for n in inputs if isinstance(n.meta["kind"], Weights))
        kind: Weights = weights.meta["kind"]
        others = [n for n in inputs if n is not weights]
        if not others and name in (*LAYOUT, "contiguous", "clone", "detach", "to", "type_as", "dropout"):
            if name not in LAYOUT:
                return kind
            laid = _laid_out(node, name, Map(kind.labels, kind.space))
            if isinstance(laid, Map) and not kind.weighted:
                return Weights(laid.labels, kind.space, self._also(node, weights, kind.logits))
        if not others and name == "sum" and kind.weighted:
            dims = dims_of(argument(node, 1, "dim"), len(kind.labels))
            taken = {kind.labels[d] for d in dims}
            left = {label for label in kind.labels if label in "HWP"} - taken
            if taken <= {"H", "W", "P"} and left:
                return replace(kind, labels=_drop(Map(kind.labels, kind.space), dims, _keep(node, 2)).labels)
            if taken <= {"H", "W", "P"}:
                first, logits = kind.weighted
                reduction = Reduction("weighted", first, (), True, logits=logits)
                return self._statistic(node, reduction)
        if len(others) == 1 and isinstance(others[0].meta["kind"], Map) and not kind.weighted:
            features = others[0]
            if name == "mul":
                made = _broadcast([features, kind.logits], node.meta["value"])
                if isinstance(made, Map) and not made.mixed:
                    return Weights(made.labels, kind.space, kind.logits, self._matched(features, kind.logits))
        raise Cannot(f"{name} takes a softmax over positions in a way that is not understood")

    def _also(self, node: fx.Node, base: fx.Node, other: fx.Node) -> fx.Node:
        """What ``node`` does with ``base``, done with ``other``."""
        to_proxy: Any = lambda n: self.proxy(other if n is base else n)  # noqa: E731
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), to_proxy)
        made: fx.Node = self.create_proxy(node.op, node.target, args, kwargs).node
        return made

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
        _note_centred(node, name)
        for n in node.all_input_nodes:
            if isinstance(n.meta["kind"], Statistic):
                shape = n.meta["value"].shape
                if len(shape) != len(kind.labels) or any(
                    label in "HWPM" and length != 1 for label, length in zip(kind.labels, shape, strict=True)
                ):
                    raise Cannot(f"{name} takes a statistic of shape {tuple(shape)} together with a map")
        out = _broadcast(maps, value)
        return replace(out, mixed=True) if isinstance(out, Map) else out


def _note_centred(node: fx.Node, name: str) -> None:
    """Note what a difference between a map and its own mean is."""
    if name != "sub" or len(node.args) != 2:
        return
    for one, other in (node.args, reversed(node.args)):
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            mean_of = other.meta.get("mean_of")
            if mean_of is not None and _source(mean_of) is _source(one):
                node.meta.update(centred=one, shifted=True)


def _like(first: fx.Node, second: fx.Node) -> bool:
    """Whether two values are maps of one shape and layout over the same positions."""
    one, other = first.meta["kind"], second.meta["kind"]
    if not (isinstance(one, Map) and isinstance(other, Map)) or one.space is not other.space:
        return False
    same = all(a in ("1", b) or b == "1" for a, b in zip(one.labels, other.labels, strict=False))
    return bool(same and first.meta["value"].shape == second.meta["value"].shape)


def _is_of_heads(scale: Tensor, rank: int) -> bool:
    """Whether a tensor has one number for all of (N, c, c) or (N, heads, c, c), or one for each head."""
    shape = (1,) * (rank - scale.dim()) + tuple(scale.shape)
    return len(shape) == rank and all(n == 1 for n in (*shape[:-3], *shape[-2:])) and (rank > 3 or shape[-3] == 1)


def _source(node: fx.Node) -> fx.Node:
    """The map that ``node`` is a view of."""
    while "source" in node.meta:
        node = node.meta["source"]
    return node


def _terms(tracer: _Tracer, node: fx.Node) -> list[tuple[Any, fx.Node | None]] | None:
    """A map as a sum of products of a statistic or constant and a map without statistics (None: one everywhere).

    None if it is not one.
    """
    kind = node.meta["kind"]
    if not isinstance(kind, Map):
        return [(tracer.proxy(node), None)] if isinstance(kind, (Statistic, Number)) else None
    if "spreads" in node.meta:
        source = next(n for n in node.all_input_nodes if isinstance(n.meta["kind"], Statistic))
        return [(tracer.proxy(source), None)]
    if not kind.mixed:
        return [(1, node)]
    name = name_of(node, tracer.root)
    args: list[Any] = [arg if isinstance(arg, fx.Node) else (arg, None) for arg in node.args]
    if name in ("square", "pow"):
        if name == "pow" and node.args[1] != 2:
            return None
        name, args = "mul", [args[0], args[0]]
    if name == "neg":
        name, args = "mul", [args[0], (-1, None)]
    if name not in ("add", "sub", "mul", "div") or len(args) != 2 or node.kwargs:
        return None
    sides: list[list[tuple[Any, fx.Node | None]]] = []
    for arg in args:
        if isinstance(arg, tuple) and not isinstance(arg[0], (int, float)):
            return None
        side = [arg] if isinstance(arg, tuple) else _terms(tracer, arg)
        if side is None:
            return None
        sides.append(side)
    first, second = sides
    if name in ("add", "sub"):
        return first + (second if name == "add" else [(-1 * factor, term) for factor, term in second])
    if name == "div":
        if len(second) != 1 or second[0][1] is not None:
            return None
        return [(factor / second[0][0], term) for factor, term in first]
    return [(_times(a, b), _product(tracer, x, y)) for a, x in first for b, y in second]


def _times(a: Any, b: Any) -> Any:
    return b if isinstance(a, int) and a == 1 else a if isinstance(b, int) and b == 1 else a * b


def _product(tracer: _Tracer, x: fx.Node | None, y: fx.Node | None) -> fx.Node | None:
    if x is None or y is None:
        return y if x is None else x
    one: Any = tracer.proxy(x)
    made: fx.Node = (one * tracer.proxy(y)).node
    return made


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


def _is_map_like(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and tuple(value.shape[2:]) != (1, 1)


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
    if name in ("mean", "sum", "amax", "amin", "logsumexp"):
        dims = dims_of(argument(node, 1, "dim", node.kwargs.get("axis")), rank)
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
            name, base, dims_of(dim, rank), bool(keep), correction=float(1 if correction is None else correction)
        )
    if name == "norm":
        order = argument(node, 1, "p", node.kwargs.get("ord", 2))
        dims = dims_of(argument(node, 2, "dim"), rank)
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
    return replace(kind, labels=labels)


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
    return Map("".join(out), maps[0].meta["kind"].space, any(node.meta["kind"].mixed for node in maps))


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
        return replace(kind, labels="".join(labels[length - 2] for length in moved.shape))
    if name == "unsqueeze":
        place = operator.index(argument(node, 1, "dim")) % (rank + 1)
        return replace(kind, labels="".join([*labels[:place], "1", *labels[place:]]))
    if name == "squeeze":
        given = node.args[0].meta["value"].shape  # type: ignore[union-attr]
        chosen = dims_of(argument(node, 1, "dim"), rank)
        return replace(kind, labels="".join(x for d, x in enumerate(labels) if d not in chosen or given[d] != 1))
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
            if label in "HWPM" and item != slice(None):
                return Opaque()
            out += label
        elif isinstance(item, int):
            if label in "HWPM":
                return Opaque()
        else:
            return Opaque()
    return replace(kind, labels=out + "".join(labels))

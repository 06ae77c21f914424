"""Records what a forward does, as a graph whose values have kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .._models.contents import Contents
from .._models.slots import is_hooked, unhooked
from .arguments import flattened, is_number, mapped
from .caches import Cache, Caches, memoised
from .einops import stubs
from .guards import Modes, Reads, ambient, depth_of_autocast
from .kinds import Kinds
from .linking import CHECKPOINT, Linker, Whole, checkpointed
from .names import NEW, spelled
from .outside import Draw, Seed, drawn, seeding
from .proxies import (
    OF_NUMBERS,
    Numeral,
    Proxy,
    course,
    is_instance,
    is_tensor,
    labels_of_numbers,
    largest,
    smallest,
)
from .shadows import Shadows
from .spellings import MODULES, SPELLINGS
from .values import Cannot, Map, Number, Opaque, Space

__all__ = ["Recorded", "Recorder", "TensorSpec"]


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
    thread, if they count. ``outcomes``: how the comparisons of sizes turned out on which the course depends.
    """

    reads: Reads
    structure: Any
    leaves: list[Any]
    open: list[tuple[int, ...] | None]
    fixed: bool
    modes: Modes | None
    devices: tuple[str, ...]
    outcomes: tuple[bool, ...] = ()


def _example(value: Any) -> Any:
    """A fake tensor like a recorded argument; of two images if it was of one, to tell the batch from a 1."""
    if not isinstance(value, Tensor):
        return value
    shape = tuple(value.shape)
    if len(shape) >= 3 and shape[0] == 1:
        shape = (2, *shape[1:])
    return torch.empty(shape, dtype=value.dtype, device=value.device)


def attribute_of(owner: nn.Module, path: str, name: str) -> Any:
    """A number that a module holds when it is called."""
    return getattr(owner.get_submodule(path), name)


def keep_(owner: nn.Module, path: str, name: str, value: Any) -> None:
    """Give a module an attribute, as its code did when it was recorded."""
    setattr(owner.get_submodule(path), name, value)


MANY = 32
"""Comparisons of sizes in one forward up to which its course is followed."""


class _Factories(TorchFunctionMode):
    """Tensors that code makes while it is recorded are made again each time."""

    def __init__(self, tracer: Recorder) -> None:
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


class Recorder(Kinds):
    """Records what a forward does, by running it on shadows of the modules."""

    fixed = False
    free: frozenset[tuple[str, str]] = frozenset()
    """Paths and names of attributes that are numbers of which any value will do."""
    path: tuple[bool, ...] = ()
    """How the first comparisons of sizes are to turn out."""

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
        self.doubtful: list[str] = []
        self.skip = skip
        self.inline = {id(module.get_submodule(path)) for path in inline}
        self.reductions: list[fx.Node] = []
        self.norms: list[fx.Node] = []
        self.attentions: list[fx.Node] = []
        self.serving: set[fx.Node] = set()  # norms that only an attention needs
        self.spaces: list[Space] = []
        self.given: tuple[Any, Any] = (args, kwargs)
        self.outcomes: list[bool] = []
        self.doubled = False  # the first dimension of arguments, to tell it from others
        self.leaves: list[Any] = []
        self.placed: list[fx.Node | None] = []
        self.structure = flattened(self.given, self.leaves)
        self.reads = Reads()
        own: dict[Any, Callable[..., Any]] = {
            isinstance: is_instance,
            max: largest,
            min: smallest,
            torch.is_tensor: is_tensor,
            CHECKPOINT: checkpointed,
        }
        own.update({**stubs(Proxy), **OF_NUMBERS, **seeding(self._whole)})
        self.by_size = False  # dictionaries of modules are looked into by sizes
        self.told: Cannot | None = None  # a size has become text
        own.update({made: self._making(made) for name in _FACTORIES if (made := getattr(torch, name, None))})
        self.contents = Contents()
        self.linker = Linker(self.reads, own, self._whole, self._memoised, self._drawing, self.contents)
        self._tensors: dict[tuple[str, str], fx.Proxy] = {}
        found = [x for x in (*self.leaves, *module.parameters(), *module.buffers()) if isinstance(x, Tensor)]
        self.devices = tuple(dict.fromkeys(x.device.type for x in found if x.device.type != "meta"))

    def record(self) -> fx.Graph:
        """Run the forward once; with gradients on, so that a block without them is seen."""
        self.graph = fx.Graph(tracer_cls=type(self))
        self.owner = self.graph.placeholder("owner")
        self.owner.meta.update(value=None, kind=None)
        self.caches = Caches(self, self.owner)
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
            try:
                with _Factories(self):
                    result = shadows.root.forward(*args, **kwargs)
                made = self.create_arg(result)
                if self.told is not None:
                    raise self.told
                for line in self.caches.missing():
                    raise course(frozenset("HW"), line)
                for name in (*self.contents.changed(), *shadows.given()):
                    raise Cannot(f"its forward changes {name} in place, which outlives the call")
            finally:
                self.contents.put_back()
            for node in self.graph.nodes:  # a record or named tuple of results is made by a call of its own
                node.meta.setdefault("value", None)
                node.meta.setdefault("kind", None)
            self.create_node("output", "output", (made,), {})
        return self.graph

    def recorded(self) -> Recorded:
        """What the recorded forward is valid for."""
        leaves = [TensorSpec.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        places = [self._open(leaf, node) for leaf, node in zip(self.leaves, self.placed, strict=True)]
        modes = self.entry if self.reads.cast or self.reads.grad else None
        return Recorded(
            self.reads, self.structure, leaves, places, self.fixed, modes, self.devices, tuple(self.outcomes)
        )

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
        self.doubled |= isinstance(leaf, Tensor) and leaf.shape[:1] != node.meta["value"].shape[:1]
        node.meta["kind"] = self._kind(node)
        self.placed.append(node)
        return self.proxy(node)

    def dictionary_of(self, path: str, name: str, value: dict[Any, Any]) -> Any:
        """A dictionary that a module holds; noted when it is looked into, unless by sizes, which are not known."""

        def read() -> None:
            self.reads.attribute(path, name, value)
            self.contents.value(value, name)

        return Cache(self.caches, value, (path, name), read)

    def is_made(self, node: fx.Node) -> bool:
        """Whether a value is a tensor made in this forward, of nothing but numbers."""
        name = spelled(node.op, node.target)
        return name in NEW or (node.op == "call_function" and name in _FACTORIES - {"as_tensor"})

    def is_entered(self, path: str) -> bool:
        """Whether the code of a module is recorded, too."""
        return id(self.root.get_submodule(path)) in self.inline

    def entered(self, path: str) -> None:
        """Note that what a module does is part of the recorded forward, which does not call it.

        Raises:
            Cannot: it has hooks.
        """
        self.reads.unhooked.add(path)
        if path and is_hooked(self.root.get_submodule(path)):
            raise Cannot(f"{path} has hooks, which would not be called")

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

    def number_of(self, path: str, name: str, value: Any) -> Any:
        """A number that a module holds: the recorded forward is valid for it alone, or reads it each time."""
        if (path, name) not in self.free:
            self.reads.attribute(path, name, value)
            return value
        self.reads.free(path, name, value)
        node = self.create_node("call_function", attribute_of, (self.owner, path, name), {})
        node.meta.update(value=value, kind=Number(frozenset("?")))
        return self.proxy(node)

    def kept(self, path: str, name: str, value: Any) -> None:
        """Record that a module is given an attribute."""
        self._tensors.pop((path, name), None)
        try:
            args = self.create_arg((path, name, value))
        except NotImplementedError:
            raise Cannot(f"its forward keeps a {type(value).__name__} as {name}") from None
        node = self.create_node("call_function", keep_, (self.owner, *args), {})
        node.meta.update(value=None, kind=None)

    def decided(self, node: fx.Node) -> bool:
        """How a comparison of sizes, or a number made of them, turns out, on which the course depends."""
        number = node.meta.get("kind")
        labels = number.labels if isinstance(number, Number) else labels_of_numbers(node)
        for draw in drawn(node):
            raise Cannot(f"its forward takes another course depending on {draw}, a random number")
        natural = bool(self._of_the_call(node) if "N" in labels else self._result(node))
        place = len(self.outcomes)
        if not labels <= set("NHWPM") or place >= MANY:
            raise course(labels)
        self.outcomes.append(self.path[place] if place < len(self.path) else natural)
        return self.outcomes[-1]

    def asked_types(self) -> None:
        """The code asks for the type of a tensor, which autocast may change."""
        self.reads.cast = True

    def asks_gradient(self, node: fx.Node) -> bool:
        """Whether a tensor asks for a gradient; of what is computed it is not known, and False."""
        value = node.meta["value"]
        if node.op != "get_attr":
            return bool(value.requires_grad)
        asks = bool(getattr(value, "_tlsc_real", value).requires_grad)
        path, _, name = str(node.target).rpartition(".")
        self.reads.attribute(path, f"!{name}", asks)
        return asks

    def number_in(self, node: fx.Node) -> Any:
        """The number that a parameter or buffer holds, or that is computed of such alone; the recorded forward is
        valid for it alone."""
        with _disable_current_modes():  # which have no values
            return self._constant(node).item()

    def _constant(self, node: fx.Node) -> Any:
        if node.op in ("call_function", "call_method") and node.all_input_nodes:
            if any(n.meta["kind"] is not None for n in node.all_input_nodes):
                raise Cannot("its forward branches on values")
            return self._result(node, self._constant)
        value = node.meta["value"]
        real = getattr(value, "_tlsc_real", value)
        if node.op != "get_attr" or real.numel() != 1 or isinstance(real, FakeTensor) or real.is_meta:
            raise Cannot("its forward branches on values")
        path, _, name = str(node.target).rpartition(".")
        self.reads.attribute(path, f"={name}", real.item())
        return real

    def _whole(self, whole: Whole) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_function", whole, args, kwargs)

        return call

    def _drawing(self, draw: Draw) -> Callable[..., Any]:
        """In place of a function that draws from the process' generators: it draws at each call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            node = self.create_node("call_function", draw, self.create_arg(args), self.create_arg(kwargs))
            value = self._run(node)
            if not is_number(value):
                raise Cannot(f"its forward draws with {draw} what is no number; use PyTorch's random numbers")
            node.meta.update(value=value, kind=Number(frozenset("?")))
            return self.proxy(node)

        return call

    def _memoised(self, function: Any) -> Callable[..., Any]:
        return memoised(function, self, self.linker.linked)

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
        if isinstance(a, torch.Generator):
            raise Cannot("its forward draws from a torch.Generator of its own; use PyTorch's random numbers")
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
        if isinstance(target, Seed):
            node.meta.update(value=None, kind=None)  # not while it is recorded
        value = node.meta["value"] if "value" in node.meta else self._run(node)
        if isinstance(value, bool):
            labels = labels_of_numbers(node)
            if labels:
                value = self.decided(node)
            self.graph.erase_node(node)
            return value
        node.meta["value"] = value
        node.meta["kind"] = self._kind(node)
        if isinstance(node.meta["kind"], Opaque):
            self._doubt(node)
        if kind == "call_module" and ("reduction" in node.meta or "norm" in node.meta):
            self.entered(target)
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

    def _of_the_call(self, node: fx.Node) -> Any:
        """A number as it is for the number of images of the call, of which two were made where it is one."""
        kind = node.meta.get("kind")
        if isinstance(kind, Number) and "N" not in kind.labels:
            return node.meta["value"]
        if node.op == "call_method" and node.target == "size":
            return node.meta["value"] // 2 if self.doubled else node.meta["value"]
        return self._result(node, self._of_the_call)

    def _result(self, node: fx.Node, of: Callable[[fx.Node], Any] = lambda n: n.meta["value"]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), of)
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
            with unhooked(self.root.get_submodule(str(node.target))) as module:
                return module(*args, **kwargs)

"""Recorded tensors and numbers, as the code that is being recorded handles them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .outside import drawn
from .places import here
from .values import Cannot, Map, Number, Opaque, Partial, Statistic, Weights

__all__ = [
    "OF_NUMBERS",
    "Extreme",
    "Extremes",
    "Index",
    "Keyed",
    "Numeral",
    "Proxy",
    "course",
    "is_instance",
    "is_tensor",
    "kind_of",
    "label_of",
    "labels_of_numbers",
    "largest",
    "real_number",
    "smallest",
    "whole_number",
]


class Proxy(fx.Proxy):
    """A traced tensor, or tuple of tensors, whose rank and constant lengths are known."""

    tracer: Any

    @property
    def _value(self) -> Any:
        return self.node.meta["value"]

    @property
    def shape(self) -> _Shape:
        return _Shape(self._length(index) for index in range(self.dim()))

    @property
    def mT(self) -> Any:
        return self.transpose(-2, -1)

    @property
    def T(self) -> Any:
        return self.permute(*range(self.dim() - 1, -1, -1))

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        raise Cannot("its forward changes its own parameters")

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._length(dim)

    def _length(self, index: int) -> Any:
        index = operator.index(index) % self.dim()
        label = label_of(self.node, index)
        if label in "NHWPM?":
            return self.tracer.create_proxy("call_method", "size", (self, index), {})
        return self._value.shape[index]

    def dim(self) -> int:
        return int(self._value.dim())

    ndimension = dim
    ndim = property(dim)

    @property
    def dtype(self) -> torch.dtype:
        self.tracer.asked_types()
        return self._value.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self._value.device  # type: ignore[no-any-return]

    @property
    def is_cuda(self) -> bool:
        return bool(self._value.is_cuda)

    @property
    def requires_grad(self) -> bool:
        self.tracer.reads.grad = True
        return bool(self.tracer.asks_gradient(self.node))

    def is_floating_point(self) -> bool:
        return bool(self._value.is_floating_point())

    def is_complex(self) -> bool:
        return bool(self._value.is_complex())

    def item(self) -> Any:
        return self.tracer.number_in(self.node)

    def tolist(self) -> Any:
        return self.tracer.number_in(self.node)

    def __float__(self) -> float:
        return float(self.tracer.number_in(self.node))

    def __int__(self) -> int:
        return int(self.tracer.number_in(self.node))

    __index__ = __int__

    def is_contiguous(self, **_: Any) -> bool:
        return True

    def numel(self) -> Any:
        return math.prod(self.shape)

    nelement = numel

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._value, Tensor):
            raise Cannot("its forward iterates over a tensor")
        return iter([self[index] for index in range(len(self._value))])  # type: ignore[index]

    def __bool__(self) -> bool:
        return bool(self.tracer.number_in(self.node))

    def __setitem__(self, index: Any, value: Any) -> None:
        """Into a constant made in this forward, of which there is no view; it is another value from then on."""
        others = [value, *(index if isinstance(index, tuple) else (index,))]
        kinds = [other.node.meta["kind"] for other in (self, *others) if isinstance(other, fx.Proxy)]
        fresh = self.node.target is written or self.tracer.is_made(self.node)
        viewed = any(user.target is not written and user.target != "size" for user in self.node.users)
        if not fresh or viewed or any(kind is not None and not isinstance(kind, Number) for kind in kinds):
            raise Cannot("its forward writes into a part of a tensor")
        self.node = self.tracer.create_proxy("call_function", written, (self, index, value), {}).node


def written(into: Tensor, index: Any, value: Any) -> Tensor:
    """A tensor of which a part is another."""
    made = into.clone()
    made[index] = value
    return made


class _Shape(tuple[Any, ...]):
    """The lengths of a traced tensor, some of them traced numbers, with what a ``torch.Size`` can do."""

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        out = super().__getitem__(index)
        return _Shape(out) if isinstance(index, slice) else out


def is_instance(value: Any, of: Any) -> bool:
    """``isinstance`` for recorded values, which stand for tensors and numbers."""
    if not isinstance(value, fx.Proxy):
        return isinstance(value, of)
    held = value.node.meta["value"]
    classes = of if isinstance(of, tuple) else (of,)
    if isinstance(held, Tensor):
        parameter = isinstance(held, nn.Parameter)
        return any(isinstance(c, type) and issubclass(nn.Parameter if parameter else Tensor, c) for c in classes)
    return isinstance(held, of)


def is_tensor(value: Any) -> bool:
    return is_instance(value, Tensor)


def kind_of(*args: Any) -> Any:
    """``type`` where it is called, of recorded values."""
    if len(args) != 1 or not isinstance(args[0], fx.Proxy):
        return type(*args)
    held = args[0].node.meta["value"]
    return (nn.Parameter if isinstance(held, nn.Parameter) else Tensor) if isinstance(held, Tensor) else type(held)


class Index:
    """The positions of extreme values, which nobody should ask for."""

    def __getattr__(self, name: str) -> Any:
        raise Cannot("it uses the place of a maximum or minimum")

    def __getitem__(self, index: Any) -> Any:
        raise Cannot("it uses the place of a maximum or minimum")

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise Cannot("it uses the place of a maximum or minimum")


class Extreme(NamedTuple):
    values: Any
    indices: Any


class Extremes(NamedTuple):
    min: Any
    max: Any


class Keyed(Cannot):
    """Something is looked up by a number that depends on sizes."""


class Numeral(fx.Proxy):
    """A traced number that depends on sizes: free in arithmetic, refused where it must be a number of Python's."""

    tracer: Any

    def _fixed_reason(self) -> Cannot:
        for draw in drawn(self.node):
            return Cannot(f"its forward takes another course depending on {draw}, a random number", line=here())
        return course(self.node.meta["kind"].labels, here())

    def _fixed(self) -> Any:
        raise self._fixed_reason()

    def __bool__(self) -> bool:
        return bool(self.tracer.decided(self.node))

    def __round__(self, digits: int | None = None) -> Any:
        return self._made(round, *() if digits is None else (digits,))

    def __ceil__(self) -> Any:
        return self._made(math.ceil)

    def __floor__(self) -> Any:
        return self._made(math.floor)

    def __trunc__(self) -> Any:
        return self._made(math.trunc)

    def __abs__(self) -> Any:
        return self._made(operator.abs)

    def _made(self, function: Any, *more: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *more), {})

    __index__ = __int__ = __float__ = _fixed

    def __hash__(self) -> int:
        reason = self._fixed_reason()
        raise Keyed(str(reason), line=reason.line)

    def __repr__(self) -> str:
        """Its value, for the message of an error; what does not end in one may depend on it."""
        self.tracer.told = self.tracer.told or self._fixed_reason()
        return repr(self.node.meta["value"])

    __str__ = __repr__

    def __format__(self, how: str) -> str:
        return format(self.node.meta["value"], how) if repr(self) else ""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return self._fixed()


def whole_number(*args: Any) -> Any:
    """``int`` where it is called: of a number that comes from sizes it makes another one."""
    return args[0].__trunc__() if len(args) == 1 and isinstance(args[0], Numeral) else int(*args)


def real_number(*args: Any) -> Any:
    """``float`` where it is called: of a number that comes from sizes it makes another one."""
    return args[0]._made(float) if len(args) == 1 and isinstance(args[0], Numeral) else float(*args)


def numeric(function: Any) -> Any:
    """A function of ``math``, also of numbers that come from sizes."""

    def call(*args: Any) -> Any:
        number = next((value for value in args if isinstance(value, Numeral)), None)
        return (
            function(*args) if number is None else number.tracer.create_proxy("call_function", function, args, {})
        )

    return call


OF_NUMBERS = {function: numeric(function) for function in (math.sqrt, math.log, math.log2, math.exp, math.pow)}


def largest(*args: Any, **kwargs: Any) -> Any:
    """``max``, also of numbers that come from sizes."""
    return _chosen(max, args, kwargs)


def smallest(*args: Any, **kwargs: Any) -> Any:
    """``min``, also of numbers that come from sizes."""
    return _chosen(min, args, kwargs)


def _chosen(function: Any, args: Any, kwargs: Any) -> Any:
    given = tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    number = next((value for value in given if isinstance(value, Numeral)), None)
    if number is None or kwargs or len(given) < 2:
        return function(*args, **kwargs)
    return number.tracer.create_proxy("call_function", function, given, {})


def course(labels: frozenset[str], line: str = "") -> Cannot:
    what = "number of images" if labels <= {"N"} else "size of the map"
    return Cannot(
        f"its forward takes another course depending on the {what}: no one local form serves all", line=line
    )


def label_of(node: fx.Node, index: int) -> str:
    """The label of a dimension; of a statistic's, N for the first and C for the others."""
    kind = node.meta["kind"]
    if isinstance(kind, (Map, Partial)) and len(kind.labels) == node.meta["value"].dim():
        return kind.labels[index]
    if isinstance(kind, (Opaque, Number, Weights)):
        return kind.labels[index] if isinstance(kind, Weights) else "?"
    return "N" if isinstance(kind, Statistic) and index == 0 else "C"


def labels_of_numbers(node: fx.Node) -> frozenset[str]:
    kinds = [n.meta["kind"] for n in node.all_input_nodes]
    return frozenset().union(*(kind.labels for kind in kinds if isinstance(kind, Number)))

"""Pickles read without running them: containers and tensors as they are, everything else as an inert mark.

``pickle`` imports what a file names and calls it. The machine here knows the same instructions, but a name stays a
name (:class:`Name`) and an object a bag of its attributes (:class:`Inert`); only the functions that PyTorch's own
tensors and a few containers are written with have a meaning. Work and memory are bounded by the length of the file:
each instruction takes constant time or consumes what others put there, dictionaries keep keys that are strings only
(the hash of a tuple of tuples may take forever), and nothing is ever sized by a number that the file declares.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["Damaged", "Inert", "Name", "StorageRef", "TensorRef", "unpickle"]

MOST_INSTRUCTIONS = 10_000_000  # some ten seconds; a checkpoint of 20 000 tensors has a million
_LONGEST_LINE = 1 << 20  # of an instruction that is text


class Damaged(Exception):
    """What was read is not what it should be; the message is a clause without the file's name."""


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that the pickle names."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object that was not made: what it would be, and its attributes or items where they are mappings."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class StorageRef:
    """Memory that tensors share: ``key`` says where it lies, ``kind`` is PyTorch's name for its type."""

    key: str
    kind: str
    size: int


@dataclass(eq=False)
class TensorRef:
    """A tensor as it is written: a view of a storage (None for one on the meta device, which has no values)."""

    storage: StorageRef | None
    offset: Any
    shape: Any
    strides: Any
    dtype: str | None = None


def unpickle(
    file: BinaryIO,
    storage: Callable[[Any], Any] | None = None,
    nested: Callable[[bytes], Any] | None = None,
    refused: dict[str, None] | None = None,
) -> Any:
    """The payload of one pickle; ``file`` is left behind its end.

    Args:
        storage: makes a :class:`StorageRef` of a persistent identifier.
        nested: reads a pickle within the pickle (tensors pickled without ``torch.save``).
        refused: is given the names of what the pickle wants to call or to make, and what was not.

    Raises:
        Damaged: it is no pickle, is cut off, or has more instructions than any checkpoint.
    """
    machine = _Machine(file, storage, nested, {} if refused is None else refused)
    try:
        return machine.run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError, AttributeError) as error:
        raise Damaged("its pickle contradicts itself") from error


def _as_mapping(pairs: Any) -> dict[str, Any]:
    """A dictionary from what one is constructed of, its keys strings."""
    if isinstance(pairs, Mapping):
        return dict(pairs)
    found = {}
    if isinstance(pairs, (list, tuple)):
        for pair in pairs:
            if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str):
                found[pair[0]] = pair[1]
    return found


# What a pickle may call, by name: functions of the arguments alone that make one of the values above.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    if not isinstance(storage, StorageRef):
        raise Damaged("a tensor in it has no storage")
    return TensorRef(storage, offset, shape, strides)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    made = _tensor(storage, offset, shape, strides)
    made.dtype = dtype.name if isinstance(dtype, Name) else None
    return made


def _meta_tensor(dtype: Any, shape: Any, strides: Any, *_: Any) -> Any:
    return TensorRef(None, 0, shape, strides, dtype.name if isinstance(dtype, Name) else None)


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, kind: Any, arguments: Any, state: Any = None, *_: Any) -> Any:
    known = _FUNCTIONS.get(function.name) if isinstance(function, Name) else None
    return known(*arguments) if known and known is not _of_type else Inert(getattr(kind, "name", "an object"))


def _container(*arguments: Any) -> Any:
    return _as_mapping(arguments[-1]) if arguments else {}


def _sequence(*arguments: Any) -> Any:
    return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else []


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.Size": _sequence,
    "collections.OrderedDict": _container,
    "collections.defaultdict": lambda *_: {},
    "_codecs.encode": lambda text, *_: text.encode("latin-1"),  # how protocols 0 to 2 write bytes
}
for _module in ("builtins", "__builtin__"):
    _FUNCTIONS |= {f"{_module}.dict": _container}
    _FUNCTIONS |= {f"{_module}.{name}": _sequence for name in ("set", "frozenset", "list", "tuple")}

# Made by these from the class that is their first argument.
_MAKERS = ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__")

_MARK = object()


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(
        self,
        file: BinaryIO,
        storage: Callable[[Any], Any] | None,
        nested: Callable[[bytes], Any] | None,
        refused: dict[str, None],
    ) -> None:
        self.file, self.storage, self.nested, self.refused = file, storage, nested, refused
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        read, steps = self.file.read, _STEPS
        for _ in range(MOST_INSTRUCTIONS):
            code = read(1)
            if code == b".":
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise Damaged("its pickle is cut off" if not code else f"its pickle has no instruction {code!r}")
            step(self)
        raise Damaged(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")

    # Reading.

    def take(self, count: int) -> bytes:
        content = self.file.read(count)
        if len(content) != count:
            raise Damaged("its pickle is cut off")
        return content

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        if value < 0 and layout != "<i":
            raise Damaged("its pickle declares a negative length")
        return value

    def raw_line(self) -> bytes:
        content = self.file.readline(_LONGEST_LINE)
        if content[-1:] != b"\n":
            raise Damaged("its pickle is cut off or has a line longer than any")
        return content[:-1]

    def line(self) -> str:
        return self.raw_line().decode("utf-8", "replace")

    def sized(self, layout: str) -> bytes:
        return self.take(self.number(layout))

    def text(self, layout: str, encoding: str = "utf-8") -> str:
        return self.sized(layout).decode(encoding, "replace")

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                found = stack[at + 1 :]
                del stack[at:]
                return found
        raise Damaged("its pickle contradicts itself")

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Damaged("its pickle contradicts itself")
        found = self.stack[-count:]
        del self.stack[-count:]
        return found

    # Instructions that take more than a line.

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        into = target.state if isinstance(target, Inert) else target
        if isinstance(into, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str):
                    into[key] = value

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.state.update(part)

    def text_number(self) -> Any:
        line = self.line().rstrip("L")
        if len(line) > 1000:  # decimal digits take the square of their number
            raise Damaged("its pickle holds a number of more than 1000 digits")
        return {"00": False, "01": True}.get(line) if line in ("00", "01") else int(line)

    def named(self, module: str, name: str) -> None:
        self.push(Name(f"{module}.{name}"))

    def call(self, function: Any, arguments: Any) -> None:
        """Push what the call would give where that is known, or a mark of what was not called."""
        name = function.name if isinstance(function, Name) else "an object"
        arguments = arguments if isinstance(arguments, tuple) else ()
        known = _FUNCTIONS.get(name)
        if known is not None:
            self.push(known(*arguments))
        elif name == "torch.storage._load_from_bytes" and self.nested and arguments:
            self.push(self.nested(arguments[0]))
        else:
            if name in _MAKERS and arguments and isinstance(arguments[0], Name):
                name = arguments[0].name
            self.refused[name] = None
            self.push(Inert(name))

    def make(self, kind: Any) -> None:
        """Push an object without attributes; a dictionary for the classes that are one."""
        name = kind.name if isinstance(kind, Name) else "an object"
        if _FUNCTIONS.get(name) is _container:
            self.push({})
        else:
            self.refused[name] = None
            self.push(Inert(name))

    def persistent(self, identifier: Any) -> None:
        self.push(Inert("a persistent object") if self.storage is None else self.storage(identifier))


def _get(machine: _Machine, at: int) -> None:
    machine.push(machine.memo[at])


def _put(machine: _Machine, at: int) -> None:
    machine.memo[at] = machine.stack[-1]


def _stack_global(machine: _Machine) -> None:
    module, name = machine.last(2)
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Damaged("its pickle contradicts itself")
    machine.named(module, name)


def _new_object(machine: _Machine, count: int) -> None:
    machine.make(machine.last(count)[0])


def _object(machine: _Machine) -> None:
    machine.make(machine.marked()[0])


def _instance(machine: _Machine) -> None:
    name = f"{machine.line()}.{machine.line()}"
    machine.marked()
    machine.make(Name(name))


def _reduce(machine: _Machine) -> None:
    machine.call(*machine.last(2))


def _dictionary(machine: _Machine) -> None:
    items = machine.marked()
    machine.push({})
    machine.set_items(items)


def _quoted(machine: _Machine) -> None:
    machine.push(machine.line().strip("'\""))


def _put_next(machine: _Machine) -> None:
    _put(machine, len(machine.memo))


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.push(_MARK),
    b"0": lambda m: m.last(1),
    b"1": lambda m: m.marked(),
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(m.text_number()),
    b"L": lambda m: m.push(m.text_number()),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.file.read(1)[0]),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.sized("<B"), "little", signed=True)),
    b"\x8b": lambda m: m.push(int.from_bytes(m.sized("<I"), "little", signed=True)),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"S": _quoted,
    b"V": lambda m: m.push(m.raw_line().decode("raw-unicode-escape", "replace")),
    b"U": lambda m: m.push(m.text("<B", "latin-1")),
    b"T": lambda m: m.push(m.text("<I", "latin-1")),
    b"X": lambda m: m.push(m.text("<I")),
    b"\x8c": lambda m: m.push(m.text("<B")),
    b"\x8d": lambda m: m.push(m.text("<Q")),
    b"C": lambda m: m.push(m.sized("<B")),
    b"B": lambda m: m.push(m.sized("<I")),
    b"\x8e": lambda m: m.push(m.sized("<Q")),
    b"\x96": lambda m: m.push(m.sized("<Q")),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.marked()),
    b"a": lambda m: m.append(m.last(1)),
    b"e": lambda m: m.append(m.marked()),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push(tuple(m.last(1))),
    b"\x86": lambda m: m.push(tuple(m.last(2))),
    b"\x87": lambda m: m.push(tuple(m.last(3))),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"}": lambda m: m.push({}),
    b"d": _dictionary,
    b"s": lambda m: m.set_items(m.last(2)),
    b"u": lambda m: m.set_items(m.marked()),
    b"\x8f": lambda m: m.push([]),  # EMPTY_SET
    b"\x90": lambda m: m.append(m.marked()),  # ADDITEMS
    b"\x91": lambda m: m.push(m.marked()),  # FROZENSET
    b"g": lambda m: _get(m, int(m.line())),
    b"h": lambda m: _get(m, m.file.read(1)[0]),
    b"j": lambda m: _get(m, m.number("<I")),
    b"p": lambda m: _put(m, int(m.line())),
    b"q": lambda m: _put(m, m.file.read(1)[0]),
    b"r": lambda m: _put(m, m.number("<I")),
    b"\x94": _put_next,
    b"c": lambda m: m.named(m.line(), m.line()),
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": lambda m: _new_object(m, 2),
    b"\x92": lambda m: _new_object(m, 3),
    b"o": _object,
    b"i": _instance,
    b"b": lambda m: m.build(),
    b"P": lambda m: m.persistent(m.line()),
    b"Q": lambda m: m.persistent(m.stack.pop()),
}

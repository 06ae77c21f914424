"""Run a model at a given input size to see what reaches its sites, and leave no trace.

What runs is a copy of the model's structure, so that the model itself is only read, and may be run by other threads
meanwhile. It runs on fake tensors, which have a shape but no values: no arithmetic, no memory. Where its code asks
for values (``.item()``, NumPy), it runs for real on its own device and dtype, on tensors of its own. Hooks do not
run, so that none records a size that no image had.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .._models.copies import Structure, cloned, structure_of
from .._models.fakes import FakeMode, fake_of, make_fake, no_fakes_left, silent_fakes
from .._models.slots import HOOKS, Slot, is_hooked, slots_of
from .._models.undisturbed import OwnNumbers, python_numbers_kept
from ..errors import ArgumentTypeError, ArgumentValueError, ProbeError
from .positions.findings import ATTENDING, FORMLESS, Finding, decisive
from .positions.recording import CallRecord, Recorder, Recurrences

__all__ = [
    "ATTENDING",
    "FORMLESS",
    "HOOKS",
    "Arguments",
    "Call",
    "FakeMode",
    "Inputs",
    "Run",
    "Slot",
    "called",
    "failure",
    "inputs_of",
    "is_hooked",
    "make_fake",
    "no_fakes_left",
    "run",
    "silent_fakes",
    "slots_of",
    "undisturbed",
]

Arguments = tuple[Any, ...] | dict[str, Any]
Inputs = Callable[[int, int], Arguments]
Shape = tuple[int, ...]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Run:
    """What a run saw: the shapes that reached each watched slot, in call order, and the shapes that came out.

    With ``observed`` slots also the arguments that reached them, in call order, the order in which the slots were
    reached, every operation of their own code, and how many multiplications all of it was.
    """

    calls: dict[Slot, list[Shape]]
    outputs: list[Shape]
    fake: bool
    arguments: dict[Slot, list[Call]] = field(default_factory=dict)
    order: list[Slot] = field(default_factory=list)
    records: dict[Slot, list[CallRecord]] = field(default_factory=dict)
    findings: dict[Slot, list[Finding]] = field(default_factory=dict)
    work: int = 0

    @property
    def reducing(self) -> dict[Slot, str]:
        """The slots whose own code takes positions together, with the operation that decides what can be done."""
        return {slot: decisive(found) for slot, found in self.findings.items()}


def run(
    model: nn.Module,
    inputs: Inputs,
    size: tuple[int, int],
    watched: dict[Slot, bool],
    calls: dict[Slot, list[Shape]] | None = None,
    fake: bool | None = None,
    observed: list[Slot] | None = None,
    layers: list[Slot] | None = None,
) -> Run:
    """Run ``model`` on an input of ``size`` = (height, width).

    ``watched``: the slots to record. True makes the slot's module return one value per position, as a local
    pool does: the mean of its input, repeated to the input's size. ``calls``: filled as the run goes, for who
    wants to know how far it got. ``fake``: run on fake tensors or on real ones; by default on fake ones and,
    should that fail, on real ones. ``observed``: slots whose own operations are recorded. ``layers``: slots of
    layers that operations are to be told by.

    Raises:
        Exception: whatever the model raises.
    """
    calls = {} if calls is None else calls
    watching = _Watching(watched, observed or [], layers or [], calls)
    if fake is not False:
        try:
            with python_numbers_kept(), silent_fakes():
                mode = FakeMode()
                args = _fake_inputs(inputs, size, mode)
                copied = structure_of(model, lambda tensor: fake_of(mode, tensor))
                with mode:
                    return watching.run(copied, args, True)
        except Exception:
            # The model may look at values, which fake tensors do not have; if it has another reason to fail,
            # it tells that on real ones.
            if fake:
                raise
            calls.clear()
    with python_numbers_kept(), OwnNumbers():
        return watching.run(structure_of(model, cloned), inputs(*size), False)


def _fake_inputs(inputs: Inputs, size: tuple[int, int], mode: FakeMode) -> Arguments:
    """The arguments of a call, without values; where they are made of values, these are thrown away."""
    try:
        with mode:
            args = inputs(*size)
    except Exception:
        with OwnNumbers():
            args = inputs(*size)
    with mode:
        return tree_map(_as_fake, args)  # type: ignore[no-any-return]


def _as_fake(value: Any) -> Any:
    return torch.empty_like(value) if isinstance(value, Tensor) else value


class _Watching:
    """What is to be watched in a run, and how: each slot of interest gets a module that calls what is there."""

    def __init__(
        self,
        watched: dict[Slot, bool],
        observed: list[Slot],
        layers: list[Slot],
        calls: dict[Slot, list[Shape]],
    ) -> None:
        self.watched, self.observed, self.layers, self.calls = watched, observed, layers, calls

    def run(self, copied: Structure, args: Arguments, fake: bool) -> Run:
        run = Run(self.calls, [], fake)
        recorder = Recorder(copied.tensors()) if self.observed else None
        for slot, pools in self.watched.items():
            forward = self._recording(slot, pools, copied.of(slot.module).forward)
            _stand_in(slot, copied, self._called(slot, forward, run, recorder, True))
        for slot in self.observed:
            if slot not in self.watched:
                forward = copied.of(slot.module).forward
                _stand_in(slot, copied, self._called(slot, forward, run, recorder, False))
        for slot in self.layers:
            if recorder is not None and slot not in self.watched and slot not in self.observed:
                _stand_in(slot, copied, _in_layer(slot.module, copied.of(slot.module).forward, recorder))
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if recorder is not None:
                stack.enter_context(recorder)
                stack.enter_context(Recurrences(recorder))
            outputs = called(copied.model, args)
        run.outputs = [tuple(leaf.shape) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if recorder is not None:
            run.records, run.work = recorder.calls, recorder.work
        return run

    def _recording(self, slot: Slot, pools: bool, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            self.calls.setdefault(slot, []).append(() if x is None else tuple(x.shape))
            if pools and x is not None:
                return x.mean((-2, -1), keepdim=True).expand_as(x).contiguous()
            return forward(*args, **kwargs)

        return recorded

    def _called(
        self, slot: Slot, forward: Callable[..., Any], run: Run, recorder: Recorder | None, known: bool
    ) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            run.order.append(slot)
            if not known:
                run.arguments.setdefault(slot, []).append((args, kwargs))
            if recorder is None:
                return forward(*args, **kwargs)
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            with recorder.call(slot, given, silent=known):
                return forward(*args, **kwargs)

        return called


def _in_layer(module: nn.Module, forward: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with recorder.layer(module):
            return forward(*args, **kwargs)

    return inside


def _stand_in(slot: Slot, copied: Structure, forward: Callable[..., Any]) -> None:
    """Make calls through ``slot``, and through this slot only, go to ``forward``."""
    module = copied.of(slot.module)
    if isinstance(slot.parent, torch.jit.ScriptModule):
        return  # what is inside a scripted module is not called by Python
    if isinstance(module, torch.jit.ScriptModule):  # not copied: a plain module takes its place
        stand = nn.Module()
    else:
        stand = object.__new__(type(module))
        stand.__dict__.update(module.__dict__)
    stand.__dict__["forward"] = forward
    if slot.parent is None:
        copied.model = stand
    else:
        copied.of(slot.parent)._modules[slot.name] = stand


# ---------------------------------------------------------------------------------------------- inputs


def inputs_of(model: nn.Module, example_input: Any, base_size: tuple[int, int]) -> Iterator[Inputs]:
    """Ways to call the model, the likeliest first."""
    like = _first_floating(model)
    known = getattr(getattr(model, "tlsc", None), "inputs", None)  # a network that describes itself
    if example_input is None and known is not None:
        yield lambda height, width: tree_map(
            lambda leaf: _as_like(leaf, like), _as_args(known(height, width), model)
        )
    elif example_input is None:
        for channels in _channels(model):
            yield lambda height, width, c=channels: (like.new_zeros((1, c, height, width)),)  # type: ignore[misc]
    elif callable(example_input) and not isinstance(example_input, Tensor):
        yield lambda height, width: _as_args(example_input(height, width), model)
    else:
        args = _as_args(example_input, model)
        first = next((leaf for leaf in tree_leaves(args) if _is_image(leaf)), None)
        if first is None:
            raise ArgumentValueError(
                "example_input must hold an image, a floating tensor (N, C, H, W); found none. "
                "Give a function (height, width) -> args for other calls"
            )
        unit = first.shape[-2:]
        yield lambda height, width: tree_map(lambda leaf: _resized(leaf, unit, (height, width)), args)


def called(model: nn.Module, args: Arguments) -> Any:
    """What ``model`` returns for arguments by position (a tuple) or by keyword (a dictionary)."""
    return model(**args) if isinstance(args, dict) else model(*args)


def _as_args(value: Any, model: nn.Module) -> Arguments:
    """A dictionary is the call's keywords where they fit the forward, and otherwise its only argument."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)):
        return tuple(value)
    if isinstance(value, Mapping):
        named = dict(value)
        return named if _are_keywords(model, named) else (value,)
    raise ArgumentTypeError(
        f"example_input must be a tensor, a tuple, a dictionary of keywords, or a function (height, width) -> one "
        f"of them, got {type(value).__name__}"
    )


def _are_keywords(model: nn.Module, named: dict[Any, Any]) -> bool:
    """Whether a forward can be called with these names."""
    try:
        inspect.signature(model.forward).bind(**named)
    except (TypeError, ValueError):
        return False
    return True


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4 and value.numel() > 0


def _resized(value: Any, unit: torch.Size, size: tuple[int, int]) -> Any:
    """A copy: of an image, at the size that it has when the first image has ``size``."""
    if not _is_image(value):
        return value.clone() if isinstance(value, Tensor) else value
    height, width = (max(1, round(n * new / old)) for n, new, old in zip(value.shape[-2:], size, unit, strict=True))
    if (height, width) == tuple(value.shape[-2:]):
        return value.detach().clone()
    return F.interpolate(value.detach().float(), (height, width), mode="nearest").to(value.dtype)


def _as_like(value: Any, like: Tensor) -> Any:
    return value.to(like) if isinstance(value, Tensor) and value.is_floating_point() else value


def _first_floating(model: nn.Module) -> Tensor:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.detach()
    return torch.empty(0)


def _channels(model: nn.Module) -> list[int]:
    """Numbers of channels the model's input may have, the likeliest first."""
    counts = []
    for module in model.modules():
        for name in ("in_channels", "num_features", "num_channels"):
            count = getattr(module, name, None)
            if isinstance(count, int) and count > 0:
                counts.append(count)
                break
    return list(dict.fromkeys([*counts[:1], 3, 1, 4, *counts[1:8]]))


# -------------------------------------------------------------------------------------- copies as they were


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A copy of a model, in evaluation mode and without hooks; afterwards as it was, with all that it keeps."""
    states = [(module, dict(module.__dict__), _containers(module)) for module in model.modules()]
    try:
        for module in model.modules():
            module.__dict__.update({name: OrderedDict() for name in HOOKS if name in module.__dict__})
            module.__dict__["training"] = False
        with python_numbers_kept():
            yield
    finally:
        for module, state, containers in states:
            module.__dict__.clear()
            module.__dict__.update(state)
            for container, content in containers:
                _refill(container, content)


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes (its parameters and children too), also those inside others,
    with copies of them."""
    found: dict[int, tuple[Any, Any]] = {}

    def look(value: Any) -> None:
        if id(value) in found or type(value) not in (*_CONTAINERS, tuple):
            return
        found[id(value)] = value, copy.copy(value)
        for inner in value.values() if isinstance(value, dict) else value:
            look(inner)

    for value in module.__dict__.values():
        look(value)
    return [pair for pair in found.values() if type(pair[0]) is not tuple]


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(content)
    else:
        container.update(content)


def failure(error: Exception, size: tuple[int, int], given: bool) -> ProbeError:
    """The error of a model that could not be run at ``size``."""
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else "no message"
    way_out = (
        "check what example_input gives it at this size, or choose a base_size that it takes"
        if given
        else "choose a base_size that it takes, or pass example_input: a tensor, a tuple, or a function "
        "(height, width) -> args"
    )
    return ProbeError(
        f"the model failed on an input of base_size {size[0]}×{size[1]} ({type(error).__name__}: {said}); {way_out}"
    )

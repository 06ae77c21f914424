"""Run a model at a given input size to see what reaches its sites, and leave no trace.

The model runs on fake tensors, which have a shape but no values: no arithmetic, no memory. Where its code asks
for values (``.item()``, NumPy), it runs for real on its own device and dtype. In both cases every module's
attributes (and the containers among them), parameters, buffers, hooks and training flag, the random number
generators and the gradients are afterwards as they were. Hooks do not run, so that none records a size that no
image had.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import logging
import math
import random
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ArgumentTypeError, ArgumentValueError, ProbeError, TLSCWarning

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


@dataclass(eq=False)
class Slot:
    """A place in the module tree: child ``name`` of ``parent``, or the model itself where parent is None."""

    parent: nn.Module | None
    name: str
    module: nn.Module
    paths: list[str] = field(default_factory=list)

    def put(self, module: nn.Module) -> None:
        """Put ``module`` in this place; not for the model itself."""
        assert self.parent is not None
        self.parent._modules[self.name] = module


@dataclass
class Run:
    """What a run saw: the shapes that reached each watched slot, in call order, and the shapes that came out.

    With ``observed`` slots also the arguments that reached them, in call order, and which of them took a statistic
    over all positions in their own ``forward``, with its name.
    """

    calls: dict[Slot, list[Shape]]
    outputs: list[Shape]
    fake: bool
    arguments: dict[Slot, list[Call]] = field(default_factory=dict)
    reducing: dict[Slot, str] = field(default_factory=dict)
    order: list[Slot] = field(default_factory=list)


def slots_of(model: nn.Module) -> list[Slot]:
    """Every place in the module tree once, with all the paths that lead to it."""
    found: dict[tuple[int, str], Slot] = {(0, ""): Slot(None, "", model, [""])}

    def walk(parent: nn.Module, prefix: str, above: tuple[int, ...]) -> None:
        for name, module in parent._modules.items():
            if module is None or id(module) in above:
                continue
            slot = found.setdefault((id(parent), name), Slot(parent, name, module))
            slot.paths.append(prefix + name)
            walk(module, f"{prefix}{name}.", (*above, id(module)))

    walk(model, "", (id(model),))
    return list(found.values())


def run(
    model: nn.Module,
    inputs: Inputs,
    size: tuple[int, int],
    watched: dict[Slot, bool],
    calls: dict[Slot, list[Shape]] | None = None,
    fake: bool | None = None,
    observed: list[Slot] | None = None,
) -> Run:
    """Run ``model`` on an input of ``size`` = (height, width).

    ``watched``: the slots to record. True makes the slot's module return one value per position, as a local
    pool does: the mean of its input, repeated to the input's size. ``calls``: filled as the run goes, for who
    wants to know how far it got. ``fake``: run on fake tensors or on real ones; by default on fake ones and,
    should that fail, on real ones.

    Raises:
        Exception: whatever the model raises.
    """
    calls = {} if calls is None else calls
    if fake is not False:
        try:
            with undisturbed(model), silent_fakes():
                args = inputs(*size)
                with FakeMode() as mode:
                    make_fake(model, mode)
                    return _run(model, tree_map(_as_fake, args), watched, calls, True, observed or [])
        except Exception:
            # The model may look at values, which fake tensors do not have; if it has another reason to fail,
            # it tells that on real ones.
            if fake:
                raise
            calls.clear()
    with undisturbed(model, values=True):
        return _run(model, inputs(*size), watched, calls, False, observed or [])


@contextmanager
def silent_fakes() -> Iterator[None]:
    """Keep PyTorch from logging the traceback of an operation that fails on fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def no_fakes_left() -> Iterator[None]:
    """Afterwards, take back the fake tensors that models put into caches of their own: ``functools.lru_cache``,
    dictionaries, lists and objects outside the modules. There they would be taken for real ones later.

    Warns:
        TLSCWarning: one is kept where it cannot be taken back.
    """
    made: list[weakref.ref[FakeTensor]] = []
    token = _MADE.set(made)
    try:
        yield
    finally:
        _MADE.reset(token)
    if not _take_back(made):
        warnings.warn(
            "the model keeps tensors without values, made while it was planned, where they cannot be taken back; "
            "clear its caches before running it",
            TLSCWarning,
            stacklevel=2,
        )


_MADE: ContextVar[list[weakref.ref[FakeTensor]] | None] = ContextVar("made", default=None)


class FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors, each of them noted for :func:`no_fakes_left`."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        made = _MADE.get()
        if made is not None:
            made += [weakref.ref(leaf) for leaf in tree_leaves(out) if type(leaf) is FakeTensor]
        return out


def _take_back(made: list[weakref.ref[FakeTensor]]) -> bool:
    """Whether none of the fake tensors lives on."""

    def living() -> list[FakeTensor]:
        return [fake for reference in made if (fake := reference()) is not None]

    if not living():
        return True
    torch.clear_autocast_cache()
    for generation in (1, 2):  # those that only cycles keep: young ones, without a search of the whole heap
        gc.collect(generation)
        if not (fakes := living()):
            return True
    for cache in [found for found in gc.get_objects() if type(found) is functools._lru_cache_wrapper]:
        if not (cache.__module__ or "").startswith("torch"):
            cache.cache_clear()
    for number in range(len(fakes)):
        for holder in gc.get_referrers(fakes[number]):
            if holder is not fakes:
                _let_go(holder, fakes[number])
    fakes.clear()
    return not living()


def _let_go(holder: Any, fake: FakeTensor) -> None:
    if type(holder) in (dict, OrderedDict, defaultdict):
        for key in [key for key, value in holder.items() if value is fake]:
            if "__spec__" in holder:  # the variables of a Python module
                holder[key] = None
            else:
                del holder[key]
    elif type(holder) in (list, deque):
        kept = [value for value in holder if value is not fake]
        holder.clear()
        holder.extend(kept)
    elif isinstance(getattr(holder, "__dict__", None), dict):
        for key in [key for key, value in vars(holder).items() if value is fake]:
            object.__setattr__(holder, key, None)


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Give every module fake tensors: a change in place of a real one would be real even in this mode."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for tensors in _tensors_of(module):
            for name, value in tensors.items():
                if isinstance(value, Tensor):
                    tensors[name] = mode.from_tensor(value)


def _as_fake(value: Any) -> Any:
    return torch.empty_like(value) if isinstance(value, Tensor) else value


def _run(
    model: nn.Module,
    args: Arguments,
    watched: dict[Slot, bool],
    calls: dict[Slot, list[Shape]],
    fake: bool,
    observed: list[Slot],
) -> Run:
    run = Run(calls, [], fake)
    observer = _Observer(run)
    for slot, pools in watched.items():
        _stand_in(slot, observer.within(slot, _recording(slot, pools, calls), known=True))
    for slot in observed:
        if slot not in watched:
            _stand_in(slot, observer.within(slot, slot.module.forward))
    with torch.no_grad(), _eager(model), observer if observed else nullcontext():
        outputs = called(model, args)
    run.outputs = [tuple(leaf.shape) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return run


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which module's own ``forward`` takes a statistic over all positions.

    It looks at the operations that everything is made of in the end, so that no spelling escapes it.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run
        self.inside: list[Slot | None] = []
        self.maps: list[set[tuple[int, int]]] = [set()]  # sizes of the maps around, by the depth of the call
        self.known: set[tuple[int, int]] = set()  # of all maps that came in or that a layer made
        self.batch = 0

    def within(self, slot: Slot, forward: Callable[..., Any], known: bool = False) -> Callable[..., Any]:
        def observed(*args: Any, **kwargs: Any) -> Any:
            self.run.order.append(slot)
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if not known:
                self.run.arguments.setdefault(slot, []).append((args, kwargs))
            if not self.known:
                self.batch = next((leaf.shape[0] for leaf in given if leaf.dim() == 4), 0)
                self.known |= {(leaf.shape[2], leaf.shape[3]) for leaf in given if leaf.dim() == 4}
            self.inside.append(None if known else slot)
            self.maps.append(self.maps[-1].union(*(self._sizes(leaf) for leaf in given)))
            try:
                return forward(*args, **kwargs)
            finally:
                self.inside.pop()
                self.maps.pop()

        return observed

    def _sizes(self, x: Tensor) -> set[tuple[int, int]]:
        """The sizes that a map may have, channels first or last."""
        if x.dim() != 4:
            return set()
        sizes = {(x.shape[2], x.shape[3]), (x.shape[1], x.shape[2])}
        return {size for size in sizes if math.prod(size) > 1} & self.known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        owner = self.inside[-1] if self.inside else None
        if func.namespace == "aten" and func._schema.name.partition("::")[2] not in _GLOBAL:
            with self:  # under inference mode operations come as they were called
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dim() == 4 and func._schema.name in _MAKING and len(out) == self.batch:
            self.known.add((out.shape[2], out.shape[3]))
            self.maps[-1] |= self._sizes(out)
        if owner is not None and self.run.reducing.get(owner) not in _DECISIVE:
            name = _takes_all(func, args, kwargs, self.maps[-1])
            if name in _DECISIVE:
                self.run.reducing[owner] = name  # which decides, whatever else is there
            elif name:
                self.run.reducing.setdefault(owner, name)
        return out


def _takes_all(func: Any, args: Any, kwargs: Any, maps: set[tuple[int, int]]) -> str:
    """The name of an operation that takes all positions of one of the ``maps`` together; empty for any other."""
    name = func._schema.name.partition("::")[2]
    kind = _GLOBAL.get(name)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if kind is None or not tensors or not tensors[0].is_floating_point():
        return ""
    x = tensors[0]
    shown: str = _NAMES.get(name, name.removeprefix("_"))
    if kind == "product":
        first, second = tensors[:2] if name == "bmm" else tensors[1:3]
        positions = {height * width for height, width in maps}
        square = first.shape[-2] in positions and second.shape[-1] in positions  # each position with each
        return shown if square or _is_multiple(first.shape[-1], maps) else ""
    if kind == "attention":
        return shown if _is_multiple(tensors[1].shape[-2], maps) else ""
    if kind == "group_norm":
        return shown if int(args[5]) > 1 else ""
    if kind == "batch_norm":
        training = any(arg is True for arg in args) or kwargs.get("training") is True
        return "instance_norm" if training and math.prod(x.shape[2:]) > 1 else ""
    if kind == "pool":
        given = [args[1]] if isinstance(args[1], int) else list(args[1])
        kernel = tuple(int(n) for n in (given * 2 if len(given) == 1 else given))
        target = (1, 1) if "adaptive" in name else tuple(x.shape[-2:])
        return shown if kernel == target and math.prod(x.shape[-2:]) > 1 else ""
    if kind == "layer_norm":
        dims: Any = tuple(range(x.dim() - len(args[1]), x.dim()))
    elif kind == "norm":
        dims = kwargs.get("dim", args[2] if len(args) > 2 else None)
    elif kind == "fft":
        dims = args[1]
    else:
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if kind == "sort" and name == "topk":
            dims = kwargs.get("dim", args[2] if len(args) > 2 else -1)
    if isinstance(dims, int) and not isinstance(dims, bool):
        dims = (dims,)
    rank = x.dim()
    taken = {d % rank for d in dims} if isinstance(dims, (tuple, list)) and dims else set(range(rank))
    reduced = math.prod(x.shape[d] for d in taken)
    kept = [x.shape[d] for d in range(rank) if d not in taken]
    if kind == "layer_norm" and len(taken) == 1 and rank > 2 and not any(reduced == h * w for h, w in maps):
        return ""  # over channels, of which there are a multiple of a small map's positions
    if _is_multiple(reduced, maps) and not _spans(kept, maps):
        return shown
    strip = kind == "sum" and rank == 4 and any(taken <= {2, 3} and x.shape[2:] == size for size in maps)
    return shown if strip and reduced > 1 else ""


def _is_multiple(length: int, maps: set[tuple[int, int]]) -> bool:
    return length > 0 and any(length % (height * width) == 0 for height, width in maps)


def _spans(lengths: list[int], maps: set[tuple[int, int]]) -> bool:
    """Whether all positions of a map are left: among these lengths as one, or as two neighbours."""
    pairs = set(pairwise(lengths))
    return any(size in pairs or math.prod(size) in lengths for size in maps)


# Operations that make a map.
_MAKING = {
    f"aten::{name}"
    for name in ("convolution", "avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d")
}
# Operations that may take all positions together, and where they say over what.
_GLOBAL = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min"), "sum"),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean", "logsumexp", "aminmax", "prod", "median"), "dims"),
    **dict.fromkeys(("nansum", "any", "all", "argmax", "argmin", "_softmax", "_log_softmax", "cumsum"), "dims"),
    **dict.fromkeys(("cumprod", "cummax", "nanmedian", "kthvalue", "mode"), "dims"),
    **dict.fromkeys(("sort", "topk"), "sort"),
    **dict.fromkeys(("linalg_vector_norm", "norm"), "norm"),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d"), "pool"),
    **dict.fromkeys(("max_pool2d_with_indices", "mkldnn_adaptive_avg_pool2d"), "pool"),
    **dict.fromkeys(("bmm", "baddbmm"), "product"),
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), "fft"),
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"), "batch_norm"),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_no_update"), "batch_norm"),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        ),
        "attention",
    ),
}
ATTENDING = ("matmul", "attention")
FORMLESS = (
    "fft", "cumsum", "cumprod", "cummax", "prod", "sort", "topk", "median", "nanmedian", "kthvalue", "mode",
)  # fmt: skip
_DECISIVE = frozenset((*ATTENDING, *FORMLESS))  # whatever else a module takes
_NAMES = {
    **dict.fromkeys(("linalg_vector_norm", "norm"), "norm"),
    **dict.fromkeys(("bmm", "baddbmm"), "matmul"),
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), "fft"),
    **{name: "attention" for name, kind in _GLOBAL.items() if kind == "attention"},
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "max_pool2d_with_indices": "max_pool2d",
}


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Let compiled parts run as they were before they were compiled."""
    for module in model.modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
            return eager
    return nullcontext()


def _recording(slot: Slot, pools: bool, calls: dict[Slot, list[Shape]]) -> Callable[..., Any]:
    forward = slot.module.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        calls.setdefault(slot, []).append(() if x is None else tuple(x.shape))
        if pools and x is not None:
            return x.mean((-2, -1), keepdim=True).expand_as(x).contiguous()
        return forward(*args, **kwargs)

    return recorded


def _stand_in(slot: Slot, forward: Callable[..., Any]) -> None:
    """Make calls through ``slot``, and through this slot only, go to ``forward``."""
    if slot.parent is None:
        slot.module.__dict__["forward"] = forward
        return
    clone = type(slot.module).__new__(type(slot.module))
    clone.__dict__.update(slot.module.__dict__, _compiled_call_impl=None)
    clone.__dict__["forward"] = forward
    slot.put(clone)


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


# -------------------------------------------------------------------------------------- leave no trace

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of ``module``."""
    return any(module.__dict__.get(name) for name in HOOKS)


@contextmanager
def undisturbed(model: nn.Module, values: bool = False) -> Iterator[None]:
    """Evaluation mode without hooks; on leaving, modules and random number generators as they were.

    ``values``: also restore the values of tensors, which only a run on real ones can change in place.
    """
    modules = list(model.modules())
    states = [(module, dict(module.__dict__), _containers(module)) for module in modules]
    contents = [(tensor, tensor.detach().clone()) for tensor in _tensors(modules)] if values else []
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.device(next(iter(devices))) if devices else nullcontext()
    try:
        with (
            torch.random.fork_rng([device.index or 0 for device in devices]),
            warnings.catch_warnings(),
            cuda,
        ):
            warnings.simplefilter("ignore")
            for module in modules:
                for name in HOOKS:
                    if name in module.__dict__:
                        module.__dict__[name] = OrderedDict()
                module.__dict__["training"] = False
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, state, containers in states:
            module.__dict__.clear()
            module.__dict__.update(state)
            for container, content in containers:
                _refill(container, content)
        with torch.no_grad():
            for tensor, value in contents:
                if not (tensor.is_meta or torch.equal(tensor, value)):
                    tensor.copy_(value)


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    """The parameters, buffers and plain tensor attributes of modules, once each."""
    found: dict[int, Tensor] = {}
    for module in modules:
        for tensors in _tensors_of(module):
            found.update((id(value), value) for _, value in tensors.items() if isinstance(value, Tensor))
    return list(found.values())


def _tensors_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps tensors."""
    return module._parameters, module._buffers, module.__dict__


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

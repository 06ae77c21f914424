"""A rewritten module: the local forms of its forward, each valid for what its code read when it was recorded.

A call looks for the form that holds now: the same attributes, variables, kinds of arguments and, where the code
switches or asks for them, modes. If there is none, the forward is recorded anew, at ``base_size``, so that the
windows stay what they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .._models.copies import structure_of
from .._models.fakes import FakeMode, fake_of, no_fakes_left, silent_fakes
from .._models.slots import ORIGINAL
from .._models.undisturbed import python_numbers_kept
from .._statistics import any_size as _graph
from ..errors import TLSCError
from .arguments import flattened, mapped
from .assembly import Function, function_of
from .courses import is_its_own, with_windows_of
from .guards import ambient
from .recorder import Recorded, TensorSpec
from .rewriter import rewrite
from .runtime import CORRECTIONS
from .trace import Trace, trace
from .values import Cannot

__all__ = ["Recipe", "recipe_of", "stand_in"]

FORMS = "_tlsc_forms"
LIMIT = 16
"""How many forms of one forward are kept."""
MANY = 1000
"""How many sizes are remembered that take one course."""


class Form:
    """One local form of a forward, and what it is valid for."""

    def __init__(self, function: Function, recorded: Recorded, operations: tuple[str, ...]) -> None:
        self.function, self.recorded, self.operations = function, recorded, operations
        reads = recorded.reads.attributes
        self.sizes: set[Any] = set()  # of arguments, that take its course
        self.flags = tuple((path, name, now[1]) for (path, name), now in reads.items() if _is_flag(name, now))

    def __reduce__(self) -> Any:
        return Form, (self.function, self.recorded, self.operations)

    def __deepcopy__(self, memo: Any) -> Form:
        return self

    def fits(self, module: nn.Module, structure: Any, leaves: list[Any]) -> bool:
        """Whether this form is that of a call."""
        if self.recorded.outcomes and _sizes(leaves) not in self.sizes:
            return False
        return self.holds(module, structure, leaves)

    def serve(self, leaves: list[Any]) -> Form:
        """Note that arguments of these sizes take its course."""
        if len(self.sizes) >= MANY:
            self.sizes.clear()
        self.sizes.add(_sizes(leaves))
        return self

    def holds(self, module: nn.Module, structure: Any, leaves: list[Any]) -> bool:
        """The same for arguments of whichever size."""
        known = self.recorded
        if structure != known.structure or not self._takes(leaves):
            return False
        if known.modes is not None and ambient(known.devices) != known.modes:
            return False
        return known.reads.holds(module)

    def _takes(self, leaves: list[Any]) -> bool:
        known = self.recorded
        exact = not _is_traced()  # whose sizes are tensors
        for leaf, spec, free in zip(leaves, known.leaves, known.open, strict=True):
            if free is None or not isinstance(leaf, Tensor):
                if type(leaf) is not type(spec) or (known.fixed and leaf != spec):
                    return False
                continue
            if (
                leaf.dtype != spec.dtype
                or leaf.device.type != spec.device.type
                or len(_shape(leaf, spec)) != len(spec.shape)
            ):
                return False
            fixed = [d for d in range(len(spec.shape)) if d not in free] if exact else []
            if any(_shape(leaf, spec)[d] != spec.shape[d] for d in fixed):
                return False
        return True

    def fits_graph(self, module: nn.Module, structure: Any, leaves: list[Any]) -> bool:
        """The same while a graph is made: what Dynamo itself watches is not compared."""
        if structure != self.recorded.structure or not self._takes(leaves):
            return False
        if self.recorded.outcomes and _sizes(leaves) not in self.sizes:
            return False
        for path, name, value in self.flags:
            part = module.get_submodule(path) if path else module
            if getattr(part, name) != value:
                return False
        return True


def _sizes(leaves: list[Any]) -> tuple[Any, ...]:
    """What the course may depend on beside the state: the shapes of tensors, and numbers."""
    return tuple(tuple(map(int, leaf.shape)) if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def _shape(leaf: Tensor, spec: TensorSpec) -> tuple[Any, ...]:
    """The shape of an argument; one image without a dimension for the batch is a batch of one."""
    return (1, *leaf.shape) if leaf.dim() == 3 and len(spec.shape) == 4 else tuple(leaf.shape)


def _is_traced() -> bool:
    return torch._C._get_tracing_state() is not None


def _is_flag(name: str, now: Any) -> bool:
    return not name.startswith("=") and type(now) is tuple and len(now) == 2 and now[0] in (bool, int, float, str)


def _is_number(now: Any) -> bool:
    return type(now) is tuple and now[0] in (int, float)


# What :func:`.arguments.flattened` says of a call with one tensor, the most usual.
_ONE = flattened(((torch.zeros(()),), {}), [])


class Recipe:
    """How a forward is recorded anew.

    ``inline``, ``skip``: as for :func:`.trace.trace`. ``example``: the arguments' structure and leaves at
    ``base_size``, and which dimensions of them may have any length.
    """

    def __init__(self, base: type[nn.Module], inline: tuple[str, ...], skip: tuple[str, ...], stride: int) -> None:
        self.base, self.inline, self.skip, self.stride = base, inline, skip, stride
        self.forms: list[Form] = []

    def add(self, made: Trace, graph: Any) -> Form:
        """The form that a trace and the graph made of it are."""
        form = _form(made, graph)
        self.forms.append(form)
        return form


def _form(made: Trace, graph: Any) -> Form:
    assert made.recorded is not None
    operations = tuple(_operation(node) for node in (*made.reductions, *made.norms))
    return Form(function_of(graph), made.recorded, operations)


def _operation(node: Any) -> str:
    found = node.meta.get("reduction")
    return "norm" if found is None else str(found.operation)


class _Call(NamedTuple):
    """A call of a rewritten module: the structure of its arguments, their leaves, and themselves."""

    module: nn.Module
    structure: Any
    leaves: list[Any]
    args: Any
    kwargs: Any


class Forms:
    """The forms of one rewritten module."""

    def __init__(self, recipe: Recipe, forms: list[Form]) -> None:
        self.recipe, self.forms, self.example = recipe, forms, forms[0]
        self.free: frozenset[tuple[str, str]] = frozenset()  # numbers of which any value will do
        self.bound: frozenset[tuple[str, str]] = frozenset()  # those on which the course depends

    def __deepcopy__(self, memo: Any) -> Forms:
        return self._with(list(self.forms))

    def _with(self, forms: list[Form]) -> Forms:
        new = Forms(self.recipe, forms)
        new.example, new.free, new.bound = self.example, self.free, self.bound
        return new

    def run(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What a call of the module returns."""
        leaves: list[Any] = []
        structure: Any = _ONE
        if not kwargs and len(args) == 1 and type(args) is tuple and type(args[0]) is Tensor:
            leaves.append(args[0])
        else:
            if any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
                raise TLSCError(
                    f"torch.fx.symbolic_trace does not look into the converted {self.recipe.base.__name__}: put it "
                    "into a Sequential, in which it is one operation, or use torch.export"
                )
            structure = flattened((args, kwargs), leaves)
        if _graph.applies():
            return self._in_graph(module, structure, leaves, args, kwargs)(module, *leaves)
        if self._is_covered(module, structure, leaves):
            return self.recipe.base.forward(module, *args, **kwargs)
        for place, form in enumerate(self.forms):
            if form.fits(module, structure, leaves):
                if place:
                    self.forms = [form, *[other for other in self.forms if other is not form]]
                return form.function.call(module, *leaves)
        return self._recorded(module, structure, leaves, args, kwargs)(module, *leaves)

    def _in_graph(self, module: nn.Module, structure: Any, leaves: list[Any], args: Any, kwargs: Any) -> Any:
        for form in self.forms:
            if form.fits_graph(module, structure, leaves):
                return form.function.call
        where = ", or at a size," if any(form.recorded.outcomes for form in self.forms) else ""
        raise TLSCError(
            f"{self.recipe.base.__name__} is called in a way{where} that it was not yet: run it like this before "
            "compiling or exporting it"
        )

    def _is_covered(self, module: nn.Module, structure: Any, leaves: list[Any]) -> bool:
        """Whether no argument is larger than at ``base_size``: everything is then as it was."""
        known = self.example.recorded
        corrections = module.__dict__[CORRECTIONS]
        if corrections or type(corrections) is not dict or _is_traced() or structure != known.structure:
            return False
        for leaf, spec, free in zip(leaves, known.leaves, known.open, strict=True):
            if free is None or not isinstance(leaf, Tensor):
                if leaf != spec:
                    return False
            elif len(_shape(leaf, spec)) != len(spec.shape) or any(
                _shape(leaf, spec)[d] > spec.shape[d] for d in free if d
            ):
                return False
        return True

    def _recorded(self, module: nn.Module, structure: Any, leaves: list[Any], args: Any, kwargs: Any) -> Any:
        """The function of a form that is made for a call, or found for its sizes."""
        call = _Call(module, structure, leaves, args, kwargs)
        try:
            with no_fakes_left(), python_numbers_kept(), silent_fakes():
                form = self._found(call)
        except Cannot as error:
            if is_its_own(error) and self.example.recorded.outcomes:
                return self._raising(module, args, kwargs, error)
            what = ", ".join(self.forms[0].recorded.reads.changed(module)) or "its arguments or its modes"
            raise TLSCError(
                f"{self.recipe.base.__name__}: {what} changed since it was converted, and as it is now it has no "
                f"local form ({error}); set that before converting it, or exclude it"
            ) from None
        if module.__dict__[CORRECTIONS] and form.operations != self.example.operations:
            raise TLSCError(
                f"{self.recipe.base.__name__} takes other statistics than when it was calibrated: calibrate it as "
                "it is now"
            )
        self.forms = [form, *(other for other in self.forms if other is not form)][:LIMIT]
        return form.function.call

    def _raising(self, module: nn.Module, args: Any, kwargs: Any, error: Cannot) -> Any:
        """A call on which the forward raises an error of its own: it raises it."""

        def call(*_: Any) -> Any:
            self.recipe.base.forward(module, *args, **kwargs)
            raise TLSCError(f"{self.recipe.base.__name__}: at this size it has no local form ({error})")

        return call

    def _found(self, call: _Call) -> Form:
        """The form that serves the sizes of a call, recorded if there is none."""
        known = [form for form in self.forms if form.recorded.outcomes and form.holds(*call[:3])]
        known = known or [self._for_changed(call)]
        if not known[0].recorded.outcomes:
            return known[0]
        with self._tracing(call, self.free, self._at_its_size) as made:
            for form in known:
                if made.recorded is not None and form.recorded.outcomes == made.recorded.outcomes:
                    return form.serve(call.leaves)
            with self._tracing(call, self.free, self._at_base_size) as base:
                return self._form(with_windows_of(made, base)).serve(call.leaves)

    def _for_changed(self, call: _Call) -> Form:
        """Numbers that have changed since the last form was made, such as counters, are from now on read anew,
        unless the course depends on them."""
        module, reads = call.module, self.forms[0].recorded.reads
        changed = {
            one for one in reads.changed_attributes(module) if _is_number(reads.attributes[one])
        } - self.bound
        for more in (changed, *[{one} for one in changed if len(changed) > 1]):
            with suppress(Cannot):
                form = self._anew(call, self.free | more)
                self.free |= more
                return form
            if len(more) == 1:
                self.bound |= more
        return self._anew(call, frozenset())

    def _anew(self, call: _Call, free: frozenset[tuple[str, str]]) -> Form:
        with self._tracing(call, free, self._at_base_size) as made:
            return self._form(made)

    def _form(self, made: Trace) -> Form:
        if made.unknown:
            raise Cannot(f"its {made.unknown[0]} has no local form here")
        form = _form(made, rewrite(made, self.recipe.stride))
        if made.doubtful and form.operations != self.example.operations:
            raise Cannot(f"its {made.doubtful[0]} is not understood")
        return form

    @contextmanager
    def _tracing(self, call: _Call, free: frozenset[tuple[str, str]], sized: Any) -> Iterator[Trace]:
        """Record a forward; with the end of the block go the tensors without values."""
        mode = FakeMode()
        copied = structure_of(_as_original(call.module), lambda t: fake_of(mode, t), _as_original, to_run=False)
        with mode:
            left = list(sized(call))
            args, kwargs = mapped((call.args, call.kwargs), lambda _: left.pop(0))
        made = trace(copied.model, args, kwargs, self.recipe.inline, self.recipe.skip, mode, free)
        try:
            yield made
        finally:
            made.forget()

    def _is_alike(self, call: _Call) -> bool:
        """Whether a call is of the same arguments as at first, but for sizes."""
        known = self.example.recorded
        return call.structure == known.structure and all(
            not isinstance(leaf, Tensor) or len(_shape(leaf, spec)) == len(spec.shape)
            for leaf, spec in zip(call.leaves, known.leaves, strict=True)
        )

    def _at_its_size(self, call: _Call) -> Iterator[Any]:
        """The leaves of a call, the tensors without values."""
        specs = self.example.recorded.leaves if self._is_alike(call) else call.leaves
        for leaf, spec in zip(call.leaves, specs, strict=True):
            if isinstance(leaf, Tensor):
                shape = tuple(map(int, _shape(leaf, spec)))
                yield torch.empty(shape, dtype=leaf.dtype, device=leaf.device)
            else:
                yield leaf

    def _at_base_size(self, call: _Call) -> Iterator[Any]:
        """The same, of the size that they have at ``base_size``."""
        return self._like(call.leaves) if self._is_alike(call) else self._specs(call.leaves)

    def _like(self, leaves: list[Any]) -> Iterator[Any]:
        known = self.example.recorded
        for leaf, spec, free in zip(leaves, known.leaves, known.open, strict=True):
            if free is None or not isinstance(leaf, Tensor):
                yield leaf
                continue
            shape = [spec.shape[d] if d in free else int(n) for d, n in enumerate(_shape(leaf, spec))]
            yield torch.empty(shape, dtype=leaf.dtype, device=leaf.device)

    def _specs(self, leaves: list[Any]) -> Iterator[Any]:
        """The last two dimensions of maps in proportion to those of the first one."""
        specs = [
            spec for spec in self.example.recorded.leaves if isinstance(spec, TensorSpec) and len(spec.shape) > 3
        ]
        maps = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 3]
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.dim() < 3 or not specs or not maps:
                yield torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf
                continue
            pairs = zip(leaf.shape[-2:], specs[0].shape[-2:], maps[0].shape[-2:], strict=True)
            size = [max(1, round(n * base / now)) for n, base, now in pairs]
            yield torch.empty((*leaf.shape[:-2], *size), dtype=leaf.dtype, device=leaf.device)


def _as_original(module: nn.Module) -> nn.Module:
    """A module as it was before it was converted, with all that it was given since."""
    original = module.__dict__.get(ORIGINAL)
    if not isinstance(original, nn.Module):
        return module
    forms = module.__dict__.get(FORMS)
    base = type(original) if forms is None else forms.recipe.base
    new: nn.Module = object.__new__(base)
    held = original if forms is None else module
    state = {name: value for name, value in held.__dict__.items() if not name.startswith("_tlsc")}
    state.update(training=module.training, _parameters=module._parameters, _buffers=module._buffers)
    new.__dict__.update(state)
    return new


# ------------------------------------------------------------------------------------------- the rewritten module


def recipe_of(module: nn.Module, inline: tuple[str, ...], skip: tuple[str, ...], stride: int) -> Recipe:
    """How the forward of a module is recorded."""
    return Recipe(type(module), inline, skip, stride)


def stand_in(module: nn.Module, recipe: Recipe) -> nn.Module:
    """A module with everything that ``module`` has, of a class derived from its own, whose forward is local."""
    state = {**module.__dict__, CORRECTIONS: {}, FORMS: Forms(recipe, list(recipe.forms))}
    return _assembled(type(module), state)


def _assembled(base: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """What :func:`stand_in` makes, from what can be pickled."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[FORMS].run(self, args, kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _assembled, (base, {}), self.__dict__

    attributes = {"forward": forward, "__reduce_ex__": reduce, "__module__": base.__module__}
    new_class: type[nn.Module] = type(f"Local{base.__name__}", (base,), attributes)
    new: nn.Module = new_class.__new__(new_class)
    new.__dict__.update(state)
    return new

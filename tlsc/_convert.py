"""Convert a trained model in place, and back: probe, plan, apply."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._arguments import as_pair, as_positive_int
from ._forwards.rewriter import stand_in
from ._plan import Action, Plan, Site
from ._sites.kind import Kind, kind_of
from ._surgery import probe as _probe
from ._surgery.owners import OwnedSite, Owner, find_owners
from ._surgery.probe import Inputs, Run, Slot
from .errors import ArgumentTypeError, ArgumentValueError, NoSiteError, ProbeError, TLSCError, TLSCWarning

__all__ = ["Selection", "convert", "converted", "plan", "revert"]

Model = TypeVar("Model", bound=nn.Module)
Selection = str | Sequence[str] | Callable[[nn.Module, str], bool]

_ORIGINAL = "_tlsc_original"
_PLAN = "_tlsc_plan"  # the plan that a model was converted by
OWN_SITES = "_tlsc_own_sites"  # of a rewritten module: the child that takes each statistic, or None
_MADE_FOR = "_tlsc_made_for"  # base_size and stride of the conversion
_EXCHANGED = "_tlsc_exchanged"  # marks a local module that is the very object the caller converted


def plan(
    model: nn.Module,
    base_size: int | tuple[int, int] | None = None,
    *,
    stride: int = 1,
    example_input: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> Plan:
    """What :func:`convert` would do with the same arguments, without doing it.

    A model that is converted already is planned as the original it was.

    Args:
        model, base_size, stride, example_input, include, exclude: as for :func:`convert`. Without ``base_size``:
            what was done to a converted model, its corrections included.

    Returns:
        A :class:`Plan`: data, and a table when printed. Without any site it is empty.

    Raises:
        ArgumentTypeError, ArgumentValueError, ProbeError: as :func:`convert`; there is no ``base_size``, and the
            model is not converted.

    Example:
        >>> from torch import nn
        >>> gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        >>> [site.path for site in plan(gate, 64)]
        ['0']
    """
    if base_size is None:
        return plan_of(model)
    with reverted(model):
        return _Planner(model, base_size, stride, example_input, include, exclude).plan


def plan_of(model: nn.Module) -> Plan:
    """The plan that a model was converted by.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is no module, or was not converted.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = model.__dict__.get(_PLAN)
    if not isinstance(found, Plan):
        raise ArgumentValueError(
            f"{type(model).__name__} is not converted: use tlsc.convert(model, base_size) first"
        )
    return found


def note_plan(model: nn.Module, made: Plan) -> None:
    """Remember the plan of a converted model, in none of its containers."""
    model.__dict__[_PLAN] = made


def convert(
    model: Model,
    base_size: int | tuple[int, int],
    *,
    stride: int = 1,
    example_input: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    strict: bool = True,
    calibrate: Tensor | Sequence[Tensor] | Plan | None = None,
    crop: int | tuple[int, int] | None = None,
) -> Model:
    """Replace each global aggregation of a trained model by a local one, in place.

    At every position a converted layer computes what the original computes on the crop that is the position's
    window: the size that the layer's feature map has when the model's input is ``base_size``. Inputs no larger
    than ``base_size`` give what they gave before.

    Known are ``AdaptiveAvgPool2d`` of output size 1, ``InstanceNorm2d`` without running statistics, ``GroupNorm``,
    and what :func:`register` was told. Parameters, buffers, hooks, flags and the keys of ``state_dict`` stay.
    :func:`plan` shows what happens to each layer and why some are left.

    Args:
        model: any module, in evaluation or training mode, on any device; also one such layer by itself.
        base_size: window at the model's input, in pixels: an int or (height, width). A good first choice is
            1.5 times the training crop.
        stride: 1 for exact local statistics. With ``r > 1`` pools evaluate their means on a grid of this stride,
            in pixels of their own map, and interpolate.
        example_input: the call arguments, for models that take more than one image or no plain one: a tensor, a
            tuple, a dictionary of keywords (images in it are resized to ``base_size``), or a function
            (height, width) -> one of them. A dictionary that is no set of keywords of the forward is its argument.
        include, exclude: which layers to treat: a predicate (module, path) -> bool, or glob patterns over paths
            (``"encoder.*"``), one or several.
        strict: raise :class:`NoSiteError` for a model without any known layer; False returns it as it is.
        calibrate: unlabelled images, or a saved plan: :func:`calibrate` the model with them.
        crop: side of the training crops, for that; by default ``base_size``.

    Returns:
        ``model`` itself. Converting again replaces the earlier conversion.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used; a pattern matches no path.
        ProbeError: the model cannot be run at ``base_size``.
        NoSiteError: it has no layer that is known.
        TLSCError: a registered factory failed or changed the ``state_dict``. In each case the model is as before.
            :func:`calibrate` failed: the model is converted, and not corrected.

    Warns:
        TLSCWarning: there are known layers, but all of them are left as they are; as :func:`calibrate`.

    Source: Chu, Chen, Chen, Lu, "Improving Image Restoration by Revisiting Global Information Aggregation",
    ECCV 2022, arXiv 2112.04491.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True))
        >>> convert(model, base_size=384)[1]
        LocalInstanceNorm2d(8, window=(384, 384), eps=1e-05, affine=True)
    """
    with reverted(model) as before:
        planner = _Planner(model, base_size, stride, example_input, include, exclude)
        made = planner.plan
        if not made.sites and strict:
            raise NoSiteError(
                f"{type(model).__name__} has no layer that aggregates globally and that is known here "
                "(AdaptiveAvgPool2d(1), InstanceNorm2d, GroupNorm, registered types): there is nothing to convert. "
                "Teach a layer of your own with tlsc.register, or pass strict=False"
            )
        local = planner.build()
        before.clear()
    for slot, module in local:
        module.__dict__[_MADE_FOR] = made.base_size, made.stride
        _swap(slot, module)
    if local:
        note_plan(model, made)
    if made.sites and not local:
        reasons = "; ".join(f"{site.path or '(the model)'}: {site.reason}" for site in made.sites)
        warnings.warn(f"nothing was converted. {reasons}", TLSCWarning, stacklevel=2)
    if calibrate is not None and local:
        from ._calibration.calibrate import calibrated

        calibrated(model, calibrate, crop)
    return model


def revert(model: Model) -> Model:
    """Put the original modules back, the very same objects, with whatever their parameters have become.

    Works on a converted model, on a part of one, on a copy, or around one; does nothing to another model.

    Args:
        model: a module.

    Returns:
        ``model`` itself.

    Raises:
        ArgumentTypeError: ``model`` is not a module.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.InstanceNorm2d(8))
        >>> norm = model[0]
        >>> revert(convert(model, 64))[0] is norm
        True
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _take_out(model)
    for module in model.modules():
        module.__dict__.pop(_PLAN, None)
    return model


@contextmanager
def converted(
    model: Model,
    base_size: int | tuple[int, int],
    *,
    stride: int = 1,
    example_input: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    strict: bool = True,
    calibrate: Tensor | Sequence[Tensor] | Plan | None = None,
    crop: int | tuple[int, int] | None = None,
) -> Iterator[Model]:
    """Convert a model for the length of a ``with`` block; afterwards it is as before, converted or not.

    Args:
        model, base_size, stride, example_input, include, exclude, strict, calibrate, crop: as for :func:`convert`.

    Raises:
        TLSCError: as :func:`convert`.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.InstanceNorm2d(8))
        >>> with converted(model, 64):
        ...     type(model[0]).__name__
        'LocalInstanceNorm2d'
        >>> type(model[0]).__name__
        'InstanceNorm2d'
    """
    with reverted(model):
        try:
            convert(
                model,
                base_size,
                stride=stride,
                example_input=example_input,
                include=include,
                exclude=exclude,
                strict=strict,
                calibrate=calibrate,
                crop=crop,
            )
            yield model
        finally:
            revert(model)


# -------------------------------------------------------------------------------------------- planning


class _Planner:
    """One model's plan, and the means to carry it out."""

    def __init__(
        self,
        model: nn.Module,
        base_size: int | tuple[int, int],
        stride: int,
        example_input: Any,
        include: Selection | None,
        exclude: Selection | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            raise ProbeError(
                f"{type(model).__name__} has lazy layers whose shapes are not known yet: run it once on an image "
                "of the kind it is meant for, then convert it"
            )
        self.model = model
        self.base_size = as_pair(base_size, "base_size")
        self.stride = as_positive_int(stride, "stride")
        slots = _probe.slots_of(model)
        self.kinds = _candidates(slots)
        self.excluded = _excluded(slots, include, exclude)
        self.given = example_input is not None
        self.inputs = list(_probe.inputs_of(model, example_input, self.base_size))
        self.slots = slots
        self.sites: list[tuple[Slot, Site]] = []
        self.owners: list[Owner] = []
        if self.kinds or _own_code(slots):
            with _probe.no_fakes_left():
                self._make()
        self.plan = Plan(self.base_size, self.stride, tuple(site for _, site in self.sites))

    def build(self) -> list[tuple[Slot, nn.Module]]:
        """The local modules, not yet in place. One module stays one where its windows agree."""
        made: dict[tuple[int, tuple[int, int]], nn.Module] = {}
        out = []
        for slot, site in self.sites:
            if not site.converted or site.window is None or site.owner is not None:
                continue
            key = id(slot.module), site.window
            if key not in made:
                made[key] = _build(self.kinds[slot], slot, site.window, self.stride)
                if any(made[key] is other for at, other in made.items() if at != key):
                    raise TLSCError(
                        f"{slot.paths[0]}: the factory registered for {self.kinds[slot].operation} returned one "
                        "module for two layers; return a new one each time"
                    )
            out.append((slot, made[key]))
        rewritten: dict[tuple[int, str], nn.Module] = {}
        for owner in self.owners:
            key_ = id(owner.slot.module), str(owner.graph)
            if key_ not in rewritten:
                made_ = _dressed(stand_in(owner.slot.module, owner.graph), owner.slot.module)
                made_.__dict__[OWN_SITES] = tuple(own.child for own in owner.sites)
                rewritten[key_] = made_
            out.append((owner.slot, rewritten[key_]))
        return out

    def _make(self) -> None:
        run, inputs = self._probe()
        ready = [slot for slot in run.calls if self.kinds[slot].pools and self._why_left(slot, run) is None]
        hard = [slot for slot in run.calls if self._is_hard(slot, run)]
        hooked = {slot for slot in run.calls if _probe.is_hooked(slot.module)}
        skip = {*self.excluded, *hooked, *_inside(self.slots, self._known())}
        pools = [slot for slot in (*ready, *hard) if slot not in skip]
        found = find_owners(self.model, self.slots, run, pools, skip, self.stride)
        self.owners = found.owners
        # Pools that no owner takes over are replaced alone, where the layers behind them can take a map.
        served = {place for owner in self.owners for place in _served(owner)}
        tried = [slot for slot in ready if slot.parent is not None and (id(slot.parent), slot.name) not in served]
        refused = _refused_pools(self.model, inputs, self.base_size, tried) if tried else {}
        hard += refused
        covered: dict[tuple[int, str], list[tuple[Owner, OwnedSite]]] = {}
        for owner in self.owners:
            for owned in owner.sites:
                if owned.child is not None:
                    parent, name = _place(owner.slot.module, owned.child)
                    covered.setdefault((id(parent), name), []).append((owner, owned))
        places = [s for s in self.slots if (id(s.parent), s.name) in covered]
        traced = {*found.refused, *(owner.slot for owner in self.owners), *(self.excluded.keys() & run.reducing)}
        for slot in dict.fromkeys([*run.order, *self.kinds, *places]):
            self.sites += [
                (slot, self._owned(o, s)) for o in self.owners if o.slot is slot for s in o.sites if not s.child
            ]
            if slot in found.refused:
                self.sites.append((slot, self._left(slot, run.reducing[slot], found.refused[slot])))
            elif slot in run.reducing and slot in self.excluded:
                self.sites.append((slot, self._left(slot, run.reducing[slot], self.excluded[slot])))
            if (id(slot.parent), slot.name) in covered:
                self.sites += [(slot, self._owned(o, s, slot)) for o, s in covered[id(slot.parent), slot.name]]
                continue
            if slot not in self.kinds or (self.kinds[slot].own_forward and slot in traced):
                continue
            kind = self.kinds[slot]
            left = self._why_left(slot, run)
            if left is None and slot in refused:
                left = "left global", refused[slot]
            if left is not None and slot.parent is not None and slot in hard:
                around = next((why for other, why in found.why.items() if other.module is slot.parent), "")
                left = left[0], left[1] + (f"; {around}" if around else "")
            size = _feature_size(run, slot)
            action: Action = "strided" if kind.strided and self.stride > 1 else "exact"
            if left is not None:
                action = left[0]
            site = Site(
                path=slot.paths[0],
                operation=kind.operation,
                feature_size=size,
                window=None if left else size,
                action=action,
                reason=left[1] if left else "",
                aliases=tuple(slot.paths[1:]),
            )
            self.sites.append((slot, site))

    def _known(self) -> dict[Slot, Kind]:
        """The slots of known types, whose forward is not to be traced."""
        return {slot: kind for slot, kind in self.kinds.items() if not kind.own_forward}

    def _is_hard(self, slot: Slot, run: Run) -> bool:
        """Whether a known module is global here, but not in a way that replacing it alone could mend."""
        kind = self.kinds[slot]
        if self._why_left(slot, run) is None or slot in self.excluded:
            return False
        if kind.operation == "AdaptiveMaxPool2d":
            return slot.module.output_size in (1, (1, 1), [1, 1])
        return kind.why_left(slot.module) is None and kind.build is not None

    def _owned(self, owner: Owner, site: OwnedSite, slot: Slot | None = None) -> Site:
        slot = slot or owner.slot
        return Site(
            path=slot.paths[0],
            operation=site.operation,
            feature_size=site.size,
            window=site.size,
            action="strided" if self.stride > 1 and not site.normalises else "exact",
            aliases=tuple(slot.paths[1:]),
            owner=owner.slot.paths[0],
        )

    def _left(self, slot: Slot, operation: str, reason: str) -> Site:
        return Site(slot.paths[0], operation, None, None, "left global", reason, tuple(slot.paths[1:]))

    def _probe(self) -> tuple[Run, Inputs]:
        """Run the model at ``base_size``, the first way that works."""
        first: Exception | None = None
        for inputs in self.inputs:
            try:
                watched = dict.fromkeys(self._known(), False)
                observed = _own_code(self.slots)
                return _probe.run(self.model, inputs, self.base_size, watched, observed=observed), inputs
            except Exception as error:
                first = first or error
        assert first is not None
        if isinstance(first, TLSCError):
            raise first
        raise _probe.failure(first, self.base_size, self.given) from first

    def _why_left(self, slot: Slot, run: Run) -> tuple[Action, str] | None:
        left = self.kinds[slot].why_left(slot.module)
        if left is not None:
            return left
        if slot in self.excluded:
            return "left global", self.excluded[slot]
        shapes = run.calls.get(slot, [])
        if not shapes:
            return "left global", "not called on an input of base_size"
        for shape in shapes:
            if len(shape) not in (3, 4) or (len(shape) == 3 and self.kinds[slot].operation == "GroupNorm"):
                return "left global", f"called on a tensor of shape {shape}, not on a map (N, C, H, W)"
        sizes = dict.fromkeys(shape[-2:] for shape in shapes)
        if len(sizes) > 1:
            listed = ", ".join(f"{height}×{width}" for height, width in sizes)
            return "left global", f"called on maps of several sizes ({listed}): one window cannot serve them"
        return None


def _candidates(slots: list[Slot]) -> dict[Slot, Kind]:
    """The slots that hold a known module, less those inside another one."""
    kinds: dict[Slot, Kind] = {}
    owned: set[int] = set()
    for slot in slots:
        kind = _scripted(slot.module) or kind_of(slot.module)
        if kind is None or id(slot.parent) in owned:
            if id(slot.parent) in owned:
                owned.add(id(slot.module))
            continue
        kinds[slot] = kind
        owned.add(id(slot.module))
    return kinds


def _own_code(slots: list[Slot]) -> list[Slot]:
    """The slots whose module has a forward of its own or calls other modules: not a single PyTorch layer."""
    return [
        slot
        for slot in slots
        if not isinstance(slot.module, torch.jit.ScriptModule)
        and "_orig_mod" not in slot.module._modules  # compiled
        and (slot.module._modules or not type(slot.module).__module__.startswith("torch.nn.modules"))
    ]


def _inside(slots: list[Slot], kinds: dict[Slot, Kind]) -> list[Slot]:
    """The slots below a module that is treated as a whole, and that module."""
    wholes = {id(slot.module) for slot in kinds if slot.module._modules}
    out = []
    for slot in slots:
        if id(slot.module) in wholes or id(slot.parent) in wholes:
            wholes.add(id(slot.module))
            out.append(slot)
    return out


def _served(owner: Owner) -> list[tuple[int, str]]:
    """The places of the children whose statistics an owner takes over."""
    places = [_place(owner.slot.module, site.child) for site in owner.sites if site.child is not None]
    return [(id(parent), name) for parent, name in places]


def _place(owner: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The parent and the name of the module at ``path``."""
    head, _, name = path.rpartition(".")
    return owner.get_submodule(head), name


def _scripted(module: nn.Module) -> Kind | None:
    """A scripted or traced module some of whose operations may be global; what is in it cannot be changed."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    try:
        graph = module.inlined_graph
    except Exception:  # one without a forward, such as a list of modules
        return None
    if not any(graph.findAllNodes(f"aten::{name}", recurse=True) for name in _SCRIPTED):  # type: ignore[attr-defined]
        return None
    return Kind("ScriptModule", None, lambda module: ("left global", "scripted: convert it before scripting it"))


_SCRIPTED = (
    *("mean", "sum", "amax", "max", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "softmax"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "instance_norm", "group_norm", "bmm", "matmul"),
)


def _feature_size(run: Run, slot: Slot) -> tuple[int, int] | None:
    shapes = run.calls.get(slot)
    if not shapes or len(shapes[0]) < 3:
        return None
    return shapes[0][-2], shapes[0][-1]


def _refused_pools(
    model: nn.Module, inputs: Inputs, base_size: tuple[int, int], pools: list[Slot]
) -> dict[Slot, str]:
    """Pools whose result the layers behind cannot take as a map, with the reason.

    The model runs on an input larger than the window, each pool returning one value per position. Where that
    fails, the pool reached last is taken out and the rest is tried again; in the end each one taken out gets a
    second chance.
    """
    for rows, columns in ((2, 3), (2, 2), (4, 4), (1, 2), (2, 1)):
        size = rows * base_size[0], columns * base_size[1]
        try:
            whole = _probe.run(model, inputs, size, {})
            break
        except Exception:
            continue
    else:
        return {}  # it takes one size only: its pools never see a map larger than their window

    def attempt(local: list[Slot]) -> tuple[str | None, list[Slot]]:
        reached: dict[Slot, list[tuple[int, ...]]] = {}
        try:
            run = _probe.run(model, inputs, size, dict.fromkeys(local, True), reached, whole.fake)
        except Exception as error:
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else 'no message'}", list(reached)
        if run.outputs != whole.outputs:
            return "the model's output would change its shape", list(reached)
        return None, list(reached)

    local = list(pools)
    refused: dict[Slot, str] = {}
    while local:
        why, reached = attempt(local)
        if why is None:
            break
        last = next((slot for slot in reversed(reached) if slot in local), local[-1])
        local.remove(last)
        refused[last] = f"the layers behind it need one value per image, not a map ({why})"
    for slot in list(refused):
        if len(refused) > 1 and attempt([*local, slot])[0] is None:
            local.append(slot)
            del refused[slot]
    return refused


# ------------------------------------------------------------------------------------------- selection


def _excluded(slots: list[Slot], include: Selection | None, exclude: Selection | None) -> dict[Slot, str]:
    """The slots that the caller does not want treated, with the reason."""
    out: dict[Slot, str] = {}
    if include is not None:
        chosen = _selected(slots, include, "include")
        out.update((slot, "not in include") for slot in slots if slot not in chosen)
    if exclude is not None:
        out.update((slot, "in exclude") for slot in _selected(slots, exclude, "exclude"))
    return out


def _selected(slots: list[Slot], selection: Selection, name: str) -> set[Slot]:
    if callable(selection):
        return {slot for slot in slots if any(selection(slot.module, path) for path in slot.paths)}
    patterns = [selection] if isinstance(selection, str) else selection
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentTypeError(
            f"{name} must be a predicate (module, path) -> bool or glob patterns over paths, got {selection!r}"
        )
    chosen: set[Slot] = set()
    for pattern in patterns:
        matching = {slot for slot in slots if any(fnmatch.fnmatchcase(path, pattern) for path in slot.paths)}
        if not matching:
            raise ArgumentValueError(f"{name}: the pattern {pattern!r} matches no path of the model")
        chosen |= matching
    return chosen


# -------------------------------------------------------------------------------------------- swapping


def _build(kind: Kind, slot: Slot, window: tuple[int, int], stride: int) -> nn.Module:
    original, path = slot.module, slot.paths[0] or "(the model)"
    assert kind.build is not None
    try:
        local = kind.build(original, window, stride)
    except TLSCError:
        raise
    except Exception as error:
        raise TLSCError(
            f"{path}: the factory registered for {kind.operation} failed on window {window}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(local, nn.Module):
        raise TLSCError(f"{path}: the factory registered for {kind.operation} returned {local!r}, not a module")
    if local is original:
        raise TLSCError(f"{path}: the factory registered for {kind.operation} returned the module it was given")
    before, after = original.state_dict(keep_vars=True), local.state_dict(keep_vars=True)
    if list(before) != list(after) or not all(_same(before[key], after[key]) for key in before):
        raise TLSCError(
            f"{path}: the factory registered for {kind.operation} changed the state_dict, "
            f"from {_described(before)} to {_described(after)}; pass the parameters on under their names"
        )
    return _dressed(local, original)


def _dressed(local: nn.Module, original: nn.Module) -> nn.Module:
    """``local`` with the hooks and the flag of ``original``, which it remembers."""
    for name in (*_probe.HOOKS, "_is_full_backward_hook"):
        if name in original.__dict__:
            local.__dict__[name] = original.__dict__[name]
    local.__dict__[_ORIGINAL] = original
    return local


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before is after or (
            before.shape == after.shape and before.dtype == after.dtype and torch.equal(before, after)
        )
    return bool(before is after or before == after)


def _described(state: dict[str, Any]) -> str:
    return str({key: tuple(value.shape) if isinstance(value, Tensor) else value for key, value in state.items()})


def _swap(slot: Slot, local: nn.Module) -> None:
    if slot.parent is not None and _EXCHANGED not in local.__dict__:
        local.training = local.__dict__[_ORIGINAL].training
        slot.put(local)
    else:
        # The caller holds this very object: it becomes local, and the other one keeps the original.
        local.training = slot.module.training
        _exchange(slot.module, local)
        slot.module.__dict__.update({_ORIGINAL: local, _EXCHANGED: True})


def _exchange(one: nn.Module, other: nn.Module) -> None:
    """Make each of two modules what the other is."""
    one_class, other_class = one.__class__, other.__class__
    one_dict, other_dict = one.__dict__, other.__dict__
    try:
        object.__setattr__(one, "__class__", other_class)
    except TypeError as error:
        raise TLSCError(
            f"{one_class.__name__} cannot become {other_class.__name__} in place ({error}); "
            "put it into a Sequential and convert that"
        ) from error
    object.__setattr__(other, "__class__", one_class)
    object.__setattr__(one, "__dict__", other_dict)
    object.__setattr__(other, "__dict__", one_dict)


def _take_out(model: nn.Module) -> list[tuple[Slot, nn.Module]]:
    """Put the originals back; return what was in their place."""
    out = []
    for slot in _probe.slots_of(model):
        original = slot.module.__dict__.get(_ORIGINAL)
        if original is None:
            continue
        original.training = slot.module.training
        for ours, theirs in (
            (original._parameters, slot.module._parameters),
            (original._buffers, slot.module._buffers),
        ):
            if ours is not theirs:  # made by a factory: it may have been given other tensors since
                ours.update((name, theirs[name]) for name in ours if name in theirs)
        if slot.parent is not None and _EXCHANGED not in slot.module.__dict__:
            out.append((slot, slot.module))
            slot.put(original)
        else:
            _exchange(slot.module, original)
            out.append((slot, original))
    return out


@contextmanager
def reverted(model: nn.Module) -> Iterator[list[tuple[Slot, nn.Module]]]:
    """The model as it was before any conversion; afterwards what was taken out, and is still listed, is back."""
    noted = model.__dict__.pop(_PLAN, None) if isinstance(model, nn.Module) else None
    out = _take_out(model) if isinstance(model, nn.Module) else []
    try:
        yield out
    finally:
        for slot, local in out:
            _swap(slot, local)
        if out and noted is not None:
            note_plan(model, noted)

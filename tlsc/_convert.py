"""Convert a trained model in place, and back: probe, plan, apply."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from ._arguments import as_pair
from ._calibration.calibrate import calibrated
from ._influence.check import is_cheap, warn_of_far
from ._models.contents import outside_kept
from ._models.described import Described, module_in, size_taken
from ._models.undisturbed import in_turn, interruptible
from ._plan import Plan
from ._sources.named import as_source
from ._sources.passes import Passes
from ._sources.source import Source
from ._sources.window import Window
from ._surgery.planned import ByPlan, decided_by
from ._surgery.planner import Decided, plan_for
from ._surgery.selection import Selection
from ._surgery.sourcing import local_modules, planned
from ._surgery.swapping import plan_of, replace, reverted
from .errors import ArgumentTypeError, ArgumentValueError, NoSiteError, TLSCWarning

__all__ = ["Selection", "convert", "converted", "plan", "revert"]

Model = TypeVar("Model", bound=nn.Module | Described)


def plan(
    model: nn.Module | Described,
    base_size: int | tuple[int, int] | None = None,
    *,
    stride: int = 1,
    example_input: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    source: str | Source = "window",
    crop: int | tuple[int, int] | None = None,
) -> Plan:
    """What :func:`convert` would do with the same arguments, without doing it.

    A model that is already converted is planned as if it were the original.

    Args:
        model, base_size, stride, example_input, include, exclude, source, crop: as for :func:`convert`. Without
            ``base_size``: what was done to a converted model, its corrections included.

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
        return plan_of(module_in(model))
    module, taken = module_in(model), size_taken(model, base_size)
    chosen = _checked(source, taken, stride, crop)
    with in_turn(), interruptible(), outside_kept(module):
        decided = plan_for(module, taken, stride, example_input, include, exclude)
        return decided.plan if chosen is None else planned(decided, chosen.source)


def convert(
    model: Model,
    base_size: int | tuple[int, int] | None = None,
    *,
    plan: Plan | None = None,
    stride: int = 1,
    example_input: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    strict: bool = True,
    calibrate: Tensor | Sequence[Tensor] | Plan | None = None,
    crop: int | tuple[int, int] | None = None,
    check: bool | None = None,
    source: str | Source = "window",
) -> Model:
    """Replace each global aggregation of a trained model by a local one, in place.

    At each position, a converted layer returns what the original would return on a crop around that position.
    This crop, its *window*, has the size of the layer's feature map when the model's input is ``base_size``.
    Inputs no larger than ``base_size`` give the same result as before.

    Converted are ``AdaptiveAvgPool2d`` of output size 1, ``InstanceNorm2d`` without running statistics,
    ``GroupNorm``, statistics that a ``forward`` computes itself, and types given to :func:`register`.
    Parameters, buffers, hooks, flags and the keys of ``state_dict`` are kept. :func:`plan` shows what happens
    to each layer, and why some stay global.

    Args:
        model: any module, in evaluation or training mode, on any device. It may be a single such layer. It may
            also be a descriptor of spandrel: then its network is converted, and ``base_size`` is rounded up to
            a size that the network accepts.
        base_size: window at the model's input, in pixels: an int or (height, width). A good first choice is
            1.5 times the training crop.
        plan: instead of ``base_size``. The sites that the plan converts become local, each with its window and
            its correction, and no others (:meth:`Plan.load`; ``tlsc tune`` writes a plan).
        stride: 1 for exact local statistics. With ``r > 1``, pools evaluate their means on a grid of this
            stride, in pixels of their own map, and interpolate between its points.
        example_input: the call arguments, for models that do not take exactly one image: a tensor, a tuple, a
            dictionary of keywords (images in it are resized to ``base_size``), or a function (height, width) ->
            one of them. A dictionary whose keys are not keywords of the forward is passed as its argument.
        include, exclude: which layers to treat: a predicate (module, path) -> bool, or glob patterns over paths
            (``"encoder.*"``), one or several.
        strict: raise :class:`NoSiteError` for a model without any known layer; False returns the model
            unchanged.
        calibrate: unlabelled images, or a saved plan, with which :func:`calibrate` corrects the model.
        crop: side of the training crops, for ``calibrate`` and for the tiles of a ``source``; by default
            ``base_size``.
        check: after converting, test whether distant pixels still reach the output, and warn with the deepest
            module through which they do. The test also finds what no plan can know. It takes four forward
            passes at three times ``base_size`` on one axis (more, if the result is unclear), on a copy that
            shares the parameters. It warns only if it is certain; of a network that cuts its image into parts,
            for instance, it says little. None: test if a forward pass at ``base_size``, of at most 2048 × 2048
            pixels, takes at most 500 million multiplications, but not in half precision on a CPU, and not with a
            plan. True: always test, and also warn if the test is impossible or the plan already says so. False:
            never. Only for windows.
        source: where each site takes its statistics from. ``"window"`` is this package's method. Other
            published methods, for comparison: ``"map"``, ``"tile"``, ``"table"`` (KIN), ``"centres"`` (DN),
            ``"thumbnail"`` (TIN), ``"crops"``, or one of ``tlsc.sources`` with its options. Some make a first
            pass over parts of the image, by hooks of the model. They work in PyTorch only, not in exported
            files.

    Returns:
        ``model`` itself. Converting again replaces the earlier conversion.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used; a pattern matches no path; the plan is
            of another model.
        ProbeError: the model cannot be run at ``base_size``.
        NoSiteError: the model has no global layer that is known.
            With a source, ArgumentValueError: a site takes a statistic that this source does not have.
        TLSCError: a registered factory failed or changed the ``state_dict``. In each case the model is as before.
            :func:`calibrate` failed: the model is converted, and not corrected.

    Warns:
        TLSCWarning: all known layers stay as they are; distant pixels still reach the output (``check``); as
            :func:`calibrate`.

    Source: Chu, Chen, Chen, Lu, "Improving Image Restoration by Revisiting Global Information Aggregation",
    ECCV 2022, arXiv 2112.04491.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True))
        >>> convert(model, base_size=384)[1]
        LocalInstanceNorm2d(8, window=(384, 384), eps=1e-05, affine=True)
    """
    module: nn.Module = module_in(model)
    passes = None
    if plan is not None:
        _check_alone(base_size, stride, include, exclude, calibrate, source)
    else:
        base_size = size_taken(model, _given(base_size))
        passes = _checked(source, base_size, stride, crop)
    _check_for_windows(passes, calibrate, check)
    with in_turn(), interruptible():
        with outside_kept(module):
            decided = _decided(module, plan, base_size, stride, example_input, include, exclude)
        made = _made(decided, passes)
        if not made.sites and strict:
            raise NoSiteError(
                f"{type(module).__name__} has no layer that aggregates globally and that is known here "
                "(AdaptiveAvgPool2d(1), InstanceNorm2d, GroupNorm, registered types): there is nothing to convert. "
                "Teach a layer of your own with tlsc.register, or pass strict=False"
            )
        local = replace(module, made, *_means(decided, passes))
        if made.sites and not local and plan is None:
            reasons = "; ".join(f"{site.path or '(the model)'}: {site.reason}" for site in made.sites)
            warnings.warn(f"nothing was converted. {reasons}", TLSCWarning, stacklevel=2)
        if calibrate is not None and local:
            calibrated(module, calibrate, crop)
        if made.calibration is not None and local:
            calibrated(module, made, None)
        windows = passes is None and plan is None
        if check or (check is None and windows and is_cheap(module, decided.work, decided.plan.base_size)):
            with outside_kept(module):
                warn_of_far(module, made, decided.inputs, bool(check), 2)
    return model


def _checked(source: str | Source, base_size: Any, stride: int, crop: Any) -> Passes | None:
    """What the sites of a conversion share where their statistics come from a source other than the window."""
    chosen = as_source(source)
    if isinstance(chosen, Window):
        return None
    size = as_pair(base_size, "base_size")
    tile = size if crop is None else as_pair(crop, "crop")
    if any(n > k for n, k in zip(tile, size, strict=True)):
        raise ArgumentValueError(
            f"crop must not be larger than base_size, got {tile[0]}×{tile[1]} and {size[0]}×{size[1]}"
        )
    if stride != 1:
        raise ArgumentValueError(f"stride is for windows: leave it out, or take source='window', got {stride}")
    return Passes(chosen, size, tile)


def _check_for_windows(passes: Passes | None, calibrate: Any, check: bool | None) -> None:
    """What only windows know is refused for other sources."""
    if passes is not None and (calibrate is not None or check):
        what = "check" if calibrate is None else "calibrate"
        raise ArgumentValueError(
            f"{what} is for windows: leave it out, or take source='window', got {passes.source}"
        )


def _decided(
    module: nn.Module,
    plan: Plan | None,
    base_size: int | tuple[int, int] | None,
    stride: int,
    example_input: Any,
    include: Selection | None,
    exclude: Selection | None,
) -> Decided | ByPlan:
    """What is to become of each site: as a plan says, or as it is planned now."""
    if plan is not None:
        return decided_by(module, plan, example_input)
    return plan_for(module, _given(base_size), stride, example_input, include, exclude)


def _made(decided: Decided | ByPlan, passes: Passes | None) -> Plan:
    """The plan that is noted."""
    if passes is None:
        return decided.plan
    assert isinstance(decided, Decided)
    return planned(decided, passes.source)


def _means(decided: Decided | ByPlan, passes: Passes | None) -> tuple[Any, ...]:
    """What makes the local modules, and what they share."""
    if passes is None:
        return (decided.local,)
    assert isinstance(decided, Decided)
    return (lambda slots: local_modules(decided, slots, passes), passes)


def _given(base_size: int | tuple[int, int] | None) -> int | tuple[int, int]:
    if base_size is None:
        raise ArgumentTypeError("give base_size, the window at the model's input in pixels, or plan=, a tlsc.Plan")
    return base_size


def _check_alone(base_size: Any, stride: Any, include: Any, exclude: Any, calibrate: Any, source: Any) -> None:
    """A plan says all of this."""
    given = {"base_size": base_size, "include": include, "exclude": exclude, "calibrate": calibrate}
    named = [name for name, value in given.items() if value is not None]
    named += [name for name, odd in (("stride", stride != 1), ("source", source != "window")) if odd]
    if named:
        raise ArgumentValueError(f"plan= says what becomes of each site: leave {' and '.join(named)} out")


def revert(model: Model) -> Model:
    """Put the original modules back, the very same objects, with whatever their parameters have become.

    Works on a converted model, on a part or a copy of one, or on a model that contains one. Other models are
    not changed.

    Args:
        model: a module, or a descriptor of spandrel.

    Returns:
        ``model`` itself.

    Raises:
        ArgumentTypeError: ``model`` is neither.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.InstanceNorm2d(8))
        >>> norm = model[0]
        >>> revert(convert(model, 64))[0] is norm
        True
    """
    module = module_in(model)
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    replace(module, None, lambda slots: [])
    return model


@contextmanager
def converted(
    model: Model,
    base_size: int | tuple[int, int] | None = None,
    *,
    plan: Plan | None = None,
    stride: int = 1,
    example_input: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    strict: bool = True,
    calibrate: Tensor | Sequence[Tensor] | Plan | None = None,
    crop: int | tuple[int, int] | None = None,
    check: bool | None = None,
    source: str | Source = "window",
) -> Iterator[Model]:
    """Convert a model for the length of a ``with`` block; afterwards it is as before, converted or not.

    Args:
        model, base_size, plan, stride, example_input, include, exclude, strict, calibrate, crop, check, source:
            as for :func:`convert`.

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
    with reverted(module_in(model)):
        try:
            convert(
                model,
                base_size,
                plan=plan,
                stride=stride,
                example_input=example_input,
                include=include,
                exclude=exclude,
                strict=strict,
                calibrate=calibrate,
                crop=crop,
                check=check,
                source=source,
            )
            yield model
        finally:
            revert(model)

"""Calibrated statistics: what the training crop's own borders did to the numbers, found without labels.

A training crop's statistics contain the ring of features that the padding of convolutions spoils; a window inside
a whole image has none. On random crops of the training size the converted network *is* the original (invariant I1),
so that one run over the crops gives each site's statistics as they were in training, and one run over whole images
those of the same places inside. The second run fits each site's correction when it gets there, and goes on
corrected: each site is fitted with the earlier ones corrected.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._arguments import as_pair, as_positive_int
from .._plan import Calibration, Fit, Plan, smallest_window
from .._surgery import swapping as _surgery
from ..errors import ArgumentValueError, TLSCWarning, in_a_line
from .choice import chosen, without_harm
from .distance import Distance
from .regions import alike, checked_seed, images_of, regions_of, step_of
from .runs import Run, correction_of, evaluating
from .sites import places_of

__all__ = ["apply", "calibrate", "calibrated"]

WORSE = 1.02  # the output may be this much further from crop behaviour before it is said
ROUNDINGS = 8  # of numbers like the input's: by less outputs do not differ


def calibrate(
    model: nn.Module,
    images: Tensor | Sequence[Tensor] | Plan,
    crop: int | tuple[int, int] | None = None,
    *,
    crops_per_image: int = 32,
    seed: int = 0,
    call: Callable[[Tensor], Any] | None = None,
) -> Plan:
    """Correct the statistics of a converted model for what the training crops' own borders did to them. No labels.

    Zero padding changes the features in a ring along each training crop's border, and the statistics that a
    layer saw in training include this ring. A window inside a whole image has no such ring. Calibration
    compares random crops of the images with the same places inside the images, and fits a correction (a
    ``Correction``) per channel, site after site. A correction is kept only if it agrees with crops that took no
    part in the fit. If corrections would move the model's output away from its output on crops, fewer sites are
    corrected, or none. Inputs no larger than ``base_size`` still give the original's result.

    Args:
        model: converted by :func:`tlsc.convert`. An earlier calibration is replaced.
        images: pictures like those that the model restores, unlabelled: tensors (C, H, W) or (N, C, H, W) as
            the model takes them, one or several. The image to be restored is enough. Or a calibrated
            :class:`Plan` (:meth:`Plan.load`), whose corrections are then used.
        crop: side of the training crops in pixels, an int or (height, width), at most ``base_size``; by default
            ``base_size``. Where a plan gave sites windows of their own, that of the smallest.
        crops_per_image: how many random crops of each image.
        seed: of their places; the same seed gives the same corrections.
        call: what is called instead of the model, a function from images (N, C, H, W) to what it returns, for a
            model that takes more than images, or returns more than results.

    Returns:
        The plan of the conversion with a correction for each site or why there is none; ``tlsc.plan(model)`` gives
        it again, :meth:`Plan.save` writes it to a file.

    Raises:
        ArgumentTypeError, ArgumentValueError: the model is not converted; an argument cannot be used; a plan is of
            another conversion.
        TLSCError: the model fails on crops or images. In each case the model is as before.

    Warns:
        TLSCWarning: no image has room for crops inside it, so nothing is corrected; or the converted model's
            output is further from its output on crops than the original's is.

    Example:
        >>> import torch, tlsc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.InstanceNorm2d(8))
        >>> plan = calibrate(tlsc.convert(model, 32), torch.rand(1, 3, 128, 128))
        >>> plan[0].fit.after < plan[0].fit.before
        True
    """
    return calibrated(model, images, crop, crops_per_image, seed, call)


def calibrated(
    model: nn.Module,
    images: Any,
    crop: int | tuple[int, int] | None,
    crops_per_image: int = 32,
    seed: int = 0,
    call: Callable[[Tensor], Any] | None = None,
    multiple: int = 1,
    warn: bool = True,
) -> Plan:
    """:func:`calibrate`, for a caller that is called itself: warnings are the caller's caller's.

    Args:
        model, images, crop, crops_per_image, seed: as for :func:`calibrate`.
        call: what is called instead of the model, a function from images (N, C, H, W) to what it returns.
        multiple: sizes that it takes without padding are multiples of this.
        warn: whether anybody has to hear that nothing is calibrated, or that converting does harm.
    """
    plan = _surgery.plan_of(model)
    if plan.source != "window":
        raise ArgumentValueError(f"calibration is of windows, and this model's statistics are from {plan.source}")
    if isinstance(images, Plan):
        return apply(model, images)
    window = smallest_window(plan)
    size = window if crop is None else as_pair(crop, "crop")
    if any(n > k for n, k in zip(size, window, strict=True)):
        raise ArgumentValueError(
            f"crop must not be larger than the window at the input, got {size[0]}×{size[1]} and base_size "
            f"{window[0]}×{window[1]}: no such window was seen in training"
        )
    count = as_positive_int(crops_per_image, "crops_per_image")
    given = images_of(images, model)
    places, reasons = places_of(model, plan)
    random = np.random.default_rng(checked_seed(seed))
    regions, spots, independent = regions_of(given, size, step_of(plan), count, random, multiple)
    about = Calibration(size, len(given), len(spots), seed)
    if not places or not spots or alike(regions, spots, size):
        why = f"no image is larger than the crop, {size[0]}×{size[1]}, on all sides"
        if spots:
            why = f"its {len(spots)} crops are all alike"
        found = {n: Fit(reason=reasons.get(n, why)) for n in range(len(plan))}
        if places and warn:
            warnings.warn(f"nothing was calibrated: {why}", TLSCWarning, stacklevel=3)
        return _take(model, plan, found, about)
    run = Run(model, places, regions, spots, size, independent, call or model)
    original, found, after = _run(run, reasons)
    made = _take(model, plan, found, replace(about, original=original, local=run.local.rms, calibrated=after))
    if warn and after > WORSE * original + _rounding(regions):
        warnings.warn(
            f"converting moves the output away from what the model does on crops of {size[0]}×{size[1]}: at their "
            f"centres it is {after:.2g} off, the original {original:.2g} (RMS). Restore with the original in "
            "overlapping tiles of that size, or convert with source='crops', and compare with 'tlsc eval'",
            TLSCWarning,
            stacklevel=3,
        )
    return made


def _rounding(regions: Tensor) -> float:
    """By how much outputs may differ for no reason."""
    return ROUNDINGS * torch.finfo(regions.dtype).eps * float(regions.double().square().mean().sqrt())


def _run(run: Run, reasons: dict[int, str]) -> tuple[float, dict[int, Fit], float]:
    """Fit every site. How far the original's output on regions is from its output on crops, what was found, and
    how far the output is with it.
    """
    rows, columns = run.regions.shape[2:]
    what = (
        f"the model cannot be calibrated: it fails on crops of {run.crop[0]}×{run.crop[1]} or images of "
        f"{rows}×{columns} pixels"
    )
    with in_a_line(what), evaluating(run.model):
        run.through()
        found, after = _outcome(run, reasons)
        with _surgery.reverted(run.model):
            return run.distance(run.whole()).rms, found, after


def _outcome(run: Run, reasons: dict[int, str]) -> tuple[dict[int, Fit], float]:
    """What was fitted at each site, and how far the output then is from that on crops."""
    found = {n: Fit(reason=why) for n, why in reasons.items()}
    found.update((place.site, place.outcome()) for place in run.places)
    kept = [n for n in sorted(found) if found[n].kept]

    def measure(some: Sequence[int]) -> Distance:
        return run.with_only({n: found[n] for n in some})

    if run.corrected.clearly_above(run.local):
        best, after = chosen(kept, run.local, measure)
    else:
        best, after = without_harm(sorted(kept, key=lambda n: _gain(found[n])), run.corrected, measure)
    what = "without it" if best else "with all corrections"
    comparison = "closer to" if best else "further from"
    why = f"dropped: {what} the model's output would be {comparison} its output on crops"
    dropped = set(kept) - set(best)
    return {n: replace(fit, kept=False, reason=why) if n in dropped else fit for n, fit in found.items()}, after.rms


def _gain(fit: Fit) -> float:
    """The part of its site's own error that a correction takes away."""
    assert fit.before is not None
    assert fit.after is not None
    return 1 - fit.after / fit.before if fit.before else 0.0


def apply(model: nn.Module, plan: Plan) -> Plan:
    """Give a converted model the corrections of a calibrated plan, and forget others.

    Raises:
        ArgumentValueError: the model is not converted in the way of the plan.
    """
    own = _surgery.plan_of(model)
    if _conversion(own) != _conversion(plan):
        raise ArgumentValueError(
            "the plan is of another conversion: its sites, their windows or its stride differ from the model's. "
            f"The plan: {_head(plan)}; the model: {_head(own)}"
        )
    if plan.calibration is None:
        raise ArgumentValueError("the plan holds no calibration: it was not made by tlsc.calibrate")
    places, _ = places_of(model, own)
    channels = {place.site: place.expected() for place in places}
    for n, site in enumerate(plan):
        if site.fit is None or not site.fit.kept:
            continue
        if n not in channels:
            raise ArgumentValueError(
                f"{site.path or 'the model'}: the plan corrects a site that takes no correction"
            )
        if channels[n] is not None and len(site.fit.coefficients[0]) != channels[n]:
            raise ArgumentValueError(
                f"{site.path or 'the model'}: the plan corrects {len(site.fit.coefficients[0])} channels, "
                f"the model has {channels[n]}"
            )
    found = {n: site.fit for n, site in enumerate(plan) if site.fit is not None}
    return _take(model, own, found, plan.calibration)


def _conversion(plan: Plan) -> Any:
    return [plan.base_size, plan.stride, [replace(site, fit=None) for site in plan]]


def _head(plan: Plan) -> str:
    return str(plan).partition("\n")[0]


def _take(model: nn.Module, plan: Plan, found: dict[int, Fit], about: Calibration) -> Plan:
    """Put the corrections in place, and note them in the model's plan."""
    places, _ = places_of(model, plan)
    for place in places:
        fit = found.get(place.site)
        place.set(correction_of(fit, model) if fit is not None and fit.kept else None)
    sites = tuple(replace(site, fit=found.get(n)) for n, site in enumerate(plan))
    made = replace(plan, sites=sites, calibration=about)
    _surgery.note_plan(model, made)
    return made

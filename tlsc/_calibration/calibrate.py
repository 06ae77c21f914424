"""Calibrated statistics: what the training crop's own borders did to the numbers, found without labels.

A training crop's statistics contain the ring of features that the padding of convolutions spoils; a window inside
a whole image has none. On random crops of the training size the converted network *is* the original (invariant I1),
so that one run over the crops gives each site's statistics as they were in training, and one run over whole images
those of the same places inside. The second run fits each site's correction when it gets there, and goes on
corrected: each site is fitted with the earlier ones corrected.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._arguments import FLOATING, as_pair, as_positive_int
from .._forwards.rewriter import CORRECTIONS
from .._plan import Calibration, Fit, Plan
from .._statistics.correction import Correction
from .._surgery import swapping as _surgery
from ..errors import ArgumentTypeError, ArgumentValueError, TLSCError, TLSCWarning
from ..modules import LocalAvgPool2d, LocalGroupNorm, LocalInstanceNorm2d
from .fit import Fitted, Statistics, fitted

__all__ = ["apply", "calibrate"]

# Pixels of images that are looked at: this many, or this many training crops.
PIXELS, CROPS = 2**21, 64
BATCH = 2**18  # pixels of crops that go through the model at once
UNIT = 32  # images are cut to a multiple of this, where the crop is one, for models that take nothing else
WORSE = 1.02  # the output may be this much further from crop behaviour before it is said


def calibrate(
    model: nn.Module,
    images: Tensor | Sequence[Tensor] | Plan,
    crop: int | tuple[int, int] | None = None,
    *,
    crops_per_image: int = 32,
    seed: int = 0,
) -> Plan:
    """Correct the statistics of a converted model for what the training crops' own borders did to them. No labels.

    Zero padding spoils a ring of features around each training crop, and the statistics that a layer saw in
    training contain it; a window inside a whole image does not. From random crops of the images and the same places
    inside them a map is fitted per channel (a ``Correction``), site after site. It is kept
    where it agrees with crops that took no part in the fit, and dropped altogether where the model's output would
    move away from what it is on crops. Inputs no larger than ``base_size`` still give what the original gave.

    Args:
        model: converted by :func:`tlsc.convert`. An earlier calibration is replaced.
        images: what the model restores, unlabelled: tensors (C, H, W) or (N, C, H, W) as it takes them, one or
            several; the image to be restored will do. Or a calibrated :class:`Plan` (:meth:`Plan.load`), whose
            corrections are then taken.
        crop: side of the training crops in pixels, an int or (height, width), at most ``base_size``; by default
            ``base_size``.
        crops_per_image: how many random crops of each image.
        seed: of their places; the same seed gives the same corrections.

    Returns:
        The plan of the conversion with a correction for each site or why there is none; ``tlsc.plan(model)`` gives
        it again, :meth:`Plan.save` writes it to a file.

    Raises:
        ArgumentTypeError, ArgumentValueError: the model is not converted; an argument cannot be used; a plan is of
            another conversion.
        TLSCError: the model fails on crops or images. In each case the model is as before.

    Warns:
        TLSCWarning: no image has room for crops inside it, so that nothing is corrected; or the converted model's
            output is further from its output on crops than the original's is.

    Example:
        >>> import torch, tlsc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.InstanceNorm2d(8))
        >>> plan = calibrate(tlsc.convert(model, 32), torch.rand(1, 3, 128, 128))
        >>> plan[0].fit.after < plan[0].fit.before
        True
    """
    return calibrated(model, images, crop, crops_per_image, seed)


def calibrated(
    model: nn.Module, images: Any, crop: int | tuple[int, int] | None, crops_per_image: int = 32, seed: int = 0
) -> Plan:
    """:func:`calibrate`, for a caller that is called itself: warnings are the caller's caller's."""
    plan = _surgery.plan_of(model)
    if isinstance(images, Plan):
        return apply(model, images)
    size = plan.base_size if crop is None else as_pair(crop, "crop")
    if any(n > k for n, k in zip(size, plan.base_size, strict=True)):
        raise ArgumentValueError(
            f"crop must not be larger than the window at the input, got {size[0]}×{size[1]} and base_size "
            f"{plan.base_size[0]}×{plan.base_size[1]}: no such window was seen in training"
        )
    count = as_positive_int(crops_per_image, "crops_per_image")
    given = _images(images, model)
    places, reasons = _places(model, plan)
    regions, spots, independent = _regions(given, size, _step(plan), count, np.random.default_rng(_seed(seed)))
    about = Calibration(size, len(given), len(spots), seed)
    if not places or not spots or _alike(regions, spots, size):
        why = f"no image is larger than the crop, {size[0]}×{size[1]}, on all sides"
        if spots:
            why = f"its {len(spots)} crops are all alike"
        found = {n: Fit(reason=reasons.get(n, why)) for n in range(len(plan))}
        if places:
            warnings.warn(f"nothing was calibrated: {why}", TLSCWarning, stacklevel=3)
        return _take(model, plan, found, about)
    run = _Run(model, places, regions, spots, size, independent)
    try:
        with _evaluating(model):
            run.through()
            with _surgery.reverted(model):
                original = run.distance(run.whole())
    except TLSCError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise TLSCError(
            f"the model cannot be calibrated: it fails on crops of {size[0]}×{size[1]} or images of "
            f"{regions.shape[2]}×{regions.shape[3]} pixels ({type(error).__name__}: {lines[0]})"
        ) from error
    found = {n: Fit(reason=why) for n, why in reasons.items()}
    found.update((place.site, place.outcome()) for place in places)
    better = run.corrected <= run.local
    if not better:
        why = "dropped: with all corrections the model's output would be further from its output on crops"
        found = {n: replace(fit, kept=False, reason=why) if fit.kept else fit for n, fit in found.items()}
    after = run.corrected if better else run.local
    about = replace(about, original=original, local=run.local, calibrated=after)
    made = _take(model, plan, found, about)
    if after > WORSE * original:
        warnings.warn(
            f"converting moves the output away from what the model does on crops of {size[0]}×{size[1]}: at their "
            f"centres it is {after:.2g} off, the original {original:.2g} (RMS). Restore with the original in "
            "overlapping tiles of that size, or compare both with 'tlsc eval'",
            TLSCWarning,
            stacklevel=3,
        )
    return made


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
    places, _ = _places(model, own)
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
    found = {n: site.fit or Fit() for n, site in enumerate(plan)}
    return _take(model, own, found, plan.calibration)


def _conversion(plan: Plan) -> Any:
    return [plan.base_size, plan.stride, [replace(site, fit=None) for site in plan]]


def _head(plan: Plan) -> str:
    return str(plan).partition("\n")[0]


def _take(model: nn.Module, plan: Plan, found: dict[int, Fit], about: Calibration) -> Plan:
    """Put the corrections in place, and note them in the model's plan."""
    places, _ = _places(model, plan)
    for place in places:
        fit = found.get(place.site)
        place.set(_correction(fit, model) if fit is not None and fit.kept else None)
    sites = tuple(replace(site, fit=found.get(n)) for n, site in enumerate(plan))
    made = replace(plan, sites=sites, calibration=about)
    _surgery.note_plan(model, made)
    return made


def _correction(fit: Fit, model: nn.Module) -> Correction:
    table = torch.tensor(fit.coefficients, dtype=torch.float64)
    device = _like(model).device
    # Apple's GPUs have no float64: the table goes there in single precision when it is used.
    return Correction(table if device.type == "mps" else table.to(device))


# ------------------------------------------------------------------------------------------------- what is given


def _like(model: nn.Module) -> Tensor:
    """A tensor on the model's device, of its floating point type."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def _images(images: Any, model: nn.Module) -> list[Tensor]:
    """(C, H, W) each, as the model takes them."""
    listed = [images] if isinstance(images, Tensor) else images
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise ArgumentTypeError(
            f"images must be a tensor (C, H, W) or (N, C, H, W), or a list of them, got {type(images).__name__}"
        )
    found: list[Tensor] = []
    for image in listed:
        if not isinstance(image, Tensor) or image.dtype not in FLOATING:
            shown = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ArgumentTypeError(f"images must be floating tensors, as the model takes them, got {shown}")
        if image.dim() not in (3, 4) or 0 in image.shape:
            raise ArgumentValueError(f"images must have shape (C, H, W) or (N, C, H, W), got {tuple(image.shape)}")
        if not bool(torch.isfinite(image).all()):
            raise ArgumentValueError("images must be finite: one holds NaN or Inf")
        found += image.unbind() if image.dim() == 4 else [image]
    if not found:
        raise ArgumentValueError("images is empty: give at least one, the image to be restored will do")
    if len({len(image) for image in found}) > 1:
        raise ArgumentValueError(f"images differ in their channels: {sorted({len(image) for image in found})}")
    like = _like(model)
    return [image.detach().to(like.device, like.dtype) for image in found]


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentValueError(f"seed must be an int ≥ 0, got {seed!r}")
    return seed


def _step(plan: Plan) -> int:
    """In how many pixels of the input a pixel of the coarsest site's map counts."""
    ratios = [
        math.ceil(n / k)
        for site in plan.converted
        if site.feature_size is not None
        for n, k in zip(plan.base_size, site.feature_size, strict=True)
    ]
    return max(ratios, default=1)


Spot = tuple[int, int, int]
"""Which region, top and left of the crop in it."""


def _regions(
    images: list[Tensor], crop: tuple[int, int], step: int, count: int, rng: np.random.Generator
) -> tuple[Tensor, list[Spot], float]:
    """Regions of one size, a batch; crops inside them, off their borders; for how many crops these count."""
    usable = [
        image for image in images if all(n >= k + 2 * step for n, k in zip(image.shape[1:], crop, strict=True))
    ]
    if not usable:
        return torch.empty(0), [], 0.0
    area = max(PIXELS, CROPS * crop[0] * crop[1])
    longest = max(max(crop) + 2 * step, math.isqrt(area // len(usable)))
    sizes = []
    for axis, k in enumerate(crop):
        n = min(min(image.shape[1 + axis] for image in usable), longest)
        unit = math.lcm(step, math.gcd(UNIT, k))
        rounded = n // unit * unit
        sizes.append(rounded if rounded >= k + 2 * step else n)
    regions, spots, independent = [], [], 0.0
    for image in usable:
        top, left = (int(rng.integers(n - size + 1)) for n, size in zip(image.shape[1:], sizes, strict=True))
        regions.append(image[:, top : top + sizes[0], left : left + sizes[1]])
        # A crop's ring must not meet the region's: half a crop in between, where there is room.
        axes = []
        for n, k in zip(sizes, crop, strict=True):
            margin = max(step, min((n - k) // 4, k // 2) // step * step)
            axes.append(range(margin, n - k - margin + 1, step) or range(step, n - k - step + 1, step))
        places = [(i, j) for i in axes[0] for j in axes[1]]
        chosen = sorted(rng.choice(len(places), min(count, len(places)), replace=False).tolist())
        spots += [(len(regions) - 1, *places[i]) for i in chosen]
        room = math.prod((axis[-1] - axis[0]) / k + 1 for axis, k in zip(axes, crop, strict=True))
        independent += min(len(chosen), room)
    return torch.stack(regions), spots, independent


def _alike(regions: Tensor, spots: list[Spot], crop: tuple[int, int]) -> bool:
    """Whether crops do not differ, so that all of them together say no more than one."""
    parts = torch.stack([regions[n, :, i : i + crop[0], j : j + crop[1]].float() for n, i, j in spots])
    moments = torch.stack([parts.mean((2, 3)), parts.std((2, 3))])
    return bool((moments.std(1, correction=0) <= 1e-4 * parts.abs().mean()).all())


# ------------------------------------------------------------------------------------------- where it is measured


@dataclass(eq=False)
class _Place:
    """A site as it is in the converted model: a module, or a statistic of a rewritten one."""

    site: int
    module: nn.Module
    number: int | None
    maps: list[Tensor] = field(default_factory=list)
    operation: str = ""
    crops: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    calls: int = 0
    fitted: Fitted | None = None
    refused: str = ""

    def set(self, correction: Correction | None) -> None:
        if self.number is None:
            self.module.correction = correction  # type: ignore[assignment]
            return
        table = self.module.__dict__[CORRECTIONS]
        if correction is None:
            table.pop(self.number, None)
        else:
            table[self.number] = correction

    @property
    def groups(self) -> int | None:
        module = self.module
        if isinstance(module, LocalGroupNorm) and self.number is None:
            return module.num_groups
        return int(self.operation) if self.operation.isdecimal() else None

    @property
    def eps(self) -> float:
        if self.number is None:
            return float(getattr(self.module, "eps", 0.0))
        return 1e-5 if self.operation == "instance" or self.operation.isdecimal() else 0.0

    @property
    def mean_only(self) -> bool:
        return isinstance(self.module, LocalAvgPool2d) if self.number is None else self.operation in ("mean", "sum")

    def expected(self) -> int | None:
        """How many channels, or groups, its correction has; None if only a run would tell."""
        if isinstance(self.module, LocalInstanceNorm2d) and self.number is None:
            return self.module.num_features
        return self.groups

    def outcome(self) -> Fit:
        if self.fitted is None:
            never = _OTHER if self.number is not None and not self.operation else "not reached"
            return Fit(reason=self.refused or never)
        found = self.fitted
        rows = () if found.coefficients is None else tuple(tuple(row) for row in found.coefficients.tolist())
        return Fit(found.coefficients is not None, found.before, found.after, found.reason, rows)


_OTHER = "takes no mean and no variance: it has no correction"


def _places(model: nn.Module, plan: Plan) -> tuple[list[_Place], dict[int, str]]:
    """The sites that a correction can reach, in call order, and why the others have none."""
    places: list[_Place] = []
    reasons: dict[int, str] = {}
    taken: dict[tuple[str, str | None], int] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for n, site in enumerate(plan):
        if not site.converted:
            reasons[n] = "not converted"
            continue
        module = modules.get(site.path if site.owner is None else site.owner)
        if module is None:
            raise ArgumentValueError(f"{site.path or 'the model'}: it is no longer there; convert the model again")
        if site.owner is None:
            if type(module) in (LocalAvgPool2d, LocalInstanceNorm2d, LocalGroupNorm):
                if any(place.module is module for place in places):
                    reasons[n] = "one module in several places: not calibrated"
                else:
                    places.append(_Place(n, module, None))
            else:
                reasons[n] = _OTHER
            continue
        children = module.__dict__.get(_surgery.OWN_SITES)
        if children is None:
            raise ArgumentValueError(f"{site.owner or 'the model'}: it is no longer converted; convert it again")
        child = None if site.path == site.owner else site.path[len(site.owner) + bool(site.owner) :]
        skip = taken.get((site.owner, child), 0)
        taken[site.owner, child] = skip + 1
        number = [i for i, own in enumerate(children) if own == child][skip]
        if any(place.module is module and place.number == number for place in places):
            reasons[n] = "one module in several places: not calibrated"
        else:
            places.append(_Place(n, module, number))
    return places, reasons


class _Noting(dict[int, Correction]):
    """The corrections of a rewritten module, while it is watched."""

    def __init__(self, see: dict[int, Callable[[Tensor, str], None]]) -> None:
        super().__init__()
        self.see = see

    def note(self, number: int, x: Tensor, operation: str) -> None:
        if number in self.see:
            self.see[number](x, operation)


@contextmanager
def _watching(places: Sequence[_Place], see: Callable[[_Place, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with every map that reaches a site, before the site takes its statistics. No corrections yet."""
    owners: dict[nn.Module, dict[int, Callable[[Tensor, str], None]]] = {}
    with ExitStack() as stack:
        for place in places:
            if place.number is None:

                def hook(module: nn.Module, args: tuple[Any, ...], place: _Place = place) -> None:
                    if args and isinstance(args[0], Tensor):
                        see(place, args[0] if args[0].dim() == 4 else args[0].unsqueeze(0))

                stack.callback(setattr, place.module, "correction", place.module.correction)
                place.module.correction = None  # type: ignore[assignment]
                stack.callback(place.module.register_forward_pre_hook(hook).remove)
            else:

                def noted(x: Tensor, operation: str, place: _Place = place) -> None:
                    place.operation = operation
                    see(place, x)

                owners.setdefault(place.module, {})[place.number] = noted
        for module, own in owners.items():
            stack.callback(module.__dict__.__setitem__, CORRECTIONS, module.__dict__[CORRECTIONS])
            module.__dict__[CORRECTIONS] = _Noting(own)
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; flags and random numbers as they were afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    devices = {tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda}
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, training in flags:
            module.training = training


# ------------------------------------------------------------------------------------------------------- the runs


class _Run:
    """Crops, and regions without and with corrections, through the converted model."""

    def __init__(
        self,
        model: nn.Module,
        places: list[_Place],
        regions: Tensor,
        spots: list[Spot],
        crop: tuple[int, int],
        independent: float,
    ) -> None:
        self.model, self.places, self.regions, self.spots = model, places, regions, spots
        self.crop, self.independent = crop, independent
        self.expected: list[Tensor] = []
        self.local = self.corrected = math.nan

    def through(self) -> None:
        self._crops()
        with _watching(self.places, lambda place, x: None):
            self.local = self.distance(self.whole())
        for place in self.places:
            place.calls = 0
        with _watching(self.places, self._fit):
            self.corrected = self.distance(self.whole())

    def whole(self) -> Any:
        """What the model, as it is, makes of the regions."""
        return self.model(self.regions)

    def distance(self, outputs: Any) -> float:
        """How far outputs on regions are from those on crops, at the crops' centres: RMS."""
        total = 0.0
        numbers = 0
        for expected, whole in zip(self.expected, _maps(outputs), strict=True):
            scale = self._scale(whole)
            for (n, top, left), centre in zip(self.spots, expected, strict=True):
                i, j = (round(at * s) for at, s in zip((top, left), scale, strict=True))
                size = [round(k * s) for k, s in zip(self.crop, scale, strict=True)]
                inside = _centre(whole[n, :, i : i + size[0], j : j + size[1]])
                if inside.shape != centre.shape:
                    break  # not an image of the input's size or a multiple of it
                difference = inside.double() - centre.double()
                total += float(difference.square().sum())
                numbers += difference.numel()
        return math.sqrt(total / numbers) if numbers else 0.0

    def _scale(self, whole: Tensor) -> tuple[float, float]:
        rows, columns = (n / k for n, k in zip(whole.shape[2:], self.regions.shape[2:], strict=True))
        return rows, columns

    def _crops(self) -> None:
        """Each site's statistics on crops, and the outputs at their centres."""
        number = max(1, BATCH // (self.crop[0] * self.crop[1]))
        outputs: list[list[Tensor]] = []
        with _watching(self.places, self._on_crops):
            for first in range(0, len(self.spots), number):
                for place in self.places:
                    place.calls = 0
                part = self.spots[first : first + number]
                height, width = self.crop
                batch = torch.stack([self.regions[n, :, i : i + height, j : j + width] for n, i, j in part])
                outputs.append([_centre(x).clone() for x in _maps(self.model(batch))])
        self.expected = [torch.cat(list(parts)) for parts in zip(*outputs, strict=True)]

    def _on_crops(self, place: _Place, x: Tensor) -> None:
        place.calls += 1
        if place.calls > 1:
            place.refused = "called several times in one run: not calibrated"
        if place.refused or not _statistic(place):
            place.refused = place.refused or _OTHER
            return
        place.size = x.shape[-2], x.shape[-1]
        place.crops.append(_moments(x, place.groups))

    def _fit(self, place: _Place, x: Tensor) -> None:
        """The map of whole regions: fit the site, and correct what it does next."""
        if place.refused or not place.crops or place.fitted is not None:
            return
        grown = (
            n * c / (k * m)
            for n, k, m, c in zip(x.shape[-2:], self.regions.shape[2:], place.size, self.crop, strict=True)
        )
        if any(abs(ratio - 1) > 0.05 for ratio in grown):
            place.refused = "its map does not grow with the image: not calibrated"
            return
        found = []
        for n, top, left in self.spots:
            i, j = (round(at * k / c) for at, k, c in zip((top, left), place.size, self.crop, strict=True))
            part = x[n : n + 1, ..., i : i + place.size[0], j : j + place.size[1]]
            found.append(_moments(part, place.groups))
        inside = _arrays(found, place.mean_only)
        crops = _arrays(place.crops, place.mean_only)
        place.fitted = fitted(inside, crops, place.eps, self.independent)
        if place.fitted.coefficients is not None:
            place.set(_correction(place.outcome(), self.model))


def _statistic(place: _Place) -> bool:
    """Whether the site takes a mean or a variance."""
    if place.number is None:
        return True
    operation = place.operation
    return operation in ("mean", "sum", "instance") or operation.isdecimal() or operation.startswith(("var", "std"))


def _moments(x: Tensor, groups: int | None) -> tuple[Tensor, Tensor]:
    """Variance and mean of maps, (N, channels or groups) each."""
    wide = x.double() if x.device.type != "mps" else x.float()
    if groups is not None:
        wide = torch.unflatten(wide, 1, (groups, -1))
    var, mean = torch.var_mean(wide.flatten(2), dim=2, correction=0)
    return var, mean


def _arrays(parts: Sequence[tuple[Tensor, Tensor]], mean_only: bool) -> Statistics:
    var, mean = (torch.cat([part[i] for part in parts]).cpu().double().numpy() for i in (0, 1))
    return Statistics(None if mean_only else var, mean, var)


def _maps(outputs: Any) -> list[Tensor]:
    """The images among a model's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.dim() == 4 and outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [x for part in outputs for x in _maps(part)] if isinstance(outputs, (list, tuple)) else []


def _centre(x: Tensor) -> Tensor:
    """The middle half of an image on both axes."""
    height, width = x.shape[-2:]
    return x[..., height // 4 : height - height // 4, width // 4 : width - width // 4]

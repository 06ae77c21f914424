"""Whether converting would help, from unlabelled images: on crops a model does what it was trained for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .._arguments import as_pair, as_positive_int
from .._calibration.calibrate import calibrated
from .._calibration.regions import checked_seed, images_of, step_of
from .._calibration.runs import evaluating
from .._convert import converted
from .._convert import plan as plan_of
from .._surgery.swapping import reverted
from ..errors import ArgumentValueError, in_a_line
from .energies import crops_of, image_of
from .result import NEGLIGIBLE, Change, Prediction

__all__ = ["DOUBT", "doubt", "floor", "predict"]

DOUBT = 1.25
"""Of what the crops' own errors may take or add, in units of √(disagreement · mean square change): measured."""
ROUNDING = 1 / 255**2 / 12
"""Mean square error of rounding to eight bits: where no PSNR is known, less is not told apart from zero."""
_RESAMPLES = 1000

Values = NDArray[np.float64]
Window = int | tuple[int, int]


def predict(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    base_size: Window | Iterable[Window] | None = None,
    *,
    crop: Window,
    psnr: float | None = None,
    calibrate: bool = False,
    crops_per_image: int = 16,
    seed: int = 0,
    call: Callable[[Tensor], Any] | None = None,
) -> Prediction:
    """What converting would change, predicted from unlabelled images.

    On crops of the training size the model does what it was trained for. Its *mismatch energy*, E(whole), is
    the mean square difference between its output on whole images and on crops. E(local) is the same for the
    converted model. Converting is predicted to change the mean square error by E(local) − E(whole). The interval
    is that of the crops and images that were drawn, wider by what the error on crops may have to do with the
    change: in proportion to what overlapping crops disagree by.

    Args:
        model: any module. It is not changed; a converted one is examined as the original.
        images: pictures like those that the model restores, unlabelled: tensors (C, H, W) or (N, C, H, W) as
            the model takes them, values in [0, 1], larger than the crop.
        base_size: windows to try, in pixels of the input; by default 1, 1.5 and 2 times the crop.
        crop: side of the training crops in pixels, an int or (height, width).
        psnr: of the restored images in dB, if known; changes are then also given in dB.
        calibrate: also try each window with calibrated statistics.
        crops_per_image: how many random crops of each image.
        seed: of their places and of the bootstrap.
        call: what is called instead of the model, a function from images (N, C, H, W) to what it returns.

    Returns:
        A :class:`Prediction`: data, and a table with a sentence when printed.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used; no image is larger than the crop; no site
            becomes local.
        ProbeError: the model cannot be run at the size of the crop.
        TLSCError: it fails on crops or images.

    Example:
        >>> import torch, tlsc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.InstanceNorm2d(3))
        >>> found = tlsc.predict(model, torch.rand(2, 3, 48, 64), 24, crop=16)
        >>> found.changes[0].base_size, found.images
        ((24, 24), 2)
    """
    size = as_pair(crop, "crop")
    windows = _windows(base_size, size)
    count = as_positive_int(crops_per_image, "crops_per_image")
    rng = np.random.default_rng(checked_seed(seed))
    given = [x for x in images_of(images, model) if _larger(x, size)]
    if not given:
        raise ArgumentValueError(
            f"no image is larger than the crop, {size[0]}×{size[1]}: there is nothing to compare"
        )
    ask = model if call is None else call
    planned = plan_of(model, size)
    if not planned.converted:
        raise ArgumentValueError("no site becomes local, so there is nothing to predict")
    step = step_of(planned)
    with reverted(model), evaluating(model):
        with _running(f"crops of {size[0]}×{size[1]}"):
            crops = [crops_of(ask, image, size, count, step, rng) for image in given]
        outputs = [_output(ask, image) for image in given]
        whole = [own.energies(output) for own, output in zip(crops, outputs, strict=True)]
        known = [own.disagreement for own in crops if not np.isnan(own.disagreement)]
        disagreement = float(np.mean(known)) if known else math.nan

        areas = [own.areas for own in crops]

        def changed(window: tuple[int, int], corrected: bool) -> Change:
            with converted(model, window, check=False):
                if corrected:
                    calibrated(model, given, size, call=call, warn=False)  # what does harm is in the table
                now = [_output(ask, image) for image in given]
            local = [own.energies(output) for own, output in zip(crops, now, strict=True)]
            moved = _moved(now, outputs)
            slack = doubt(moved, disagreement) + floor(psnr)
            return _change(window, corrected, local, whole, areas, moved, slack, seed)

        changes = tuple(changed(*asked) for asked in product(windows, (False, True) if calibrate else (False,)))
    energy = _mean_of(whole, areas)
    number = sum(len(own.places) for own in crops)
    why = _unreliable(disagreement, energy)
    return Prediction(size, len(given), number, psnr, energy, disagreement, changes, why)


def doubt(moved: float, disagreement: float) -> float:
    """By how much the change of the mean square error may differ from that of mismatch energies.

    Args:
        moved: mean square change of the output.
        disagreement: of overlapping crops at common pixels, mean square.

    Example:
        >>> doubt(0.0, 1e-4)
        0.0
    """
    return DOUBT * math.sqrt(moved * float(np.nan_to_num(disagreement)))


def _larger(image: Tensor, crop: tuple[int, int]) -> bool:
    down, across = (n - k for n, k in zip(image.shape[1:], crop, strict=True))
    return min(down, across) >= 0 and max(down, across) > 0


def _mean_of(energies: list[Values], areas: list[Values]) -> float:
    """Over images of means over the pixels of crops."""
    means = [np.average(own, weights=area) for own, area in zip(energies, areas, strict=True)]
    return float(np.mean(means))


def _moved(now: list[Tensor], before: list[Tensor]) -> float:
    """Mean square difference over whole images."""
    moved = [float((a.double() - b.double()).square().mean()) for a, b in zip(now, before, strict=True)]
    return float(np.mean(moved))


def floor(psnr: float | None) -> float:
    """What change of the mean square error is not told apart from zero, at a PSNR."""
    return ROUNDING if psnr is None else 10 ** (-psnr / 10) * (1 - 10 ** (-NEGLIGIBLE / 10))


def _windows(base_size: Any, crop: tuple[int, int]) -> list[tuple[int, int]]:
    if base_size is None:
        return [(crop[0] * k // 2, crop[1] * k // 2) for k in (2, 3, 4)]
    if isinstance(base_size, int):
        return [as_pair(base_size, "base_size")]
    found = [as_pair(one, "base_size") for one in base_size]
    if not found:
        raise ArgumentValueError("base_size is empty: give at least one window, or leave it out")
    return list(dict.fromkeys(found))


def _output(call: Any, image: Tensor) -> Tensor:
    with _running(f"an image of {image.shape[1]}×{image.shape[2]}"):
        return image_of(call(image[None]), image[None])[0]


def _running(what: str) -> AbstractContextManager[None]:
    return in_a_line(
        f"the model fails on {what} pixels", ": give sizes that it takes, or a call that pads (--pad-to)"
    )


def _change(
    window: tuple[int, int],
    corrected: bool,
    local: list[Values],
    whole: list[Values],
    areas: list[Values],
    moved: float,
    slack: float,
    seed: int,
) -> Change:
    """``slack``: to be added on both sides of the interval."""
    differences = [one - other for one, other in zip(local, whole, strict=True)]
    per_image = [float(np.average(own, weights=area)) for own, area in zip(differences, areas, strict=True)]
    means = _resampled(differences, areas, np.random.default_rng(seed))
    low, high = (float(x) for x in np.quantile(means, (0.05, 0.95)))
    energy = _mean_of(local, areas)
    change = float(np.mean(per_image))
    return Change(window, corrected, energy, change, low - slack, high + slack, tuple(per_image), moved)


def _resampled(values: list[Values], areas: list[Values], rng: np.random.Generator) -> Values:
    """Means over images of means over crops' pixels: images drawn with replacement, and crops within them."""
    found = np.empty((_RESAMPLES, len(values)))
    for place, (own, area) in enumerate(zip(values, areas, strict=True)):
        drawn = rng.integers(len(own), size=(_RESAMPLES, len(own)))
        found[:, place] = (own * area)[drawn].sum(1) / area[drawn].sum(1)
    drawn = rng.integers(len(values), size=found.shape)
    means: Values = np.take_along_axis(found, drawn, 1).mean(1)
    return means


def _unreliable(disagreement: float, energy: float) -> str:
    if math.isnan(disagreement):
        return (
            "no two crops overlap, so that nobody knows what is by chance in them; larger images are needed, or "
            "more crops of each"
        )
    if disagreement > 2 * energy and disagreement > 1e-8:
        return (
            f"overlapping crops disagree at common pixels (mean square {disagreement:.2g}) more than crops and "
            f"whole images do ({energy:.2g}), so that crops are no reference; was it trained on larger images?"
        )
    return ""

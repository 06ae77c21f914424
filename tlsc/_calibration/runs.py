"""The runs of a calibration: crops, and regions without and with corrections, through the converted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._plan import Fit
from .._statistics.correction import Correction
from .distance import Distance, centre, distance, maps
from .fit import Statistics, fitted
from .regions import Spot, like
from .sites import NEVER, Place, watching

__all__ = ["Run", "correction_of", "evaluating"]

BATCH = 2**18  # pixels of crops that go through the model at once


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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


class Run:
    """Crops, and regions without and with corrections, through the converted model.

    Args:
        model: the converted model.
        places: its sites.
        regions: parts of images, (N, C, H, W).
        spots: where the crops are in them.
        crop: their size.
        independent: for how many crops that do not overlap they count.
        call: the model, or what calls it.
    """

    def __init__(
        self,
        model: nn.Module,
        places: list[Place],
        regions: Tensor,
        spots: list[Spot],
        crop: tuple[int, int],
        independent: float,
        call: Callable[[Tensor], Any],
    ) -> None:
        self.call = call
        self.model, self.places, self.regions, self.spots = model, places, regions, spots
        self.crop, self.independent = crop, independent
        self.expected: list[Tensor] = []
        self.local = self.corrected = Distance(np.zeros(0), independent)

    def through(self) -> None:
        self._crops()
        with watching(self.places, lambda place, x: None):
            self.local = self.distance(self.whole())
        for place in self.places:
            place.calls = 0
        with watching(self.places, self._fit):
            self.corrected = self.distance(self.whole())

    def with_only(self, fits: dict[int, Fit]) -> Distance:
        """How far the output is from that on crops with these sites corrected and no others."""
        with watching(self.places, lambda place, x: None):
            for place in self.places:
                if place.site in fits:
                    place.set(correction_of(fits[place.site], self.model))
            return self.distance(self.whole())

    def whole(self) -> Any:
        """What the model, as it is, makes of the regions."""
        return self.call(self.regions)

    def distance(self, outputs: Any) -> Distance:
        """How far outputs on regions are from those on crops, at the crops' centres."""
        return distance(outputs, self.expected, self.spots, self.crop, self.regions, self.independent)

    def _crops(self) -> None:
        """Each site's statistics on crops, and the outputs at their centres."""
        number = max(1, BATCH // (self.crop[0] * self.crop[1]))
        outputs: list[list[Tensor]] = []
        with watching(self.places, self._on_crops):
            for first in range(0, len(self.spots), number):
                for place in self.places:
                    place.calls = 0
                part = self.spots[first : first + number]
                height, width = self.crop
                batch = torch.stack([self.regions[n, :, i : i + height, j : j + width] for n, i, j in part])
                outputs.append([centre(x).clone() for x in maps(self.call(batch))])
        self.expected = [torch.cat(list(parts)) for parts in zip(*outputs, strict=True)]

    def _on_crops(self, place: Place, x: Tensor) -> None:
        place.calls += 1
        if place.calls > 1:
            place.refused = "called several times in one run: not calibrated"
        if place.refused or not place.takes_one:
            place.refused = place.refused or NEVER
            return
        place.size = x.shape[-2], x.shape[-1]
        place.crops.append(_moments(x, place.groups))

    def _fit(self, place: Place, x: Tensor) -> None:
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
            place.set(correction_of(place.outcome(), self.model))


def correction_of(fit: Fit, model: nn.Module) -> Correction:
    table = torch.tensor(fit.coefficients, dtype=torch.float64)
    device = like(model).device
    # Apple's GPUs have no float64: the table goes there in single precision when it is used.
    return Correction(table if device.type == "mps" else table.to(device))


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

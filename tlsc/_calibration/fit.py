"""Fitting a correction: from statistics inside a whole image to those of the training crop at the same place.

Everything is per channel, on arrays (crops, channels) of variances and means. The variance is fitted by bounded
least squares on [variance, 1, mean²] with coefficients ≥ 0 (the ring's share grows with the layer's mean), each
crop weighted by one over its target; the mean by a line of slope in [0, 2]. Both are fits of the *difference* with
a ridge: the fewer crops, the closer to no correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._statistics.correction import NOTHING, corrected_mean, corrected_var

__all__ = ["Coefficients", "Statistics", "fit", "fitted"]

Array = NDArray[np.float64]
Coefficients = NDArray[np.float64]
"""(8, channels): the rows of a :class:`tlsc._statistics.correction.Correction`."""

UNCHANGED = np.array(NOTHING)[:, None]
RIDGE = 0.5
"""How many independent crops weigh as much as the belief that there is nothing to correct."""
LEAST = 4.0
"""With fewer independent crops nothing is corrected."""
BETTER = 0.95
DOUBT = 3.0
"""A channel, and a site, is corrected if that leaves at most the share ``min(BETTER, 1 − DOUBT/n)`` of the error of
crops held out: a twentieth has to go, and more where the ``n`` independent crops are fewer than sixty."""
FOLDS = 4
TINY = 1e-60
"""A channel may be dead: its statistics are all 0."""


@dataclass(frozen=True)
class Statistics:
    """Variances and means of crops, (crops, channels) each; ``var`` is None where a site uses the mean alone.

    ``unit``: variance in whose units errors of the mean count, as ``var``.
    """

    var: Array | None
    mean: Array
    unit: Array

    def of(self, crops: Any) -> Statistics:
        """Those of some crops."""
        return Statistics(None if self.var is None else self.var[crops], self.mean[crops], self.unit[crops])


@dataclass(frozen=True)
class Fitted:
    """What a site gets: coefficients, or None with the reason; its error on held-out crops without and with."""

    coefficients: Coefficients | None
    before: float
    after: float
    reason: str = ""


def fitted(inside: Statistics, crops: Statistics, eps: float, independent: float) -> Fitted:
    """Fit a site's correction, and find on crops held out whether it is good for anything.

    Args:
        inside: of the places inside whole images, in an order in which neighbours are near each other.
        crops: of the training crops there.
        eps: what the site adds to a variance.
        independent: for how many crops that do not overlap they count.
    """
    error = errors(inside, crops, eps)
    before = float(error.mean())
    if not np.isfinite(before) or not np.isfinite(_stacked(crops)).all():
        return Fitted(None, before, before, "its statistics are not finite")
    if independent < LEAST or len(error) < 2 * FOLDS:
        why = f"too few crops: they count for {independent:.1f} that do not overlap"
        return Fitted(None, before, before, why)
    folds = np.array_split(np.arange(len(error)), FOLDS)
    left = np.empty_like(error)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(error)), fold)
        tried = fit(inside.of(rest), crops.of(rest), independent * len(rest) / len(error))
        left[fold] = errors(corrected(inside.of(fold), tried), crops.of(fold), eps)
    enough = min(BETTER, 1 - DOUBT / independent)
    good = left.mean(0) <= enough * error.mean(0)
    after = float(np.where(good, left, error).mean())
    if after >= enough * before:  # as for two zeros
        return Fitted(None, before, before, "on crops held out it would gain too little")
    chosen = np.where(good, fit(inside, crops, independent), UNCHANGED)
    return Fitted(chosen, before, after)


def fit(inside: Statistics, crops: Statistics, independent: float) -> Coefficients:
    """The correction of every channel, (8, channels)."""
    channels = inside.mean.shape[1]
    out = np.tile(UNCHANGED, channels)
    ridge = RIDGE / independent
    out[6], out[7] = inside.mean.min(0), inside.mean.max(0)
    if inside.var is not None and crops.var is not None:
        out[:3] = _variance(inside.var, inside.mean, crops.var, ridge)
        out[5] = inside.var.max(0)
    out[3], out[4] = _mean(inside.mean, crops.mean, crops.unit, ridge)
    # What cannot be negative (a mean of squares) stays so, also below the means seen.
    positive = (inside.mean >= 0).all(0) & (crops.mean >= 0).all(0)
    through = positive & ((out[3] - 1) * out[6] + out[4] < 0)
    slope = _through_zero(inside.mean, crops.mean, crops.unit, ridge)
    out[3], out[4] = np.where(through, slope, out[3]), np.where(through, 0.0, out[4])
    out[6] = np.where(positive & (out[4] >= 0), 0.0, out[6])
    return out


def corrected(inside: Statistics, coefficients: Coefficients) -> Statistics:
    """What the coefficients make of windows that touch no border."""
    mean = corrected_mean(np, coefficients, inside.mean)
    var = None if inside.var is None else corrected_var(np, coefficients, inside.var, inside.mean)
    return Statistics(var, mean, inside.unit)


def errors(inside: Statistics, crops: Statistics, eps: float) -> Array:
    """How far off a normalised channel comes out, (crops, channels).

    ``sqrt(log(s'/s)² + (m' − m)²/max(s, s')²)`` with ``s² = var + eps``; without a variance ``|m' − m|/s``.
    """
    moved = inside.mean - crops.mean
    if inside.var is None or crops.var is None:
        # Of a constant map what is left of the variance is rounding of single precision.
        return np.asarray(np.abs(moved) / np.sqrt(np.maximum(crops.unit + eps, (1e-7 * crops.mean) ** 2 + TINY)))
    least = 1e-8 * crops.var.mean(0) + TINY
    s, t = np.sqrt(inside.var + eps + least), np.sqrt(crops.var + eps + least)
    # Too small and too large by the same factor are equally wrong.
    return np.asarray(np.hypot(np.log(s / t), moved / np.maximum(s, t)))


def _variance(var: Array, mean: Array, target: Array, ridge: float) -> Array:
    """a, b, c ≥ 0 of ``target ≈ a·var + b + c·mean²``, (3, channels): the best of all choices of active bounds."""
    scale = np.maximum(target, 1e-6 * target.mean(0) + TINY)
    columns = np.stack([var, np.ones_like(var), mean**2]) / scale
    rest = (target - var) / scale
    size = np.sqrt((columns**2).mean(1)) + TINY  # (3, channels)
    unit = columns / size[:, None]
    normal = np.einsum("inc,jnc->cij", unit, unit) / len(var) + ridge * np.eye(3)
    right = np.einsum("inc,nc->ci", unit, rest) / len(var)
    bound = np.stack([-size[0], 0 * size[1], 0 * size[2]], 1)  # a − 1 ≥ −1, in units of its column
    best, found = np.full(len(right), np.inf), np.zeros_like(right)
    for free in product((True, False), repeat=3):
        kept, held = [i for i in range(3) if free[i]], [i for i in range(3) if not free[i]]
        x = np.where(free, 0.0, bound)
        if kept:
            moved = right[:, kept] - np.einsum("cij,cj->ci", normal[:, kept][:, :, held], x[:, held])
            x[:, kept] = np.linalg.solve(normal[:, kept][:, :, kept], moved[..., None])[..., 0]
        cost = np.einsum("ci,cij,cj->c", x, normal, x) - 2 * np.einsum("ci,ci->c", x, right)
        better = (x >= bound - 1e-12).all(1) & (cost < best)
        best, found = np.where(better, cost, best), np.where(better[:, None], x, found)
    solution = np.maximum(found, bound) / size.T
    return np.asarray(solution.T + np.array([[1.0], [0.0], [0.0]]))


def _mean(mean: Array, target: Array, unit: Array, ridge: float) -> Sequence[Array]:
    """Slope in [0, 2] and offset of a line."""
    weight = 1 / (unit + unit.mean(0) + TINY)
    weight /= weight.sum(0)
    centre, moved = (weight * mean).sum(0), target - mean
    offset = (weight * moved).sum(0)
    spread = (weight * (mean - centre) ** 2).sum(0)
    both = (weight * (mean - centre) * (moved - offset)).sum(0)
    slope = np.clip(both / (spread * (1 + ridge) + TINY), -1, 1)
    return 1 + slope, offset / (1 + ridge) - slope * centre


def _through_zero(mean: Array, target: Array, unit: Array, ridge: float) -> Array:
    weight = 1 / (unit + unit.mean(0) + TINY)
    square = (weight * mean**2).sum(0)
    slope = (weight * mean * (target - mean)).sum(0) / (square * (1 + ridge) + TINY)
    return np.asarray(1 + np.clip(slope, -1, 1))


def _stacked(statistics: Statistics) -> Array:
    return statistics.mean if statistics.var is None else np.concatenate([statistics.mean, statistics.var])

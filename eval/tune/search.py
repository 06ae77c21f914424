"""Greedy search for the best choice, and whether it is better than all and than none on photographs held out.

A score is one number for each photograph, higher for better. What was scored once is remembered by the caller, so
that the folds of the cross-validation share most of what they ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlsc.eval.judge.intervals import interval
from tlsc.eval.tune.groups import Choice, Size

__all__ = ["CONFIDENCE", "FOLDS", "Found", "better_of_both", "greedy", "tuned"]

Values = NDArray[np.float64]
Score = Callable[[Choice], Values]

FOLDS = 8
"""At most: of fewer photographs each is held out alone."""
CONFIDENCE = 0.9
"""Of the interval. Only its lower end decides, so that what does not gain is taken once in twenty cases."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        choice: a window for each group: what to do.
        best: what the search found; ``choice`` is this where it is shown to gain.
        fallback: the better of all sites (with their best window) and none.
        gain: of the search over the better of both on photographs held out, mean.
        low, high: its 90% interval; NaN for too few photographs.
        per_image: the gain on each.
    """

    choice: Choice
    best: Choice
    fallback: Choice
    gain: float
    low: float
    high: float
    per_image: tuple[float, ...]

    @property
    def shown_to_gain(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0


def better_of_both(score: Score, groups: int, windows: Sequence[Size], use: NDArray[np.intp]) -> Choice:
    """All sites with the best window, or none; none where they are equal."""
    choices: list[Choice] = [(None,) * groups, *((window,) * groups for window in windows)]
    return max(choices, key=lambda choice: _mean(score, choice, use))


def greedy(score: Score, groups: int, windows: Sequence[Size], use: NDArray[np.intp], least: float) -> Choice:
    """The best choice that is found from all and from none, group by group, then window by window.

    Groups are tried in the order of what each does alone, once: a few runs for each, however many there are.

    Args:
        score: of a choice, for each photograph.
        groups: how many there are.
        windows: to try.
        use: the photographs to go by.
        least: what a change must gain.
    """
    none: Choice = (None,) * groups
    every = max(((window,) * groups for window in windows), key=lambda choice: _mean(score, choice, use))
    window = every[0]
    found = [none, every]
    for start, put in ((every, None), (none, window)):
        alone = [_mean(score, _with(start, n, put), use) for n in range(groups)]
        now, value = start, _mean(score, start, use)
        for n in sorted(range(groups), key=lambda n: -alone[n]):
            tried = _with(now, n, put)
            if (reached := _mean(score, tried, use)) > value + least:
                now, value = tried, reached
        found.append(now)
    best = max(found, key=lambda choice: _mean(score, choice, use))
    value = _mean(score, best, use)
    for n in range(groups):
        for other in windows:
            tried = _with(best, n, other)
            if best[n] not in (None, other) and (reached := _mean(score, tried, use)) > value + least:
                best, value = tried, reached
    return best


def tuned(
    score: Score,
    groups: int,
    windows: Sequence[Size],
    images: int,
    least: float,
    doubt: Callable[[Choice, Choice], Values] | None = None,
    seed: int = 0,
) -> Found:
    """Search, and hold the result against the better of all and none on photographs that took no part.

    Args:
        score, groups, windows, least: as for :func:`greedy`.
        images: how many photographs there are.
        doubt: of two choices, how much of their difference on each photograph the score cannot vouch for (as the
            half width of an interval of the same confidence).
        seed: of the folds.
    """
    everything = np.arange(images)
    best = greedy(score, groups, windows, everything, least)
    fallback = better_of_both(score, groups, windows, everything)
    if best == fallback:
        return Found(best, best, fallback, 0.0, 0.0, 0.0, (0.0,) * images)
    gains = np.zeros(images)
    for held in np.array_split(np.random.default_rng(seed).permutation(images), min(FOLDS, images)):
        use = np.setdiff1d(everything, held)
        if not len(use):
            gains[:] = np.nan
            break
        one, other = greedy(score, groups, windows, use, least), better_of_both(score, groups, windows, use)
        gains[held] = score(one)[held] - score(other)[held]
    low, high = interval(gains.tolist(), CONFIDENCE) if np.isfinite(gains).all() else (np.nan, np.nan)
    if doubt is not None and np.isfinite(low):
        low, high = _wider(low, float(gains.mean()), high, float(doubt(best, fallback).mean()))
    choice = best if low > 0 else fallback
    return Found(choice, best, fallback, float(gains.mean()), low, high, tuple(gains.tolist()))


def _wider(low: float, mean: float, high: float, doubt: float) -> tuple[float, float]:
    """Wider by what has nothing to do with which photographs were drawn: the two add up in squares."""
    return mean - math.hypot(mean - low, doubt), mean + math.hypot(high - mean, doubt)


def _with(choice: Choice, n: int, window: Size | None) -> Choice:
    return (*choice[:n], window, *choice[n + 1 :])


def _mean(score: Score, choice: Choice, use: NDArray[np.intp]) -> float:
    """−∞ where the network fails in this form."""
    value = float(score(choice)[use].mean())
    return value if np.isfinite(value) else -np.inf

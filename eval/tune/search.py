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
from tlsc.eval.tune.groups import Choice, Local, Size

__all__ = ["CONFIDENCE", "FOLDS", "STRENGTHS", "Found", "better_of_both", "corrected", "greedy", "tuned"]

Values = NDArray[np.float64]
Score = Callable[[Choice], Values]

FOLDS = 8
"""At most: of fewer photographs each is held out alone."""
CONFIDENCE = 0.9
"""Of the interval. Only its lower end decides, so that what does not gain is taken once in twenty cases."""

STRENGTHS = (0.0, 0.5)
"""Of a group's corrections, tried beside the whole of them."""


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


def better_of_both(
    score: Score,
    groups: int,
    windows: Sequence[Size],
    use: NDArray[np.intp],
    correctable: Sequence[Size] = (),
) -> Choice:
    """All sites with the best window, corrected or not, or none; none where they are equal."""
    every = [Local(window) for window in windows] + [Local(window, 1.0) for window in correctable]
    choices: list[Choice] = [(None,) * groups, *((one,) * groups for one in every)]
    return max(choices, key=lambda choice: _mean(score, choice, use))


def greedy(score: Score, groups: int, windows: Sequence[Size], use: NDArray[np.intp], least: float) -> Choice:
    """The best choice without corrections, found from all and from none: group by group, then window by window.

    Groups are tried in the order of what each does alone, once: a few runs for each, however many there are.

    Args:
        score: of a choice, for each photograph.
        groups: how many there are.
        windows: to try.
        use: the photographs to go by.
        least: what a change must gain.
    """
    tried_all = [(Local(window),) * groups for window in windows]
    none: Choice = (None,) * groups
    every: Choice = max(tried_all, key=lambda choice: _mean(score, choice, use))
    found = [none, every]
    for start, put in ((every, None), (none, every[0])):
        changes = [(n, put) for n in range(groups)]
        alone = [_mean(score, _with(start, *change), use) for change in changes]
        found.append(_taken(score, start, sorted(changes, key=lambda change: -alone[change[0]]), use, least))
    best = max(found, key=lambda choice: _mean(score, choice, use))
    others = [(n, Local(window)) for n in range(groups) for window in windows if best[n] is not None]
    return _taken(score, best, others, use, least)


def corrected(
    score: Score, best: Choice, correctable: Sequence[Size], use: NDArray[np.intp], least: float
) -> Choice:
    """The best choice with corrections: of the best without, and of all sites; or the best without.

    Each form is tried with all corrections first. In the best one each group is then left as trained, or its
    corrections are weakened.

    Args:
        score, use, least: as for :func:`greedy`.
        best: what it found.
        correctable: windows that can be corrected.
    """
    every: list[Choice] = [(Local(window),) * len(best) for window in correctable]
    whole: list[Choice] = [
        tuple(None if one is None else one._replace(strength=1.0) for one in choice)
        for choice in dict.fromkeys([best, *every])
        if any(one is not None for one in choice) and all(one is None or one.size in correctable for one in choice)
    ]
    if not whole:
        return best
    start = max(whole, key=lambda choice: _mean(score, choice, use))
    less = [
        (n, put)
        for n, one in enumerate(start)
        if one is not None
        for put in (None, *(one._replace(strength=strength) for strength in STRENGTHS))
    ]
    now = _taken(score, start, less, use, least)
    return now if _mean(score, now, use) > _mean(score, best, use) + least else best


def _taken(
    score: Score,
    start: Choice,
    changes: Sequence[tuple[int, Local | None]],
    use: NDArray[np.intp],
    least: float,
) -> Choice:
    """Changes of single groups, one after another, each where it gains."""
    now, value = start, _mean(score, start, use)
    for n, put in changes:
        tried = _with(now, n, put)
        if tried != now and (reached := _mean(score, tried, use)) > value + least:
            now, value = tried, reached
    return now


def tuned(
    score: Score,
    groups: int,
    windows: Sequence[Size],
    images: int,
    least: float,
    doubt: Callable[[Choice, Choice], Values] | None = None,
    seed: int = 0,
    correctable: Sequence[Size] = (),
) -> Found:
    """Search, and hold the result against the better of all and none on photographs that took no part.

    Args:
        score, groups, windows, least: as for :func:`greedy`.
        images: how many photographs there are.
        doubt: of two choices, how much of their difference on each photograph the score cannot vouch for (as the
            half width of an interval of the same confidence).
        seed: of the folds.
        correctable: windows that can be corrected; corrections count as measured where scores vouch for them, so
            that without targets (with a doubt) no correction belongs to *all*.
    """
    everything = np.arange(images)
    simple = correctable if doubt is None else ()

    def both(use: NDArray[np.intp]) -> tuple[Choice, Choice]:
        found = corrected(score, greedy(score, groups, windows, use, least), correctable, use, least)
        return found, better_of_both(score, groups, windows, use, simple)

    best, fallback = both(everything)
    if best == fallback:
        return Found(best, best, fallback, 0.0, 0.0, 0.0, (0.0,) * images)
    gains = np.zeros(images)
    for held in np.array_split(np.random.default_rng(seed).permutation(images), min(FOLDS, images)):
        use = np.setdiff1d(everything, held)
        if not len(use):
            gains[:] = np.nan
            break
        one, other = both(use)
        gains[held] = score(one)[held] - score(other)[held]
    low, high = interval(gains.tolist(), CONFIDENCE) if np.isfinite(gains).all() else (np.nan, np.nan)
    if doubt is not None and np.isfinite(low):
        low, high = _wider(low, float(gains.mean()), high, float(doubt(best, fallback).mean()))
    choice = best if low > 0 else fallback
    return Found(choice, best, fallback, float(gains.mean()), low, high, tuple(gains.tolist()))


def _wider(low: float, mean: float, high: float, doubt: float) -> tuple[float, float]:
    """Wider by what has nothing to do with which photographs were drawn: the two add up in squares."""
    return mean - math.hypot(mean - low, doubt), mean + math.hypot(high - mean, doubt)


def _with(choice: Choice, n: int, put: Local | None) -> Choice:
    return (*choice[:n], put, *choice[n + 1 :])


def _mean(score: Score, choice: Choice, use: NDArray[np.intp]) -> float:
    """−∞ where the network fails in this form."""
    value = float(score(choice)[use].mean())
    return value if np.isfinite(value) else -np.inf

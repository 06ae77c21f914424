"""Confidence intervals of a mean gain over images, and how many images would settle a question."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "FEWEST", "bounds", "images_to_settle", "interval"]

CONFIDENCE = 0.95
FEWEST = 4
"""Below so many images no interval keeps what it claims for skewed gains (``python -m benchmarks intervals``)."""
_MOST = 10_000

Values = NDArray[np.float64]


def bounds(values: Values, confidence: float = CONFIDENCE) -> tuple[Values, Values]:
    """Interval of the mean along the last axis: the hull of Student's t interval and Hall's for skewed samples.

    Student's falls short where gains are skewed, Hall's (which inverts ``T + g T²/3 + g² T³/27 + g/6``, with
    ``g = skewness / sqrt(n)``) where they have heavy tails; the hull keeps its word in both cases.

    Args:
        values: (..., n), n at least 3.
        confidence: share of samples whose interval holds the true mean.

    Source: Hall, "On the removal of skewness by transformation", JRSS B 54 (1992) 221-228.

    Example:
        >>> low, high = bounds(np.array([1.0, 2.0, 3.0, 4.0]))
        >>> round(float(low), 2), round(float(high), 2)
        (0.45, 4.55)
    """
    from scipy.stats import t as student

    n = values.shape[-1]
    mean = values.mean(-1)
    deviations = values - mean[..., None]
    spread = np.sqrt((deviations**2).sum(-1) / (n - 1))
    third = (deviations**3).sum(-1) * n / ((n - 1) * (n - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.where(spread > 0, third / spread**3, 0.0) / math.sqrt(n)
    t = float(student.ppf((1 + confidence) / 2, n - 1))
    below, above = np.maximum(_inverse(t, g), t), np.minimum(_inverse(-t, g), -t)
    scale = spread / math.sqrt(n)
    return mean - below * scale, mean - above * scale


def _inverse(t: float, g: Values) -> Values:
    """The T with ``T + g T²/3 + g² T³/27 + g/6 = t``."""
    small = np.abs(g) < 1e-6
    safe = np.where(small, 1.0, g)
    return np.where(small, t, 3 / safe * (np.cbrt(1 + safe * (t - safe / 6)) - 1))


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of the mean of one value per image, as :func:`bounds`.

    Returns:
        Two NaN for fewer than ``FEWEST`` values.

    Example:
        >>> low, high = interval([1.0, 2.0, 3.0, 4.0])
        >>> 0.4 < low < 1 < 4 < high < 4.6
        True
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < FEWEST:
        return math.nan, math.nan
    low, high = bounds(sample, confidence)
    return float(low), float(high)


def images_to_settle(values: Sequence[float], confidence: float = CONFIDENCE) -> int | None:
    """With how many images, gains going on as in ``values``, a t interval of the mean would no longer hold zero.

    Returns:
        None where there is nothing to go by (fewer than two values, no spread), or more than 10 000 are needed.

    Example:
        >>> images_to_settle([0.1, -0.1, 0.3, 0.1])
        13
    """
    from scipy.stats import t as student

    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2 or np.ptp(sample) == 0:
        return None
    needed = abs(float(sample.mean())) / float(sample.std(ddof=1))
    n = np.arange(FEWEST, _MOST + 1)
    enough = student.ppf((1 + confidence) / 2, n - 1) / np.sqrt(n) < needed
    return int(n[enough.argmax()]) if enough.any() else None

"""How often the verdict's intervals hold the true mean: ``python -m benchmarks intervals``, half a minute.

Gains are drawn from distributions with the skewness and the tails that PSNR gains of photographs have, and more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tabulate import tabulate

from tlsc.eval.judge.intervals import FEWEST, bounds

COUNTS = (4, 6, 10, 30)
RUNS = 20000
Values = NDArray[np.float64]
Shape = tuple[int, int]


def _mixed(rng: np.random.Generator, shape: Shape) -> Values:
    """Most images gain alike, one in five by three times as much or as little."""
    return rng.standard_normal(shape) * np.where(rng.random(shape) < 0.8, 0.3, 1.0)


# name: (draws, true mean)
GAINS: dict[str, tuple[Callable[[np.random.Generator, Shape], Values], float]] = {
    "normal": (lambda rng, shape: rng.standard_normal(shape), 0.0),
    "skewness 1": (lambda rng, shape: rng.gamma(4, size=shape), 4.0),
    "skewness -1": (lambda rng, shape: -rng.gamma(4, size=shape), -4.0),
    "skewness 2 (exponential)": (lambda rng, shape: rng.gamma(1, size=shape), 1.0),
    "heavy tails (t of 5)": (lambda rng, shape: rng.standard_t(5, size=shape), 0.0),
    "two kinds of images": (_mixed, 0.0),
}


def coverage(name: str, count: int, confidence: float = 0.95, runs: int = RUNS) -> float:
    """Share of samples of ``count`` images whose interval holds the true mean."""
    draw, mean = GAINS[name]
    low, high = bounds(draw(np.random.default_rng(count), (runs, count)), confidence)
    return float(((low <= mean) & (mean <= high)).mean())


def _percentile(name: str, count: int, runs: int = 1000) -> float:
    """The percentile bootstrap, for comparison."""
    draw, mean = GAINS[name]
    values = draw(np.random.default_rng(count), (runs, count))
    found = stats.bootstrap(
        (values,), np.mean, axis=1, n_resamples=999, method="percentile", batch=50, random_state=0
    ).confidence_interval
    return float(((found.low <= mean) & (mean <= found.high)).mean())


def main() -> None:
    """Print coverage of 95% intervals, of 99% ones, and of the percentile bootstrap."""
    rows = []
    for name in GAINS:
        for confidence in (0.95, 0.99):
            rows.append([name, f"{confidence:.0%}", *(f"{coverage(name, n, confidence):.1%}" for n in COUNTS)])
        rows.append([name, "95%, percentile bootstrap", *(f"{_percentile(name, n):.1%}" for n in COUNTS)])
    print(tabulate(rows, headers=["gains", "claimed", *(f"{n} images" for n in COUNTS)]))
    print(f"Below {FEWEST} images there is no interval.")

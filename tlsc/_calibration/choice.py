"""Which corrections stay where all of them together move the output away from crop behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .distance import Distance

__all__ = ["chosen"]

TRIES = 3
"""Runs over the images that the search may take."""


def chosen(
    sites: Sequence[int], none: Distance, measure: Callable[[Sequence[int]], Distance]
) -> tuple[list[int], Distance]:
    """The corrections whose output is closest to crop behaviour, of those that are tried, and how far it is.

    Of up to three corrections each is left out in turn. Of more the first that does harm is looked for by halving,
    as each was fitted behind those before it; then all but the part where it was found are tried, too. None stay
    where even the best are clearly further away than ``none``.

    Args:
        sites: those with corrections, in call order; all of them together do harm.
        none: how far the output is without any.
        measure: how far it is with some of them and no others; called at most ``TRIES`` times.
    """
    found: list[tuple[Distance, list[int]]] = []

    def harm(some: list[int]) -> bool:
        found.append((measure(some), some))
        return found[-1][0].clearly_above(none)

    if len(sites) <= TRIES:
        for n in sites:
            if len(sites) > 1:
                harm([m for m in sites if m != n])
    else:
        good, bad = 0, len(sites)  # the first ``good`` do none, the first ``bad`` do
        while bad - good > 1 and len(found) < TRIES - 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if harm(list(sites[:middle])) else (middle, bad)
        rest = [*sites[:good], *sites[bad:]]
        if rest not in [some for _, some in found]:
            harm(rest)
    if found:
        best, some = min(found, key=lambda pair: pair[0].rms)
        if not best.clearly_above(none):
            return some, best
    return [], none

"""Which corrections stay: those with which the output is closest to crop behaviour, of the sets that are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .distance import Distance

__all__ = ["chosen", "without_harm"]

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


def without_harm(
    sites: Sequence[int], together: Distance, measure: Callable[[Sequence[int]], Distance]
) -> tuple[list[int], Distance]:
    """Those that stay where all together do good, but some of them less than they should.

    A correction that its own site gains little by may do more harm behind it than good. So the half that gains
    least is left out. Where the output is then clearly closer to crop behaviour, each half of that half comes back
    unless the output is clearly further away with it; otherwise all stay.

    Args:
        sites: those with corrections, by what each gains at its own site, the least first.
        together: how far the output is with all of them.
        measure: how far it is with some of them and no others; called at most ``TRIES`` times.
    """
    doubtful, kept = list(sites[: (len(sites) + 1) // 2]), list(sites[(len(sites) + 1) // 2 :])
    if not kept:
        return list(sites), together
    now = measure(kept)
    if not together.clearly_above(now):
        return list(sites), together
    middle = len(doubtful) // 2
    for part in (doubtful[middle:], doubtful[:middle]):
        if not part or len(kept) + len(part) == len(sites):
            continue
        found = measure([*kept, *part])
        if not found.clearly_above(now):
            kept, now = [*kept, *part], found
    return kept, now

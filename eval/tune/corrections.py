"""Corrections of statistics that a choice may use, calibrated on other photographs than it is tried on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

import tlsc
from tlsc._internal.statistics import weakened
from tlsc.eval.networks import Network
from tlsc.eval.tune.groups import Choice, Group, Local

__all__ = ["Corrections", "uncorrected"]

Size = tuple[int, int]
Halves = tuple[tuple[int, ...], ...]


def uncorrected(choice: Choice) -> Choice:
    """The same windows, without corrections.

    Example:
        >>> from tlsc.eval.tune.groups import Local
        >>> uncorrected((Local((96, 96), 1.0), None))
        (Local(size=(96, 96), strength=0.0), None)
    """
    return tuple(None if one is None else one._replace(strength=0.0) for one in choice)


class Corrections:
    """What :func:`tlsc.calibrate` finds for each way in which the sites of a network become local, found once.

    Args:
        network: is as before after each call.
        images: to calibrate on, (C, H, W) each, no labels.
        groups: of its sites.
        crop: (height, width) of its training crops.
        seed: of the crops that are drawn.
    """

    def __init__(
        self, network: Network, images: Sequence[Tensor], groups: Sequence[Group], crop: Size, seed: int
    ) -> None:
        self.network, self.images, self.groups, self.crop, self.seed = network, images, groups, crop, seed
        self._known: dict[tuple[Choice, tuple[int, ...]], tlsc.Plan] = {}

    @property
    def halves(self) -> Halves:
        """Numbers of the images; each half is tried with what was found on the other.

        Both have large images, if there are two: from an image that has no room for crops nothing is found.
        """
        numbers = sorted(range(len(self.images)), key=lambda n: -min(self.images[n].shape[1:]))
        return tuple(sorted(numbers[::2])), tuple(sorted(numbers[1::2]))

    def possible(self, size: Size) -> bool:
        """Whether a window can be corrected: it holds a training crop, and there are images for two halves."""
        return len(self.images) > 1 and all(n >= k for n, k in zip(size, self.crop, strict=True))

    def corrected(
        self, choice: Choice, plan_of: Callable[[Choice], tlsc.Plan], numbers: Sequence[int] | None = None
    ) -> tlsc.Plan:
        """The plan of a choice, with corrections found on some of the images.

        They are found once for each set of windows, with all groups local: those that a choice leaves as trained
        have its largest window meanwhile.

        Args:
            choice: windows, and how strong each group's corrections are.
            plan_of: gives the plan of a choice without corrections.
            numbers: of the images; None for all.

        Raises:
            TLSCError: the network cannot be calibrated.
        """
        use = tuple(range(len(self.images)) if numbers is None else numbers)
        windows = [one.size for one in choice if one is not None]
        every: Choice = tuple(Local(max(windows, key=math.prod) if one is None else one.size) for one in choice)
        if (every, use) not in self._known:
            self._known[every, use] = self._found(plan_of(every), use)
        full, plan = self._known[every, use], plan_of(uncorrected(choice))
        sites = list(plan.sites)
        for group, one in zip(self.groups, choice, strict=True):
            if one is not None:
                for n in group.sites:
                    sites[n] = replace(sites[n], fit=_weaker(full[n], one.strength).fit)
        about = full.calibration
        if about is not None and sites != list(full.sites):
            about = replace(about, original=None, local=None, calibrated=None)  # those are of full corrections
        return replace(plan, sites=tuple(sites), calibration=about)

    def _found(self, plan: tlsc.Plan, use: Sequence[int]) -> tlsc.Plan:
        images = [self.images[n] for n in use]
        with tlsc.converted(self.network.model, plan=plan):
            return self.network.calibrated(images, self.crop, self.seed, warn=False)  # what does harm is not chosen


def _weaker(site: tlsc.Site, strength: float) -> tlsc.Site:
    """The site with its correction, if it has one, taken so far only."""
    fit = site.fit
    if fit is None or not fit.kept or strength == 1:
        return site
    if strength == 0:
        why = "without it the network was better where the plan was tuned"
        return replace(site, fit=replace(fit, kept=False, reason=why))
    return replace(site, fit=replace(fit, after=None, coefficients=weakened(fit.coefficients, strength)))

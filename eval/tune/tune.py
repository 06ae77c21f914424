"""A plan for a network, decided on photographs: which sites become local, each over which window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

import tlsc
from tlsc._internal.prediction import reverted
from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.judge.intervals import images_to_settle
from tlsc.eval.networks import Network
from tlsc.eval.tune.corrections import Corrections
from tlsc.eval.tune.groups import Choice, Group, Local, groups_of, shown
from tlsc.eval.tune.scores import Energies, Journal, Pairs
from tlsc.eval.tune.search import CONFIDENCE, Found, tuned

__all__ = ["Tuning", "tune", "windows_for"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Tuning:
    """A plan, and how it came about; prints as a table with a sentence below it.

    Attributes:
        plan: what to do: ``tlsc.convert(model, plan=plan)``.
        groups: the sites that were decided together.
        windows: that were tried.
        paired: whether there were targets; scores are then PSNR in dB, otherwise mismatch energies with a minus.
        images: how many photographs.
        scores: of the choices that the table shows, means over photographs.
        found: what the search came to.
    """

    plan: tlsc.Plan
    groups: tuple[Group, ...]
    windows: tuple[Size, ...]
    paired: bool
    images: int
    scores: tuple[tuple[str, float], ...]
    found: Found

    @property
    def decided(self) -> Choice:
        """The choice as the plan has it: corrected is what holds a site for which a correction was found."""

        def corrected(group: Group) -> bool:
            fits = [self.plan[n].fit for n in group.sites]
            return any(fit is not None and fit.kept for fit in fits)

        return tuple(
            one._replace(strength=0.0) if one is not None and one.strength and not corrected(group) else one
            for group, one in zip(self.groups, self.found.choice, strict=True)
        )

    @property
    def sentence(self) -> str:
        """What was decided, and why."""
        own, what = self.found, self._named(self.decided)
        if own.best == own.fallback:
            said = f"{what}: no choice of sites and windows is better."
        elif own.shown_to_gain:
            than = self._named(own.fallback)
            said = f"{what}: {self._gain()} better than {than}, on images held out."
        elif math.isnan(own.low):
            few = _counted(self.images, "image is", "images are")
            said = f"{what}: {few} too few to show that another choice gains."
        else:
            said = f"{what}: another choice is not shown to gain ({self._gain()}, on images held out)"
            said += self._needed()
        return said if ": " in what else said[0].upper() + said[1:]  # a site's name stays as it is

    def _score(self, value: float) -> str:
        if math.isnan(value):
            return "failed"
        return f"{value:.3f}" if self.paired else f"{-value:.4g}"

    def _gain(self) -> str:
        own, unit = self.found, " dB" if self.paired else " of mismatch energy"
        shape = "+.3f" if self.paired else "+.2g"
        return f"{own.gain:{shape}} [{own.low:{shape}}, {own.high:{shape}}]{unit}"

    def _needed(self) -> str:
        """How many images would show a gain, if it went on like this; without targets more do not always."""
        own = self.found
        number = images_to_settle(own.per_image, CONFIDENCE) if self.paired and own.gain > 0 else None
        return "." if number is None else f"; about {max(number, self.images + 1)} images may show it."

    def _named(self, choice: Choice) -> str:
        if all(one is None for one in choice):
            return "no site"
        if len(set(choice)) == 1:
            return f"all sites at {shown(choice[0])}"
        return "; ".join(f"{group.name}: {shown(one)}" for group, one in zip(self.groups, choice, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain Python data, ready for JSON."""
        own = self.found
        named = {
            group.name: None if one is None else {"base_size": one.size, "correction": one.strength}
            for group, one in zip(self.groups, self.decided, strict=True)
        }
        return {
            "paired": self.paired,
            "images": self.images,
            "windows": self.windows,
            "choice": named,
            "scores": dict(self.scores),
            "gain": own.gain,
            "interval": [own.low, own.high],
            "shown_to_gain": own.shown_to_gain,
            "sentence": self.sentence,
            "plan": self.plan.as_dict(),
        }

    def __str__(self) -> str:
        from tabulate import tabulate

        unit = "PSNR, dB" if self.paired else "mismatch energy"
        rows = [(name, self._score(value)) for name, value in self.scores]
        table = str(tabulate(rows, headers=["sites", unit], disable_numparse=True))
        decided = [f"{group.name}: {shown(one)}" for group, one in zip(self.groups, self.decided, strict=True)]
        head = (
            f"{_counted(self.images, 'image', 'images')}, {_counted(len(self.groups), 'group', 'groups')} of sites"
        )
        return "\n".join(
            [head, "", *(line.rstrip() for line in table.splitlines()), "", *decided, "", self.sentence]
        )


def windows_for(network: Network, asked: Sequence[Any] | None, paired: bool) -> list[Size]:
    """The windows to try: those asked for, or 1 (with targets only), 1.5 and 2 times the training crop.

    A window like the crop has the crop's own chances, to which mismatch energies are blind.
    """
    crop = network.crop
    assert crop is not None
    sizes = asked or [crop * k // 2 for k in ((2, 3, 4) if paired else (3, 4))]
    taken = [network.taken(network.base_size if size == "auto" else size) for size in sizes]
    return list(dict.fromkeys((one, one) if isinstance(one, int) else (one[0], one[1]) for one in taken))


def tune(
    network: Network,
    images: Sequence[Tensor],
    targets: Sequence[Tensor] | None = None,
    windows: Sequence[Size] | None = None,
    *,
    calibrate: bool = True,
    crops_per_image: int = 16,
    seed: int = 0,
    journal: Journal | None = None,
    told: Callable[[], Any] = lambda: None,
) -> Tuning:
    """Decide which sites of a network become local, each over which window, how far corrected, on photographs.

    Sites of one kind on maps of one size are decided together. Greedy from all and from none, by PSNR where there
    are targets and by mismatch energy (see :func:`tlsc.predict`) otherwise; the result is taken only where a
    cross-validation over photographs shows that it is better than the better of all and none. Corrections are those
    of :func:`tlsc.calibrate`; each photograph is tried with what was found on the other half of them.

    Args:
        network: of :func:`tlsc.eval.networks.load_network`, with its training crop; it is as before afterwards. A
            converted one is examined as the original.
        images: degraded, (C, H, W) each.
        targets: what they should become, if that is known.
        windows: at the network's input; see :func:`windows_for`.
        calibrate: whether statistics may be corrected.
        crops_per_image: without targets, random crops of each image.
        seed: of these and of the cross-validation.
        journal: to go on with what an earlier run measured.
        told: called after each measurement.

    Raises:
        ArgumentValueError: no site becomes local; the crop is not known, or an image is smaller; an image or target
            cannot be used.
        TLSCError: the network fails as trained.
    """
    if network.crop is None:
        raise ArgumentValueError(f"the training crop of {network.name} is not known: give --crop")
    with reverted(network.model):
        return _tuned(network, images, targets, windows, calibrate, crops_per_image, seed, journal, told)


def _tuned(
    network: Network,
    images: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    windows: Sequence[Size] | None,
    calibrate: bool,
    crops_per_image: int,
    seed: int,
    journal: Journal | None,
    told: Callable[[], Any],
) -> Tuning:
    """:func:`tune`, for a network as trained."""
    tried = list(windows or windows_for(network, None, targets is not None))
    planned = cache(lambda size: tlsc.plan(network.model, size))
    groups = groups_of(planned(tried[0]))
    if not groups:
        raise ArgumentValueError("no site becomes local, so there is nothing to tune")
    _check_given(images, targets)
    corrections, correctable = None, []
    if calibrate:
        corrections = Corrections(network, images, groups, _crop(network), seed)
        correctable = [size for size in tried if corrections.possible(size)]
    given = (network, images, groups, planned, tried[0], corrections, journal, told)
    score: Pairs | Energies
    if targets is not None:
        score = Pairs(*given)
        score.targets = targets
        doubt = None
    else:
        _check_larger(images, _crop(network))
        score = Energies(*given)
        score.measure_crops(_crop(network), crops_per_image, seed)
        doubt = score.doubt
    found = tuned(score, len(groups), tried, len(images), score.least, doubt, seed, correctable)
    if not np.isfinite(score(found.choice)).all():
        raise TLSCError(
            f"{network.name} gives no finite result in any form that was tried: try another --dtype, or look "
            "whether its weights are finite"
        )
    rows: dict[Choice, str] = {(None,) * len(groups): "none"}
    for one in (*map(Local, tried), *(Local(size, 1.0) for size in correctable)):
        rows[(one,) * len(groups)] = f"all at {shown(one)}"
    rows.setdefault(found.best, "the best found")
    scores = tuple((name, float(np.mean(score(choice)))) for choice, name in rows.items())
    plan = score.plan_of(found.choice)
    return Tuning(plan, tuple(groups), tuple(tried), targets is not None, len(images), scores, found)


def _counted(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _crop(network: Network) -> Size:
    taken = network.taken(network.crop)
    return (taken, taken) if isinstance(taken, int) else (taken[0], taken[1])


def _check_given(images: Sequence[Tensor], targets: Sequence[Tensor] | None) -> None:
    if not images:
        raise ArgumentValueError("there is no image: give at least one, better ten")
    if targets is not None and len(targets) != len(images):
        raise ArgumentValueError(f"each image has a target, got {len(images)} and {len(targets)}")
    for what, given in (("image", images), ("target", targets or [])):
        for n, one in enumerate(given):
            if not one.isfinite().all():
                raise ArgumentValueError(f"{what} {n + 1} of {len(given)} holds values that are not finite")


def _check_larger(images: Sequence[Tensor], size: Size) -> None:
    small = [image for image in images if any(n < k for n, k in zip(image.shape[1:], size, strict=True))]
    if small:
        high, wide = small[0].shape[1:]
        raise ArgumentValueError(
            f"{len(small)} of {len(images)} images are smaller than the training crop, {size[0]}×{size[1]} (the "
            f"first: {high}×{wide}): leave them out"
        )

"""What a choice is worth on each photograph: PSNR with targets, mismatch energy without; kept in a journal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tlsc
from tlsc._internal.prediction import Crops, crops_of, doubt, step_of
from tlsc.errors import ArgumentValueError, TLSCError, in_a_line
from tlsc.eval.files import naming, replacing, sealed, unsealed
from tlsc.eval.networks import Network
from tlsc.eval.tune.corrections import Corrections, uncorrected
from tlsc.eval.tune.groups import Choice, Group, as_choice, plan_for

__all__ = ["Energies", "Journal", "Pairs", "Scores"]

Values = NDArray[np.float64]
Size = tuple[int, int]


class Journal:
    """The scores so far, a line each, in a file that is there while a tuning runs.

    Args:
        path: of the file; a run with the same settings goes on with what it holds.
        settings: everything that scores depend on.
        overwrite: whether the journal of another run may be thrown away.

    A damaged line, told by its checksum, is measured again.

    Raises:
        ArgumentValueError: the file is of a run with other settings, or damaged at its beginning, or a folder.
    """

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path = path
        self.known: dict[Choice, Values] = {}
        if path.is_dir():
            raise ArgumentValueError(f"{path} is a folder, where a journal is to be kept: name another --out")
        head = json.dumps(sealed(settings), sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                self.known.update(_entry(line))
        elif lines and not overwrite:
            raise ArgumentValueError(
                f"{path} is of a tuning with other settings that was stopped, or damaged: --overwrite throws it "
                "away; or name another --out"
            )
        self._head, self._begun = head, False
        if self.known:
            self._begin()

    def _begin(self) -> None:
        """Write anew what is known. Not before there is something: a run that fails at once leaves no file."""
        with replacing(self.path) as new:
            new.write_text("\n".join([self._head, *map(_line, self.known.items())]) + "\n", encoding="utf-8")
        self._begun = True

    def add(self, choice: Choice, values: Values) -> None:
        """Remember a score."""
        self.known[choice] = values
        if not self._begun:
            self._begin()
            return
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line((choice, values)) + "\n")

    def done(self) -> None:
        """The tuning is over: the file goes."""
        self.path.unlink(missing_ok=True)


def _line(score: tuple[Choice, Values]) -> str:
    return json.dumps(sealed({"choice": score[0], "values": score[1].tolist()}))


def _entry(line: str) -> dict[Choice, Values]:
    """A score; nothing where the line is damaged, so that it is measured again."""
    try:
        fields = unsealed(json.loads(line))
        choice, values = fields["choice"], fields["values"]
        return {as_choice(choice): np.array(values, dtype=float)}
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}


class Scores:
    """Scores of choices, each measured once.

    Args:
        network: is as before after each score.
        images: what it restores, (C, H, W) each.
        groups: of its sites.
        planned: its plan at a window.
        base: the window that the plan of no site names.
        corrections: of statistics; None where no choice has any.
        journal: what is known already, and where to keep more.
        told: called after each measurement.
    """

    def __init__(
        self,
        network: Network,
        images: Sequence[Tensor],
        groups: Sequence[Group],
        planned: Callable[[Size], tlsc.Plan],
        base: Size,
        corrections: Corrections | None = None,
        journal: Journal | None = None,
        told: Callable[[], Any] = lambda: None,
    ) -> None:
        self.network, self.images, self.groups, self.planned, self.told = network, images, groups, planned, told
        self.base, self.corrections, self.journal = base, corrections, journal
        self.known: dict[Choice, Values] = {} if journal is None else journal.known

    def __call__(self, choice: Choice) -> Values:
        """One number for each image, NaN where the network fails in this form."""
        if choice not in self.known:
            values = self._values(choice)
            if self.journal is None:
                self.known[choice] = values
            else:
                self.journal.add(choice, values)
            self.told()
        return self.known[choice]

    def _values(self, choice: Choice) -> Values:
        found = np.full(len(self.images), math.nan)
        try:
            for n, out in self.outputs(choice):
                found[n] = self.value(n, out)
        except (RuntimeError, TLSCError):
            if all(one is None for one in choice):
                raise
            found[:] = math.nan
        return found

    def outputs(self, choice: Choice) -> Iterator[tuple[int, Tensor]]:
        """What the network makes of each image in the form of a choice, and the image's number.

        Where a choice corrects statistics, each half of the images is restored with what was found on the other.
        """
        for numbers, plan in self._forms(choice):
            with self.converted(plan):
                for n in numbers:
                    yield n, self.restored(self.images[n])

    def _forms(self, choice: Choice) -> Iterator[tuple[Sequence[int], tlsc.Plan | None]]:
        """Images, and the plan with which they are restored; None: as trained."""
        if uncorrected(choice) == choice:
            plan = None if all(one is None for one in choice) else self.plan_of(choice)
            yield range(len(self.images)), plan
            return
        assert self.corrections is not None
        one, other = self.corrections.halves
        for own, use in ((one, other), (other, one)):
            yield own, self.corrections.corrected(choice, self.plan_of, use)

    @contextmanager
    def converted(self, plan: tlsc.Plan | None) -> Iterator[None]:
        """The network as a plan has it; None: as trained."""
        if plan is None:
            yield
            return
        with tlsc.converted(self.network.model, plan=plan):
            yield

    def plan_of(self, choice: Choice) -> tlsc.Plan:
        """What a choice does to each site; its corrections are found on all images."""
        if uncorrected(choice) != choice:
            assert self.corrections is not None
            return self.corrections.corrected(choice, self.plan_of)
        return plan_for(self.groups, choice, self.planned, self.base)

    def restored(self, image: Tensor) -> Tensor:
        """What the network makes of an image, (C, H, W)."""
        with torch.no_grad(), self._running(image.shape[1:]):
            out: Tensor = self.network(image[None])[0]
        return out

    def _running(self, size: Sequence[int]) -> AbstractContextManager[None]:
        return in_a_line(
            f"{self.network.name} fails on {size[0]}×{size[1]} pixels",
            "; if it takes multiples of a size only, give --pad-to",
        )

    def value(self, n: int, out: Tensor) -> float:
        """What an output for the ``n``-th image is worth."""
        raise NotImplementedError

    @property
    def least(self) -> float:
        """What a change must gain."""
        raise NotImplementedError


class Pairs(Scores):
    """PSNR in dB of outputs, cut to [0, 1], against ``targets``, (C, H, W) each."""

    targets: Sequence[Tensor]
    least = 0.005

    def value(self, n: int, out: Tensor) -> float:
        """PSNR."""
        if out.shape != self.targets[n].shape:
            given, made, wanted = ("×".join(map(str, x.shape)) for x in (self.images[n], out, self.targets[n]))
            raise ArgumentValueError(
                f"{self.network.name} makes {made} of image {n + 1}, {given} (channels, height, width), but its "
                f"target is {wanted}: give --scale if it enlarges, or other targets"
            )
        error = float((out.double().clamp(0, 1) - self.targets[n].double()).square().mean())
        return -10 * math.log10(max(error, 1e-10))


class Energies(Scores):
    """Mismatch energies with a minus: how far outputs are from those on crops."""

    crops: Sequence[Crops]

    def measure_crops(self, size: Size, count: int, seed: int) -> None:
        """Run random crops of every image through the network as trained."""
        step = step_of(self.planned(size))
        rng = np.random.default_rng(seed)
        with torch.no_grad(), self._running(size):
            self.crops = [crops_of(self.network, image, size, count, step, rng) for image in self.images]

    def value(self, n: int, out: Tensor) -> float:
        """Minus the mismatch energy."""
        return -self.crops[n].energy(out)

    @property
    def least(self) -> float:
        """One part in 200 of the mismatch energy of the network as trained."""
        return 0.005 * float(np.nan_to_num(-self((None,) * len(self.groups)).mean()))

    def doubt(self, one: Choice, other: Choice) -> Values:
        """What the difference of two energies may be off by on each image, as in :func:`tlsc.predict`."""
        found = np.zeros(len(self.images))
        before = dict(self.outputs(other))
        for n, out in self.outputs(one):
            moved = float((out.double() - before.pop(n).double()).square().mean())
            found[n] = doubt(moved, self.crops[n].disagreement)
        return found

"""A prediction as data and as a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["NEGLIGIBLE", "Change", "Prediction", "decibels"]

NEGLIGIBLE = 0.005
"""dB that would be printed as 0.00."""


def decibels(change: float, psnr: float) -> float:
    """By how many dB a change of the mean square error, data range 1, raises ``psnr``; the error keeps 1% at least.

    Example:
        >>> round(decibels(-0.5e-3, 30.0), 2)
        3.01
    """
    return -10 * math.log10(max(1 + change / 10 ** (-psnr / 10), 0.01))


@dataclass(frozen=True)
class Change:
    """What converting with one window is predicted to do.

    Attributes:
        base_size: (height, width) of the window at the input, in pixels.
        calibrated: whether the statistics were calibrated on the images.
        energy: E(local), the converted model's mismatch energy.
        change: of the mean square error, E(local) − E(whole), averaged over images; below zero is a gain.
        low, high: its 90% interval.
        per_image: the change on each image.
        moved: mean square difference between the converted model's output and the original's.
    """

    base_size: tuple[int, int]
    calibrated: bool
    energy: float
    change: float
    low: float
    high: float
    per_image: tuple[float, ...]
    moved: float = 0.0

    @property
    def name(self) -> str:
        """``96`` or ``96×128``, with ``calibrated`` behind it."""
        high, wide = self.base_size
        size = f"{high}" if high == wide else f"{high}×{wide}"
        return size + (", calibrated" if self.calibrated else "")


@dataclass(frozen=True)
class Prediction:
    """What converting would change, from unlabelled images; prints as a table with a sentence below it.

    Attributes:
        crop: (height, width) of the training crops in pixels.
        images: number of images that were used.
        crops: number of their crops that were used.
        psnr: in dB, for which changes are given in dB; None if only the mean square error is known.
        whole: E(whole), the original's mismatch energy: its mean square difference between whole images and crops.
        disagreement: between overlapping crops at common pixels; NaN where none overlap.
        changes: one for each window.
        unreliable: why crops are no reference; empty if they are one.
    """

    crop: tuple[int, int]
    images: int
    crops: int
    psnr: float | None
    whole: float
    disagreement: float
    changes: tuple[Change, ...]
    unreliable: str = ""

    @property
    def best(self) -> Change | None:
        """The window of the lowest predicted error, its interval below zero; None: leave the model as it is."""
        good = [one for one in self.changes if one.high < 0 and self._worth(one)]
        return None if self.unreliable else min(good, key=lambda one: one.change, default=None)

    def _worth(self, one: Change) -> bool:
        return self.psnr is None or decibels(one.change, self.psnr) >= NEGLIGIBLE

    @property
    def sentence(self) -> str:
        """What to do, by how much it helps and how sure that is."""
        if self.unreliable:
            return (
                f"No prediction: {self.unreliable}. Leave the model as it is, or compare with 'tlsc eval' on pairs."
            )
        if not self.changes:
            return "No prediction: there is nothing to convert."
        best = self.best
        if best is None:
            top = min(self.changes, key=lambda one: one.change)
            verb = "loses" if top.low > 0 else "is not shown to gain"
            said = f"Leave the model as it is: converting {verb} (at {top.name}: {self._amount(top)})."
            tried = top.low <= 0 or any(one.calibrated for one in self.changes)
            return said if tried else f"{said} Corrected statistics may not: try calibrate=True (--calibrate)."
        lost = sum(change > 0 for change in best.per_image)
        said = f"Convert at {best.name}: about {self._amount(best)}"
        return said + (f"; on {lost} of {self.images} images it may lose." if lost else ".")

    def _amount(self, one: Change) -> str:
        if self.psnr is None:
            return f"{one.change:+.2g} of mean square error [{one.low:+.2g}, {one.high:+.2g}]"
        gain, low, high = (decibels(x, self.psnr) + 0.0 for x in (one.change, one.high, one.low))
        return f"{gain:+.2f} dB [{low:+.2f}, {high:+.2f}] at {self.psnr:g} dB"

    def as_dict(self) -> dict[str, Any]:
        """Plain Python data, ready for JSON."""
        best = self.best
        found = {**asdict(self), "best": None if best is None else best.name, "sentence": self.sentence}
        if math.isnan(self.disagreement):
            found["disagreement"] = None
        if self.psnr is not None:
            for row, one in zip(found["changes"], self.changes, strict=True):
                row["db"] = [decibels(x, self.psnr) for x in (one.change, one.high, one.low)]
        return found

    def __str__(self) -> str:
        from tabulate import tabulate

        high, wide = self.crop
        head = f"{self.crops} crops of {high}×{wide} from {self.images} image{'s' if self.images > 1 else ''}"
        head += f"; mismatch energy of the model as it is: {self.whole:.3g}"
        rows = [(one.name, f"{one.energy:.3g}", self._amount(one)) for one in self.changes]
        table = str(tabulate(rows, headers=["window", "energy", "change [90%]"], disable_numparse=True))
        return "\n".join([head, "", *(line.rstrip() for line in table.splitlines()), "", self.sentence])

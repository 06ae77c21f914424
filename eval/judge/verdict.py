"""Which way to run the network is best, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tlsc.eval.judge.intervals import CONFIDENCE, FEWEST, images_to_settle, interval
from tlsc.eval.run.cells import ORIGINAL, Cell
from tlsc.eval.run.records import Record

__all__ = ["NEGLIGIBLE", "Change", "Summary", "Verdict", "change", "judge", "summarise"]

NEGLIGIBLE = 0.005
"""Gains in dB that would be printed as 0.00 are not worth a recommendation."""


@dataclass(frozen=True)
class Summary:
    """The figures of a cell over the images that all cells restored.

    Attributes:
        cell: which one.
        images: how many.
        psnr: mean in dB of the finite ones; NaN without any.
        identical: images with infinite PSNR, not in ``psnr``.
        ssim: mean of those that have one.
        lpips: mean, None where it was not asked for.
        seconds: median per megapixel of input.
        peak: largest peak memory in bytes.
        failed: images that this cell could not restore, of all.
        mismatch, disparity: means in units of the result, None where there are none: see
            :mod:`tlsc.eval.judge.seams`.
    """

    cell: Cell
    images: int
    psnr: float
    identical: int
    ssim: float
    lpips: float | None
    seconds: float | None
    peak: int | None
    failed: int
    mismatch: float | None = None
    disparity: float | None = None

    @property
    def shown_psnr(self) -> str:
        """The mean, and how many images it leaves out because they are identical to their targets."""
        mean = "–" if math.isnan(self.psnr) else f"{self.psnr:.2f}"
        return f"{mean} (+{self.identical} identical: inf)" if self.identical else mean


@dataclass(frozen=True)
class Change:
    """PSNR of a cell minus another's, image by image, in dB.

    Attributes:
        mean: over the images where it is finite; 0 where both restored an image exactly.
        low, high: bounds of the interval of the mean; NaN with fewer than four images.
        images: how many the mean is over.
        infinite: images that exactly one of the two restored exactly, not in ``mean``.
    """

    mean: float
    low: float
    high: float
    images: int
    infinite: int = 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            noun = "image" if self.images == 1 else "images"
            return f"{_signed(self.mean)} dB (no interval: {self.images} {noun})"
        return f"{_signed(self.mean)} dB [{_signed(self.low)}, {_signed(self.high)}]"

    @property
    def gains(self) -> bool:
        """Whether the interval is above zero, and the mean worth mentioning."""
        return self.low > 0 and self.mean >= NEGLIGIBLE

    @property
    def loses(self) -> bool:
        """Whether the interval is below zero, and the mean worth mentioning."""
        return self.high < 0 and self.mean <= -NEGLIGIBLE


def _signed(value: float) -> str:
    """With its sign and two decimals; never minus zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        best: the cell with the highest mean, the baseline if none gains.
        baseline: what the others are compared with: the network as trained, on whole images where it could run.
        changes: of every other cell against the baseline.
        recommendation: one sentence.
        interval: what the intervals are, in words.
        remarks: further sentences, each for itself.
        gain_table: per-image changes by cell, in the order of ``images``.
        images: that all cells restored.
    """

    best: Cell
    baseline: Cell
    changes: dict[Cell, Change]
    recommendation: str
    interval: str
    remarks: tuple[str, ...]
    images: tuple[str, ...]
    gain_table: dict[Cell, tuple[float, ...]] = field(repr=False, default_factory=dict)


def _differences(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    both = np.isinf(one) & np.isinf(other)
    with np.errstate(invalid="ignore"):
        return np.where(both, 0.0, one - other)


def change(one: Sequence[float], other: Sequence[float], confidence: float = CONFIDENCE) -> Change:
    """PSNR ``one`` minus ``other``, of the same images.

    Example:
        >>> change([30.0, 31.0, float("inf")], [29.0, 30.0, float("inf")]).mean
        0.6666666666666666
    """
    differences = _differences(np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64))
    finite = differences[np.isfinite(differences)]
    mean = float(finite.mean()) if finite.size else math.nan
    low, high = interval([float(value) for value in finite], confidence)
    return Change(mean, low, high, int(finite.size), int(differences.size - finite.size))


def _by_cell(cells: Sequence[Cell], records: Sequence[Record]) -> dict[Cell, dict[str, Record]]:
    names = {str(cell): cell for cell in cells}
    table: dict[Cell, dict[str, Record]] = {cell: {} for cell in cells}
    for record in records:
        table[names[record.cell]][record.image] = record
    return table


def _comparable(table: dict[Cell, dict[str, Record]]) -> tuple[list[Cell], list[str]]:
    """Cells that restored at least half of the images, and the images that all of these restored."""
    goods = {cell: {name for name, record in own.items() if record.good} for cell, own in table.items()}
    cells = [cell for cell, own in table.items() if own and 2 * len(goods[cell]) >= len(own) and goods[cell]]
    if not cells:
        return [], []
    common = set.intersection(*(goods[cell] for cell in cells))
    return cells, [name for name in table[cells[0]] if name in common]


def _is_original(cell: Cell, own: dict[str, Record]) -> bool:
    """Whether nothing was converted on any image, because all patches fit the window."""
    return cell.base_size is not None and all(r.status == "as original" for r in own.values() if r.good)


def _as_original(cells: Sequence[Cell], table: dict[Cell, dict[str, Record]]) -> bool:
    """Whether a converted way was the original, because no image is larger than its window."""
    return any(_is_original(cell, table[cell]) for cell in cells)


def summarise(cells: Sequence[Cell], records: Sequence[Record]) -> list[Summary]:
    """A summary for each cell, over the images that all comparable cells restored."""
    table = _by_cell(cells, records)
    comparable, images = _comparable(table)
    return [_summary(cell, table[cell], images if cell in comparable else []) for cell in cells]


def _summary(cell: Cell, own: dict[str, Record], images: list[str]) -> Summary:
    chosen = [own[name] for name in images]
    psnrs = [record.psnr for record in chosen if math.isfinite(record.psnr)]
    ssims = [record.ssim for record in chosen if not math.isnan(record.ssim)]
    times = [r.seconds / r.megapixels for r in own.values() if r.seconds is not None and r.megapixels]
    peaks = [record.peak for record in own.values() if record.peak is not None]
    return Summary(
        cell,
        len(chosen),
        float(np.mean(psnrs)) if psnrs else math.nan,
        sum(math.isinf(record.psnr) for record in chosen),
        float(np.mean(ssims)) if ssims else math.nan,
        _mean([record.lpips for record in chosen]),
        float(np.median(times)) if times else None,
        max(peaks, default=None),
        sum(record.status == "failed" for record in own.values()),
        _mean([record.mismatch for record in chosen]),
        _mean([record.disparity for record in chosen]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def judge(cells: Sequence[Cell], records: Sequence[Record], remarks: Sequence[str] = ()) -> Verdict:
    """Compare all cells with the network as trained on whole images.

    A cell is better if the interval of its mean gain per image is above zero. The intervals hold for all
    cells at once (Bonferroni), because the best of many is picked.

    Args:
        cells: what was run.
        records: of all cells and images.
        remarks: to go with the verdict.
    """
    table = _by_cell(cells, records)
    comparable, images = _comparable(table)
    said = [*remarks, *_failed(cells, comparable, table)]
    if not comparable:
        return Verdict(ORIGINAL, ORIGINAL, {}, "No verdict: no image was restored.", "", tuple(said), ())
    said += _left_out(len(table[comparable[0]]) - len(images))
    baseline = next((cell for cell in comparable if cell == ORIGINAL), comparable[0])
    if baseline != ORIGINAL:
        said.append(f"compared with {baseline}, as whole images were not restored by the network as trained")
    psnrs = {cell: [table[cell][name].psnr for name in images] for cell in comparable}
    others = [cell for cell in comparable if cell != baseline and not _is_original(cell, table[cell])]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    changes = {cell: change(psnrs[cell], psnrs[baseline], confidence) for cell in others}
    gains = {
        cell: tuple(float(v) for v in _differences(np.array(psnrs[cell]), np.array(psnrs[baseline])))
        for cell in others
    }
    words = f"{CONFIDENCE:.0%} interval of the mean over {len(images)} images" + (
        f", for {len(others)} comparisons at once (Bonferroni)" if len(others) > 1 else ""
    )
    best, recommendation, more = _recommend(baseline, changes, psnrs, confidence, len(images))
    if not others and _as_original(comparable, table):
        recommendation = (
            "Converting cannot change anything here: no image is larger than the window. Compare on larger "
            "images or with smaller windows."
        )
    more = [*more, *_settling(changes, gains, confidence)]
    if any(found.infinite for found in changes.values()):
        said.append(
            "images that only one of two ways restored exactly have an infinite gain and are left out of its mean"
        )
    return Verdict(best, baseline, changes, recommendation, words, (*more, *said), tuple(images), gains)


def _left_out(count: int) -> list[str]:
    if not count:
        return []
    noun = "1 image is" if count == 1 else f"{count} images are"
    return [f"{noun} left out of means and verdict: not every way could restore them"]


def _settling(changes: dict[Cell, Change], gains: dict[Cell, tuple[float, ...]], confidence: float) -> list[str]:
    """How many images would tell whether the best other way gains or loses, where these do not."""
    known = [cell for cell in changes if changes[cell].images > 1]
    if not known:
        return []
    top = max(known, key=lambda cell: changes[cell].mean)
    found = changes[top]
    if found.gains or found.loses or abs(found.mean) < NEGLIGIBLE:
        return []
    needed = images_to_settle([gain for gain in gains[top] if math.isfinite(gain)], confidence)
    if needed is None or needed <= found.images:
        return []
    return [f"about {needed} images like these {found.images} would settle whether {top} gains or loses"]


def _failed(cells: Sequence[Cell], comparable: Sequence[Cell], table: dict[Cell, dict[str, Record]]) -> list[str]:
    """What is not compared, and why."""
    out = []
    for cell in cells:
        if cell not in comparable:
            failed = sum(not record.good for record in table[cell].values())
            out.append(f"{cell}: not compared, because it failed on {failed} of {len(table[cell])} images")
    return out


def _recommend(
    baseline: Cell, changes: dict[Cell, Change], psnrs: dict[Cell, list[float]], confidence: float, images: int
) -> tuple[Cell, str, list[str]]:
    keep = "Leave the network as it is" + (", on whole images" if baseline == ORIGINAL else f" ({baseline})")
    ranked = sorted(
        changes, key=lambda cell: changes[cell].mean if changes[cell].images else -math.inf, reverse=True
    )
    if not ranked:
        return baseline, f"{keep}: there was nothing to compare it with.", []
    if images < FEWEST:
        top = changes[ranked[0]]
        best = ranked[0] if top.mean > NEGLIGIBLE else baseline
        few = "one image says nothing" if images == 1 else f"{images} images say little"
        return (
            best,
            f"No verdict from {images} image{'s' if images > 1 else ''}: best is {best}, but {few} "
            f"about others ({ranked[0]}: {top.mean:+.2f} dB).",
            [],
        )
    best = ranked[0]
    converted = next((cell for cell in ranked if cell.base_size is not None), None)
    if not changes[best].gains:
        return baseline, _nothing_better(keep, best, changes, converted), []
    if best.base_size is None:
        return best, *_tiles_win(best, converted, changes, psnrs, confidence)
    return best, *_converting_wins(best, ranked, changes, psnrs, confidence)


def _nothing_better(keep: str, best: Cell, changes: dict[Cell, Change], converted: Cell | None) -> str:
    top = changes[best]
    if top.loses:
        said = f"{keep}: every other way is worse, the best of them ({best}) by {top}"
    elif top.low <= 0 <= top.high:
        said = f"{keep}: no difference is shown; the interval of the best other way ({best}) spans zero: {top}"
    else:
        said = f"{keep}: no difference worth having, the best other way ({best}) changes PSNR by less than 0.005 dB"
    if converted is not None and converted != best and changes[converted].loses:
        said += f"; converting hurts ({converted}: {changes[converted]})"
    return said + "."


def _tiles_win(
    best: Cell,
    converted: Cell | None,
    changes: dict[Cell, Change],
    psnrs: dict[Cell, list[float]],
    confidence: float,
) -> tuple[str, list[str]]:
    how = f"tile at {best.patch_size} " + (f"with overlap {best.overlap}" if best.overlap else "without overlap")
    if converted is None:
        return f"{how.capitalize()}: {changes[best]} over the network as trained.", []
    own = changes[converted]
    lead = change(psnrs[best], psnrs[converted], confidence)
    said = f"Do not convert; {how}: {changes[best]} over the network as trained"
    said += f", compared with {own} for {converted}."
    if not lead.gains:
        said = (
            f"{how.capitalize()}: {changes[best]} over the network as trained; converting ({converted}: {own}) is "
            f"not shown to be worse, the interval of the difference spans zero: {lead}."
        )
    return said, []


def _converting_wins(
    best: Cell,
    ranked: list[Cell],
    changes: dict[Cell, Change],
    psnrs: dict[Cell, list[float]],
    confidence: float,
) -> tuple[str, list[str]]:
    size = best.base_size
    arguments = f"base_size={size}" + (f", stride={best.stride}" if best.stride > 1 else "")
    arguments += f", source='{best.source}'" if best.source != "window" else ""
    arguments = f"plan={best.plan}" if best.plan is not None else arguments
    said = f"Convert with {arguments}" + (" and calibrate" if best.calibrated else "")
    if best.patch_size is not None:
        said += f" and tile at {best.patch_size} with overlap {best.overlap}"
    said += f": {changes[best]} over the network as trained"
    more = []
    tiles = next((cell for cell in ranked if cell.base_size is None), None)
    if tiles is not None:
        lead = change(psnrs[best], psnrs[tiles], confidence)
        said += f", compared with {changes[tiles]} for {tiles}"
        if not lead.gains:
            more.append(f"{tiles} is not shown to be worse: the interval of the difference spans zero, {lead}")
    second = next((cell for cell in ranked[1:] if cell.base_size is not None and cell.patch_size is None), None)
    if second is not None:
        lead = change(psnrs[best], psnrs[second], confidence)
        if not lead.gains:
            more.append(f"{second} is not shown to be worse: the interval of the difference spans zero, {lead}")
    return said + ".", more

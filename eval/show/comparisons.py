"""Pictures of the images on which two ways to run a network differ most, restored once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlsc.eval.data.datasets import ImagePair
from tlsc.eval.images import Pixels, as_float, with_channels
from tlsc.eval.judge.verdict import Verdict
from tlsc.eval.run.cells import ORIGINAL, Cell, as_cell
from tlsc.eval.run.runner import Job, restored
from tlsc.eval.show.outputs import Outcome
from tlsc.eval.show.pictures import Row, busiest, draw_comparison, error_map
from tlsc.eval.show.seams import SeamMap, plain_tiles, seam_map

__all__ = ["Comparison", "compare", "draw", "shown_cells"]

_IMAGES = 3
_LARGEST = 16e6
"""Pixels; larger images are not restored again as a whole."""
_SIDE, _VIEW = 320, 1024

Picture = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """One image in several states, whole and cut to where two of them differ most.

    Attributes:
        image: its name.
        crops: (height, width, 3) in [0, 1] by caption: input, each way to run the network with its PSNR, target,
            and how far each result is from that.
        views: the same, larger, without the errors.
        whole: the same as ``crops`` of the whole image, made smaller where that is large.
        place: left, top, width and height of the crops in pixels of the target.
        before, after: captions of the two that differ most.
        seams: where plain tiles meet, if they were compared.
    """

    image: str
    crops: dict[str, Picture]
    views: dict[str, Picture]
    whole: dict[str, Picture]
    place: tuple[int, int, int, int]
    before: str
    after: str
    seams: SeamMap | None = None


def shown_cells(verdict: Verdict) -> list[Cell]:
    """What a reader wants to see next to the baseline: the best, then the best converted, the best in tiles."""
    ranked = sorted(
        (cell for cell, found in verdict.changes.items() if found.images),
        key=lambda cell: verdict.changes[cell].mean,
        reverse=True,
    )
    chosen = [
        *ranked[:1],
        *[cell for cell in ranked if cell.base_size is not None and cell.patch_size is None][:1],
        *[cell for cell in ranked if cell.base_size is None and cell.patch_size is not None][:1],
    ]
    return list(dict.fromkeys(chosen))


def compare(job: Job, outcome: Outcome) -> list[Comparison]:
    """The images whose PSNR differs most between the baseline and the first of :func:`shown_cells`.

    An image that cannot be restored again is left out.
    """
    verdict = outcome.verdict
    cells = shown_cells(verdict)
    if not cells:
        return []
    gains = verdict.gain_table[cells[0]]
    by_size = {pair.name: pair for pair in job.data.pairs}
    order = sorted(range(len(gains)), key=lambda i: -abs(gains[i]) if math.isfinite(gains[i]) else 0.0)
    names = [verdict.images[i] for i in order]
    chosen = [n for n in names if (size := by_size[n].size) is not None and math.prod(size) <= _LARGEST][:_IMAGES]
    results: dict[str, dict[Cell, Picture]] = {name: {} for name in chosen}
    tiles = plain_tiles(outcome.cells) if verdict.baseline == ORIGINAL else None
    for cell in dict.fromkeys((verdict.baseline, *cells, *([] if tiles is None else [tiles]))):
        try:
            with as_cell(job.network, cell, job.images, again=True):
                for name in chosen:
                    given, _ = job.data.load(by_size[name])
                    results[name][cell] = np.concatenate(list(restored(job.network, cell, given)))
        except Exception:  # it worked before: perhaps there is less memory now. A picture less.
            continue
    psnrs = {(record.cell, record.image): record.psnr for record in outcome.records}
    found = []
    for name, own in results.items():
        if verdict.baseline in own and cells[0] in own:
            seams = _seams(name, own, tiles, verdict.baseline)
            shown = {cell: picture for cell, picture in own.items() if cell in (verdict.baseline, *cells)}
            made = _comparison(job, by_size[name], verdict.baseline, cells[0], shown, psnrs)
            found.append(replace(made, seams=seams))
    return found


def _seams(name: str, own: dict[Cell, Picture], tiles: Cell | None, baseline: Cell) -> SeamMap | None:
    """Where plain tiles differ from the whole image; None where there are none."""
    if tiles is None or tiles not in own:
        return None
    return seam_map(name, tiles, own[tiles], own[baseline])


def _comparison(
    job: Job,
    pair: ImagePair,
    baseline: Cell,
    best: Cell,
    own: dict[Cell, Picture],
    psnrs: dict[tuple[str, str], float],
) -> Comparison:
    given, target = job.data.load(pair)
    states = {"input": _shown(given, target.shape)}
    names = {}
    for cell, picture in own.items():
        psnr = psnrs[str(cell), pair.name]
        names[cell] = f"{cell}: {psnr:.2f} dB"
        states[names[cell]] = _shown(picture, target.shape)
    states["target"] = _shown(target, target.shape)
    height, width = target.shape[:2]
    difference = np.abs(states[names[baseline]] - states[names[best]]).mean(-1)
    side = min(_SIDE, height, width)
    top, left = busiest(difference, side)
    crops = {name: picture[top : top + side, left : left + side] for name, picture in states.items()}
    high, wide = min(_VIEW, height), min(_VIEW, width)
    y = min(max(0, top + side // 2 - high // 2), height - high)
    x = min(max(0, left + side // 2 - wide // 2), width - wide)
    views = {name: picture[y : y + high, x : x + wide] for name, picture in states.items()}
    whole = {name: _smaller(picture) for name, picture in states.items()}
    for part in (crops, whole):
        part |= {f"error of {name}": error_map(part[name], part["target"]) for name in names.values()}
    return Comparison(pair.name, crops, views, whole, (left, top, side, side), names[baseline], names[best])


def _smaller(picture: Picture) -> Picture:
    """Each side at most :data:`_VIEW`; a pixel is the mean of a square of them."""
    factor = -(-max(picture.shape[:2]) // _VIEW)
    height, width = (side // factor for side in picture.shape[:2])
    squares = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(squares.mean((1, 3)), dtype=np.float32)


def _shown(pixels: Pixels, shape: Sequence[int]) -> Picture:
    """As a picture of the target's size, in colour, in [0, 1]."""
    picture = np.clip(as_float(with_channels(pixels, 3)), 0, 1)
    factor = shape[0] // picture.shape[0]
    if factor > 1:
        picture = picture.repeat(factor, 0).repeat(factor, 1)
    return np.asarray(picture[: shape[0], : shape[1]], dtype=np.float32)


def draw(path: Path, comparisons: Sequence[Comparison]) -> None:
    """All comparisons in one picture: views, and crops under them."""
    rows = []
    for found in comparisons:
        order = ["input", found.before, found.after]
        pictures = {name: found.views[name] for name in [*order, *(n for n in found.views if n not in order)]}
        captions = {name.replace(", ", "\n").replace(": ", "\n"): picture for name, picture in pictures.items()}
        rows.append(Row(found.image, captions))
    draw_comparison(path, rows)

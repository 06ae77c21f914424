"""Where tiles meet, in words and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlsc.eval.judge.verdict import Summary
from tlsc.eval.run.cells import Cell
from tlsc.eval.show.pictures import errors

__all__ = ["SeamMap", "plain_tiles", "seam_map", "sentences"]

_SHOWN = 640
"""The longer side of the picture, in pixels at most."""


@dataclass(frozen=True)
class SeamMap:
    """How far an image's result in plain tiles is from the same network's on the whole image.

    Attributes:
        image: its name.
        cell: the tiles.
        picture: (height, width) in [0, 1]; 1 is ``brightest``, and more.
        brightest: in units of the result: the 99th percentile.
    """

    image: str
    cell: Cell
    picture: NDArray[np.float32]
    brightest: float


def plain_tiles(cells: Sequence[Cell]) -> Cell | None:
    """The tiles without overlap of the network as trained, if they are among the cells."""
    return next((cell for cell in cells if cell.base_size is None and cell.patch_size and not cell.overlap), None)


def seam_map(image: str, cell: Cell, tiles: NDArray[np.float32], whole: NDArray[np.float32]) -> SeamMap:
    """A picture of the differences; each of its pixels is the largest of a square of the image's."""
    apart = errors(tiles, whole)
    factor = -(-max(apart.shape) // _SHOWN)
    height, width = (n // factor for n in apart.shape)
    squares = apart[: height * factor, : width * factor].reshape(height, factor, width, factor)
    brightest = max(float(np.quantile(apart, 0.99)), 1e-6)
    return SeamMap(image, cell, np.asarray((squares.max((1, 3)) / brightest).clip(0, 1), np.float32), brightest)


def sentences(summaries: Sequence[Summary]) -> list[str]:
    """What the two indicators say of the ways that were compared: a sentence each, none where there is none."""
    found = []
    tiles = [own for own in summaries if own.mismatch is not None]
    if tiles:
        worst = max(tiles, key=lambda own: own.mismatch or 0.0)
        found.append(
            "Tile mismatch: where neighbouring tiles both have a result, they differ by "
            f"{255 * (worst.mismatch or 0):.2g}/255 in the mean ({worst.cell}); whole images have no seams."
        )
    whole = [own for own in summaries if own.disparity is not None and own.cell.patch_size is None]
    if whole:
        listed = ", ".join(f"{255 * (own.disparity or 0):.2g}/255 ({own.cell.variant})" for own in whole)
        found.append(
            "Train/eval disparity: a training crop's result changes, as part of a whole image, by "
            f"{listed} in the mean."
        )
    return found

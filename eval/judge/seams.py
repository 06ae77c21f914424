"""Two indicators that need no ground truth, after Buglakova et al., ICCV 2025: tile mismatch, train/eval disparity.

How far tiles disagree where they meet, and how far a training crop's result moves when the crop is part of a larger
image. Both are zero for a network that sees the same wherever an image is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlsc.errors import ArgumentValueError

__all__ = ["Disparity", "tile_mismatch"]

_SIDE = 2
"""Crops along each axis of an image."""

Region = tuple[slice, slice]


def tile_mismatch(model: Callable[[Tensor], Tensor], image: Tensor, size: int, overlap: int) -> float:
    """Mean distance of neighbouring tiles' results where both have one, along the middle row of an image's tiles.

    Args:
        model: maps (1, C, H, W) to (1, C, s·H, s·W) with a fixed integer s.
        image: (1, C, H, W), at least ``size`` high.
        size: side of a tile in pixels.
        overlap: pixels that neighbours share, at least 1 and less than ``size``.

    Returns:
        The mean of |left − right|, in the units of the result; 0 where a tile is as wide as the image.

    Raises:
        ArgumentValueError: the overlap cannot be used, or the image is lower than a tile.

    Example:
        >>> ramp = torch.arange(12.0).expand(1, 1, 8, 12)
        >>> tile_mismatch(lambda tile: tile - tile.mean(), ramp, size=8, overlap=4)  # each takes its own mean off
        4.0
        >>> tile_mismatch(lambda tile: 2 * tile, ramp, size=8, overlap=4)
        0.0
    """
    height, width = image.shape[2:]
    if not 0 < overlap < size:
        raise ArgumentValueError(f"overlap must be at least 1 and less than the tiles' size {size}, got {overlap}")
    if height < size:
        raise ArgumentValueError(f"the image is {height} pixels high, lower than a tile of {size}")
    top = (height - size) // 2
    lefts = range(0, max(width - size, 0) + 1, size - overlap)
    with torch.no_grad():
        tiles = [model(image[..., top : top + size, left : left + size]) for left in lefts]
    shared = overlap * tiles[0].shape[-1] // min(size, width)
    apart = [(a[..., -shared:] - b[..., :shared]).abs().mean() for a, b in pairwise(tiles)]
    return float(torch.stack(apart).mean()) if apart else 0.0


class Disparity:
    """How far the results of training-size crops move when they are part of a larger image: train/eval disparity.

    Four crops, around the middles of the image's quarters, are restored by themselves; of their results the middle
    half along each axis is compared with the same place in the image's, so that what a crop lacks at its borders
    counts little.

    Args:
        height, width: of the image.
        size: side of the training crops.

    Example:
        >>> image = np.arange(96, dtype=np.float32).reshape(8, 12, 1)
        >>> found = Disparity(8, 12, size=4)
        >>> found.add(image - image.mean())  # a network that takes the mean off
        >>> found.value(lambda crop: crop - crop.mean(), lambda top, left: image[top : top + 4, left : left + 4])
        24.0
    """

    def __init__(self, height: int, width: int, size: int) -> None:
        self.size = size
        self._image = height, width
        self._done = 0
        self._kept: dict[tuple[int, int], list[NDArray[np.float32]]] = {place: [] for place in self.places}

    @property
    def places(self) -> list[tuple[int, int]]:
        """(top, left) of each crop."""
        tops, lefts = (
            [
                min(max(0, (2 * k + 1) * n // (2 * _SIDE) - self.size // 2), max(0, n - self.size))
                for k in range(_SIDE)
            ]
            for n in self._image
        )
        return list(dict.fromkeys((top, left) for top in tops for left in lefts))

    def _middle(self, place: tuple[int, int], scale: int) -> Region:
        """Rows and columns of the image's result that are compared."""
        spans = [min(self.size, n) for n in self._image]
        starts = [scale * (at + span // 4) for at, span in zip(place, spans, strict=True)]
        rows, columns = (
            slice(start, start + scale * max(1, span // 2)) for start, span in zip(starts, spans, strict=True)
        )
        return rows, columns

    def add(self, rows: NDArray[np.float32]) -> None:
        """The next rows of the image's result, (rows, width, channels), from the top."""
        scale = rows.shape[1] // self._image[1]
        for place, kept in self._kept.items():
            wanted, columns = self._middle(place, scale)
            part = rows[max(0, wanted.start - self._done) : max(0, wanted.stop - self._done), columns]
            if len(part):
                kept.append(part)
        self._done += len(rows)

    def value(
        self,
        restored: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        crop: Callable[[int, int], NDArray[np.float32]],
    ) -> float:
        """The mean of the absolute differences, in units of the result; 0 where the image is no larger than a crop.

        Args:
            restored: the network on a crop, (rows, columns, channels) to the same of its result.
            crop: the crop at a (top, left) of the image.
        """
        if all(n <= self.size for n in self._image):
            return 0.0
        distances = []
        for (top, left), kept in self._kept.items():
            part = crop(top, left)
            result = restored(part)
            scale = result.shape[0] // part.shape[0]
            rows, columns = self._middle((top, left), scale)
            rows, columns = (
                slice(one.start - scale * at, one.stop - scale * at) for one, at in ((rows, top), (columns, left))
            )
            distances.append(np.abs(np.concatenate(kept) - result[rows, columns]).mean(dtype=np.float64))
        return float(np.mean(distances))

"""Decoded samples that stay on disk, read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head
from tlsc.eval.images.picture import Pixels

__all__ = ["Stored", "turned"]

# Bytes that are looked at together where all of them have to be.
_STRIP = 1 << 24


class Stored:
    """Samples in a file, upright.

    Attributes:
        dtype: of the samples, in the file's byte order.
        alpha: whether there is alpha beside the colours.
        height, width: of the upright picture, in pixels.

    Args:
        file: that holds them.
        dtype: of the samples.
        offset: of the first, in bytes.
        shape: (height, width, channels + alpha), before the picture is turned.
        head: of the picture.
    """

    def __init__(self, file: BinaryIO, dtype: Any, offset: int, shape: tuple[int, int, int], head: Head) -> None:
        self.dtype: Any = np.dtype(dtype)
        self.alpha = head.alpha
        self._file, self._offset, self._shape, self._turn = file, offset, shape, head.orientation
        self.height, self.width = shape[:2] if head.orientation < 5 else shape[1::-1]

    def cut(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        """A part as stored, (bottom − top, right − left, channels), without alpha."""
        part = self._part(top, bottom, left, right)
        return part[..., :-1] if self.alpha else part

    def range(self) -> tuple[float, float]:
        """The smallest and the largest value; NaN where one is."""
        low, high = [], []
        for part in self._strips():
            low.append(float(part.min()))
            high.append(float(part.max()))
        return float(np.min(low)), float(np.max(high))

    def is_opaque(self) -> bool:
        """Whether alpha is 1 everywhere, or not there."""
        white = 1.0 if self.dtype.kind == "f" else np.iinfo(self.dtype).max
        return not self.alpha or all(bool((part[..., -1] == white).all()) for part in self._strips())

    def _strips(self) -> Iterator[Pixels]:
        rows = max(1, _STRIP // (self.width * self._shape[2] * self.dtype.itemsize))
        for top in range(0, self.height, rows):
            yield self._part(top, min(top + rows, self.height), 0, self.width)

    def _part(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        # Mapped anew each time: pages of a map that stays would count as the process's memory for ever.
        whole = np.memmap(self._file, self.dtype, "r", self._offset, self._shape)
        part: Pixels = np.array(
            turned(whole, self._turn)[top:bottom, left:right], dtype=self.dtype.newbyteorder("=")
        )
        return part


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Upright, from what EXIF says the camera's first row and column are; a view."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels

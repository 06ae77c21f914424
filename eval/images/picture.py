"""A picture as numbers, and what can be done to the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlsc.errors import TLSCError

__all__ = [
    "ImageError",
    "Metadata",
    "Picture",
    "Pixels",
    "UnreadableError",
    "as_float",
    "quantised",
    "with_channels",
]

Pixels = NDArray[Any]
"""(height, width, channels), channels 1 or 3; uint8, uint16, or float32 in [0, 1]. May be a memory map."""

_LUMA = (0.299, 0.587, 0.114)


class ImageError(TLSCError, OSError, ValueError):
    """A file cannot be used as an image, or an image not be written to a file.

    The message is one line: the file, what it is, and the way out.

    Attributes:
        path: the file.
        reason: the message without the file.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        self.reason, self.path = reason, path
        super().__init__(reason if path is None else f"{path}: {reason}")


UnreadableError = ImageError


@dataclass(frozen=True)
class Metadata:
    """What a file says about a picture beside its samples; kept where the output's format can hold it.

    Attributes:
        profile: the ICC profile that says which colours the numbers mean.
        exif: camera data as a TIFF structure, without the six bytes ``Exif\\0\\0``; says "upright".
        xmp: an XMP packet; says "upright".
        resolution: pixels per inch along a row and along a column of the upright picture.
    """

    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """An image as numbers.

    Attributes:
        pixels: (height, width, channels) in [0, 1], one channel or RGB; not multiplied by ``alpha``.
        alpha: (height, width) in [0, 1], or None.
        bits: per channel in the file, 8 or 16; 32 for floating point.
        profile: the ICC profile that says which colours the numbers mean, or None.
        metadata: what else the file says; the profile in it is not looked at.
    """

    pixels: NDArray[np.float32]
    alpha: NDArray[np.float32] | None = None
    bits: int = 8
    profile: bytes | None = None
    metadata: Metadata = field(default=Metadata())


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """``pixels`` with 1 or 3 channels: grey is repeated (a view), colour becomes luma (ITU-R BT.601), rounded.

    Example:
        >>> with_channels(np.full((2, 2, 3), [255, 0, 0], np.uint8), 1)[0, 0]
        array([76], dtype=uint8)
    """
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    luma = pixels @ np.array(_LUMA, dtype=np.float64)
    return (np.rint(luma) if pixels.dtype.kind == "u" else luma).astype(pixels.dtype)[..., None]


def as_float(pixels: Pixels) -> NDArray[np.float32]:
    """Values in [0, 1]: 8 bit divided by 255, 16 bit by 65535, floating point as it is.

    Example:
        >>> as_float(np.array([[[65535]]], np.uint16)).tolist()
        [[[1.0]]]
    """
    if pixels.dtype.kind == "f":
        return np.asarray(pixels, dtype=np.float32)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def quantised(values: NDArray[np.float32], bits: int) -> Pixels:
    """Values in [0, 1] as samples of a file: whole numbers of 8 or 16 bits, or floating point for 32.

    Example:
        >>> quantised(np.array([-1, 0.5, 2], np.float32), 8)
        array([  0, 128, 255], dtype=uint8)
    """
    if bits == 32:
        return np.clip(values, 0, 1).astype(np.float32)
    scaled: NDArray[Any] = np.rint(np.clip(values.astype(np.float64), 0, 1) * (2**bits - 1))
    return scaled.astype(np.uint8 if bits == 8 else np.uint16)

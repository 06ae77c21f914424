"""What every format's reader returns: the head of a file, read before any sample is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.picture import ImageError, Metadata, Pixels

__all__ = ["Head", "read_at", "scaled", "size_of", "straight"]


@dataclass(frozen=True)
class Head:
    """What a file holds.

    Attributes:
        form: the format's name.
        height: of the samples as they are stored, before ``orientation`` is applied.
        width: likewise.
        channels: 1 for grey, 3 for RGB; alpha is not counted.
        alpha: whether there is an alpha channel.
        dtype: uint8, uint16 or float32: of what ``decode`` returns.
        decode: the samples (height, width, channels + alpha), in the order in which they are stored. Alpha is the
            last channel and colours are not multiplied by it. Raises whatever its library raises.
        orientation: where the first row and column belong, as EXIF numbers it.
        metadata: as in the file.
        mapped: the samples as a memory map of the file, in the file's byte order; None where they are packed.
        spool: writes the samples, one after the other, to a file while they are decoded, so that they are never
            all in memory; None where the decoder cannot.
    """

    form: str
    height: int
    width: int
    channels: int
    alpha: bool
    dtype: Any
    decode: Callable[[], Pixels]
    orientation: int = 1
    metadata: Metadata = field(default_factory=Metadata)
    mapped: Callable[[], Pixels] | None = None
    spool: Callable[[BinaryIO], None] | None = None


def size_of(file: BinaryIO) -> int:
    """Bytes in an open file."""
    return os.fstat(file.fileno()).st_size


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """``count`` bytes from ``offset``, fewer at the file's end."""
    file.seek(offset)
    return file.read(count)


def scaled(values: Pixels, most: int) -> Pixels:
    """Whole numbers from 0 to ``most`` as 8 bit, or as 16 where that is not enough; ``most`` becomes white.

    Example:
        >>> scaled(np.array([0, 7, 15], np.uint8), 15), scaled(np.array([4095], np.uint16), 4095)
        (array([  0, 119, 255], dtype=uint8), array([65535], dtype=uint16))
    """
    dtype, white = (np.uint8, 255) if most <= 255 else (np.uint16, 65535)
    if most == white:
        return values.astype(dtype, copy=False)
    if most > white or (values.size and int(values.max()) > most):
        raise ImageError(f"damaged: a sample is larger than {most}, which the file says is white")
    levels: Pixels = np.rint(np.arange(most + 1) * white / most).astype(dtype)
    out: Pixels = levels[values]
    return out


def straight(samples: Pixels) -> Pixels:
    """Samples whose colours are multiplied by alpha, as they are without; nothing is left where alpha is 0.

    Example:
        >>> straight(np.array([[[64, 0, 128, 128]]], np.uint8)).tolist()
        [[[128, 0, 255, 128]]]
    """
    white = 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max)
    out = samples.copy()
    for row, new in zip(samples, out, strict=True):  # in float64, so not all at once
        alpha = row[:, -1:].astype(np.float64) / white
        colours = np.divide(row[:, :-1], alpha, out=np.zeros(row[:, :-1].shape), where=alpha > 0)
        new[:, :-1] = colours if samples.dtype.kind == "f" else np.rint(np.minimum(colours, white))
    return out

"""GIF and BMP by Pillow, and arrays of NumPy."""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head
from tlsc.eval.images.picture import ImageError, Metadata, Pixels

__all__ = ["read_array", "read_bmp", "read_gif"]


def read_gif(file: BinaryIO) -> Head:
    """GIF of one frame. libvips reads over damage in GIFs; Pillow does not."""
    from PIL.GifImagePlugin import GifImageFile

    opened = _quietly(GifImageFile, file)
    if opened.n_frames > 1:
        raise ImageError(f"GIF that holds {opened.n_frames} images: save the one that is meant by itself")
    return _of_pillow("GIF", opened)


def read_bmp(file: BinaryIO) -> Head:
    """Windows bitmaps of every depth."""
    from PIL.BmpImagePlugin import BmpImageFile

    return _of_pillow("BMP", _quietly(BmpImageFile, file))


def _quietly(kind: Any, file: BinaryIO) -> Any:
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not through Image.open, whose limit on pixels is one for the whole process.
        return kind(file)


def _of_pillow(form: str, opened: Any) -> Head:
    alpha = opened.has_transparency_data
    grey = opened.mode in ("1", "L", "LA")
    mode = ("LA" if grey else "RGBA") if alpha else "L" if grey else "RGB"
    width, height = opened.size

    def decode() -> Pixels:
        pixels = np.asarray(opened.convert(mode))
        return pixels if pixels.ndim == 3 else pixels[..., None]

    dots = opened.info.get("dpi")
    metadata = Metadata(resolution=(float(dots[0]), float(dots[1])) if dots and min(dots) > 0 else None)
    return Head(form, height, width, 1 if grey else 3, bool(alpha), np.uint8, decode, 1, metadata)


def read_array(file: BinaryIO) -> Head:
    """An array of shape (height, width[, 1 to 4]) as ``.npy``: whole numbers of 8 or 16 bit, or floating point."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if dtype.hasobject:
        raise ImageError("array of Python objects, which are not loaded: save numbers")
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] > 4):
        raise ImageError(f"array of shape {shape}: not one grey or colour image")
    if not (dtype.kind == "u" and dtype.itemsize <= 2) and not (dtype.kind == "f" and dtype.itemsize <= 8):
        raise ImageError(f"array of type {dtype}: known are whole numbers of 8 or 16 bit without sign, and floats")
    offset, count = file.tell(), 1 if len(shape) == 2 else shape[2]

    def decode() -> Pixels:
        order: Any = "F" if fortran else "C"
        values: Pixels = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)
        values = values.reshape(*shape[:2], count)
        if dtype.kind == "f":
            return values.astype(np.float32, copy=False)
        return values if dtype.isnative else values.astype(dtype.newbyteorder("="))

    alpha = count in (2, 4)
    kind = np.float32 if dtype.kind == "f" else np.uint8 if dtype.itemsize == 1 else np.uint16
    return Head("NumPy array", shape[0], shape[1], count - alpha, alpha, kind, decode)

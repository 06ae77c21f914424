"""Reading images as they are on disk: 8 and 16 bit, grey and colour, without loading what can be memory-mapped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlsc.errors import TLSCError

__all__ = ["EXTENSIONS", "Pixels", "UnreadableError", "as_float", "read_image", "with_channels"]

Pixels = NDArray[Any]
"""(height, width, channels), channels 1 or 3; uint8, uint16, or float32 in [0, 1]. May be a memory map."""

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy"))

_LUMA = (0.299, 0.587, 0.114)


class UnreadableError(TLSCError, OSError):
    """A file is not an image that can be read; the message says what is wrong with it."""


def read_image(path: Path) -> Pixels:
    """The pixels of a file, turned as its EXIF orientation says. Alpha is dropped, palettes are resolved.

    Uncompressed TIFF and ``.npy`` arrays are memory-mapped, so that images larger than memory can be cut into
    tiles.

    Args:
        path: PNG, JPEG, BMP, TIFF, WebP, PPM, PGM or an array of shape (height, width[, 1, 3 or 4]) as ``.npy``.

    Raises:
        UnreadableError: the file is missing, empty, truncated, no image, or of a kind that has no reader here.

    Example:
        >>> from skimage.data import data_dir
        >>> pixels = read_image(Path(data_dir, "coffee.png"))
        >>> pixels.shape, pixels.dtype
        ((400, 600, 3), dtype('uint8'))
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableError("the file is empty")
        suffix = path.suffix.lower()
        if suffix == ".npy":
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        elif suffix in (".tif", ".tiff"):
            pixels = _read_tiff(path)
        else:
            pixels = _read_with_pillow(path)
    except UnreadableError:
        raise
    except MemoryError as error:
        raise UnreadableError(
            "not enough memory to decode it; an uncompressed TIFF is read piece by piece"
        ) from error
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {_line(error)}") from error
    return _checked(pixels)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _read_with_pillow(path: Path) -> Pixels:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # Whoever evaluates on gigapixel images means to.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _no_limit(), Image.open(path) as file:
            if any("16" in str(tile[3]) for tile in file.tile) and file.mode in ("RGB", "RGBA", "LA"):
                return _read_deep_png(path)
            image = ImageOps.exif_transpose(file)
            if image.mode in ("I;16", "I;16L", "I;16B", "I", "F"):
                return _single_channel(np.asarray(image))
            grey = image.mode in ("1", "L", "LA") or (image.mode == "P" and _is_grey(image.getpalette()))
            return np.asarray(image.convert("L" if grey else "RGB"))


class _no_limit:
    """Pillow without its limit on the number of pixels."""

    def __enter__(self) -> None:
        from PIL import Image

        self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None

    def __exit__(self, *_: object) -> None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = self.limit


def _is_grey(palette: list[int] | None) -> bool:
    return palette is not None and palette[0::3] == palette[1::3] == palette[2::3]


def _single_channel(pixels: Pixels) -> Pixels:
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UnreadableError(f"values from {pixels.min()} to {pixels.max()}: not an image of 8 or 16 bit")
    return pixels.astype(np.uint16)


def _read_deep_png(path: Path) -> Pixels:
    """Colour at 16 bit, which Pillow would cut to 8."""
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def _read_tiff(path: Path) -> Pixels:
    import tifffile

    try:
        return np.asarray(tifffile.memmap(path, mode="r"))
    except ValueError:  # compressed
        pass
    try:
        return np.asarray(tifffile.imread(path))
    except ValueError:  # a compression that needs a codec; Pillow has most
        return _read_with_pillow(path)


def _checked(pixels: Pixels) -> Pixels:
    """As (height, width, 1 or 3) of a type that is known."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] > 4:
        raise UnreadableError(f"shape {pixels.shape}: not one grey or colour image")
    pixels = pixels[..., : 1 if pixels.shape[2] <= 2 else 3]
    if pixels.dtype in (np.uint8, np.uint16, np.float32):
        return pixels
    if pixels.dtype == np.float64:
        return pixels.astype(np.float32)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return pixels.astype(np.uint16)  # the other byte order
    raise UnreadableError(f"pixels of type {pixels.dtype}: expected 8 or 16 bit without sign, or float32")


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

"""The one writer of picture files: whole or not at all, with what the format can hold beside the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tlsc.eval.files import replacing
from tlsc.eval.images.encoding import as_little_endian, png_metadata, tiff_start
from tlsc.eval.images.metadata import fitting
from tlsc.eval.images.picture import ImageError, Metadata, Picture, Pixels, quantised

__all__ = ["WRITABLE", "check_writable", "write_picture"]

# Suffix: name, bits per channel, whether alpha can be kept.
WRITABLE: dict[str, tuple[str, tuple[int, ...], bool]] = {
    ".png": ("PNG", (8, 16), True),
    ".tif": ("TIFF", (8, 16, 32), True),
    ".tiff": ("TIFF", (8, 16, 32), True),
    ".webp": ("WebP", (8,), True),
    ".jpg": ("JPEG", (8,), False),
    ".jpeg": ("JPEG", (8,), False),
    ".bmp": ("BMP", (8,), False),
}


def write_picture(path: Path, picture: Picture) -> None:
    """Write an image, whole or not at all; the format is that of the suffix.

    PNG, TIFF, JPEG and WebP keep the colour profile, the camera's EXIF data and XMP; PNG, TIFF, JPEG and BMP the
    resolution. WebP is written without loss.

    Raises:
        ImageError: the format is not known, or cannot hold the image's depth or alpha.
        OSError: the file cannot be written.
    """
    check_writable(path, picture.bits, picture.alpha is not None)
    pixels = quantised(picture.pixels, picture.bits)
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, quantised(picture.alpha, picture.bits)[..., None]], axis=2)
    metadata = fitting(replace(picture.metadata, profile=picture.profile), picture.pixels.shape[2])
    encode: dict[str, Callable[[Pixels, Metadata], bytes]] = {"PNG": _png, "TIFF": _tiff}
    name = WRITABLE[path.suffix.lower()][0]
    data = encode[name](pixels, metadata) if name in encode else _by_pillow(name, pixels, metadata)
    # Encoded before the file is there, so that there is next to no time in which half a file could be left behind.
    with replacing(path) as new:
        new.write_bytes(data)


def check_writable(path: Path, bits: int = 8, alpha: bool = False) -> None:
    """Whether a file of this name can hold such an image.

    Raises:
        ImageError: it cannot.

    Example:
        >>> check_writable(Path("a.jpg"), bits=16)
        Traceback (most recent call last):
        ...
        tlsc.eval.images.picture.ImageError: a.jpg: JPEG holds 8 bits per channel, the image has 16: write PNG, TIFF
    """
    if path.suffix.lower() not in WRITABLE:
        raise ImageError(f"unknown format {path.suffix!r}; there are {', '.join(WRITABLE)}", path)
    name, depths, has_alpha = WRITABLE[path.suffix.lower()]
    if bits not in depths:
        held = " or ".join(map(str, depths))
        has, way = ("floating point", "TIFF") if bits == 32 else (str(bits), "PNG, TIFF")
        raise ImageError(f"{name} holds {held} bits per channel, the image has {has}: write {way}", path)
    if alpha and not has_alpha:
        raise ImageError(f"{name} holds no alpha, the image has some: write PNG, TIFF or WebP", path)


def _flat(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _png(pixels: Pixels, metadata: Metadata) -> bytes:
    import imagecodecs

    png = bytes(imagecodecs.png_encode(_flat(pixels)))
    header = 8 + 25
    return png[:header] + png_metadata(metadata) + png[header:]


def _tiff(pixels: Pixels, metadata: Metadata) -> bytes:
    return tiff_start(pixels.shape, pixels.dtype, metadata) + as_little_endian(pixels).tobytes()


# ---------------------------------------------------------------------------------------------- the others


def _by_pillow(name: str, pixels: Pixels, metadata: Metadata) -> bytes:
    import PIL.Image

    options: dict[str, Any] = {}
    if name in ("JPEG", "WebP"):
        known = {"icc_profile": metadata.profile, "exif": metadata.exif, "xmp": metadata.xmp}
        # A JPEG's segments hold 64 kB.
        most = 65000 if name == "JPEG" else None
        options = {
            key: value
            for key, value in known.items()
            if value is not None and (most is None or key == "icc_profile" or len(value) < most)
        }
        if "exif" in options:
            options["exif"] = b"Exif\0\0" + options["exif"]
    if name in ("JPEG", "BMP") and metadata.resolution is not None:
        options["dpi"] = metadata.resolution
    # Exactly: colours under full transparency are kept.
    if name == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif name == "WebP":
        options |= {"lossless": True, "exact": True}
    file = BytesIO()
    PIL.Image.fromarray(_flat(pixels)).save(file, name, **options)
    return file.getvalue()

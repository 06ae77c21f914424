"""The one writer of picture files: whole or not at all, with what the format can hold beside the samples."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tlsc.eval.files import replacing
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


# ----------------------------------------------------------------------------------------------------- PNG


def _png(pixels: Pixels, metadata: Metadata) -> bytes:
    import imagecodecs

    png = bytes(imagecodecs.png_encode(_flat(pixels)))
    chunks = []
    if metadata.profile is not None:
        chunks.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.profile)))
    if metadata.resolution is not None:
        per_metre = [round(dots / 0.0254) for dots in metadata.resolution]
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if metadata.xmp is not None:
        chunks.append(_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.exif is not None:
        chunks.append(_chunk(b"eXIf", metadata.exif))
    header = 8 + 25
    return png[:header] + b"".join(chunks) + png[header:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---------------------------------------------------------------------------------------------------- TIFF

_LONGEST_CLASSIC = 2**32 - 2**24


def _tiff(pixels: Pixels, metadata: Metadata) -> bytes:
    """Uncompressed; the directory is Pillow's, which can hold a camera's, too."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, samples = pixels.shape
    channels = samples - (samples in (2, 4))
    size = pixels.nbytes
    big = size > _LONGEST_CLASSIC
    rows = max(1, min(height, (1 << 20) // max(1, pixels[0].nbytes)))
    starts = list(range(0, height, rows))
    line = size // height
    directory = ImageFileDirectory_v2(b"II\x2b\0\x08\0\0\0" if big else b"II*\0\x08\0\0\0")
    _add_camera(directory, metadata.exif)
    directory[256], directory[257] = width, height
    directory[258] = (8 * pixels.itemsize,) * samples
    directory[259], directory[262], directory[277], directory[284] = 1, 1 if channels == 1 else 2, samples, 1
    directory[278] = rows
    directory[279] = tuple(min(rows, height - start) * line for start in starts)
    directory[273] = tuple(start * line for start in starts)
    for tag in (273, 279):
        directory.tagtype[tag] = 16 if big else 4
    if samples != channels:
        directory[338] = 2
    if pixels.dtype.kind == "f":
        directory[339] = (3,) * samples
    if metadata.resolution is not None:
        directory[282], directory[283] = metadata.resolution
        directory[296] = 2
    for tag, value in ((700, metadata.xmp), (34675, metadata.profile)):
        if value is not None:
            directory.tagtype[tag] = 1 if tag == 700 else 7
            directory[tag] = value
    head = b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0" if big else b"II*\0\x08\0\0\0"
    body = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    return head + directory.tobytes(len(head)) + body


def _add_camera(directory: Any, exif: bytes | None) -> None:
    import PIL.Image

    if exif is None:
        return
    camera = PIL.Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a camera's data
            _copy_camera(directory, camera, exif)
    except Exception:  # damaged metadata does not make a picture unusable
        return


def _copy_camera(directory: Any, camera: Any, exif: bytes) -> None:
    camera.load(exif)
    for tag in (270, 271, 272, 305, 306, 315, 33432):
        if tag in camera:
            directory[tag] = camera[tag]
    for tag in (34665, 34853):
        inside = camera.get_ifd(tag)
        if inside:
            # What cannot be written again, such as a structure of the camera's maker, stays out.
            directory[tag] = {key: value for key, value in inside.items() if not isinstance(value, dict)}
            directory.tagtype[tag] = 4


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

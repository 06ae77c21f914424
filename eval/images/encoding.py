"""What stands in PNG and TIFF files around their samples."""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import Any

import numpy as np

from tlsc.eval.images.picture import Metadata, Pixels

__all__ = ["as_little_endian", "png_chunk", "png_metadata", "tiff_start"]

_LONGEST_CLASSIC = 2**32 - 2**24


def png_metadata(metadata: Metadata) -> bytes:
    """The chunks of a PNG that say what is known beside the samples; they stand behind its head."""
    chunks = []
    if metadata.profile is not None:
        chunks.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.profile)))
    if metadata.resolution is not None:
        per_metre = [round(dots / 0.0254) for dots in metadata.resolution]
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if metadata.xmp is not None:
        chunks.append(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.exif is not None:
        chunks.append(png_chunk(b"eXIf", metadata.exif))
    return b"".join(chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def as_little_endian(pixels: Pixels) -> Pixels:
    """Samples in the byte order of our TIFFs."""
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)


def tiff_start(shape: tuple[int, ...], dtype: np.dtype[Any], metadata: Metadata) -> bytes:
    """What stands before the samples of an uncompressed TIFF. The directory is Pillow's, which holds a camera's."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, samples = shape
    channels = samples - (samples in (2, 4))
    line = width * samples * dtype.itemsize
    size = line * height
    big = size > _LONGEST_CLASSIC
    rows = max(1, min(height, (1 << 20) // max(1, line)))
    starts = list(range(0, height, rows))
    directory = ImageFileDirectory_v2(b"II\x2b\0\x08\0\0\0" if big else b"II*\0\x08\0\0\0")
    _add_camera(directory, metadata.exif)
    directory[256], directory[257] = width, height
    directory[258] = (8 * dtype.itemsize,) * samples
    directory[259], directory[262], directory[277], directory[284] = 1, 1 if channels == 1 else 2, samples, 1
    directory[278] = rows
    directory[279] = tuple(min(rows, height - start) * line for start in starts)
    directory[273] = tuple(start * line for start in starts)
    for tag in (273, 279):
        directory.tagtype[tag] = 16 if big else 4
    if samples != channels:
        directory[338] = 2
    if dtype.kind == "f":
        directory[339] = (3,) * samples
    if metadata.resolution is not None:
        directory[282], directory[283] = metadata.resolution
        directory[296] = 2
    for tag, value in ((700, metadata.xmp), (34675, metadata.profile)):
        if value is not None:
            directory.tagtype[tag] = 1 if tag == 700 else 7
            directory[tag] = value
    head = b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0" if big else b"II*\0\x08\0\0\0"
    return head + directory.tobytes(len(head))


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

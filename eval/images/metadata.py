"""What files say beside their samples: EXIF, XMP, resolution, as bytes that are kept and not interpreted."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace

from tlsc.eval.images.picture import Metadata

__all__ = ["fitting", "orientation_of", "per_inch", "upright"]

_ORIENTATION = 0x0112


def per_inch(across: float, down: float) -> tuple[float, float] | None:
    """Pixels per millimetre as pixels per inch; None where that is no resolution."""
    return (across * 25.4, down * 25.4) if 0 < across < 1e5 and 0 < down < 1e5 else None


def orientation_of(exif: bytes | None) -> int:
    """The orientation that an EXIF structure says, 1 (upright) where it says none or is damaged."""
    for at, order in _orientations(exif or b""):
        value = int(struct.unpack_from(f"{order}H", exif or b"", at)[0])
        return value if 1 <= value <= 8 else 1
    return 1


def upright(metadata: Metadata, orientation: int) -> Metadata:
    """Metadata of a picture that was turned upright: neither says any more that it is to be turned.

    The preview inside the EXIF structure goes, as it shows the picture before.
    """
    exif, xmp, resolution = metadata.exif, metadata.xmp, metadata.resolution
    if exif is not None:
        exif = _without_turn(exif)
    if xmp is not None:
        xmp = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])\d", rb"\g<1>1", xmp)
        xmp = re.sub(rb"(<tiff:Orientation>\s*)\d", rb"\g<1>1", xmp)
    if resolution is not None and orientation >= 5:
        resolution = resolution[1], resolution[0]
    return replace(metadata, exif=exif, xmp=xmp, resolution=resolution)


def fitting(metadata: Metadata, channels: int) -> Metadata:
    """Without a profile of other colours than the picture has, such as one of inks."""
    others = {b"CMYK", b"Lab ", b"XYZ ", b"YCbr", b"RGB " if channels == 1 else b"GRAY"}
    other = metadata.profile is not None and metadata.profile[16:20] in others
    return replace(metadata, profile=None) if other else metadata


def _directory(exif: bytes) -> tuple[str, int, int] | None:
    """Byte order, place and number of entries of the first directory; None where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 14:
        return None
    first = struct.unpack_from(f"{order}I", exif, 4)[0]
    if first + 2 > len(exif):
        return None
    count = struct.unpack_from(f"{order}H", exif, first)[0]
    return None if first + 2 + 12 * count + 4 > len(exif) else (order, first + 2, count)


def _orientations(exif: bytes) -> Iterator[tuple[int, str]]:
    """Where the value of the orientation stands, and in which byte order."""
    found = _directory(exif)
    if found is None:
        return
    order, first, count = found
    for entry in range(first, first + 12 * count, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", exif, entry)
        if (tag, kind, number) == (_ORIENTATION, 3, 1):
            yield entry + 8, order


def _without_turn(exif: bytes) -> bytes | None:
    """Upright and without the second directory, which holds the preview; None for what is no EXIF structure."""
    found = _directory(exif)
    if found is None:
        return None
    order, first, count = found
    changed = bytearray(exif)
    for at, _ in _orientations(exif):
        struct.pack_into(f"{order}H", changed, at, 1)
    struct.pack_into(f"{order}I", changed, first + 12 * count, 0)
    return bytes(changed)

"""JPEG 2000, by OpenJPEG through imagecodecs, at every depth up to 16 bit."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head, scaled, straight
from tlsc.eval.images.picture import ImageError, Metadata, Pixels

__all__ = ["read_jpeg2000"]

_CODESTREAM = b"\xff\x4f\xff\x51"
_SRGB, _GREY = 16, 17


def read_jpeg2000(file: BinaryIO) -> Head:
    """A JPEG 2000 file or codestream in grey or RGB."""
    file.seek(0)
    data = file.read()
    at = data.find(_CODESTREAM)
    if at < 0 or len(data) < at + 42:
        raise ImageError("damaged JPEG 2000: truncated, there is no picture in it")
    right, down, left, top = struct.unpack_from(">IIII", data, at + 8)
    count = struct.unpack_from(">H", data, at + 40)[0]
    parts = [struct.unpack_from("BBB", data, at + 42 + 3 * n) for n in range(count) if len(data) > at + 44 + 3 * n]
    if len(parts) != count or not parts or right <= left or down <= top:
        raise ImageError("damaged JPEG 2000: its head is cut off")
    if len(set(parts)) > 1 or parts[0][0] & 0x80 or parts[0][1:] != (1, 1):
        raise ImageError("JPEG 2000 whose channels differ in depth or size, or have a sign: save it as grey or RGB")
    bits = parts[0][0] + 1
    if bits > 16:
        raise ImageError(f"JPEG 2000 of {bits} bit: known are 1 to 16")
    boxes = dict(_boxes(data, 0, at)) if not data.startswith(_CODESTREAM) else {}
    alpha, multiplied = _alpha(boxes, count)
    colour = boxes.get(b"colr", b"")
    if len(colour) >= 7 and colour[0] == 1 and struct.unpack_from(">I", colour, 3)[0] not in (_SRGB, _GREY):
        raise ImageError("JPEG 2000 in other colours than grey and sRGB: save it as RGB")
    if b"pclr" in boxes:
        raise ImageError("JPEG 2000 with a palette: save it as RGB")
    most = 2**bits - 1
    metadata = Metadata(profile=colour[3:] if colour[:1] == b"\2" else None)

    def decode() -> Pixels:
        import imagecodecs

        pixels = np.asarray(imagecodecs.jpeg2k_decode(data)).reshape(down - top, right - left, count)
        pixels = scaled(pixels, most)
        return straight(pixels) if multiplied else pixels

    dtype = np.uint8 if bits <= 8 else np.uint16
    return Head("JPEG 2000", down - top, right - left, count - alpha, alpha, dtype, decode, 1, metadata)


def _alpha(boxes: dict[bytes, bytes], count: int) -> tuple[bool, bool]:
    """Whether the last channel is alpha, and whether colours are multiplied by it."""
    definitions = boxes.get(b"cdef", b"")
    kinds = [
        (struct.unpack_from(">HHH", definitions, at)[0], struct.unpack_from(">HHH", definitions, at)[1])
        for at in range(2, len(definitions) - 5, 6)
    ]
    opacity = {channel: kind for channel, kind in kinds if kind in (1, 2)}
    if count in (1, 3) and not opacity:
        return False, False
    if count in (2, 4) and list(opacity) == [count - 1]:
        return True, opacity[count - 1] == 2
    raise ImageError(f"JPEG 2000 of {count} channels, of which none is said to be alpha: save it as grey or RGB")


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of the head, those inside ``jp2h`` among them."""
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, at)
        if length < 8:
            return
        if kind == b"jp2h":
            yield from _boxes(data, at + 8, min(end, at + length))
        yield kind, data[at + 8 : min(end, at + length)]
        at += length

"""Radiance HDR and OpenEXR: light in floating point, where 1 is white."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head, read_at, straight
from tlsc.eval.images.picture import ImageError, Pixels

__all__ = ["read_exr", "read_hdr"]


def read_hdr(file: BinaryIO) -> Head:
    """Radiance HDR in RGB, rows from above."""
    text = read_at(file, 0, 1 << 14)
    size = re.search(rb"\n\n([-+][XY]) (\d{1,9}) ([-+][XY]) (\d{1,9})\n", text)
    if size is None:
        raise ImageError("damaged HDR: its head has no size")
    if (size[1], size[3]) != (b"-Y", b"+X"):
        raise ImageError("HDR that lies on its side: save it upright")
    if b"32-bit_rle_xyze" in text[: size.start()]:
        raise ImageError("HDR in XYZ: save it as RGB")
    height, width = int(size[2]), int(size[4])

    def decode() -> Pixels:
        import imagecodecs

        file.seek(0)
        return np.asarray(imagecodecs.rgbe_decode(file.read()), dtype=np.float32)

    return Head("HDR", height, width, 3, False, np.float32, decode)


_CHANNELS = {
    ("Y",): (1, False),
    ("A", "Y"): (1, True),
    ("B", "G", "R"): (3, False),
    ("A", "B", "G", "R"): (3, True),
}


def read_exr(file: BinaryIO) -> Head:
    """OpenEXR of one part in grey or RGB. Its colours are multiplied by its alpha, as the format asks for."""
    opened = _exr(file, True)
    header = opened.header()
    names = tuple(sorted(channel.name for channel in header["channels"]))
    if len(opened.parts) != 1 or names not in _CHANNELS:
        raise ImageError(
            f"OpenEXR of {len(opened.parts)} parts with channels {', '.join(names[:8])}: known are R, G, B and Y, "
            "with A or without, in one part"
        )
    if any((channel.xSampling, channel.ySampling) != (1, 1) for channel in header["channels"]):
        raise ImageError("OpenEXR whose channels differ in size: save it as RGB")
    (left, top), (right, bottom) = header["dataWindow"]
    channels, alpha = _CHANNELS[names]
    order = (["Y"] if channels == 1 else ["R", "G", "B"]) + (["A"] if alpha else [])

    def decode() -> Pixels:
        planes = _exr(file, False).channels()
        kinds = {planes[name].pixels.dtype.kind for name in order}
        if kinds != {"f"}:
            raise ImageError("OpenEXR in whole numbers of 32 bit: save it as floats")
        pixels = np.stack([planes[name].pixels for name in order], axis=-1).astype(np.float32)
        return straight(pixels) if alpha else pixels

    height, width = int(bottom) - int(top) + 1, int(right) - int(left) + 1
    return Head("OpenEXR", height, width, channels, alpha, np.float32, decode)


def _exr(file: BinaryIO, head: bool) -> Any:
    try:
        import OpenEXR
    except ModuleNotFoundError as error:
        raise ImageError("OpenEXR needs the package OpenEXR: pip install OpenEXR, or save it as a TIFF") from error
    file.seek(0)
    return OpenEXR.File(file, separate_channels=True, header_only=head)

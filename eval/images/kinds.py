"""Which format a file is of, by its first bytes: names say nothing, and are often wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import BinaryIO

from tlsc.eval.images.formats.floats import read_exr, read_hdr
from tlsc.eval.images.formats.head import Head
from tlsc.eval.images.formats.jpeg2000 import read_jpeg2000
from tlsc.eval.images.formats.netpbm import read_netpbm
from tlsc.eval.images.formats.small import read_array, read_bmp, read_gif
from tlsc.eval.images.formats.tiff import read_tiff
from tlsc.eval.images.formats.vips import read_avif, read_jpeg, read_png, read_webp
from tlsc.eval.images.picture import ImageError

__all__ = ["EXTENSIONS", "READABLE", "read_head"]

READABLE = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp", ".avif", ".bmp", ".gif", ".jp2", ".j2k"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm", ".exr", ".hdr", ".npy"),
)
"""Suffixes of the formats that are read."""

EXTENSIONS = frozenset((*READABLE, ".jxl", ".heic", ".heif"))
"""Suffixes by which files in a folder are taken for pictures; those that cannot be read are refused by name."""

_READERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Head]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), reader)
    for pattern, reader in (
        (rb"\x89PNG\r\n\x1a\n", read_png),
        (rb"\xff\xd8\xff", read_jpeg),
        (rb"II[*+]\0|MM\0[*+]", read_tiff),
        (rb"RIFF....WEBP", read_webp),
        (rb"....ftyp(?:avi[fs]|mi[fa]1.{4}(?:.{4})*?avif)", read_avif),
        (rb"GIF8[79]a", read_gif),
        (rb"BM", read_bmp),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", read_jpeg2000),
        (rb"P[1-6][\s#]|P7\n|P[Ff]\s", read_netpbm),
        (rb"\x76\x2f\x31\x01", read_exr),
        (rb"#\?(?:RADIANCE|RGBE)", read_hdr),
        (rb"\x93NUMPY", read_array),
    )
)

# What people have, and what it is; not read here.
_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"....ftyp(?:hei|hev|mif1|msf1)", "a HEIC picture"),
        (rb"....ftypcrx", "a camera's raw file"),
        (rb"....ftyp", "a video"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
        (rb"8BPS", "a Photoshop file"),
        (rb"FUJIFILMCCD-RAW|IIR[OS]|IIU\0", "a camera's raw file"),
        (rb"%PDF", "a PDF"),
        (rb"SIMPLE  =", "a FITS file"),
        (rb"SDPX|XPDS", "a DPX picture"),
        (rb"DDS ", "a DDS texture"),
        (rb"qoif", "a QOI picture"),
        (rb"\0\0[\x01\x02]\0[^\0]\0", "an icon"),
        (rb"PK\x03\x04", "a ZIP archive"),
        (rb"\x1f\x8b", "a gzip archive"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"MATLAB", "a MATLAB file"),
        (rb"version https://git-lfs", "a pointer of Git LFS, whose content was not fetched"),
        (rb"\s*<(?:\?xml|svg|!DOCTYPE|html)", "a text in HTML or XML"),
    )
)


def read_head(file: BinaryIO) -> Head:
    """What an open file holds.

    Raises:
        ImageError: no picture, or not of a format that is read here.
        Exception: what the format's library raises on a damaged file.
    """
    file.seek(0)
    first = file.read(64)
    for pattern, reader in _READERS:
        if pattern.match(first):
            return reader(file)
    for pattern, name in _OTHERS:
        if pattern.match(first):
            raise ImageError(f"{name}, which is not read here: save it as PNG or TIFF")
    raise ImageError("not an image, or not in a format that is known here: save it as PNG or TIFF")

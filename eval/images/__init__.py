"""Pictures: the one reader and writer of image files, for every verb."""

from __future__ import annotations

from tlsc.eval.images.files import PictureFile, open_picture, read_image, read_picture
from tlsc.eval.images.kinds import EXTENSIONS, READABLE
from tlsc.eval.images.picture import ImageError, Metadata, Picture, Pixels, UnreadableError, as_float, with_channels
from tlsc.eval.images.strips import by_rows, writing_rows
from tlsc.eval.images.writing import WRITABLE, check_writable, write_picture

__all__ = [
    "EXTENSIONS",
    "READABLE",
    "WRITABLE",
    "ImageError",
    "Metadata",
    "Picture",
    "PictureFile",
    "Pixels",
    "UnreadableError",
    "as_float",
    "by_rows",
    "check_writable",
    "open_picture",
    "read_image",
    "read_picture",
    "with_channels",
    "write_picture",
    "writing_rows",
]

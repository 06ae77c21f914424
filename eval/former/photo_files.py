"""The names that ``tlsc restore``'s reader had before there was one for every verb: see :mod:`tlsc.eval.images`."""

from __future__ import annotations

from tlsc.eval.images import READABLE, WRITABLE, ImageError, Picture, check_writable
from tlsc.eval.images import read_picture as read_image
from tlsc.eval.images import write_picture as write_image

__all__ = ["READABLE", "WRITABLE", "ImageError", "Picture", "check_writable", "read_image", "write_image"]

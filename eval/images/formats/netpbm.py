"""PBM, PGM, PPM, PAM and PFM: a line or two of text, and then the samples."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head, read_at, scaled, size_of
from tlsc.eval.images.picture import ImageError, Pixels

__all__ = ["read_netpbm"]

_LONGEST = 1 << 16
_NUMBER = re.compile(rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])*(\d{1,9})")
_FORMS = {b"1": "PBM", b"2": "PGM", b"3": "PPM", b"4": "PBM", b"5": "PGM", b"6": "PPM"}
# Tuple type: channels, and whether the last is alpha.
_TUPLES = {
    "BLACKANDWHITE": 1,
    "GRAYSCALE": 1,
    "RGB": 3,
    "BLACKANDWHITE_ALPHA": 2,
    "GRAYSCALE_ALPHA": 2,
    "RGB_ALPHA": 4,
}


def read_netpbm(file: BinaryIO) -> Head:
    """Netpbm of one picture. The largest sample that the head names becomes white."""
    text = read_at(file, 0, _LONGEST)
    kind = text[1:2]
    if kind in b"Ff":
        return _read_floats(file, text)
    if kind == b"7":
        return _read_pam(file, text)
    numbers, at = _numbers(text, 2, 2 if kind in b"14" else 3)
    width, height = numbers[0], numbers[1]
    most = numbers[2] if len(numbers) > 2 else 1
    channels = 3 if kind in b"36" else 1
    body = _Body(file, at + 1, (height, width, channels), most)
    read = {b"1": body.bits_as_text, b"4": body.bits}.get(kind, body.text if kind in b"23" else body.binary)
    return Head(_FORMS[kind], height, width, channels, False, body.dtype, read)


def _numbers(text: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Numbers from ``at`` on, and where the last one ends."""
    found = []
    for _ in range(count):
        match = _NUMBER.match(text, at)
        if match is None:
            raise ImageError("damaged: the head of a Netpbm file has no size")
        found.append(int(match[1]))
        at = match.end()
    return found, at


class _Body:
    """The samples of a file."""

    def __init__(self, file: BinaryIO, offset: int, shape: tuple[int, int, int], most: int) -> None:
        if not 1 <= most <= 65535:
            raise ImageError(f"damaged: the largest sample of a Netpbm file is between 1 and 65535, not {most}")
        self.file, self.offset, self.shape, self.most = file, offset, shape, most
        self.count = shape[0] * shape[1] * shape[2]
        self.dtype = np.uint8 if most <= 255 else np.uint16

    def _all(self, bytes_: int) -> bytes:
        there = size_of(self.file) - self.offset
        if there < bytes_:
            raise ImageError(f"damaged: truncated, {bytes_ - there} bytes of its samples are missing")
        if there > bytes_:
            rest = read_at(self.file, self.offset + bytes_, _LONGEST).strip()
            if re.match(rb"P[1-7Ff]\s", rest):
                raise ImageError("holds several images: save the one that is meant by itself")
            if rest:
                raise ImageError(f"damaged: {there - bytes_} bytes more than its head says")
        return read_at(self.file, self.offset, bytes_)

    def binary(self) -> Pixels:
        stored = np.dtype(np.uint8 if self.most <= 255 else ">u2")
        values = np.frombuffer(self._all(self.count * stored.itemsize), stored).reshape(self.shape)
        return scaled(values.astype(self.dtype), self.most)

    def bits(self) -> Pixels:
        height, width, _ = self.shape
        line = (width + 7) // 8
        packed = np.frombuffer(self._all(height * line), np.uint8).reshape(height, line)
        return (1 - np.unpackbits(packed, axis=1)[:, :width, None]) * np.uint8(255)

    def text(self) -> Pixels:
        words = self._without_comments().split()
        if len(words) != self.count:
            raise ImageError(f"damaged: {len(words)} samples, where its head says {self.count}")
        if not all(word.isdigit() and len(word) < 9 for word in words):
            raise ImageError("damaged: a sample is no number")
        values = np.array(words, dtype="S9").astype(np.int64)
        if values.size and values.max() > self.most:
            raise ImageError(f"damaged: a sample is larger than {self.most}, which the file says is white")
        return scaled(values.astype(self.dtype).reshape(self.shape), self.most)

    def bits_as_text(self) -> Pixels:
        digits = b"".join(self._without_comments().split())
        if len(digits) != self.count or digits.strip(b"01"):
            raise ImageError(f"damaged: {len(digits)} samples, where its head says {self.count}, each 0 or 1")
        values = np.frombuffer(digits, np.uint8).reshape(self.shape) - ord("0")
        return (1 - values) * np.uint8(255)

    def _without_comments(self) -> bytes:
        self.file.seek(self.offset)
        return re.sub(rb"#[^\r\n]*", b" ", self.file.read())

    def floats(self, order: str) -> Pixels:
        values = np.frombuffer(self._all(4 * self.count), f"{order}f4").reshape(self.shape)
        return values[::-1].astype(np.float32)


def _read_pam(file: BinaryIO, text: bytes) -> Head:
    end = text.find(b"ENDHDR\n")
    if end < 0:
        raise ImageError("damaged PAM: its head does not end")
    lines = [line.split(None, 1) for line in text[3:end].decode("latin-1").splitlines() if line[:1] != "#"]
    said = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    try:
        width, height, depth, most = (int(said[name]) for name in ("WIDTH", "HEIGHT", "DEPTH", "MAXVAL"))
    except (KeyError, ValueError) as error:
        raise ImageError("damaged PAM: its head has no size") from error
    if _TUPLES.get(said.get("TUPLTYPE", "")) != depth:
        raise ImageError(f"PAM of {depth} channels and type {said.get('TUPLTYPE')}: known are {', '.join(_TUPLES)}")
    body = _Body(file, end + len(b"ENDHDR\n"), (height, width, depth), most)
    alpha = depth in (2, 4)
    return Head("PAM", height, width, depth - alpha, alpha, body.dtype, body.binary)


def _read_floats(file: BinaryIO, text: bytes) -> Head:
    channels = 3 if text[1:2] == b"F" else 1
    (width, height), at = _numbers(text, 2, 2)
    scale = re.compile(rb"\s+([-+]?[0-9.eE+-]{1,20})\r?\n").match(text, at)
    if scale is None:
        raise ImageError("damaged PFM: its head has no byte order")
    body = _Body(file, scale.end(), (height, width, channels), 1)
    order = "<" if scale[1].startswith(b"-") else ">"
    return Head("PFM", height, width, channels, False, np.float32, lambda: body.floats(order))

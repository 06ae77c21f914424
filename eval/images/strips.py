"""Pictures written row by row, so that they need not be in memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from tlsc.eval.files import replacing_open
from tlsc.eval.images.encoding import as_little_endian, png_chunk, png_metadata, tiff_start
from tlsc.eval.images.metadata import fitting
from tlsc.eval.images.picture import ImageError, Metadata, Pixels
from tlsc.eval.images.writing import WRITABLE, check_writable

__all__ = ["Rows", "by_rows", "writing_rows"]

# Bytes of a PNG's compressed samples in a chunk, and of its samples that are filtered together.
_CHUNK, _STRIP = 1 << 20, 1 << 22


class Rows(Protocol):
    """Takes a picture's rows from top to bottom."""

    def add(self, rows: Pixels) -> None:
        """The next rows, (rows, width, channels), in the file's type."""

    def finish(self) -> None:
        """No more rows."""


def by_rows(path: Path) -> bool:
    """Whether a file of this name is written row by row."""
    return WRITABLE[path.suffix.lower()][0] in ("PNG", "TIFF")


@contextmanager
def writing_rows(path: Path, shape: tuple[int, int, int], bits: int, metadata: Metadata) -> Iterator[Rows]:
    """A PNG or TIFF that is written as its rows come, whole or not at all.

    Until it is whole it has no name, or, where there are no such files, another one beside ``path`` with a dot in
    front; only there a process that is killed at once (SIGKILL, a power failure) leaves something behind.

    Args:
        path: of the file.
        shape: (height, width, channels), of 1, 2, 3 or 4 channels; the second and the fourth are alpha.
        bits: per sample: 8 or 16, 32 for floating point.
        metadata: of the picture.

    Raises:
        ImageError: the format cannot hold the depth, the height is not that of the rows, or PNG has no such size.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with writing_rows(Path(folder, "a.png"), (2, 3, 1), 8, Metadata()) as rows:
        ...         rows.add(np.zeros((1, 3, 1), np.uint8))
        ...         rows.add(np.ones((1, 3, 1), np.uint8))
        ...     Path(folder, "a.png").read_bytes()[1:4]
        b'PNG'
    """
    alpha = shape[2] in (2, 4)
    check_writable(path, bits, alpha)
    if not by_rows(path):
        raise ImageError("PNG and TIFF are written row by row, others are not: write one of them", path)
    metadata = fitting(metadata, shape[2] - alpha)
    dtype = np.dtype({8: np.uint8, 16: np.uint16}.get(bits, np.float32))
    with replacing_open(path) as file:
        kind = _Png if WRITABLE[path.suffix.lower()][0] == "PNG" else _Tiff
        rows = _Counted(kind(file, shape, dtype, metadata), shape[0], path)
        yield rows
        rows.finish()


class _Counted:
    """Looks that there are as many rows as were announced."""

    def __init__(self, inner: Rows, height: int, path: Path) -> None:
        self._inner, self._left, self._path = inner, height, path

    def add(self, rows: Pixels) -> None:
        self._left -= len(rows)
        self._inner.add(rows)

    def finish(self) -> None:
        if self._left:
            raise ImageError(f"{abs(self._left)} rows too {'few' if self._left > 0 else 'many'}", self._path)
        self._inner.finish()


class _Tiff:
    """Uncompressed."""

    def __init__(
        self, file: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype[Any], metadata: Metadata
    ) -> None:
        self._file = file
        file.write(tiff_start(shape, dtype, metadata))

    def add(self, rows: Pixels) -> None:
        self._file.write(np.ascontiguousarray(as_little_endian(rows)).data)

    def finish(self) -> None:
        self._file.flush()


class _Png:
    """Each row filtered by what makes its bytes smallest together, the usual choice; then deflated."""

    def __init__(
        self, file: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype[Any], metadata: Metadata
    ) -> None:
        height, width, samples = shape
        if max(height, width) > 2**31 - 1:
            raise ImageError(f"PNG holds sides of up to 2147483647 pixels, not {height}×{width}")
        self._file, self._each = file, samples * dtype.itemsize
        self._before = np.zeros(width * self._each, np.uint8)
        self._deflate, self._packed = zlib.compressobj(6), bytearray()
        kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
        head = struct.pack(">IIBBBBB", width, height, 8 * dtype.itemsize, kind, 0, 0, 0)
        file.write(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_metadata(metadata))

    def add(self, rows: Pixels) -> None:
        count = max(1, _STRIP // self._before.size)
        for top in range(0, len(rows), count):
            part = np.ascontiguousarray(rows[top : top + count])
            data = part.astype(part.dtype.newbyteorder(">"), copy=False).view(np.uint8).reshape(len(part), -1)
            self._packed += self._deflate.compress(self._filtered(data).data)
            self._before = data[-1].copy()
            while len(self._packed) >= _CHUNK:
                self._write(_CHUNK)

    def finish(self) -> None:
        self._packed += self._deflate.flush()
        while self._packed:
            self._write(_CHUNK)
        self._file.write(png_chunk(b"IEND", b""))
        self._file.flush()

    def _write(self, count: int) -> None:
        self._file.write(png_chunk(b"IDAT", bytes(self._packed[:count])))
        del self._packed[:count]

    def _filtered(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        above = np.concatenate([self._before[None], rows[:-1]])
        left, corner = _moved(rows, self._each), _moved(above, self._each)
        best = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        least = np.full(len(rows), np.iinfo(np.int64).max)
        for kind, guess in ((1, left), (2, above), (4, _paeth(left, above, corner))):
            rest = rows - guess  # modulo 256
            cost = np.abs(rest.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64)
            better = cost < least
            best[better, 0], best[better, 1:] = kind, rest[better]
            least = np.minimum(cost, least)
        return best


def _moved(rows: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """What stands so many bytes to the left; 0 before the first."""
    out = np.zeros_like(rows)
    out[:, count:] = rows[:, :-count]
    return out


def _paeth(left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The neighbour that is nearest to left + above − corner."""
    to_left = above.astype(np.int16) - corner
    to_above = left.astype(np.int16) - corner
    to_corner = np.abs(to_left + to_above)
    to_left, to_above = np.abs(to_left), np.abs(to_above)
    is_left = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(is_left, left, np.where(to_above <= to_corner, above, corner))

"""The one reader of picture files: every verb sees the same samples, or the same refusal.

Rules. Samples come as they are stored, at the file's own depth, or the file is refused. Pictures are upright.
Palettes and inks become RGB. Colours that were multiplied by alpha are divided by it. Floating point is taken as it
is, 0 for black and 1 for white, so values outside [0, 1] are refused. A damaged file is an error, also where its
decoder would go on with a warning; the metadata of a picture is never a reason to refuse it.
"""

from __future__ import annotations

import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head, size_of
from tlsc.eval.images.kinds import read_head
from tlsc.eval.images.metadata import fitting, upright
from tlsc.eval.images.picture import ImageError, Metadata, Picture, Pixels, as_float
from tlsc.eval.images.stored import Stored, turned

__all__ = ["PictureFile", "open_picture", "read_image", "read_picture"]

# Nothing that is compressed by deflate is below; a bomb is far below.
_SMALL, _MOST_RATIO = 1 << 28, 2000


class PictureFile:
    """An open file of a picture: what its head says, and its samples when they are asked for.

    Attributes:
        path: the file.
        form: its format's name, such as "PNG".
        height: of the upright picture, in pixels.
        width: likewise.
        channels: 1 for grey, 3 for RGB.
        alpha: whether there is alpha beside them.
        bits: per sample, 8 or 16; 32 for floating point.
        metadata: of the upright picture.
    """

    def __init__(self, path: Path, file: BinaryIO, head: Head) -> None:
        self.path, self._file, self._head = path, file, head
        self.form, self.channels, self.alpha = head.form, head.channels, head.alpha
        on_its_side = head.orientation >= 5
        self.height, self.width = (head.width, head.height) if on_its_side else (head.height, head.width)
        self.bits = 8 * np.dtype(head.dtype).itemsize
        self.metadata: Metadata = fitting(upright(head.metadata, head.orientation), head.channels)

    def __enter__(self) -> PictureFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; samples that were read stay."""
        self._file.close()

    def samples(self) -> tuple[Pixels, Pixels | None]:
        """The samples as stored: (height, width, 1 or 3), and alpha (height, width) or None.

        They are uint8, uint16, or float32 from 0 to 1. An uncompressed TIFF and an array are memory-mapped, so that
        pictures larger than memory can be cut into tiles.

        Raises:
            ImageError: the file is damaged, or holds values that are no picture's.
        """
        try:
            pixels = self._head.decode()
        except Exception as error:
            raise _named(error, self.path) from error
        expected = self._head.height, self._head.width, self.channels + self.alpha
        if pixels.shape != expected or pixels.dtype != self._head.dtype:
            raise ImageError(
                f"damaged: its head says {expected} samples of {np.dtype(self._head.dtype)}, "
                f"it holds {pixels.shape} of {pixels.dtype}",
                self.path,
            )
        if pixels.dtype.kind == "f":
            self._check_range(float(pixels.min()), float(pixels.max()))
        pixels = turned(pixels, self._head.orientation)
        return (pixels[..., :-1], pixels[..., -1]) if self.alpha else (pixels, None)

    def _check_range(self, low: float, high: float) -> None:
        if not (low >= 0 and high <= 1):
            found = f"{low:g} to {high:g}" if np.isfinite([low, high]).all() else "not finite"
            raise ImageError(
                f"{self.form} in floating point must have values in [0, 1], 0 for black and 1 for white; they are "
                f"{found}: scale or clip them",
                self.path,
            )

    @contextmanager
    def stored(self, folder: Path) -> Iterator[Stored]:
        """The samples on disk, of which any part can be read: for pictures larger than memory.

        An uncompressed TIFF is read where it is. PNG, JPEG, WebP and most TIFFs are decoded strip by strip to a
        file without a name; other formats are decoded whole.

        Args:
            folder: where there is room for the decoded samples.

        Raises:
            ImageError: as :meth:`samples`.
            OSError: the folder cannot be written to, or is full.
        """
        with ExitStack() as held:
            try:
                stored = self._stored(folder, held)
                if np.dtype(stored.dtype).kind == "f":
                    self._check_range(*stored.range())
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, ImageError):
                    raise  # the folder's fault
                raise _named(error, self.path) from error
            yield stored

    def _stored(self, folder: Path, held: ExitStack) -> Stored:
        head = self._head
        shape = head.height, head.width, head.channels + head.alpha
        if head.mapped is not None:
            found = head.mapped()
            return Stored(self._file, found.dtype, int(found.offset), shape, head)  # type: ignore[attr-defined]
        file: Any = held.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        if head.spool is not None:
            head.spool(file)
        else:
            head.decode().tofile(file)
        expected, written = math.prod(shape) * np.dtype(head.dtype).itemsize, size_of(file)
        if written != expected:
            raise ImageError(f"damaged: its head says {expected} bytes of samples, it holds {written}", self.path)
        return Stored(file, np.dtype(head.dtype), 0, shape, head)

    def read(self) -> Picture:
        """The picture in floating point.

        Raises:
            ImageError: as :meth:`samples`.
        """
        return self.read_rows(0, self.height)

    def read_rows(self, top: int, count: int) -> Picture:
        """``count`` rows from ``top`` on, in floating point. The whole file is decoded each time.

        Raises:
            ImageError: as :meth:`samples`.
        """
        pixels, alpha = self.samples()
        rows = slice(top, top + count)
        return Picture(
            np.ascontiguousarray(as_float(pixels[rows])),
            None if alpha is None else np.ascontiguousarray(as_float(alpha[rows])),
            self.bits,
            self.metadata.profile,
            self.metadata,
        )


def open_picture(path: Path, trusted: bool = False) -> PictureFile:
    """Open a file of a picture and read its head; close it, or use it in ``with``.

    Args:
        path: the file.
        trusted: do not refuse a file for claiming far more samples than a file of its length could hold.

    Raises:
        ImageError: it is missing, no file, empty, damaged, no picture, or one that cannot be read as it is.

    Example:
        >>> from skimage.data import data_dir
        >>> with open_picture(Path(data_dir, "coffee.png")) as file:
        ...     file.form, file.height, file.width, file.channels, file.bits
        ('PNG', 400, 600, 3, 8)
    """
    path = Path(path)
    file = _opened(path)
    try:
        head = read_head(file)
        if not trusted:
            _refuse_bombs(head, size_of(file))
        return PictureFile(path, file, head)
    except BaseException as error:
        file.close()
        if isinstance(error, Exception):
            raise _named(error, path) from error
        raise


def read_picture(path: Path, trusted: bool = False) -> Picture:
    """The picture in a file, in floating point.

    Raises:
        ImageError: as :func:`open_picture` and :meth:`PictureFile.samples`.
    """
    with open_picture(path, trusted) as file:
        return file.read()


def read_image(path: Path, trusted: bool = False) -> Pixels:
    """The samples in a file as stored, (height, width, 1 or 3), without alpha: :meth:`PictureFile.samples`.

    Raises:
        ImageError: as :func:`open_picture` and :meth:`PictureFile.samples`.

    Example:
        >>> from skimage.data import data_dir
        >>> pixels = read_image(Path(data_dir, "coffee.png"))
        >>> pixels.shape, pixels.dtype
        ((400, 600, 3), dtype('uint8'))
    """
    with open_picture(path, trusted) as file:
        return file.samples()[0]


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _opened(path: Path) -> BinaryIO:
    """A regular file; anything else could wait for ever, and is not even opened."""
    try:
        _refuse_others(path, os.stat(path).st_mode)
        # Not blocking, should the file become a pipe in between.
        flags = getattr(os, "O_NONBLOCK", 0)
        file = open(path, "rb", opener=lambda name, given: os.open(name, given | flags))  # noqa: SIM115
    except OSError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(error.strerror or type(error).__name__, path) from error
    except ValueError as error:  # a zero byte in the name
        raise ImageError(str(error), path) from error
    try:
        status = os.fstat(file.fileno())
        _refuse_others(path, status.st_mode)
        if status.st_size == 0:
            raise ImageError("the file is empty", path)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_others(path: Path, mode: int) -> None:
    for test, name in _KINDS:
        if test(mode):
            raise ImageError(f"{name}, not a file: save the picture in a file first", path)


def _refuse_bombs(head: Head, size: int) -> None:
    decoded = head.height * head.width * (head.channels + head.alpha) * np.dtype(head.dtype).itemsize
    if not head.height or not head.width:
        raise ImageError("damaged: it has no pixels")
    if decoded > _SMALL and decoded > _MOST_RATIO * size:
        raise ImageError(
            f"claims {head.height}×{head.width} pixels, {decoded / 1e9:.1f} GB, in a file of {size} bytes: a "
            "decompression bomb by all signs; if it is honest, save it as an uncompressed TIFF"
        )


def _named(error: Exception, path: Path) -> ImageError:
    """What went wrong with a file, in one line."""
    if isinstance(error, ImageError):
        return error if error.path is not None else ImageError(error.reason, path)
    if isinstance(error, MemoryError):
        return ImageError("not enough memory to decode it; an uncompressed TIFF is read piece by piece", path)
    if isinstance(error, ModuleNotFoundError):
        return ImageError(f"needs the package {error.name}: pip install 'tlsc[eval]'", path)
    # libvips puts what its decoder says behind what it says itself.
    lines = str(getattr(error, "detail", error)).strip().splitlines() or [type(error).__name__]
    return ImageError(f"damaged, or not decodable: {lines[-1][:200]}", path)

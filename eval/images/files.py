"""Photographs as files: 8 and 16 bit, grey and RGB, alpha, upright; refused where something would be lost."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from tlsc.eval.files import replacing
from tlsc.eval.images.picture import ImageError, Metadata, Picture, Pixels, as_float, quantised

__all__ = [
    "EXTENSIONS",
    "READABLE",
    "WRITABLE",
    "PictureFile",
    "check_writable",
    "open_picture",
    "read_image",
    "read_picture",
    "write_picture",
]

READABLE = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".tif",
    ".tiff",
    ".webp",
    ".bmp",
    ".ppm",
    ".pgm",
    ".pnm",
    ".gif",
    ".jp2",
    ".npy",
)
EXTENSIONS = frozenset(READABLE)
# Suffix: name, bits per channel, whether alpha can be kept.
WRITABLE: dict[str, tuple[str, tuple[int, ...], bool]] = {
    ".png": ("PNG", (8, 16), True),
    ".tif": ("TIFF", (8, 16), True),
    ".tiff": ("TIFF", (8, 16), True),
    ".webp": ("WebP", (8,), True),
    ".jpg": ("JPEG", (8,), False),
    ".jpeg": ("JPEG", (8,), False),
    ".bmp": ("BMP", (8,), False),
}
# Not those for which Pillow would start other programs.
_FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000")
_SAVING: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WebP": {"lossless": True}}


class PictureFile:
    """A file whose head was read: what it holds, before its samples are decoded."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        self.limit = limit
        self._samples: tuple[Pixels, Pixels | None, Metadata] | None = None

    def samples(self) -> tuple[Pixels, Pixels | None]:
        """The samples as stored, upright: (height, width, 1 or 3) and alpha (height, width) or None."""
        if self._samples is None:
            self._samples = _decoded(self.path)
        return self._samples[0], self._samples[1]

    def read(self) -> Picture:
        """The picture in floating point."""
        pixels, alpha = self.samples()
        assert self._samples is not None
        metadata = self._samples[2]
        return Picture(
            np.ascontiguousarray(as_float(pixels)),
            None if alpha is None else as_float(alpha),
            8 * pixels.dtype.itemsize,
            metadata.profile,
            metadata,
        )

    def read_rows(self, top: int, count: int) -> Picture:
        """Some rows of the picture in floating point."""
        whole = self.read()
        part = slice(top, top + count)
        return replace(whole, pixels=whole.pixels[part], alpha=None if whole.alpha is None else whole.alpha[part])


def open_picture(path: Path, limit: int | None = None) -> PictureFile:
    """A file of a picture; ``limit`` is the number of pixels that it may have at most."""
    return PictureFile(path, limit)


def read_picture(path: Path) -> Picture:
    """The picture in a file, in floating point: :meth:`PictureFile.read`."""
    return open_picture(path).read()


def read_image(path: Path) -> Pixels:
    """The samples in a file without alpha; an uncompressed TIFF or ``.npy`` is memory-mapped.

    Raises:
        ImageError: the file is missing, empty, damaged, or not a picture that can be read as it is.
    """
    return open_picture(path).samples()[0]


def _decoded(path: Path) -> tuple[Pixels, Pixels | None, Metadata]:
    try:
        if path.suffix.lower() == ".npy":
            return _checked(np.load(path, mmap_mode="r", allow_pickle=False)), None, Metadata()
        return _read_file(path)
    except ImageError as error:
        if error.path is not None:
            raise
        raise ImageError(error.reason, path) from error
    except MemoryError as error:
        raise ImageError("not enough memory to decode it", path) from error
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise ImageError(f"cannot be decoded: {line or type(error).__name__}", path) from error


def _checked(pixels: Pixels) -> Pixels:
    """As (height, width, 1 or 3) of a type that is known."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] > 4:
        raise ImageError(f"shape {pixels.shape}: not one grey or colour image")
    pixels = pixels[..., : 1 if pixels.shape[2] <= 2 else 3]
    if pixels.dtype in (np.uint8, np.uint16, np.float32):
        return pixels
    if pixels.dtype == np.float64:
        return pixels.astype(np.float32)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return pixels.astype(np.uint16)  # the other byte order
    raise ImageError(f"pixels of type {pixels.dtype}: expected 8 or 16 bit without sign, or float32")


def _read_file(path: Path) -> tuple[Pixels, Pixels | None, Metadata]:
    """Read an image, turned upright as its EXIF orientation says.

    Grey stays grey, palettes and CMYK become RGB, one bit becomes eight.

    Raises:
        ImageError: it is no image, truncated, too large (a decompression bomb), holds several images, or numbers
            of another kind than 8 or 16 bit.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(26)
    if not head:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large photographs and of odd metadata; at twice the size it refuses.
            warnings.simplefilter("ignore")
            PIL.Image.init()
            known = [name for name in _FORMATS if name in PIL.Image.OPEN]
            # Opened by its name, Pillow maps the file, and misreads TIFFs that lie on their side.
            with path.open("rb") as file, PIL.Image.open(file, formats=known) as opened:
                return _read(path, head, opened)
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError("not an image, or not in a format that is known here") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(str(error)) from error
    except PermissionError:
        raise
    except Exception as error:
        # What Pillow's plugins raise on damaged files is not of one kind.
        line = (str(error).splitlines() or [""])[0]
        raise ImageError(f"cannot be decoded: {line or type(error).__name__}") from error


def write_picture(path: Path, picture: Picture) -> None:
    """Write an image, whole or not at all; the format is that of the suffix.

    Raises:
        ImageError: the format is not known, or cannot hold the image's depth or alpha.
        OSError: the file cannot be written.
    """
    check_writable(path, picture.bits, picture.alpha is not None)
    name = WRITABLE[path.suffix.lower()][0]
    pixels = quantised(picture.pixels, picture.bits)
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, quantised(picture.alpha, picture.bits)[..., None]], axis=2)
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    with replacing(path) as new:
        if picture.bits == 16 and name == "PNG":
            new.write_bytes(_with_profile(bytes(imagecodecs.png_encode(pixels)), picture.profile))
        elif picture.bits == 16:
            tifffile.imwrite(
                new,
                pixels,
                photometric="rgb" if pixels.ndim == 3 and pixels.shape[2] >= 3 else "minisblack",
                planarconfig="contig" if pixels.ndim == 3 else None,
                extrasamples=["unassalpha"] if picture.alpha is not None else None,
                iccprofile=picture.profile,
                metadata=None,
            )
        else:
            image = PIL.Image.fromarray(pixels)
            image.save(new, name, icc_profile=picture.profile, **_SAVING.get(name, {}))


def check_writable(path: Path, bits: int = 8, alpha: bool = False) -> None:
    """Whether a file of this name can hold such an image.

    Raises:
        ImageError: it cannot.

    Example:
        >>> check_writable(Path("a.jpg"), bits=16)
        Traceback (most recent call last):
        ...
        tlsc.eval.images.picture.ImageError: a.jpg: JPEG holds 8 bits per channel, the image has 16: write PNG, TIFF
    """
    if path.suffix.lower() not in WRITABLE:
        raise ImageError(f"{path}: unknown format {path.suffix!r}; there are {', '.join(WRITABLE)}")
    name, depths, has_alpha = WRITABLE[path.suffix.lower()]
    if bits not in depths:
        raise ImageError(f"{path}: {name} holds 8 bits per channel, the image has {bits}: write PNG, TIFF")
    if alpha and not has_alpha:
        raise ImageError(f"{path}: {name} holds no alpha, the image has some: write PNG, TIFF or WebP")


def _read(path: Path, head: bytes, file: PIL.Image.Image) -> tuple[Pixels, Pixels | None, Metadata]:
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # a camera's JPEG with a preview behind the picture
        raise ImageError(f"holds {frames} images; save the one that is meant by itself")
    profile = file.info.get("icc_profile")
    stored = _orientation(file)
    deep = _is_16_bit(head, file)
    file.load()  # finds out that a file is truncated, whoever decodes it
    if deep == "PNG":
        pixels = _turned(imagecodecs.png_decode(path.read_bytes()), stored)
    elif deep == "TIFF":
        pixels = _turned(tifffile.imread(path, key=0), stored)
        if pixels.dtype != np.uint16 or pixels.ndim not in (2, 3):
            raise ImageError(
                f"a TIFF of {pixels.dtype} with shape {pixels.shape}: only 8 and 16 bit are known here"
            )
        if pixels.ndim == 3 and pixels.shape[2] > 4:
            raise ImageError(f"a TIFF of {pixels.shape[2]} channels: only grey and RGB are known here")
        if file.mode in ("CMYK", "LAB", "YCbCr"):
            raise ImageError(f"a 16 bit TIFF in {file.mode}: only grey and RGB are known here")
    else:
        if file.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
            profile = None  # it describes inks, or another space than RGB
        # Pillow turns TIFF upright on loading, and then says so.
        pixels = _turned(np.asarray(_in_known_mode(file)), _orientation(file))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    metadata = Metadata(profile=profile)
    if pixels.shape[2] in (2, 4):
        return pixels[..., :-1], pixels[..., -1], metadata
    return pixels, None, metadata


def _is_16_bit(head: bytes, file: PIL.Image.Image) -> str | None:
    """The format of a file that Pillow would cut to 8 bits or not read."""
    if file.format == "PNG":
        return "PNG" if head[24:25] == b"\x10" else None
    if file.format == "TIFF":
        depths = file.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return "TIFF" if max(depths) == 16 else None
    return None


def _in_known_mode(file: PIL.Image.Image) -> PIL.Image.Image:
    mode = file.mode
    if mode.startswith("I;16"):
        return file
    if mode in ("F", "I"):
        raise ImageError(f"holds 32 bit numbers (mode {mode}): only 8 and 16 bit are known here")
    if mode in ("LA", "La") or (mode in ("1", "L") and file.has_transparency_data):
        return file.convert("LA")
    if mode in ("1", "L"):
        return file.convert("L")
    return file.convert("RGBA" if file.has_transparency_data else "RGB")


def _orientation(file: PIL.Image.Image) -> int:
    try:
        return int(file.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata does not make a picture unusable
        return 1


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Upright, from what EXIF says the camera's first row and column are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _with_profile(png: bytes, profile: bytes | None) -> bytes:
    """A PNG with an ICC profile behind its header."""
    if profile is None:
        return png
    chunk = b"iCCP" + b"ICC Profile\0\0" + zlib.compress(profile)
    header = 8 + 25
    return (
        png[:header]
        + struct.pack(">I", len(chunk) - 4)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + png[header:]
    )

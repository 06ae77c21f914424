"""TIFF: what its tags say is asked of tifffile; the samples come from libvips where libvips gets them right.

The rest is unpacked by tifffile: palettes (libvips cuts their colours to 8 bit), colours multiplied by alpha (at 16
bit libvips divides by the wrong white), depths such as 12 bit, and compressions that are not in libvips' wheel.
"""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head, scaled, size_of, straight
from tlsc.eval.images.formats.vips import decoded, from_inks, spooled
from tlsc.eval.images.metadata import per_inch
from tlsc.eval.images.picture import ImageError, Metadata, Pixels

__all__ = ["read_tiff"]

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _INKS: 4, _YCBCR: 3}
_NO_COLOURS = {4: "a transparency mask", 8: "in CIE L*a*b*", 9: "in CIE L*a*b*", 10: "in CIE L*a*b*"} | {
    32803: "a camera's raw samples",
    34892: "a camera's raw samples",
    32844: "in LogLuv",
    32845: "in LogLuv",
}
_JPEG = 7
# None, three kinds of fax, LZW, JPEG, two kinds of deflate, PackBits.
_BY_VIPS = frozenset((1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773))
_MULTIPLIED, _STRAIGHT = 1, 2
_INTEGER, _FLOAT = (1, 4), 3
_SIGNED = 2


def read_tiff(file: BinaryIO) -> Head:
    """TIFF of one picture, previews behind it aside."""
    import tifffile

    file.seek(0)
    tif = tifffile.TiffFile(file)
    page = tif.pages[0]
    if not isinstance(page, tifffile.TiffPage):
        raise ImageError("damaged TIFF: its first directory cannot be read")
    behind: Any = tif.pages[1:]
    others = sum(not bool(int(other.subfiletype) & 1) for other in behind)
    if others:
        raise ImageError(f"TIFF that holds {others + 1} images: save the one that is meant by itself")
    return _Page(file, page).head()


class _Page:
    """The one picture of a TIFF."""

    def __init__(self, file: BinaryIO, page: Any) -> None:
        self.file, self.page = file, page
        if 262 not in page.tags:
            raise ImageError("TIFF that does not say what its samples mean (no PhotometricInterpretation)")
        self.photometric, self.compression = int(page.photometric), int(page.compression)
        bits = page.bitspersample
        self.bits = int(bits) if np.ndim(bits) == 0 else -1
        self.format = int(page.sampleformat)
        self.samples = int(page.samplesperpixel)
        self._refuse()
        self.extra = self.samples - _COLOURS[self.photometric]
        self.multiplied = self.extra == 1 and int(page.extrasamples[0]) == _MULTIPLIED
        self.shape = int(page.imagelength), int(page.imagewidth)

    def _refuse(self) -> None:
        """What is no picture in grey, RGB, palette or inks of a depth that is known."""
        page = self.page
        if self.photometric in _NO_COLOURS or 50706 in page.tags or self.photometric not in _COLOURS:
            what = "a camera's raw samples" if 50706 in page.tags else _NO_COLOURS.get(self.photometric)
            raise ImageError(f"TIFF {what or f'with samples of kind {self.photometric}'}: save it as grey or RGB")
        if int(page.subfiletype) & 1:
            raise ImageError("TIFF whose first image is a preview (a camera's raw file?): save it as grey or RGB")
        if int(page.imagedepth) > 1:
            raise ImageError("TIFF of a volume: save one slice by itself")
        if self.photometric == _YCBCR and self.compression != _JPEG:
            raise ImageError("TIFF in YCbCr: save it as RGB")
        known = (self.format in _INTEGER and 1 <= self.bits <= 16) or self.format == _FLOAT
        if not known or (self.format == _FLOAT and self.bits not in (16, 32, 64)):
            what = {_SIGNED: "whole numbers with a sign", _FLOAT: "floating point"}.get(self.format, "samples")
            depth = "different depths" if self.bits < 0 else f"{self.bits} bit"
            raise ImageError(f"TIFF with {what} of {depth}: known are whole numbers of 1 to 16 bit, and floats")
        self._refuse_channels()

    def _refuse_channels(self) -> None:
        page, colours = self.page, _COLOURS[self.photometric]
        extra = self.samples - colours
        if extra == 0:
            return
        if extra != 1 or len(page.extrasamples) != 1:
            raise ImageError(f"TIFF of {self.samples} channels: known are grey and RGB, with alpha or without")
        if int(page.extrasamples[0]) not in (_MULTIPLIED, _STRAIGHT):
            raise ImageError(
                f"TIFF of {self.samples} channels, of which the last is not said to be alpha: mark it as alpha "
                "(ExtraSamples 1 or 2), or save it without"
            )
        if self.photometric in (_PALETTE, _INKS):
            raise ImageError("TIFF in palette colours or inks with alpha: save it as RGB")

    def head(self) -> Head:
        height, width = self.shape
        dtype: Any
        if self.photometric == _PALETTE:
            channels, dtype = 3, np.uint8 if self._palette_is_8_bit() else np.uint16
        else:
            channels = 1 if _COLOURS[self.photometric] == 1 else 3
            dtype = np.float32 if self.format == _FLOAT else np.uint8 if self.bits <= 8 else np.uint16
        metadata = self._metadata()
        if self.photometric == _INKS:
            if dtype is not np.uint8 or self.bits != 8:
                raise ImageError(f"TIFF in inks of {self.bits} bit: save it as RGB")
            metadata = Metadata(None, metadata.exif, metadata.xmp, metadata.resolution)
        turn = self.page.tags.valueof(274, 1)
        turn = turn if isinstance(turn, int) and 1 <= turn <= 8 else 1
        mapped = self._mapped if self._is_plain() and self.page.is_memmappable else None
        as_they_are = self._is_for_vips() and self.photometric != _INKS
        spool = (lambda out: spooled(self.file, "tiff", out)) if as_they_are else None
        alpha = self.extra == 1
        return Head("TIFF", height, width, channels, alpha, dtype, self.decode, turn, metadata, mapped, spool)

    def decode(self) -> Pixels:
        if self._is_plain() and self.page.is_memmappable:
            pixels = self._mapped()
            return pixels if pixels.dtype.isnative else pixels.astype(pixels.dtype.newbyteorder("="))
        pixels = decoded(self.file, "tiff") if self._is_for_vips() else self._unpacked()
        if self.photometric == _INKS:
            return from_inks(pixels, self._profile())
        return straight(pixels) if self.multiplied else pixels

    def _is_plain(self) -> bool:
        """As in memory: may be mapped instead of read."""
        kinds = (_BLACK_IS_ZERO, _RGB)
        whole = self.bits in (8, 16) if self.format in _INTEGER else self.bits == 32
        return self.photometric in kinds and whole and not self.multiplied and self.page.planarconfig == 1

    def _mapped(self) -> Pixels:
        dtype = np.dtype(f"{self.page.parent.byteorder}{'f' if self.format == _FLOAT else 'u'}{self.bits // 8}")
        offset = int(self.page.dataoffsets[0])
        size = dtype.itemsize * self.samples * self.shape[0] * self.shape[1]
        if offset + size > size_of(self.file):
            raise ImageError("damaged TIFF: truncated, its samples reach beyond its end")
        pixels: Pixels = np.memmap(
            self.file, dtype=dtype, mode="r", offset=offset, shape=(*self.shape, self.samples)
        )
        return pixels

    def _is_for_vips(self) -> bool:
        if self.compression not in _BY_VIPS or self.photometric == _PALETTE or self.multiplied:
            return False
        if self.samples > 1 and self.page.planarconfig != 1 and (self.samples == 2 or self.page.is_tiled):
            return False  # libvips reads planes of grey and alpha wrong (8.18), and refuses those in tiles
        if self.format == _FLOAT:
            return self.bits in (16, 32) and self.photometric != _WHITE_IS_ZERO
        return self.bits in (8, 16) or (self.bits in (1, 2, 4) and self.samples == 1)

    def _unpacked(self) -> Pixels:
        """By tifffile, which reads over what is missing; so what is there is counted first."""
        page, size = self.page, size_of(self.file)
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if not places or any(not count or place + count > size for place, count in places):
            raise ImageError("damaged TIFF: truncated, some of its samples are missing")
        pixels = np.asarray(page.asarray())
        if self.samples > 1 and page.planarconfig != 1:
            pixels = np.moveaxis(pixels.reshape(self.samples, *self.shape), 0, -1)
        pixels = pixels.reshape(*self.shape, self.samples)
        if self.format == _FLOAT:
            pixels = pixels.astype(np.float32)
            return 1 - pixels if self.photometric == _WHITE_IS_ZERO else pixels
        if self.photometric == _PALETTE:
            return self._coloured(pixels[..., 0])
        pixels = scaled(pixels.astype(np.uint8 if self.bits <= 8 else np.uint16), 2**self.bits - 1)
        if self.photometric == _WHITE_IS_ZERO:
            pixels[..., 0] = np.iinfo(pixels.dtype).max - pixels[..., 0]
        return pixels

    def _palette(self) -> Pixels:
        colours = np.asarray(self.page.tags.valueof(320, ()), dtype=np.uint16)
        if colours.size != 3 * 2**self.bits:
            raise ImageError("damaged TIFF: its palette has not as many colours as its depth asks for")
        return colours.reshape(3, -1).T

    def _palette_is_8_bit(self) -> bool:
        """Written as multiples of 257 or of 256."""
        colours = self._palette()
        return bool((colours % 257 == 0).all() or (colours % 256 == 0).all())

    def _coloured(self, indices: Pixels) -> Pixels:
        colours = self._palette()
        if self._palette_is_8_bit():
            colours = (colours >> 8).astype(np.uint8)
        return colours[indices]

    # --------------------------------------------------------------------------------------------- metadata

    def _profile(self) -> bytes | None:
        value = self.page.tags.valueof(34675)
        return bytes(value) if isinstance(value, bytes) else None

    def _metadata(self) -> Metadata:
        tags = self.page.tags
        xmp = tags.valueof(700)
        unit = {2: 1 / 25.4, 3: 1 / 10}.get(int(tags.valueof(296, 2)))
        resolution = None
        if unit is not None and 282 in tags and 283 in tags:
            (across, of), (down, by) = tags.valueof(282), tags.valueof(283)
            resolution = per_inch(across / of * unit, down / by * unit) if of and by else None
        return Metadata(self._profile(), self._exif(), bytes(xmp) if isinstance(xmp, bytes) else None, resolution)

    def _exif(self) -> bytes | None:
        """What a camera writes, gathered from the file's directory, in which it stands among other things."""
        kept = (270, 271, 272, 305, 306, 315, 33432, 34665, 34853)
        if not any(tag in self.page.tags for tag in kept):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is odd in a camera's data
                return self._gathered(kept)
        except Exception:  # damaged metadata does not make a picture unusable
            return None

    def _gathered(self, kept: tuple[int, ...]) -> bytes | None:
        import PIL.Image

        if self.page.parent.is_bigtiff:  # Pillow does not look for it there
            return None
        self.file.seek(0)
        exif = PIL.Image.Exif()
        exif.load_from_fp(self.file)
        for tag in list(exif):
            if tag not in kept or str(exif.get(tag)).startswith('{"shape"'):
                del exif[tag]
        return exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else None

"""PNG, JPEG, WebP, AVIF and most TIFFs, by libvips, which makes an error of every warning of a decoder.

Its readers are called one by one: left to choose, libvips would open SVG and formats of its own, too, and take a
file's name for options.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from tlsc.eval.images.formats.head import Head, read_at, scaled, size_of
from tlsc.eval.images.metadata import orientation_of, per_inch
from tlsc.eval.images.picture import ImageError, Metadata, Pixels

__all__ = ["decoded", "from_inks", "read_avif", "read_jpeg", "read_png", "read_webp", "spooled"]


def decoded(file: BinaryIO, loader: str) -> Pixels:
    """All samples, (height, width, bands)."""
    image = _opened(file, loader)
    pixels: Pixels = np.ndarray(
        buffer=image.write_to_memory(), dtype=_DTYPES[image.format], shape=(image.height, image.width, image.bands)
    )
    return pixels


def spooled(file: BinaryIO, loader: str, out: BinaryIO) -> None:
    """All samples to a file, strip by strip as they are decoded."""
    import pyvips

    out.flush()
    _opened(file, loader).rawsave_target(pyvips.Target.new_to_descriptor(out.fileno()))


_DTYPES: dict[str, Any] = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}


def _opened(file: BinaryIO, loader: str) -> Any:
    import pyvips

    file.seek(0)
    source = pyvips.Source.new_from_descriptor(file.fileno())
    return getattr(pyvips.Image, f"{loader}load_source")(source, access="sequential", fail_on="warning")


def _field(image: Any, name: str) -> bytes | None:
    return bytes(image.get(name)) if image.get_typeof(name) else None


def _metadata(image: Any, resolution: tuple[float, float] | None) -> Metadata:
    exif = _field(image, "exif-data")
    if exif is not None:
        exif = exif.removeprefix(b"Exif\0\0")
    return Metadata(_field(image, "icc-profile-data"), exif, _field(image, "xmp-data"), resolution)


def _head(file: BinaryIO, form: str, loader: str, resolution: tuple[float, float] | None = None) -> Head:
    image = _opened(file, loader)
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    if pages > 1:
        raise ImageError(f"{form} that holds {pages} images: save the one that is meant by itself")
    if image.interpretation == "cmyk":
        return _inked(file, form, loader, image, resolution)
    if image.bands > 4 or image.format not in _DTYPES:
        raise ImageError(
            f"{form} of {image.bands} channels of type {image.format}: only grey and RGB are known here"
        )
    metadata = _metadata(image, resolution)
    alpha = image.bands in (2, 4)
    return Head(
        form,
        image.height,
        image.width,
        image.bands - alpha,
        alpha,
        _DTYPES[image.format],
        lambda: decoded(file, loader),
        orientation_of(metadata.exif),
        metadata,
        spool=lambda out: spooled(file, loader, out),
    )


def _inked(file: BinaryIO, form: str, loader: str, image: Any, resolution: tuple[float, float] | None) -> Head:
    """Inks become RGB: by the file's profile to sRGB, by the plain formula where it has none."""
    metadata = _metadata(image, resolution)
    if image.bands != 4 or image.format != "uchar":
        raise ImageError(f"{form} in {image.bands} inks of type {image.format}: save it as RGB")
    return Head(
        form,
        image.height,
        image.width,
        3,
        False,
        np.uint8,
        lambda: from_inks(decoded(file, loader), metadata.profile),
        orientation_of(metadata.exif),
        Metadata(None, metadata.exif, metadata.xmp, metadata.resolution),
    )


def from_inks(inks: Pixels, profile: bytes | None) -> Pixels:
    """RGB of cyan, magenta, yellow and black, 8 bit."""
    if profile is not None:
        import pyvips

        image = pyvips.Image.new_from_array(inks, interpretation="cmyk")
        image = image.mutate(lambda changed: changed.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile))
        return np.asarray(image.icc_transform("srgb", embedded=True, intent="relative").numpy())
    rgb = np.empty((*inks.shape[:2], 3), np.uint8)
    for row, new in zip(inks, rgb, strict=True):
        light = 255 - row[:, 3:].astype(np.int32)
        product = row[:, :3] * light + 128
        new[:] = np.clip(light - ((product >> 8) + product >> 8), 0, 255)  # product / 255, rounded
    return rgb


# ------------------------------------------------------------------------------------------------ one by one


def read_jpeg(file: BinaryIO) -> Head:
    """The first picture of a JPEG; cameras put previews behind it."""
    image = _opened(file, "jpeg")
    known = image.get_typeof("resolution-unit") != 0
    return _head(file, "JPEG", "jpeg", per_inch(image.xres, image.yres) if known else None)


def read_webp(file: BinaryIO) -> Head:
    """WebP of one frame."""
    return _head(file, "WebP", "webp")


def read_avif(file: BinaryIO) -> Head:
    """AVIF of one picture. 10 and 12 bit are scaled to 16; the container's own turn is applied by the decoder."""
    if read_at(file, 8, 4) == b"avis":
        raise ImageError("AVIF that holds an animation: save the image that is meant by itself")
    head = _head(file, "AVIF", "heif")
    image = _opened(file, "heif")
    bits = int(image.get("bits-per-sample")) if image.get_typeof("bits-per-sample") else 8
    if not 8 < bits < 16:
        return replace(head, orientation=1)
    # Moved to the upper bits by libvips, so that white would not be white.
    return replace(
        head, orientation=1, spool=None, decode=lambda: scaled(head.decode() >> (16 - bits), 2**bits - 1)
    )


def read_png(file: BinaryIO) -> Head:
    """PNG; an animated one of more than one frame is refused, and one that does not reach its end."""
    resolution, frames, offset, size = None, 1, 8, size_of(file)
    while True:
        header = read_at(file, offset, 8)
        if len(header) < 8:
            raise ImageError("damaged PNG: truncated, its end is missing")
        length, kind = struct.unpack(">I4s", header)
        if offset + 12 + length > size:
            raise ImageError("damaged PNG: truncated inside a chunk")
        if kind == b"acTL" and length >= 4:
            frames = struct.unpack(">I", read_at(file, offset + 8, 4))[0]
        elif kind == b"pHYs" and length == 9:
            across, down, unit = struct.unpack(">IIB", read_at(file, offset + 8, 9))
            resolution = per_inch(across / 1000, down / 1000) if unit == 1 else None
        elif kind == b"IEND":
            break
        offset += 12 + length
    if frames > 1:
        raise ImageError(f"animated PNG that holds {frames} images: save the one that is meant by itself")
    return _head(file, "PNG", "png", resolution)

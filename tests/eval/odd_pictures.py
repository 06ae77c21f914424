"""Odd but valid picture files, each with the samples that are in it: made by other libraries or byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 23, 31
_RANDOM = np.random.default_rng(7)
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
RGB8 = np.stack([_Y * 11 % 256, _X * 8 % 256, (_Y * 3 + _X * 5) % 256], -1).astype(np.uint8)
RGB16 = _RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
ALPHA8 = _RANDOM.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA16 = _RANDOM.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
FLOATS = _RANDOM.random((HEIGHT, WIDTH, 3), dtype=np.float32)


@dataclass(frozen=True)
class Odd:
    """A file.

    Attributes:
        name: its name.
        write: writes it.
        samples: (height, width, 1 to 4), alpha last; None where it is to be refused.
        tolerance: in the samples' own units, where the format loses something.
    """

    name: str
    write: Callable[[Path], Any]
    samples: NDArray[Any] | None
    tolerance: float = 0


def _bytes(name: str, data: bytes, samples: NDArray[Any] | None, tolerance: float = 0) -> Odd:
    return Odd(name, lambda path: path.write_bytes(data), samples, tolerance)


def _tiff(
    name: str, stored: NDArray[Any], samples: NDArray[Any] | None, tolerance: float = 0, **options: Any
) -> Odd:
    return Odd(f"{name}.tif", lambda path: tifffile.imwrite(path, stored, **options), samples, tolerance)


def _pillow(
    name: str, image: Image.Image, samples: NDArray[Any] | None, tolerance: float = 0, **options: Any
) -> Odd:
    return Odd(name, lambda path: image.save(path, **options), samples, tolerance)


def _way(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Samples as a camera stores them that is held so."""
    ways = {2: samples[:, ::-1], 3: samples[::-1, ::-1], 4: samples[::-1], 5: samples.swapaxes(0, 1)}
    ways |= {6: np.rot90(samples, 1), 7: np.rot90(samples, 2).swapaxes(0, 1), 8: np.rot90(samples, -1)}
    return np.ascontiguousarray(ways[orientation])


def odd_pictures() -> Iterator[Odd]:
    """All of them."""
    for bits in (8, 16):
        yield from _tiffs(bits)
    yield from _float_tiffs()
    yield from _deep_tiffs()
    yield from _pngs()
    yield from _netpbm()
    yield from _by_others()


def _tiffs(bits: int) -> Iterator[Odd]:
    white = 2**bits - 1
    rgb, alpha = (RGB8, ALPHA8) if bits == 8 else (RGB16, ALPHA16)
    grey = rgb[..., 0].copy()
    rgba, cut = np.dstack([rgb, alpha]), np.dstack([grey, alpha])
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    yield _tiff(f"rgb{bits}", rgb, rgb, photometric="rgb")
    yield _tiff(f"grey{bits}", grey, grey[..., None], photometric="minisblack")
    yield _tiff(f"white_is_zero{bits}", white - grey, grey[..., None], photometric="miniswhite")
    yield _tiff(f"white_packed{bits}", white - grey, grey[..., None], photometric="miniswhite", compression="zstd")
    yield _tiff(f"planar{bits}", planes, rgb, photometric="rgb", planarconfig="separate")
    yield _tiff(f"planar_zstd{bits}", planes, rgb, photometric="rgb", planarconfig="separate", compression="zstd")
    yield _tiff(f"planar_tiled{bits}", planes, rgb, photometric="rgb", planarconfig="separate", tile=(16, 16))
    yield _tiff(f"rgba{bits}", rgba, rgba, photometric="rgb", extrasamples=["unassalpha"])
    options: dict[str, Any] = {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
    yield _tiff(f"cut{bits}", cut, cut, planarconfig="contig", **options)
    apart = np.ascontiguousarray(cut.transpose(2, 0, 1))
    yield _tiff(f"planar_cut{bits}", apart, cut, planarconfig="separate", **options)
    yield _tiff(f"planar_cut_packed{bits}", apart, cut, planarconfig="separate", compression="zlib", **options)
    stored = np.ascontiguousarray(rgba.transpose(2, 0, 1))
    yield _tiff(
        f"planar_rgba{bits}", stored, rgba, photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]
    )
    times = np.rint(rgb.astype(float) * alpha[..., None] / white)
    divided = np.where(alpha[..., None] > 0, np.rint(times * white / np.maximum(alpha, 1)[..., None]), 0)
    yield _tiff(
        f"multiplied{bits}",
        np.dstack([times.astype(rgb.dtype), alpha]),
        np.dstack([np.minimum(divided, white).astype(rgb.dtype), alpha]),
        tolerance=1,  # a half is rounded up here and down there
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    for packed in ("zlib", "lzw", "zstd", "lzma", "packbits", "jpeg2000"):
        yield _tiff(f"{packed}{bits}", rgb, rgb, photometric="rgb", compression=packed)
    yield _tiff(f"predictor{bits}", rgb, rgb, photometric="rgb", compression="zlib", predictor=2)
    yield _tiff(f"tiled{bits}", rgb, rgb, photometric="rgb", tile=(16, 16))
    yield _tiff(f"strips{bits}", rgb, rgb, photometric="rgb", rowsperstrip=5, compression="lzw")
    yield _tiff(f"big_endian{bits}", rgb, rgb, photometric="rgb", byteorder=">")
    yield _tiff(f"bigtiff{bits}", rgb, rgb, photometric="rgb", bigtiff=True)
    yield _tiff(f"private_tag{bits}", rgb, rgb, photometric="rgb", extratags=[(65000, "B", 4, b"abcd", True)])
    for turn in (2, 3, 4, 5, 6, 7, 8):
        tags = [(274, "H", 1, turn, True)]
        yield _tiff(f"turned{turn}_{bits}", _way(rgb, turn), rgb, photometric="rgb", extratags=tags)
        yield _tiff(
            f"turned{turn}_{bits}_lzw", _way(rgb, turn), rgb, photometric="rgb", extratags=tags, compression=5
        )
    yield _tiff(f"unknown_fourth{bits}", rgba, None, photometric="rgb", extrasamples=["unspecified"])
    yield _tiff(f"five{bits}", np.dstack([rgba, alpha]), None, photometric="rgb", extrasamples=["unspecified"] * 2)
    yield _tiff(f"pages{bits}", np.stack([rgb, rgb]), None, photometric="rgb")
    yield _tiff(f"four_pages{bits}", np.stack([grey[:, :4]] * 4), None, photometric="minisblack")
    yield _tiff(f"lab{bits}", rgb, None, photometric="cielab")
    yield _tiff(f"ycbcr{bits}", rgb, None, photometric="ycbcr")
    inks = np.dstack([rgb, grey])
    shown = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")) if bits == 8 else None
    yield _tiff(f"inks{bits}", inks, shown, photometric="separated")
    yield _tiff(f"inks_zstd{bits}", inks, shown, photometric="separated", compression="zstd")
    for name, factor in (("257", 257), ("256", 256), ("deep", 1)):
        colours = _RANDOM.integers(0, 256 if factor > 1 else 65536, (3, 2**bits), dtype=np.uint16) * np.uint16(
            factor
        )
        wanted = colours.T[grey] if factor == 1 else (colours.T[grey] >> 8).astype(np.uint8)
        yield _tiff(f"palette_{name}_{bits}", grey, wanted, photometric="palette", colormap=colours)


def _float_tiffs() -> Iterator[Odd]:
    f = FLOATS
    yield _tiff("float", f, f, photometric="rgb")
    yield _tiff("float_grey", f[..., 0], f[..., :1], photometric="minisblack")
    yield _tiff("float_packed", f, f, photometric="rgb", compression="zlib", predictor=3)
    yield _tiff("float_planar", np.ascontiguousarray(f.transpose(2, 0, 1)), f, photometric="rgb", planarconfig=2)
    half = f.astype(np.float16)
    yield _tiff("half", half, half.astype(np.float32), photometric="rgb")
    yield _tiff("double", f.astype(np.float64), f, photometric="rgb")
    yield _tiff("too_bright", f * 300, None, photometric="rgb")
    yield _tiff("not_a_number", np.where(f > 0.9, np.float32(np.nan), f), None, photometric="rgb")
    whole = RGB16[..., 0]
    for dtype in (np.int8, np.int16, np.int32, np.uint32):
        yield _tiff(f"kind_{np.dtype(dtype)}", whole.astype(dtype), None, photometric="minisblack")
    yield _tiff("complex", whole.astype(np.complex64), None, photometric="minisblack")


def _deep_tiffs() -> Iterator[Odd]:
    """One to 14 bits, packed without gaps, by hand."""
    grey = RGB16[..., 0]
    for bits in (1, 2, 4, 6, 10, 12, 14):
        values = grey >> (16 - bits)
        white = 255 if bits <= 8 else 65535
        wanted = np.rint(values.astype(float) * white / (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
        yield _bytes(f"bits{bits}.tif", _packed_tiff(values, bits, 1), wanted[..., None])
        yield _bytes(f"bits{bits}_white.tif", _packed_tiff(values, bits, 0), (white - wanted)[..., None])


def _packed_tiff(values: NDArray[Any], bits: int, photometric: int) -> bytes:
    shifts = np.arange(bits - 1, -1, -1)
    rows = [np.packbits((row[:, None] >> shifts & 1).astype(np.uint8).ravel()).tobytes() for row in values]
    body = b"".join(rows)
    body += b"\0" * (len(body) % 2)
    tags = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, HEIGHT), (279, len(rows[0]) * HEIGHT)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(bits: int, kind: int, rows: list[bytes], *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + _chunk(b"IEND", b"")


def _pngs() -> Iterator[Odd]:
    grey8, grey16 = RGB8[..., :1], RGB16[..., :1]
    all_ = {"rgb8": RGB8, "rgb16": RGB16, "grey8": grey8, "grey16": grey16}
    all_ |= {"rgba8": np.dstack([RGB8, ALPHA8]), "rgba16": np.dstack([RGB16, ALPHA16])}
    all_ |= {"cut8": np.dstack([grey8, ALPHA8]), "cut16": np.dstack([grey16, ALPHA16])}
    for name, samples in all_.items():
        rows = [row.astype(row.dtype.newbyteorder(">")).tobytes() for row in samples]
        kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2]]
        yield _bytes(f"{name}.png", _png(8 * samples.itemsize, kind, rows), samples)
        if samples.shape[2] in (1, 3):
            colour = samples[0, 0]
            white = np.iinfo(samples.dtype).max
            hidden = np.where((samples == colour).all(-1), 0, white).astype(samples.dtype)
            clear = _chunk(b"tRNS", struct.pack(f">{len(colour)}H", *map(int, colour)))
            data = _png(8 * samples.itemsize, kind, rows, clear)
            yield _bytes(f"{name}_clear.png", data, np.dstack([samples, hidden]))
    for bits in (1, 2, 4):
        values = grey8[..., 0] >> (8 - bits)
        wanted = (values.astype(int) * 255 // (2**bits - 1)).astype(np.uint8)[..., None]
        yield _bytes(f"grey{bits}.png", _png(bits, 0, _packed(values, bits)), wanted)
        palette = _RANDOM.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        colours = _chunk(b"PLTE", palette.tobytes())
        yield _bytes(f"palette{bits}.png", _png(bits, 3, _packed(values, bits), colours), palette[values])
        alphas = (np.arange(2**bits) * 7).astype(np.uint8)
        data = _png(bits, 3, _packed(values, bits), colours, _chunk(b"tRNS", alphas.tobytes()))
        yield _bytes(f"palette{bits}_clear.png", data, np.dstack([palette[values], alphas[values]]))
    one, two = Image.fromarray(RGB8), Image.fromarray(255 - RGB8)
    for name in ("moving.png", "moving.gif", "moving.webp", "moving.avif"):
        yield _pillow(name, one, None, save_all=True, append_images=[two])


def _packed(values: NDArray[np.uint8], bits: int) -> list[bytes]:
    shifts = np.arange(bits - 1, -1, -1)
    return [np.packbits((row[:, None] >> shifts & 1).astype(np.uint8).ravel()).tobytes() for row in values]


def _netpbm() -> Iterator[Odd]:
    size, grey = b"%d %d" % (WIDTH, HEIGHT), RGB16[..., :1]
    deep = RGB16.astype(">u2").tobytes()
    yield _bytes("a.ppm", b"P6\n# made\n" + size + b"\n255\n" + RGB8.tobytes(), RGB8)
    yield _bytes("deep.ppm", b"P6 " + size + b" 65535\n" + deep, RGB16)
    yield _bytes("deep.pgm", b"P5\n" + size + b"\n65535\n" + grey.astype(">u2").tobytes(), grey)
    for most in (1, 100, 254, 256, 1023, 4095):
        values = (grey % (most + 1)).astype(np.uint8 if most < 256 else ">u2")
        white = 255 if most < 256 else 65535
        wanted = np.rint(values.astype(float) * white / most).astype(np.uint8 if most < 256 else np.uint16)
        yield _bytes(f"most{most}.pgm", b"P5\n" + size + b"\n%d\n" % most + values.tobytes(), wanted)
    for name, samples, kind in (("text.ppm", RGB8, b"P3"), ("text.pgm", grey, b"P2")):
        words = b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in samples)
        yield _bytes(name, kind + b"\n" + size + b"\n%d\n" % np.iinfo(samples.dtype).max + words + b"\n", samples)
    black = RGB8[..., :1] < 100
    wanted = np.where(black, 0, 255).astype(np.uint8)
    yield _bytes("a.pbm", b"P4\n" + size + b"\n" + np.packbits(black[..., 0], axis=1).tobytes(), wanted)
    yield _bytes("text.pbm", b"P1\n" + size + b"\n" + b" ".join(b"%d" % v for v in black.ravel()), wanted)
    for name, order, scale in (("little.pfm", "<f4", b"-1.0"), ("big.pfm", ">f4", b"1.0")):
        yield _bytes(name, b"PF\n" + size + b"\n" + scale + b"\n" + FLOATS[::-1].astype(order).tobytes(), FLOATS)
    head = b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 4\nMAXVAL 65535\nTUPLTYPE RGB_ALPHA\nENDHDR\n" % (WIDTH, HEIGHT)
    rgba = np.dstack([RGB16, ALPHA16])
    yield _bytes("a.pam", head + rgba.astype(">u2").tobytes(), rgba)
    yield _bytes("two.ppm", (b"P6 " + size + b" 255\n" + RGB8.tobytes()) * 2, None)


def _by_others() -> Iterator[Odd]:
    image, grey = Image.fromarray(RGB8), Image.fromarray(RGB8[..., 0])
    rgba = np.dstack([RGB8, ALPHA8])
    for name, options in {"a": {}, "progressive": {"progressive": True}}.items():
        yield _pillow(f"{name}.jpg", image, RGB8, 12, quality=98, subsampling=0, **options)
    yield _pillow("grey.jpg", grey, RGB8[..., :1], 8, quality=98)
    inks = image.convert("CMYK")
    yield _pillow("inks.jpg", inks, np.asarray(inks.convert("RGB")), 12, quality=98)
    for turn in (2, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = turn
        stored = Image.fromarray(_way(RGB8, turn))
        yield _pillow(f"turned{turn}.jpg", stored, RGB8, 12, quality=98, subsampling=0, exif=exif)
        yield _pillow(f"turned{turn}.webp", stored, RGB8, lossless=True, exif=exif)
        yield _pillow(f"turned{turn}.png", stored, RGB8, exif=exif)
        yield _pillow(f"turned{turn}.avif", stored, RGB8, 25, quality=98, subsampling="4:4:4", exif=exif)
    palette = image.quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    yield _pillow("palette.gif", palette, shown)
    yield _pillow("palette.bmp", palette, shown)
    yield _pillow("palette.tif", palette, shown)
    yield _pillow("rgb.bmp", image, RGB8)
    yield _pillow("grey.bmp", grey, RGB8[..., :1])
    yield _pillow(
        "bilevel.bmp", grey.point(lambda v: v > 100, "1"), np.where(RGB8[..., :1] > 100, 255, 0).astype("u1")
    )
    yield _pillow("a.webp", image, RGB8, lossless=True)
    yield _pillow("cut.webp", Image.fromarray(rgba), rgba, lossless=True, exact=True)
    yield _pillow("a.avif", image, RGB8, 25, quality=98, subsampling="4:4:4")
    for bits in (10, 12):
        values = RGB16 >> (16 - bits)
        data = imagecodecs.avif_encode(values, level=100, bitspersample=bits, pixelformat="444")
        stored = np.asarray(imagecodecs.avif_decode(data))
        wanted = np.rint(stored * (65535 / (2**bits - 1))).astype(np.uint16)
        yield _bytes(f"bits{bits}.avif", data, wanted)
    for name, samples in {"a": RGB8, "deep": RGB16, "grey": RGB16[..., 0]}.items():
        wanted = samples if samples.ndim == 3 else samples[..., None]
        yield _bytes(f"{name}.jp2", imagecodecs.jpeg2k_encode(samples, level=0, reversible=True), wanted)
        data = imagecodecs.jpeg2k_encode(samples, level=0, reversible=True, codecformat="j2k")
        yield _bytes(f"{name}.j2k", data, wanted)
    yield _pillow("cut.jp2", Image.fromarray(rgba), rgba, irreversible=False)
    yield _bytes(
        "unsaid.jp2", imagecodecs.jpeg2k_encode(np.dstack([RGB16, ALPHA16]), level=0, reversible=True), None
    )
    light = np.asarray(imagecodecs.rgbe_decode(imagecodecs.rgbe_encode(FLOATS, header=True)))
    yield _bytes("a.hdr", imagecodecs.rgbe_encode(FLOATS, header=True), light)
    yield _bytes("bright.hdr", imagecodecs.rgbe_encode(FLOATS * 50, header=True), None)
    yield _bytes("a.jxl", imagecodecs.jpegxl_encode(RGB8, lossless=True), None)
    for kind in ("R G B", "R G B A", "Y"):
        for scale in (1, 50) if kind == "R G B" else (1,):
            yield from _exr(kind, scale)
    for name, samples in {"a8": RGB8, "a16": RGB16, "af": FLOATS, "ad": FLOATS.astype(float), "cut": rgba}.items():
        wanted = samples.astype(np.float32) if samples.dtype.kind == "f" else samples
        yield Odd(f"{name}.npy", lambda path, samples=samples: np.save(path, samples), wanted)  # type: ignore[misc]
    yield Odd("big_endian.npy", lambda path: np.save(path, RGB16.astype(">u2")), RGB16)
    yield Odd("fortran.npy", lambda path: np.save(path, np.asfortranarray(RGB16)), RGB16)
    yield Odd("signed.npy", lambda path: np.save(path, RGB16.astype(np.int16)), None)


def _exr(kind: str, scale: int) -> Iterator[Odd]:
    openexr: Any = __import__("OpenEXR")
    names = kind.split()
    alpha = FLOATS[..., 0] * 0.5 + 0.5
    planes = dict(zip("RGB", np.moveaxis(FLOATS * scale, -1, 0), strict=True)) | {"A": alpha, "Y": FLOATS[..., 0]}
    if "A" in names:
        planes |= {name: planes[name] * alpha for name in "RGB"}
    stored = {name: np.ascontiguousarray(planes[name]) for name in names}
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    wanted = {1: FLOATS[..., :1], 3: FLOATS, 4: np.dstack([FLOATS, alpha])}[len(names)]
    name = f"{''.join(names)}{scale}.exr"
    yield Odd(name, lambda p: openexr.File(header, stored).write(str(p)), None if scale > 1 else wanted, 1e-6)

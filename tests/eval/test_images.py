"""The one reader and writer of pictures: odd files, damaged ones, what is no file, metadata."""

from __future__ import annotations

import csv
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from numpy.typing import NDArray
from PIL.TiffImagePlugin import IFDRational

from tlsc.eval import cli
from tlsc.eval.data.datasets import find_pairs
from tlsc.eval.images import ImageError, Picture, open_picture, read_image, read_picture, write_picture

from .odd_pictures import FLOATS, RGB8, RGB16, Odd, odd_pictures

ODD = list(odd_pictures())


def _stored(path: Path) -> NDArray[Any]:
    with open_picture(path) as file:
        pixels, alpha = file.samples()
    return pixels if alpha is None else np.dstack([pixels, alpha])


def _assert_verbs_agree(path: Path) -> bool:
    """Whether ``eval`` and ``restore`` read the file; both see the same, or both refuse it in one line."""
    whole, said = None, ""
    try:
        whole = read_picture(path)
    except ImageError as error:
        said = str(error)
    if whole is None:
        assert said.startswith(str(path))
        assert "\n" not in said
        with pytest.raises(ImageError):
            read_image(path)
        return False
    samples = read_image(path)
    most = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    assert np.array_equal(samples.astype(np.float32) / np.float32(most), whole.pixels)
    return True


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_an_odd_file_is_read_as_stored_or_refused(odd: Odd, tmp_path: Path) -> None:
    path = tmp_path / odd.name
    odd.write(path)
    assert _assert_verbs_agree(path) == (odd.samples is not None)
    if odd.samples is not None:
        got = _stored(path)
        assert got.dtype == odd.samples.dtype
        assert got.shape == odd.samples.shape
        assert np.abs(got.astype(np.float64) - odd.samples.astype(np.float64)).max() <= odd.tolerance


# --------------------------------------------------------------------------------------------------- damage

_DAMAGED = ("rgb8.png", "rgb16.png", "a.jpg", "progressive.jpg", "zlib8.tif", "lzw16.tif", "zstd8.tif", "a.webp")
_DAMAGED += ("a.avif", "palette.gif", "rgb.bmp", "deep.ppm", "deep.jp2", "RGB1.exr", "a.hdr")
# Every sample is under a checksum, so that no flipped byte can be overlooked.
_WITH_CHECKSUM = ("rgb8.png", "rgb16.png")


def _damaged(data: bytes, number: int, random: np.random.Generator) -> bytes:
    """Cut somewhere, or with a byte that is another."""
    at = int(random.integers(1, len(data)))
    return (
        data[:at] if number % 2 else data[:at] + bytes([data[at] ^ int(random.integers(1, 256))]) + data[at + 1 :]
    )


def _try_damage(names: tuple[str, ...], number: int, folder: Path) -> Counter[str]:
    """Counts of what became of ``number`` damaged files of each name."""
    random, counts = np.random.default_rng(5), Counter[str]()
    for odd in (odd for odd in ODD if odd.name in names):
        path = folder / odd.name
        odd.write(path)
        data, whole = path.read_bytes(), _stored(path)
        for index in range(number):
            hurt = folder / f"{index}-{odd.name}"
            hurt.write_bytes(_damaged(data, index, random))
            kind = "cut" if index % 2 else "flipped"
            if not _assert_verbs_agree(hurt):
                counts[f"{kind}, refused"] += 1
                continue
            same = np.array_equal(_stored(hurt), whole)
            counts[f"{kind}, {'the same' if same else 'another'} picture"] += 1
            assert same or (kind == "flipped" and odd.name not in _WITH_CHECKSUM), hurt.name
    return counts


def test_damaged_files_are_never_read_in_part(tmp_path: Path) -> None:
    counts = _try_damage(_DAMAGED, 4, tmp_path)
    assert sum(counts.values()) == 4 * len(_DAMAGED)
    assert counts["cut, refused"] >= 2 * len(_DAMAGED) - 2


@pytest.mark.slow
def test_many_damaged_and_odd_files_through_both_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hundreds of files: each is named, or restored whole, and measured by ``eval``; the counts are printed."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    counts = _try_damage(_DAMAGED, 20, folder)
    for odd in ODD:
        odd.write(folder / odd.name)
    good = {path.name: _assert_verbs_agree(path) for path in sorted(folder.iterdir())}
    refused = {name for name, read in good.items() if not read}
    assert cli.main(["restore", str(folder / "*"), str(out), "--checkpoint", "hin"]) == 1
    said = capsys.readouterr()
    named = {Path(line.split(": ")[1]).name for line in said.err.splitlines() if line.startswith("tlsc: ")}
    written = list(out.iterdir())
    for path in written:
        with PIL.Image.open(path) as image:
            image.load()
    assert len(written) + len(named & set(good)) == len(good)
    assert named >= refused
    assert "Traceback" not in said.err
    floats = named & (set(good) - refused)
    assert all(name.endswith((".exr", ".hdr", ".pfm", ".npy", ".tif")) for name in floats)  # PNG holds no floats

    measured = tmp_path / "measured"
    options = ["--degrade", "noise:5", "--tile", "64", "--overlap", "0", "--base-size", "16", "--no-report"]
    assert cli.main(["eval", "hin", str(folder), *options, "--skip-bad", "--out", str(measured)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    with (measured / "results.csv").open(newline="", encoding="utf-8") as file:
        states = {row["image"]: row["status"] for row in csv.DictReader(file)}
    assert {name for name, state in states.items() if state == "ok"} == set(good) - refused
    assert {name for name, state in states.items() if state == "unreadable"} == refused
    with capsys.disabled():
        print(
            f"\n{counts}; odd {len(ODD)}; written {len(written)}, named {len(named)} ({len(floats)} floats), "
            f"measured {len(good) - len(refused)}"
        )


def test_a_bomb_is_refused_and_a_large_picture_is_not(tmp_path: Path) -> None:
    blank = PIL.Image.new("1", (40000, 40000))
    blank.save(tmp_path / "bomb.tif", compression="group4")
    with pytest.raises(ImageError, match="bomb"):
        open_picture(tmp_path / "bomb.tif")
    with open_picture(tmp_path / "bomb.tif", trusted=True) as file:
        assert (file.height, file.width) == (40000, 40000)
    with (tmp_path / "large.npy").open("wb") as array:  # 200 megapixels, most of it a hole in the file
        np.lib.format.write_array_header_1_0(
            array, {"descr": "|u1", "fortran_order": False, "shape": (10000, 20000, 3)}
        )
        array.truncate(array.tell() + 600_000_000)
    assert read_image(tmp_path / "large.npy").shape == (10000, 20000, 3)


@pytest.mark.slow
def test_two_hundred_megapixels_are_read(tmp_path: Path) -> None:
    """More than Pillow's limit, as PNG, JPEG and BMP."""
    pixels = np.zeros((12000, 17000), np.uint8)
    pixels[::64] = 200
    for name in ("a.png", "a.jpg", "a.bmp"):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        assert np.abs(read_image(tmp_path / name)[..., 0].astype(np.int16) - pixels).max() < 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_what_is_no_file_is_named_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s.png"))
    for name, said in {"pipe.png": "a pipe", "folder.png": "a folder", "s.png": "a socket"}.items():
        with pytest.raises(ImageError, match=said):
            open_picture(tmp_path / name)
    listening.close()
    with pytest.raises(ImageError, match="a device"):
        open_picture(Path("/dev/zero"))
    with pytest.raises(ImageError, match="No such file"):
        open_picture(tmp_path / "none.png")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    names = (b"na\xefve.png", b"a[page=1].png")  # formats are told by their bytes
    for odd in (
        odd for odd in ODD if odd.name in ("rgb8.png", "a.jpg", "lzw8.tif", "rgb8.tif", "RGB1.exr", "a.jp2")
    ):
        odd.write(tmp_path / odd.name)
        for name in names:
            path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
            os.rename(tmp_path / odd.name, path)
            assert _stored(path).shape == RGB8.shape
            assert find_pairs([tmp_path], "noise:5").checked().pairs[0].name.isprintable()
            os.rename(path, tmp_path / odd.name)


# -------------------------------------------------------------------------------------------------- metadata


def _photograph(path: Path) -> bytes:
    """A camera's JPEG on its side; returns its profile."""
    exif = PIL.Image.Exif()
    exif[271], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8769)[33434] = IFDRational(1, 250)
    exif.get_ifd(0x8825)[1] = "N"
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" b="Rated"/></x:xmpmeta>'
    PIL.Image.fromarray(RGB8).save(path, exif=exif, icc_profile=profile, xmp=xmp, dpi=(300, 200))
    return profile


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.tif", "deep.tif", "a.jpg", "a.webp"])
def test_metadata_are_kept_and_say_upright(name: str, tmp_path: Path) -> None:
    profile = _photograph(tmp_path / "camera.jpg")
    picture = read_picture(tmp_path / "camera.jpg")
    assert picture.pixels.shape[:2] == RGB8.shape[1::-1]
    bits = 16 if "deep" in name else 8
    written = Picture(picture.pixels, None, bits, picture.profile, picture.metadata)
    write_picture(tmp_path / name, written)
    again = read_picture(tmp_path / name)
    assert again.pixels.shape == picture.pixels.shape
    assert again.profile == profile
    assert again.metadata.exif is not None
    exif = PIL.Image.Exif()
    exif.load(again.metadata.exif)
    assert exif[271] == "Maker"
    assert exif.get(0x0112, 1) == 1
    assert float(exif.get_ifd(0x8769)[33434]) == pytest.approx(1 / 250)
    assert exif.get_ifd(0x8825)[1] == "N"
    assert again.metadata.xmp is not None
    assert b'tiff:Orientation="1"' in again.metadata.xmp
    assert b"Rated" in again.metadata.xmp
    if not name.endswith("webp"):
        assert again.metadata.resolution == pytest.approx((200, 300), abs=0.5)  # it was turned


def test_damaged_metadata_do_not_make_a_picture_unusable(tmp_path: Path) -> None:
    PIL.Image.fromarray(RGB8).save(
        tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xff damaged"
    )
    assert np.array_equal(read_image(tmp_path / "a.webp"), RGB8)
    write_picture(tmp_path / "b.tif", read_picture(tmp_path / "a.webp"))
    assert np.array_equal(read_image(tmp_path / "b.tif"), RGB8)


def test_floats_are_written_as_tiff_only(tmp_path: Path) -> None:
    picture = Picture(FLOATS, bits=32)
    write_picture(tmp_path / "a.tif", picture)
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, FLOATS)
    with pytest.raises(ImageError, match="has floating point: write TIFF"):
        write_picture(tmp_path / "a.png", picture)


def test_colours_under_full_transparency_are_written(tmp_path: Path) -> None:
    alpha = np.zeros(RGB8.shape[:2], np.float32)
    for name in ("a.png", "a.tif", "a.webp"):
        write_picture(tmp_path / name, Picture(RGB8 / np.float32(255), alpha))
        assert np.array_equal(read_image(tmp_path / name), RGB8)


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(RGB16))
    with open_picture(tmp_path / "a.png") as file:
        assert (file.form, file.height, file.width, file.channels, file.alpha, file.bits) == (
            "PNG",
            23,
            31,
            3,
            False,
            16,
        )
        assert np.array_equal(file.read_rows(5, 7).pixels, file.read().pixels[5:12])

"""Pictures larger than memory: samples that stay on disk, files that are written row by row."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile

from tlsc.eval.images import ImageError, Metadata, Pixels, open_picture, read_picture, writing_rows


def _samples(height: int, width: int, channels: int, bits: int) -> Pixels:
    """Smooth, rough and plain rows, so that every filter of a PNG is the best somewhere."""
    random = np.random.default_rng(channels + bits)
    ramp = np.linspace(0, 1, height)[:, None, None] * np.linspace(0.2, 1, width)[:, None]
    values = np.repeat(ramp, channels, 2)
    values[::3] = random.random((len(values[::3]), width, channels))
    values[1::5] = 0.5
    values[..., channels - 1 :] = 1 if channels in (2, 4) else values[..., channels - 1 :]
    if bits == 32:
        return values.astype(np.float32)
    out: Pixels = np.rint(values * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    return out


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "bits"), [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".tif", 32)])
def test_rows_become_the_file_that_other_readers_read(
    suffix: str, bits: int, channels: int, tmp_path: Path
) -> None:
    samples, path = _samples(70, 31, channels, bits), tmp_path / f"a{suffix}"
    metadata = Metadata(resolution=(300.0, 150.0))
    with writing_rows(path, samples.shape, bits, metadata) as rows:
        for top, bottom in ((0, 1), (1, 40), (40, 70)):
            rows.add(samples[top:bottom])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix == ".tif":
        assert np.array_equal(tifffile.imread(path).reshape(samples.shape), samples)
    elif bits == 8:
        assert np.array_equal(np.asarray(PIL.Image.open(path)).reshape(samples.shape), samples)
    with open_picture(path) as file:
        pixels, alpha = file.samples()
        assert np.array_equal(pixels if alpha is None else np.dstack([pixels, alpha]), samples)
        assert file.metadata.resolution == pytest.approx((300, 150), abs=0.1)


def test_the_file_does_not_depend_on_how_its_rows_come(tmp_path: Path) -> None:
    samples = _samples(90, 700, 3, 16)
    for name, cuts in (("one", [0, 90]), ("many", [0, 1, 2, 37, 90])):
        with writing_rows(tmp_path / f"{name}.png", samples.shape, 16, Metadata()) as rows:
            for top, bottom in pairwise(cuts):
                rows.add(samples[top:bottom])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "many.png").read_bytes()


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    samples = _samples(8, 9, 3, 8)
    with (
        pytest.raises(ImageError, match="3 rows too few"),
        writing_rows(tmp_path / "a.png", (8, 9, 3), 8, Metadata()) as rows,
    ):
        rows.add(samples[:5])

    def interrupted() -> None:
        with writing_rows(tmp_path / "a.tif", (8, 9, 3), 8, Metadata()) as rows:
            rows.add(samples[:5])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ImageError, match="write one of them"),
        writing_rows(tmp_path / "a.bmp", (8, 9, 3), 8, Metadata()),
    ):
        pass


def _save(samples: Pixels, path: Path, kind: str, orientation: int) -> None:
    if kind in ("plain", "big-endian", "lzw", "floats"):
        values = samples.astype(np.float32) / 255 if kind == "floats" else samples
        tifffile.imwrite(
            path,
            values,
            byteorder=">" if kind == "big-endian" else "<",
            compression="lzw" if kind == "lzw" else None,
            photometric="rgb",
            extratags=[(274, "H", 1, orientation, True)],
        )
        return
    exif = PIL.Image.Exif()
    exif[274] = orientation
    options = {"quality": 95} if kind == "JPEG" else {}
    PIL.Image.fromarray(samples).save(path, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["plain", "big-endian", "lzw", "floats", "PNG", "JPEG", "WebP", "BMP"])
def test_any_part_of_a_stored_picture_is_that_of_the_read_one(kind: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "in"
    _save(_samples(50, 64, 3, 8), path, kind, orientation)
    whole = read_picture(path).pixels
    with open_picture(path) as file, file.stored(tmp_path) as stored:
        assert (stored.height, stored.width, stored.alpha) == (*whole.shape[:2], False)
        for top, bottom, left, right in ((0, 50, 0, 50), (7, 31, 12, 13), (49, 50, 0, 3)):
            part = stored.cut(top, bottom, left, right)
            part = part if part.dtype.kind == "f" else part / np.float32(255)
            assert np.array_equal(part, whole[top:bottom, left:right])
        assert stored.is_opaque()
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_alpha_that_is_not_opaque_is_found(tmp_path: Path) -> None:
    samples = _samples(50, 64, 4, 8)
    for opaque in (True, False):
        samples[40, 3, 3] = 255 if opaque else 254
        PIL.Image.fromarray(samples).save(tmp_path / "in.png")
        with open_picture(tmp_path / "in.png") as file, file.stored(tmp_path) as stored:
            assert stored.alpha
            assert stored.is_opaque() == opaque
            assert stored.cut(0, 4, 0, 5).shape == (4, 5, 3)


def test_damaged_pictures_are_refused_before_any_part_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    PIL.Image.fromarray(_samples(200, 300, 3, 8)).save(path)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(90) + content[middle + 90 :])
    with pytest.raises(ImageError, match="damaged"), open_picture(path) as file, file.stored(tmp_path):
        pass
    tifffile.imwrite(tmp_path / "in.tif", np.full((9, 9, 3), 1.5, np.float32), photometric="rgb")
    with (
        pytest.raises(ImageError, match=r"they are 1\.5 to 1\.5"),
        open_picture(tmp_path / "in.tif") as file,
        file.stored(tmp_path),
    ):
        pass

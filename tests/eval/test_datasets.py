"""Folder layouts, matching rules, bad pairs, files of every kind, degradations on the fly."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from tlsc.errors import ArgumentValueError
from tlsc.eval.data.blocks import main as unpack_blocks
from tlsc.eval.data.datasets import BadPairsError, Dataset, find_pairs
from tlsc.eval.data.synthesis import parse_degradation
from tlsc.eval.images import UnreadableError, read_image, with_channels

RNG = np.random.default_rng(0)


def _pixels(height: int = 12, width: int = 14, channels: int = 3) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _make(root: Path, *names: str) -> None:
    """Image files of one size, each with pixels of its own."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_pixels()).save(path)


def _partners(data: Dataset, root: Path) -> dict[str, str]:
    """Target by input, as paths from the root."""
    return {
        pair.input.relative_to(root).as_posix(): pair.target.relative_to(root).as_posix()
        for pair in data.pairs
        if pair.input is not None
    }


LAYOUTS: dict[str, dict[str, str]] = {
    "input/target": {"input/a.png": "target/a.png", "input/b.png": "target/b.png"},
    "lq/gt": {"lq/1.png": "gt/1.png"},
    "blur/sharp": {"blur/000.png": "sharp/000.png"},
    "hazy/GT": {"hazy/1400_1.png": "GT/1400.png", "hazy/1400_10.png": "GT/1400.png"},
    "hazy/GT, two numbers": {"hazy/0001_0.8_0.2.jpg": "GT/0001.png", "hazy/0001_0.95_0.16.jpg": "GT/0001.png"},
    "rain/norain": {"rain/rain-001.png": "norain/norain-001.png"},
    "upper case": {"Input/A.PNG": "TARGET/a.png", "Input/b.png": "TARGET/B.PNG"},
    "mixed extensions": {"lq/a.jpg": "gt/a.png", "lq/b.bmp": "gt/b.tif"},
    "sequences": {
        "GOPR0384/blur/1.png": "GOPR0384/sharp/1.png",
        "GOPR0385/blur/1.png": "GOPR0385/sharp/1.png",
    },
    "folders in roles": {
        "val/val_blur/000/1.png": "val/val_sharp/000/1.png",
        "val/val_blur/001/1.png": "val/val_sharp/001/1.png",
    },
    "deep": {"x/y/z/noisy/1.png": "x/y/z/clean/1.png"},
    "scale": {"LR_bicubic/X4/0801x4.png": "HR/0801.png"},
    "scale and role": {"Set5/LRbicx4/baby.png": "Set5/GTmod12/baby.png"},
    "scale with an underscore": {"lq/0001_x2.png": "gt/0001.png"},
    "role words in names": {"hazy/01_hazy.png": "GT/01_GT.png"},
    "two words": {"rainy_image/7_1.jpg": "ground_truth/7.jpg"},
    "roles in names only": {"1_NOISY_010.png": "1_GT_010.png", "2_NOISY_010.png": "2_GT_010.png"},
    "names that are roles": {"s1/blur.png": "s1/sharp.png", "s2/blur.png": "s2/sharp.png"},
    "all rules at once": {
        "input/a.png": "target/a.png",
        "input/B.jpg": "target/b.png",
        "input/0001x4.png": "target/0001.png",
        "input/1400_1.png": "target/1400.png",
    },
    "numbers that belong to names": {
        "lq/f_1.png": "gt/f_1.png",
        "lq/f_2.png": "gt/f_2.png",
        "lq/f.png": "gt/f.png",
    },
    "dots in names": {"lq/a.b_1.png": "gt/a.b_1.png"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    """Every input finds its target and nothing is left; the files are read."""
    expected = LAYOUTS[layout]
    _make(tmp_path, *expected, *dict.fromkeys(expected.values()))
    data = find_pairs([tmp_path]).checked()
    assert _partners(data, tmp_path) == expected
    assert data.bad == ()
    assert len({pair.name for pair in data.pairs}) == len(expected)
    assert [pair.name for pair in data.pairs] == sorted(pair.name for pair in data.pairs)
    given, target = data.load(data.pairs[0])
    assert given.shape == target.shape == (12, 14, 3)
    assert data.pairs[0].input is not None
    if data.pairs[0].input.suffix != ".jpg":
        assert np.array_equal(given, np.asarray(Image.open(data.pairs[0].input)))


def test_two_folders_by_hand(tmp_path: Path) -> None:
    _make(tmp_path, "mine/a.png", "mine/sub/b_3.png", "yours/a.jpg", "yours/sub/b.png")
    data = find_pairs([tmp_path / "mine", tmp_path / "yours"])
    assert _partners(data, tmp_path) == {"mine/a.png": "yours/a.jpg", "mine/sub/b_3.png": "yours/sub/b.png"}
    assert [pair.rule for pair in data.pairs] == ["stem", "number"]


BAD: dict[str, tuple[list[str], list[str]]] = {
    "no target": (["lq/a.png", "gt/a.png", "lq/b.png"], ["unmatched: lq/b.png: no target of that name"]),
    "no input": (["lq/a.png", "gt/a.png", "gt/b.png"], ["unmatched: gt/b.png: no input of that name"]),
    "another folder": (
        ["lq/1/a.png", "gt/1/a.png", "lq/2/a.png"],
        ["unmatched: lq/2/a.png: no target of that name"],
    ),
    "two targets": (
        ["lq/a.png", "gt/a.jpg", "gt/a.bmp", "lq/b.png", "gt/b.png"],
        ["ambiguous: lq/a.png: several targets, by stem: a.bmp, a.jpg"],
    ),
    "two inputs": (
        ["lq/a.png", "lq/a.jpg", "gt/a.bmp", "lq/b.png", "gt/b.png"],
        [
            "ambiguous: lq/a.jpg: 2 inputs have the target a.bmp",
            "ambiguous: lq/a.png: 2 inputs have the target a.bmp",
        ],
    ),
    "a missing number": (
        ["lq/0001_1.png", "lq/0001_2.png", "gt/0001_1.png", "gt/0001.png"],
        ["unmatched: gt/0001.png: no input of that name", "unmatched: lq/0001_2.png: no target of that name"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pairs_have_a_line_each(tmp_path: Path, case: str) -> None:
    files, lines = BAD[case]
    _make(tmp_path, *files)
    data = find_pairs([tmp_path]).checked()
    assert [str(bad) for bad in data.bad] == lines
    assert data.pairs
    with pytest.raises(BadPairsError) as caught:
        data.refuse_bad(skip=False)
    assert all(f"  {line}" in str(caught.value).splitlines() for line in lines)
    data.refuse_bad(skip=True)


def test_unreadable_files_and_sizes_that_differ(tmp_path: Path) -> None:
    names = ("empty", "text", "cut", "size", "good")
    _make(tmp_path, *(f"{folder}/{name}.png" for folder in ("lq", "gt") for name in names))
    (tmp_path / "lq/empty.png").write_bytes(b"")
    (tmp_path / "lq/text.png").write_text("not an image")
    whole = (tmp_path / "gt/cut.png").read_bytes()
    (tmp_path / "gt/cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(_pixels(12, 15)).save(tmp_path / "gt/size.png")
    data = find_pairs([tmp_path]).checked()
    said = {bad.name: str(bad) for bad in data.bad}
    assert list(said) == ["cut.png", "empty.png", "size.png", "text.png"]
    assert said["size.png"] == "size: size.png: the input is 12×14 pixels, the target 12×15"
    for name, folder, reason in (
        ("cut", "gt", "truncated"),
        ("empty", "lq", "the file is empty"),
        ("text", "lq", "not an image"),
    ):
        line = said[f"{name}.png"]
        assert line.startswith(f"unreadable: {name}.png: {tmp_path}/{folder}/{name}.png: ")
        assert reason in line
        assert "\n" not in line
    assert [pair.name for pair in data.pairs] == ["good.png"]


def test_the_target_of_a_network_that_enlarges(tmp_path: Path) -> None:
    _make(tmp_path, "lr/a.png", "lr/b.png", "hr/b.png")
    Image.fromarray(_pixels(24, 28)).save(tmp_path / "hr/a.png")
    data = find_pairs([tmp_path], scale=2).checked()
    assert [pair.name for pair in data.pairs] == ["a.png"]
    assert [str(bad) for bad in data.bad] == ["size: b.png: the input is 12×14 pixels, times 2, the target 12×14"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.png"], "no known layout"),
        (["blur/a.png", "input/a.png", "gt/a.png"], "several could be inputs or targets"),
        ([], "no known layout"),
        (["input/a.txt.ico", "target/a.ico"], "no images in"),
    ],
)
def test_folders_without_pairs(tmp_path: Path, files: list[str], said: str) -> None:
    _make(tmp_path, *files)
    with pytest.raises(ValueError, match=said):
        find_pairs([tmp_path])


def test_hidden_files_and_loops_are_left_out(tmp_path: Path) -> None:
    _make(tmp_path, "input/a.png", "target/a.png", "input/._a.png", ".cache/input/b.png", ".cache/target/b.png")
    (tmp_path / "input/loop").symlink_to(tmp_path / "input", target_is_directory=True)
    (tmp_path / "target/loop").symlink_to(tmp_path, target_is_directory=True)
    data = find_pairs([tmp_path])
    assert _partners(data, tmp_path) == {"input/a.png": "target/a.png"}


def test_the_checksum_follows_contents(tmp_path: Path) -> None:
    _make(tmp_path, "input/a.png", "target/a.png")
    first = find_pairs([tmp_path]).checked().checksum
    assert first == find_pairs([tmp_path]).checked().checksum
    _make(tmp_path, "target/a.png")
    assert first != find_pairs([tmp_path]).checked().checksum


# ------------------------------------------------------------------------------------------------------- files


def test_files_of_every_kind(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    colour, grey = _pixels(), _pixels()[..., 0]
    deep = RNG.integers(0, 65536, (12, 14, 3), dtype=np.uint16)
    files: dict[str, NDArray[Any]] = {
        "colour.png": colour,
        "COLOUR.BMP": colour,
        "grey.png": grey[..., None],
        "alpha.png": colour,
        "grey16.png": deep[..., :1],
        "memory.tif": deep,
        "packed.tif": deep,
        "array.npy": colour,
        "float.npy": colour.astype(np.float32) / 255,
    }
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour).save(tmp_path / "COLOUR.BMP")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "alpha.png")
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey16.png")
    tifffile.imwrite(tmp_path / "memory.tif", deep)
    tifffile.imwrite(tmp_path / "packed.tif", deep, compression="zlib")
    np.save(tmp_path / "array.npy", colour)
    np.save(tmp_path / "float.npy", (colour / 255))
    for name, expected in files.items():
        pixels = read_image(tmp_path / name)
        assert pixels.dtype == expected.dtype, name
        assert np.array_equal(pixels, expected), name


def test_colour_at_sixteen_bit(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = RNG.integers(0, 65536, (12, 14, 4), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., 2::-1])
    cv2.imwrite(str(tmp_path / "alpha.png"), deep[..., [2, 1, 0, 3]])
    for name in ("a.png", "alpha.png"):
        assert np.array_equal(read_image(tmp_path / name), deep[..., :3]), name


def test_orientation_is_that_of_exif(tmp_path: Path) -> None:
    colour = _pixels()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    Image.fromarray(colour).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(colour, -1))


def test_large_files_are_memory_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", _pixels())
    pixels = read_image(tmp_path / "a.npy")
    while pixels.base is not None and not isinstance(pixels, np.memmap):
        pixels = pixels.base
    assert isinstance(pixels, np.memmap)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 5), (0, 4, 3), (1, 2, 3, 4)])
def test_arrays_that_are_no_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UnreadableError, match="not one grey or colour image"):
        read_image(tmp_path / "a.npy")


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([print]), allow_pickle=True)
    with pytest.raises(UnreadableError, match="Python objects"):
        read_image(tmp_path / "a.npy")


def test_channels() -> None:
    colour = _pixels()
    assert np.array_equal(with_channels(colour, 1)[..., 0], np.asarray(Image.fromarray(colour).convert("L")))
    assert np.array_equal(with_channels(colour[..., :1], 3)[..., 2], colour[..., 0])


# -------------------------------------------------------------------------------------------------- degradations


def test_degradations_are_seeded_per_image(tmp_path: Path) -> None:
    """An image gets the same input whatever else is in the folder, and another with another seed or name."""
    clean = _pixels(40, 50)
    for name in ("b.png", "c.png"):
        Image.fromarray(clean).save(tmp_path / name)
    before = {
        p.name: find_pairs([tmp_path], "noise:0-50").load(p)[0] for p in find_pairs([tmp_path], "jpeg:9").pairs
    }
    Image.fromarray(clean).save(tmp_path / "a.png")
    data = find_pairs([tmp_path], "noise:0-50")
    after = {pair.name: data.load(pair)[0] for pair in reversed(data.pairs)}
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not np.array_equal(after["b.png"], after["c.png"])
    other = find_pairs([tmp_path], "noise:0-50", seed=1)
    assert not np.array_equal(other.load(other.pairs[1])[0], after["b.png"])


def test_noise() -> None:
    """Standard deviation as asked for; where it varies it spans the range, smoothly."""
    grey = np.full((400, 400, 3), 0.5, np.float32)
    noise = parse_degradation("noise:25").apply(grey, np.random.default_rng(0)) - grey
    assert noise.std() * 255 == pytest.approx(25, rel=0.01)
    assert abs(noise.mean()) < 1e-3
    varying = parse_degradation("noise:0-50").apply(grey, np.random.default_rng(0)) - grey
    blocks = varying.reshape(20, 20, 20, 20, 3).std((1, 3, 4)) * 255
    assert blocks.min() < 6
    assert 38 < blocks.max() < 55
    assert np.abs(np.diff(blocks, axis=0)).max() < 20


def test_blur_jpeg_and_bicubic() -> None:
    impulse = np.zeros((41, 41, 3), np.float32)
    impulse[20, 20] = 1
    rng = np.random.default_rng(0)
    blurred = parse_degradation("blur:2").apply(impulse, rng)
    places = np.arange(41) - 20
    assert blurred.sum() == pytest.approx(3, rel=1e-4)
    assert (blurred[..., 0].sum(0) * places**2).sum() == pytest.approx(4, rel=0.02)
    moved = parse_degradation("blur:9@90").apply(impulse, rng)[..., 0]
    assert moved[:, 20].sum() == pytest.approx(1, rel=1e-4)
    assert (moved[:, 20] > 0.01).sum() in (9, 10, 11)
    pixels = _pixels(33, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40)
    coded = parse_degradation("jpeg:40").apply(pixels.astype(np.float32) / 255, rng)
    assert np.array_equal(np.rint(coded * 255), np.asarray(Image.open(buffer)))
    small = parse_degradation("bicubic:4").apply(np.full((8, 12, 3), 0.25, np.float32), rng)
    assert small.shape == (2, 3, 3)
    assert np.allclose(small, np.rint(0.25 * 255) / 255)


@pytest.mark.parametrize(("scale", "shape"), [(1, (28, 32, 3)), (4, (7, 8, 3))])
def test_bicubic_fits_the_network(tmp_path: Path, scale: int, shape: tuple[int, ...]) -> None:
    """Targets are cut to a multiple of the factor; a network that does not enlarge gets the size back."""
    Image.fromarray(_pixels(30, 35)).save(tmp_path / "a.png")
    data = find_pairs([tmp_path], "bicubic:4", scale=scale).checked()
    given, target = data.load(data.pairs[0])
    assert given.shape == shape
    assert target.shape == (28, 32, 3)
    assert data.pairs[0].size == shape[:2]
    with pytest.raises(ValueError, match=r"enlarges 3 times, 'bicubic:4' shrinks 4 times"):
        find_pairs([tmp_path], "bicubic:4", scale=3)


@pytest.mark.parametrize(
    "bad",
    [
        *("", "noise", "noise:", "noise:a", "noise:50-10", "noise:-3", "noise:nan", "noise:1-2-3", "blur:x@3"),
        *("jpeg:0", "jpeg:4.5", "bicubic:1", "fog:3", "haze:2"),
    ],
)
def test_degradations_that_do_not_exist(bad: str) -> None:
    with pytest.raises(ValueError, match="degradation"):
        parse_degradation(bad)


def test_targets_that_are_no_multiple_of_the_scale_are_cut(tmp_path: Path) -> None:
    """B100's 321×481 at scale 4 has inputs of 80×120; a target that lacks rows, or has a multiple more, is bad."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(33, 50), (32, 48), (36, 48), (31, 48)]):
        for role, size in (("HR", (height, width, 3)), ("LR", (8, 12, 3))):
            (tmp_path / role).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / role / f"{number}.png")
    data = find_pairs([tmp_path], scale=4).checked()
    assert [pair.name for pair in data.pairs] == ["0.png", "1.png"]
    assert [(bad.name, bad.kind) for bad in data.bad] == [("2.png", "size"), ("3.png", "size")]
    _, target = data.load(data.pairs[0])
    assert np.array_equal(target, np.asarray(Image.open(tmp_path / "HR/0.png"))[:32, :48])


def test_how_much_of_targets_is_cut_is_known(tmp_path: Path) -> None:
    """By scale beside an input, and by the factor of a degradation."""
    for name, size in {"LR/a.png": (3, 5), "HR/a.png": (13, 20), "LR/b.png": (3, 5), "HR/b.png": (12, 20)}.items():
        _make(tmp_path, name)
        Image.fromarray(_pixels(*size)).save(tmp_path / name)
    data = find_pairs([tmp_path], scale=4)
    assert {pair.name: pair.cut for pair in data.checked().pairs} == {"a.png": (1, 0), "b.png": (0, 0)}
    data = find_pairs([tmp_path / "HR"], "bicubic:3")
    assert {pair.name: pair.cut for pair in data.checked().pairs} == {"a.png": (1, 2), "b.png": (0, 2)}


def test_blocks_of_matlab_are_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As SIDD's validation set comes; the way is named where such a file is found, and leads to equal samples."""
    blocks = RNG.integers(0, 256, (2, 2, 3, 8, 9, 3), dtype=np.uint8)
    files = [tmp_path / "ValidationNoisyBlocksSrgb.mat", tmp_path / "ValidationGtBlocksSrgb.mat"]
    for path, values in zip(files, blocks, strict=True):
        savemat(path, {path.stem: values})
    for folders in ([tmp_path], files):
        with pytest.raises(ArgumentValueError, match=r"python -m tlsc\.eval\.data\.blocks"):
            find_pairs(folders)
    assert unpack_blocks([*map(str, files), str(tmp_path / "out")]) == 0
    data = find_pairs([tmp_path / "out"]).checked()
    assert len(data.pairs) == 6
    for pair, expected in zip(data.pairs, blocks.reshape(2, 6, 8, 9, 3).swapaxes(0, 1), strict=True):
        assert all(np.array_equal(got, want) for got, want in zip(data.load(pair), expected, strict=True))
    savemat(files[0], {"other": np.zeros(3)})
    assert unpack_blocks([*map(str, files), str(tmp_path / "out")]) == 1
    files[0].write_bytes(b"MATLAB 7.3")
    assert unpack_blocks([*map(str, files), str(tmp_path / "out")]) == 1
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("tlsc: ")]) == 2

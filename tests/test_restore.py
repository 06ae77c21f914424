"""``tlsc restore`` and the files that it reads and writes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tlsc
from tlsc.adapters import Descriptor, HINet, load, run
from tlsc.eval import cli
from tlsc.eval.images import ImageError, Picture
from tlsc.eval.images import read_picture as read_image
from tlsc.eval.images import write_picture as write_image
from tlsc.eval.restore import restore_picture, sources, targets
from tlsc.eval.run.patches import in_tiles

from .networks import with_random_weights

BASE = 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The maps are tiny: two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "HINet-GoPro.pth"
    model = HINet(wf=4, depth=3, hin_position_left=1, hin_position_right=2)
    state = with_random_weights(model).state_dict()
    # Results that stay within [0, 1] hide nothing by clipping.
    torch.save({"params": {k: v * 0.02 if k.startswith(("last", "sam12")) else v for k, v in state.items()}}, path)
    return path


def pixels(*shape: int, bits: int = 8, seed: int = 0) -> NDArray[Any]:
    """A smooth picture with some noise, in the middle of the range."""
    values = np.random.default_rng(seed).random(shape) * 0.2 + np.linspace(0.3, 0.6, shape[1])[None, :, None]
    return np.rint(values * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def save_with_opencv(path: Path, values: NDArray[Any]) -> None:
    """16 bit in colour: OpenCV orders channels blue, green, red."""
    cv2 = pytest.importorskip("cv2")
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]
    assert cv2.imwrite(str(path), values[..., order])


def read_with_opencv(path: Path) -> NDArray[Any]:
    cv2 = pytest.importorskip("cv2")
    values: NDArray[Any] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return values if values.ndim == 2 else values[..., {3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]]


@torch.no_grad()
def expected(checkpoint: Path, values: NDArray[Any], base_size: int | None = BASE) -> NDArray[Any]:
    """The network on an RGB image, rounded to the image's own integers."""
    model = load(checkpoint)
    if base_size is not None:
        tlsc.convert(model, base_size)
    most = 255 if values.dtype == np.uint8 else 65535
    x = torch.from_numpy(values.astype(np.float32) / most).permute(2, 0, 1)[None]
    out = model(x)[-1].clamp(0, 1)[0].permute(1, 2, 0).double().numpy() * most
    return out.round().astype(values.dtype)  # type: ignore[no-any-return]


def assert_close(got: NDArray[Any], wanted: NDArray[Any], levels: int = 1) -> None:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= levels


# ---------------------------------------------------------------------------------------- the whole thing


def test_a_folder_of_good_and_bad_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "new" / "out"
    source.mkdir()
    good, deep, grey = pixels(24, 37, 3), pixels(21, 30, 3, bits=16), pixels(18, 26, 1)[..., 0]
    rgba, one = pixels(20, 17, 4), pixels(1, 1, 3)
    PIL.Image.fromarray(good).save(source / "good.png")
    save_with_opencv(source / "deep.png", deep)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(grey).save(source / "grey.jpg", exif=exif, quality=95)
    PIL.Image.fromarray(rgba).save(source / "rgba.png")
    PIL.Image.fromarray(one).save(source / "one.png")
    (source / "text.png").write_text("not an image at all, although it is called one")
    content = (source / "grey.jpg").read_bytes()
    (source / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (source / "readme.txt").write_text("left out by its name")
    before = {path: path.read_bytes() for path in source.iterdir()}

    argv = ["restore", str(source), str(out), "--checkpoint", str(checkpoint), "--base-size", str(BASE)]
    assert cli.main(argv) == 1
    said = capsys.readouterr()
    assert "restored 5 of 7 images" in said.out
    assert "HINet, deblurring, 4 sites local over 16×16" in said.out
    assert "1 files are no images" in said.out
    named = [line for line in said.err.splitlines() if line.startswith("tlsc: ")]
    assert [Path(line.split(": ")[1]).name for line in named] == ["text.png", "truncated.jpg"]
    assert "not an image" in named[0]
    assert "truncated" in named[1]

    assert sorted(path.name for path in out.iterdir()) == [
        f"{n}.png" for n in ("deep", "good", "grey", "one", "rgba")
    ]
    assert_close(np.asarray(PIL.Image.open(out / "good.png")), expected(checkpoint, good))
    assert_close(read_with_opencv(out / "deep.png"), expected(checkpoint, deep))
    assert_close(np.asarray(PIL.Image.open(out / "one.png")), expected(checkpoint, one))
    restored = np.asarray(PIL.Image.open(out / "rgba.png"))
    assert_close(restored[..., :3], expected(checkpoint, rgba[..., :3]))
    assert np.array_equal(restored[..., 3], rgba[..., 3])
    upright = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(source / "grey.jpg")))
    three = expected(checkpoint, np.repeat(upright[..., None], 3, 2)).astype(float).mean(2).round().astype(np.uint8)
    result = PIL.Image.open(out / "grey.png")
    assert (result.mode, result.size, result.getexif().get(0x0112)) == ("L", (18, 26), 1)
    assert_close(np.asarray(result), three)
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_all_good_is_exit_0_and_a_single_file_gets_its_name(checkpoint: Path, tmp_path: Path) -> None:
    PIL.Image.fromarray(pixels(9, 12, 3)).save(tmp_path / "a.png")
    for out in ("b.png", "c.tif", "d.webp", "e.jpg", "f.bmp"):
        argv = ["restore", str(tmp_path / "a.png"), str(tmp_path / out), "--checkpoint", str(checkpoint)]
        assert cli.main(argv) == 0
        assert_close(
            np.asarray(PIL.Image.open(tmp_path / out)),
            expected(checkpoint, pixels(9, 12, 3), None),
            levels=25 if out == "e.jpg" else 1,
        )


def test_globs_and_folders_below(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x.png", "b/x.png", "b/y.jpg", "b/y.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels(5, 6, 3)).save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["restore", "in/**/*.*", "out", "--checkpoint", str(checkpoint)]) == 0
    written = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file())
    assert written == ["a/x.png", "b/x.png", "b/y.jpg.png", "b/y.png"]


def test_a_folder_s_own_folders_are_restored_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links are followed, each folder once; hidden files and what was written before are no inputs."""
    names = ("a.png", "one/a.jpg", "one/two/b.PNG", "one/.hidden.png", ".cache/c.png", "one/two/read.me")
    for name in (*names, "out/one/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "one/two/up").symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    expected = {"a.png": "a.png", "one/a.jpg": "one/a.png", "one/two/b.PNG": "one/two/b.png"}
    for folder, out in ((".", "out"), (str(tmp_path), "out"), (".", "elsewhere")):
        found = targets([folder], Path(out))
        inside = {str(image.absolute().relative_to(tmp_path)): str(place) for image, place in found.items()}
        more = {"out/one/a.png": "elsewhere/out/one/a.png"} if out == "elsewhere" else {}
        assert inside == {image: f"{out}/{place}" for image, place in expected.items()} | more
        assert "1 files are no images by their names" in capsys.readouterr().out
    assert set(map(str, targets(["one/two"], Path("out")).values())) == {"out/b.png", "out/up/a.png"}


def test_what_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "b.jxl", "c.HEIC"):
        (tmp_path / name).touch()
    assert [image.name for image in targets([str(tmp_path)], tmp_path / "out")] == ["a.png", "b.jxl", "c.HEIC"]


def test_targets(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.tif", "a.tif.png", "b.png"):
        (tmp_path / name).touch()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"would both be written to .*a\.tif\.png"):
        targets([str(tmp_path)], out)
    (tmp_path / "a.tif.png").unlink()
    names = {image.name: place.name for image, place in targets([str(tmp_path)], out).items()}
    assert names == {"a.jpg": "a.jpg.png", "a.png": "a.png", "a.tif": "a.tif.png", "b.png": "b.png"}
    with pytest.raises(ValueError, match=r"a\.png would be overwritten"):
        targets([str(tmp_path)], tmp_path)
    with pytest.raises(ValueError, match=r"b\.png would be overwritten"):
        targets([str(tmp_path / "b.png")], tmp_path / "x" / ".." / "b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    with pytest.raises(ValueError, match="would be overwritten"):
        targets([str(tmp_path / "b.png")], tmp_path / "link.png")
    assert targets([str(tmp_path / "b.png")], tmp_path / "c") == {tmp_path / "b.png": tmp_path / "c" / "b.png"}


def test_sources_may_have_one_name_but_for_the_suffix(tmp_path: Path) -> None:
    """Where nothing is written, results that would have one name are no matter."""
    names = ("a.jpg", "a.tif", "a.tif.png", "in/a.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sources([str(tmp_path), str(tmp_path / "a.jpg")]) == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"in": "nowhere.png"}, "nowhere.png: no such file"),
        ({"in": "*.gif"}, "no file matches"),
        ({"in": "empty"}, "holds no image"),
        ({"out": "x.xyz"}, "unknown format '.xyz'"),
        ({"out": "file/x.png"}, "file"),
        ({"--checkpoint": "bad.pth"}, "bad.pth is not a checkpoint"),
        ({"--checkpoint": "none.pth"}, "none.pth"),
        ({"--device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"--tile": "0"}, "--tile must be a positive number"),
        ({"--tile": "8", "--overlap": "8"}, "--overlap must be at least 0 and less than --tile 8"),
        ({"--overlap": "8"}, "give --tile, too"),
        ({"--base-size": "16", "--stride": "0"}, "stride must be a positive int"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    change: dict[str, str],
    said: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(pixels(9, 12, 3)).save("a.png")
    Path("empty").mkdir()
    Path("file").write_text("a file")
    Path("bad.pth").write_text("no weights in here")
    before = sorted(Path().rglob("*"))
    options = {"in": "a.png", "out": "out", "--checkpoint": str(checkpoint)} | change
    argv = ["restore", options.pop("in"), options.pop("out"), *(part for pair in options.items() for part in pair)]
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_failed_write_leaves_the_old_file_and_no_other(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.fromarray(pixels(9, 12, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("before")

    def full(self: Path, data: bytes) -> None:
        self.write_text("half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    argv = ["restore", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", str(checkpoint)]
    assert cli.main([*argv, "--overwrite"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "b.png").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_the_output_s_format_cannot_hold_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.fromarray(pixels(9, 12, 4)).save(tmp_path / "alpha.png")
    PIL.Image.fromarray(pixels(9, 12, 1, bits=16)[..., 0]).save(tmp_path / "deep.png")
    for name, said in (("alpha", "holds no alpha"), ("deep", "holds 8 bits per channel")):
        argv = ["restore", str(tmp_path / f"{name}.png"), str(tmp_path / "x.jpg"), "--checkpoint", str(checkpoint)]
        assert cli.main(argv) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "x.jpg").exists()


def test_a_network_of_the_demo_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PIL.Image.fromarray(pixels(9, 12, 3)).save(tmp_path / "a.png")
    argv = ["restore", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", "hin", "--base-size", "64"]
    assert cli.main(argv) == 0
    assert "1 sites local over 64×64" in capsys.readouterr().out


def test_inspect_takes_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "down_path_2.2.norm" in said
    assert "384" in said


# ------------------------------------------------------------------------------------------------ tiles


class Enlarging(nn.Module):
    """Every pixel twice on each axis, plus something that depends on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False, padding_mode="replicate")
        nn.init.constant_(self.blur.weight, 1 / 9)
        self.tlsc = Descriptor("Enlarging", scale=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x).repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize(("tile", "overlap"), [(16, 4), (16, 8), (10, 0), (31, 3), (7, 6), (200, 10)])
@torch.no_grad()
def test_tiles_of_an_enlarging_network_are_put_together(tile: int, overlap: int) -> None:
    image = torch.rand(1, 3, 37, 53)
    told: list[tuple[int, int]] = []
    out = in_tiles(nn.Upsample(scale_factor=2), image, tile, overlap, lambda *n: told.append(n))
    torch.testing.assert_close(out, nn.Upsample(scale_factor=2)(image))
    assert not told or told[-1][0] == told[-1][1]


@torch.no_grad()
def test_seams_are_blended() -> None:
    """Each tile adds its own constant: between tiles the result goes from one to the next in small steps."""
    values = iter([0.0, 1.0])
    image = torch.zeros(1, 1, 8, 28)
    out = in_tiles(lambda x: x + next(values), image, 16, 4)[0, 0]
    assert torch.equal(out[:, :12], torch.zeros(8, 12))
    assert torch.equal(out[:, 16:], torch.ones(8, 12))
    between = out[0, 11:17]
    assert (between.diff() > 0).all()
    assert between.diff().max() < 0.3


def test_tiles_from_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    """Tiles as large as the image are the image; smaller ones differ a little, as the network sees less."""
    values = pixels(40, 56, 3)
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    argv = ["restore", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", str(checkpoint)]
    assert cli.main([*argv, "--tile", "56"]) == 0
    whole = np.asarray(PIL.Image.open(tmp_path / "b.png"))
    assert_close(whole, expected(checkpoint, values, None))
    assert cli.main([*argv, "--tile", "24", "--overlap", "8", "--overwrite"]) == 0
    tiled = np.asarray(PIL.Image.open(tmp_path / "b.png"))
    assert not np.array_equal(tiled, whole)
    model = load(checkpoint)
    x = torch.from_numpy(values.astype(np.float32) / 255).permute(2, 0, 1)[None]
    wanted = in_tiles(lambda part: run(model, part), x, 24, 8)[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255
    assert_close(tiled, wanted.round().astype(np.uint8))


# --------------------------------------------------------------------------------- channels and numbers


def test_alpha_is_enlarged_with_the_image() -> None:
    alpha = np.zeros((6, 8), np.float32)
    alpha[:, 4:] = 1
    picture = Picture(np.full((6, 8, 3), 0.5, np.float32), alpha)
    out = restore_picture(Enlarging(), picture)
    assert out.pixels.shape == (12, 16, 3)
    assert out.alpha is not None
    assert out.alpha.shape == (12, 16)
    assert (out.alpha[:, :6].max(), out.alpha[:, -6:].min()) == pytest.approx((0, 1), abs=0.05)


def test_a_grey_network_takes_rgb_channel_by_channel() -> None:
    class Darker(nn.Module):
        tlsc = Descriptor("Darker", in_channels=1, out_channels=1)

        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5

    picture = Picture(np.random.default_rng(0).random((5, 7, 3), np.float32))
    np.testing.assert_allclose(restore_picture(Darker(), picture).pixels, picture.pixels / 2)


def test_not_a_number_is_reported() -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0 * 0

    with pytest.raises(tlsc.TLSCError, match="NaN or Inf"):
        restore_picture(Bad(), Picture(np.ones((5, 7, 3), np.float32)))


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "deep png", "tif", "deep tif"])
def test_orientation_is_pillow_s(kind: str, orientation: int, tmp_path: Path) -> None:
    """``ImageOps.exif_transpose`` on the same numbers is the oracle."""
    path = tmp_path / f"a.{kind.split()[-1]}"
    values = pixels(6, 9, 1, bits=16 if "deep" in kind else 8)[..., 0]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    if kind == "deep tif":
        tifffile.imwrite(path, values, extratags=[(274, "H", 1, orientation, True)])
    else:
        PIL.Image.fromarray(values).save(path, exif=exif, **({"quality": 100} if kind == "jpg" else {}))
    way = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_270,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_90,
    }
    eight = PIL.Image.fromarray((values >> (8 if "deep" in kind else 0)).astype(np.uint8))
    upright = np.asarray(eight.transpose(way[orientation]) if orientation in way else eight)
    got = read_image(path)
    assert got.bits == (16 if "deep" in kind else 8)
    assert got.pixels.shape == (*upright.shape, 1)
    np.testing.assert_allclose(got.pixels[..., 0] * 255, upright, atol=3 if kind == "jpg" else 1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_written_is_read_again(bits: int, channels: int, suffix: str, tmp_path: Path) -> None:
    values = pixels(5, 7, channels, bits=bits).astype(np.float32) / (2**bits - 1)
    alpha = values[..., -1] if channels in (2, 4) else None
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes() if channels >= 3 else None
    picture = Picture(values[..., : channels - (alpha is not None)], alpha, bits, profile)
    path = tmp_path / f"a{suffix}"
    write_image(path, picture)
    again = read_image(path)
    assert (again.bits, again.profile) == (bits, picture.profile)
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    assert (again.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(again.alpha, alpha)
    assert list(tmp_path.iterdir()) == [path]


def test_another_reader_agrees_on_16_bits(tmp_path: Path) -> None:
    values = pixels(5, 7, 3, bits=16)
    write_image(tmp_path / "a.png", Picture(values.astype(np.float32) / 65535, bits=16, profile=b"x" * 99))
    assert np.array_equal(read_with_opencv(tmp_path / "a.png"), values)
    save_with_opencv(tmp_path / "b.tif", values)
    np.testing.assert_allclose(read_image(tmp_path / "b.tif").pixels * 65535, values, atol=0.01)


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [("1", 1, False), ("P", 3, False), ("LA", 1, True), ("CMYK", 3, False), ("PA", 3, True), ("L", 1, False)],
)
def test_other_modes(mode: str, channels: int, alpha: bool, tmp_path: Path) -> None:
    rgb = PIL.Image.fromarray(pixels(8, 9, 3))
    image = rgb.convert("P").convert("PA") if mode == "PA" else rgb.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "PA") else "a.png")
    if mode == "PA":
        image = rgb.convert("P")
        image.info["transparency"] = 3
        path = tmp_path / "a.png"
        image.save(path, transparency=3)
    else:
        image.save(path)
    got = read_image(path)
    assert got.pixels.shape == (8, 9, channels)
    assert (got.alpha is not None) == alpha
    if mode in ("P", "CMYK"):
        np.testing.assert_allclose(got.pixels * 255, np.asarray(image.convert("RGB")), atol=0.01)


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [PIL.Image.fromarray(pixels(8, 9, 3, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "empty.png").touch()
    tifffile.imwrite(tmp_path / "float.tif", pixels(5, 6, 1)[..., 0].astype(np.float32))
    save_with_opencv(tmp_path / "deep.png", pixels(40, 50, 3, bits=16))
    whole = (tmp_path / "deep.png").read_bytes()
    (tmp_path / "deep.png").write_bytes(whole[: len(whole) // 2])
    PIL.Image.fromarray(np.zeros((40000, 40000), bool)).save(tmp_path / "large.tif", compression="group4")
    refused = {
        "moving.gif": "holds 3 images",
        "empty.png": "is empty",
        "float.tif": r"values in \[0, 1\]",
        "deep.png": "truncated",
        "large.tif": "decompression bomb",
    }
    for name, said in refused.items():
        with pytest.raises(ImageError, match=said) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- calibrated


@torch.no_grad()
def test_each_image_calibrates_the_network_that_restores_it(checkpoint: Path, tmp_path: Path) -> None:
    """The files are those of a network calibrated by hand, on each image by itself; a plan serves all alike."""
    folder = tmp_path / "in"
    folder.mkdir()
    photographs = {f"{n}.png": pixels(72, 96, 3, seed=n) for n in range(2)}
    for name, values in photographs.items():
        PIL.Image.fromarray(values).save(folder / name)
    argv = ["restore", str(folder), "--checkpoint", str(checkpoint), "--base-size", str(BASE), "--crop", str(BASE)]
    assert cli.main([*argv[:2], str(tmp_path / "own"), *argv[2:], "--calibrate"]) == 0
    plans = []
    for name, values in photographs.items():
        model = load(checkpoint, BASE)
        image = torch.from_numpy(values / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tlsc.TLSCWarning)
            plans.append(tlsc.calibrate(model, image, BASE))
        restored = run(model, image).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        written = np.asarray(PIL.Image.open(tmp_path / "own" / name))
        assert np.abs(written - np.rint(restored * 255)).max() <= 1
    assert plans[0] != plans[1]
    plans[0].save(tmp_path / "plan.json")
    assert cli.main([*argv[:2], str(tmp_path / "plan"), *argv[2:], "--calibrate", str(tmp_path / "plan.json")]) == 0
    for name in photographs:
        own, other = (np.asarray(PIL.Image.open(tmp_path / place / name)) for place in ("own", "plan"))
        assert np.array_equal(own, other) == (name == "0.png")


def test_calibrating_grey_pictures_and_errors(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.fromarray(pixels(34, 60, 1)[..., 0]).save(tmp_path / "grey.png")
    argv = ["restore", str(tmp_path / "grey.png"), str(tmp_path / "out.png"), "--checkpoint", str(checkpoint)]
    assert cli.main([*argv, "--base-size", "32", "--calibrate", "--crop", "32"]) == 0
    assert "nothing was calibrated: no image is larger than the crop" in capsys.readouterr().err
    assert cli.main([*argv, "--base-size", "none", "--calibrate"]) == 1
    assert "leave --base-size none out" in capsys.readouterr().err
    (tmp_path / "no.json").write_text("{}")
    assert cli.main([*argv, "--base-size", "32", "--calibrate", str(tmp_path / "no.json"), "--overwrite"]) == 1
    assert "no.json is no plan" in capsys.readouterr().err

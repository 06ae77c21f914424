"""``tlsc eval`` and ``tlsc sweep``: equal figures however they are made, failures one at a time, right verdicts."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

import tlsc
from tlsc.eval import cli
from tlsc.eval.images.photographs import load_photograph
from tlsc.eval.judge.intervals import bounds, images_to_settle, interval
from tlsc.eval.judge.metrics import score
from tlsc.eval.judge.seams import tile_mismatch
from tlsc.eval.judge.verdict import change, judge, summarise
from tlsc.eval.networks import load_network
from tlsc.eval.run.cells import Cell, cells_of
from tlsc.eval.run.patches import ResultSizeError, bands, restore
from tlsc.eval.run.records import Record, Records, alone_in, open_run, read_records

from .reports import report_of

RNG = np.random.default_rng(0)

# A network of one site. It fails on images that are all white, and waits where a test wants to be quicker than it.
NETS = """
import os
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        time.sleep(float(os.environ.get("TLSC_TEST_WAIT", "0")))
        if (x == 1).all():
            raise RuntimeError("white\\nand more")
        features = self.conv(x)
        return x + 0.1 * self.last(features * torch.sigmoid(self.pool(features)))

def net():
    torch.manual_seed(0)
    return Net()

def nothing_global():
    return nn.Conv2d(3, 3, 1)

def two_outputs():
    class Two(Net):
        def forward(self, x):
            y = super().forward(x)
            return [y * 0, y]
    torch.manual_seed(0)
    return Two()

def larger():
    class Larger(Net):
        def forward(self, x):
            y = super().forward(x)
            return y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return Larger()

def multiples():
    class Multiples(Net):
        def forward(self, x):
            if x.shape[2] % 8 or x.shape[3] % 8:
                raise RuntimeError("sizes must be multiples of 8")
            return super().forward(x)
    torch.manual_seed(0)
    return Multiples()
"""


def _write_images(folder: Path, count: int, size: tuple[int, int] = (40, 36)) -> None:
    for role in ("input", "target"):
        (folder / role).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        target = RNG.integers(0, 256, (*size, 3))
        given = np.clip(target + RNG.normal(0, 20, target.shape), 0, 255)
        Image.fromarray(target.astype(np.uint8)).save(folder / f"target/{number:03d}.png")
        Image.fromarray(given.astype(np.uint8)).save(folder / f"input/{number:03d}.png")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the networks and a folder of five pairs."""
    name = f"nets_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(NETS)
    (tmp_path / "nets").write_text(name)
    _write_images(tmp_path / "data", 5)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop(name, None)


def _net(place: Path, factory: str = "net") -> str:
    return f"{(place / 'nets').read_text()}:{factory}"


OPTIONS = ["--crop", "16", "--base-size", "16", "--tile", "16", "--overlap", "0,4"]


def _run(place: Path, *more: str, network: str = "net", out: str = "out", report: bool = False) -> int:
    options = OPTIONS if report else [*OPTIONS, "--no-report"]
    return cli.main(["eval", _net(place, network), "data", *options, "--out", out, *more])


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------- the figures


def test_eval_writes_figures_that_can_be_made_by_hand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure again, from the files, with the library's public functions."""
    import tlsc

    assert _run(place, report=True) == 0
    said = capsys.readouterr().out
    out = place / "out"
    names = ("results.csv", "results.json", "timings.csv", "psnr.png", "gain.png", "comparison.png", "report.html")
    assert all((out / name).stat().st_size > 100 for name in names)
    rows = _rows(out)
    assert len(rows) == 5 * 4
    page = (Path(__file__).parents[2] / "docs/results-files.md").read_text(encoding="utf-8")
    assert all(f"`{column}`" in page.split("## results.json")[0] for column in rows[0])
    network = load_network(_net(place))
    figures = {(row["image"], row["variant"], row["patch_size"], row["overlap"]): row for row in rows}
    for name in ("000.png", "003.png"):
        given, target = (np.asarray(Image.open(place / f"data/{role}/{name}")) for role in ("input", "target"))
        image = torch.from_numpy(given / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
        for variant, size, overlap in (("original", 16, 4), ("original", None, 0), ("base size 16", None, 0)):
            with torch.no_grad():
                if variant == "original":
                    result = restore(network.model, image, size, overlap)
                else:
                    with tlsc.converted(network.model, 16) as model:
                        result = model(image)
            expected = score(result[0].permute(1, 2, 0).numpy(), target)
            row = figures[name, variant, str(size or "whole"), str(overlap)]
            assert float(row["psnr_db"]) == pytest.approx(expected.psnr, abs=1e-5)
            assert float(row["ssim"]) == pytest.approx(expected.ssim, abs=1e-6)
            assert (row["protocol"], row["crop_border"], row["status"]) == ("rgb-uint8", "0", "ok")
    _check_indicators(place, figures, said)
    report = report_of(out)
    mean = np.mean([float(row["psnr_db"]) for row in rows if row["variant"] == "base size 16"])
    assert next(m for m in report["means"] if m["cell"] == "base size 16, whole")["psnr"] == pytest.approx(mean)
    assert report["settings"]["weights_sha256"]
    assert report["data"]["checksum_sha256"]
    assert "rgb-uint8 (clipped and rounded to 8 bit" in said
    assert report["verdict"]["recommendation"] in said


def _check_indicators(place: Path, figures: dict[tuple[str, ...], dict[str, str]], said: str) -> None:
    """Of tiles and of crops, from the network alone; sentences and a picture in the report."""
    model = load_network(_net(place)).model
    given = np.asarray(Image.open(place / "data/input/000.png"))
    image = torch.from_numpy(given / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    top = (image.shape[2] - 16) // 2
    expected = {o: tile_mismatch(model, image[..., top : top + 16, :], 16, o) for o in (2, 4)}
    cuts = ("16", "0"), ("16", "4"), ("whole", "0")
    row = {cut: figures[("000.png", "original", *cut)] for cut in cuts}
    assert float(row["16", "0"]["tile_mismatch"]) == pytest.approx(expected[2], abs=1e-7)
    assert float(row["16", "4"]["tile_mismatch"]) == pytest.approx(expected[4], abs=1e-7)
    assert row["whole", "0"]["tile_mismatch"] == ""
    with torch.no_grad():
        whole, apart = model(image), []
        tops, lefts = ([n // 4 - 8, 3 * n // 4 - 8] for n in image.shape[2:])
        for y, x in ((max(0, min(y, image.shape[2] - 16)), max(0, x)) for y in tops for x in lefts):
            x = min(x, image.shape[3] - 16)
            alone = model(image[..., y : y + 16, x : x + 16])
            apart.append((whole[..., y + 4 : y + 12, x + 4 : x + 12] - alone[..., 4:12, 4:12]).abs().mean())
    found = float(row["whole", "0"]["train_eval_disparity"])
    assert found == pytest.approx(float(np.mean(apart)), abs=1e-6)
    assert "Tile mismatch: where neighbouring tiles both have a result, they differ by" in said
    page = (place / "out/report.html").read_text(encoding="utf-8")
    assert "Train/eval disparity: a training crop" in page
    assert 'alt="differences where tiles meet" src="data:image/png;base64,' in page


def test_calibrated_networks_are_a_variant_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are those of a network calibrated by hand on the first four inputs, to the last digit."""
    _write_images(place / "data", 5, (64, 80))
    assert _run(place, "--calibrate") == 0
    assert "base size 16, calibrated" in capsys.readouterr().out
    rows = [row for row in _rows(place / "out") if row["variant"] == "base size 16, calibrated"]
    assert [row["image"] for row in rows] == [f"{n:03d}.png" for n in range(5)]
    network = load_network(_net(place))
    pairs = [np.asarray(Image.open(place / f"data/input/{n:03d}.png")) for n in range(5)]
    given = [torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1) for pixels in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsc.TLSCWarning)
        tlsc.convert(network.model, 16, calibrate=given[:4])
    target = np.asarray(Image.open(place / "data/target/004.png"))
    with torch.no_grad():
        out = network(given[4].unsqueeze(0)).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    expected = peak_signal_noise_ratio(target, np.rint(out * 255).astype(np.uint8), data_range=255)
    assert float(rows[4]["psnr_db"]) == pytest.approx(expected, abs=1e-3)
    assert _run(place, "--calibrate", out="again") == 0
    assert (place / "again/results.csv").read_bytes() == (place / "out/results.csv").read_bytes()


def test_sources_are_variants_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure is that of the network converted by hand, with tiles of the training crop."""
    _write_images(place / "data", 1, (64, 80))
    assert _run(place, "--base-size", "24", "--source", "window,tile,crops") == 0
    assert "base size 24, source tile" in capsys.readouterr().out
    found = [row for row in _rows(place / "out") if (row["patch_size"], row["image"]) == ("whole", "000.png")]
    rows = {row["variant"]: row for row in found}
    variants = ["base size 24", "base size 24, source tile", "base size 24, source crops"]
    assert list(rows) == ["original", *variants]
    network = load_network(_net(place))
    given, target = (np.asarray(Image.open(place / f"data/{role}/000.png")) for role in ("input", "target"))
    image = torch.from_numpy(given / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    tlsc.convert(network.model, 24, source="crops", crop=16)
    with torch.no_grad():
        out = network(image).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    expected = peak_signal_noise_ratio(target, np.rint(out * 255).astype(np.uint8), data_range=255)
    assert float(rows[variants[2]]["psnr_db"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--base-size", "8"], "no smaller than the training crop, 16"), ([], "needs the training crop")],
)
def test_calibrating_needs_a_crop_that_fits(
    place: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--crop", "16"] if more else ["--base-size", "16", "--tile", "16"]
    assert cli.main(["eval", _net(place), "data", *options, *more, "--calibrate", "--no-report"]) == 1
    assert said in capsys.readouterr().err


def test_sweep_reuses_the_original_where_patches_fit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to the window the converted network's figures are the original's, and marked as such (invariant I1)."""
    argv = ["--patch-size", "8,16,24", "--base-size", "16,24,64", "--overlap", "0", "--no-report"]
    assert cli.main(["sweep", _net(place), "data", *argv, "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "PSNR in dB at patch size" in said
    rows = _rows(place / "out")
    assert len(rows) == 5 * 4 * 4
    figures = {(row["image"], row["variant"], row["patch_size"]): row for row in rows}
    for row in rows:
        fits = row["base_size"] == "64" or (
            bool(row["base_size"])
            and row["patch_size"] != "whole"
            and int(row["patch_size"]) <= int(row["base_size"])
        )
        assert row["status"] == ("as original" if fits else "ok")
        if fits:
            original = figures[row["image"], "original", row["patch_size"]]
            assert (row["psnr_db"], row["ssim"]) == (original["psnr_db"], original["ssim"])
    sizes = [row["patch_size"] for row in rows if row["image"] == "000.png" and row["variant"] == "original"]
    assert sizes == ["8", "16", "24", "whole"]


def test_identical_images_are_counted_and_not_averaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "same.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Identity())\n")
    shutil.copy(place / "data/input/002.png", place / "data/target/002.png")
    assert cli.main(["eval", "same:net", "data", *OPTIONS, "--no-report", "--out", "out"]) == 0
    said = capsys.readouterr().out
    rows = {row["image"]: row for row in _rows(place / "out") if row["patch_size"] == "whole"}
    assert rows["002.png"]["psnr_db"] == "inf"
    rest = np.mean([float(row["psnr_db"]) for name, row in rows.items() if name != "002.png"])
    assert f"{rest:.2f} (+1 identical: inf)" in said
    report = report_of(place / "out")
    whole = next(m for m in report["means"] if m["cell"] == "original, whole")
    assert whole["identical"] == 1
    assert whole["psnr"] == pytest.approx(rest)
    assert "spans zero" in report["verdict"]["recommendation"]


# --------------------------------------------------------------------------------------------- bad pairs, failures


def test_bad_pairs_stop_the_run_or_are_counted_everywhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "data/target/004.png").unlink()
    (place / "data/input/003.png").write_bytes(b"")
    assert _run(place) == 1
    error = capsys.readouterr().err
    assert "2 of 5 cannot be evaluated" in error
    assert "unmatched: input/004.png" in error
    assert "unreadable: 003.png" in error
    assert not (place / "out").exists()
    assert _run(place, "--skip-bad", report=True) == 0
    said = capsys.readouterr().out
    assert "Skipped as bad: 2 (1 unreadable, 1 unmatched)" in said
    bad = [(row["image"], row["status"]) for row in _rows(place / "out") if row["status"] != "ok"]
    assert bad == [("003.png", "unreadable"), ("input/004.png", "unmatched")]
    report = report_of(place / "out")
    assert [entry["kind"] for entry in report["data"]["bad"]] == ["unreadable", "unmatched"]
    assert "unmatched: input/004.png" in (place / "out/report.html").read_text(encoding="utf-8")


def test_one_image_that_fails_does_not_stop_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (36, 40), "white").save(place / "data/input/001.png")
    assert _run(place, "--skip-bad") == 1
    said = capsys.readouterr()
    assert "failed: 001.png (original, whole): RuntimeError: white\n" in said.err
    assert "1 image is left out of means and verdict" in said.out
    states = {row["image"]: row["status"] for row in _rows(place / "out")}
    assert states == {f"00{n}.png": "failed" if n == 1 else "ok" for n in range(5)}


@pytest.mark.parametrize(
    ("network", "more", "said"),
    [
        ("two_outputs", [], "returned 2 entries: name the result with --output"),
        ("two_outputs", ["--output", "7"], "has no output 7: it returned 2 entries"),
        ("larger", [], "the target is 40×36"),
        ("larger", ["--scale", "2"], "the input is 40×36 pixels, times 2, the target 40×36"),
        ("multiples", [], "sizes must be multiples of 8"),
    ],
)
def test_networks_that_need_an_option(
    place: Path, capsys: pytest.CaptureFixture[str], network: str, more: list[str], said: str
) -> None:
    assert _run(place, *more, network=network) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_outputs_and_padding_can_be_given(place: Path) -> None:
    assert _run(place, network="net", out="plain") == 0
    assert _run(place, "--output", "1", network="two_outputs", out="second") == 0
    assert _run(place, "--pad-to", "8", network="multiples", out="padded") == 0
    plain, second = ([row["psnr_db"] for row in _rows(place / name)] for name in ("plain", "second"))
    assert plain == second
    assert all(row["status"] == "ok" for row in _rows(place / "padded"))


def test_a_checkpoint_by_its_path(place: Path) -> None:
    """The stage that is the result, and the recommended window, are those of the checkpoint's descriptor."""
    from tlsc.adapters import HINet

    torch.manual_seed(0)
    model = HINet(wf=4, depth=3, hin_position_left=0, hin_position_right=2).eval()
    torch.save({"params": model.state_dict()}, place / "mine.pth")
    argv = ["eval", "mine.pth", "data", "--crop", "16", "--limit", "1", "--no-report", "--out", "out"]
    assert cli.main(argv) == 0
    rows = {(row["variant"], row["patch_size"]): row for row in _rows(place / "out")}
    assert ("base size 24", "whole") in rows
    given, target = (np.asarray(Image.open(place / f"data/{role}/000.png")) for role in ("input", "target"))
    with torch.no_grad():
        result = model(torch.from_numpy(given / np.float32(255)).permute(2, 0, 1).unsqueeze(0))[-1]
    expected = score(result[0].permute(1, 2, 0).numpy(), target)
    assert float(rows["original", "whole"]["psnr_db"]) == pytest.approx(expected.psnr, abs=1e-5)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--protocol", "psnr"], "no protocol 'psnr'"),
        (["--crop-border", "20"], "crop border 20 leaves nothing of 40×36"),
        (["--degrade", "fog"], "no degradation 'fog'"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--dtype", "int8"], "dtype must be float32"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--overlap", "16"], "overlap must be at least 0 and less"),
        (["--lpips"], "pip install pyiqa"),
    ],
)
def test_errors_are_one_clear_line(
    place: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert _run(place, *argv) == 1
    assert said in capsys.readouterr().err


def test_names_that_are_no_network_or_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "nothing", "data"]) == 1
    assert "neither an included network" in capsys.readouterr().err
    assert cli.main(["eval", _net(place), "nowhere", *OPTIONS]) == 1
    assert "no folder nowhere" in capsys.readouterr().err
    assert cli.main(["eval", _net(place), "data"]) == 1
    assert "give --crop" in capsys.readouterr().err


def test_a_network_that_takes_the_noise_level_is_found_by_every_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``eval ffdnet`` was refused where ``inspect ffdnet`` worked; the level is that of the noise."""
    argv = ["eval", "ffdnet", "data/target", "--limit", "1", *OPTIONS, "--no-report", "--out", "out"]
    assert cli.main(argv) == 1
    assert "give --sigma" in capsys.readouterr().err
    assert cli.main([*argv, "--degrade", "noise:25"]) == 0
    (row,) = [row for row in _rows(place / "out") if row["patch_size"] == "whole"]
    assert row["status"] == "ok"


# --------------------------------------------------------------------------------------------- one, two, killed


def _command(place: Path, out: str, *more: str) -> list[str]:
    return ["-m", "tlsc.eval", "eval", _net(place), "data", *OPTIONS, "--no-report", "--out", out, *more]


def _processes(place: Path, out: str, count: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *_command(place, out, *more)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _killed(place: Path, out: str, lines: int) -> None:
    """Start a run and kill it without warning when it has written some results."""
    environment = {**os.environ, "TLSC_TEST_WAIT": "0.1"}
    with subprocess.Popen(
        [sys.executable, *_command(place, out)],
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and len(read_records(place / out)) < lines:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(place: Path) -> None:
    """Also with an image that fails; no process hangs."""
    Image.new("RGB", (36, 40), "white").save(place / "data/input/001.png")
    assert _run(place, out="one") == 1
    done = _processes(place, "two", 2)
    assert "failed: 001.png (original, whole): RuntimeError: white" in done.stderr
    assert done.returncode != 0
    assert done.stdout.count("Written to two") == 1
    parts = sorted((place / "two/parts").iterdir())
    assert [path.name for path in parts] == ["0000.jsonl", "0001.jsonl"]
    keys = [json.loads(line)["image"] for path in parts for line in path.read_text().splitlines()]
    assert len(keys) == 5 * 4  # each once
    assert min(len(path.read_text().splitlines()) for path in parts) >= 8
    assert (place / "two/results.csv").read_bytes() == (place / "one/results.csv").read_bytes()


def test_a_killed_run_goes_on_to_the_same_bytes(place: Path) -> None:
    """Also with an image that fails, and half a line left behind."""
    Image.new("RGB", (36, 40), "white").save(place / "data/input/001.png")
    assert _run(place, out="one") == 1
    _killed(place, "killed", 7)
    before = read_records(place / "killed")
    assert 7 <= len(before) < 20
    assert not (place / "killed/results.csv").exists()
    with (place / "killed/parts/0000.jsonl").open("a") as file:
        file.write('{"cell": "original, wh')
    assert _run(place, "--resume", out="killed") == 1
    assert (place / "killed/results.csv").read_bytes() == (place / "one/results.csv").read_bytes()
    again = [record for record in read_records(place / "killed") if record.good]
    assert len(again) == len({record.key for record in again}) == 16  # nothing was done twice


def test_resume_needs_the_same_settings(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(place, "--resume") == 0
    first = (place / "out/results.csv").read_bytes()
    assert _run(place) == 1
    assert "--resume" in capsys.readouterr().err
    assert _run(place, "--resume", "--crop-border", "2") == 1
    assert "crop_border: 0, now 2" in capsys.readouterr().err
    assert (place / "out/results.csv").read_bytes() == first
    assert _run(place, "--overwrite", "--crop-border", "2") == 0
    assert (place / "out/results.csv").read_bytes() != first
    Image.fromarray(RNG.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(place / "data/target/000.png")
    assert _run(place, "--resume", "--crop-border", "2") == 1
    assert "files_sha256" in capsys.readouterr().err


def test_a_damaged_run_is_said_to_be(tmp_path: Path) -> None:
    open_run(tmp_path, {"a": 1}, resume=False, overwrite=False)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        open_run(tmp_path, {"a": 1}, resume=True, overwrite=False)


@pytest.mark.parametrize("change", [("30.5", "31.5"), ("30.5", "1e308"), ("30.5", "true"), ('"a"', '"b"')])
def test_a_damaged_record_is_named_and_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str]
) -> None:
    records = Records(tmp_path, 0)
    for image in ("a", "c"):
        records.add(Record("original, whole", image, psnr=30.5, ssim=0.5))
    records.close()
    assert read_records(tmp_path) == records.new
    part = tmp_path / "parts/0000.jsonl"
    part.write_text(part.read_text().replace(*change, 1) + "[]\n")
    assert read_records(tmp_path) == records.new[1:]
    said = capsys.readouterr().err
    assert "0000.jsonl, line 1: damaged" in said
    assert "line 3" in said


@pytest.mark.parametrize("change", [('"b": 12', '"b": 13'), ('"b": 12', '"b": true'), ('"b"', '"c"'), ("{", "[{")])
def test_changed_settings_of_a_run_are_damage(tmp_path: Path, change: tuple[str, str]) -> None:
    open_run(tmp_path, {"a": 1, "b": 12}, resume=False, overwrite=False)
    open_run(tmp_path, {"a": 1, "b": 12}, resume=True, overwrite=False)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ValueError, match="damaged"):
        open_run(tmp_path, {"a": 1, "b": 12}, resume=True, overwrite=False)


def test_one_process_at_a_time_writes_to_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a killed process leaves behind is no lock."""
    with alone_in(place / "out"):
        assert _run(place) == 1
        assert "another process writes to" in capsys.readouterr().err
        assert not (place / "out/run.json").exists()
    (place / "out/.lock").touch()
    assert _run(place) == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(place: Path) -> None:
    """Peak of the process after 20 images and after 100, in one process."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    _write_images(place / "many", 100, (24, 24))
    script = f"""
import sys
from pathlib import Path
import torch
from tlsc.eval.run import cells, runner
from tlsc.eval.data.datasets import find_pairs
from tlsc.eval.run.distributed import Team
from tlsc.eval.judge.metrics import Protocol
from tlsc.eval.networks import load_network
runner._forget_peak = lambda: False
network = load_network({_net(place)!r})
ways, _ = cells.cells_of(network.model, [16], [1], [])
for count in (20, 100):
    data = find_pairs(["many"], limit=count).checked()
    with runner.fixed_arithmetic(1):
        found = runner.run(runner.Job(network, data, ways, Protocol()), Path(f"out{{count}}"), Team(), False)
    assert len(found) == 2 * count and all(record.status == "ok" for record in found)
    print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many < 1.05 * few


# --------------------------------------------------------------------------------------------- large images


def test_tiles_stream() -> None:
    """No more than one row of tiles is asked for before the band above it is finished."""
    image = torch.rand(1, 3, 200, 37)
    asked: list[tuple[int, int]] = []

    def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
        asked.append((top, bottom))
        return image[..., top:bottom, left:right]

    done = 0
    with torch.no_grad():
        for band in bands(nn.Identity(), cut, 200, 37, 16, 4):
            assert max(bottom for _, bottom in asked) <= done + 16 + 4 or done + band.shape[2] == 200
            torch.testing.assert_close(band, image[..., done : done + band.shape[2], :])
            done += band.shape[2]
    assert done == 200


class _Larger(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        larger = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
        return larger - x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(("patch", "overlap"), [(16, 0), (16, 8), (50, 7), (7, 6), (16, 15)])
def test_tiles_of_a_network_that_enlarges(patch: int, overlap: int) -> None:
    """Against a sum over all tiles of weight times result, divided by the sum of weights; ramps of 3·overlap."""
    image = torch.rand(1, 2, 23, 41, dtype=torch.float64)
    size = [min(patch, n) for n in (23, 41)]
    starts = [
        [*range(0, n - k, k - overlap), n - k] if overlap else [*range(0, n - k, k), n - k]
        for n, k in zip((23, 41), size, strict=True)
    ]
    total, weights = torch.zeros(1, 2, 69, 123, dtype=torch.float64), torch.zeros(69, 123, dtype=torch.float64)
    ramps = []
    for k in size:
        at = torch.arange(3 * k, dtype=torch.float64) + 0.5
        ramp = torch.minimum(at, 3 * k - at)
        ramps.append(ramp.clamp(max=3 * overlap) if overlap else torch.ones_like(ramp))
    weight = ramps[0][:, None] * ramps[1]
    for top, left in itertools.product(*starts):
        result = _Larger()(image[..., top : top + size[0], left : left + size[1]])
        place = (..., slice(3 * top, 3 * (top + size[0])), slice(3 * left, 3 * (left + size[1])))
        if overlap:
            total[place] += weight * result
            weights[place] += weight
        else:
            total[place] = result
    expected = total / weights if overlap else total
    torch.testing.assert_close(restore(_Larger(), image, patch, overlap), expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_cuts_its_borders_is_refused() -> None:
    with pytest.raises(ResultSizeError, match=r"\(1, 4, 6, 6\) for \(1, 3, 8, 8\)"):
        restore(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8))


def test_arrays_on_disk_are_evaluated_in_tiles(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("lq", "gt"):
        (place / "large" / role).mkdir(parents=True)
        np.save(place / "large" / role / "a.npy", RNG.integers(0, 256, (60, 50, 3), dtype=np.uint8))
        np.save(place / "large" / role / "b.npy", RNG.integers(0, 256, (60, 50, 3), dtype=np.uint8))
    argv = ["eval", _net(place), "large", *OPTIONS, "--no-whole", "--no-report", "--out", "out"]
    assert cli.main(argv) == 0
    assert {row["patch_size"] for row in _rows(place / "out")} == {"16"}
    assert "compared with original, patches of 16" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------- the verdict

CELLS = [Cell(), Cell(patch_size=64), Cell(patch_size=64, overlap=16), Cell(96), Cell(128)]


def _records(gains: dict[Cell, Any], images: int = 20) -> list[Record]:
    base = RNG.uniform(25, 35, images)
    return [
        Record(str(cell), f"{i:02d}.png", "ok", float(base[i] + gain[i]), 0.9, seconds=1.0, megapixels=0.5)
        for cell in CELLS
        for gain in [np.broadcast_to(gains.get(cell, 0.0), images)]
        for i in range(images)
    ]


def test_verdict_converting_wins() -> None:
    noise = RNG.normal(0, 0.2, (5, 20))
    gains = {CELLS[1]: noise[1] - 1, CELLS[2]: noise[2] - 0.5, CELLS[3]: noise[3] + 1, CELLS[4]: noise[4] + 0.5}
    verdict = judge(CELLS, _records(gains))
    assert verdict.best == Cell(96)
    assert verdict.recommendation.startswith("Convert with base_size=96: +")
    found = verdict.changes[Cell(96)]
    assert found.mean == pytest.approx(gains[CELLS[3]].mean())
    assert 0.7 < found.low < found.mean < found.high < 1.3


def test_verdict_tiles_win() -> None:
    noise = RNG.normal(0, 0.2, (5, 20))
    gains = {CELLS[1]: noise[1] + 1, CELLS[2]: noise[2] + 2, CELLS[3]: noise[3] - 4, CELLS[4]: noise[4] - 3}
    verdict = judge(CELLS, _records(gains))
    assert verdict.best == Cell(patch_size=64, overlap=16)
    assert verdict.recommendation.startswith("Do not convert; tile at 64 with overlap 16: +")
    assert f"compared with {verdict.changes[Cell(128)]} for base size 128, whole" in verdict.recommendation


def test_verdict_tiles_and_converting_are_as_good() -> None:
    noise = RNG.normal(0, 0.2, (5, 20))
    gains = {CELLS[2]: noise[2] - noise[2].mean() + 1.01, CELLS[3]: noise[3] - noise[3].mean() + 1}
    verdict = judge(CELLS, _records(gains))
    assert verdict.best == CELLS[2]
    assert "not shown to be worse, the interval of the difference spans zero" in verdict.recommendation
    gains[CELLS[3]] = gains[CELLS[3]] + 0.02
    verdict = judge(CELLS, _records(gains))
    assert verdict.best == CELLS[3]
    assert any("not shown to be worse" in remark for remark in verdict.remarks)


def test_verdict_no_difference() -> None:
    """Noise around zero, exactly zero, and less than anybody prints."""
    noise = RNG.normal(0, 0.2, (5, 20))
    noise -= noise.mean(1, keepdims=True) - 0.01
    verdict = judge(CELLS, _records(dict(zip(CELLS[1:], noise[1:], strict=True))))
    assert verdict.best == Cell()
    assert "spans zero" in verdict.recommendation
    assert verdict.recommendation.startswith("Leave the network as it is, on whole images")
    assert "spans zero: +0.00 dB [+0.00, +0.00]" in judge(CELLS, _records({})).recommendation
    verdict = judge(CELLS, _records({Cell(96): 0.001, Cell(128): -1, CELLS[1]: -1, CELLS[2]: -1}))
    assert "no difference worth having" in verdict.recommendation


def test_verdict_everything_is_worse() -> None:
    verdict = judge(CELLS, _records({cell: -1 - i for i, cell in enumerate(CELLS[1:])}))
    assert "every other way is worse" in verdict.recommendation
    assert "converting hurts" in verdict.recommendation
    assert verdict.best == Cell()


def test_a_chance_winner_among_many_is_not_recommended() -> None:
    """The best of four equal ways must win in at most 5% of runs; without Bonferroni it would in about 10%."""
    rng = np.random.default_rng(1)
    wins = 0
    for _ in range(100):
        noise = rng.normal(0, 0.2, (5, 30))
        wins += judge(CELLS, _records(dict(zip(CELLS[1:], noise[1:], strict=True)), 30)).best != Cell()
    assert wins <= 6


def test_verdicts_of_one_image_and_of_none() -> None:
    one = [record for record in _records({Cell(96): 1.0}) if record.image == "00.png"]
    assert judge(CELLS, one).recommendation.startswith("No verdict from 1 image")
    none = [Record(str(cell), "a.png", "failed", message="x") for cell in CELLS]
    assert judge(CELLS, none).recommendation == "No verdict: no image was restored."
    assert all(math.isnan(found.psnr) for found in summarise(CELLS, none))


def test_a_way_that_fails_everywhere_does_not_spoil_the_comparison() -> None:
    records = [
        Record(r.cell, r.image, "failed", message="memory") if r.cell == str(Cell()) else r
        for r in _records({Cell(96): 1.0})
    ]
    verdict = judge(CELLS, records)
    assert verdict.baseline == Cell(patch_size=64)
    assert len(verdict.images) == 20
    assert any("failed on 20 of 20" in remark for remark in verdict.remarks)


def test_interval_is_that_of_resampling() -> None:
    """Against resampling in a loop, and against the normal interval, which it nears for many values."""
    values = RNG.normal(1, 0.5, 200)
    low, high = interval(list(values))
    rng = np.random.default_rng(5)
    means = [rng.choice(values, 200).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert interval(list(values)) == (low, high)
    assert change([30, math.inf, 31], [29, 30, 30]).infinite == 1


@pytest.mark.parametrize("count", [4, 6, 10, 30])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_hold_the_true_mean_as_often_as_they_say(count: int, skewed: bool) -> None:
    rng = np.random.default_rng(count)
    draws = rng.gamma(4, size=(6000, count)) - 4 if skewed else rng.standard_normal((6000, count))
    for confidence in (0.95, 0.99):
        low, high = bounds(draws, confidence)
        assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(confidence, abs=0.03)
    low, high = bounds(draws[:1])
    assert interval(list(draws[0])) == (low[0], high[0])
    mirrored = bounds(-draws[:1])
    assert (-mirrored[1], -mirrored[0]) == (pytest.approx(low), pytest.approx(high))


def test_no_interval_from_three_images() -> None:
    assert all(math.isnan(value) for value in interval([0.1, 0.2, 0.3]))
    assert str(change([2, 3], [1, 1])) == "+1.50 dB (no interval: 2 images)"
    assert interval([0.5] * 4) == (0.5, 0.5)


def test_how_many_images_would_settle_it() -> None:
    """By hand: mean 0.1, deviation 0.1·sqrt(8/3); t of n - 1 over sqrt(n) is below their ratio from n = 14 on."""
    from scipy.stats import t

    ratio = 0.1 / np.std([0.1, -0.1, 0.3, 0.1], ddof=1)
    needed = next(n for n in range(4, 99) if t.ppf(0.975, n - 1) / math.sqrt(n) < ratio)
    assert images_to_settle([0.1, -0.1, 0.3, 0.1]) == needed
    assert images_to_settle([0.1, -0.1]) is None
    assert images_to_settle([0.1]) is None
    noisy = {Cell(96): np.tile([0.3, -0.2, 0.1, -0.1], 5)}
    remarks = judge(CELLS, _records(noisy)).remarks
    assert any(remark.startswith("about ") and "would settle" in remark for remark in remarks)


def test_images_no_larger_than_the_window_change_nothing() -> None:
    cells = [Cell(), Cell(96)]
    records = [
        Record(str(cell), f"{n}.png", "as original" if cell.base_size else "ok", psnr=30.0, ssim=0.9)
        for cell in cells
        for n in range(6)
    ]
    assert judge(cells, records).recommendation.startswith("Converting cannot change anything here")


# Real runs: an image of texture around 0.5 behind a field that varies slowly. The global mean takes the field's
# mean away, a local one the field itself.
FIELD = """
import torch
from torch import nn

class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x - self.pool(x) + 0.5

class Useless(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x + 0 * self.pool(x)
"""


def _field_images(folder: Path, count: int) -> None:
    for role in ("input", "target"):
        (folder / role).mkdir(parents=True)
    for number in range(count):
        target = 0.5 + RNG.uniform(-0.1, 0.1, (64, 72, 3))
        slope = RNG.uniform(-0.3, 0.3, 2)
        field = slope[0] * np.linspace(-1, 1, 64)[:, None] + slope[1] * np.linspace(-1, 1, 72)
        for role, image in (("target", target), ("input", target + 0.5 * field[..., None])):
            Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{role}/{number}.png")


@pytest.mark.parametrize(
    ("factory", "best", "said"),
    [
        ("Level", "base size 16, whole", "Convert with base_size=16"),
        ("Useless", "original, whole", "spans zero: +0.00 dB [+0.00, +0.00]"),
    ],
)
def test_verdicts_of_real_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, best: str, said: str
) -> None:
    _field_images(tmp_path / "data", 6)
    (tmp_path / "level_networks.py").write_text(FIELD)
    monkeypatch.chdir(tmp_path)
    argv = ["eval", f"level_networks:{factory}", "data", *OPTIONS, "--no-report", "--out", "out"]
    assert cli.main(argv) == 0
    verdict = report_of(tmp_path / "out")["verdict"]
    assert verdict["best"] == best
    assert said in verdict["recommendation"]


@pytest.mark.slow
def test_verdict_of_instance_norm_on_all_levels(tmp_path: Path) -> None:
    """The demo's network for which converting is the wrong tool, on photographs it has not seen."""
    (tmp_path / "clean").mkdir()
    for number, (name, top, left) in enumerate(
        [
            (name, top, left)
            for name in ("chelsea", "coffee", "astronaut")
            for top in (60, 180)
            for left in (90, 240)
        ]
    ):
        photograph = load_photograph(name)[top : top + 100, left : left + 100]
        Image.fromarray(np.rint(photograph * 255).astype(np.uint8)).save(tmp_path / f"clean/{number}.png")
    argv = [
        "eval",
        "hin-all",
        str(tmp_path / "clean"),
        "--degrade",
        "motion-blur",
        "--base-size",
        "96",
        "--tile",
        "64",
    ]
    assert cli.main([*argv, "--overlap", "32", "--no-report", "--out", str(tmp_path / "out")]) == 0
    verdict = report_of(tmp_path / "out")["verdict"]
    assert verdict["recommendation"].startswith("Do not convert; tile at 64 with overlap 32: +")


def test_cells_of_networks_without_sites_and_without_a_strided_form() -> None:
    cells, remarks = cells_of(load_network("plain").model, [64], [1, 4], [(32, 0)])
    assert [str(cell) for cell in cells] == ["original, patches of 32", "original, whole"]
    assert "nothing to convert" in remarks[0]
    cells, remarks = cells_of(load_network("hin").model, [64], [1, 4], [])
    assert [str(cell) for cell in cells] == ["original, whole", "base size 64, whole"]
    assert "stride 4" in remarks[0]

"""Pictures restored in pieces from disk to disk, by one process or by several."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from torch import Tensor, nn

import tlsc
from tlsc.adapters import Pieces
from tlsc.adapters.pieces import memory
from tlsc.errors import TLSCError
from tlsc.eval import cli
from tlsc.eval.images import Pixels, open_picture, read_picture
from tlsc.eval.networks import of_model
from tlsc.eval.restore import restore_picture
from tlsc.eval.streaming import restore_rows, stored_if_opaque


class _Gate(nn.Module):
    """A small network with one gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, channels, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.enter(image))
        out: Tensor = image * 0.7 + 0.1 * self.leave(features * self.gate(features))
        return out


def _samples(height: int, width: int, channels: int, bits: int = 8) -> Pixels:
    random = np.random.default_rng(height + channels)
    ramp = np.linspace(0, 1, height)[:, None, None] * np.linspace(0.2, 1, width)[:, None]
    values = 0.7 * ramp + 0.3 * random.random((height, width, channels))
    out: Pixels = np.rint(values * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    return out


@pytest.mark.parametrize(
    ("network", "channels", "bits", "suffix"),
    [(3, 3, 8, ".png"), (3, 1, 8, ".tif"), (1, 3, 16, ".png"), (1, 1, 16, ".tif"), (3, 4, 8, ".png")],
)
def test_from_disk_to_disk_is_what_pieces_give(
    network: int, channels: int, bits: int, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = tlsc.convert(_Gate(network).eval(), 16)
    samples = _samples(90, 70, channels, bits)
    if channels == 4:
        samples[..., 3] = 255
    extra: dict[str, Any] = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    kind = "rgb" if channels > 1 else "minisblack"
    values = samples if channels > 1 else samples[..., 0]
    tifffile.imwrite(tmp_path / "in.tif", values, photometric=kind, compression="lzw", **extra)
    named, pieces = of_model("gate", model), Pieces(model, pieces=32)
    with open_picture(tmp_path / "in.tif") as file, stored_if_opaque(file, tmp_path) as stored:
        assert stored is not None
        restore_rows(named, pieces, file, stored, tmp_path / f"out{suffix}")
    assert pieces.report is not None
    assert pieces.report.pieces > 4
    expected = restore_picture(named, read_picture(tmp_path / "in.tif"), run=Pieces(model, pieces=32).run)
    got = read_picture(tmp_path / f"out{suffix}")
    assert got.bits == bits
    assert (got.alpha is None) == (channels != 4)
    # Three grey pictures go through in a batch: last digits.
    assert np.abs(got.pixels - expected.pixels).max() <= 0.5001 / (2**bits - 1) + 1e-6


def test_a_result_that_is_no_number_leaves_nothing(tmp_path: Path) -> None:
    model = tlsc.convert(_Gate(3).eval(), 16)
    nn.init.constant_(model.leave.bias, float("nan"))  # type: ignore[arg-type]
    PIL.Image.fromarray(_samples(70, 70, 3)).save(tmp_path / "in.png")
    named = of_model("gate", model)
    with open_picture(tmp_path / "in.png") as file, stored_if_opaque(file, tmp_path) as stored:
        assert stored is not None
        with pytest.raises(TLSCError, match="NaN or Inf"):
            restore_rows(named, Pieces(model, pieces=32), file, stored, tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_what_may_not_fit_whole_goes_in_pieces_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 82 * 10**6)
    transparent = _samples(200, 180, 4)
    transparent[20:40, 30:90, 3] = 0
    for name, samples in (("opaque", transparent[..., :3]), ("transparent", transparent)):
        PIL.Image.fromarray(samples).save(tmp_path / f"{name}.png")
        argv = ["restore", "se", str(tmp_path / f"{name}.png"), "--base-size", "16"]
        assert cli.main([*argv, "-o", str(tmp_path / "pieces.png"), "--overwrite"]) == 0
        found = re.search(rf"{name}.png: (\d+) pieces", capsys.readouterr().out)
        assert found is not None
        assert int(found[1]) > 1
        assert cli.main([*argv, "-o", str(tmp_path / "tile.png"), "--tile", "400", "--overwrite"]) == 0
        assert "pieces" not in capsys.readouterr().out
        one, other = (np.asarray(PIL.Image.open(tmp_path / f"{way}.png")).astype(int) for way in ("pieces", "tile"))
        assert np.abs(one - other).max() <= 2


_SMALL_NETWORK = """
import torch
from torch import nn

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, image):
        features = torch.relu(self.enter(image))
        return image * 0.7 + 0.1 * self.leave(features * self.gate(features))
"""


def _command(folder: Path, *more: str) -> list[str]:
    (folder / "net.py").write_text(_SMALL_NETWORK)
    return ["restore", "net.py:Gate", "in.tif", "--base-size", "32", *more]


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", _samples(900, 800, 3), photometric="rgb")
    base = [sys.executable, "-m"]
    both = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29631", "-m"]
    said = []
    for name, start in (("one", base), ("two", [*base, *both])):
        argv = [*start, "tlsc.eval", *_command(tmp_path, "--memory", "79MB", "-o", f"{name}.png")]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    found = [re.findall(r"(\d+) pieces of", text) for text in said]
    assert found[0] == found[1]
    assert int(found[0][0]) > 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.is_file()) == [
        "in.tif",
        "one.png",
        "two.png",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
@pytest.mark.parametrize("by", [signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_killed_half_way_leaves_no_output(by: signal.Signals, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", _samples(4000, 3000, 3), photometric="rgb")
    command = [sys.executable, "-u", "-m", "tlsc.eval", *_command(tmp_path, "--memory", "111MB", "-o", "out.tif")]
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **streams) as process:
        said = b""
        while b"row" not in said and process.poll() is None:
            said += os.read(process.stderr.fileno(), 4096)  # type: ignore[union-attr]
        process.send_signal(by)
    assert process.returncode == (-by if by != signal.SIGTERM else 128 + by), said
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"in.tif", "net.py"}

"""Pieces against the whole image and against tiles: difference, memory, time.

``uv run python -m benchmarks pieces [estimates] [NETWORK ...] [256MB] [1GB]``. Demo networks with their
weights, the others in small settings with random ones, whose results are as large as images; a photograph of
1504×2000. Each run is a process of its own, whose peak is counted above what it holds with the network as trained,
and above what it holds converted and once run on one window. Times are processor seconds of one thread, converting
and what is compiled once left out. Tiles are those of the training crop, with half overlap, of the network as
trained.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tlsc
from tlsc import adapters
from tlsc.adapters import Pieces, load_demo_network
from tlsc.eval.images.photographs import load_photograph
from tlsc.eval.run.patches import in_tiles

from . import deployment

SIZE = (1504, 2000)  # 1500×2000 in multiples of 8, which Restormer takes
CROP = 64
WINDOW = 96
DEMO = ("se", "hin", "hin-all")
LAST = {"hinet": "last", "mprnet": "tail", "nafnet": "ending", "restormer": "output"}
NETWORKS = (*DEMO, *LAST)
LIMITS = ("256MB", "1GB")


HEADERS = (
    "network",
    "way",
    "pieces",
    "off by /255",
    "said /255",
    "MB above trained",
    "above converted",
    "CPU s",
    "of whole",
    "of tiles",
    "said",
)


def main(parts: list[str]) -> None:
    """``[estimates] [NETWORK …] [256MB] [1GB]``: a row as soon as it is measured, so that it may be stopped."""
    if "estimates" in parts:
        _estimates([part for part in parts if part != "estimates"] or list(NETWORKS))
        return
    limits = [part for part in parts if part in LIMITS] or LIMITS
    names = [part for part in parts if part not in LIMITS] or NETWORKS
    print(f"{SIZE[0]}×{SIZE[1]}, window {WINDOW}, tiles of {CROP}; PyTorch {torch.__version__}, one thread\n")
    _print_row(HEADERS)
    _print_row(["---"] * len(HEADERS))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            made: dict[str, dict[str, Any]] = {}
            for way in ("whole", "tiles", *limits):
                made[way] = got = _in_a_process(name, way, folder)
                _print_row([name, way, *_figures(way, made, folder), got.get("said", "")])


def _estimates(names: list[str]) -> None:
    """What is said of pieces with margins given and found, beside the truth; on a part of the photograph."""
    image = _image()[..., :504, :752]
    print("504×752, pieces of 256\n")
    _print_row(["network", "margin", "off by /255", "said /255", "said of true"])
    _print_row(["---"] * 5)
    for name in names:
        model = _network(name, converted=True)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = adapters.run(model, image)
            for margin in (None, 16, 32, 48, 64, 96):
                pieces = Pieces(model, pieces=256, margin=margin, tolerance=1 / 255 if margin is None else 1.0)
                off = float((pieces.run(image) - whole).abs().max()) * 255
                report = pieces.report
                assert report is not None
                shown = "×".join(map(str, report.margin)) + (" found" if margin is None else "")
                said = report.error * 255
                _print_row([name, shown, off, said, said / off if off > 1e-3 else None])


def _figures(way: str, made: dict[str, dict[str, Any]], folder: str) -> list[Any]:
    """What a run took, and what it is beside the others of its network."""
    got = made[way]
    figures = [got.get("pieces"), None, got.get("error"), got.get("peak"), got.get("warm"), got.get("seconds")]
    if way not in LIMITS or "seconds" not in got:
        return [*figures, None, None]
    whole = Path(folder, "whole.npy")
    if whole.exists():
        figures[1] = float(np.abs(np.load(Path(folder, f"{way}.npy")) - np.load(whole)).max() * 255)
    seconds = [made[to].get("seconds") for to in ("whole", "tiles")]
    return [*figures, *(got["seconds"] / other if other else None for other in seconds)]


def _print_row(cells: Sequence[Any]) -> None:
    shown = ["" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print(f"| {' | '.join(shown)} |", flush=True)


def _in_a_process(name: str, way: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pieces", name, way, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"said": done.stderr.strip().splitlines()[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _network(name: str, converted: bool) -> nn.Module:
    if name in DEMO:
        model: nn.Module = load_demo_network(name)
    else:
        model = deployment.random_network(name)
        _as_large_as_images(model, LAST[name])
    return tlsc.convert(model, WINDOW) if converted else model


@torch.no_grad()
def _as_large_as_images(model: nn.Module, last: str) -> None:
    """Scale what a network with random weights adds to its input: the tolerance is for values in [0, 1]."""
    spread = float(adapters.run(model, _image()[..., :192, :256]).std())
    for parameter in model.get_submodule(last).parameters():
        parameter.mul_(0.2 / spread)


def _image() -> Tensor:
    """A photograph, mirrored until it is large enough."""
    pixels = load_photograph("astronaut").transpose(2, 0, 1)
    rows, columns = (n - k for n, k in zip(SIZE, pixels.shape[-2:], strict=True))
    pixels = np.pad(pixels, ((0, 0), (0, rows), (0, columns)), mode="symmetric")
    return torch.from_numpy(pixels)[None]


def _resident(kind: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{kind}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def _child(name: str, way: str, folder: str) -> None:
    image = _image()
    trained = _network(name, converted=False)
    resident = _resident("VmRSS")
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        model = trained if way == "tiles" else _network(name, converted=True)
        adapters.run(model, image[..., :WINDOW, : WINDOW + 32])
        warm = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        begin = time.process_time()
        pieces = Pieces(model, memory=way) if way in LIMITS else None
        if pieces is not None:
            out = pieces.run(image)
        elif way == "whole":
            out = adapters.run(model, image)
        else:
            out = in_tiles(lambda tile: adapters.run(model, tile), image, CROP, CROP // 2)
        seconds = time.process_time() - begin
    peak = _resident("VmHWM")
    np.save(Path(folder, f"{way}.npy"), out.numpy())
    got = {
        "seconds": seconds,
        "peak": peak - resident,
        "warm": peak - warm,
        "said": "; ".join(str(w.message) for w in said),
    }
    if pieces is not None and pieces.report is not None:
        got |= {"pieces": pieces.report.pieces, "error": pieces.report.error * 255}
    print(json.dumps(got))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _child(*sys.argv[1:])

"""Every source of a statistic, and tiles, side by side: the tables of ``docs/sources.md``.

``python -m benchmarks sources`` restores six photographs that no network was trained on (haze, motion blur) with
the demo's networks in each way, in one process with one thread, and prints per network and way

- PSNR in dB (in floating point, results cut to [0, 1]), mean over photographs;
- *seams*: the mean step of the error from one pixel to the next across the borders of tiles of the training crop,
  over that elsewhere; 1 is none;
- *disparity*: how far the result inside a photograph is from the network's own on a training crop alone, RMS over
  the crops' middle halves, in units of 1/255;
- seconds of a core per megapixel (median), and what memory the process took above what it had, in MB, on the
  largest one.

What was measured is kept (``sources.json``, or the file that is named), and the next run goes on from there.
"""

from __future__ import annotations

import ctypes
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage.io
import torch
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc import sources
from tlsc.adapters import DEMO_NETWORKS, load_demo_network
from tlsc.eval.data.degradations import (
    DEGRADATIONS,
    Pair,
    degrade_photograph,
    degraded_test_photographs,
    smooth_field,
)
from tlsc.eval.files import replacing
from tlsc.eval.run.demo import CALIBRATING
from tlsc.eval.run.patches import in_tiles

NETWORKS = ("hin-all", "se", "hin")
FIGURES = ("psnr", "seams", "disparity", "seconds", "memory")

# Name: what convert is given in training crops (None: nothing is converted), and overlap of tiles in crops.
WAYS: dict[str, tuple[dict[str, Any] | None, float | None]] = {
    "whole, as trained": (None, None),
    "tiles, no overlap": (None, 0.0),
    "tiles, quarter overlap": (None, 0.25),
    "tiles, half overlap": (None, 0.5),
    "window of 1.5 crops": ({"base": 1.5}, None),
    "window of a crop": ({"base": 1.0}, None),
    "window of a crop, calibrated": ({"base": 1.0, "calibrated": True}, None),
    "tile": ({"source": "tile"}, None),
    "table (KIN)": ({"source": "table"}, None),
    "table, own padding": ({"source": sources.Table(own_padding=True)}, None),
    "centres (DN)": ({"source": "centres"}, None),
    "centres, one pass": ({"source": sources.Centres(own_padding=False)}, None),
    "thumbnail (TIN)": ({"source": "thumbnail"}, None),
    "crops, a crop apart": ({"source": "crops apart"}, None),
    "crops, half a crop apart": ({"source": "crops"}, None),
}


def main(parts: Sequence[str] = ()) -> None:
    """Measure what is not there yet, then print."""
    torch.set_num_threads(1)
    path = Path(parts[0] if parts else "sources.json")
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for network in NETWORKS:
        pairs = _photographs(DEMO_NETWORKS[network].degradation)
        for way in WAYS:
            if f"{network}: {way}" in found:
                continue
            found[f"{network}: {way}"] = _measured(network, way, pairs)
            with replacing(path) as new:
                new.write_text(json.dumps(found, indent=1) + "\n")
            print(network, way, found[f"{network}: {way}"], flush=True)
    for network in NETWORKS:
        rows = [(way, *_shown(found[f"{network}: {way}"])) for way in WAYS]
        names = [
            f"{network}, {DEMO_NETWORKS[network].degradation}",
            "PSNR, dB",
            "seams",
            "disparity, /255",
            "s/MP",
            "MB",
        ]
        print("\n" + tabulate(rows, headers=names, tablefmt="github", disable_numparse=True), flush=True)


def _photographs(degradation: str) -> list[Pair]:
    """The demo's three, two more of scikit-image's and one of Matplotlib's, cut to multiples of 16."""
    pairs = degraded_test_photographs(degradation, 0)
    folders = Path(skimage.__file__).parent / "data", Path(matplotlib.__file__).parent / "mpl-data/sample_data"
    for name, folder in zip(
        ("clock_motion.png", "page.png", "grace_hopper.jpg"), (folders[0], *folders), strict=True
    ):
        pixels = skimage.io.imread(folder / name)
        clean = np.float32(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)) / 255
        rng = np.random.default_rng((0, zlib.crc32(name.encode())))
        level = smooth_field(*clean.shape[:2], rng)
        pairs.append(Pair(name, clean, DEGRADATIONS[degradation].apply(clean, level, rng)))
    return [Pair(pair.name, *(_cut(part) for part in (pair.clean, pair.degraded))) for pair in pairs]


def _cut(pixels: Any) -> Any:
    return pixels[: pixels.shape[0] // 16 * 16, : pixels.shape[1] // 16 * 16]


def _shown(figures: dict[str, float]) -> list[str]:
    return [f"{figures[name]:.{digits}f}" for name, digits in zip(FIGURES, (2, 2, 2, 2, 0), strict=True)]


def _measured(network: str, way: str, pairs: Sequence[Pair]) -> dict[str, float]:
    crop = DEMO_NETWORKS[network].crop
    asked, overlap = WAYS[way]
    model = load_demo_network(network)
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    largest = max(pair.clean.shape[0] * pair.clean.shape[1] for pair in pairs)
    with torch.no_grad():
        alone = [_crops_alone(model, pair, crop) for pair in pairs]
        with _as(model, asked, crop, DEMO_NETWORKS[network].degradation):
            for pair, crops in zip(pairs, alone, strict=True):
                image = _tensor(pair.degraded)
                before = _forget_peak()
                start = time.process_time()
                result = model(image) if overlap is None else in_tiles(model, image, crop, int(overlap * crop))
                seconds = time.process_time() - start
                figures["seconds"].append(seconds / (image.shape[-2] * image.shape[-1] / 1e6))
                if image.shape[-2] * image.shape[-1] == largest:
                    figures["memory"].append((_peak() - before) / 1e6)
                error = result.clamp(0, 1) - _tensor(pair.clean)
                figures["psnr"].append(-10 * float(error.square().mean().log10()))
                figures["seams"].append(_seams(error, crop, overlap))
                apart = [(result[place] - expected).square().mean() for place, expected in crops]
                figures["disparity"].append(255 * float(torch.stack(apart).mean().sqrt()))
    return {
        name: float(np.median(values) if name == "seconds" else np.mean(values)) for name, values in figures.items()
    }


@contextmanager
def _as(model: nn.Module, asked: dict[str, Any] | None, crop: int, degradation: str) -> Iterator[None]:
    if asked is None:
        yield
        return
    source = asked.get("source", "window")
    if source == "crops apart":
        source = sources.Crops(step=crop)
    with tlsc.converted(model, int(asked.get("base", 1.0) * crop), source=source, check=False):
        if asked.get("calibrated"):
            pairs = [degrade_photograph(name, degradation, 0).degraded for name in CALIBRATING]
            tlsc.calibrate(model, [_tensor(given[100:420, 100:420]) for given in pairs], crop)
        yield


def _tensor(pixels: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0).contiguous()


def _crops_alone(model: nn.Module, pair: Pair, crop: int) -> list[tuple[Any, Tensor]]:
    """The middle halves of crops at random places, and the network's own results there on the crop alone."""
    random = np.random.default_rng(0)
    image = _tensor(pair.degraded)
    found = []
    for _ in range(16):
        top, left = (int(random.integers(0, n - crop + 1)) for n in image.shape[2:])
        middle = slice(crop // 4, crop - crop // 4)
        alone = model(image[..., top : top + crop, left : left + crop])[..., middle, middle]
        place = tuple(slice(at + middle.start, at + middle.stop) for at in (top, left))
        found.append(((..., *place), alone))
    return found


def _seams(error: Tensor, crop: int, overlap: float | None) -> float:
    """The error's step across borders of tiles over that elsewhere, rows and columns together.

    Tiles with overlap have borders where a tile begins or ends; a source's where the nearest tile changes.
    """
    at, elsewhere = [], []
    for dim in (2, 3):
        n = error.shape[dim]
        steps = error.diff(dim=dim).abs().mean((0, 1, 5 - dim))
        borders = torch.zeros(n - 1, dtype=torch.bool)
        borders[torch.tensor(_borders(n, crop, overlap), dtype=torch.long) - 1] = True
        at.append(steps[borders])
        elsewhere.append(steps[~borders])
    return float(torch.cat(at).mean() / torch.cat(elsewhere).mean())


def _borders(n: int, crop: int, overlap: float | None) -> list[int]:
    if overlap is None:
        tiles = -(-n // crop)
        centres = [i * (n - crop) / (tiles - 1) + crop / 2 for i in range(tiles)]
        return [round((one + other) / 2) for one, other in pairwise(centres)]
    starts = [*range(0, n - crop, crop - int(overlap * crop)), n - crop]
    return sorted({*starts[1:], *((start + crop) for start in starts[:-1])} if overlap else {*starts[1:]})


def _forget_peak() -> int:
    """Give freed memory back, begin the peak anew, and say what is in use; in bytes, on Linux."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

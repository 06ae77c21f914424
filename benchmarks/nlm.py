"""Non-local means beside the three published ways, scikit-image and OpenCV: memory, time, PSNR.

``uv run python -m benchmarks nlm`` prints all tables; ``python -m benchmarks.nlm TABLE`` one of them. Memory is
read from Linux's /proc. OpenCV is optional: ``uv run --with opencv-python-headless …``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from tlsc.adapters.nlm import nonlocal_means

SIZE = 512
WINDOW, PATCH = 11, 5
ROUNDS = 3

# The published ways: differentiable by autograd, circular borders.


def _luma(x: Tensor) -> Tensor:
    return x[:, 0:1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:3] * 0.114


def _offsets(size: int) -> list[tuple[int, int]]:
    r = size // 2
    return [(dy, dx) for dy in range(-r, r + 1) for dx in range(-r, r + 1)]


def _roll(x: Tensor, offset: tuple[int, int]) -> Tensor:
    return torch.roll(x, offset, (-2, -1))


def _weight(squared: Tensor, h: Tensor) -> Tensor:
    return torch.exp(-squared.clamp_min(1e-16).sqrt() / h.clamp_min(1e-8))


def stacked_window(x: Tensor, h: Tensor, window: int, patch: int) -> Tensor:
    """All shifts at once: ``window²`` copies of the image."""
    y = _luma(x)
    shifted = torch.stack([_roll(x, s) for s in _offsets(window)])
    squared = (torch.stack([_roll(y, s) for s in _offsets(window)]) - y).square().flatten(0, 1)
    squared = F.avg_pool2d(F.pad(squared, (patch // 2,) * 4, mode="circular"), patch, 1) * patch**2
    weight = _weight(squared.unflatten(0, (window**2, -1)), h)
    return ((weight * shifted).sum(0) / weight.sum(0)).clamp(0, 1)


def stacked_patch(x: Tensor, h: Tensor, window: int, patch: int) -> Tensor:
    """One shift at a time, all patch offsets at once: ``patch²`` copies of the luma."""
    return _by_shift(x, h, window, lambda squared: torch.stack([_roll(squared, o) for o in _offsets(patch)]).sum(0))


def looped(x: Tensor, h: Tensor, window: int, patch: int) -> Tensor:
    """One shift and one patch offset at a time: no copies, but autograd keeps every step."""

    def box(squared: Tensor) -> Tensor:
        total = torch.zeros_like(squared)
        for offset in _offsets(patch):
            total = total + _roll(squared, offset)
        return total

    return _by_shift(x, h, window, box)


def _by_shift(x: Tensor, h: Tensor, window: int, box: Callable[[Tensor], Tensor]) -> Tensor:
    y = _luma(x)
    total, weights = torch.zeros_like(x), torch.zeros_like(y)
    for shift in _offsets(window):
        weight = _weight(box((y - _roll(y, shift)).square()), h)
        total = total + weight * _roll(x, shift)
        weights = weights + weight
    return (total / weights).clamp(0, 1)


Way = Callable[[Tensor, Tensor, int, int], Tensor]
WAYS: dict[str, Way] = {
    "stacked window": stacked_window,
    "stacked patch": stacked_patch,
    "looped": looped,
    "tlsc, PyTorch": lambda x, h, w, k: nonlocal_means(x, h, w, k, implementation="torch"),
    "tlsc, Numba": lambda x, h, w, k: nonlocal_means(x, h, w, k, implementation="numba"),
}


def _forward(way: Way, x: Tensor, h: Tensor, window: int, patch: int) -> None:
    with torch.no_grad():
        way(x, h, window, patch)


def _both(way: Way, x: Tensor, h: Tensor, window: int, patch: int) -> None:
    x.grad = h.grad = None
    way(x, h, window, patch).square().mean().backward()


PASSES = {"forward": _forward, "forward + backward": _both}


def _inputs(size: int = SIZE) -> tuple[Tensor, Tensor]:
    x = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    return x.requires_grad_(), torch.tensor(0.1, requires_grad=True)


# Memory: each measurement in a process of its own.


def _status(key: str) -> float:
    """A line of /proc/self/status, in MB (10⁶ bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


def _measure_memory(name: str, pass_: str, window: int, patch: int) -> None:
    run = PASSES[pass_]
    run(WAYS[name], *_inputs(48), window, patch)  # compiles, loads
    x, h = _inputs()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    start = _status("VmRSS")
    run(WAYS[name], x, h, window, patch)
    print(_status("VmHWM") - start)


def memory_of(name: str, pass_: str, window: int = WINDOW, patch: int = PATCH) -> float:
    """Peak resident memory above the start, in MB (10⁶ bytes), of one pass at 512 × 512 RGB, float32.

    Large tensors are given back when freed: what malloc keeps varies from run to run by a third.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.nlm", "--child", name, pass_, str(window), str(patch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def memory() -> None:
    rows = [[name, *(memory_of(name, pass_) for pass_ in PASSES)] for name in WAYS]
    print(f"Peak resident memory above the start [MB], {SIZE}×{SIZE} RGB, float32, window {WINDOW}, patch {PATCH};")
    print("the gradients of image and h are part of the backward pass\n")
    print(tabulate(rows, headers=["way", *PASSES], floatfmt=".0f"), "\n", flush=True)
    rows = [
        [name, *size, *(memory_of(name, pass_, *size) for pass_ in PASSES)]
        for name in ("tlsc, PyTorch", "tlsc, Numba")
        for size in ((11, 5), (11, 9), (21, 5), (21, 9))
    ]
    print("The same against window and patch\n")
    print(tabulate(rows, headers=["way", "window", "patch", *PASSES], floatfmt=".0f"), "\n", flush=True)


def times() -> None:
    rows = []
    seconds = {pass_: _race({n: (p, w, WINDOW, PATCH) for n, w in WAYS.items()}) for pass_, p in PASSES.items()}
    for name in WAYS:
        row: list[Any] = [name]
        for pass_ in PASSES:
            row += [seconds[pass_][name] * 1e3, seconds[pass_]["looped"] / seconds[pass_][name]]
        rows.append(row)
    print(f"Time, {SIZE}×{SIZE} RGB, float32, window {WINDOW}, patch {PATCH}, {torch.get_num_threads()} threads,")
    print(f"best of {ROUNDS} rounds in turn; and how many times faster than the looped way\n")
    print(tabulate(rows, headers=["way", "forward [ms]", "×", "both [ms]", "×"], floatfmt=".1f"), "\n", flush=True)


def _race(runs: dict[Any, tuple[Callable[..., None], Way, int, int]], rounds: int = ROUNDS) -> dict[Any, float]:
    """Best wall-clock seconds of each, all in turn, after a round that warms up."""
    best: dict[Any, float] = {}
    x, h = _inputs()
    for round_ in range(rounds + 1):
        for key, (run, way, window, patch) in runs.items():
            start = time.perf_counter()
            run(way, x, h, window, patch)
            if round_:
                best[key] = min(best.get(key, float("inf")), time.perf_counter() - start)
    return best


def growth() -> None:
    sizes = [(11, 5), (11, 3), (11, 9), (11, 15), (21, 5), (21, 9)]
    rows = []
    for name in ("tlsc, PyTorch", "tlsc, Numba"):
        seconds = {
            pass_: _race({size: (run, WAYS[name], *size) for size in sizes}, rounds=5)
            for pass_, run in PASSES.items()
        }
        for size in sizes:
            rows.append([name, *size, *(seconds[pass_][size] * 1e3 for pass_ in PASSES)])
    print(f"Time against window and patch, {SIZE}×{SIZE} RGB, float32, {torch.get_num_threads()} threads\n")
    headers = ["way", "window", "patch", "forward [ms]", "both [ms]"]
    print(tabulate(rows, headers=headers, floatfmt=".0f"), "\n", flush=True)


# Quality: everyone at its best strength, found by search.

CROP = 160
PATCHES = (5, 3)
SIGMAS = (0.05, 0.1)

Filter = Callable[[float], NDArray[Any]]


def _best(way: Filter, clean: NDArray[Any], low: float, high: float) -> float:
    """The highest PSNR over strengths from ``low`` to ``high``: on a coarse grid, then on a fine one around it."""
    for count in (9, 9):
        strengths = np.geomspace(low, high, count)
        found = [_psnr(way(float(h)), clean) for h in strengths]
        at = int(np.argmax(found))
        low, high = strengths[max(at - 1, 0)], strengths[min(at + 1, count - 1)]
    return max(found)


def _noisy_crops() -> Iterator[tuple[str, float, NDArray[Any], NDArray[Any]]]:
    from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS, load_photograph

    for name in TEST_PHOTOGRAPHS:
        clean = load_photograph(name)[100 : 100 + CROP, 60 : 60 + CROP]
        for sigma in SIGMAS:
            noise = sigma * np.random.default_rng(0).standard_normal(clean.shape)
            yield name, sigma, clean, np.clip(clean + noise, 0, 1).astype(np.float32)


def _ours(noisy: NDArray[Any], patch: int, **options: Any) -> Filter:
    """``h`` is in units of the root mean square over a patch and, in colour, over channels, as scikit-image's."""
    x = torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous()
    scale = patch * (3**0.5 if options.get("distance") == "color" else 1)
    return lambda h: nonlocal_means(x, scale * h, WINDOW, patch, "reflect", **options)[0].permute(1, 2, 0).numpy()


def _scikit(noisy: NDArray[Any], patch: int, sigma: float = 0.0) -> Filter:
    from skimage.restoration import denoise_nl_means

    settings: dict[str, Any] = {"fast_mode": True, "sigma": sigma, "channel_axis": -1}
    return lambda h: np.asarray(denoise_nl_means(noisy, patch, WINDOW // 2, h, **settings))


def _opencv(noisy: NDArray[Any], patch: int) -> Filter | None:
    try:
        import cv2
    except ModuleNotFoundError:
        return None
    pixels = (noisy[..., ::-1] * 255).round().astype(np.uint8)

    def way(h: float) -> NDArray[Any]:
        result = cv2.fastNlMeansDenoisingColored(pixels, None, h * 255, h * 255, patch, WINDOW)
        return np.asarray(result[..., ::-1], np.float64) / 255

    return way


def quality() -> None:
    """Beside scikit-image and OpenCV: as it comes, and by the classical definition."""
    rows = []
    for name, sigma, clean, noisy in _noisy_crops():
        row: list[Any] = [name, sigma, _psnr(noisy, clean)]
        for patch in PATCHES:
            ways = (
                _ours(noisy, patch),
                _ours(noisy, patch, distance="color", weights="gaussian", sigma=sigma),
                _scikit(noisy, patch),
                _scikit(noisy, patch, sigma),
                _opencv(noisy, patch),
            )
            row += [_best(way, clean, 0.1 * sigma, 3 * sigma) if way else None for way in ways]
        rows.append(row)
    names = ["tlsc", "tlsc σ", "skimage", "skimage σ", "OpenCV"]
    headers = ["photograph", "noise", "noisy", *(f"{way} {patch}" for patch in PATCHES for way in names)]
    print(f"PSNR [dB], {CROP}×{CROP}, values in [0, 1], each at its best h, search window {WINDOW}, patch 5 and 3;")
    print('tlsc σ: distance="color", weights="gaussian", sigma; skimage: fast_mode=True; σ: told the noise level\n')
    print(tabulate(rows, headers=headers, floatfmt=".2f"), "\n", flush=True)


def definitions() -> None:
    """What each difference between the default definition and the classical one is worth."""
    rows = []
    for name, sigma, clean, noisy in _noisy_crops():
        row: list[Any] = [name, sigma]
        for distance in ("luma", "color"):
            for weights in ("exponential", "gaussian"):
                for level in (0.0, sigma):
                    way = _ours(noisy, PATCH, distance=distance, weights=weights, sigma=level)
                    row.append(_best(way, clean, 0.05 * sigma, 3 * sigma))
        rows.append(row)
    print(f"PSNR [dB], {CROP}×{CROP}, patch {PATCH}, each at its best h: distance d of luma or colour, weight")
    print("exp(−d/h) or exp(−d²/h²), with or without the noise's share 2σ² of every square subtracted\n")
    each = ("d", "d, −2σ²", "d²", "d², −2σ²")
    headers = ["photograph", "noise", *(f"{distance} {kind}" for distance in ("luma", "colour") for kind in each)]
    print(tabulate(rows, headers=headers, floatfmt=".2f"), "\n", flush=True)


def beside() -> None:
    """Time of the forward pass beside scikit-image and OpenCV."""
    from skimage.restoration import denoise_nl_means

    try:
        import cv2
    except ModuleNotFoundError:
        cv2 = None
    x, h = _inputs()
    pixels = x.detach()[0].permute(1, 2, 0).contiguous().numpy()
    bytes_ = (pixels * 255).astype(np.uint8)
    runs: dict[str, Callable[[], Any]] = {
        "tlsc, PyTorch": lambda: _forward(WAYS["tlsc, PyTorch"], x, h, WINDOW, PATCH),
        "tlsc, Numba": lambda: _forward(WAYS["tlsc, Numba"], x, h, WINDOW, PATCH),
        "skimage fast_mode": lambda: denoise_nl_means(
            pixels, PATCH, WINDOW // 2, 0.05, fast_mode=True, channel_axis=-1
        ),
    }
    if cv2:
        runs["OpenCV"] = lambda: cv2.fastNlMeansDenoisingColored(bytes_, None, 10, 10, PATCH, WINDOW)
    best = dict.fromkeys(runs, float("inf"))
    for round_ in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                best[name] = min(best[name], time.perf_counter() - start)
    rows = [[name, seconds * 1e3, seconds / best["tlsc, Numba"]] for name, seconds in best.items()]
    print(f"Forward time, {SIZE}×{SIZE} RGB, window {WINDOW}, patch {PATCH}, {torch.get_num_threads()} threads\n")
    print(tabulate(rows, headers=["way", "ms", "× tlsc, Numba"], floatfmt=".1f"), "\n", flush=True)


def _psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a, np.float64) - b) ** 2)))


TABLES = {
    "memory": memory,
    "time": times,
    "growth": growth,
    "beside": beside,
    "quality": quality,
    "definitions": definitions,
}


def main() -> None:
    for table in TABLES.values():
        table()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _measure_memory(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("table", choices=TABLES, nargs="?")
        chosen = parser.parse_args().table
        (TABLES[chosen] if chosen else main)()

"""Non-local means beside the three published ways, scikit-image and OpenCV: memory, time, PSNR.

``uv run python -m benchmarks nlm`` prints all tables; ``python -m benchmarks.nlm TABLE`` one of them. Memory is
read from Linux's /proc. OpenCV is optional: ``uv run --with opencv-python-headless …``.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
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
    """Peak resident memory above the start, in MB (10⁶ bytes), of one pass at 512 × 512 RGB, float32."""
    command = [sys.executable, "-m", "benchmarks.nlm", "--child", name, pass_, str(window), str(patch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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


# Quality: everyone at the best of a list of strengths.

STRENGTHS = {3: np.linspace(0.5, 2.5, 9), 5: np.linspace(1.0, 3.5, 11)}
CROP = 160


def quality() -> None:
    from skimage.restoration import denoise_nl_means

    from tlsc.eval.photographs import TEST_PHOTOGRAPHS, load_photograph

    try:
        import cv2
    except ModuleNotFoundError:
        cv2 = None
        print("OpenCV is not installed; its columns stay empty\n")
    images = {name: load_photograph(name)[100 : 100 + CROP, 60 : 60 + CROP] for name in TEST_PHOTOGRAPHS}
    rows = []
    for name, clean in images.items():
        for sigma in (0.05, 0.1):
            rng = np.random.default_rng(0)
            noisy = np.clip(clean + sigma * rng.standard_normal(clean.shape), 0, 1).astype(np.float32)
            x = torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous()
            bytes_ = (noisy[..., ::-1] * 255).round().astype(np.uint8)
            row: list[Any] = [name, sigma, _psnr(noisy, clean)]
            for patch in (5, 3):

                def ours(h: float, x: Tensor = x, patch: int = patch) -> NDArray[Any]:
                    return nonlocal_means(x, h, WINDOW, patch, "reflect")[0].permute(1, 2, 0).numpy()

                def scikit(h: float, noisy: Any = noisy, patch: int = patch, level: float = 0.0) -> NDArray[Any]:
                    result: NDArray[Any] = denoise_nl_means(
                        noisy, patch, WINDOW // 2, h, fast_mode=True, sigma=level, channel_axis=-1
                    )
                    return result

                def opencv(h: float, bytes_: Any = bytes_, patch: int = patch) -> NDArray[Any]:
                    result = cv2.fastNlMeansDenoisingColored(bytes_, None, h * 255, h * 255, patch, WINDOW)
                    return np.asarray(result[..., ::-1], np.float64) / 255

                row.append(_best(ours, clean, STRENGTHS[patch] * sigma))
                fractions = np.linspace(0.4, 1.2, 9) * sigma
                row.append(_best(scikit, clean, fractions))
                row.append(_best(lambda h, f=scikit, s=sigma: f(h, level=s), clean, fractions))
                row.append(_best(opencv, clean, fractions) if cv2 else None)
            rows.append(row)
    ways = ["tlsc", "skimage", "skimage σ", "OpenCV"]
    headers = ["photograph", "noise", "noisy", *(f"{way} {patch}" for patch in (5, 3) for way in ways)]
    print(f"PSNR [dB], {CROP}×{CROP}, values in [0, 1], each at its best h, search window {WINDOW}, patch 5 and 3;")
    print("skimage: fast_mode=True; skimage σ: told the noise level\n")
    print(tabulate(rows, headers=headers, floatfmt=".2f"), "\n", flush=True)


def _variant(x: Tensor, h: float, patch: int, color: bool, squared: bool, level: float) -> Tensor:
    """Non-local means by a chosen definition: distance of colour or luma, squared or not, less the noise's share.

    ``h`` is of the root mean square over the patch.
    """
    margin = WINDOW // 2 + patch // 2
    wide = F.pad(x, (margin,) * 4, mode="reflect")
    y = wide if color else _luma(wide)
    _, _, height, width = x.shape
    r, half = WINDOW // 2, patch // 2
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])

    def at(z: Tensor, dy: int, dx: int, ring: int) -> Tensor:
        top, left = margin + dy - ring, margin + dx - ring
        return z[..., top : top + height + 2 * ring, left : left + width + 2 * ring]

    for dy, dx in _offsets(2 * r + 1):
        distance = (at(y, 0, 0, half) - at(y, dy, dx, half)).square().mean(1, keepdim=True)
        distance = (F.avg_pool2d(distance, patch, 1) - 2 * level**2).clamp_min(0)
        weight = torch.exp(-(distance / h**2 if squared else distance.sqrt() / h))
        total += weight * at(wide, dy, dx, 0)
        weights += weight
    return (total / weights).clamp(0, 1)


def definitions() -> None:
    """What each difference between our definition and scikit-image's is worth."""
    from skimage.restoration import denoise_nl_means

    from tlsc.eval.photographs import TEST_PHOTOGRAPHS, load_photograph

    rows = []
    for name in TEST_PHOTOGRAPHS:
        clean = load_photograph(name)[100 : 100 + CROP, 60 : 60 + CROP]
        for sigma in (0.05, 0.1):
            noise = sigma * np.random.default_rng(0).standard_normal(clean.shape)
            noisy = np.clip(clean + noise, 0, 1).astype(np.float32)
            x = torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous()
            fractions = np.linspace(0.2, 1.1, 10) * sigma
            row: list[Any] = [name, sigma]

            def steps(h: float, x: Tensor = x, settings: Any = ()) -> NDArray[Any]:
                return _variant(x, h, 5, *settings)[0].permute(1, 2, 0).numpy()

            luma = sigma * float(np.sqrt(np.square([0.299, 0.587, 0.114]).sum()))
            for settings in ((False, False, 0.0), (False, True, 0.0), (False, True, luma), (True, False, 0.0)):
                row.append(_best(lambda h, f=steps, s=settings: f(h, settings=s), clean, fractions))
            for settings in ((True, True, 0.0), (True, True, sigma)):
                row.append(_best(lambda h, f=steps, s=settings: f(h, settings=s), clean, fractions))
            for level in (0.0, sigma):
                row.append(
                    _best(
                        lambda h, n=noisy, s=level: denoise_nl_means(
                            n, 5, WINDOW // 2, h, fast_mode=True, sigma=s, channel_axis=-1
                        ),
                        clean,
                        fractions,
                    )
                )
            grey = (noisy @ np.array([0.299, 0.587, 0.114])).astype(np.float32)
            clean_grey = clean @ np.array([0.299, 0.587, 0.114])
            g = torch.from_numpy(grey)[None, None]
            row.append(
                _best(
                    lambda h, g=g: nonlocal_means(g, 5 * h, WINDOW, 5, "reflect")[0, 0].numpy(),
                    clean_grey,
                    fractions,
                )
            )
            row.append(
                _best(
                    lambda h, n=grey: denoise_nl_means(n, 5, WINDOW // 2, h, fast_mode=True),
                    clean_grey,
                    fractions,
                )
            )
            rows.append(row)
    print(f"PSNR [dB], {CROP}×{CROP}, patch 5, each at its best h: what each difference in definition is worth;")
    print("distances d of luma (ours: d) or of colour, −2σ²: the noise's share subtracted\n")
    headers = ["photograph", "noise", "luma d", "luma d²", "luma d²−2σ²", "colour d", "colour d²", "colour d²−2σ²"]
    headers += ["skimage", "skimage σ", "grey: tlsc", "grey: skimage"]
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


def _best(way: Callable[[float], NDArray[Any]], clean: NDArray[Any], strengths: NDArray[Any]) -> float:
    return max(_psnr(way(float(h)), clean) for h in strengths)


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

"""Local mean and instance norm beside the published code, the global layers and a copy; and strided errors."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from tlsc.functional import local_instance_norm, local_mean

from . import published

ROUNDS = 5


def main() -> None:
    errors()
    times()


def errors() -> None:
    """Largest error against the exact local mean, on a photograph with values in [0, 1]."""
    from skimage.data import coffee

    photograph = torch.from_numpy(coffee()).permute(2, 0, 1).unsqueeze(0).double() / 255
    rows = []
    for height, width, window in ((400, 600, 96), (397, 593, 96), (400, 600, 100)):
        x = photograph[..., :height, :width]
        exact = local_mean(x, window)
        made = {
            "stride 4": local_mean(x, window, stride=4),
            "stride 8": local_mean(x, window, stride=8),
            "stride 16": local_mean(x, window, stride=16),
            "published fast path": published.fast_mean(x, window),
        }
        rows.append([f"{height}×{width}", window, *(float((m - exact).abs().max()) for m in made.values())])
    print("Strided local mean, skimage.data.coffee(), values in [0, 1]: maximum error against exact\n")
    print(tabulate(rows, headers=["size", "window", *made], floatfmt=".1e"), "\n")


def times() -> None:
    """Median seconds, all ways in turn within one run, and the ratio to a copy of the tensor."""
    torch.manual_seed(0)
    rows = []
    for shape, window in (((1, 64, 720, 1280), 384), ((1, 3, 2160, 3840), 384), ((16, 64, 256, 256), 96)):
        x = torch.randn(shape)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "copy of the tensor": torch.clone,
            "mean: global pool": lambda x: F.adaptive_avg_pool2d(x, 1),
            "mean: published, exact": lambda x, k=window: published.mean(x, k),
            "mean: published, fast": lambda x, k=window: published.fast_mean(x, k),
            "mean: tlsc, exact": lambda x, k=window: local_mean(x, k),
            "mean: tlsc, stride 8": lambda x, k=window: local_mean(x, k, stride=8),
            "instance norm: global": F.instance_norm,
            "instance norm: published": lambda x, k=window: published.instance_norm(x, k),
            "instance norm: tlsc": lambda x, k=window: local_instance_norm(x, k),
        }
        seconds = _race(ways, x)
        copy = seconds["copy of the tensor"]
        name = "×".join(map(str, shape))
        rows += [[name, window, way, s * 1e3, s / copy] for way, s in seconds.items()]
    print(f"Time on {torch.get_num_threads()} threads, float32, median of {ROUNDS} rounds\n")
    print(tabulate(rows, headers=["shape", "window", "way", "ms", "copies"], floatfmt=".1f"))


def _race(ways: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, float]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for round_ in range(ROUNDS + 1):
            for way, function in ways.items():
                start = time.perf_counter()
                function(x)
                if round_:  # the first one warms up
                    seconds[way].append(time.perf_counter() - start)
    return {way: sorted(values)[len(values) // 2] for way, values in seconds.items()}


if __name__ == "__main__":
    main()

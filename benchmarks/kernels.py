"""The kernels beside everything else that could do the same, all in turn within one run.

``uv run python -m benchmarks kernels [means|norms|windows|gates|networks …]``: tables here, and ``kernels.md``
and ``kernels.png`` in ``benchmarks/out``. Times are medians; "of copy" is the time of a copy into a warm buffer
divided by the way's own; extra memory is what a way's peak takes beyond its output, as a share of the input
(Linux only).
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc.functional import local_instance_norm, local_mean

from . import published

OUT = Path(__file__).parent / "out"
SHAPES = [
    ((1, 3, 2160, 3840), 384),
    ((1, 64, 720, 1280), 384),
    ((1, 64, 720, 1280), 8),
    ((1, 16, 1080, 1920), 384),
    ((1, 96, 360, 640), 192),
    ((1, 128, 180, 320), 96),
    ((1, 256, 90, 160), 48),
    ((1, 512, 45, 80), 24),
    ((16, 64, 256, 256), 96),
    ((1, 64, 64, 64), 16),
]
WINDOWS = (8, 32, 96, 192, 384, 700)
Ways = dict[str, Callable[[], Any]]


def main(parts: list[str]) -> None:
    known = {"means": means, "norms": norms, "windows": windows, "gates": gates, "networks": networks}
    for part in parts:
        if part not in known:
            sys.exit(f"no such part: {part}; there are {', '.join(known)}")
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    lines = [
        f"{date.today()}, {_processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32. "
        "GPU: not measured."
    ]
    print(lines[0], "\n")
    for part in parts or list(known):
        with torch.no_grad():
            title, headers, rows = known[part]()
        table = tabulate(rows, headers=headers, tablefmt="github", floatfmt=".3g")
        lines += [f"## {title}", table]
        print(f"## {title}\n\n{table}\n", flush=True)
    (OUT / "kernels.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------- single layers

Table = tuple[str, list[str], list[list[Any]]]


def means() -> Table:
    import cv2
    import scipy.ndimage

    rows = []
    for shape, window in SHAPES:
        x = torch.randn(shape)
        planes = x.reshape(-1, *shape[2:]).numpy()
        k = tuple(min(window, n) for n in shape[2:])
        ways: Ways = {
            "tlsc": lambda x=x, k=window: local_mean(x, k),
            "tlsc, stride 8": lambda x=x, k=window: local_mean(x, k, 8),
            "tlsc on PyTorch": lambda x=x, k=window: _on_torch(local_mean, x, k),
            "published exact": lambda x=x, k=window: published.mean(x, k),
            "published fast": lambda x=x, k=window: published.fast_mean(x, k),
            "global pool": lambda x=x: F.adaptive_avg_pool2d(x, 1),
            "cv2.blur": lambda p=planes, k=k: [cv2.blur(plane, k[::-1]) for plane in p],
        }
        if planes.size < 2e7:
            ways["scipy"] = lambda p=planes, k=k: [scipy.ndimage.uniform_filter(plane, k) for plane in p]
        if window <= 24:
            ways["F.avg_pool2d"] = lambda x=x, k=k: F.avg_pool2d(x, k, 1)
        rows += _rows(shape, window, x, ways)
    return "Local mean", HEADERS, rows


def norms() -> Table:
    rows = []
    for shape, window in SHAPES:
        x = torch.randn(shape)
        ways: Ways = {
            "tlsc": lambda x=x, k=window: local_instance_norm(x, k),
            "tlsc on PyTorch": lambda x=x, k=window: _on_torch(local_instance_norm, x, k),
            "published": lambda x=x, k=window: published.instance_norm(x, k),
            "F.instance_norm": lambda x=x: F.instance_norm(x),
        }
        rows += _rows(shape, window, x, ways)
    return "Local instance norm", HEADERS, rows


def windows() -> Table:
    """One shape, every window: the cost does not grow with it."""
    x = torch.randn(1, 64, 720, 1280)
    ways: Ways = {f"{k}": lambda k=k: local_instance_norm(x, k) for k in WINDOWS}
    ways["F.instance_norm"] = lambda: F.instance_norm(x)
    ways["clone"] = x.clone
    seconds = _race(ways)
    fastest = min(seconds[str(k)] for k in WINDOWS)
    rows = [[name, s * 1e3, s / fastest] for name, s in seconds.items()]
    _plot({str(k): seconds[str(k)] for k in WINDOWS}, seconds["F.instance_norm"], seconds["clone"])
    return "Local instance norm of 1×64×720×1280 by window", ["window", "ms", "ratio to the fastest window"], rows


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(self.pool(x))


def gates() -> Table:
    """A squeeze-excitation block, converted; published: the body on the full map, and on valid windows only."""
    rows = []
    for shape, window in (((1, 96, 720, 1280), 384), ((1, 256, 180, 320), 96)):
        x = torch.randn(shape)
        block = SqueezeExcitation(shape[1]).eval()
        ways: Ways = {
            "global": lambda b=block, x=x: b(x),
            "published exact": lambda b=block, x=x, k=window: x * b.body(published.mean(x, k)),
            "published fast": lambda b=block, x=x, k=window: x * b.body(published.fast_mean(x, k)),
        }
        for stride in (1, 4, 8):
            model = SqueezeExcitation(shape[1]).eval()
            model.load_state_dict(block.state_dict())
            sample = lambda h, w, c=shape[1]: (torch.zeros(1, c, h, w),)  # noqa: E731
            tlsc.convert(model, window, stride=stride, example_input=sample)
            ways[f"tlsc, stride {stride}"] = lambda m=model, x=x: m(x)
        seconds = _race(ways)
        rows += [
            ["×".join(map(str, shape)), window, way, s * 1e3, s / seconds["global"]] for way, s in seconds.items()
        ]
    return "Squeeze-excitation block, reduction 4", ["shape", "window", "way", "ms", "ratio to global"], rows


# ----------------------------------------------------------------------------------------------- whole networks


def networks() -> Table:
    from tlsc.adapters import HINet, MPRNet

    made: dict[str, Callable[[], nn.Module]] = {
        "HINet wf=16, norm on all levels": lambda: HINet(wf=16, hin_position_left=0, hin_position_right=4),
        "MPRNet 16/8/8/4": lambda: MPRNet(n_feat=16, scale_unetfeats=8, scale_orsnetfeats=8, num_cab=4),
    }
    x = torch.rand(1, 3, 720, 1280)
    rows = []
    for name, make in made.items():
        torch.manual_seed(0)
        original = make().eval()
        ways: Ways = {"original": lambda m=original: m(x)}
        for stride in (1, 8):
            model = make().eval()
            model.load_state_dict(original.state_dict())
            tlsc.convert(model, 384, stride=stride)
            if stride == 1 or "MPRNet" in name:
                ways["exact" if stride == 1 else f"stride {stride}"] = lambda m=model: m(x)
        seconds = _race(ways, rounds=ROUNDS_NETWORK)
        rows += [[name, way, s, s / seconds["original"]] for way, s in seconds.items()]
    return "Whole networks, 720×1280, window 384", ["network", "way", "s", "ratio to original"], rows


# ------------------------------------------------------------------------------------------------------ measuring

ROUNDS, ROUNDS_NETWORK = 5, 3
HEADERS = ["shape", "window", "way", "ms", "tlsc is faster ×", "of copy", "extra memory"]


def _on_torch(function: Callable[[Tensor, int], Tensor], x: Tensor, window: int) -> Tensor:
    with tlsc.backend("torch"):
        return function(x, window)


def _rows(shape: tuple[int, ...], window: int, x: Tensor, ways: Ways) -> list[list[Any]]:
    warm = torch.empty_like(x)
    seconds = _race({**ways, "copy, warm": lambda: warm.copy_(x), "clone": x.clone})
    rows = []
    for way, s in seconds.items():
        extra = _extra(ways[way], x) if way in ("tlsc", "tlsc on PyTorch", "published", "published exact") else ""
        name = "×".join(map(str, shape))
        rows.append([name, window, way, s * 1e3, s / seconds["tlsc"], seconds["copy, warm"] / s, extra])
    return rows


def _race(ways: Ways, rounds: int = ROUNDS) -> dict[str, float]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for way, function in ways.items():
            start = time.perf_counter()
            function()
            if round_:  # the first one warms up
                seconds[way].append(time.perf_counter() - start)
    return {way: statistics.median(taken) for way, taken in seconds.items()}


def _extra(function: Callable[[], Any], x: Tensor) -> str:
    """Peak of resident memory beyond the output, as a share of the input; the system forgets old peaks first."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        out = function()
        peak = _status("VmHWM")
    except OSError:
        return "?"
    size = x.numel() * x.element_size()
    kept = sum(o.numel() * o.element_size() for o in (out if isinstance(out, tuple) else (out,)))
    return f"{max(0.0, (peak - before) * 1024 - kept) / size:.1%}"


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(name)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _plot(seconds: dict[str, float], norm: float, copy: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    at = np.arange(len(seconds))
    axes.bar(at, [s * 1e3 for s in seconds.values()], color="tab:blue", label="local instance norm")
    axes.axhline(norm * 1e3, color="tab:red", label="F.instance_norm (global)")
    axes.axhline(copy * 1e3, color="black", linestyle="--", label="clone")
    axes.set_xticks(at, list(seconds))
    axes.set_xlabel("window (pixels)")
    axes.set_ylabel("time (ms)")
    axes.set_title("1×64×720×1280, float32")
    axes.legend()
    figure.savefig(OUT / "kernels.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])

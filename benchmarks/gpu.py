"""The kernels on an NVIDIA GPU: first whether they are right, then tables of times and memory.

``uv run python -m benchmarks gpu`` takes less than four minutes on an H100 and ends with a status that is not 0
where a check fails, or where there is no GPU. ``python -m benchmarks gpu dry`` runs all of it on the CPU with tiny
sizes, in half a minute: its figures mean nothing. Parts: layers, gates, attention, nlm, networks; all if none.
Kernels are compiled by several processes first (``warm I N``: every N-th row once). Times are medians of
``triton.testing.do_bench``, which empties the GPU's cache before each call; each table is printed as soon as it is
there.
"""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc import attention
from tlsc.adapters import HINet, MPRNet
from tlsc.adapters.nlm import nonlocal_means
from tlsc.functional import local_instance_norm, local_mean

from . import nlm, published
from .gpu_checks import check, gate

SHAPES = [
    ((1, 64, 720, 1280), 384),
    ((1, 64, 720, 1280), 8),
    ((1, 3, 2160, 3840), 384),
    ((1, 96, 360, 640), 192),
    ((1, 256, 90, 160), 48),
    ((1, 512, 45, 80), 24),
    ((16, 64, 256, 256), 96),
    ((1, 64, 64, 64), 16),
]
TINY = [((1, 4, 20, 24), 8)]
Row = list[Any]


class Measure:
    """Where and how often; ``dry``: on the CPU, once. ``turn``: (i, n), every n-th row only, and once."""

    def __init__(self, dry: bool, turn: tuple[int, int] | None = None) -> None:
        self.dry, self.turn, self.rows = dry, turn, 0
        self.device = "cpu" if dry else "cuda"

    def skips(self) -> bool:
        """Whether another process runs this row."""
        self.rows += 1
        return self.turn is not None and self.rows % self.turn[1] != self.turn[0]

    def ms(self, function: Callable[[], Any], longest: float = 25.0) -> float:
        """Median time of one call, in milliseconds, within about ``longest`` of them (at least one call)."""
        if self.dry or self.turn is not None:
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) * 1e3
        from triton.testing import do_bench

        return float(do_bench(function, warmup=longest / 5, rep=longest, return_mode="median"))

    def extra(self, function: Callable[[], Any]) -> float:
        """Peak of memory beyond what there was before, without the result, in MiB."""
        if self.dry or self.turn is not None:
            return 0.0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = function()
        kept = torch.cuda.memory_allocated() - before
        del out
        return float(torch.cuda.max_memory_allocated() - before - kept) / 2**20


def main(parts: list[str]) -> None:
    tables = {"layers": layers, "gates": gates, "attention": attending, "nlm": denoising, "networks": networks}
    if parts[:1] == ["warm"]:
        warm(Measure(False, (int(parts[1]), int(parts[2]))), [tables[part] for part in parts[3:]])
        return
    dry = "dry" in parts
    chosen = [part for part in parts if part != "dry"] or list(tables)
    for part in chosen:
        if part not in tables:
            sys.exit(f"no such part: {part}; there are dry, {', '.join(tables)}")
    if not dry and not torch.cuda.is_available():
        sys.exit(f"no NVIDIA GPU that PyTorch {torch.__version__} can use: nothing was measured")
    start = time.perf_counter()
    device = "a dry run on the CPU: no figure means anything" if dry else torch.cuda.get_device_name()
    lines = [f"{date.today()}, {device}, PyTorch {torch.__version__}.", str(tlsc.backends())]
    print(*lines, sep="\n")
    others = [] if dry else compiling(chosen)
    measure = Measure(dry)
    with tlsc.backend("torch" if dry else "auto"):  # kernels for the CPU would be compiled for nothing
        wrong = check(measure.device, 24 if dry else 160)
    for other in others:
        other.wait()
    print(f"compiled after {time.perf_counter() - start:.0f} s", flush=True)
    for part in chosen:
        with tlsc.backend("torch" if dry else "auto"):
            title, headers, rows = tables[part](measure)
        table = f"## {title}\n\n" + tabulate(rows, headers=headers, tablefmt="github", floatfmt=".3g")
        lines.append(table)
        print(f"\n{table}", flush=True)
        if not dry:
            out = Path(__file__).parent / "out"
            out.mkdir(exist_ok=True)
            (out / "gpu.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{time.perf_counter() - start:.0f} s")
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")


def compiling(parts: list[str]) -> list[subprocess.Popen[bytes]]:
    """Processes that call everything once, so that Triton finds it in its cache."""
    n = min(12, max(1, (os.cpu_count() or 2) - 2))
    command = [sys.executable, "-m", "benchmarks", "gpu", "warm"]
    return [subprocess.Popen([*command, str(i), str(n), *parts]) for i in range(n)]


def warm(measure: Measure, tables: list[Callable[[Measure], Any]]) -> None:
    for table in tables:
        table(measure)


def _name(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


# ------------------------------------------------------------------------------------------------------- layers


@torch.no_grad()
def layers(measure: Measure) -> tuple[str, list[str], list[Row]]:
    rows = []
    for shape, window in TINY if measure.dry else SHAPES:
        for dtype, last in ((torch.float32, False), (torch.float16, False), (torch.float16, True)):
            if measure.skips():
                continue
            x = torch.randn(shape, device=measure.device).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            room = torch.empty_like(x)
            ways = {
                "copy": lambda x=x, room=room: room.copy_(x),
                "F.instance_norm": lambda x=x: F.instance_norm(x),
                "norm": lambda x=x, k=window: local_instance_norm(x, k),
                "mean": lambda x=x, k=window: local_mean(x, k),
                "mean, stride 8": lambda x=x, k=window: local_mean(x, k, 8),
            }
            ms = {name: measure.ms(way) for name, way in ways.items()}
            of_norm = of_mean = float("nan")
            if dtype == torch.float32:  # half types overflow in an integral image
                of_norm = measure.ms(lambda x=x, k=window: published.instance_norm(x, k))
                of_mean = measure.ms(lambda x=x, k=window: published.mean(x, k))
            kind = str(dtype).removeprefix("torch.") + (" last" if last else "")
            ratios = [ms["norm"] / ms["copy"], ms["norm"] / ms["F.instance_norm"]]
            ratios += [of_norm / ms["norm"], of_mean / ms["mean"]]
            rows.append([_name(shape), window, kind, *ms.values(), *ratios, measure.extra(ways["norm"])])
    headers = ["shape", "window", "type", "copy ms", "F.instance_norm", "local norm", "local mean", "mean stride 8"]
    headers += ["norm / copy", "norm / F", "published norm / ours", "published mean / ours", "norm, extra MiB"]
    return "Layers (published: float32 only)", headers, rows


@torch.no_grad()
def gates(measure: Measure) -> tuple[str, list[str], list[Row]]:
    rows = []
    for shape, window in TINY if measure.dry else [((1, 96, 720, 1280), 384), ((1, 256, 180, 320), 96)]:
        x = torch.randn(shape, device=measure.device)
        block = gate(shape[1]).eval().to(measure.device)
        ms = {"global": measure.ms(lambda b=block, x=x: b(x))}
        for stride in (1, 8):
            if measure.skips():
                continue
            model = gate(shape[1]).eval()
            example = lambda h, w, c=shape[1]: (torch.zeros(1, c, h, w),)  # noqa: E731
            tlsc.convert(model, window, stride=stride, example_input=example)
            model.to(measure.device).load_state_dict(block.state_dict())
            ms[f"stride {stride}"] = measure.ms(lambda m=model, x=x: m(x))
        rows += [[_name(shape), window, way, taken, taken / ms["global"]] for way, taken in ms.items()]
    return "Squeeze-excitation, reduction 4", ["shape", "window", "way", "ms", "ratio to global"], rows


@torch.no_grad()
def attending(measure: Measure) -> tuple[str, list[str], list[Row]]:
    shape, window = ((1, 2, 4, 24, 32), 12) if measure.dry else ((1, 8, 48, 360, 640), 192)
    q, k, v = torch.randn(3, *shape, device=measure.device)
    ways: dict[str, Callable[[], Tensor]] = {
        "global": lambda: attention.transposed_attention(q, k, v, 1.0),
        "sliding": lambda: attention.local_transposed_attention(q, k, v, 1.0, window),
        "overlap": lambda: attention.overlapping_transposed_attention(q, k, v, 1.0, window),
    }
    ms = {name: measure.ms(way) for name, way in ways.items()}
    rows = [[name, taken, taken / ms["global"], measure.extra(ways[name])] for name, taken in ms.items()]
    return f"Transposed attention, {_name(shape)}, window {window}", ["way", "ms", "ratio", "extra MiB"], rows


def denoising(measure: Measure) -> tuple[str, list[str], list[Row]]:
    size, search, patch = (12, 3, 3) if measure.dry else (512, 11, 5)
    x = torch.rand(1, 3, size, size, device=measure.device, requires_grad=True)
    h = torch.tensor(0.1, device=measure.device, requires_grad=True)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "tlsc": lambda x, h: nonlocal_means(x, h, search, patch, "circular"),
        "stacked window": lambda x, h: nlm.stacked_window(x, h, search, patch),
        "looped": lambda x, h: nlm.looped(x, h, search, patch),
    }
    rows = []
    for name, way in ways.items():

        def both(way: Callable[[Tensor, Tensor], Tensor] = way) -> tuple[Tensor, ...]:
            return torch.autograd.grad(way(x, h).square().mean(), (x, h))

        rows.append([name, measure.ms(both), measure.extra(both)])
    return f"Non-local means, {size}×{size}, forward and backward", ["way", "ms", "extra MiB"], rows


# ----------------------------------------------------------------------------------------------------- networks


def made(dry: bool) -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Networks as they were published, or tiny ones; with the strides that are of interest."""
    if dry:
        yield "HINet", lambda: HINet(wf=2, depth=2, hin_position_left=0, hin_position_right=1), (1,)
        yield "MPRNet", lambda: MPRNet(n_feat=4, scale_unetfeats=2, scale_orsnetfeats=2, num_cab=1), (1, 8)
        return
    yield "HINet, norms 3-4", lambda: HINet(hin_position_left=3, hin_position_right=4), (1,)
    yield "HINet, norms on all levels", lambda: HINet(hin_position_left=0, hin_position_right=4), (1,)
    yield "MPRNet", MPRNet, (1, 8)
    nafnet = importlib.import_module("spandrel.architectures.NAFNet.__arch.NAFNet_arch").NAFNet
    settings = {"width": 32, "middle_blk_num": 1, "enc_blk_nums": [1, 1, 1, 28], "dec_blk_nums": [1, 1, 1, 1]}
    yield "NAFNet, width 32", lambda: nafnet(**settings), (1, 8)
    restormer = importlib.import_module("spandrel_extra_arches.architectures.Restormer.__arch.restormer_arch")
    yield "Restormer", restormer.Restormer, (1,)


@torch.no_grad()
def networks(measure: Measure) -> tuple[str, list[str], list[Row]]:
    height, width, base = (32, 48, 16) if measure.dry else (720, 1280, 384)
    kinds = [("float32", torch.float32, False), ("float16", torch.float16, False)]
    kinds += [("bfloat16", torch.bfloat16, False), ("float16 last", torch.float16, True)]
    rows: list[Row] = []
    for name, make, strides in made(measure.dry):
        before: dict[str, float] = {}
        for stride in (0, *strides):
            if measure.skips():
                continue
            converted = make().eval()
            if stride:
                tlsc.convert(converted, base, stride=stride)
            way = f"stride {stride}" if stride > 1 else "exact" if stride else "original"
            for kind, dtype, last in kinds if not measure.dry else kinds[:1]:
                layout = torch.channels_last if last else torch.contiguous_format
                x = torch.rand(1, 3, height, width, device=measure.device, dtype=dtype).contiguous(
                    memory_format=layout
                )
                model = copy.deepcopy(converted).to(measure.device, dtype, memory_format=layout)
                try:
                    taken = measure.ms(lambda m=model, x=x: m(x), 200.0)
                    extra = measure.extra(lambda m=model, x=x: m(x))
                except Exception as error:  # one network that fails leaves the others to be measured
                    rows.append([name, kind, way, f"{type(error).__name__}", None, None])
                    continue
                before.setdefault(kind, taken)
                rows.append([name, kind, way, taken, taken / before[kind], extra])
                if measure.turn is None:
                    print(*rows[-1], flush=True)
    rows.sort(key=lambda row: [row[0], row[1]])
    return f"Networks, {height}×{width}", ["network", "type", "way", "ms", "ratio", "extra MiB"], rows

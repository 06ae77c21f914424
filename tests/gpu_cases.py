"""Every kernel for GPUs, and every specialisation that the host code can ask for, as machine code; none is run.

``uv run python -m tests.gpu_cases`` compiles a selection in which every two choices meet (size, type, layout, call,
GPU): more than 150 specialisations, about a minute on two cores. ``--all`` compiles the whole table; ``--list``
prints registers, spills and widths of loads of each. The exit status tells whether all of it compiled.
``python -m benchmarks versions kernels`` runs it with the oldest and the newest Triton, too.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from tlsc._statistics.correction import Correction

from .gpu_compile import Compiled, compiling, keep_in

__all__ = ["CALLS", "DTYPES", "SIZES", "calls", "cases", "compile_all", "made"]

# Height, width, window: odd; one row; one column; multiples of 16; sums of blocks; several segments, with a first
# window that fits into none of them.
SIZES = {
    "odd": (33, 47, (9, 12)),
    "row": (1, 40, (1, 16)),
    "column": (40, 1, (16, 1)),
    "sixteens": (64, 96, (32, 48)),
    "blocks": (384, 160, (257, 48)),
    "segments": (20, 5000, (8, 4500)),
}
# auto leaves float64 to PyTorch; by name it is taken.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
TARGETS = (80, 90)
CALLS = ("mean", "moments", "norm", "groups", "means", "grid", "strided", "meet")
# Of non-local means: channels, guides, power, floor, a map of strengths, search window, patch, height, width.
NLM = [
    (3, 1, 1, 0.0, False, 11, 5, 512, 512),
    (3, 3, 2, 0.1, True, 7, 3, 33, 1),
    (1, 1, 1, 0.0, True, 3, 1, 1, 16),
    (3, 3, 1, 0.1, False, 5, 7, 16, 37),
]
# The selection is every seventh case: prime to the number of every choice, so that all pairs occur.
EVERY = 7

Case = tuple[Any, ...]


def made(channels: int, height: int, width: int, dtype: torch.dtype, last: bool, images: int = 1) -> Tensor:
    """A map (images, channels, height, width), channels last if asked."""
    x = torch.zeros(images, channels, height, width, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def calls(x: Tensor, window: tuple[int, int], corrected: bool, stride: int) -> dict[str, Callable[[], Any]]:
    """Every way into the kernels of statistics, with a map and a window; by the names of CALLS."""
    from tlsc._statistics.triton import planes

    channels = x.shape[1]
    weight = torch.ones(channels, dtype=x.dtype)
    own = Correction(torch.ones(8, channels)) if corrected else None
    high, wide = (-(-max(n - k, 0) // stride) + 1 for n, k in zip(x.shape[2:], window, strict=True))
    grid = torch.zeros(x.shape[0], channels, high, wide, dtype=x.dtype)
    return {
        "mean": lambda: planes.local_mean(x, window, 1, own),
        "moments": lambda: planes.local_var_mean(x, window),
        "norm": lambda: planes.local_group_norm(x, window, channels, weight, weight, 1e-5, own),
        "groups": lambda: planes.local_group_norm(x, window, 1, None, None, 1e-5),
        "means": lambda: planes.grid_means(x, window, 1, own),
        "grid": lambda: planes.grid_moments(x, window, stride, own),
        "strided": lambda: planes.grid_means(x, window, stride),
        "meet": lambda: planes.meet(x, grid, window, stride, "mul"),
    }


def cases(everything: bool) -> list[Case]:
    """(target, call, size, dtype, channels last) of statistics, (target, settings) of non-local means."""
    table: list[Case] = list(itertools.product(TARGETS, CALLS, SIZES, list(DTYPES)[:3], (False, True)))
    if everything:
        table += itertools.product(TARGETS, CALLS, SIZES, ["float64"], (False, True))
    chosen = table if everything else table[::EVERY]
    return chosen + list(itertools.product(TARGETS, NLM))


def compiled(case: Case) -> tuple[list[Compiled], str]:
    """What one case asks for, and the error, if it does not compile."""
    target = case[0]
    try:
        with compiling(target) as seen:
            if len(case) == 2:
                _non_local_means(*case[1])
            else:
                _, call, size, dtype, last = case
                height, width, window = SIZES[size]
                x = made(6, height, width, DTYPES[dtype], last)
                calls(x, window, last or size == "odd", 8 if size == "sixteens" else 5)[call]()
    except Exception as error:  # whatever a compiler says
        return [], f"{case}: {type(error).__name__}: {error}"
    return sorted(seen.compiled, key=str), ""


def _non_local_means(*settings: Any) -> None:
    from tlsc.adapters.nlm import triton_form

    channels, guides, power, floor, is_map, search, patch, height, width = settings
    margin = search // 2 + patch // 2
    image = torch.zeros(1, channels, height + 2 * margin, width + 2 * margin)
    guide = torch.zeros(1, guides, *image.shape[2:])
    rate = torch.zeros((1, height, width) if is_map else (1, 1, 1))
    how = (search, patch, power, floor)
    mean, total = triton_form.forward(image, guide, rate, *how)
    triton_form.backward(image, guide, rate, *how, mean, total, True)


def compile_all(chosen: Iterable[Case], workers: int) -> tuple[set[Compiled], list[str]]:
    """Specialisations, each once, and what failed; over so many processes, which share what they have compiled."""
    found: set[Compiled] = set()
    failed: list[str] = []
    context = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory(prefix="tlsc-triton-") as shared,
        ProcessPoolExecutor(workers, context, keep_in, (shared,)) as pool,
    ):
        for kernels, error in pool.map(compiled, chosen):
            found.update(kernels)
            failed += [error] if error else []
    return found, failed


def main() -> int:
    import triton

    parser = argparse.ArgumentParser(prog="python -m tests.gpu_cases", description=__doc__)
    parser.add_argument("--all", action="store_true", help="the whole table")
    parser.add_argument("--list", action="store_true", help="print each specialisation")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    start = time.perf_counter()
    found, failed = compile_all(cases(given.all), given.workers)
    if given.list:
        print(*sorted(map(str, found)), sep="\n")
    for kernel, count in sorted(Counter(one.kernel for one in found).items()):
        own = [one for one in found if one.kernel == kernel]
        spilled = [one.spilled for one in own if one.spilled]
        most = max(one.registers for one in own)
        worst = max(spilled, default=0)
        print(f"{kernel:20} {count:4}, {most:3} registers at most, {len(spilled)} spill ({worst} B at most)")
    print(*failed, sep="\n", end="\n" * bool(failed))
    gpus = ", ".join(f"sm_{n}: {sum(one.target == n for one in found)}" for n in TARGETS)
    print(
        f"{len(found)} specialisations ({gpus}), {len(failed)} calls failed; PyTorch {torch.__version__}, "
        f"Triton {triton.__version__}, {time.perf_counter() - start:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Times of two states of the code in turn: ``uv run python -m benchmarks states FOLDER``, another checkout's.

Each state answers in processes of its own, so that neither's caches, threads or memory are the other's; they take
turns, and of each time the least counts. Only public names are called, so the other state may be an old one. Its
kernels are compiled before the first turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
TURNS = 4


def calls(threads: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import torch

    import tlsc
    from tlsc import adapters, functional

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    map_, batch = torch.randn(1, 64, 360, 640), torch.randn(4, 16, 96, 96)
    last = map_.contiguous(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 360, 640)
    se, hin = (tlsc.convert(adapters.load_demo_network(name), 96) for name in ("se", "hin"))
    return {
        "local_mean 1×64×360×640, window 192": lambda: functional.local_mean(map_, 192),
        "local_mean, window 9": lambda: functional.local_mean(map_, 9),
        "local_mean, stride 8": lambda: functional.local_mean(map_, 192, 8),
        "local_instance_norm, window 192": lambda: functional.local_instance_norm(map_, 192),
        "local_instance_norm, channels last": lambda: functional.local_instance_norm(last, 192),
        "local_group_norm of 8 groups": lambda: functional.local_group_norm(map_, 192, 8),
        "local_instance_norm 4×16×96×96, window 24": lambda: functional.local_instance_norm(batch, 24),
        "`se` 1×3×360×640, base size 96": lambda: se(image),
        "`hin` 1×3×360×640, base size 96": lambda: hin(image),
    }


def measure(threads: int) -> dict[str, float]:
    """Milliseconds, the least of several calls."""
    import torch

    found = {}
    with torch.no_grad():
        for name, call in calls(threads).items():
            call()
            times = []
            end = time.perf_counter() + 0.4
            while time.perf_counter() < end or len(times) < 3:
                start = time.perf_counter()
                call()
                times.append(1000 * (time.perf_counter() - start))
            found[name] = min(times)
    return found


def _turn(folder: Path, threads: int) -> dict[str, float]:
    """In a new process, which imports what lies in the folder."""
    code = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--measure", str(threads)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        raise SystemExit("name the folder of another checkout, and threads if not 1")
    other, threads = Path(arguments[0]).resolve(), int(arguments[1]) if len(arguments) > 1 else 1
    for folder in (other, ROOT):
        _turn(folder, threads)  # compiles
    turns = [(_turn(other, threads), _turn(ROOT, threads)) for _ in range(TURNS)]
    print(
        "| ms, least of each turn | there | here | here / there, median of turns (least, most) |\n|---|---|---|---|"
    )
    for name in turns[0][0]:
        ratios = [here[name] / there[name] for there, here in turns]
        least = [min(turn[i][name] for turn in turns) for i in (0, 1)]
        print(
            f"| {name} | {least[0]:.1f} | {least[1]:.1f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        main(sys.argv[1:])

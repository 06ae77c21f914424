"""HINet and MPRNet at their published sizes on a photograph of 720×1280: time and memory, as trained and converted.

Each run is a process of its own, which loads a checkpoint through ``adapters.load``, so that the peak is that of
a user's program: interpreter, PyTorch, weights and all. Weights are random; they change neither time nor memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

from tlsc.adapters import HINet, MPRNet, load, run

SIZE = (720, 1280)
BASE_SIZE = 384
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "HINet": lambda: HINet(hin_position_left=3, hin_position_right=4),
    "MPRNet": MPRNet,
}
VARIANTS: dict[str, dict[str, int]] = {
    "as trained": {},
    "converted": {"base_size": BASE_SIZE},
    "converted, stride 8": {"base_size": BASE_SIZE, "stride": 8},
}


def main(names: list[str] | None = None) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NETWORKS:
            path = Path(folder, f"{name}.pth")
            torch.manual_seed(0)
            model = NETWORKS[name]()
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            torch.save({"params": model.state_dict()}, path)
            del model
            for variant in VARIANTS:
                if name == "HINet" and "stride" in variant:
                    continue  # norms have no strided form
                command = [sys.executable, "-m", "benchmarks.full_size", str(path), variant]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                got = json.loads(done.stdout.splitlines()[-1])
                rows.append(
                    [name, f"{millions:.2f}", variant, got["seconds"], got["cpu"], got["load"], got["peak"]]
                )
                print(rows[-1], file=sys.stderr, flush=True)
    print(
        f"{SIZE[0]}×{SIZE[1]} photograph, float32, {torch.get_num_threads()} threads, base size {BASE_SIZE}. One "
        "image; processor time, so that other programs count less; the peak is that of the whole process\n"
    )
    headers = ["network", "million parameters", "variant", "seconds", "CPU seconds", "loading, s", "peak, GiB"]
    print(tabulate(rows, headers=headers, floatfmt=".2f", disable_numparse=[1]))


def measure(path: str, variant: str) -> None:
    """Restore once and print what it took, as JSON."""
    start = time.perf_counter()
    model = load(path, **VARIANTS[variant])
    loading = time.perf_counter() - start
    image = photograph()
    start, cpu = time.perf_counter(), time.process_time()
    out = run(model, image)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert out.shape == image.shape
    assert bool(out.isfinite().all())
    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "cpu": cpu, "load": loading, "peak": peak}))


def photograph() -> torch.Tensor:
    """One that comes with scikit-image, continued by its mirror image, (1, 3, 720, 1280)."""
    from skimage.data import coffee

    pixels = coffee()
    missing = [(0, size - length) for size, length in zip(SIZE, pixels.shape[:2], strict=True)]
    whole = np.pad(pixels, [*missing, (0, 0)], mode="symmetric")
    return torch.from_numpy(whole).permute(2, 0, 1).unsqueeze(0).float() / 255


if __name__ == "__main__":
    measure(*sys.argv[1:])

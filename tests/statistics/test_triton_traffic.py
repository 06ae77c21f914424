"""Bytes that the Triton kernels move, counted in Triton's interpreter from what each launch loads and stores.

The floor is two reads of the map (for its sums, and to use them) and one write. Within a launch an address counts
once: of what is read again, a GPU's second cache holds a plane many times over (3.7 of 50 MB at 720×1280). Between
launches nothing is taken to be kept. Planes are alike, so that one stands for 64.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has no other wheels")
pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]

# In a process of its own: Triton becomes an interpreter when it is imported. Prints bytes for each launch: of all
# loads and stores, and of distinct addresses.
COUNTING = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from triton.runtime import interpreter
from tlsc._statistics.triton import planes

launches = []
builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
load, store, launch = builder.create_masked_load, builder.create_masked_store, executor.__call__

def note(way, pointers, mask):
    size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
    addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
    launches[-1].setdefault((way, size), []).append(addresses)

def loading(self, pointers, mask, *more):
    note("read", pointers, mask)
    return load(self, pointers, mask, *more)

def storing(self, pointers, value, mask, *more):
    note("written", pointers, mask)
    return store(self, pointers, value, mask, *more)

def launching(self, *arguments, **options):
    launches.append({})
    return launch(self, *arguments, **options)

builder.create_masked_load, builder.create_masked_store, executor.__call__ = loading, storing, launching

height, width, window, channels, stride = map(int, sys.argv[2:])
x, ones = torch.randn(1, channels, height, width), torch.ones(channels)
if sys.argv[1] == "norm":
    planes.local_group_norm(x, (window, window), channels, ones, ones)
elif sys.argv[1] == "gate":
    grid = planes.grid_means(x, (window, window), stride)
    planes.meet(x, grid, (window, window), stride, "mul")
else:  # what is known beforehand
    planes.meet(x, torch.ones(1, channels, 1, 1), (height, width), 1, "mul")
moved = [
    {key: (size * sum(map(len, parts)), size * len(np.unique(np.concatenate(parts))))
     for (key, size), parts in of_launch.items()}
    for of_launch in launches
]
print(json.dumps({"map": x.numel() * x.element_size(), "moved": moved}))
"""


def _shares(call: str, *numbers: int) -> tuple[float, float]:
    """Bytes of all launches as shares of the floor: distinct addresses, and every load and store."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, call, *map(str, numbers)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    counts = [count for launch in told["moved"] for count in launch.values()]
    floor = 3 * told["map"]
    print(call, numbers, *told["moved"], sep="\n")
    return sum(distinct for _, distinct in counts) / floor, sum(total for total, _ in counts) / floor


def test_the_count_is_right_where_it_is_known() -> None:
    """One gate value for the whole map: one read and one write of it are two thirds of the floor."""
    distinct, total = _shares("known", 40, 96, 40, 2, 1)
    assert 2 / 3 <= distinct <= 2 / 3 + 0.01
    assert total >= distinct


@pytest.mark.slow
def test_a_norm_moves_little_more_than_the_floor() -> None:
    distinct, _ = _shares("norm", 150, 96, 80, 1, 1)
    assert 2 / 3 <= distinct <= 2.5


@pytest.mark.slow
@pytest.mark.parametrize(("call", "stride", "most"), [("norm", 1, 2.5), ("gate", 1, 2.5), ("gate", 8, 1.5)])
def test_bytes_of_a_photograph(call: str, stride: int, most: float) -> None:
    """1×64×720×1280, window 384, one plane of it: at most 2.5 times the floor; a gate on a grid, 1.5 times."""
    distinct, total = _shares(call, 720, 1280, 384, 1, stride)
    assert 2 / 3 <= distinct <= most
    assert total <= 4  # of the floor, were no load kept in any cache

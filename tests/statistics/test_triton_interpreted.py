"""The Triton kernels' values, in Triton's interpreter, beside the reference in float64; in a process of its own.

What is slow runs in ``test_kernels.py::test_the_triton_kernels_interpreted``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..marks import slow

ROOT = Path(__file__).parents[2]

CHECKS = """
import tests.interpreted
import warnings
warnings.simplefilter("ignore")
import torch
from tlsc._statistics import reference
from tlsc._statistics.correction import Correction
from tlsc._statistics.triton import planes

torch.manual_seed(0)

def compare(name, actual, expected, tolerance=2e-5):
    actual, expected = (t if isinstance(t, tuple) else (t,) for t in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape, (name, a.shape, b.shape)
        finite = torch.isfinite(b)
        assert torch.equal(torch.isfinite(a), finite), (name, "spoiled", a, b)
        good = b[finite]
        if good.numel():
            error = (a.double()[finite] - good).abs().max().item()
            assert error <= tolerance * max(1.0, good.abs().max().item()), (name, error)

weight, bias = torch.rand(4) + 0.5, torch.rand(4)
rows = torch.rand(8, 4)
rows[5], rows[6], rows[7] = 0.9, -2.0, 3.5
fitted, halves = Correction(rows), Correction(rows[:, :2].contiguous())
# Several strips; sums of blocks, with rows left over on both sides; a narrow map, channels in a slice of others.
for shape, window, layout in (((1, 4, 13, 12), (4, 5), "first"), ((1, 1, 90, 3), (67, 2), "first"),
                              ((1, 4, 11, 12), (4, 5), "last")):
    x = torch.randn(shape) + 2
    channels, correction = shape[1], fitted
    if layout == "last":
        x = torch.randn(shape[0], 6, *shape[2:]).contiguous(memory_format=torch.channels_last)[:, 1:5] + 2
    for spoiled in (False, True):
        if spoiled and shape[2] > 30:
            continue
        if spoiled:
            x = x.clone(memory_format=torch.preserve_format)
            x[0, 1, -3, 0], x[-1, 2, 1, -1] = torch.nan, torch.inf
        exact = x.double()
        if not spoiled or len(STRIDES) > 1:  # repaired as in the norm
            compare("mean", planes.local_mean(x, window), reference.local_mean(exact, window))
        if shape[2] < 30 or len(STRIDES) > 1:  # sums of blocks in a norm: what is far from zero, below
            compare("norm", planes.local_group_norm(x, window, channels, weight[:channels], bias[:channels], 1e-3),
                    reference.local_group_norm(exact, window, channels, weight[:channels], bias[:channels], 1e-3))
        if spoiled or shape[2] > 30:
            continue
        compare("moments", planes.local_var_mean(x, window), reference.local_var_mean(exact, window))
        compare("groups", planes.local_group_norm(x, window, 2, None, bias, 1e-3, halves),
                reference.local_group_norm(exact, window, 2, None, bias, 1e-3, halves))
        compare("corrected", planes.local_mean(x, window, 1, correction),
                reference.local_mean(exact, window, 1, correction))
    for stride in STRIDES if shape[2] < 30 else (8,):
        if shape[2] > 30:
            correction = None
        elif layout == "last" and stride in (3, 7):
            continue
        grid = planes.grid_moments(x, window, stride, None if stride == 3 else correction)
        compare(f"grid {stride}", grid,
                reference.grid_moments(exact, window, stride, None if stride == 3 else correction), 1e-4)
        compare(f"meet {stride}", planes.meet(x, grid[1], window, stride, "mul"),
                reference.meet(exact, grid[1].double(), window, stride, "mul"))

# Design, section 6: a mean of 1000 deviations, and values whose squares float32 cannot hold.
x = torch.randn(1, 1, 90, 40) * 0.1 + 100
compare("far", planes.local_group_norm(x, (70, 30), 1), reference.local_group_norm(x.double(), (70, 30), 1), 1e-3)
x = (torch.rand(1, 1, 9, 12) * 0.05 + 0.95) * 1e30
compare("large", planes.local_group_norm(x, (4, 5), 1), reference.local_group_norm(x.double(), (4, 5), 1), 1e-4)
x = torch.full((1, 2, 9, 12), 0.1)
assert torch.equal(planes.local_mean(x, (4, 5)), x)
assert torch.equal(planes.local_group_norm(x, (4, 5), 2), torch.zeros_like(x))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton has no other wheels")
@pytest.mark.parametrize("strides", [(4,), slow((1, 3, 7))], ids=str)
def test_values_are_those_of_the_reference(strides: tuple[int, ...]) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", f"STRIDES = {strides}\n{CHECKS}"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]

"""Every Triton kernel as machine code for GPUs that are not there; nothing is run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ..gpu_cases import DTYPES, SIZES, calls, cases, made
from ..gpu_compile import Seen, compiling
from ..marks import slow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has no other wheels")

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

# Said at every launch: Triton 3.9 warns where it is left to a default that is to change.
FUSED = {"enable_fp_fusion": True}


# Two faults that the interpreter takes and no GPU does; each once went unseen.


@triton.jit
def _loops_counter_becomes_a_block(out, n, WIDTH: tl.constexpr):
    place = tl.arange(0, WIDTH)
    start = 0
    for start in range(0, n, WIDTH):
        tl.store(out + place, start)
    for _ in range(2):
        start = place + 1
        tl.store(out + start, 1)


@triton.jit
def _method_of_an_argument_that_may_be_one(out, n, WIDTH: tl.constexpr):
    tl.store(out + tl.arange(0, WIDTH), n.to(tl.int64))


@triton.jit
def _sound(x, out, n, WIDTH: tl.constexpr):
    place = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    tl.store(out + place, tl.load(x + place, mask=place < n, other=0.0), mask=place < n)


def test_faults_that_only_a_compiler_sees_are_caught() -> None:
    out = torch.zeros(64, dtype=torch.int32)
    with compiling(90) as seen:
        with pytest.raises(triton.CompilationError):
            _loops_counter_becomes_a_block[(1,)](out, 40, 32, **FUSED)
        _method_of_an_argument_that_may_be_one[(1,)](out, 2, 32, **FUSED)
        with pytest.raises(triton.CompilationError):
            _method_of_an_argument_that_may_be_one[(1,)](out, 1, 32, **FUSED)
    assert [launch.kernel for launch in seen.launches] == ["_method_of_an_argument_that_may_be_one"]


def test_grids_that_cuda_refuses_are_caught() -> None:
    x = torch.zeros(64)
    with compiling(80):
        for grid in ((1, 65536), (1, 1, 65536), (0,)):
            with pytest.raises(ValueError, match="grid"):
                _sound[grid](x, x, 64, 32, **FUSED)


@pytest.mark.parametrize("target", [80, 90])
def test_what_is_told_of_a_kernel(target: int) -> None:
    x = torch.zeros(4096)
    with compiling(target) as seen:
        _sound[(4,)](x, x, 4096, 1024, num_warps=4, **FUSED)
        _sound[(4,)](x[1:], x, 4095, 1024, num_warps=4, **FUSED)
        x.view(64, 64)[:, 3].max().item()
    wide, narrow = (launch.compiled for launch in seen.launches)
    assert wide.loads == ((16, 2),)
    assert narrow.loads == ((4, 8),)
    assert 8 <= wide.registers <= 64
    assert wide.spilled == 0
    assert seen.operations == ["aten.max.default", "aten._local_scalar_dense.default"]


# ---------------------------------------------------------------------------------------- the kernels of statistics

planes = pytest.importorskip("tlsc._statistics.triton.planes")
kernels = pytest.importorskip("tlsc._statistics.triton.kernels")
ROOT = Path(__file__).parents[2]


# What is compiled in the usual run: each call, with sizes, types and layouts that take turns; both GPUs.
USUAL = [
    ("odd", "float32", False, 80, ("grid", "mean")),
    slow("sixteens", "float16", True, 90, ("norm", "strided")),
    ("blocks", "bfloat16", False, 90, ("moments", "means", "meet")),
    ("column", "float32", True, 80, ("groups", "means")),
    ("segments", "float16", False, 90, ("norm",)),
]


@pytest.mark.parametrize(("size", "dtype", "last", "target", "names"), USUAL)
def test_what_the_host_asks_for_compiles(
    size: str, dtype: str, last: bool, target: int, names: tuple[str, ...]
) -> None:
    height, width, window = SIZES[size]
    x = made(6, height, width, DTYPES[dtype], last)
    with compiling(target) as seen:
        for name in names:
            calls(x, window, last or size == "odd", 8 if size == "sixteens" else 5)[name]()
    assert len(seen.compiled) >= len(names)
    if dtype == "float32":
        # Division and root in float64 (repairs) call a function, which keeps 16 bytes.
        assert all(one.spilled <= 16 for one in seen.compiled), "\n".join(map(str, seen.compiled))


@pytest.mark.slow
def test_at_least_150_specialisations_compile() -> None:
    """The command that CONTRIBUTING.md names. In it every two choices meet."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.gpu_cases"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counted = re.search(r"^(\d+) specialisations \(sm_80: (\d+), sm_90: (\d+)\), 0 calls failed", done.stdout, re.M)
    assert counted, done.stdout
    assert int(counted[1]) >= 150
    assert min(int(counted[2]), int(counted[3])) >= 70


def test_in_the_selection_every_two_choices_meet() -> None:
    def pairs(table: list[tuple[Any, ...]]) -> set[Any]:
        own = [case for case in table if len(case) == 5 and case[3] != "float64"]
        return {(a, b, case[a], case[b]) for case in own for a in range(5) for b in range(a)}

    assert pairs(cases(False)) == pairs(cases(True))


FAULTS = {
    "a loop's counter becomes a block": (
        "    start = window_start(segment * COLUMNS, behind, width - columns)\n",
        "    for start in range(0, 2):\n        raw_ = start\n    for _ in range(2):\n"
        "        start = window_start(segment * COLUMNS, behind, width - columns) + lane\n",
    ),
    "an argument that may be 1 has no .to": (
        "above // strips\n    row_step, channel_step = number * 0 + row_stride, number * 0 + channel_stride\n",
        "above // strips\n    row_step, channel_step = row_stride.to(tl.int64), channel_stride.to(tl.int64)\n",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_kernels_themselves_is_caught(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put back what once kept every call on a GPU from compiling; a map one column wide has rows 1 apart."""
    source = Path(kernels.__file__).read_text(encoding="utf-8")
    sound, broken = FAULTS[fault]
    assert source.count(sound) == 1
    file = tmp_path / "kernels_with_a_fault.py"
    file.write_text(source.replace(sound, broken), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("tlsc._statistics.triton.kernels_with_a_fault", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(planes, "local_statistics", module.local_statistics)
    x = made(6, 40, 1, torch.float32, False)
    with compiling(90), pytest.raises(triton.CompilationError):
        planes.local_mean(x, (16, 1))


def _seen(call: Callable[[], Any], target: int = 90) -> Seen:
    with compiling(target) as seen:
        call()
    return seen


@pytest.mark.parametrize(
    ("size", "most", "last"),
    [
        slow("odd", 1, True),
        ("blocks", 3, False),
        *(
            slow(*case)
            for case in [("odd", 1, False), ("blocks", 3, True), ("sixteens", 1, False), ("sixteens", 1, True)]
        ),
    ],
)
def test_norms_take_three_launches_and_never_wait(size: str, most: int, last: bool) -> None:
    """And one where a row fits into a warp. No operation of PyTorch's, so that nothing waits for the GPU."""
    height, width, window = SIZES[size]
    x = made(4, height, width, torch.float32, last)
    weight = torch.ones(4)
    for call in (
        lambda: planes.local_group_norm(x, window, 4, weight, weight),
        lambda: planes.local_mean(x, window),
    ):
        seen = _seen(call)
        assert 1 <= len(seen.launches) <= max(most, 1 + last)
        assert seen.operations == []


@pytest.mark.parametrize("stride", [1, 8])
def test_gates_take_four_launches_and_never_wait(stride: int) -> None:
    x = made(4, 384, 160, torch.float32, False)

    def gate() -> Tensor:
        grid = planes.grid_means(x, (257, 48), stride)
        return planes.meet(x, grid, (257, 48), stride, "mul")

    seen = _seen(gate)
    assert len(seen.launches) <= 4
    assert seen.operations == []


def test_the_main_kernels_keep_to_their_registers() -> None:
    """1×64×720×1280, window 384: nothing spilled, 16 programs of a norm (a warp) on one processor, wide loads."""
    x = made(64, 720, 1280, torch.float32, False)
    weight = torch.ones(64)
    seen = _seen(lambda: planes.local_group_norm(x, (384, 384), 64, weight, weight))
    blocks, main, repair = (launch.compiled for launch in seen.launches)
    assert [one.spilled for one in (blocks, main, repair)] == [0, 0, 0]
    assert main.registers <= 128
    assert main.warps == 1
    assert main.widest_load == blocks.widest_load == 16
    narrow = sum(count for width, count in main.loads if width < 16)
    assert narrow <= 40  # samples, parameters, and sums of the first window

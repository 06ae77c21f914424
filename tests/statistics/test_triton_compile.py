"""Every Triton kernel as machine code for GPUs that are not there; nothing is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tlsc._statistics.correction import Correction

from ..gpu_compile import Seen, compiling

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


def _factors(channels: int) -> Correction:
    return Correction(torch.ones(8, channels))


def _map(channels: int, height: int, width: int, dtype: torch.dtype, last: bool, images: int = 1) -> Tensor:
    x = torch.zeros(images, channels, height, width, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _calls(x: Tensor, window: tuple[int, int], corrected: bool, stride: int) -> list[Callable[[], Any]]:
    """Every way into the kernels, with a map and a window."""
    channels = x.shape[1]
    weight = torch.ones(channels, dtype=x.dtype)
    own = _factors(channels) if corrected else None
    grid = torch.zeros(
        x.shape[0], channels, *(-(-max(n - k, 0) // stride) + 1 for n, k in zip(x.shape[2:], window, strict=True))
    )
    return [
        lambda: planes.local_mean(x, window, 1, own),
        lambda: planes.local_var_mean(x, window),
        lambda: planes.local_group_norm(x, window, channels, weight, weight, 1e-5, own),
        lambda: planes.local_group_norm(x, window, 1, None, None, 1e-5),
        lambda: planes.grid_means(x, window, 1, own),
        lambda: planes.grid_moments(x, window, stride, own),
        lambda: planes.grid_means(x, window, stride),
        lambda: planes.meet(x, grid.to(x.dtype), window, stride, "mul"),
    ]


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
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What is compiled in the usual run; the rest of the table is slow.
USUAL = {("odd", "float32", False, 80), ("sixteens", "float16", True, 90), ("blocks", "bfloat16", False, 90)}


def _cases() -> list[Any]:
    return [
        pytest.param(*case, id="-".join(map(str, case)), marks=() if case in USUAL else (pytest.mark.slow,))
        for case in (
            (size, dtype, last, target)
            for size in SIZES
            for dtype in DTYPES
            for last in (False, True)
            for target in (80, 90)
        )
    ]


@pytest.mark.parametrize(("size", "dtype", "last", "target"), _cases())
def test_every_specialisation_compiles(size: str, dtype: str, last: bool, target: int) -> None:
    height, width, window = SIZES[size]
    corrected = last or size == "odd"
    x = _map(6, height, width, DTYPES[dtype], last)
    with compiling(target) as seen:
        for call in _calls(x, window, corrected, 8 if size == "sixteens" else 5):
            call()
    assert len(seen.compiled) >= 8
    if dtype != "float32" or size == "segments":
        return
    # Division and root in float64 (repairs) call a function, which keeps 16 bytes.
    assert all(one.spilled <= 16 for one in seen.compiled), "\n".join(map(str, seen.compiled))


def _seen(call: Callable[[], Any], target: int = 90) -> Seen:
    with compiling(target) as seen:
        call()
    return seen


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("size", "most"), [("odd", 1), ("sixteens", 1), ("blocks", 3)])
def test_norms_take_three_launches_and_never_wait(size: str, most: int, last: bool) -> None:
    """And one where a row fits into a warp. No operation of PyTorch's, so that nothing waits for the GPU."""
    height, width, window = SIZES[size]
    x = _map(4, height, width, torch.float32, last)
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
    x = _map(4, 384, 160, torch.float32, False)

    def gate() -> Tensor:
        grid = planes.grid_means(x, (257, 48), stride)
        return planes.meet(x, grid, (257, 48), stride, "mul")

    seen = _seen(gate)
    assert len(seen.launches) <= 4
    assert seen.operations == []


def test_the_main_kernels_keep_to_their_registers() -> None:
    """1×64×720×1280, window 384: nothing spilled, three programs of a norm on one processor, loads of 16 bytes."""
    x = _map(64, 720, 1280, torch.float32, False)
    weight = torch.ones(64)
    seen = _seen(lambda: planes.local_group_norm(x, (384, 384), 64, weight, weight))
    blocks, main, repair = (launch.compiled for launch in seen.launches)
    assert [one.spilled for one in (blocks, main, repair)] == [0, 0, 0]
    assert main.registers <= 96
    assert main.widest_load == blocks.widest_load == 16
    narrow = sum(count for width, count in main.loads if width < 16)
    assert narrow <= 10  # samples and parameters

"""Every Triton kernel as machine code for GPUs that are not there; nothing is run."""

from __future__ import annotations

import sys

import pytest
import torch

from ..gpu_compile import compiling

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

"""What only a GPU can show (``pytest -m gpu``); and that the program which measures there runs at all."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tlsc
from tlsc._statistics import backends
from tlsc.functional import local_mean

ROOT = Path(__file__).parents[2]


def _command(*parts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks", "gpu", *parts],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_benchmark_runs_dry() -> None:
    done = _command("dry")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.count("  right  ") == 8
    for title in ("Layers", "Squeeze-excitation", "Transposed attention", "Non-local means", "Networks"):
        assert f"## {title}" in done.stdout
    assert "Error" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure")
def test_without_a_gpu_the_benchmark_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    gpu = importlib.import_module("benchmarks.gpu")
    with pytest.raises(SystemExit, match=r"^no NVIDIA GPU.*: nothing was measured$"):
        gpu.main([])
    assert capsys.readouterr() == ("", "")


# -------------------------------------------------------------------------------------------------- on a GPU alone

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here")


@pytest.mark.gpu
@on_a_gpu
def test_every_check_of_the_benchmark_is_right_on_the_gpu() -> None:
    """Values, NaN, a mean of 1000 deviations, gradients, CUDA graph, compile, non-local means."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_checks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@on_a_gpu
def test_kernels_that_fail_on_the_gpu_give_the_right_result_and_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = backends.BACK_ENDS["triton"]

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("ptxas is not there")

    monkeypatch.setattr(own.module(), "local_mean", fails)
    monkeypatch.setattr(own, "failures", {})
    monkeypatch.setattr(own, "warned", False)
    x = torch.randn(1, 4, 40, 40, device="cuda")
    with pytest.warns(tlsc.TLSCWarning, match="ptxas is not there") as caught:
        first, second = local_mean(x, 9), local_mean(x, 9)
    assert len(caught) == 1
    with tlsc.backend("torch"):
        assert torch.equal(first, local_mean(x, 9))
    assert torch.equal(first, second)


@pytest.mark.gpu
@on_a_gpu
def test_a_call_does_not_wait_for_the_gpu() -> None:
    """PyTorch raises where something would."""
    x = torch.randn(1, 4, 300, 320, device="cuda")
    local_mean(x, 200)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stride in (1, 8):
            local_mean(x, 200, stride)
            tlsc.functional.local_instance_norm(x, 200)
    finally:
        torch.cuda.set_sync_debug_mode(mode)

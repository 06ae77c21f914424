"""Which back end answers: choice, threads, failures, and what tlsc.backends() says of it."""

from __future__ import annotations

import threading
import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc
from tlsc._statistics import backends, reference
from tlsc.functional import local_group_norm, local_mean


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> backends.BackEnd:
    """Tensors pass for a GPU's, and Triton for usable: with the reference's functions, counted."""
    own = backends.BackEnd("triton", "cuda", lambda x: x.dtype != torch.float64)
    calls: list[str] = []

    def counted(name: str) -> Any:
        function = getattr(reference, name)
        return lambda *a, **k: (calls.append(name), function(*a, **k))[1]

    names = ("local_mean", "local_var_mean", "local_group_norm", "grid_means", "grid_moments", "meet")
    own._module = types.SimpleNamespace(
        __all__=names,
        why_unusable=lambda: None,
        why_not=lambda x: None,
        calls=calls,
        **{name: counted(name) for name in names},
    )
    monkeypatch.setitem(backends.BACK_ENDS, "triton", own)
    monkeypatch.setattr(backends, "device_type", lambda x: "cuda")
    return own


class NoPtxas(Exception):
    """As Triton's own errors: of no class that is known before."""


def _fails(*_: Any, **__: Any) -> Tensor:
    raise NoPtxas("\n\nCannot find ptxas\nsecond line")


def test_a_gpu_s_tensor_goes_to_triton_but_for_float64(on_cuda: backends.BackEnd) -> None:
    x = torch.randn(1, 2, 9, 9)
    local_mean(x, 3)
    local_mean(x.double(), 3)
    with tlsc.backend("torch"):
        local_mean(x, 3)
    assert on_cuda._module.calls == ["local_mean"]


def test_a_model_whose_kernels_fail_gets_the_right_result_and_one_warning(on_cuda: backends.BackEnd) -> None:
    """Every kernel fails; without a warning after the first, and without another try."""
    tries: list[str] = []
    for name in ("local_mean", "local_group_norm", "grid_means", "meet"):
        setattr(on_cuda._module, name, lambda *a, n=name, **k: (tries.append(n), _fails())[1])

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    def made() -> nn.Sequential:
        return nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), Gate()).eval()

    model, x = (
        tlsc.convert(made(), 8, example_input=lambda h, w: torch.zeros(1, 4, h, w), check=False),
        torch.randn(1, 4, 20, 20),
    )
    with tlsc.backend("torch"):
        expected = model(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            assert torch.equal(model(x), expected)
        before = len(tries)
        assert torch.equal(model(x.clone().requires_grad_()), expected)
    assert len(tries) == before > 1
    assert [w.category for w in caught] == [tlsc.TLSCWarning]
    message = str(caught[0].message)
    assert "triton" in message
    assert "Cannot find ptxas" in message
    assert "second line" not in message
    assert "backend('torch')" in message
    assert "Cannot find ptxas" in tlsc.backends()[2].reason


def test_a_named_back_end_that_fails_raises(on_cuda: backends.BackEnd) -> None:
    on_cuda._module.local_mean = _fails
    x = torch.randn(1, 1, 8, 8)
    with (
        tlsc.backend("triton"),
        pytest.raises(tlsc.BackendError, match=r"triton.*local_mean.*Cannot find ptxas.*auto"),
    ):
        local_mean(x, 3)
    assert not on_cuda.failures


def test_a_gpu_without_triton_is_told_once(on_cuda: backends.BackEnd) -> None:
    on_cuda._module = "triton cannot be imported (ModuleNotFoundError: No module named 'triton')"
    x = torch.randn(1, 1, 8, 8)
    with pytest.warns(tlsc.TLSCWarning, match="triton cannot be imported") as caught:
        first, second = local_mean(x, 3), local_mean(x, 3)
    assert len(caught) == 1
    assert torch.equal(first, second)


def test_what_fails_everywhere_is_not_the_back_end_s_fault(on_cuda: backends.BackEnd) -> None:
    """Out of memory is told as it is; an error that PyTorch's path has, too, is raised as there."""

    def out_of_memory(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    on_cuda._module.local_mean = out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        local_mean(torch.randn(1, 1, 8, 8), 3)
    with pytest.raises(RuntimeError, match="size"):
        backends.answer("mean", torch.zeros(1), lambda by: torch.zeros(2) + torch.zeros(3))
    assert not on_cuda.failures
    assert not on_cuda.warned


def test_kernels_of_the_processor_that_fail_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    own = backends.BACK_ENDS["numba"]
    monkeypatch.setattr(own.module(), "local_group_norm", _fails)
    monkeypatch.setattr(own, "failures", {})
    monkeypatch.setattr(own, "warned", False)
    x = torch.randn(1, 4, 40, 40)
    with pytest.warns(tlsc.TLSCWarning, match="numba back end fails at local_group_norm"):
        out = local_group_norm(x, 7, 2)
    with tlsc.backend("torch"):
        assert torch.equal(out, local_group_norm(x, 7, 2))


def test_the_choice_is_this_thread_s_alone() -> None:
    inside, seen = threading.Barrier(2, timeout=30), []

    def other() -> None:
        inside.wait()
        seen.append(backends.named())
        with tlsc.backend("numba"):
            inside.wait()
            inside.wait()
            seen.append(backends.named())
        seen.append(backends.named())

    thread = threading.Thread(target=other)
    thread.start()
    with tlsc.backend("torch"):
        inside.wait()
        inside.wait()
        assert backends.named() == "torch"
    assert backends.named() == "auto"
    inside.wait()
    thread.join()
    assert seen == ["auto", "numba", "auto"]


def test_backends_are_shown_with_version_device_and_reason() -> None:
    found = tlsc.backends()
    assert [own.name for own in found] == ["torch", "numba", "triton"]
    assert found[0].version == torch.__version__
    assert found[1].usable
    assert str(found) == repr(found)
    for own, line in zip(found, str(found).splitlines(), strict=True):
        assert line.startswith(own.name)
        assert own.reason in line
        assert own.usable or own.reason


def test_a_grid_that_a_kernel_writes_channels_last_is_contiguous_to_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code reads a result with the strides that it was told, which are those of contiguous grids."""
    given = reference.grid_means

    def written(*arguments: Any) -> Tensor:
        return given(*arguments).contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(reference, "grid_means", written)
    x = torch.randn(1, 4, 9, 11).contiguous(memory_format=torch.channels_last)
    with tlsc.backend("torch"):
        out = torch.ops.tlsc.grid_means(x, None, 3, 3, 1)
    assert out.is_contiguous()
    torch.testing.assert_close(out, given(x, (3, 3), 1), rtol=0, atol=0)

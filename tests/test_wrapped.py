"""Converted models that are compiled in place, traced, scripted, wrapped: right, or one clear line.

The oracle is the converted model by itself, in eager PyTorch; other tests compare that with naive windows.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import tlsc
from tlsc.errors import ArgumentValueError, ExportError, MissingPackageError, TLSCError
from tlsc.eval.cli import main

BASE = 16
LARGE, SMALL, WIDE = torch.rand(1, 3, 40, 56), torch.rand(1, 3, 12, 14), torch.rand(2, 3, 11, 33)


class _Gate(nn.Module):
    """A site in its own forward, with a linear layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3, affine=True)
        self.gate = _Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.norm(x))


def _net(make: Callable[[], nn.Module] = _Net) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@torch.no_grad()
def _run(model: Callable[..., Tensor], image: Tensor = LARGE) -> Tensor:
    return model(image)


def _local(make: Callable[[], nn.Module] = _Net, image: Tensor = LARGE) -> Tensor:
    return _run(tlsc.convert(_net(make), BASE), image)


# --------------------------------------------------------------------------------------------- compiled in place


@pytest.mark.parametrize("path", ["", "gate", "norm"])
def test_what_was_compiled_in_place_runs_local_and_again_as_before(path: str) -> None:
    torch._dynamo.reset()
    model = _net()
    before = _run(model)
    part = model.get_submodule(path)
    part.compile(backend="eager")
    compiled = part._compiled_call_impl
    _run(model)
    tlsc.convert(model, BASE)
    torch.testing.assert_close(_run(model), _local())
    tlsc.revert(model)
    assert model.get_submodule(path) is part
    assert part._compiled_call_impl is compiled
    torch.testing.assert_close(_run(model), before)


def test_a_model_compiled_in_place_that_is_itself_rewritten_stays_compiled() -> None:
    torch._dynamo.reset()
    model = _net(_Gate)
    model.compile(backend="eager")
    _run(model)
    tlsc.convert(model, BASE)
    assert model._compiled_call_impl is not None
    torch.testing.assert_close(_run(model), _local(_Gate))


class _Twice(nn.Module):
    """A module and what ``torch.compile`` made of it, beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = _Gate()
        self.compiled = torch.compile(self.plain, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(x) + self.plain(x)


@pytest.mark.parametrize("make", [_Gate, pytest.param(_Twice, marks=pytest.mark.slow)])
def test_what_torch_compile_made_is_converted_through(make: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    model = _net(make)
    inner = model.plain if isinstance(model, _Twice) else model
    asked = model if isinstance(model, _Twice) else torch.compile(model, backend="eager")
    before = _run(asked)
    tlsc.convert(asked, BASE)
    assert {site.action for site in tlsc.plan(asked)} == {"exact"}
    times = 2 if make is _Twice else 1
    torch.testing.assert_close(_run(asked), times * _local(_Gate))
    torch.testing.assert_close(_run(inner), _local(_Gate))
    tlsc.revert(asked)
    torch.testing.assert_close(_run(asked), before)


# ------------------------------------------------------------------------------------------ traced and scripted


@torch.no_grad()
def test_symbolic_traces_hold_a_converted_module_as_one_operation() -> None:
    around = nn.Sequential(tlsc.convert(_net(_Gate), BASE), tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3)), BASE))
    torch.testing.assert_close(_run(torch.fx.symbolic_trace(around)), _run(around))
    with pytest.raises(TLSCError, match=r"put it into a Sequential"):
        torch.fx.symbolic_trace(around[0])


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("example", [LARGE, SMALL], ids=["larger", "no larger than the window"])
def test_a_trace_holds_at_every_size(example: Tensor, stride: int) -> None:
    model = tlsc.convert(_net(), BASE, stride=stride)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, example)
    for image in (LARGE, SMALL, WIDE):
        torch.testing.assert_close(_run(traced, image), _run(model, image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("example", [LARGE, SMALL], ids=["larger", "no larger than the window"])
def test_the_older_exporter_writes_a_file_for_every_size(example: Tensor, tmp_path: Path) -> None:
    model = tlsc.convert(_net(), BASE, stride=2)
    path = str(tmp_path / "net.onnx")
    free = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": free, "y": free},
        )
    session = onnxruntime.InferenceSession(path)
    for image in (LARGE, SMALL, WIDE):
        np.testing.assert_allclose(session.run(None, {"x": image.numpy()})[0], _run(model, image), atol=1e-5)


@pytest.mark.parametrize("opset", [13, 17])
def test_older_opsets_are_written(opset: int, tmp_path: Path) -> None:
    made = tlsc.export(
        tlsc.convert(_net(), BASE), tmp_path / "net.onnx", opset=opset, sizes=[(1, 12, 9), (1, 40, 31)]
    )
    assert made.opset == opset
    assert max(made.errors.values()) < 1e-4


def test_opsets_without_what_windows_need_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentValueError, match="at least 13, got 11"):
        tlsc.export(_net(), tmp_path / "net.onnx", opset=11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [_Net, _Gate, lambda: nn.Sequential(nn.InstanceNorm2d(3))])
def test_scripting_a_converted_model_says_what_to_do(make: Callable[[], nn.Module]) -> None:
    model = tlsc.convert(_net(make), BASE)
    with pytest.raises(TLSCError, match=r"use torch\.jit\.trace") as raised:
        torch.jit.script(model)
    assert len(str(raised.value).splitlines()) == 1


# -------------------------------------------------------------------------------------------------------- wrapped


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, nn.Sequential, torch.compile])
def test_the_plan_of_a_converted_model_is_found_inside_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = tlsc.convert(_net(), BASE)
    inside = tlsc.plan(model)
    outside = tlsc.plan(wrapper := wrap(model))
    assert [site.window for site in outside] == [site.window for site in inside]
    assert [site.path.partition(".")[2] for site in outside] == [site.path for site in inside]
    assert not outside.left
    tlsc.revert(wrapper)
    with pytest.raises(ArgumentValueError, match="is not converted"):
        tlsc.plan(wrapper)


def test_parts_converted_alike_have_one_plan_and_others_are_named() -> None:
    parts = nn.Sequential(tlsc.convert(_net(), 16), tlsc.convert(_net(_Gate), 16))
    assert [(site.path, site.owner) for site in tlsc.plan(parts)] == [
        ("0.norm", None),
        ("0.gate", "0.gate"),
        ("1", "1"),
    ]
    tlsc.convert(parts[1], 24)
    with pytest.raises(ArgumentValueError, match=r"converted differently \(0, 1\)"):
        tlsc.plan(parts)
    whole = tlsc.convert(nn.Sequential(_net()), 16)
    with pytest.raises(ArgumentValueError, match="as a part of a larger model"):
        tlsc.plan(whole[0])


def test_a_plan_knows_what_was_reverted_or_replaced_since() -> None:
    model = tlsc.convert(_net(), BASE)
    tlsc.revert(model.get_submodule("gate"))
    assert [site.path for site in tlsc.plan(model).left] == ["gate"]
    model.norm = nn.InstanceNorm2d(3)
    assert [site.reason for site in tlsc.plan(model)] == ["reverted or replaced since"] * 2


def test_an_averaged_model_averages_the_weights_of_a_converted_one() -> None:
    model = tlsc.convert(_net(), BASE)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2
    averaged.update_parameters(model)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.1
    torch.testing.assert_close(_run(averaged), _run(expected), rtol=1e-4, atol=1e-5)


def test_inference_mode_around_everything() -> None:
    model = _net()
    with torch.inference_mode():
        tlsc.convert(model, BASE)
        torch.testing.assert_close(model(LARGE), _local())
    assert _run(model).requires_grad is False
    model(LARGE).sum().backward()


# ----------------------------------------------------------------------------------------------- missing packages


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package}: pip install 'tlsc\[onnx\]'") as raised:
        tlsc.export(_net(), tmp_path / "net.onnx")
    assert not isinstance(raised.value, (ModuleNotFoundError, ExportError))
    assert main(["export", "plain", str(tmp_path / "net.onnx")]) == 1
    assert capsys.readouterr().err.splitlines() == [f"tlsc: {raised.value}"]

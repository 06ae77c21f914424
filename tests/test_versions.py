"""What depends on PyTorch's version: a converted model compiled whole, exported, and written as ONNX.

``python -m benchmarks versions`` runs this file on the oldest PyTorch that is admitted, on 2.11 and on the newest.
It needs pytest and the extra ``onnx``, and nothing else of the tests'. In the usual run ``test_export.py`` asks
more, of one version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc

pytestmark = pytest.mark.slow

WINDOW = 16
# Larger than the window, smaller, and on either side of it.
SIZES = ((40, 56), (12, 11), (31, 9))


class _Network(nn.Module):
    """A norm, a gate that is a module on a grid, and a gate inside a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True), nn.GELU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid())
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x * self.gate(self.pool(x))
        return x * self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]


def _converted(stride: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return tlsc.convert(_Network().eval(), WINDOW, stride=stride)


@torch.no_grad()
def _assert_same(found: Callable[[Tensor], Tensor], model: nn.Module, batch: int) -> None:
    for size in SIZES:
        x = torch.rand(batch, 3, *size)
        torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)


def test_compiled_whole_with_operators_of_ours() -> None:
    """Three sizes, two graphs at most, with tlsc's operators in them and not what they compute."""
    from torch._dynamo import lookup_backend

    graphs: list[str] = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(str(module.graph))
        return lookup_backend("aot_eager")(module, inputs)

    model = _converted(3)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    try:
        _assert_same(compiled, model, 1)
    finally:
        torch._dynamo.reset()
    assert 1 <= len(graphs) <= 2
    assert all("tlsc.local_group_norm" in graph and "tlsc.free_" in graph for graph in graphs)


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(strict: bool) -> None:
    """One program for all sizes, which runs without tlsc."""
    model, free = _converted(), torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    program = torch.export.export(model, (torch.rand(2, 3, 40, 56),), dynamic_shapes=shapes, strict=strict)
    assert "tlsc" not in str(program.graph)
    _assert_same(program.module(), model, 2)
    _assert_same(program.module(), model, 3)


@pytest.mark.parametrize("opset", [None, 17])
def test_onnx(opset: int | None, tmp_path: Path) -> None:
    """Compared with ONNX Runtime at every size, which raises where they differ."""
    pytest.importorskip("onnxruntime")
    written = tlsc.export(_converted(), tmp_path / "model.onnx", sizes=[(2, *size) for size in SIZES], opset=opset)
    assert written.opset == opset or (opset is None and written.opset >= 18)
    assert len(written.errors) == len(SIZES)

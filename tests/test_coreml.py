"""coremltools takes FFDNet in both forms; followed operation by operation, they are right.

CoreML itself runs on Apple's machines only: ``mil.py`` says what each operation of the converted program does.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlsc.adapters import FFDNet

from .mil import evaluated

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _program(model: nn.Module, example: tuple[Tensor, ...], multiple: int | None = None) -> Any:
    """What coremltools makes of a network: for the example's size, or for every multiple on both axes."""
    coremltools = pytest.importorskip("coremltools", reason="coremltools is in the group 'coreml'")
    sizes = None
    if multiple is not None:
        rows, columns = (torch.export.Dim(name, min=2, max=1024 // multiple) for name in ("rows", "columns"))
        sizes = tuple({2: multiple * rows, 3: multiple * columns} for _ in example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, example, dynamic_shapes=sizes).run_decompositions({})
        return coremltools.convert(
            exported,
            convert_to="milinternal",
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=coremltools.precision.FLOAT32,
        )


def _same(program: Any, model: nn.Module, *args: Tensor) -> None:
    names = list(program.functions["main"].inputs)
    (found,) = evaluated(program, dict(zip(names, args, strict=True)))
    with torch.no_grad():
        expected = model(*args)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class OfEvenSize(nn.Module):
    """FFDNet with a map of the noise level, for images whose sides are even: nothing in it asks for a size."""

    def __init__(self, net: FFDNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        level = F.avg_pool2d(sigma, 2)
        maps = [level] * self.net.channels + [self.net.unshuffle(image)]
        return self.net.shuffle(self.net.model(torch.cat(maps, 1)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["shuffle", "convolution"])
@torch.no_grad()
def test_ffdnet(form: Literal["shuffle", "convolution"]) -> None:
    torch.manual_seed(0)
    net = FFDNet(width=8, depth=3, form=form).eval()
    example = torch.rand(1, 3, 24, 40), torch.rand(1)
    program = _program(net, example)
    kinds = Counter(op.op_type for op in program.functions["main"].operations)
    assert kinds["pixel_shuffle"] == kinds["pixel_unshuffle"] == (1 if form == "shuffle" else 0)
    assert kinds["conv_transpose"] == (0 if form == "shuffle" else 1)
    _same(program, net, *example)
    free = OfEvenSize(net).eval()
    program = _program(free, (torch.rand(1, 3, 24, 40), torch.rand(1, 1, 24, 40)), 2)
    for size in ((24, 40), (50, 18)):
        image, sigma = torch.rand(1, 3, *size), torch.rand(1, 1, *size)
        _same(program, free, image, sigma)
        torch.testing.assert_close(free(image, sigma), net(image, sigma))

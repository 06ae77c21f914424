"""coremltools takes FFDNet in both forms, and a converted U-Net; followed operation by operation, they are right.

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

import tlsc
from tlsc.adapters import FFDNet, UNet

from .mil import evaluated

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _coremltools() -> Any:
    """coremltools, taught to keep whole numbers whole where one bound is given to ``clamp``."""
    coremltools = pytest.importorskip("coremltools", reason="coremltools is in the group 'coreml'")
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.mil import types

    theirs = ops.clamp

    def clamp(context: Any, node: Any) -> None:
        x, *bounds = ops._get_inputs(context, node, expected=[1, 2, 3])
        if types.is_float(x.dtype):
            theirs(context, node)
            return
        for bound, op in zip(bounds, (Builder.maximum, Builder.minimum), strict=False):
            x = x if bound is None else op(x=x, y=bound)
        context.add(x, node.name)

    register_torch_op(torch_alias=["clip"], override=True)(clamp)
    return coremltools


def _program(model: nn.Module, example: tuple[Tensor, ...], multiple: int | None = None) -> Any:
    """What coremltools makes of a network: for the example's size, or for every multiple on both axes."""
    coremltools = _coremltools()
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


@torch.no_grad()
def test_a_converted_unet() -> None:
    torch.manual_seed(0)
    model = tlsc.convert(UNet(4, levels=2, squeeze_excitation=(0, 1)), 16, check=False).eval()
    program = _program(model, (torch.rand(1, 3, 24, 40),))
    _same(program, model, torch.rand(1, 3, 24, 40))

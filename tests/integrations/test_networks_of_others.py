"""Encoders of timm, networks of segmentation-models-pytorch, descriptors of spandrel, what accelerate prepared.

The oracle of each is the definition: on an image no larger than the window nothing changes (I1), and far pixels,
which reached the output as trained, no longer do (I4).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc

BASE = 32
ignored = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning"
)


def _last(out: Any) -> Tensor:
    return out[-1] if isinstance(out, (list, tuple)) else out  # type: ignore[no-any-return]


def _far(model: nn.Module, width: int) -> float:
    """Relative change at the left when the rightmost quarter of a wide image is replaced."""
    torch.manual_seed(1)
    one = torch.rand(1, 3, BASE, width, dtype=torch.float64)
    other = one.clone()
    other[..., -width // 4 :] = torch.rand(1, 3, BASE, width // 4, dtype=torch.float64)
    a, b = _last(model(one))[..., :1], _last(model(other))[..., :1]
    return float((a - b).abs().max() / a.abs().max())


def _lively(model: nn.Module) -> nn.Module:
    """In float64, with no parameter at zero, where several libraries start some."""
    model = model.double().eval()
    for module in model.modules():
        if type(module).__name__.startswith(("BatchNorm", "GlobalResponseNorm", "GroupNorm")):
            for p in module.parameters():
                nn.init.uniform_(p, 0.5, 1.0)
    return model


@torch.no_grad()
def _examine(model: nn.Module, sites: set[str], width: int, left: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    small = torch.rand(1, 3, BASE, BASE, dtype=torch.float64)
    before, far_before = model(small), _far(model, width)
    plan = tlsc.plan(tlsc.convert(model, BASE, check=False))
    assert {site.operation for site in plan.converted} == sites
    assert {site.reason for site in plan.left} == left
    torch.testing.assert_close(model(small), before)
    assert far_before > 1e-9
    assert _far(model, width) < 1e-12


@pytest.mark.slow
@ignored
@pytest.mark.parametrize(
    ("name", "sites", "stages"),
    [
        ("resnet18", None, 3),
        ("seresnet50", {"mean"}, 2),
        ("ecaresnet26t", {"mean"}, 2),
        ("convnextv2_atto", {"norm"}, 2),
    ],
)
def test_timm_encoders(name: str, sites: set[str] | None, stages: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is in the extra 'networks'")
    torch.manual_seed(0)
    options: dict[str, Any] = {"pretrained": False, "features_only": True, "out_indices": tuple(range(stages))}
    model = _lively(timm.create_model(name, **options))
    if sites is None:
        with pytest.raises(tlsc.NoSiteError, match="no layer that aggregates globally"):
            tlsc.convert(model, BASE)
        return
    _examine(model, sites, 640)


@pytest.mark.slow
@ignored
@pytest.mark.parametrize(
    ("encoder", "attention"),
    [("se_resnet50", None), ("resnet18", "scse")],
)
def test_segmentation_models(encoder: str, attention: str | None) -> None:
    """Each has layers that are there and never called: the encoder's below its depth, one of the decoder's."""
    smp = pytest.importorskip("segmentation_models_pytorch", reason="it is in the group 'integrations'")
    torch.manual_seed(0)
    options = {"encoder_depth": 3, "decoder_channels": (32, 16, 16), "decoder_attention_type": attention}
    model = _lively(smp.Unet(encoder, encoder_weights=None, **options))
    _examine(model, {"AdaptiveAvgPool2d"}, 640, {"not called on an input of base_size"})


def _nafnet(spandrel: Any) -> Any:
    from spandrel.architectures.NAFNet import NAFNet

    net = NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1])
    for name, p in net.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.ones_(p)
    return spandrel.ModelLoader().load_from_state_dict(net.state_dict()).eval()


def _picky(spandrel: Any) -> Any:
    """Takes multiples of 8 only, as its downsampling does not say what to do with a rest."""
    net = nn.Sequential(nn.PixelUnshuffle(8), nn.InstanceNorm2d(192, affine=True), nn.PixelShuffle(8))
    words: dict[str, Any] = {"scale": 1, "input_channels": 3, "output_channels": 3, "tags": []}
    words |= {"purpose": "Restoration", "supports_half": True, "supports_bfloat16": True, "architecture": None}
    sizes = spandrel.SizeRequirements(multiple_of=8)
    return spandrel.ImageModelDescriptor(net, net.state_dict(), size_requirements=sizes, **words).eval()


@ignored
@pytest.mark.parametrize(("made", "rounded"), [(_nafnet, 9), (_picky, 16)])
@torch.no_grad()
def test_a_descriptor_of_spandrel_is_converted_as_its_network_is(made: Callable[[Any], Any], rounded: int) -> None:
    """Also at a window that the network does not take: the descriptor says what it takes."""
    descriptor = made(pytest.importorskip("spandrel", reason="spandrel is in the extra 'networks'"))
    image, network = torch.rand(1, 3, 40, 48), copy.deepcopy(descriptor.model)
    trained = descriptor(image)
    assert tlsc.plan(descriptor, 9) == tlsc.plan(network, rounded)
    assert tlsc.convert(descriptor, 9) is descriptor
    assert tlsc.plan(descriptor) == tlsc.plan(tlsc.convert(network, rounded))
    expected = network(image).clamp(0, 1)
    torch.testing.assert_close(descriptor(image), expected)
    assert not torch.allclose(expected, trained)
    with tlsc.converted(descriptor, (16, 32)) as inside:
        assert inside is descriptor
        assert tlsc.plan(descriptor).base_size == (16, 32)
    torch.testing.assert_close(descriptor(image), expected)
    assert tlsc.revert(descriptor) is descriptor
    torch.testing.assert_close(descriptor(image), trained)


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.slow
@ignored
@pytest.mark.parametrize("precision", ["no", "bf16"])
@torch.no_grad()
def test_accelerate_prepares_before_or_after(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is in the group 'integrations'")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    image = torch.rand(1, 3, 40, 24)
    convert: Callable[[nn.Module], nn.Module] = lambda model: tlsc.convert(model, 16)  # noqa: E731
    expected = convert(_Gated())(image)
    try:
        first = accelerator.prepare(convert(_Gated()))
        torch.testing.assert_close(first(image), expected, rtol=0.02, atol=0.02)
        later = accelerator.prepare(_Gated())
        plan = tlsc.plan(convert(later))
        # With autocast accelerate replaces the forward of the outermost module, and what is in that stays global.
        assert [site.path for site in plan.left] == ([""] if precision == "bf16" else [])
        assert all("replaced on the instance" in str(site.reason) for site in plan.left)
        if precision == "no":
            torch.testing.assert_close(later(image), expected)
            torch.testing.assert_close(accelerator.unwrap_model(first)(image), expected)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)

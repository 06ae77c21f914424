"""After converting, an experiment says whether far pixels still reach the output, and never without reason.

What the plan does not see is made of ways that no rule can know: a fixed number of tokens however large the map,
half of it brought to the other half, code outside PyTorch behind an operator that says it works element by element.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc
from tlsc.errors import TLSCWarning

from .marks import slow
from .networks import Grouped, HalfNorm, Restorer, SequentialGate, UNet, with_random_weights

BASE = 12


class Tokens(nn.Module):
    """Three by three tokens, spread over the map."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.view(n, c, 3, h // 3, 3, w // 3)
        return (tokens - tokens.mean((2, 4), keepdim=True)).view_as(x)


class MixedTokens(nn.Module):
    """The same, mixed by a layer of its own, as in MAXIM."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.view(n, c, 3, h // 3, 3, w // 3).permute(0, 1, 3, 5, 2, 4).flatten(4)
        mixed = self.mix(tokens).unflatten(4, (3, 3)).permute(0, 1, 4, 2, 5, 3)
        return x + mixed.reshape(x.shape)


class Halves(nn.Module):
    """The halves change places."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x + torch.cat([right, left], -1)


class HalvesAdded(nn.Module):
    """The upper half is added to the lower one, and the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        pair = x.view(n, c, 2, h // 2, w)
        return x + pair.flip(2).view_as(x) if not h % 2 else x


class Mirrored(nn.Module):
    """Sampled on a mirrored grid."""

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=x.dtype, device=x.device)
        grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return x + F.grid_sample(x, grid, align_corners=False)


class Wrapped(nn.Module):
    """The map is continued round, by half of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + F.pad(x, (x.shape[-1] // 2, 0, 0, 0), mode="circular")[..., : x.shape[-1]]


class Strided(nn.Module):
    """The same memory, read from the middle on."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        half = x.contiguous().as_strided((n, c, h // 2, w), (c * h * w, h * w, w, 1), h // 2 * w)
        return x + torch.cat([half, x[:, :, : h - h // 2]], 2)


class Corner(nn.Module):
    """The corner of the map is its white point."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[:, :, :1, :1]


class Border(nn.Module):
    """Every row is compared with the last column."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x[..., -1:]


class Looked(nn.Module):
    """Positions on a lattice as wide as the map, looked up by number."""

    def forward(self, x: Tensor) -> Tensor:
        lattice = torch.arange(x.shape[-1], device=x.device)
        return x + x[..., (lattice + x.shape[-1] // 2) % x.shape[-1]]


def _far_mean(x: Tensor) -> Tensor:
    return x - x.mean((2, 3), keepdim=True)


class Hidden(nn.Module):
    """An operator of somebody's library, which says that it works element by element."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.tlsc_tests_far.centred(x)  # type: ignore[no-any-return]


_LIBRARY = torch.library.Library("tlsc_tests_far", "DEF")
_LIBRARY.define("centred(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,))
_LIBRARY.impl("centred", _far_mean, "CPU")
_LIBRARY.impl("centred", torch.empty_like, "Meta")


class Strips(nn.Module):
    """Four strips of the map, one behind the other, and each with the next but one."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x + x.view(n, c, h, 4, w // 4).roll(2, 3).view_as(x)


class Attended(nn.Module):
    """Quarters of the map attend to each other, position by position."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 3, 5, 2, 4, 1).reshape(-1, 4, c)
        mixed = (parts @ parts.transpose(1, 2)).softmax(-1) @ parts
        return x + mixed.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 3, 1, 4, 2).reshape(x.shape)


class Shares(nn.Module):
    """How much of the map lies above some thresholds: recorded in one mode of gradients, it must run in it."""

    def forward(self, x: Tensor) -> Tensor:
        above = x[..., None] > torch.linspace(-1, 1, 4, dtype=x.dtype)
        return x * above.to(x.dtype).mean((2, 3)).mean(-1)[..., None, None]


class Encoded(nn.Module):
    """Attention among all positions, by PyTorch's own layer, which returns None beside its result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.layer(x.flatten(2).mT)
        return encoded.mT.reshape(x.shape)


FAR: dict[str, Callable[[], nn.Module]] = {
    one.__name__: one
    for one in (
        *(Tokens, MixedTokens, Halves, HalvesAdded, Mirrored, Wrapped, Strided, Corner, Border, Looked),
        *(Hidden, Strips, Attended),
    )
}
LOCAL: dict[str, Callable[[], nn.Module]] = {
    "norm and gate": lambda: Restorer(HalfNorm(8), SequentialGate(8)),
    "norms and gates": lambda: Restorer(*[HalfNorm(8), SequentialGate(8), HalfNorm(8), SequentialGate(8)]),
    "group norm": lambda: Restorer(Grouped(8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
    "a norm of a flat part": lambda: Restorer(nn.ReLU(), nn.Threshold(0.5, 0.0), nn.InstanceNorm2d(8, eps=1e-12)),
    "a large kernel": lambda: Restorer(SequentialGate(8), nn.Conv2d(8, 8, 31, padding=15, groups=8)),
    "shares": lambda: Restorer(Shares()),
    "U-Net": lambda: UNet(*[SequentialGate(8) for _ in range(4)]),
}


@pytest.mark.parametrize("name", FAR)
def test_what_is_found(name: str) -> None:
    model = with_random_weights(Restorer(nn.InstanceNorm2d(8), nn.Sequential(nn.ReLU(), FAR[name]()))).eval()
    assert not tlsc.plan(model, BASE).left, "it can be told without an experiment, which is better"
    with pytest.warns(TLSCWarning, match=f"through {re.escape('body.1.1')}"):
        tlsc.convert(model, BASE)


@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.float64)])
@pytest.mark.parametrize("name", LOCAL)
def test_no_false_alarm(name: str, dtype: torch.dtype) -> None:
    model = with_random_weights(LOCAL[name]()).eval().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tlsc.convert(model, BASE, check=True)
    assert not tlsc.plan(model).left


class Pooled(nn.Module):
    """The layers behind the pool need one value per image, and the plan says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.flatten(2).median(2).values[..., None, None]


def test_what_the_plan_says_is_said_again_if_asked_for() -> None:
    model = with_random_weights(Restorer(nn.InstanceNorm2d(8), Pooled())).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tlsc.convert(model, BASE)
        tlsc.convert(model, BASE, exclude="body.1", check=True)
    with pytest.warns(TLSCWarning, match=r"through body\.1 \(Pooled\): its median"):
        tlsc.convert(model, BASE, check=True)


def test_a_layer_of_pytorch_is_named() -> None:
    model = with_random_weights(Restorer(nn.InstanceNorm2d(8), Encoded())).eval()
    with pytest.warns(TLSCWarning, match=r"through body\.1\.layer\.self_attn \(MultiheadAttention"):
        tlsc.convert(model, BASE, check=True)


def test_what_cannot_be_tried_is_said_if_asked_for() -> None:
    class OneSize(Restorer):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > BASE:
                raise ValueError("too large")
            return super().forward(x)

    model = OneSize(nn.InstanceNorm2d(8))
    with pytest.warns(TLSCWarning, match="could not be tried .*too large"):
        tlsc.convert(model, BASE, check=True)
    tlsc.convert(model, BASE)


def test_it_is_left_out_where_a_forward_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_random_weights(Restorer(nn.InstanceNorm2d(8), Corner())).eval()
    monkeypatch.setattr("tlsc._influence.check.CHEAP", 50_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tlsc.convert(model, BASE)
    monkeypatch.setattr("tlsc._influence.check.CHEAP", 100_000)
    with warnings.catch_warnings(), monkeypatch.context() as large:
        warnings.simplefilter("error")
        tlsc.convert(model, BASE, check=False)
        large.setattr("tlsc._influence.check.LARGE", BASE * BASE - 1)
        tlsc.convert(model, BASE)
    with pytest.warns(TLSCWarning, match="through body.1"):
        tlsc.convert(model, BASE)


def test_the_model_is_as_it_was() -> None:
    """Weights, buffers, random numbers and what the model keeps: all of it as without the experiment."""

    class Counting(Restorer):
        count = 0

        def __init__(self) -> None:
            super().__init__(nn.InstanceNorm2d(8), nn.Dropout(0.5))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.seen += 1
            return super().forward(x)

    model = Counting().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    tlsc.convert(model, BASE, check=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.count == 0
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

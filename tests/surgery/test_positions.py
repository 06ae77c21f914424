"""Everything that takes positions together is in the plan, and nothing that does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc

BASE = 16


class Body(nn.Module):
    """A forward of eight channels between two convolutions, as a function of the module and its map."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def operations(function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> list[str]:
    body = Body(function, **parts)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body, nn.Conv2d(8, 3, 3, padding=1)).eval()
    return [site.operation for site in tlsc.plan(model, BASE)]


def rows(x: Tensor) -> Tensor:
    """Every row as a sequence: (N·H, W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 1)


def map_of(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


def windows(x: Tensor, side: int = 4) -> Tensor:
    """The map in windows: (N·windows, side², C)."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // side, side, w // side, side).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, side * side, c)


def unwindowed(y: Tensor, x: Tensor, side: int = 4) -> Tensor:
    n, c, h, w = x.shape
    y = y.view(n, h // side, w // side, side, side, c).permute(0, 5, 1, 3, 2, 4)
    return y.reshape(n, c, h, w)


def by_cells(self: Any, x: Tensor) -> Tensor:
    state, out = x.new_zeros(x.shape[0] * x.shape[2], 8), []
    for column in x.permute(3, 0, 2, 1).flatten(1, 2):
        state = self.cell(column, state)
        out.append(state)
    return torch.stack(out).view(x.shape[3], x.shape[0], x.shape[2], 8).permute(1, 3, 2, 0)


def traced(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, torch.rand(1, 8, BASE, BASE))  # type: ignore[no-any-return, no-untyped-call]


class Ranks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.flatten(x, 2).argsort(-1).view_as(x)


GLOBAL: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Callable[[], nn.Module]], str]] = {
    "LSTM along rows": (
        lambda s, x: map_of(s.rnn(rows(x))[0], x),
        {"rnn": lambda: nn.LSTM(8, 8, batch_first=True)},
        "LSTM",
    ),
    "GRU along rows, sequence first": (
        lambda s, x: map_of(s.rnn(rows(x).transpose(0, 1))[0].transpose(0, 1), x),
        {"rnn": lambda: nn.GRU(8, 8)},
        "GRU",
    ),
    "a cell in a loop over columns": (by_cells, {"cell": lambda: nn.GRUCell(8, 8)}, "recurrence"),
    "attention along rows": (
        lambda s, x: map_of(s.attend(rows(x), rows(x), rows(x), need_weights=False)[0], x),
        {"attend": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
        "MultiheadAttention",
    ),
    "an encoder layer over all positions": (
        lambda s, x: s.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x),
        {"layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)},
        "MultiheadAttention",
    ),
    "attention of channels": (
        lambda s, x: F.scaled_dot_product_attention(x.flatten(2), x.flatten(2), x.flatten(2)).view_as(x),
        {},
        "attention",
    ),
    "pool to a grid": (lambda s, x: x + F.interpolate(F.adaptive_avg_pool2d(x, 2), x.shape[2:]), {}, "to 2×2"),
    "thumbnail": (
        lambda s, x: x + F.interpolate(F.interpolate(x, (4, 4), mode="bilinear"), x.shape[2:]),
        {},
        "interpolate to 4×4",
    ),
    "pool as large as the map": (lambda s, x: x * F.avg_pool2d(x, x.shape[2:]), {}, "mean"),
    "sorted": (lambda s, x: x.flatten(2).sort(-1).values.view_as(x), {}, "sort"),
    "correlation with the map": (
        lambda s, x: x * F.conv2d(x[:1], x[:1].transpose(0, 1).flip(0)[:1].expand(8, 8, -1, -1)).mean(),
        {},
        "convolution",
    ),
    "after pixel-unshuffle": (
        lambda s, x: F.pixel_shuffle(
            F.pixel_unshuffle(x, 2) - F.pixel_unshuffle(x, 2).mean((2, 3), keepdim=True), 2
        ),
        {},
        "mean",
    ),
    "count": (lambda s, x: x * (x > 0).sum((2, 3), keepdim=True), {}, "sum"),
    "count of non-zeros": (lambda s, x: x * (x > 0).flatten(2).count_nonzero(-1)[..., None, None], {}, "count"),
    "whether any": (lambda s, x: x * (x > 3).flatten(2).any(-1)[..., None, None], {}, "any"),
    "running count": (lambda s, x: x * (x > 0).cumsum(-1), {}, "cumsum"),
    "sum of integers": (lambda s, x: x * (9 * x).long().sum((2, 3), keepdim=True), {}, "sum of integers"),
    "places of non-zeros": (lambda s, x: x * len((x > 0).nonzero()), {}, "nonzero"),
    "NumPy": (lambda s, x: x * torch.from_numpy(x.detach().numpy().mean((2, 3), keepdims=True)), {}, "numpy"),
    "a list": (lambda s, x: x * sum(x.flatten().tolist()), {}, "tolist"),
    "rolled by half": (lambda s, x: x + x.roll(x.shape[3] // 2, 3), {}, "roll"),
    "Fourier shift": (lambda s, x: x + torch.fft.fftshift(x, dim=(2, 3)), {}, "roll"),
    "mirrored": (lambda s, x: x + x.flip(-1), {}, "flip"),
    "sampled at a few places": (
        lambda s, x: x * F.grid_sample(x, torch.zeros(1, 2, 2, 2), align_corners=False).mean((2, 3), keepdim=True),
        {},
        "grid_sample",
    ),
    "added up at places": (
        lambda s, x: (
            x + x.new_zeros(8).index_put((torch.arange(x.numel()) % 8,), x.flatten(), accumulate=True).sum()
        ),
        {},
        "index_put",
    ),
    "traced, by its operations": (lambda s, x: s.part(x), {"part": lambda: traced(Ranks())}, "Script"),
    "two statistics, one without a form": (
        lambda s, x: x * x.cumsum(-1) + x.mean((2, 3), keepdim=True),
        {},
        "mean",
    ),
}


@pytest.mark.parametrize("case", GLOBAL)
def test_what_takes_positions_together_is_in_the_plan(case: str) -> None:
    function, parts, shown = GLOBAL[case]
    found = operations(function, **{name: part() for name, part in parts.items()})
    assert any(shown in operation for operation in found), found


LOCAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "attention in windows": lambda s, x: unwindowed(F.scaled_dot_product_attention(*[windows(x)] * 3), x),
    "softmax in windows": lambda s, x: unwindowed(windows(x).softmax(1) * windows(x).mean(1, keepdim=True), x),
    "channels": lambda s, x: x * x.mean(1, keepdim=True) + F.normalize(x, dim=1),
    "turned round and back": lambda s, x: x.flip(-1).relu().flip(-1),
    "a mask of new zeros": lambda s, x: x * x.new_zeros(x.shape).sum(),
    "whole numbers at each position": lambda s, x: x * (9 * x).long() + (x > 0) + x.argmax(1, keepdim=True),
    "shuffles": lambda s, x: F.pixel_shuffle(F.max_pool2d(F.pixel_unshuffle(x, 2), 3, 1, 1), 2).roll(1, -1),
    "a pool that keeps the ratio": lambda s, x: (
        x + F.interpolate(F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)), x.shape[2:])
    ),
    "a mean of constants": lambda s, x: x * torch.linspace(0, 1, x.shape[3], dtype=x.dtype).mean(),
    "tiles in a loop": lambda s, x: torch.cat([t.relu() for t in x.split(8, 3)], 3),
}


@pytest.mark.parametrize("case", LOCAL)
def test_what_looks_at_a_neighbourhood_is_not(case: str) -> None:
    assert operations(LOCAL[case]) == []


@pytest.mark.parametrize("rank", [1, 3])
def test_pools_of_other_ranks(rank: int) -> None:
    conv, pool = getattr(nn, f"Conv{rank}d"), getattr(nn, f"AdaptiveAvgPool{rank}d")
    model = nn.Sequential(conv(1, 4, 1), Body(lambda s, x: x * s.pool(x), pool=pool(1))).eval()
    example = (lambda h, w: torch.rand(1, 1, h * w)) if rank == 1 else (lambda h, w: torch.rand(1, 1, 4, h, w))
    (site,) = tlsc.plan(model, BASE, example_input=example)
    assert (site.path, site.operation, site.action) == ("1.pool", pool.__name__, "left global")
    assert "tlsc.register" in site.reason


@torch.library.custom_op("tlsc_test::strange", mutates_args=())
def strange(x: Tensor) -> Tensor:
    return x.flip(-1).clone()


@strange.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operation_without_a_rule_is_reported() -> None:
    assert operations(lambda s, x: x + strange(x)) == ["tlsc_test::strange"]

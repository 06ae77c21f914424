"""A denoiser with attention over all positions, converted: each position attends to its own window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tlsc

from .networks import image, with_random_weights
from .oracles import reference_at_every_position

WINDOW = (8, 10)


class NonLocalBlock(nn.Module):
    """Equations (2), (4) and (6) of Wang, Girshick, Gupta, He, "Non-local neural networks", CVPR 2018."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        self.W = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = self.g(x).flatten(2).transpose(1, 2)
        scores = self.theta(x).flatten(2).transpose(1, 2) @ self.phi(x).flatten(2)
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.W(mixed)  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """Three convolutions that predict the noise, and a non-local block before the last."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.block = NonLocalBlock(width)
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.head(x).relu()).relu()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return x - self.tail(self.block(self.features(x)))  # type: ignore[no-any-return]


@pytest.fixture
def denoiser() -> Denoiser:
    net = with_random_weights(Denoiser().double()).eval()
    assert isinstance(net, Denoiser)
    return net


@torch.no_grad()
def test_up_to_the_window_nothing_changes(denoiser: Denoiser) -> None:
    x = image(*WINDOW)
    before = denoiser(x)
    assert [site.path for site in tlsc.plan(denoiser, WINDOW).sites] == ["block"]
    assert (tlsc.convert(denoiser, WINDOW)(x) - before).abs().max() <= 1e-12


@torch.no_grad()
def test_beyond_it_is_the_block_on_each_position_s_window(denoiser: Denoiser) -> None:
    x = image(13, 17)
    before, block = denoiser(x), denoiser.block

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        return block(crop)[..., i, j]  # type: ignore[no-any-return]

    mixed = reference_at_every_position(of_window, denoiser.features(x), WINDOW)
    out = tlsc.convert(denoiser, WINDOW)(x)
    assert (out - (x - denoiser.tail(mixed))).abs().max() <= 1e-9
    assert (out - before).abs().max() >= 1e-3
    assert tlsc.revert(denoiser).block is block
    assert torch.equal(denoiser(x), before)


def test_influence_ends(denoiser: Denoiser) -> None:
    """At half a window and the convolutions' three pixels."""

    def reach() -> tuple[int, int]:
        x = image(24, 26).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser(x)[0, :, 12, 13].sum(), x)
        rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
        return int((rows - 12).abs().max()), int((columns - 13).abs().max())

    assert reach() == (12, 13)
    tlsc.convert(denoiser, WINDOW)
    assert reach() == (4 + 3, 5 + 3)

"""Non-local means at work: noise, the strength that fits it, and NLMNet as trained and converted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tlsc
from tlsc.adapters.nlm import nonlocal_means
from tlsc.adapters.nlm_net import NLMNet
from tlsc.errors import ArgumentValueError
from tlsc.eval.data.degradations import smooth_field
from tlsc.eval.images import photographs, read_picture
from tlsc.eval.judge.metrics import psnr

__all__ = ["Comparison", "Step", "compare", "fit", "image_named", "noisy", "varying_noise"]

FIELD_SCALE = 80.0  # pixels: the noise level varies within every photograph, slowly for the network's window


def noisy(clean: Tensor, sigma: float | Tensor, seed: int) -> Tensor:
    """``clean`` (N, C, H, W) plus white noise of standard deviation ``sigma``, clipped to [0, 1].

    Example:
        >>> noisy(torch.full((1, 1, 100, 100), 0.5), 0.1, seed=0).std().round(decimals=2)
        tensor(0.1000)
    """
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return (clean + sigma * noise).clamp(0, 1)


def image_named(name: str) -> Tensor:
    """An image file, or a photograph that comes with scikit-image, as (1, C, H, W) in [0, 1]."""
    if not Path(name).is_file():
        names = photographs.TEST_PHOTOGRAPHS + photographs.TRAINING_PHOTOGRAPHS
        if name in names:
            return _as_batch(photographs.load_photograph(name))
        raise FileNotFoundError(f"no file {name!r}, nor a photograph of that name; there are {', '.join(names)}")
    pixels = read_picture(Path(name)).pixels
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ArgumentValueError(f"{name} must have values in [0, 1], got {pixels.min():g} to {pixels.max():g}")
    return _as_batch(pixels)


def _as_batch(pixels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0).contiguous()


@dataclass(frozen=True)
class Step:
    """One step of :func:`fit`.

    Attributes:
        number: from 0.
        psnr: in dB, of values in [0, 1].
        h: strength that gave it.
    """

    number: int
    psnr: float
    h: float


def fit(
    image: Tensor,
    clean: Tensor,
    h0: float,
    steps: int,
    search_window: int = 11,
    patch: int = 5,
    border: Literal["circular", "reflect"] = "circular",
    distance: Literal["luma", "color"] = "luma",
    weights: Literal["exponential", "gaussian"] = "exponential",
) -> Iterator[Step]:
    """Learn the strength that brings ``image`` closest to ``clean``; yields every step, the start among them.

    Descends along the gradient of the mean squared error with respect to log h, whatever the unit of h: its sign
    tells the direction, and the step grows by 1.2 while that stays and halves when it turns (Rprop: Riedmiller,
    Braun, "A direct adaptive method for faster backpropagation learning", ICNN 1993).

    Args:
        image: noisy, (N, 3, H, W) or (N, 1, H, W).
        clean: the same without noise.
        h0: strength to start from, positive.
        steps: number of steps.
        search_window: of the non-local means, in pixels; odd.
        patch: of the non-local means, in pixels; odd.
        border: of the non-local means.
        distance: of the non-local means.
        weights: of the non-local means.

    Raises:
        ArgumentValueError: the error has no gradient at ``h0``, because every weight but a pixel's own is 0.

    Example:
        >>> clean = torch.full((1, 1, 24, 24), 0.5)
        >>> first, *_, last = fit(noisy(clean, 0.05, seed=0), clean, h0=0.05, steps=10)
        >>> last.psnr > first.psnr + 5, last.h > first.h
        (True, True)
    """
    log_h = torch.tensor(math.log(h0), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Rprop([log_h], lr=0.1, step_sizes=(1e-5, 0.5))
    for number in range(steps + 1):
        h = log_h.exp()
        restored = nonlocal_means(image, h, search_window, patch, border, distance=distance, weights=weights)
        yield Step(number, psnr(restored.detach(), clean), float(h.detach()))
        if number == steps:
            return
        optimizer.zero_grad()
        torch.autograd.backward((restored - clean).square().mean())
        if not log_h.grad and number == 0:
            raise ArgumentValueError(
                f"h0 = {h0:g} is so far from the optimum that the error has no gradient; start from a larger one"
            )
        optimizer.step()


@dataclass(frozen=True)
class Comparison:
    """An image denoised by NLMNet as trained and converted; images (1, 3, H, W).

    Attributes:
        image: what was denoised.
        original: with one strength.
        converted: with a map of strengths.
        one: that one strength.
        strengths: that map, (1, 1, H, W).
    """

    image: Tensor
    original: Tensor
    converted: Tensor
    one: float
    strengths: Tensor


@torch.no_grad()
def compare(image: Tensor, base_size: int | tuple[int, int] | None = None) -> Comparison:
    """Denoise an image with NLMNet, as trained and converted.

    Args:
        image: (1, 3, H, W), or (1, 1, H, W), which is repeated to RGB.
        base_size: window in pixels; None for ``NLMNet.base_size``.

    Example:
        >>> result = compare(torch.rand(1, 3, 80, 100))
        >>> result.strengths.shape
        torch.Size([1, 1, 80, 100])
    """
    image = image.expand(-1, 3, -1, -1)
    net = NLMNet.pretrained()
    original, one = net(image), float(net.strength(image))
    with tlsc.converted(net, base_size or NLMNet.base_size):
        strengths = net.strength(image).expand(-1, 1, *image.shape[2:])
        return Comparison(image, original, net(image), one, strengths)


def varying_noise(clean: Tensor, low: float, high: float, seed: int) -> Tensor:
    """Standard deviations for every pixel, (H, W): a smooth random field from ``low`` to ``high``."""
    field = smooth_field(clean.shape[2], clean.shape[3], np.random.default_rng(seed), FIELD_SCALE)
    return low + (high - low) * torch.from_numpy(field)[..., 0]

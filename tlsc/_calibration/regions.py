"""The images that a calibration is given: regions of one size, and random crops inside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._arguments import FLOATING, shown
from .._plan import Plan
from ..errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Spot", "alike", "checked_seed", "images_of", "like", "regions_of", "step_of"]

# Pixels of images that are looked at: this many, or this many training crops.
PIXELS, CROPS = 2**21, 64
CROPS_OF_REGION = 4  # crops of a region have at most this many times its pixels: more would only overlap more
UNIT = 32  # images are cut to a multiple of this, where the crop is one, for models that take nothing else

Spot = tuple[int, int, int]
"""Which region, top and left of the crop in it."""


def images_of(images: Any, model: nn.Module) -> list[Tensor]:
    """(C, H, W) each, as the model takes them."""
    listed = [images] if isinstance(images, Tensor) else images
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise ArgumentTypeError(
            f"images must be a tensor (C, H, W) or (N, C, H, W), or a list of them, got {type(images).__name__}"
        )
    found: list[Tensor] = []
    for image in listed:
        if not isinstance(image, Tensor) or image.dtype not in FLOATING:
            shown = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ArgumentTypeError(f"images must be floating tensors, as the model takes them, got {shown}")
        if image.dim() not in (3, 4) or 0 in image.shape:
            raise ArgumentValueError(f"images must have shape (C, H, W) or (N, C, H, W), got {tuple(image.shape)}")
        if not bool(torch.isfinite(image).all()):
            raise ArgumentValueError("images must be finite: one holds NaN or Inf")
        found += image.unbind() if image.dim() == 4 else [image]
    if not found:
        raise ArgumentValueError("images is empty: give at least one, the image to be restored will do")
    if len({len(image) for image in found}) > 1:
        raise ArgumentValueError(f"images differ in their channels: {sorted({len(image) for image in found})}")
    own = like(model)
    return [image.detach().to(own.device, own.dtype) for image in found]


def like(model: nn.Module) -> Tensor:
    """A tensor on the model's device, of its floating point type."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentValueError(f"seed must be an int ≥ 0, got {shown(seed)}")
    return seed


def step_of(plan: Plan) -> int:
    """In how many pixels of the input a pixel of the coarsest site's map counts."""
    ratios = [
        math.ceil(n / k)
        for site in plan.converted
        if site.feature_size is not None
        for n, k in zip(plan.base_size, site.feature_size, strict=True)
    ]
    return max(ratios, default=1)


def regions_of(
    images: list[Tensor], crop: tuple[int, int], step: int, count: int, rng: np.random.Generator, multiple: int = 1
) -> tuple[Tensor, list[Spot], float]:
    """Regions of one size, a batch; crops inside them, off their borders; for how many crops these count.

    Their sides are multiples of ``multiple``, and of 32 where crops' are, if images have room for that.
    """
    usable = [
        image for image in images if all(n >= k + 2 * step for n, k in zip(image.shape[1:], crop, strict=True))
    ]
    if not usable:
        return torch.empty(0), [], 0.0
    area = max(PIXELS, CROPS * crop[0] * crop[1])
    longest = max(max(crop) + 2 * step, math.isqrt(area // len(usable)))
    sizes = []
    for axis, k in enumerate(crop):
        n = min(min(image.shape[1 + axis] for image in usable), longest)
        unit = math.lcm(step, math.gcd(UNIT, k), multiple)
        rounded = n // unit * unit
        sizes.append(rounded if rounded >= k + 2 * step else n)
    most = max(1, CROPS_OF_REGION * math.prod(sizes) // math.prod(crop))
    regions, spots, independent = [], [], 0.0
    for image in usable:
        top, left = (int(rng.integers(n - size + 1)) for n, size in zip(image.shape[1:], sizes, strict=True))
        regions.append(image[:, top : top + sizes[0], left : left + sizes[1]])
        # A crop's ring must not meet the region's: half a crop in between, where there is room.
        axes = []
        for n, k in zip(sizes, crop, strict=True):
            margin = max(step, min((n - k) // 4, k // 2) // step * step)
            axes.append(range(margin, n - k - margin + 1, step) or range(step, n - k - step + 1, step))
        places = [(i, j) for i in axes[0] for j in axes[1]]
        number = min(count, len(places), most)
        chosen = sorted(rng.choice(len(places), number, replace=False).tolist())
        spots += [(len(regions) - 1, *places[i]) for i in chosen]
        room = math.prod((axis[-1] - axis[0]) / k + 1 for axis, k in zip(axes, crop, strict=True))
        independent += min(len(chosen), room)
    return torch.stack(regions), spots, independent


def alike(regions: Tensor, spots: list[Spot], crop: tuple[int, int]) -> bool:
    """Whether crops do not differ, so that all of them together say no more than one."""
    parts = torch.stack([regions[n, :, i : i + crop[0], j : j + crop[1]].float() for n, i, j in spots])
    moments = torch.stack([parts.mean((2, 3)), parts.std((2, 3))])
    return bool((moments.std(1, correction=0) <= 1e-4 * parts.abs().mean()).all())

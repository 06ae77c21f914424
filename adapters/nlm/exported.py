"""Non-local means in a graph that is saved: PyTorch's own operations, at every size, of those that ONNX knows."""

from __future__ import annotations

import torch
from torch import Tensor

from tlsc.adapters.nlm import geometry

__all__ = ["exported"]


def exported(image: Tensor, guide: Tensor, h: Tensor, window: int, patch: int, power: int, floor: float) -> Tensor:
    """The mean (N, C, H, W) before clamping, by operations that ONNX knows: all shifts of a row at a time.

    Of (N, dx, C, H, W) everything; a handful of nodes for each of ``window`` rows, sizes nowhere but in slices.
    """
    radius, half = window // 2, patch // 2
    margin = radius + half
    rate = geometry.rate(h, power).unsqueeze(1)
    center, center_guide = geometry.inner(image, margin).unsqueeze(1), geometry.inner(guide, radius).unsqueeze(1)
    columns = range(window)
    images = torch.stack([geometry.part(image, half + dx, margin + radius - dx, -1) for dx in columns], 1)
    guides = torch.stack([geometry.part(guide, dx, 2 * radius - dx, -1) for dx in columns], 1)
    total, mean = torch.zeros_like(guide[:, 0, :1, :1]), torch.zeros_like(image[:, :, :1, :1])
    for dy in columns:
        squared = geometry.over_channels(
            (geometry.part(guides, dy, 2 * radius - dy, -2) - center_guide).square(), 2
        )
        if patch > 1:
            # PyTorch's exporter drops a divisor_override without a word.
            squared = torch.nn.functional.avg_pool2d(squared, patch, 1) * patch**2
        if floor:
            squared = (squared - floor).relu()
        if power == 1:
            zero = squared == 0
            squared = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
        weight = (-squared * rate).exp()
        step = geometry.part(images, half + dy, margin + radius - dy, -2) - center
        mean = mean + (weight.unsqueeze(2) * step).sum(1)
        total = total + weight.sum(1)
    return center.squeeze(1) + mean / total.unsqueeze(1)

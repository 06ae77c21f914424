"""Images and their surroundings: continued by a margin and cut back; the guide; the rate of the weights.

An image "extended" by ``search_window // 2 + patch // 2`` pixels on each side holds every patch that is compared.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "LUMA",
    "ZERO_STRENGTH",
    "Border",
    "Distance",
    "extend",
    "extended_rate",
    "guide",
    "inner",
    "over_channels",
    "pad",
    "part",
    "rate",
]

Border = Literal["circular", "reflect"]
Distance = Literal["luma", "color"]

LUMA = (0.299, 0.587, 0.114)
# Down to here 1/(h · distance) is finite in float32. No image resolves differences of 1e-12.
ZERO_STRENGTH = 1e-12


def extend(x: Tensor, margin: int, border: Border) -> Tensor:
    """``x`` continued by ``margin`` pixels on each side, also where it is smaller than that."""
    for dim in (2, 3):
        size = x.shape[dim]
        index = torch.arange(-margin, size + margin, device=x.device)
        # A tensor, and no branch on the size, so that graphs keep it open.
        period = torch.arange(size, size + 1, device=x.device)
        if border == "reflect":
            period = (2 * (period - 1)).clamp_min(1)
        index = index % period
        if border == "reflect":
            index = torch.minimum(index, period - index)
        x = x.index_select(dim, index)
    return x


def guide(x: Tensor, distance: Distance) -> Tensor:
    """What patches are compared in: (N, 1, H, W), or all channels."""
    if x.shape[1] == 1 or distance == "color":
        return x.clone()
    r, g, b = x.unbind(1)
    return (r * LUMA[0] + g * LUMA[1] + b * LUMA[2]).unsqueeze(1)


def part(x: Tensor, first: int, after: int, dim: int) -> Tensor:
    """``x`` without its ``first`` and its last ``after`` positions on one axis."""
    end = -after if after else None
    return x[..., first:end] if dim == -1 else x[..., first:end, :]


def inner(x: Tensor, margin: int) -> Tensor:
    return part(part(x, margin, margin, -1), margin, margin, -2)


def pad(x: Tensor, margin: int) -> Tensor:
    return torch.nn.functional.pad(x, (margin,) * 4).contiguous()


def rate(h: Tensor, power: int) -> Tensor:
    """1/h^power; the largest number for the limit of h → 0."""
    return torch.where(h <= ZERO_STRENGTH, torch.finfo(h.dtype).max, (1 / h) ** power)


def extended_rate(h: Tensor, power: int, margin: int) -> Tensor:
    """As far as it is a map, as large as the extended image."""
    rates = rate(h, power)
    return rates.contiguous() if h.shape[1:] == (1, 1) else pad(rates, margin)


def over_channels(x: Tensor, dim: int = 1) -> Tensor:
    return x.select(dim, 0) if x.shape[dim] == 1 else x.sum(dim)

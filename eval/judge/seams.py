"""How far tiles disagree where they meet: an indicator that needs no ground truth.

After Buglakova et al., ICCV 2025, who call it tile mismatch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from tlsc.errors import ArgumentValueError

__all__ = ["tile_mismatch"]


def tile_mismatch(model: Callable[[Tensor], Tensor], image: Tensor, size: int, overlap: int) -> float:
    """Mean distance of neighbouring tiles' results where both have one, along the middle row of an image's tiles.

    Args:
        model: maps (1, C, H, W) to (1, C, s·H, s·W) with a fixed integer s.
        image: (1, C, H, W), at least ``size`` high.
        size: side of a tile in pixels.
        overlap: pixels that neighbours share, at least 1 and less than ``size``.

    Returns:
        The mean of |left − right|, in the units of the result; 0 where a tile is as wide as the image.

    Raises:
        ArgumentValueError: the overlap cannot be used, or the image is lower than a tile.

    Example:
        >>> ramp = torch.arange(12.0).expand(1, 1, 8, 12)
        >>> tile_mismatch(lambda tile: tile - tile.mean(), ramp, size=8, overlap=4)  # each takes its own mean off
        4.0
        >>> tile_mismatch(lambda tile: 2 * tile, ramp, size=8, overlap=4)
        0.0
    """
    height, width = image.shape[2:]
    if not 0 < overlap < size:
        raise ArgumentValueError(f"overlap must be at least 1 and less than the tiles' size {size}, got {overlap}")
    if height < size:
        raise ArgumentValueError(f"the image is {height} pixels high, lower than a tile of {size}")
    top = (height - size) // 2
    lefts = range(0, max(width - size, 0) + 1, size - overlap)
    with torch.no_grad():
        tiles = [model(image[..., top : top + size, left : left + size]) for left in lefts]
    shared = overlap * tiles[0].shape[-1] // min(size, width)
    apart = [(a[..., -shared:] - b[..., :shared]).abs().mean() for a, b in pairwise(tiles)]
    return float(torch.stack(apart).mean()) if apart else 0.0

"""An image that does not fit in memory as a whole: overlapping tiles with blended seams, at any scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["in_tiles"]


def in_tiles(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    size: int | None = None,
    overlap: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run ``model`` on an image, whole or tile by tile, so that only a tile's features have to fit in memory.

    Tiles are squares, or as long as the image where that is shorter. The last of a row or column is moved to stay
    inside the image. Where tiles overlap their results are blended with weights that rise linearly from the tile's
    edge over ``overlap`` pixels; with ``overlap=0`` the later tile wins.

    Args:
        model: maps (1, C, H, W) to (1, C', s · H, s · W) for some whole number s, in evaluation mode.
        image: (1, C, H, W).
        size: side of a tile in pixels; None for the whole image at once.
        overlap: pixels that neighbours share, less than ``size``.
        progress: is called with the number of tiles done and of all.

    Returns:
        (1, C', s · H, s · W).

    Example:
        >>> image = torch.rand(1, 3, 70, 100)
        >>> in_tiles(lambda tile: tile, image, size=32, overlap=8).allclose(image)
        True
    """
    height, width = image.shape[2:]
    if size is None or size >= max(height, width):
        return model(image)
    sides = min(size, height), min(size, width)
    places = [
        (top, left) for top in _starts(height, sides[0], overlap) for left in _starts(width, sides[1], overlap)
    ]
    blend = None
    for done, (top, left) in enumerate(places, start=1):
        result = model(image[..., top : top + sides[0], left : left + sides[1]])
        blend = blend or _Blend((height, width), sides, overlap, result)
        blend.add((top, left), result)
        if progress is not None:
            progress(done, len(places))
    assert blend is not None
    return blend.done()


class _Blend:
    """Tiles' results put together, at the scale and with the channels of the first."""

    def __init__(self, whole: tuple[int, int], size: tuple[int, int], overlap: int, like: Tensor) -> None:
        self.scale = like.shape[-1] // size[1]
        self.size = size[0] * self.scale, size[1] * self.scale
        # Sums of many halves would lose digits.
        kind = torch.promote_types(like.dtype, torch.float32) if overlap else like.dtype
        shape = (1, like.shape[1], whole[0] * self.scale, whole[1] * self.scale)
        self.out = torch.zeros(shape, dtype=kind, device=like.device)
        self.total = torch.zeros_like(self.out[:, :1]) if overlap else None
        rows, columns = (_ramp(n, overlap * self.scale).to(self.out) for n in self.size)
        self.weight = rows.unsqueeze(1) * columns
        self.dtype = like.dtype

    def add(self, place: tuple[int, int], result: Tensor) -> None:
        top, left = (n * self.scale for n in place)
        part = (..., slice(top, top + self.size[0]), slice(left, left + self.size[1]))
        if self.total is None:
            self.out[part] = result
            return
        self.out[part] += result * self.weight
        self.total[part] += self.weight

    def done(self) -> Tensor:
        return self.out if self.total is None else (self.out / self.total).to(self.dtype)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin on an axis: every ``size - overlap``, the last one flush with the end."""
    # An axis shorter than a tile has one tile, whatever the overlap.
    return [*range(0, length - size, max(1, size - overlap)), length - size]


def _ramp(size: int, overlap: int) -> Tensor:
    """Weights along an axis: 1 inside, falling linearly over ``overlap`` pixels at both ends, never 0."""
    if not overlap:
        return torch.ones(size)
    distance = torch.arange(size) + 0.5
    return torch.minimum(distance, size - distance).clamp(max=overlap) / overlap

"""Restore an image whole, patch by patch, or in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["restore"]

# Pixels that go through the network at once; bounds memory.
_PIXELS = 512 * 512


def restore(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    patch_size: int | None = None,
    overlap: int = 0,
    *,
    batch_pixels: int = _PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run ``model`` on an image, whole or cut into patches of one size.

    Patches are squares, or as long as the image where that is shorter. The last of a row or column is moved to
    stay inside the image. Where patches overlap their results are blended with weights that rise linearly from
    the patch's edge over ``overlap`` pixels; with ``overlap=0`` the later patch wins.

    Args:
        model: maps (N, C, H, W) to (N, C', s · H, s · W) for some whole number s, in evaluation mode.
        image: (1, C, H, W).
        patch_size: side of a patch in pixels; None for the whole image at once.
        overlap: pixels that neighbours share, less than ``patch_size``.
        batch_pixels: patches of so many pixels together go through the model at once, or a single larger one.
        progress: is called with the number of patches done and of all.

    Returns:
        (1, C', s · H, s · W).

    Raises:
        ValueError: ``image`` has another shape, or the sizes cannot be used.

    Example:
        >>> from torch import nn
        >>> image = torch.rand(1, 3, 70, 100)
        >>> restore(nn.Identity(), image, patch_size=32, overlap=8).allclose(image)
        True
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"image must have shape (1, C, H, W), got {tuple(image.shape)}")
    if patch_size is not None and (patch_size < 1 or not 0 <= overlap < patch_size):
        raise ValueError(
            f"patch_size must be positive and overlap at least 0 and less, got {patch_size} and {overlap}"
        )
    height, width = image.shape[2:]
    with torch.no_grad():
        if patch_size is None or patch_size >= max(height, width):
            return model(image)
        size = min(patch_size, height), min(patch_size, width)
        places = [
            (top, left) for top in _starts(height, size[0], overlap) for left in _starts(width, size[1], overlap)
        ]
        batch = max(1, batch_pixels // (size[0] * size[1]))
        blend = None
        for first in range(0, len(places), batch):
            chosen = places[first : first + batch]
            results = model(torch.cat([image[..., y : y + size[0], x : x + size[1]] for y, x in chosen]))
            blend = blend or _Blend((height, width), size, overlap, results)
            for place, result in zip(chosen, results, strict=True):
                blend.add(place, result)
            if progress is not None:
                progress(first + len(chosen), len(places))
        assert blend is not None
        return blend.done()


class _Blend:
    """Patches' results put together, at the scale and with the channels of the first."""

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
    """Where patches begin on an axis: every ``size - overlap``, the last one flush with the end."""
    return [*range(0, length - size, size - overlap), length - size]


def _ramp(size: int, overlap: int) -> Tensor:
    """Weights along an axis: 1 inside, falling linearly over ``overlap`` pixels at both ends, never 0."""
    if not overlap:
        return torch.ones(size)
    distance = torch.arange(size) + 0.5
    return torch.minimum(distance, size - distance).clamp(max=overlap) / overlap

"""Restore an image whole, patch by patch, or in overlapping tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["restore"]

# Pixels that go through the network at once; bounds memory.
_PIXELS = 512 * 512


def restore(model: nn.Module, image: Tensor, patch_size: int | None = None, overlap: int = 0) -> Tensor:
    """Run ``model`` on an image, whole or cut into patches of one size.

    Patches are squares, or as long as the image where that is shorter. The last of a row or column is moved to
    stay inside the image. Where patches overlap their results are blended with weights that rise linearly from
    the patch's edge over ``overlap`` pixels; with ``overlap=0`` the later patch wins.

    Args:
        model: maps (N, C, H, W) to the same shape, in evaluation mode.
        image: (1, C, H, W).
        patch_size: side of a patch in pixels; None for the whole image at once.
        overlap: pixels that neighbours share, less than ``patch_size``.

    Returns:
        (1, C, H, W).

    Raises:
        ValueError: ``image`` has another shape, or the sizes cannot be used.

    Example:
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
            return model(image)  # type: ignore[no-any-return]
        size = min(patch_size, height), min(patch_size, width)
        places = [
            (top, left) for top in _starts(height, size[0], overlap) for left in _starts(width, size[1], overlap)
        ]
        weight = _ramp(size[0], overlap).unsqueeze(1) * _ramp(size[1], overlap)
        out = torch.zeros_like(image)
        total = torch.zeros_like(image[:, :1])
        batch = max(1, _PIXELS // (size[0] * size[1]))
        for first in range(0, len(places), batch):
            chosen = places[first : first + batch]
            patches = torch.cat([image[..., y : y + size[0], x : x + size[1]] for y, x in chosen])
            for (top, left), result in zip(chosen, model(patches), strict=True):
                place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
                if overlap:
                    out[place] += result * weight
                    total[place] += weight
                else:
                    out[place] = result
        return out / total if overlap else out


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where patches begin on an axis: every ``size - overlap``, the last one flush with the end."""
    return [*range(0, length - size, size - overlap), length - size]


def _ramp(size: int, overlap: int) -> Tensor:
    """Weights along an axis: 1 inside, falling linearly over ``overlap`` pixels at both ends, never 0."""
    if not overlap:
        return torch.ones(size)
    distance = torch.arange(size) + 0.5
    return torch.minimum(distance, size - distance).clamp(max=overlap) / overlap

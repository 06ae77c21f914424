"""Restore an image whole, patch by patch, or in overlapping tiles; in bands of rows where it is large.

The one place where images are cut into squares and put together again, at any scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tlsc.errors import TLSCError

__all__ = ["ResultSizeError", "bands", "in_tiles", "restore"]

# Pixels that go through the network at once; bounds memory.
_PIXELS = 512 * 512


class ResultSizeError(TLSCError, ValueError):
    """A network returned an image whose size is not a multiple of its input's; the message names both."""


def restore(
    model: Callable[[Tensor], Tensor], image: Tensor, patch_size: int | None = None, overlap: int = 0
) -> Tensor:
    """Run ``model`` on an image, whole or cut into patches of one size.

    Patches are squares, or as long as the image where that is shorter. The last of a row or column is moved to
    stay inside the image. Where patches overlap their results are blended with weights that rise linearly from
    the patch's edge over ``overlap`` pixels; with ``overlap=0`` the later patch wins.

    Args:
        model: maps (N, C, H, W) to (N, C, s·H, s·W) with a fixed integer s, in evaluation mode.
        image: (1, C, H, W).
        patch_size: side of a patch in pixels; None for the whole image at once.
        overlap: pixels that neighbours share, less than ``patch_size``.

    Returns:
        (1, C, s·H, s·W).

    Raises:
        ValueError: ``image`` has another shape, the sizes cannot be used, or the network returned another size.

    Example:
        >>> image = torch.rand(1, 3, 70, 100)
        >>> restore(torch.nn.Identity(), image, patch_size=32, overlap=8).allclose(image)
        True
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"image must have shape (1, C, H, W), got {tuple(image.shape)}")
    height, width = image.shape[2:]

    def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
        return image[..., top:bottom, left:right]

    return torch.cat(list(bands(model, cut, height, width, patch_size, overlap)), dim=2)


def in_tiles(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    size: int | None = None,
    overlap: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """What :func:`restore` returns, one tile at a time, so that only a tile's features have to fit in memory.

    Args:
        model, image, overlap: as for :func:`restore`.
        size: side of a tile in pixels; None for the whole image at once.
        progress: is called with the number of tiles done and of all.

    Example:
        >>> image = torch.rand(1, 3, 70, 100)
        >>> in_tiles(lambda tile: tile, image, size=32, overlap=8).allclose(image)
        True
    """
    height, width = image.shape[2:]

    def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
        return image[..., top:bottom, left:right]

    return torch.cat(list(bands(model, cut, height, width, size, overlap, 1, progress)), dim=2)


def bands(
    model: Callable[[Tensor], Tensor],
    cut: Callable[[int, int, int, int], Tensor],
    height: int,
    width: int,
    patch_size: int | None = None,
    overlap: int = 0,
    pixels: int = _PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """What :func:`restore` returns, from top to bottom, a band of rows at a time.

    Only one row of patches and its results are held, so that neither image has to fit in memory.

    Args:
        model: as for :func:`restore`.
        cut: ``(top, bottom, left, right)`` to that part of the image, (1, C, bottom − top, right − left).
        height: of the image.
        width: of the image.
        patch_size: as for :func:`restore`.
        overlap: likewise.
        pixels: as many patches as have so many together go through the network at once, but one at least.
        progress: is called with the number of patches done and of all.

    Yields:
        (1, C, rows, s·width).

    Example:
        >>> image = torch.rand(1, 3, 70, 100)
        >>> parts = bands(torch.nn.Identity(), lambda t, b, l, r: image[..., t:b, l:r], 70, 100, 32, 8)
        >>> [part.shape[2] for part in parts]
        [24, 14, 32]
    """
    if patch_size is not None and (patch_size < 1 or not 0 <= overlap < patch_size):
        raise ValueError(
            f"patch_size must be positive and overlap at least 0 and less, got {patch_size} and {overlap}"
        )
    if patch_size is None or patch_size >= max(height, width):
        with torch.no_grad():
            whole = cut(0, height, 0, width)
            result = model(whole)
            _scale(whole, result)
            yield result
        return
    size = min(patch_size, height), min(patch_size, width)
    tops, lefts = _starts(height, size[0], overlap), _starts(width, size[1], overlap)
    batch = max(1, pixels // (size[0] * size[1]))
    number = len(tops) * len(lefts)
    pending: tuple[Tensor, Tensor] | None = None
    for row, (top, following) in enumerate(zip(tops, [*tops[1:], height], strict=True)):

        def told(done: int, before: int = row * len(lefts)) -> None:
            if progress is not None:
                progress(before + done, number)

        with torch.no_grad():
            out, scale, dtype = _row(model, cut, top, lefts, size, overlap, width, batch, told)
            weight = _ramp(size[0] * scale, overlap * scale)[:, None].to(out.device) if overlap else None
            total = None
            if weight is not None:
                across = torch.zeros(1, width * scale)
                for left in lefts:
                    across[:, left * scale : (left + size[1]) * scale] += _ramp(size[1] * scale, overlap * scale)
                total = weight * across.to(out.device)
                out = out * weight
                if pending is not None:
                    shared = pending[0].shape[2]
                    out[..., :shared, :] += pending[0]
                    total[:shared] += pending[1]
            done = (following - top) * scale
            rows = out[..., :done, :] if total is None else out[..., :done, :] / total[:done]
            if total is not None:
                pending = out[..., done:, :].clone(), total[done:].clone()
        yield rows.to(dtype)


def _row(
    model: Callable[[Tensor], Tensor],
    cut: Callable[[int, int, int, int], Tensor],
    top: int,
    lefts: list[int],
    size: tuple[int, int],
    overlap: int,
    width: int,
    batch: int,
    told: Callable[[int], None],
) -> tuple[Tensor, int, torch.dtype]:
    """The results of a row of patches, blended (not yet divided) or one over the other.

    With the network's scale, and the type of its results: sums of many halves would lose digits.
    """
    out, scale, dtype = torch.empty(0), 1, torch.float32
    for first in range(0, len(lefts), batch):
        chosen = lefts[first : first + batch]
        patches = torch.cat([cut(top, top + size[0], left, left + size[1]) for left in chosen])
        results = model(patches)
        if first == 0:
            scale, dtype = _scale(patches, results), results.dtype
            kind = torch.promote_types(dtype, torch.float32) if overlap else dtype
            shape = 1, results.shape[1], size[0] * scale, width * scale
            out = torch.zeros(shape, dtype=kind, device=results.device)
        for left, result in zip(chosen, results, strict=True):
            place = (..., slice(left * scale, (left + size[1]) * scale))
            if overlap:
                out[place] += result * _ramp(size[1] * scale, overlap * scale).to(out.device)
            else:
                out[place] = result
        told(min(first + batch, len(lefts)))
    return out, scale, dtype


def _scale(patches: Tensor, results: Tensor) -> int:
    """By how much a network enlarges."""
    given, got = patches.shape, results.shape
    scale = got[2] // given[2] if len(got) == 4 else 0
    if scale < 1 or got[0] != given[0] or tuple(got[2:]) != (given[2] * scale, given[3] * scale):
        raise ResultSizeError(
            f"the network returned {tuple(got)} for {tuple(given)}: height and width must be that of its input or "
            "a multiple of it"
        )
    return scale


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where patches begin on an axis: every ``size - overlap``, the last one flush with the end."""
    # An axis shorter than a patch has one, whatever the overlap.
    return [*range(0, length - size, max(1, size - overlap)), length - size]


def _ramp(size: int, overlap: int) -> Tensor:
    """Weights along an axis: 1 inside, falling linearly over ``overlap`` pixels at both ends, never 0."""
    if not overlap:
        return torch.ones(size)
    distance = torch.arange(size) + 0.5
    return torch.minimum(distance, size - distance).clamp(max=overlap) / overlap

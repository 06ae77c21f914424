"""Non-local means on NVIDIA GPUs: which kernels of :mod:`.triton_kernels` are launched, and on what.

Memory beside the results does not depend on the search window or the patch: of what the distances pass on, SHIFTS
planes are there at a time. Nothing is read back to the host, and nothing is copied from it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlsc._internal.triton_tools import INTERPRETED
from tlsc.adapters.nlm import triton_kernels as kernels
from tlsc.errors import ArgumentValueError

__all__ = ["backward", "forward"]

SHIFTS = 4
# The interpreter runs one program after the other: few large tiles are faster there.
TILE = (32, 64) if INTERPRETED else (4, 32)
WARPS = 4
_LARGEST = 2**31 - 1  # places within an image are numbers of 32 bits


def forward(
    image: Tensor, guide: Tensor, rate: Tensor, search: int, patch: int, power: int, floor: float
) -> tuple[Tensor, Tensor]:
    """Mean (N, C, H, W) and sum of weights (N, H, W) of the inner part of ``image``, ``guide`` (both extended)."""
    image, guide, rate = image.contiguous(), guide.contiguous(), rate.contiguous()
    given = _Given(image, guide, rate, search, patch, power, floor)
    mean = image.new_empty((given.images, given.channels, given.height, given.width))
    total = image.new_empty((given.images, given.height, given.width))
    with torch.cuda.device(image.device if image.is_cuda else -1):
        grid = given.tiles(given.height, given.width) * given.images
        kernels.forward[(grid,)](image, guide, rate, given.floor, mean, total, *given.sizes, **given.options)
    return mean, total


def backward(
    image: Tensor,
    guide: Tensor,
    rate: Tensor,
    search: int,
    patch: int,
    power: int,
    floor: float,
    g: Tensor,
    g_mean: Tensor,
    needs_image: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``image`` and ``guide`` (empty unless needed), and of h without its factor (N, H, W)."""
    image, guide, rate = image.contiguous(), guide.contiguous(), rate.contiguous()
    g, g_mean = g.contiguous(), g_mean.contiguous()
    given = _Given(image, guide, rate, search, patch, power, floor)
    grad_h = torch.empty_like(g_mean)
    grad_image = torch.zeros_like(image) if needs_image else image.new_empty((*image.shape[:2], 0, 0))
    grad_guide = torch.zeros_like(guide) if needs_image else guide.new_empty((*guide.shape[:2], 0, 0))
    radius = search // 2 if needs_image else 0
    tall, across = given.height + 2 * radius, given.width + 2 * radius
    tensors = (image, guide, rate, given.floor, g, g_mean)
    with torch.cuda.device(image.device if image.is_cuda else -1):
        grid = given.tiles(tall, across) * given.images
        kernels.backward[(grid,)](*tensors, grad_image, grad_h, *given.sizes, IMAGE=needs_image, **given.options)
        if needs_image and search > 1:
            flow = image.new_empty((SHIFTS, given.images, tall, across))
            count = search**2 // 2
            for first in range(0, count, SHIFTS):
                shifts = min(SHIFTS, count - first)
                grid = given.tiles(tall, across) * given.images * shifts
                kernels.flows[(grid,)](*tensors, flow, *given.sizes, given.images, first, **given.options)
                grid = given.tiles(*image.shape[2:]) * given.images
                kernels.spread[(grid,)](
                    guide, flow, grad_guide, *given.sizes, given.images, first, shifts, **given.options_of_spread
                )
    return grad_image, grad_guide, grad_h


class _Given:
    """What all kernels are told of the image and the settings."""

    def __init__(
        self, image: Tensor, guide: Tensor, rate: Tensor, search: int, patch: int, power: int, floor: float
    ) -> None:
        self.images, self.channels, tall, wide = image.shape
        margin = search // 2 + patch // 2
        self.height, self.width = tall - 2 * margin, wide - 2 * margin
        if tall * wide * 3 > _LARGEST:
            raise ArgumentValueError(
                f"x of {self.height}×{self.width} pixels is larger than the Triton kernel takes: cut it into "
                'pieces, or choose implementation="torch"'
            )
        self.sizes = (self.height, self.width, wide, tall * wide, patch)
        # A tensor: numbers reach a kernel as float32.
        self.floor = torch.full((1,), floor, dtype=image.dtype, device=image.device) if floor else guide
        self.options: dict[str, Any] = {
            "TYPE": tl.float64 if image.dtype == torch.float64 else tl.float32,
            "SEARCH": search,
            "PATCH": patch,
            "CHANNELS": self.channels,
            "GUIDES": guide.shape[1],
            "POWER": power,
            "FLOOR": bool(floor),
            "MAP": rate.shape[1:] != (1, 1),
            "ROWS": TILE[0],
            "COLUMNS": TILE[1],
            "num_warps": WARPS,
            "enable_fp_fusion": True,
        }

    @property
    def options_of_spread(self) -> dict[str, Any]:
        others = ("CHANNELS", "POWER", "FLOOR", "MAP")
        return {key: value for key, value in self.options.items() if key not in others}

    @staticmethod
    def tiles(tall: int, across: int) -> int:
        return int(triton.cdiv(tall, TILE[0]) * triton.cdiv(across, TILE[1]))

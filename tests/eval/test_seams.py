"""How far tiles disagree where they meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tlsc.errors import ArgumentValueError
from tlsc.eval.judge.seams import tile_mismatch


def norm(tile: Tensor) -> Tensor:
    """A global layer, twice as large."""
    return (
        ((tile - tile.mean((2, 3), keepdim=True)) / tile.std((2, 3), keepdim=True))
        .repeat_interleave(2, 2)
        .repeat_interleave(2, 3)
    )


@pytest.mark.parametrize(("size", "overlap"), [(16, 4), (16, 15), (20, 10)])
def test_the_mismatch_equals_a_loop_over_pixels(size: int, overlap: int) -> None:
    image = torch.rand(1, 2, 40, 71, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    top, distances, left = (40 - size) // 2, [], 0
    while left + (size - overlap) + size <= 71:
        here, there = (image[..., top : top + size, at : at + size] for at in (left, left + size - overlap))
        one, other = norm(here).numpy(), norm(there).numpy()
        for column in range(2 * overlap):
            distances.append(np.abs(one[..., 2 * (size - overlap) + column] - other[..., column]).mean())
        left += size - overlap
    assert tile_mismatch(norm, image, size, overlap) == pytest.approx(np.mean(distances), rel=1e-12)
    assert tile_mismatch(lambda tile: 3 * tile, image, size, overlap) == 0


@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (16, 16), (50, 8)])
def test_sizes_that_cannot_be_used(size: int, overlap: int) -> None:
    with pytest.raises(ArgumentValueError, match=r"overlap|high"):
        tile_mismatch(norm, torch.rand(1, 1, 40, 40), size, overlap)

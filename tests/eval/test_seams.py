"""How far tiles disagree where they meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tlsc.errors import ArgumentValueError
from tlsc.eval.judge.seams import Disparity, tile_mismatch


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


@pytest.mark.parametrize(("height", "width", "size"), [(40, 71, 12), (33, 20, 20), (9, 50, 16), (16, 16, 16)])
@pytest.mark.parametrize("rows", [7, 100])
def test_the_disparity_equals_a_loop_over_crops(height: int, width: int, size: int, rows: int) -> None:
    """The middle half of each quarter's crop, by itself and within the image, enlarged twice."""
    pixels = np.random.default_rng(0).random((height, width, 3)).astype(np.float32)

    def network(image: np.ndarray) -> np.ndarray:
        return np.asarray(norm(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0].permute(1, 2, 0))

    whole = network(pixels)
    down, across = min(size, height), min(size, width)
    distances = []
    for quarter in ((0, 0), (0, 1), (1, 0), (1, 1)):
        top, left = (
            min(max(0, (1 + 2 * k) * n // 4 - size // 2), n - min(size, n))
            for k, n in zip(quarter, (height, width), strict=True)
        )
        alone = network(pixels[top : top + down, left : left + across])
        own = [
            abs(whole[2 * top + i, 2 * left + j, c] - alone[i, j, c]).astype(float)
            for i in range(2 * (down // 4), 2 * (down // 4) + 2 * (down // 2))
            for j in range(2 * (across // 4), 2 * (across // 4) + 2 * (across // 2))
            for c in range(3)
        ]
        distances.append(np.mean(own))
    found = Disparity(height, width, size)
    for start in range(0, 2 * height, rows):
        found.add(whole[start : start + rows])
    got = found.value(network, lambda top, left: pixels[top : top + size, left : left + size])
    assert got == pytest.approx(0.0 if max(height, width) == size else np.mean(distances), rel=1e-5)
    local = Disparity(height, width, size)
    local.add(2 * pixels)
    assert local.value(lambda crop: 2 * crop, lambda top, left: pixels[top : top + size, left : left + size]) == 0

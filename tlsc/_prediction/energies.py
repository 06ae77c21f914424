"""Mismatch energies: how far a model's output on whole images is from that on crops, at the crops' centres."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import ArgumentValueError

__all__ = ["BATCH", "Crops", "crops_of", "image_of"]

BATCH = 2**18  # pixels of crops that go through the model at once

Size = tuple[int, int]


class Crops:
    """Random crops of an image, and what the model makes of their centres.

    Attributes:
        places: (top, left) of each crop in pixels of the image.
        centres: (crops, C, h, w), the output at the central half of each crop.
        disagreement: mean square difference of the outputs of overlapping crops at the pixels in the central halves
            of both; NaN where no two overlap there.
    """

    def __init__(self, places: list[Size], centres: Tensor, size: Size, shape: Size) -> None:
        self.places, self.centres, self._size, self._shape = places, centres, size, shape
        self.disagreement = self._disagreement()

    def _corner(self, place: Size, scale: float) -> Size:
        """Top and left of a centre in pixels of the output."""
        top, left = (round((at + k // 4) * scale) for at, k in zip(place, self._size, strict=True))
        return top, left

    def energies(self, whole: Tensor) -> NDArray[np.float64]:
        """Mean square difference at each crop's centre between ``whole``, (C, H, W), and the output on the crop."""
        scale = whole.shape[-1] / self._shape[1]
        high, wide = self.centres.shape[2:]
        found = []
        for place, centre in zip(self.places, self.centres, strict=True):
            top, left = self._corner(place, scale)
            part = whole[:, top : top + high, left : left + wide]
            found.append(float((part.double() - centre.double()).square().mean()))
        return np.array(found)

    def _disagreement(self) -> float:
        high, wide = self.centres.shape[2:]
        scale = high / max(1, self._size[0] - 2 * (self._size[0] // 4))
        corners = [self._corner(place, scale) for place in self.places]
        total, number = 0.0, 0
        for i, (top, left) in enumerate(corners):
            for j in range(i):
                down, across = top - corners[j][0], left - corners[j][1]
                rows, columns = high - abs(down), wide - abs(across)
                if rows <= 0 or columns <= 0:
                    continue
                one = self.centres[i, :, max(0, -down) :, max(0, -across) :][:, :rows, :columns]
                other = self.centres[j, :, max(0, down) :, max(0, across) :][:, :rows, :columns]
                difference = one.double() - other.double()
                total += float(difference.square().sum())
                number += difference.numel()
        return total / number if number else math.nan


def crops_of(call: Any, image: Tensor, size: Size, count: int, step: int, rng: np.random.Generator) -> Crops:
    """Random crops of an image, on a grid of ``step``, through the model as trained."""
    places = _places(image, size, count, step, rng)
    high, wide = size
    number = max(1, BATCH // (high * wide))
    centres = []
    for first in range(0, len(places), number):
        batch = torch.stack([image[:, i : i + high, j : j + wide] for i, j in places[first : first + number]])
        out = image_of(call(batch), batch)
        scale = out.shape[-1] / wide
        top, left = (round(k // 4 * scale) for k in size)
        rows, columns = (round((k - 2 * (k // 4)) * scale) for k in size)
        centres.append(out[..., top : top + rows, left : left + columns].clone())
    return Crops(places, torch.cat(centres), size, (image.shape[1], image.shape[2]))


def _places(image: Tensor, size: Size, count: int, step: int, rng: np.random.Generator) -> list[Size]:
    steps = [(n - k) // step for n, k in zip(image.shape[1:], size, strict=True)]
    drawn = {(int(rng.integers(steps[0] + 1)), int(rng.integers(steps[1] + 1))) for _ in range(count)}
    return [(i * step, j * step) for i, j in sorted(drawn)]


def image_of(outputs: Any, given: Tensor) -> Tensor:
    """The image among a model's outputs: the last of those that are largest.

    Raises:
        ArgumentValueError: there is none.
    """
    found = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
    fitting = [x for x in found if x.dim() == 4 and len(x) == len(given) and x.shape[-1] >= given.shape[-1]]
    if not fitting:
        raise ArgumentValueError(
            f"the model's outputs hold no image of the input's size, {tuple(given.shape[2:])}, or larger: give "
            "call=, a function from images to restored images"
        )
    return max(reversed(fitting), key=lambda x: x.shape[-2] * x.shape[-1])

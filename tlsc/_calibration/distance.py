"""How far a model's output on regions is from its output on crops, at the crops' centres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .regions import Spot

__all__ = ["Distance", "centre", "distance", "maps"]

CLEAR = 1.0
"""By how many standard errors one distance must exceed another to be called larger."""


@dataclass(frozen=True)
class Distance:
    """Mean square differences at the centres of crops, (crops,), which count for ``independent`` of them."""

    squares: NDArray[np.float64]
    independent: float

    @property
    def rms(self) -> float:
        """Root mean square over all crops."""
        return math.sqrt(self.squares.mean()) if len(self.squares) else 0.0

    def clearly_above(self, other: Distance) -> bool:
        """Whether it exceeds another of the same crops by more than the crops' own differences explain.

        Few crops, one of which may weigh more than all others together, decide nothing.
        """
        if not len(self.squares):
            return False
        more = self.squares - other.squares
        return bool(more.mean() > CLEAR * more.std() / math.sqrt(self.independent))


def distance(
    outputs: Any, expected: Sequence[Tensor], spots: Sequence[Spot], crop: tuple[int, int], images: Tensor, n: float
) -> Distance:
    """Of outputs on ``images`` from those on their crops.

    Args:
        outputs: of the model on the images.
        expected: for each map among the outputs, what it is at the centres of the crops, one after another.
        spots: where the crops are.
        crop: their size.
        images: (N, C, H, W).
        n: for how many crops that do not overlap they count.
    """
    squares, numbers = np.zeros(len(spots)), 0
    for wanted, whole in zip(expected, maps(outputs), strict=True):
        scale = [n / k for n, k in zip(whole.shape[2:], images.shape[2:], strict=True)]
        size = [round(k * s) for k, s in zip(crop, scale, strict=True)]
        own = np.zeros(len(spots))
        for number, ((image, top, left), middle) in enumerate(zip(spots, wanted, strict=True)):
            i, j = (round(at * s) for at, s in zip((top, left), scale, strict=True))
            inside = centre(whole[image, :, i : i + size[0], j : j + size[1]])
            if inside.shape != middle.shape:
                break  # not an image of the input's size or a multiple of it
            own[number] = float((inside.double() - middle.double()).square().sum())
        else:
            squares, numbers = squares + own, numbers + wanted[0].numel()
    return Distance(squares / numbers if numbers else np.zeros(0), n)


def maps(outputs: Any) -> list[Tensor]:
    """The images among a model's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.dim() == 4 and outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [x for part in outputs for x in maps(part)] if isinstance(outputs, (list, tuple)) else []


def centre(x: Tensor) -> Tensor:
    """The middle half of an image on both axes."""
    height, width = x.shape[-2:]
    return x[..., height // 4 : height - height // 4, width // 4 : width - width // 4]

"""Mismatch energies: how far a model's output on whole images is from that on crops, over the whole image.

Each crop stands for a cell, three quarters of its height and width: in the crop's middle, or where the crop is
flush with the image's border, up to there. Borders are seen about as often as the middle, so that they have the
share that they have in an error over the whole image: there, windows lie to one side, and converting changes other
amounts than inside. Much smaller cells would compare a pixel only with crops that have it in their middle, as its
window has: what is by chance in these is in the window's statistics, too.
"""

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
Cell = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels of the image."""


class Crops:
    """Random crops of an image, in pairs that overlap, and what the model makes of the cell that each stands for.

    Attributes:
        places: (top, left) of each crop in pixels of the image.
        cells: of each, what it stands for.
        outputs: (C, h, w) of each, the output on the crop at its cell.
        areas: (crops,) pixels of each output.
        disagreement: mean square difference of outputs on two crops at the pixels of both cells; NaN where no two
            crops at different places have such.
    """

    def __init__(self, cells: list[Cell], places: list[Size], outputs: list[Tensor], scale: float) -> None:
        self.cells, self.places, self.outputs, self._scale = cells, places, outputs, scale
        self.areas = np.array([float(out.shape[1] * out.shape[2]) for out in outputs])
        self.disagreement = self._disagreement()

    def energies(self, whole: Tensor) -> NDArray[np.float64]:
        """Mean square difference at each crop's cell between ``whole``, (C, H, W), and the output on the crop."""
        found = []
        for (top, left, _, _), out in zip(self.cells, self.outputs, strict=True):
            i, j = round(top * self._scale), round(left * self._scale)
            part = whole[:, i : i + out.shape[1], j : j + out.shape[2]]
            found.append(float((part.double() - out.double()).square().mean()))
        return np.array(found)

    def energy(self, whole: Tensor) -> float:
        """Mean over the pixels of all cells."""
        return float(np.average(self.energies(whole), weights=self.areas))

    def _disagreement(self) -> float:
        total, number = 0.0, 0
        for i, own in enumerate(self.cells):
            for j, other in enumerate(self.cells[:i]):
                if self.places[i] == self.places[j]:
                    continue
                common = (*map(max, own[:2], other[:2]), *map(min, own[2:], other[2:]))
                one, two = (self._part(n, common) for n in (i, j))
                difference = one.double() - two.double()
                total += float(difference.square().sum())
                number += difference.numel()
        return total / number if number else math.nan

    def _part(self, n: int, common: tuple[int, ...]) -> Tensor:
        """A crop's output at some pixels of its cell: none where they end before they begin."""
        top, left, bottom, right = (round(at * self._scale) for at in common)
        up, before = (round(at * self._scale) for at in self.cells[n][:2])
        return self.outputs[n][:, top - up : max(top, bottom) - up, left - before : max(left, right) - before]


def crops_of(call: Any, image: Tensor, size: Size, count: int, step: int, rng: np.random.Generator) -> Crops:
    """Random crops of an image, on a grid of ``step``, through the model as trained."""
    cells = _cells((image.shape[1], image.shape[2]), size, count, step, rng)
    places = [_place(cell, size, (image.shape[1], image.shape[2]), step) for cell in cells]
    high, wide = size
    number = max(1, BATCH // (high * wide))
    outputs, scale = [], 1.0
    for first in range(0, len(places), number):
        batch = torch.stack([image[:, i : i + high, j : j + wide] for i, j in places[first : first + number]])
        out = image_of(call(batch), batch)
        scale = out.shape[-1] / wide
        for n, own in enumerate(out, first):
            rows, columns = (
                slice(round((cells[n][axis] - at) * scale), round((cells[n][axis + 2] - at) * scale))
                for axis, at in enumerate(places[n])
            )
            outputs.append(own[:, rows, columns].clone())
    return Crops(cells, places, outputs, scale)


def _cells(shape: Size, size: Size, count: int, step: int, rng: np.random.Generator) -> list[Cell]:
    """Of two grids of cells, half a cell apart both ways, at random: pairs that overlap, each cell once."""
    axes = [_Axis(n, k, step, rng) for n, k in zip(shape, size, strict=True)]
    rows, columns = axes[0].number, axes[1].number
    found: dict[Cell, None] = {}
    for at in rng.permutation(rows * columns)[: math.ceil(count / 2)]:
        where = divmod(int(at), columns)
        aside = [int(n) for n in rng.integers(2, size=2)]
        for shift in (None, aside):
            (top, bottom), (left, right) = (
                axis.cell(n, None if shift is None else shift[k])
                for k, (axis, n) in enumerate(zip(axes, where, strict=True))
            )
            if top < bottom and left < right:
                found[top, left, bottom, right] = None
    return list(found)[:count]


class _Axis:
    """Cells along an axis: three quarters of a crop long, from a random start; those at the ends are shorter."""

    def __init__(self, n: int, k: int, step: int, rng: np.random.Generator) -> None:
        step = min(step, k)
        self.end = (n - k) // step * step + k
        self.side = max(1, k * 3 // 4 // step) * step
        self.start = -int(rng.integers(self.side // step)) * step
        self.number = -(-(self.end - self.start) // self.side)
        self.half = self.side // 2 // step * step or self.side // 2

    def cell(self, n: int, shift: int | None) -> Size:
        """From and to; ``shift`` 1, 0: of the other grid, half a cell on or back, with the ends joined."""
        at = self.start + n * self.side
        if shift is not None:
            at += self.half if shift else self.half - self.side
            if not 0 < at + self.side < self.end + self.side:
                at += self.number * self.side * (1 if at < 0 else -1)
        return max(0, at), min(self.end, at + self.side)


def _place(cell: Cell, size: Size, shape: Size, step: int) -> Size:
    """The crop that has a cell in its middle, but for the image's borders."""
    found = []
    for axis, (n, k) in enumerate(zip(shape, size, strict=True)):
        unit = min(step, k)
        at = (cell[axis] + cell[axis + 2] - k) // (2 * unit) * unit
        if at + k < cell[axis + 2]:
            at = cell[axis]
        found.append(min(max(at, 0), (n - k) // unit * unit))
    return found[0], found[1]


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

"""What a measurement found: by distance, and the module that lets far pixels in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .drawing import draw

__all__ = ["Array", "Influence", "Source"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A module by which far pixels reach the centre of its map.

    Attributes:
        path: as in ``model.named_modules()``; empty for the model itself.
        operation: the name of its class.
        own_code: whether it has modules inside, so that it is its own ``forward`` that looks far, not one of them.
    """

    path: str
    operation: str
    own_code: bool

    def __str__(self) -> str:
        inside = ", in its own forward" if self.own_code else ""
        return f"{self.path or '(the model)'} ({self.operation}{inside})"


@dataclass(frozen=True, eq=False)
class Influence:
    """How the centre of a model's output depends on the input, by distance; prints as a table.

    Distances are those of the larger axis (Chebyshev), in pixels of the input, from the pixel under the centre
    of the output.

    Attributes:
        size: (height, width) of the input in pixels.
        centre: (row, column) of the input pixel from which distances count.
        distance: 0, 1, …, up to the farthest pixel.
        gradient_max, gradient_mean: over the pixels at each distance, the magnitude of the gradient, summed over
            input channels, of a random unit combination of the output's channels; mean of the samples. In units
            of the output per unit of the input. NaN where the model has no gradient.
        gradient_map: the same for every pixel, (height, width).
        change_distance: the distances of ``change``.
        change: the largest change of an output channel when everything farther away than that is replaced, in
            units of the output.
        reach_per_axis: the largest vertical and the largest horizontal distance of a pixel with influence.
        radius: (vertical, horizontal) distance that the caller allowed; None: everything but the border.
        far: whether the influence goes beyond ``radius``, or to the border.
        sources: the modules that by themselves let distant pixels reach the centre of their maps, in the order
            of a forward pass; empty if not ``far``. A module that cuts its map into parts may be listed
            together with one inside it.
        culprit: the first of them whose change arrives at the output. None if not ``far``, or if no single
            module reaches so far: then windows and receptive fields add up, and nothing global is left.
        dtype: of the measurement. In float64 zeros are exact; in other types culprits with a weak effect may be
            missed.
    """

    size: tuple[int, int]
    centre: tuple[int, int]
    distance: NDArray[np.int64]
    gradient_max: Array
    gradient_mean: Array
    gradient_map: Array
    change_distance: NDArray[np.int64]
    change: Array
    reach_per_axis: tuple[int, int]
    radius: tuple[int, int] | None
    far: bool
    sources: tuple[Source, ...]
    culprit: Source | None
    dtype: torch.dtype

    @property
    def reach(self) -> int:
        """The largest distance of a pixel with influence."""
        return max(self.reach_per_axis)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python data, ready for JSON (NaN becomes None), without the map."""

        def plain(values: NDArray[Any]) -> list[Any]:
            return [None if value != value else value for value in values.tolist()]

        return {
            "size": self.size,
            "centre": self.centre,
            "reach": self.reach,
            "reach_per_axis": self.reach_per_axis,
            "radius": self.radius,
            "far": self.far,
            "culprit": None if self.culprit is None else vars(self.culprit).copy(),
            "sources": [vars(source).copy() for source in self.sources],
            "distance": plain(self.distance),
            "gradient_max": plain(self.gradient_max),
            "gradient_mean": plain(self.gradient_mean),
            "change_distance": plain(self.change_distance),
            "change": plain(self.change),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def __str__(self) -> str:
        from tabulate import tabulate

        height, width = self.size
        rows = []
        for index, low in enumerate(self.change_distance.tolist()):
            last = index + 1 == len(self.change_distance)
            high = int(self.distance[-1]) if last else int(self.change_distance[index + 1])
            ring = slice(low + 1, high + 1)
            rows.append(
                (
                    f"> {low}",
                    _number(self.change[index]),
                    f"{low + 1}–{high}" if high > low + 1 else str(high),
                    _number(self.gradient_max[ring].max()),
                    _number(self.gradient_mean[ring].mean()),
                )
            )
        names = ["replaced, px", "change at centre", "ring, px", "gradient, largest", "gradient, mean"]
        table = tabulate(rows, headers=names, disable_numparse=True, stralign="right")
        lines = [
            f"influence on the centre of the output, input {height}×{width} pixels, "
            f"{str(self.dtype).removeprefix('torch.')}",
            self.summary(),
            "",
            *(line.rstrip() for line in table.splitlines()),
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        """One or two lines: how far, whether that is too far, and who does it."""
        vertical, horizontal = self.reach_per_axis
        text = f"reach {self.reach} pixels (rows {vertical}, columns {horizontal}): "
        if not self.far:
            return text + ("short of the border" if self.radius is None else f"within {_pair(self.radius)}")
        text += "up to the border" if self.radius is None else f"beyond {_pair(self.radius)}"
        if self.culprit is None:
            text += "\nno single module reaches so far: windows and receptive fields add up. "
            return text + "A larger input shows where they end"
        text += f"\nthe first module that lets distant pixels in: {self.culprit}"
        others = [str(source) for source in self.sources if source != self.culprit]
        if others:
            more = f", and {len(others) - 4} more" if len(others) > 4 else ""
            text += "\nothers that do: " + "; ".join(others[:4]) + more
        return text

    def draw(
        self,
        path: str | os.PathLike[str],
        *,
        before: Influence | None = None,
        labels: tuple[str, str] = ("before", "after"),
    ) -> None:
        """Write a picture: change and gradient against distance, and the gradient of every pixel.

        Args:
            path: the file; its ending says the format, PNG for instance.
            before: drawn with it, the same network before converting for instance.
            labels: what to call ``before`` and this one.

        Raises:
            MissingPackageError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        draw(path, [(labels[0], before), (labels[1], self)] if before is not None else [("", self)])


def _number(value: float) -> str:
    if value != value:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def _pair(pair: tuple[int, int]) -> str:
    return f"{pair[0]} pixels" if pair[0] == pair[1] else f"{pair[0]} rows and {pair[1]} columns"

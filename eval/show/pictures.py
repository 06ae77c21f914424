"""Plots and comparison pictures, drawn without a screen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

__all__ = [
    "CALIBRATED",
    "COLOURS",
    "ERROR",
    "ERRORS",
    "MARKERS",
    "Row",
    "busiest",
    "draw_comparison",
    "error_map",
    "errors",
    "new_figure",
    "save",
]


@dataclass
class Row:
    """Pictures of one image side by side, each (height, width, 3) in [0, 1], by caption."""

    title: str
    pictures: dict[str, NDArray[np.float32]]


COLOURS = ("#222222", "#0b6fb8", "#22a06b", "#d98200", "#b03a9a")
MARKERS = "osD^v"
ERROR, ERRORS = 0.25, "magma"
"""The brightest of the colours that errors are shown in, as a part of the range; and their name."""
CALIBRATED = "#a01840"
"""The colour of what is calibrated, the same in every plot."""


def draw_comparison(path: Path, rows: list[Row]) -> None:
    """For each row the whole images, and under them the square where the second and third differ most."""
    columns = max(len(row.pictures) for row in rows)
    figure = new_figure(3.1 * columns, 5.4 * len(rows))
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        part.suptitle(row.title, fontsize=12)
        pictures = list(row.pictures.values())
        height, width = pictures[0].shape[:2]
        side = max(1, min(height, width) // 4)
        top, left = busiest(np.abs(pictures[1] - pictures[2]).mean(-1), side)
        grid = part.subplots(2, columns, squeeze=False, height_ratios=(height / width, 1))
        for above, below, (caption, picture) in zip(*grid, row.pictures.items(), strict=True):
            above.imshow(picture, interpolation="lanczos")
            above.set_title(caption, fontsize=9)
            above.add_patch(Rectangle((left, top), side, side, fill=False, color="#ffd400", linewidth=1.4))
            below.imshow(picture[top : top + side, left : left + side], interpolation="nearest")
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
    save(figure, path)


def errors(picture: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far a picture is from the truth, (height, width): the mean of the channels."""
    return np.asarray(np.abs(picture - truth).mean(-1), dtype=np.float32)


def error_map(picture: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """:func:`errors` as a picture: black where there is none, brightest from :data:`ERROR` on."""
    shown = matplotlib.colormaps[ERRORS](np.clip(errors(picture, truth) / ERROR, 0, 1))
    return np.asarray(shown[..., :3], dtype=np.float32)


def busiest(difference: NDArray[np.float32], side: int) -> tuple[int, int]:
    """Top left corner of the square of ``side`` with the largest sum."""
    table = np.pad(difference.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(row), int(column)


def new_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, which needs no screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the picture that the name asks for."""
    figure.savefig(path, dpi=110)

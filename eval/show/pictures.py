"""Plots and comparison pictures, drawn without a screen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

__all__ = ["COLOURS", "MARKERS", "Curve", "Row", "busiest", "draw_comparison", "draw_curves", "new_figure", "save"]


@dataclass
class Curve:
    """PSNR in dB against patch size in pixels; a size of None is the whole image."""

    name: str
    sizes: list[int | None]
    psnrs: list[float]


@dataclass
class Row:
    """Pictures of one image side by side, each (height, width, 3) in [0, 1], by caption."""

    title: str
    pictures: dict[str, NDArray[np.float32]]


COLOURS = ("#222222", "#0b6fb8", "#22a06b", "#d98200", "#b03a9a")
MARKERS = "osD^v"
CALIBRATED = "#a01840"
"""The colour of calibrated curves, the same in every panel."""


def draw_curves(
    path: Path, curves: dict[str, list[Curve]], titles: dict[str, str], crops: dict[str, int], protocol: str
) -> None:
    """One panel per network: a curve per variant, the training crop marked, whole images at the right end.

    A variant measured on whole images only is drawn as a level line.
    """
    columns = 2
    figure = new_figure(13, 4.6 * math.ceil(len(curves) / columns))
    for index, (network, own) in enumerate(curves.items()):
        axes = figure.add_subplot(math.ceil(len(curves) / columns), columns, index + 1)
        sizes = max((curve.sizes for curve in own), key=len)
        numbers = [size for size in sizes if size is not None]
        whole = numbers[-1] * 2 if numbers else 1
        for number, curve in enumerate(own):
            if len(curve.sizes) == 1:
                axes.axhline(curve.psnrs[0], linestyle=":", linewidth=1.8, color="#777777", label=curve.name)
                continue
            colour = CALIBRATED if "calibrated" in curve.name else COLOURS[number % len(COLOURS)]
            style: dict[str, Any] = {"color": colour, "label": curve.name}
            places = [whole if size is None else size for size in curve.sizes]
            first = number == 0
            axes.plot(
                places,
                curve.psnrs,
                marker=MARKERS[number % len(MARKERS)],
                markersize=6 if first else 4.5,
                linewidth=2.4 if first else 1.6,
                linestyle="--" if "stride" in curve.name else "-",
                **style,
            )
        axes.axvline(
            crops[network],
            color="#bb2222",
            linestyle="-.",
            linewidth=1.2,
            label=f"training crop, {crops[network]} pixels",
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks([*numbers, whole], [*map(str, numbers), "whole"])
        axes.minorticks_off()
        axes.set_xlabel("test patch size, pixels")
        axes.set_ylabel("PSNR, dB")
        axes.set_title(titles[network], fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("PSNR against the size of the test patches", fontsize=13)
    figure.supxlabel(protocol, fontsize=8, color="#555555")
    save(figure, path)


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

"""Plots of a run: PSNR against patch size, PSNR of each way, gain per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from tlsc.eval.judge.intervals import interval
from tlsc.eval.run.cells import Cell
from tlsc.eval.show.outputs import Outcome
from tlsc.eval.show.pictures import COLOURS, MARKERS, new_figure, save

__all__ = ["draw_gains", "draw_means", "draw_sweep"]

_NAMED = 24
"""As many images have room for their names."""


def _psnrs(outcome: Outcome, cell: Cell) -> list[float]:
    """PSNR of the images that all ways restored, where it is finite."""
    images = set(outcome.verdict.images)
    name = str(cell)
    return [
        record.psnr
        for record in outcome.records
        if record.cell == name and record.image in images and math.isfinite(record.psnr)
    ]


def _band(outcome: Outcome, cell: Cell) -> tuple[float, float, float]:
    """Mean PSNR, and where it may lie beside the baseline's: the paired interval of the gain, moved there.

    Three times the mean where there is none, as for the baseline itself. What photographs differ in is left out.
    """
    values = _psnrs(outcome, cell)
    if not values:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    gains = [gain for gain in outcome.verdict.gain_table.get(cell, ()) if math.isfinite(gain)]
    low, high = interval(gains)
    if math.isnan(low):
        return mean, mean, mean
    gain = float(np.mean(gains))
    return mean, mean + low - gain, mean + high - gain


def draw_sweep(path: Path, outcome: Outcome, crop: int | None) -> None:
    """PSNR against patch size: a curve per variant with the 95% interval of its gain, whole images at the right."""
    sizes = sorted({cell.patch_size for cell in outcome.cells if cell.patch_size is not None})
    whole = sizes[-1] * 2 if sizes else 1
    figure = new_figure(9.5, 5.6)
    axes = figure.add_subplot()
    curves: dict[tuple[Cell, bool], list[Cell]] = {}
    for cell in outcome.cells:
        curves.setdefault((cell.state, bool(cell.overlap)), []).append(cell)
    for number, cells in enumerate(curves.values()):
        places = [whole if cell.patch_size is None else cell.patch_size for cell in cells]
        mean, low, high = np.array([_band(outcome, cell) for cell in cells]).T
        colour = COLOURS[number % len(COLOURS)]
        overlap = next((cell.overlap for cell in cells if cell.overlap), 0)
        label = cells[0].variant + (f", tiles with overlap {overlap}" if overlap else "")
        axes.plot(
            places,
            mean,
            marker=MARKERS[number % len(MARKERS)],
            color=colour,
            label=label,
            linewidth=2.4 if number == 0 else 1.6,
            linestyle="--" if cells[0].stride > 1 else ":" if overlap else "-",
        )
        axes.fill_between(places, low, high, color=colour, alpha=0.10, linewidth=0)
    if crop is not None:
        axes.axvline(crop, color="#bb2222", linestyle="-.", linewidth=1.2, label=f"training crop, {crop} pixels")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*sizes, whole], [*map(str, sizes), "whole"])
    axes.minorticks_off()
    axes.set_xlabel("test patch size, pixels")
    _finish(figure, axes, outcome, "PSNR against patch size")
    save(figure, path)


def draw_means(path: Path, outcome: Outcome) -> None:
    """Mean PSNR of each way to run the network, with the 95% interval of its gain."""
    figure = new_figure(9.5, 1.8 + 0.42 * len(outcome.cells))
    axes = figure.add_subplot()
    names = [str(cell) for cell in outcome.cells]
    for place, cell in enumerate(outcome.cells):
        mean, low, high = _band(outcome, cell)
        colour = COLOURS[0] if cell.base_size is None else COLOURS[1]
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([mean], [place], marker="o", color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"mean PSNR, dB; line: 95% interval of the gain over {outcome.verdict.baseline}")
    axes.grid(alpha=0.3)
    figure.suptitle(outcome.network, fontsize=11)
    figure.supxlabel(_below(outcome), fontsize=8, color="#555555")
    save(figure, path)


def draw_gains(path: Path, outcome: Outcome, cells: Sequence[Cell]) -> None:
    """PSNR of some ways minus that of the baseline, image by image, the images ordered by the first."""
    figure = new_figure(9.5, 4.6)
    axes = figure.add_subplot()
    gains = outcome.verdict.gain_table
    order = np.arange(len(outcome.verdict.images))
    if cells:
        order = np.argsort(np.nan_to_num(np.array(gains[cells[0]]), posinf=1e9, neginf=-1e9), kind="stable")
        for number, cell in enumerate(cells):
            values = np.array(gains[cell])[order]
            axes.plot(
                np.arange(1, len(values) + 1),
                np.where(np.isfinite(values), values, np.nan),
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linestyle="none",
                alpha=0.8,
                color=COLOURS[(number + 1) % len(COLOURS)],
                label=str(cell),
            )
    axes.axhline(0, color="#222222", linewidth=1, label=str(outcome.verdict.baseline))
    images = [outcome.verdict.images[place] for place in order]
    if len(images) <= _NAMED:
        names = [name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}" for name in images]
        axes.set_xticks(np.arange(1, len(images) + 1), names, rotation=30, ha="right", fontsize=8)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"images, ordered by the gain of {cells[0]}" if cells else "images")
    axes.set_ylabel("gain in PSNR, dB")
    _finish(figure, axes, outcome, "Gain per image", ylabel=False)
    save(figure, path)


def _finish(figure: Any, axes: Any, outcome: Outcome, title: str, ylabel: bool = True) -> None:
    if ylabel:
        axes.set_ylabel(f"mean PSNR, dB; band: 95% interval of the gain over {outcome.verdict.baseline}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"{title}: {outcome.network}", fontsize=11)
    figure.supxlabel(_below(outcome), fontsize=8, color="#555555")


def _below(outcome: Outcome) -> str:
    data = outcome.data
    made = f", {data.synthesis.description}" if data.synthesis else ""
    protocol = f"{outcome.protocol.name}, crop border {outcome.protocol.crop_border}"
    return f"{len(outcome.verdict.images)} images{made}; {protocol}"

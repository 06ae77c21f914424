"""A picture of one measurement, or of two: change and gradient against distance, and every pixel's gradient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import needing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import Influence

__all__ = ["draw"]

_COLOURS = ("#b5482a", "#0b6fb8")


def draw(path: str | os.PathLike[str], shown: list[tuple[str, Influence]]) -> None:
    """Write the picture of measurements with their labels."""
    with needing("eval", "a picture of the influence"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(6.2 + 3.6 * (1 + len(shown)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 + len(shown), width_ratios=[1.25, 1.25, *[1] * len(shown)])
    colours = _COLOURS[-len(shown) :]
    for colour, (label, one) in zip(colours, shown, strict=True):
        name = f"{label}: reach {one.reach}".removeprefix(": ")
        _curve(panels[0], one.change_distance, one.change, colour, name, one, "o")
        _curve(panels[1], one.distance, one.gradient_mean, colour, f"{label} mean".strip(), one, "")
        panels[1].plot(one.distance, _positive(one.gradient_max), color=colour, linewidth=0.9, linestyle=":")
    panels[0].set_ylabel("largest change at the centre, units of the output")
    panels[0].set_title("everything farther away replaced", fontsize=10)
    panels[1].set_ylabel("gradient magnitude, output per input unit")
    panels[1].set_title("gradient: mean (dotted: largest) of each ring", fontsize=10)
    for axes in panels[:2]:
        axes.set_yscale("log")
        axes.set_xlabel("distance from the centre, pixels")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.where(one.gradient_map > 0, np.log10(one.gradient_map), np.nan) for _, one in shown]
    finite = [float(np.nanmax(log)) for log in logs if np.isfinite(log).any()]
    top = max(finite, default=0.0)
    picture: Any = None
    for axes, (label, one), log in zip(panels[2:], shown, logs, strict=True):
        axes.set_facecolor("#dddddd")
        rows, columns = one.centre
        height, width = one.size
        extent = (-columns - 0.5, width - columns - 0.5, height - rows - 0.5, -rows - 0.5)
        picture = axes.imshow(log, vmin=top - 9, vmax=top, cmap="magma", extent=extent, interpolation="nearest")
        axes.set_title(f"{label} (grey: none)".strip(), fontsize=10)
        axes.set_xlabel("columns from the centre, pixels")
    panels[2].set_ylabel("rows from the centre, pixels")
    figure.colorbar(picture, ax=list(panels[2:]), label="log10 of the gradient's magnitude", shrink=0.8)
    height, width = shown[0][1].size
    said = [f"{label}: {one.culprit}".removeprefix(": ") for label, one in shown if one.culprit is not None]
    note = f"; far influence from {'; '.join(said)}" if said else ""
    figure.suptitle(f"Influence on the centre of the output, input {height}×{width} pixels{note}", fontsize=11)
    figure.savefig(path, dpi=110)


def _curve(
    axes: Axes, x: NDArray[np.int64], y: NDArray[np.float64], colour: str, label: str, one: Influence, marker: str
) -> None:
    axes.plot(x, _positive(y), color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)
    axes.axvline(one.reach, color=colour, linestyle="--", linewidth=1)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a logarithmic axis can show: zeros and rounding errors become gaps."""
    top = np.nanmax(values, initial=0.0)
    return np.where(values > 1e-12 * top, values, np.nan)

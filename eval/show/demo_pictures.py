"""The demo's two pictures: paired gains against patch size, and one photograph with its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from tlsc.eval.show.pictures import CALIBRATED, COLOURS, ERROR, ERRORS, MARKERS, errors, new_figure, save

__all__ = ["Curve", "Panel", "Photograph", "draw_gains", "draw_photograph"]

Pixels = NDArray[np.float32]

STYLES = {"as trained": COLOURS[0], "converted": COLOURS[1], "converted and calibrated": CALIBRATED}
TILES = "#777777"
WIDTH = 16.0  # inches


@dataclass
class Curve:
    """A way to run a network: PSNR in dB of each photograph, by patch size in pixels (None: the whole one)."""

    name: str
    psnrs: Mapping[int | None, Sequence[float]]


@dataclass
class Panel:
    """A network: its curves, of which the first is the network as trained, and what tiles of the crop give."""

    title: str
    crop: int
    curves: Sequence[Curve]
    tiles: Sequence[float] | None = None

    def gains(self, psnrs: Sequence[float]) -> NDArray[np.float64]:
        """PSNR minus that of the same photograph in patches of the training crop, as trained."""
        return np.asarray(psnrs, dtype=np.float64) - np.asarray(self.curves[0].psnrs[self.crop], dtype=np.float64)


@dataclass
class Photograph:
    """A photograph restored in several ways: (height, width, 3) in [0, 1] and PSNR in dB, by caption.

    Attributes:
        title: the network and what was done to the photograph.
        truth: it as it was.
        states: the first is the input.
    """

    title: str
    truth: Pixels
    states: Mapping[str, tuple[Pixels, float]]


def draw_gains(path: Path, panels: Sequence[Panel]) -> None:
    """A panel a network, all on one scale: dB above what the network gives in patches of its training size.

    Lines are means over the photographs, bands reach from the least gain to the largest.
    """
    figure = new_figure(3.4 * len(panels), 4.4)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        sizes = list(panel.curves[0].psnrs)
        for number, curve in enumerate(panel.curves):
            places = [sizes.index(size) for size in curve.psnrs]
            found = [panel.gains(psnrs) for psnrs in curve.psnrs.values()]
            colour = STYLES[curve.name]
            means, least, most = np.array([(gain.mean(), gain.min(), gain.max()) for gain in found]).T
            axes.plot(places, means, color=colour, marker=MARKERS[number], label=curve.name)
            axes.fill_between(places, least, most, color=colour, alpha=0.12, linewidth=0)
        if panel.tiles is not None:
            axes.axhline(
                panel.gains(panel.tiles).mean(), color=TILES, linestyle=":", label="as trained, overlapping tiles"
            )
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.axvline(sizes.index(panel.crop), color="#bb2222", linestyle="-.", linewidth=1, label="training crop")
        axes.set_xticks(range(len(sizes)), ["whole" if size is None else str(size) for size in sizes])
        axes.set_title(panel.title, fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    grid[0].set_ylabel("gain over patches of the training crop, dB")
    named = [pair for axes in grid for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in named}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9)
    figure.supxlabel("side of the patches that a photograph is restored in, pixels", fontsize=10)
    save(figure, path)


def draw_photograph(path: Path, shown: Photograph) -> None:
    """The input, what each way makes of it and the truth; under each how far it is from the truth, on one scale."""
    columns = len(shown.states) + 1
    height, width = shown.truth.shape[:2]
    side = WIDTH / columns
    figure = new_figure(WIDTH, 2 * side * height / width + 1.4)
    figure.suptitle(shown.title, fontsize=13)
    grid = figure.subplots(2, columns, squeeze=False)
    for (above, below), (caption, (picture, psnr)) in zip(grid.T, shown.states.items(), strict=False):
        above.imshow(picture, interpolation="lanczos")
        above.set_title(f"{caption}\n{psnr:.2f} dB", fontsize=11)
        error = errors(picture, shown.truth)
        drawn = below.imshow(error, cmap=ERRORS, norm=Normalize(0, ERROR), interpolation="lanczos")
    grid[0, -1].imshow(shown.truth, interpolation="lanczos")
    grid[0, -1].set_title("truth\n", fontsize=11)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    grid[1, 0].set_ylabel("distance from the truth", fontsize=11)
    grid[1, -1].axis("off")
    bar = figure.colorbar(drawn, cax=grid[1, -1].inset_axes((0.05, 0.05, 0.07, 0.9)), extend="max")
    bar.set_label("of the range, mean of the channels", fontsize=10)
    save(figure, path)

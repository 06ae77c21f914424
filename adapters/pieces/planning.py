"""How an image is cut: the margins that the tolerance asks for, the pieces that the memory allows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from tlsc.adapters.pieces.grid import Grid, fitted, spans, up
from tlsc.adapters.pieces.memory import Model, kernels, measured, readable, used
from tlsc.adapters.pieces.parts import Image, Margins
from tlsc.adapters.pieces.probing import Probe, telling
from tlsc.errors import ArgumentValueError, TLSCWarning, first_line

__all__ = ["Asked", "Budget", "Layout", "Planner"]

# How far convolutions reach beyond half a window, in pixels: where the search for a margin begins.
_REACH = 16
# Probes see some corners, an image has many seams: what is asked of them, as a part of the tolerance.
_PROBED = 1 / 5
# How many of them are probed again where larger margins are needed.
_AGAIN = 3
# Between half of the largest margins and them so many are considered.
_FINE = 8
# So many times the image's pixels are computed without a word; what memory would do is said for so many.
_WORTH, _GOOD = 4, 2
# What is left of the memory for what no measurement sees.
_SHARE = 0.9
# No piece is larger, whatever the memory: kernels of others count a map's values in 32 bits.
_MOST = 3 * 2**23


@dataclass(frozen=True)
class Asked:
    """What is asked of pieces, and what is known of the network.

    Attributes:
        memory: in bytes; None without a limit.
        core: side of a piece in pixels; None where the memory decides.
        margin: in pixels; None where it is searched for.
        tolerance: in units of the result.
        step: pieces begin at multiples of this.
        window: (height, width) at the image.
        device: of the network.
        name: of the network.
    """

    memory: int | None
    core: int | None
    margin: int | None
    tolerance: float
    step: int
    window: tuple[int, int]
    device: torch.device
    name: str


@dataclass(frozen=True)
class Budget:
    """What extents may cost.

    Attributes:
        pixels: the most that an extent may have.
        costs: bytes by pixels; None where there is no limit to memory.
        beside: what each row of a band of the result costs, in pixels of extents.
    """

    pixels: float
    costs: Model | None = None
    beside: float = 0.0

    def smallest(self, margins: Margins, size: tuple[int, int]) -> float:
        """What the smallest piece with these margins costs, in pixels."""
        return margins.smallest(size) + self.beside * min(margins.step, size[0])


@dataclass(frozen=True)
class Layout:
    """How an image is cut.

    Attributes:
        grid: the pieces.
        margins: around each of them.
        budget: that they keep to.
        tried: at how many corners the margins were tried.
    """

    grid: Grid
    margins: Margins
    budget: Budget
    tried: int = 0


class Planner:
    """Decides how an image is cut, and cuts anew where that turns out to be wrong.

    Args:
        image: the image.
        asked: of its pieces.
        held: bytes of the memory that are the caller's.
    """

    def __init__(self, image: Image, asked: Asked, held: int) -> None:
        self.image, self.asked, self.held = image, asked, held

    def begin(self) -> Layout:
        """The first layout, from what trials say.

        Raises:
            ArgumentValueError: no piece fits in the memory; the message names the smallest that would. Or none with
                the margin that the tolerance asks for.

        Warns:
            TLSCWarning: margins are most of the work, and with how much memory they would not be.
        """
        budget = self._budget()
        margins, tried = self._margins(budget)
        grid = self._grid(margins, budget)
        times = self._times(grid)
        if budget.costs is not None and times > _WORTH:
            warnings.warn(
                f"{len(grid)} pieces with margins of {margins.margin[0]}×{margins.margin[1]} pixels compute "
                f"{times:.1f} times the image's pixels: with memory of {readable(self._worth(margins, budget))} it "
                f"would be at most {_GOOD} times",
                TLSCWarning,
                stacklevel=5,
            )
        return Layout(grid, margins, budget, tried)

    def larger(self, layout: Layout) -> Layout | None:
        """With a quarter more margin, where the image is larger still and pieces with it fit."""
        margins = self._larger(layout.margins, layout.budget)
        return (
            None if margins is None else replace(layout, grid=self._grid(margins, layout.budget), margins=margins)
        )

    def halved(self, layout: Layout, error: Exception) -> Layout:
        """With pieces of half the size.

        Warns:
            TLSCWarning: that it was necessary.
        """
        limit = layout.grid.largest // 2
        warnings.warn(
            f"a piece of {layout.grid.largest} pixels did not fit in memory "
            f"({first_line(error, typed=False, limit=100)}): going on with pieces of at most {limit}",
            TLSCWarning,
            stacklevel=5,
        )
        budget = replace(layout.budget, pixels=limit, beside=0.0)
        margins, tried = layout.margins, layout.tried
        if not tried:  # it was one piece until now
            margins, tried = self._margins(budget)
        return Layout(self._grid(margins, budget), margins, budget, tried)

    def _budget(self) -> Budget:
        """How large extents may be, from what two small ones needed."""
        asked, image = self.asked, self.image
        if asked.memory is None:
            return Budget(math.inf)
        needs, row, before = [], 0, used(asked.device)
        for height, width in _two_sizes(image.size, asked.window, asked.step):
            need, result = measured(lambda h=height, w=width: image.sample(h, w), asked.device)  # type: ignore[misc]
            needs.append((height * width, need))
            row = image.size[1] * image.scale * result.element_size() * result[..., 0, 0].numel()
        costs = Model.through(needs[0], needs[-1], kernels(asked.device, before))
        pixels = min(costs.pixels(self._room(asked.memory)), _MOST)
        return Budget(pixels, costs, row * image.scale / costs.each)

    def _room(self, memory: int) -> int:
        """What is left of a memory for an extent, in bytes."""
        return memory - self.held - int(memory * (1 - _SHARE))

    def _needed(self, size: int) -> float:
        """The memory that has room for an extent of so many bytes, and a little more."""
        return (size + self.held) / _SHARE * 1.05

    def _margins(self, budget: Budget) -> tuple[Margins, int]:
        """The smallest margins at which corners hardly tell what is cut off, and how many were looked at."""
        asked, image = self.asked, self.image
        if asked.margin is not None:
            return Margins((asked.margin, asked.margin), asked.step, asked.window), 0
        rows, columns = (up(k // 2 + _REACH, asked.step) for k in asked.window)
        most = Margins((rows, columns), asked.step, asked.window)
        if len(self._grid(most, budget)) == 1:
            return most, 0
        places = telling(image, most, budget.pixels)
        while True:
            probes = [Probe.of(image, place, most, budget.pixels) for place in places]
            for margins in _up_to(most):
                if max(probe.error(margins.margin) for probe in probes) <= asked.tolerance * _PROBED:
                    return margins, len(probes)
            larger = self._double(most, budget)
            if larger is None:
                self._check_reachable(most, budget, max(probe.error(most.margin) for probe in probes))
                return most, len(probes)
            ranked = sorted(zip(probes, places, strict=True), key=lambda both: -both[0].error(most.margin))
            places = [place for _, place in ranked[:_AGAIN]]
            most = larger

    def _times(self, grid: Grid) -> float:
        """How many times the image's pixels the network is given."""
        return grid.work / (self.image.size[0] * self.image.size[1])

    def _worth(self, margins: Margins, budget: Budget) -> int:
        """The memory, in bytes and doubled until it is enough, with which margins cost little."""
        assert budget.costs is not None
        assert self.asked.memory is not None
        memory = self.asked.memory
        while True:
            memory *= 2
            pixels = min(budget.costs.pixels(self._room(memory)), _MOST)
            if pixels == _MOST or self._times(self._grid(margins, replace(budget, pixels=pixels))) <= _GOOD:
                return memory

    def _check_reachable(self, margins: Margins, budget: Budget, error: float) -> None:
        """Whether margins as large as the memory allows can be enough.

        Raises:
            ArgumentValueError: they cannot.
        """
        asked, size = self.asked, self.image.size
        if error <= asked.tolerance or margins.span(size) or budget.costs is None or asked.memory is None:
            return
        needed = self._needed(budget.costs.bytes(budget.smallest(margins.times(2), size)))
        raise ArgumentValueError(
            f"memory of {readable(asked.memory)} is too little for {asked.name} on {size[0]}×{size[1]} pixels: "
            f"with margins of {margins.margin[0]}×{margins.margin[1]}, the largest that fit, pieces are "
            f"{error * 255:.2g}/255 off, more than the tolerance of {asked.tolerance * 255:.2g}/255; twice these "
            f"margins need {readable(needed)}. Give more memory or a larger tolerance, or restore in overlapping "
            "tiles"
        )

    def _double(self, margins: Margins, budget: Budget) -> Margins | None:
        """Twice the margins, or as large as fits in the memory; None where no more does."""
        far = margins.times(2)
        while budget.smallest(far, self.image.size) > budget.pixels and far.margin > margins.margin:
            far = Margins((far.margin[0] - far.step, far.margin[1] - far.step), far.step, far.least)
        return None if margins.span(self.image.size) or far.margin <= margins.margin else far

    def _larger(self, margins: Margins, budget: Budget) -> Margins | None:
        larger = margins.times(5, 4)
        size = self.image.size
        if self.asked.margin is not None or margins.span(size):
            return None
        return larger if budget.smallest(larger, size) <= budget.pixels else None

    def _grid(self, margins: Margins, budget: Budget) -> Grid:
        asked, size = self.asked, self.image.size
        axes = list(zip(size, margins.margin, margins.least, strict=True))
        if asked.core is not None and math.isinf(budget.pixels):
            rows, columns = (spans(n, -(-n // asked.core), m, asked.step, least) for n, m, least in axes)
            return Grid(rows, columns)
        try:
            return fitted(size, budget.pixels, margins.margin, asked.step, margins.least, budget.beside)
        except ArgumentValueError as error:
            if budget.costs is None or asked.memory is None:
                raise
            rows, columns = (spans(n, -(-n // asked.step), m, asked.step, least) for n, m, least in axes)
            grid = Grid(rows, columns)
            pixels = grid.largest + budget.beside * (rows[0].stop - rows[0].start)
            least = self._needed(budget.costs.bytes(pixels))
            raise ArgumentValueError(
                f"memory of {readable(asked.memory)} is too little for {asked.name} with a window of "
                f"{asked.window[0]}×{asked.window[1]} on {size[0]}×{size[1]} pixels: the smallest piece, "
                f"{rows[0].extent}×{columns[0].extent} pixels, needs {readable(least)}"
            ) from error


def _up_to(most: Margins) -> Iterator[Margins]:
    """Margins from half of the largest on: corners that tell of less would be luck."""
    for i in range(_FINE, 2 * _FINE + 1):
        yield most.times(i, 2 * _FINE)


def _two_sizes(size: tuple[int, int], window: tuple[int, int], step: int) -> list[tuple[int, int]]:
    """A small extent, and one twice as large; of a smaller image what there is."""
    height, width = (min(n, up(k + step, step)) for n, k in zip(size, window, strict=True))
    if 2 * height <= size[0] or 2 * width > size[1]:
        return [(height, width), (min(size[0], 2 * height), width)]
    return [(height, width), (height, 2 * width)]

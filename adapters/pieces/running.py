"""Run a converted network piece by piece, so that the result is that of the whole image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tlsc
from tlsc._arguments import as_positive_int, check_map
from tlsc.adapters.descriptor import Descriptor
from tlsc.adapters.pieces.grid import Grid, fitted, spans, up
from tlsc.adapters.pieces.memory import Model, as_bytes, is_shortage, measured, readable, used
from tlsc.adapters.pieces.parts import Image, Margins
from tlsc.adapters.restoring import restored
from tlsc.errors import ArgumentTypeError, ArgumentValueError, TLSCError, TLSCWarning, first_line

__all__ = ["Pieces", "Report"]

# How far convolutions reach beyond half a window, in pixels: where the search for a margin begins.
_REACH = 16
# Pieces of a network that nothing is known about begin at multiples of this.
_UNKNOWN = 32
# What is left of the memory for what no measurement sees.
_SHARE = 0.9


@dataclass(frozen=True)
class Report:
    """How an image was cut, and how far the pieces are from the whole.

    Attributes:
        pieces: how many there were.
        extent: (height, width) of the largest piece with its margins, in pixels.
        margin: (height, width) of the margins that were cut away.
        error: the largest difference from the whole image's result that was seen, in units of the result: on
            ``tried`` places against the same with twice the margin, and along every seam, where two pieces have
            computed the same pixels. 0 for an image in one piece.
        tried: places that were computed twice.
        predicted: bytes that the largest piece was predicted to need; None where no memory was given.
    """

    pieces: int
    extent: tuple[int, int]
    margin: tuple[int, int]
    error: float
    tried: int
    predicted: int | None = None

    def __str__(self) -> str:
        if self.pieces == 1:
            return "the image in one piece"
        return (
            f"{self.pieces} pieces of up to {self.extent[0]}×{self.extent[1]} pixels with margins of "
            f"{self.margin[0]}×{self.margin[1]}; differs from the whole image by at most "
            f"{self.error * 255:.2g}/255, estimated on {self.tried} pieces and along all seams"
        )


@dataclass(frozen=True)
class _Budget:
    """What extents may cost.

    Attributes:
        pixels: the most that an extent may have.
        costs: bytes by pixels; None where there is no limit to memory.
        other: bytes beside the extent's: the result's, and those that are kept free.
    """

    pixels: float
    costs: Model | None = None
    other: int = 0


class Pieces:
    """Restores images in pieces that are the whole: margins are computed and cut away, nothing is blended.

    Once every global layer is local, a pixel of the result does not depend on the far image, so that a piece with a
    margin gives what the whole image gives. The margin begins as half a window and some pixels for convolutions.
    Statistics of statistics reach further, ever more faintly: some places are computed with twice the margin, and
    as long as that makes a difference of more than half the tolerance, the margin grows; so it does later, where a
    seam shows a difference of more than the tolerance.

    Args:
        model: a converted network, with a :class:`Descriptor` as its attribute ``tlsc`` or one that takes and
            returns images.
        memory: the most that may be used, in bytes or as "4GiB" or "free": what the network needs is measured on
            two small extents, and the size of pieces follows. A piece that does not fit after all is halved.
        pieces: instead of that, the side of a piece's core in pixels.
        margin: in pixels, instead of searching for it.
        tolerance: the largest difference that is accepted, in units of the result.
        progress: is called with the number of rows done and of all.

    Attributes:
        report: a :class:`Report` on the last image; None before.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used; not one of ``memory`` and ``pieces``.
        TLSCError: the model is not converted, or stays global at a site.

    Example:
        >>> from tlsc.adapters import HINet
        >>> model = tlsc.convert(HINet(wf=4, depth=3, padder_size=4).eval(), 32)
        >>> image = torch.rand(1, 3, 100, 150)
        >>> pieces = Pieces(model, pieces=48)
        >>> with torch.no_grad():
        ...     bool((pieces.run(image) - model(image)[-1]).abs().max() < 1 / 255)
        True
        >>> pieces.report.pieces
        12
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        memory: int | str | None = None,
        pieces: int | None = None,
        margin: int | None = None,
        tolerance: float = 1 / 255,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if (memory is None) == (pieces is None):
            raise ArgumentValueError("give one of memory and pieces")
        self.model, self.progress = model, progress
        self._core = None if pieces is None else as_positive_int(pieces, "pieces")
        self._given = _as_margin(margin)
        self.tolerance = _as_tolerance(tolerance)
        plan = _local_plan(model)
        like = next(model.parameters(), torch.empty(0))
        self._device = like.device
        self._memory = None if memory is None else as_bytes(memory, self._device)
        description = getattr(model, "tlsc", None)
        self._description = description if isinstance(description, Descriptor) else None
        self._name = type(model).__name__ if self._description is None else self._description.architecture
        self._step, self._window = _step(plan, self._description), plan.base_size
        self.report: Report | None = None

    @torch.no_grad()
    def run(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (N, C, H, W), on any device; pieces are brought to the network's.

        Returns:
            (N, C', scale · H, scale · W), where the image is, in its dtype.

        Raises:
            ArgumentTypeError, ArgumentValueError: it is no map, or no piece fits in the memory.

        Warns:
            TLSCWarning: pieces were made smaller as memory ran out; the tolerance was not reached.
        """
        check_map(image, "image")
        height, width = image.shape[-2:]

        def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
            return image[..., top:bottom, left:right]

        scale = self._scale()
        held = image.numel() * scale**2 * image.element_size() if image.device == self._device else 0
        out: Tensor | None = None
        for top, rows in self.bands(cut, height, width, held=held):
            if out is None:
                out = rows.new_empty(*rows.shape[:2], height * scale, width * scale)
            out[..., top : top + rows.shape[-2], :] = rows
        assert out is not None
        return out

    @torch.no_grad()
    def bands(
        self, cut: Callable[[int, int, int, int], Tensor], height: int, width: int, *, held: int = 0
    ) -> Iterator[tuple[int, Tensor]]:
        """What :meth:`run` returns, a band of rows at a time from top to bottom, so that no whole image is held.

        Args:
            cut: (top, bottom, left, right) to that part of the image, (N, C, bottom − top, right − left).
            height, width: of the image.
            held: bytes of the memory that are the caller's, such as its result.

        Yields:
            The band's first row in the result, and (N, C', rows, scale · width).

        Example:
            >>> from torch import nn
            >>> model = tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3)), 16)
            >>> image = torch.rand(1, 3, 90, 40)
            >>> parts = Pieces(model, pieces=32).bands(lambda t, b, l, r: image[..., t:b, l:r], 90, 40)
            >>> [(top, tuple(rows.shape)) for top, rows in parts]
            [(0, (1, 3, 32, 40)), (32, (1, 3, 32, 40)), (64, (1, 3, 26, 40))]
        """
        image = Image(self._restored((height, width)), cut, (height, width), self._scale())
        budget = self._budget(image, held)
        margins, error, tried = self._margins(image, budget)
        grid = self._grid(image, margins, budget)
        done, number, extent = 0, 0, (0, 0)
        above: Tensor | None = None
        while done < height:
            rows = next(row for row in grid.rows if row.stop > done)
            try:
                band, seam = image.band(rows, grid.columns, above)
            except Exception as failed:
                if not is_shortage(failed):
                    raise
                budget = _halved(budget, grid, failed)
                grid = self._grid(image, margins, budget)
                continue
            larger = self._larger(image, margins, budget) if seam > self.tolerance else None
            if larger is not None:
                margins, grid = larger, self._grid(image, larger, budget)
                continue
            band = band[..., (done - rows.start) * image.scale :, :]
            yield done * image.scale, band
            above = band[..., -1:, :].clone()
            error, done, number = max(error, seam), rows.stop, number + len(grid.columns)
            extent = max(extent[0], rows.extent), max(extent[1], *(column.extent for column in grid.columns))
            if self.progress is not None:
                self.progress(done, height)
        predicted = None if budget.costs is None else budget.costs.bytes(extent[0] * extent[1])
        self.report = Report(number, extent, margins.margin, error if number > 1 else 0.0, tried, predicted)
        _check_reached(self.report, self.tolerance)

    def _scale(self) -> int:
        return 1 if self._description is None else self._description.scale

    def _restored(self, size: tuple[int, int]) -> Callable[[Tensor, tuple[int, int]], Tensor]:
        """The network's result on a part of an image of this size, given where the part begins."""
        known = self._description
        halves = None
        if known is not None and known.halves:
            halves = tuple(n // 2 for n in known.padding.padded(*size))

        def run(part: Tensor, first: tuple[int, int]) -> Tensor:
            middle = None
            if halves is not None:
                middle = halves[0] - first[0], halves[1] - first[1]
            result = restored(self.model, part.to(self._device), middle)
            return result.to(part.device)

        return run

    def _budget(self, image: Image, held: int) -> _Budget:
        """How large extents may be, from what two small ones needed."""
        if self._memory is None:
            return _Budget(math.inf)
        start, needs = used(self._device), []
        for height, width in _two_sizes(image.size, self._window, self._step):
            part = image.cut(0, height, 0, width)
            need = measured(lambda part=part: image.restored(part, (0, 0)), self._device, start)  # type: ignore[misc]
            needs.append((height * width, need))
        costs = Model.through(*needs)
        other = held + int(self._memory * (1 - _SHARE))
        return _Budget(costs.pixels(self._memory - other), costs, other)

    def _margins(self, image: Image, budget: _Budget) -> tuple[Margins, float, int]:
        """The margins, the error that they were seen to make, and at how many places."""
        rows, columns = (up(k // 2 + _REACH, self._step) for k in self._window)
        margins = Margins((rows, columns), self._step, self._window)
        if self._given is not None:
            return Margins((self._given, self._given), self._step, self._window), 0.0, 0
        if len(self._grid(image, margins, budget)) == 1:
            return margins, 0.0, 0
        while True:
            far = self._reference(image, margins, budget)
            places = image.telling(margins, far)
            error = max(image.difference(place, margins, far) for place in places)
            larger = self._larger(image, margins, budget)
            if error <= self.tolerance / 2 or larger is None:
                return margins, error, len(places)
            margins = larger

    def _reference(self, image: Image, margins: Margins, budget: _Budget) -> Margins:
        """Twice the margins, or as large as fits in the memory."""
        far = margins.times(2)
        while far.smallest(image.size) > budget.pixels and far.margin > margins.margin:
            far = Margins((far.margin[0] - far.step, far.margin[1] - far.step), far.step, far.least)
        return far

    def _larger(self, image: Image, margins: Margins, budget: _Budget) -> Margins | None:
        """A quarter more than these margins, where the image is larger still and pieces with them fit."""
        larger = margins.times(5, 4)
        if self._given is not None or all(m >= n for m, n in zip(margins.margin, image.size, strict=True)):
            return None
        return larger if larger.smallest(image.size) <= budget.pixels else None

    def _grid(self, image: Image, margins: Margins, budget: _Budget) -> Grid:
        axes = list(zip(image.size, margins.margin, margins.least, strict=True))
        if self._core is not None and math.isinf(budget.pixels):
            rows, columns = (spans(n, -(-n // self._core), m, self._step, least) for n, m, least in axes)
            return Grid(rows, columns)
        try:
            return fitted(image.size, budget.pixels, margins.margin, self._step, margins.least)
        except ArgumentValueError as error:
            if budget.costs is None or self._memory is None:
                raise
            rows, columns = (spans(n, -(-n // self._step), m, self._step, least) for n, m, least in axes)
            grid = Grid(rows, columns)
            least = (budget.costs.bytes(grid.largest) + budget.other - self._memory * (1 - _SHARE)) / _SHARE
            raise ArgumentValueError(
                f"memory of {readable(self._memory)} is too little for {self._name} with a window "
                f"of {self._window[0]}×{self._window[1]} on {image.size[0]}×{image.size[1]} pixels: the smallest "
                f"piece, {grid.rows[0].extent}×{grid.columns[0].extent} pixels, needs {readable(least * 1.05)}"
            ) from error


def _as_margin(margin: int | None) -> int | None:
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int)):
        raise ArgumentTypeError(f"margin must be a number of pixels or None, got {type(margin).__name__}")
    if margin is not None and margin < 0:
        raise ArgumentValueError(f"margin must not be negative, got {margin}")
    return margin


def _as_tolerance(tolerance: float) -> float:
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise ArgumentTypeError(f"tolerance must be a number, got {type(tolerance).__name__}")
    if not tolerance > 0:
        raise ArgumentValueError(f"tolerance must be positive, got {tolerance}")
    return float(tolerance)


def _local_plan(model: nn.Module) -> tlsc.Plan:
    """The plan of a model that is local at every site.

    Raises:
        TLSCError: it is not, or not converted at all; the message names the site.
    """
    plan = tlsc.plan(model)
    for site in plan:
        if site.action == "left global":
            raise TLSCError(
                f"{site.path or 'the model'} ({site.operation}) stays global: {site.reason}. Pieces of this "
                "network are not the whole image; restore it in overlapping tiles, or whole"
            )
    return plan


def _step(plan: tlsc.Plan, known: Descriptor | None) -> int:
    """Pieces begin at multiples of this: there every map, and its grid of windows, begins a pixel of its own."""
    step = _UNKNOWN if known is None else known.padding.multiple
    for site in plan.converted:
        if site.feature_size is not None:
            for n, feature in zip(plan.base_size, site.feature_size, strict=True):
                step = math.lcm(step, max(1, round(n / feature)) * (plan.stride if site.action == "strided" else 1))
    return step


def _two_sizes(size: tuple[int, int], window: tuple[int, int], step: int) -> list[tuple[int, int]]:
    """A small extent, and one twice as large; of a smaller image what there is."""
    height, width = (min(n, up(k + step, step)) for n, k in zip(size, window, strict=True))
    if 2 * height <= size[0] or 2 * width > size[1]:
        return [(height, width), (min(size[0], 2 * height), width)]
    return [(height, width), (height, 2 * width)]


def _halved(budget: _Budget, grid: Grid, error: Exception) -> _Budget:
    limit = grid.largest // 2
    warnings.warn(
        f"a piece of {grid.largest} pixels did not fit in memory ({first_line(error, typed=False, limit=100)}): "
        f"going on with pieces of at most {limit}",
        TLSCWarning,
        stacklevel=4,
    )
    return _Budget(limit, budget.costs, budget.other)


def _check_reached(report: Report, tolerance: float) -> None:
    if report.error > tolerance:
        warnings.warn(
            f"pieces with margins of {report.margin[0]}×{report.margin[1]} pixels differ from the whole image by "
            f"up to {report.error * 255:.2g}/255, more than the tolerance of {tolerance * 255:.2g}/255: give a "
            "larger margin, or more memory",
            TLSCWarning,
            stacklevel=4,
        )

"""Run a converted network piece by piece, so that the result is that of the whole image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

import tlsc
from tlsc._arguments import as_positive_int, check_map
from tlsc.adapters.descriptor import Descriptor
from tlsc.adapters.pieces.grid import Span
from tlsc.adapters.pieces.memory import as_bytes, is_shortage, trimmed
from tlsc.adapters.pieces.parts import Band, Image, Margins
from tlsc.adapters.pieces.planning import Asked, Layout, Planner
from tlsc.adapters.pieces.sharing import Alone, Crew, computed, first
from tlsc.adapters.restoring import restored
from tlsc.errors import ArgumentTypeError, ArgumentValueError, TLSCError, TLSCWarning

__all__ = ["Pieces", "Report"]

# Pieces of a network that nothing is known about begin at multiples of this.
_UNKNOWN = 32
# And of one that enlarges, or cuts borders off its maps: how often it halves them cannot be read off their sizes.
_UNEVEN = 8
# The largest difference anywhere as a factor of that at seams: measured, 0.9 to 2.1 (benchmarks/RESULTS.md).
_SEEN = 1.25


@dataclass(frozen=True)
class Report:
    """How an image was cut, and how far the pieces are from the whole.

    Attributes:
        pieces: how many there were.
        extent: (height, width) of the largest piece with its margins, in pixels.
        margin: (height, width) of the margins that were cut away.
        error: the estimate of the largest difference from the whole image's result, in units of the result: 1.25
            times the largest at all seams, where two pieces have computed the same pixels, each as near to where
            it was cut as it gets. 0 for an image in one piece.
        tried: corners of pieces that were computed with more around them, too, to find the margin.
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
            f"{self.error * 255:.2g}/255, estimated along all seams"
        )

    def with_band(self, rows: Span, columns: Sequence[Span], margins: Margins, seam: float) -> Report:
        """After one more band."""
        extent = max(self.extent[0], rows.extent), max(self.extent[1], *(column.extent for column in columns))
        return replace(
            self,
            pieces=self.pieces + len(columns),
            extent=extent,
            margin=margins.margin,
            error=max(self.error, seam),
        )

    def after(self, layout: Layout) -> Report:
        """After the last band, with what trials said."""
        costs = layout.budget.costs
        predicted = None if costs is None else costs.bytes(self.extent[0] * self.extent[1])
        return replace(self, tried=layout.tried, predicted=predicted)


class Pieces:
    """Restores images in pieces that are the whole: margins are computed and cut away, nothing is blended.

    If every global layer is local, a pixel of the result does not depend on distant pixels. So a piece with a
    margin gives the same result as the whole image. The margin needs half a window plus some pixels for
    convolutions. Statistics of statistics reach further, but more and more faintly. So some corners of pieces are
    computed twice: cut off, and with as much again behind the cut. The margin is the distance from the cut beyond
    which the two differ by less than a fifth of the tolerance. The margin grows later, if a seam shows a
    difference of more than the tolerance.

    Args:
        model: a converted network, with a :class:`Descriptor` as its attribute ``tlsc`` or one that takes and
            returns images.
        memory: the most that may be used, in bytes or as "4GiB" or "free". The network's need is measured on
            two small extents, and determines the size of pieces. A piece that does not fit after all is halved.
        pieces: instead of that, the side of a piece's core in pixels.
        margin: in pixels, instead of searching for it.
        tolerance: the largest difference that is accepted, in units of the result.
        progress: called with the number of finished rows and of all rows.
        crew: the processes that share the pieces of each image, each of which makes the same calls; None for one.

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
        crew: Crew | None = None,
    ) -> None:
        if (memory is None) == (pieces is None):
            raise ArgumentValueError("give one of memory and pieces")
        self.model, self.progress = model, progress
        self._crew = crew or Alone()
        self.tolerance = _as_tolerance(tolerance)
        plan = _local_plan(model)
        description = getattr(model, "tlsc", None)
        self._description = description if isinstance(description, Descriptor) else None
        self._device = next(model.parameters(), torch.empty(0)).device
        self._asked = Asked(
            None if memory is None else as_bytes(memory, self._device),
            None if pieces is None else as_positive_int(pieces, "pieces"),
            _as_margin(margin),
            self.tolerance,
            _step(plan, self._description),
            plan.base_size,
            self._device,
            type(model).__name__ if self._description is None else self._description.architecture,
        )
        self.report: Report | None = None

    @torch.no_grad()
    def run(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (N, C, H, W), on any device; pieces are brought to the network's.

        Returns:
            (N, C', scale · H, scale · W), where the image is, in its dtype; with a crew, in the first process only:
            zeros in the others.

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
        if out is None:  # not the first process
            out = image.new_zeros(*image.shape[:2], height * scale, width * scale)
        return out

    @torch.no_grad()
    def bands(
        self,
        cut: Callable[[int, int, int, int], Tensor],
        height: int,
        width: int,
        *,
        held: int = 0,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """What :meth:`run` returns, a band of rows at a time from top to bottom, so that no whole image is held.

        Args:
            cut: (top, bottom, left, right) to that part of the image, (N, C, bottom − top, right − left).
            height, width: of the image.
            held: bytes of the memory that are the caller's, such as its result.
            finish: what is kept of each piece's result, (N, C', rows, columns) to the same in another type.

        Yields:
            The band's first row in the result, and (N, C', rows, scale · width). With a crew, in the first process
            only: the others go through without a result.

        Raises:
            ArgumentValueError: no piece fits in the memory.

        Example:
            >>> from torch import nn
            >>> model = tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3)), 16)
            >>> image = torch.rand(1, 3, 90, 40)
            >>> parts = Pieces(model, pieces=32).bands(lambda t, b, l, r: image[..., t:b, l:r], 90, 40)
            >>> [(top, tuple(rows.shape)) for top, rows in parts]
            [(0, (1, 3, 32, 40)), (32, (1, 3, 32, 40)), (64, (1, 3, 26, 40))]
        """
        if self._asked.memory is not None:
            trimmed(self._device)
        image = Image(self._restored((height, width)), cut, (height, width), self._scale(), finish)
        planner = Planner(image, self._asked, held)
        layout = first(self._crew, planner.begin)
        seen = Report(0, (0, 0), (0, 0), 0.0, 0)
        done, above = 0, None
        while done < height:
            # As many bands as there are processes have work in.
            wave = [rows for rows in layout.grid.rows if rows.stop > done]
            wave = wave[: -(-self._crew.size // len(layout.grid.columns))]
            try:
                bands = self._computed(image, wave, layout.grid.columns, above if wave[0].start == done else None)
            except Exception as failed:
                if not is_shortage(failed):
                    raise
                layout = first(self._crew, lambda failed=failed, now=layout: planner.halved(now, failed))  # type: ignore[misc]
                continue
            for rows, band in zip(wave, bands, strict=True):
                seam = _SEEN * self._crew.share(None if band is None else band.seam)
                if seam > self.tolerance:
                    larger = first(self._crew, lambda now=layout: planner.larger(now))  # type: ignore[misc]
                    if larger is not None:
                        layout = larger
                        break
                with self._stopping_together():
                    if band is not None:
                        yield done * image.scale, band.result[..., (done - rows.start) * image.scale :, :]
                        above = band.bottom
                done, seen = rows.stop, seen.with_band(rows, layout.grid.columns, layout.margins, seam)
                if self.progress is not None:
                    self.progress(done, height)
        self.report = seen.after(layout)
        _check_reached(self.report, self.tolerance)

    def _computed(
        self, image: Image, wave: Sequence[Span], columns: Sequence[Span], above: Tensor | None
    ) -> list[Band | None]:
        """Bands from top to bottom; None in processes other than the first."""
        pieces = [(rows, column) for rows in wave for column in columns]
        parts = computed(self._crew, pieces, lambda piece: image.part(*piece))
        if parts is None:
            return [None] * len(wave)
        parts, bands = iter(parts), []
        for _ in wave:
            bands.append(image.band(columns, islice(parts, len(columns)), above))
            above = bands[-1].bottom
        return list(bands)

    @contextmanager
    def _stopping_together(self) -> Iterator[None]:
        """Where the first process cannot go on with a band, such as a full disk, none does."""
        try:
            yield
        except GeneratorExit:
            self._crew.share(False)
            raise
        if not self._crew.share(True):
            raise TLSCError("the first process could not go on")

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
    if plan.source != "window":
        raise TLSCError(
            f"pieces are for windows, and this network's statistics are from source {plan.source}: restore it "
            "whole, or convert it with source='window'"
        )
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
                if n % feature:
                    step = math.lcm(step, _UNEVEN)
                step = math.lcm(step, max(1, round(n / feature)) * (plan.stride if site.action == "strided" else 1))
    return step


def _check_reached(report: Report, tolerance: float) -> None:
    if report.error > tolerance:
        warnings.warn(
            f"pieces with margins of {report.margin[0]}×{report.margin[1]} pixels differ from the whole image by "
            f"up to {report.error * 255:.2g}/255, more than the tolerance of {tolerance * 255:.2g}/255: give a "
            "larger margin, or more memory",
            TLSCWarning,
            stacklevel=4,
        )

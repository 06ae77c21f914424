"""The ways to run a network that are compared: as trained or converted, whole or in patches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

import tlsc
from tlsc._internal.prediction import smallest_window
from tlsc.errors import ArgumentValueError

if TYPE_CHECKING:
    from tlsc.eval.networks import Network

__all__ = ["ORIGINAL", "Cell", "as_cell", "calibrated", "cells_of", "planned_cell", "shown_size"]

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """One way to run a network.

    Attributes:
        base_size: window of the converted network at its input in pixels; None is the network as trained.
        stride: of the strided path; 1 is exact.
        patch_size: side of the patches that images are cut into; None is the whole image.
        overlap: pixels that neighbouring patches share.
        calibrated: whether the converted network's statistics are calibrated on the first inputs.
        source: from where its statistics are, see :func:`tlsc.convert`.
        plan: file that says what becomes of each site; ``base_size`` is then its smallest window.

    Example:
        >>> print(Cell(96), "|", Cell(patch_size=64, overlap=16), "|", Cell(96, 4, 64))
        base size 96, whole | original, tiles of 64, overlap 16 | base size 96, stride 4, patches of 64
        >>> print(Cell(96, source="table"))
        base size 96, source table, whole
    """

    base_size: Size | None = None
    stride: int = 1
    patch_size: int | None = None
    overlap: int = 0
    calibrated: bool = False
    source: str = "window"
    plan: str | None = None

    @property
    def variant(self) -> str:
        """The network's state in words."""
        if self.base_size is None:
            return "original"
        if self.plan is not None:
            return f"plan {self.plan}"
        strided = f", stride {self.stride}" if self.stride > 1 else ""
        source = f", source {self.source}" if self.source != "window" else ""
        calibrated = ", calibrated" if self.calibrated else ""
        return f"base size {shown_size(self.base_size)}{strided}{source}{calibrated}"

    @property
    def state(self) -> Cell:
        """The network in this state, on whole images."""
        return replace(self, patch_size=None, overlap=0)

    @property
    def size(self) -> str:
        """The patch size as it stands in tables."""
        return "whole" if self.patch_size is None else str(self.patch_size)

    def __str__(self) -> str:
        if self.patch_size is None:
            return f"{self.variant}, whole"
        if self.overlap:
            return f"{self.variant}, tiles of {self.patch_size}, overlap {self.overlap}"
        return f"{self.variant}, patches of {self.patch_size}"

    @property
    def as_trained(self) -> Cell:
        """The same patches with the original network."""
        return Cell(None, 1, self.patch_size, self.overlap)

    def equals_original(self, height: int, width: int) -> bool:
        """Whether all that the network sees of an image of that size fits its window: then nothing is converted."""
        if self.base_size is None:
            return False
        window = (self.base_size,) * 2 if isinstance(self.base_size, int) else self.base_size
        sizes = (height, width) if self.patch_size is None else (self.patch_size,) * 2
        return all(min(size, n) <= k for size, n, k in zip(sizes, (height, width), window, strict=True))


ORIGINAL = Cell()
"""The network as trained, on whole images: what all others are compared with."""


def shown_size(size: Size) -> str:
    """``96`` or ``96x128``."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


@contextmanager
def as_cell(
    network: Network, cell: Cell, images: Callable[[], list[Tensor]] | None = None, again: bool = False
) -> Iterator[nn.Module]:
    """The network's model as a cell has it; as before afterwards.

    Args:
        network: the network.
        cell: what it is to be.
        images: gives those to calibrate on, for a cell that is calibrated.
        again: the model was in this state before: whether distant pixels still matter has been said.
    """
    model, crop = network.model, network.crop
    if cell.base_size is None:
        yield model
        return
    check = False if again else None
    if cell.plan is not None:
        with tlsc.converted(model, plan=tlsc.Plan.load(cell.plan), check=check):
            yield model
        return
    tiles = _crop_of(cell, crop)
    with tlsc.converted(model, cell.base_size, stride=cell.stride, source=cell.source, crop=tiles, check=check):
        if cell.calibrated:
            assert images is not None
            calibrated(network, images(), crop)
        yield model


def _crop_of(cell: Cell, crop: int | None) -> Size | None:
    """The tiles of a source: training crops, where these are known and no larger than the window."""
    if crop is None or cell.base_size is None or cell.source == "window":
        return None
    rows, columns = (cell.base_size,) * 2 if isinstance(cell.base_size, int) else cell.base_size
    return min(crop, rows), min(crop, columns)


def calibrated(network: Network, images: list[Tensor], crop: int | None, seed: int = 0) -> tlsc.Plan:
    """As :meth:`tlsc.eval.networks.Network.calibrated`; its warnings are lines on standard error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", tlsc.TLSCWarning)
        plan = network.calibrated(images, crop, seed)
    for warning in said:
        print(f"tlsc: {warning.message}", file=sys.stderr)
    return plan


def cells_of(
    model: nn.Module,
    base_sizes: Iterable[Size],
    strides: Iterable[int],
    patches: Iterable[tuple[int | None, int]],
    converted_patches: bool = False,
    whole: bool = True,
    calibrated: bool = False,
    sources: Iterable[str] = ("window",),
) -> tuple[list[Cell], list[str]]:
    """What to compare, and remarks on what is left out.

    Args:
        model: is planned, not changed.
        base_sizes: windows to convert with.
        strides: of the strided path.
        patches: patch sizes with overlaps; None is the whole image.
        converted_patches: whether converted networks run on patches, too.
        whole: whether whole images are among them.
        calibrated: whether each converted network comes calibrated, too.
        sources: from where converted networks have their statistics; strides and calibration are for windows.

    Raises:
        ArgumentValueError: a size, stride or overlap that cannot be used.
    """
    cuts, sources = _cuts(patches, whole), tuple(sources)
    cells = [Cell(None, 1, size, overlap) for size, overlap in cuts]
    own = cuts if converted_patches or not whole else [(None, 0)]
    remarks: list[str] = []
    for base_size in dict.fromkeys(base_sizes):
        for stride in dict.fromkeys(strides):
            try:
                plan = tlsc.plan(model, base_size, stride=stride)
            except tlsc.NoSiteError:
                return cells, ["the network has no global layer that is known: nothing to convert"]
            if not plan.converted:
                reasons = "; ".join(dict.fromkeys(site.reason for site in plan.left)) or "it has no global layer"
                return cells, [f"nothing to convert: {reasons}"]
            if stride > 1 and not any(site.action == "strided" for site in plan):
                remarks.append(f"stride {stride}: no site of this network has a strided form, so it is left out")
                continue
            left = [site for site in plan.left if site.action == "left global"]
            remarks += [f"{site.path or 'the model'} stays global: {site.reason}" for site in left]
            states = Cell(base_size, stride), Cell(base_size, stride, calibrated=True)
            if "window" in sources:
                cells += _cut(states[: 1 + calibrated], own)
        others, said = _from_sources(model, base_size, sources)
        cells += _cut(others, own)
        remarks += said
    return cells, list(dict.fromkeys(remarks))


def _cut(states: Iterable[Cell], cuts: Sequence[tuple[int | None, int]]) -> list[Cell]:
    """Each state of the network on images that are cut in each way."""
    return [replace(state, patch_size=size, overlap=overlap) for state in states for size, overlap in cuts]


def _from_sources(model: nn.Module, base_size: Size, sources: Iterable[str]) -> tuple[list[Cell], list[str]]:
    """The network with the sources beside the window that every site can have, and remarks on the others."""
    cells, remarks = [], []
    for name in dict.fromkeys(sources):
        if name == "window":
            continue
        try:
            tlsc.plan(model, base_size, source=name)
            cells.append(Cell(base_size, source=name))
        except ArgumentValueError as error:
            remarks.append(f"source {name} is left out: {error}")
    return cells, remarks


def planned_cell(file: str) -> Cell | None:
    """The network as the plan in a file has it, on whole images; None for a plan that leaves every site.

    Raises:
        ArgumentValueError, OSError: as :meth:`tlsc.Plan.load`.
    """
    plan = tlsc.Plan.load(file)
    return Cell(smallest_window(plan), plan.stride, plan=file) if plan.converted else None


def _cuts(patches: Iterable[tuple[int | None, int]], whole: bool) -> list[tuple[int | None, int]]:
    """Patch sizes with overlaps: whole images last, smaller patches first."""
    cuts = [cut for cut in dict.fromkeys([*patches, (None, 0)]) if whole or cut[0] is not None]
    if not cuts:
        raise ArgumentValueError("without whole images at least one patch size is needed")
    for size, overlap in cuts:
        if size is not None and (size < 1 or not 0 <= overlap < size):
            raise ArgumentValueError(
                f"patches of {size} with overlap {overlap}: overlap must be at least 0 and less"
            )
    return sorted(cuts, key=lambda cut: (cut[0] is None, cut[0] or 0, cut[1]))

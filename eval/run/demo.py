"""The demo as a preset of the runner: four networks, each in its cells, on photographs in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import tlsc
from tlsc.adapters import DEMO_NETWORKS, DemoNetwork, load_demo_network
from tlsc.errors import TLSCError
from tlsc.eval.data.datasets import Dataset, ImagePair
from tlsc.eval.data.degradations import Pair, degrade_photograph
from tlsc.eval.judge.metrics import Protocol
from tlsc.eval.networks import of_model
from tlsc.eval.run.cells import Cell, as_cell
from tlsc.eval.run.distributed import Team
from tlsc.eval.run.records import Record
from tlsc.eval.run.runner import Job, restored
from tlsc.eval.run.runner import run as run_job

__all__ = ["PATCH_SIZES", "Photographs", "Result", "Swept", "cells_for", "sweep", "variant"]

PATCH_SIZES: tuple[int | None, ...] = (32, 64, 96, 128, 256, None)
CALIBRATING = ("motorcycle_left", "rocket", "brick", "ihc")
"""Training photographs, degraded anew; of the test photographs calibration sees nothing."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """PSNR of one photograph in dB; ``patch_size`` None is the whole photograph at once, or all of it in tiles."""

    network: str
    variant: str
    patch_size: int | None
    photograph: str
    psnr: float
    seconds: float


@dataclass(frozen=True)
class Photographs(Dataset):
    """Photographs before and after their degradation, in memory."""

    degraded: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Photographs:
        """Those of some pairs."""
        listed = tuple(ImagePair(pair.name, Path(pair.name), None, size=pair.clean.shape[:2]) for pair in pairs)
        return cls("photographs of scikit-image", "in memory", listed, (), degraded=tuple(pairs))

    def load(self, pair: ImagePair) -> tuple[Pixels, Pixels]:
        """Input and target."""
        found = next(own for own in self.degraded if own.name == pair.name)
        return found.degraded, found.clean


@dataclass(frozen=True)
class _Job(Job):
    """A demo network's job; it is calibrated on training photographs."""

    known: DemoNetwork | None = None

    def images(self) -> list[torch.Tensor]:
        """Degraded training photographs."""
        assert self.known is not None
        found = [degrade_photograph(name, self.known.degradation, 0).degraded for name in CALIBRATING]
        # Larger ones would take longer.
        return [torch.from_numpy(pixels[100:420, 100:420]).permute(2, 0, 1).unsqueeze(0) for pixels in found]


@dataclass(frozen=True)
class Swept:
    """A network's results on its photographs.

    Attributes:
        network: its name.
        pairs: the photographs.
        results: in the order of the cells, then of the photographs.
        cells: on whole photographs, by variant.
    """

    network: str
    pairs: tuple[Pair, ...]
    results: list[Result]
    cells: dict[str, Cell]
    job: Job

    def pictures(self, variants: Sequence[str], pair: Pair) -> dict[str, Pixels]:
        """A photograph restored once more, by variant; each (height, width, 3) in [0, 1]."""
        found, network = {}, self.job.network
        for name in variants:
            with as_cell(network, self.cells[name], self.job.images, again=True):
                rows = list(restored(network, self.cells[name], pair.degraded))
            found[name] = np.concatenate(rows).clip(0, 1)
        return found


def variant(cell: Cell) -> str:
    """How the demo calls a way to run a network.

    Example:
        >>> variant(Cell(64, patch_size=32)), variant(Cell(patch_size=64, overlap=32))
        ('converted, base size 64', 'original, tiles of 64, overlap 32')
    """
    if cell.base_size is not None:
        return f"converted, {cell.variant}"
    return str(cell) if cell.overlap else cell.variant


def cells_for(network: DemoNetwork, model: nn.Module, sizes: Sequence[int | None] = PATCH_SIZES) -> list[Cell]:
    """What is shown for a network: windows of 1, 1.5 and 2 training crops, strided, calibrated, and tiles."""
    crop = network.crop
    original = [Cell(patch_size=size) for size in sizes]
    plan = tlsc.plan(model, crop, stride=4)
    if not plan.converted:
        return original
    states = [Cell(size) for size in (crop, crop * 3 // 2, crop * 2)]
    if any(site.action == "strided" for site in plan):
        states.append(Cell(crop * 3 // 2, stride=4))
    states.append(Cell(crop, calibrated=True))
    converted = [
        Cell(state.base_size, state.stride, size, calibrated=state.calibrated) for state in states for size in sizes
    ]
    return [*original, *converted, Cell(patch_size=crop, overlap=crop // 2)]


def sweep(name: str, pairs: Sequence[Pair], sizes: Sequence[int | None] = PATCH_SIZES) -> Swept:
    """Restore photographs with a demo network in all of its cells, with a progress bar.

    Raises:
        TLSCError: an image could not be restored.
    """
    known = DEMO_NETWORKS[name]
    model = load_demo_network(name)
    network = of_model(name, model)
    cells = cells_for(known, model, sizes)
    job = _Job(network, Photographs.of(pairs), cells, Protocol("rgb-float"), figures="psnr", known=known)
    with tempfile.TemporaryDirectory() as folder:
        records = run_job(job, Path(folder), Team(), resume=False)
    failed = [record for record in records if not record.good]
    if failed:
        raise TLSCError(f"{name}, {failed[0].cell}, {failed[0].image}: {failed[0].message}")
    whole = {variant(cell): cell for cell in cells if cell.patch_size is None or cell.overlap}
    return Swept(name, tuple(pairs), _results(name, cells, records), whole, job)


def _results(name: str, cells: Sequence[Cell], records: Sequence[Record]) -> list[Result]:
    by_name = {str(cell): cell for cell in cells}
    seconds = {record.key: record.seconds for record in records}
    results = []
    for record in records:
        cell = by_name[record.cell]
        spent = record.seconds
        if spent is None:  # the original's
            spent = seconds[str(cell.as_trained), record.image] or 0.0
        size = None if cell.overlap else cell.patch_size
        results.append(Result(name, variant(cell), size, record.image, record.psnr, spent))
    return results

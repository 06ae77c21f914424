"""Running a network in all cells over all images: shared by processes, resumable, one failure at a time."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tlsc.eval.data.datasets import Dataset, ImagePair
from tlsc.eval.images import Pixels, as_float
from tlsc.eval.judge.metrics import Protocol, Scorer, lpips_metric
from tlsc.eval.judge.seams import Disparity, tile_mismatch
from tlsc.eval.networks import Network
from tlsc.eval.run.cells import Cell, as_cell
from tlsc.eval.run.distributed import Team
from tlsc.eval.run.patches import bands
from tlsc.eval.run.records import Record, Records, merged, read_records
from tlsc.eval.telling import progress as progress_bar

__all__ = ["Indicators", "Job", "fixed_arithmetic", "restored", "run"]


CALIBRATING = 4
"""Inputs, no targets, on which a network is calibrated."""


@dataclass(frozen=True)
class Job:
    """What is to be measured: every cell on every image.

    Attributes:
        network, data, cells, protocol: as they are called.
        lpips: beside PSNR and SSIM.
        figures: "all"; or "psnr", and neither SSIM nor the peak of memory, which take their time.
        indicators: tile mismatch, and train/eval disparity where the training crop is known, too.
    """

    network: Network
    data: Dataset
    cells: Sequence[Cell]
    protocol: Protocol
    lpips: bool = False
    figures: Literal["all", "psnr"] = "all"
    indicators: bool = False

    def images(self) -> list[torch.Tensor]:
        """The inputs to calibrate on: the first, the same in every process."""
        found = [self.data.load(pair)[0] for pair in self.data.pairs[:CALIBRATING]]
        return [torch.from_numpy(np.ascontiguousarray(np.moveaxis(as_float(given), 2, 0))) for given in found]


@contextmanager
def fixed_arithmetic(threads: int) -> Iterator[None]:
    """Arithmetic that does not depend on how many processes share the work: threads fixed, no tuning by trial.

    Sums over a map are divided among threads, so that results depend on their number in the last digits.

    Args:
        threads: of each process, on the CPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


def run(job: Job, folder: Path, team: Team, resume: bool) -> list[Record]:
    """Measure what is not yet measured; returns the records of all processes in canonical order, in all processes.

    Images are dealt out to the processes; each has every image of its share in every cell. What one image does to
    one process (an error, too little memory) becomes a record; the others go on.

    Args:
        job: the same in all processes.
        folder: of the run, see :func:`tlsc.eval.run.records.open_run`.
        team: the processes.
        resume: read what earlier runs wrote to ``folder``.
    """
    earlier = [record for found in team.gather(read_records(folder) if resume else []) for record in found]
    done = {key: record for key, record in merged(earlier).items() if record.good}
    todo = _todo(job, done)
    total = sum(len(cells) for _, work in todo for _, cells in work)
    records = Records(folder, team.rank)
    try:
        with progress_bar(
            total=total + len(done),
            initial=len(done),
            desc=job.network.name,
            unit="result",
            smoothing=0,
            mininterval=0.5,
            disable=not team.leads,
        ) as progress:
            work = _Work(job, records, team, progress, len(done))
            for state, shares in todo:
                work.through(state, shares[team.rank :: team.size])
            work.wait(total)
    finally:
        records.close()
    new = [record for found in team.gather(records.new) for record in found]
    return _in_order(job, merged([*done.values(), *new]))


Share = tuple[ImagePair, list[Cell]]
"""An image and what is to be done with it while the network is in one state."""


def _todo(job: Job, done: dict[Any, Record]) -> list[tuple[Cell, list[Share]]]:
    """For each state of the network the images, each with the cells that have no figures yet."""
    states = dict.fromkeys(cell.state for cell in job.cells)
    todo = []
    for state in states:
        own = [cell for cell in job.cells if cell.state == state]
        shares = []
        for pair in job.data.pairs:
            left = [c for c in own if (str(c), pair.name) not in done and not _as_original(job, c, pair)]
            if left:
                shares.append((pair, left))
        todo.append((state, shares))
    return todo


def _as_original(job: Job, cell: Cell, pair: ImagePair) -> bool:
    """Whether a cell's figures are those of the original (invariant I1, tested on every network): it is not run."""
    if cell.base_size is None or cell.as_trained not in job.cells or pair.size is None:
        return False
    return cell.equals_original(*pair.size)


@dataclass
class _Work:
    """What one process does: its share of the images, a record for each cell, whatever happens."""

    job: Job
    records: Records
    team: Team
    progress: Any
    before: int
    _lpips: Any = None

    def through(self, state: Cell, shares: list[Share]) -> None:
        """All images of a share, with the network in one state."""
        if not shares:
            return
        if self.job.lpips and self._lpips is None:
            self._lpips = lpips_metric(self.job.network.reference.device)
        self.progress.set_postfix_str(state.variant, refresh=False)
        left = [(cell, pair) for pair, cells in shares for cell in cells]
        try:
            with as_cell(self.job.network, state, self.job.images):
                for pair, cells in shares:
                    for record in self._attempts(pair, cells):
                        self._add(record)
                        left.pop(0)
        except OSError:
            raise  # the records cannot be written
        except Exception as error:  # the network cannot be converted: no image has a figure
            for cell, pair in left:
                self._add(Record(str(cell), pair.name, "failed", message=_line(error)))

    def _attempts(self, pair: ImagePair, cells: list[Cell]) -> Iterator[Record]:
        try:
            given, target = self.job.data.load(pair)
        except Exception as error:
            yield from (Record(str(cell), pair.name, "failed", message=_line(error)) for cell in cells)
            return
        for cell in cells:
            try:
                record = _measured(self.job, cell, pair.name, given, target, self._lpips)
            except Exception as error:
                record = Record(str(cell), pair.name, "failed", message=_line(error))
            yield record

    def _add(self, record: Record) -> None:
        self.records.add(record)
        self._show(self.team.count(1))

    def _show(self, count: int) -> None:
        if count + self.before > self.progress.n:
            self.progress.update(count + self.before - self.progress.n)

    def wait(self, total: int) -> None:
        """Keep the bar moving while others still work."""
        while self.team.leads and (count := self.team.count(0)) < total:
            self._show(count)
            time.sleep(0.2)
        self._show(total)


def _measured(job: Job, cell: Cell, name: str, given: Pixels, target: Pixels, lpips: Any) -> Record:
    meter = _Meter(job.network.reference.device, job.figures == "all")
    scorer = Scorer(job.protocol, target.shape[0], target.shape[1], job.figures == "all")
    row, kept = 0, []
    indicators = Indicators(job.network, cell, given) if job.indicators else None
    for rows in meter.timed(restored(job.network, cell, given)):
        expected = target[row : row + len(rows)]
        if rows.shape != expected.shape:
            raise ValueError(
                f"the network made rows of {rows.shape[1]} pixels and {rows.shape[2]} channels, {row + len(rows)} "
                f"of them so far; the target is {target.shape[0]}×{target.shape[1]} with {target.shape[2]} channels"
            )
        scorer.add(rows, expected)
        if indicators is not None:
            indicators.add(rows)
        row += len(rows)
        if lpips is not None:
            kept.append(rows)
    if row != len(target):
        raise ValueError(f"the network made {row} rows, the target has {len(target)}")
    figures = scorer.figures()
    perceived = lpips(np.concatenate(kept), target) if lpips is not None else None
    megapixels = _megapixels(given)
    found = Record(
        str(cell), name, "ok", figures.psnr, figures.ssim, perceived, meter.seconds, megapixels, meter.peak
    )
    if indicators is None:
        return found
    return replace(found, mismatch=indicators.mismatch(), disparity=indicators.disparity())


class Indicators:
    """What can be said of a way to run a network without a target, see :mod:`tlsc.eval.judge.seams`.

    Args:
        network: its model as ``cell`` has it.
        cell: the way.
        given: the input, (height, width, channels).
    """

    def __init__(self, network: Network, cell: Cell, given: Pixels) -> None:
        self._network, self._cell, self._given = network, cell, given
        height, width = given.shape[:2]
        self._disparity = None if network.crop is None else Disparity(height, width, network.crop)

    def add(self, rows: NDArray[np.float32]) -> None:
        """The next rows of the result."""
        if self._disparity is not None:
            self._disparity.add(rows)

    def mismatch(self) -> float | None:
        """Of the cell's tiles along the middle of the image, which overlap by an eighth at least; None without."""
        size = self._cell.patch_size
        if size is None or size < 2:
            return None
        height, width = self._given.shape[:2]
        top, side = max(0, (height - size) // 2), min(size, height)
        if width <= side:
            return 0.0
        row = _as_batch(self._given[top : top + side])
        return tile_mismatch(self._network, row, side, max(1, min(self._cell.overlap or side // 8, side - 1)))

    def disparity(self) -> float | None:
        """Against the network on crops, in the state that it is in; None where the training crop is not known."""
        found = self._disparity
        if found is None:
            return None

        def run(crop: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.moveaxis(self._network(_as_batch(crop))[0].numpy(), 0, 2)

        with torch.no_grad():
            size = found.size
            return found.value(run, lambda top, left: self._given[top : top + size, left : left + size])


def _as_batch(pixels: Pixels) -> torch.Tensor:
    """(1, channels, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(as_float(pixels), 2, 0))).unsqueeze(0)


def restored(network: Network, cell: Cell, given: Pixels) -> Iterator[NDArray[np.float32]]:
    """The result in bands of rows, (rows, width, channels); the model is as ``cell`` has it already."""

    def cut(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
        return _as_batch(given[top:bottom, left:right])

    for part in bands(network, cut, given.shape[0], given.shape[1], cell.patch_size, cell.overlap):
        yield np.moveaxis(part[0].numpy(), 0, 2)


def _megapixels(pixels: Pixels) -> float:
    return float(pixels.shape[0] * pixels.shape[1] / 1e6)


def _line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:300] if lines else 'no message'}"


def _in_order(job: Job, found: dict[tuple[str, str], Record]) -> list[Record]:
    """By cell, then by image; what equals the original takes the original's figures."""
    records = []
    for cell in job.cells:
        for pair in job.data.pairs:
            source = cell.as_trained if _as_original(job, cell, pair) else cell
            record = found[str(source), pair.name]
            records.append(record if source is cell else record.as_original(str(cell)))
    return records


# ------------------------------------------------------------------------------------------------------ meters


class _Meter:
    """Seconds spent, and bytes in use at most: of the GPU, or of the process where Linux tells."""

    def __init__(self, device: torch.device, peak: bool = True) -> None:
        self._device, self._asked = device, peak
        self.seconds = 0.0
        self.peak: int | None = None

    def timed(self, parts: Iterable[Any]) -> Iterator[Any]:
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        measurable = self._asked and (cuda or _forget_peak())
        iterator = iter(parts)
        while True:
            start = time.perf_counter()
            part = next(iterator, None)
            self.seconds += time.perf_counter() - start
            if measurable:
                self.peak = torch.cuda.max_memory_allocated(self._device) if cuda else _peak()
            if part is None:
                return
            yield part


def _forget_peak() -> bool:
    """Give freed memory back and start the peak of this process again; only Linux can."""
    if platform.system() != "Linux":
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _peak() -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None

"""Pictures restored one after the other: whole, in blended tiles, or in pieces that are the whole."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlsc.adapters.pieces import memory
from tlsc.adapters.pieces.sharing import everyone, first
from tlsc.errors import TLSCError
from tlsc.eval.telling import detail, note, progress, say

if TYPE_CHECKING:
    from torch import Tensor

    from tlsc.adapters import Pieces, Report
    from tlsc.eval.images import Picture, PictureFile
    from tlsc.eval.networks import Network
    from tlsc.eval.run.distributed import Team

__all__ = ["Done", "Wanted", "Work"]

# Bytes per pixel beyond which hardly any network goes: what fits at that is restored whole without a trial.
_ROOMY = 16 * 1024


@dataclass(frozen=True)
class Wanted:
    """How pictures are to be restored.

    Attributes:
        tile: side of blended tiles in pixels; None for none.
        overlap: of the tiles.
        memory: the limit for pieces; None where the device's free memory decides whether there are any.
        tolerance: of pieces; None for 1/255.
        calibrate: the network on each picture.
        crop: side of the training crops in pixels, for calibrating; None where it is known.
    """

    tile: int | None = None
    overlap: int = 0
    memory: str | None = None
    tolerance: float | None = None
    calibrate: bool = False
    crop: int | None = None


@dataclass(frozen=True)
class Done:
    """What became of one picture."""

    input: Path
    output: Path
    seconds: float | None = None
    pieces: dict[str, Any] | None = None
    error: str | None = None


class Work:
    """Restores pictures, whatever happens to one of them.

    Args:
        network: converted or not.
        wanted: how.
        crew: the processes that share the work: the pieces of a picture, or else the pictures.
    """

    def __init__(self, network: Network, wanted: Wanted, crew: Team) -> None:
        self.network, self.wanted, self.crew = network, wanted, crew
        self._pieces = None if wanted.memory is None else self._made(wanted.memory)

    def through(self, places: dict[Path, Path]) -> list[Done]:
        """What became of each picture, in order; in all processes."""
        done: list[Done | None] = []
        with progress(list(places.items()), unit="image") as bar:
            for number, (image, place) in enumerate(bar):
                mine = number % self.crew.size == self.crew.rank
                done.append(self._one(image, place, bar, mine))
        everybody = self.crew.gather(done)
        return [next(one for one in ways if one is not None) for ways in zip(*everybody, strict=True)]

    def _one(self, image: Path, place: Path, bar: Any, mine: bool) -> Done | None:
        start = time.perf_counter()
        try:
            report = self._restore(image, place, bar, mine)
        except Exception as error:
            # Whatever is wrong with this one, the next may be good.
            return Done(image, place, error=_reason(error)) if self.crew.leads or mine else None
        if report is None and not mine:
            return None
        pieces = None
        if report is not None:
            if not self.crew.leads:
                return None
            bar.clear()
            say(f"{image.name}: {report}")
            pieces = asdict(report)
        seconds = time.perf_counter() - start
        detail(f"{image}: {seconds:.2f} s")
        return Done(image, place, seconds, pieces)

    def _restore(self, image: Path, place: Path, bar: Any, mine: bool) -> Report | None:
        from tlsc.eval.images import by_rows, check_writable, open_picture, write_picture
        from tlsc.eval.restore import restore_picture
        from tlsc.eval.streaming import restore_rows, stored_if_opaque

        with ExitStack() as held:
            file = everyone(self.crew, lambda: held.enter_context(open_picture(image)))
            check_writable(place, file.bits, file.alpha)
            pieces = self._pieces_for(file)
            if pieces is None and not mine:
                return None
            self._calibrate(file, bar)
            if pieces is not None and by_rows(place):
                stored = held.enter_context(stored_if_opaque(file, place.parent, self.crew))
                if stored is not None:
                    with _Telling(pieces, bar, image.name):
                        restore_rows(self.network, pieces, file, stored, place, self.crew)
                    return pieces.report
            picture = file.read()
        if pieces is not None:
            with _Telling(pieces, bar, image.name):
                restored, report = _in_pieces(self.network, pieces, picture, self.crew)
        else:
            restored, report = self._whole(restore_picture, picture, bar, image.name), None
        if restored is not None:
            write_picture(place, restored)
        return report

    def _pieces_for(self, file: PictureFile) -> Pieces | None:
        """What restores a picture in pieces, if it is to be: as it was asked for, or as it may not fit whole."""
        if self._pieces is None and first(self.crew, lambda: self._is_large(file)):
            self._pieces = self._made("free")
        return self._pieces

    def _is_large(self, file: PictureFile) -> bool:
        import tlsc

        network = self.network
        device, pixels = network.reference.device, file.height * file.width
        if self.wanted.tile is not None or network.padding is None or network.output is not None:
            return False
        if pixels * _ROOMY <= memory.free(device):
            return False
        try:
            plan = tlsc.plan(network.model)
            return plan.source == "window" and not plan.left
        except TLSCError:  # not converted
            return False

    def _made(self, size: str) -> Pieces:
        from tlsc.adapters import Pieces

        tolerance = 1 / 255 if self.wanted.tolerance is None else self.wanted.tolerance
        left = memory.beside_converting(size, self.network.reference.device)
        return Pieces(self.network.model, memory=left, tolerance=tolerance, crew=self.crew)

    def _calibrate(self, file: PictureFile, bar: Any) -> None:
        from tlsc.eval.restore import calibrate_on

        if self.wanted.calibrate:
            bar.clear()
            for said in calibrate_on(self.network, file.read(), self.wanted.crop):
                note(f"{file.path}: {said}")

    def _whole(self, restore: Callable[..., Picture], picture: Picture, bar: Any, name: str) -> Picture:
        def tiles(done: int, number: int) -> None:
            bar.set_postfix_str(f"{name}, tile {done} of {number}")

        return restore(self.network, picture, self.wanted.tile, self.wanted.overlap, tiles)


class _Telling:
    """Says how far pieces are, and afterwards what they warned of."""

    def __init__(self, pieces: Pieces, bar: Any, name: str) -> None:
        self._name, self._caught = name, warnings.catch_warnings(record=True)
        pieces.progress = lambda done, number: bar.set_postfix_str(f"{name}, row {done} of {number}")

    def __enter__(self) -> None:
        import tlsc

        self._warned = self._caught.__enter__()
        warnings.simplefilter("always", tlsc.TLSCWarning)

    def __exit__(self, *error: Any) -> None:
        self._caught.__exit__(*error)
        for warning in self._warned or ():
            note(f"{self._name}: {warning.message}")


def _in_pieces(
    network: Network, pieces: Pieces, picture: Picture, crew: Team
) -> tuple[Picture | None, Report | None]:
    """A picture restored in pieces, on rank 0, and how far they are from the whole, the worst of its channels."""
    from tlsc.eval.restore import restore_picture

    reports: list[Report] = []

    def run(image: Tensor) -> Tensor:
        out = pieces.run(image.to(network.reference.dtype))
        assert pieces.report is not None
        reports.append(pieces.report)
        return out

    restored = restore_picture(network, picture, run=run)
    return restored if crew.leads else None, max(reports, key=lambda report: report.error, default=None)


def _reason(error: Exception) -> str:
    from tlsc.eval.images import ImageError

    if isinstance(error, ImageError):
        return error.reason
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if memory.is_shortage(error):
        return f"does not fit in memory whole: try --memory free, or --tile 512 ({lines[0][:120]})"
    if isinstance(error, (TLSCError, OSError)):
        return lines[0]
    return f"{type(error).__name__}: {lines[0][:200]}"

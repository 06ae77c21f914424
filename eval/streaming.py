"""Pictures restored in pieces from disk to disk: neither the picture nor its result is ever whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tlsc.adapters.pieces.sharing import Alone, Crew, everyone
from tlsc.eval.channels import Channels, in_range
from tlsc.eval.images import PictureFile, as_float, writing_rows
from tlsc.eval.images.picture import quantised

if TYPE_CHECKING:
    from tlsc.adapters import Pieces
    from tlsc.eval.images.stored import Stored
    from tlsc.eval.images.strips import Rows
    from tlsc.eval.networks import Network

__all__ = ["restore_rows", "stored_if_opaque"]


@contextmanager
def stored_if_opaque(file: PictureFile, folder: Path, crew: Crew | None = None) -> Iterator[Stored | None]:
    """The samples of a picture on disk; None where colours that are hidden by alpha have to be filled first.

    Raises:
        ImageError, OSError: as :meth:`tlsc.eval.images.PictureFile.stored`.
    """
    with ExitStack() as held:

        def opened() -> Stored | None:
            stored = held.enter_context(file.stored(folder))
            return stored if stored.is_opaque() else None

        yield everyone(crew or Alone(), opened)


def restore_rows(
    network: Network, pieces: Pieces, file: PictureFile, stored: Stored, place: Path, crew: Crew | None = None
) -> None:
    """Restore a picture in pieces, each of which is read when it is computed and written when its band is done.

    Args:
        network: what is known of the network of ``pieces``.
        pieces: restores it; tells afterwards how far it is from the whole (``pieces.report``).
        file: the picture.
        stored: its samples; alpha, if there is some, is 1 everywhere.
        place: the PNG or TIFF to write, by rank 0 of the crew.
        crew: the processes that share the pieces, that of ``pieces``.

    Raises:
        TLSCError: the network takes neither grey nor RGB, or what it returns is not finite.
        ImageError, OSError: the result cannot be written.
    """
    crew, way = crew or Alone(), Channels(network.channels, file.channels)
    kind, alpha = network.reference.dtype, file.alpha

    def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
        part = torch.from_numpy(as_float(stored.cut(top, bottom, left, right)))
        return way.given(part.permute(2, 0, 1).unsqueeze(0)).to(kind)

    def finish(core: Tensor) -> Tensor:
        values = way.taken(in_range(core))
        return torch.from_numpy(quantised(values.numpy(), file.bits))

    with ExitStack() as held:
        # Computing begins first: the number of channels of the result is known when it is there.
        parts = held.enter_context(
            closing(pieces.bands(cut, stored.height, stored.width, finish=finish))  # type: ignore[type-var]
        )
        rows: Rows | None = None
        for _, band in parts:
            samples = band[0].permute(1, 2, 0).numpy()
            if rows is None:
                scale = samples.shape[1] // stored.width
                shape = stored.height * scale, stored.width * scale, samples.shape[2] + alpha
                rows = held.enter_context(writing_rows(place, shape, file.bits, file.metadata))
            _add(rows, samples, alpha)


def _add(rows: Rows, samples: Any, alpha: bool) -> None:
    """A strip at a time, as a band may be as large as the picture."""
    for top in range(0, len(samples), 64):
        strip = samples[top : top + 64]
        if alpha:
            white = 1 if strip.dtype.kind == "f" else np.iinfo(strip.dtype).max
            strip = np.concatenate([strip, np.full((*strip.shape[:2], 1), white, strip.dtype)], 2)
        rows.add(strip)

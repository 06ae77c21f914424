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
from tlsc.errors import TLSCError
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
    crew, way = crew or Alone(), _Channels(network.channels, file.channels)
    kind, alpha = network.reference.dtype, file.alpha

    def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
        part = torch.from_numpy(as_float(stored.cut(top, bottom, left, right)))
        return way.given(part.permute(2, 0, 1).unsqueeze(0)).to(kind)

    def finish(core: Tensor) -> Tensor:
        if not bool(core.isfinite().all()):
            raise TLSCError("the network returned NaN or Inf; try --dtype float32, or look at its weights")
        values = way.taken(core.float().cpu().clamp(0, 1))
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


class _Channels:
    """Grey and RGB pictures for networks that take the other: :func:`tlsc.eval.restore.in_its_channels` in pieces.

    Raises:
        TLSCError: the network takes neither grey nor RGB.
    """

    def __init__(self, network: int, picture: int) -> None:
        self._network, self._picture = network, picture
        if network not in (1, 3) and network != picture:
            raise TLSCError(f"the network takes images of {network} channels, neither grey nor RGB")

    def given(self, image: Tensor) -> Tensor:
        """(1, C, H, W) as the network takes it: a grey picture three times, RGB as three grey pictures."""
        if self._picture == 1 and self._network == 3:
            return image.expand(-1, 3, -1, -1)
        return image.transpose(0, 1) if self._picture == 3 and self._network == 1 else image

    def taken(self, result: Tensor) -> Tensor:
        """(1, C, H, W) of what it returned: the mean of three, or three grey pictures as RGB."""
        if self._picture == 1 and self._network == 3 and result.shape[1] == 3:
            return result.mean(1, keepdim=True)
        if self._picture == 3 and self._network == 1:
            return result.flatten(0, 1).unsqueeze(0)
        return result

"""Restore images with any known network, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tlsc.adapters.pieces.running import Pieces
from tlsc.adapters.restoring import restored
from tlsc.errors import ArgumentValueError

__all__ = ["run"]


def run(
    model: nn.Module,
    image: Tensor,
    *,
    memory: int | str | None = None,
    pieces: int | None = None,
    margin: int | None = None,
    tolerance: float = 1 / 255,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Restore images with a network of :func:`load`, whatever sizes it takes and whatever it returns.

    With ``memory`` or ``pieces``, a converted network restores the image in pieces that together equal the
    whole result. See :class:`Pieces`, which also reports the difference.

    Args:
        model: a network with a :class:`Descriptor` as its attribute ``tlsc``. A network without one must accept
            images of any size and return images.
        image: (N, C, H, W), RGB or grey in [0, 1], on the network's device. A float32 image is given to a network
            in float64 as float64.
        memory: the most that may be used, in bytes or as "4GiB" or "free" (what the device has).
        pieces: instead of that, the side of a piece in pixels.
        margin: pixels computed around each piece and cut away; found by trials if not given.
        tolerance: the largest difference from the whole image's result that is accepted, in units of the result.
        progress: called with the number of finished rows and of all rows.

    Returns:
        (N, C', scale · H, scale · W), not clamped, without gradients, in the image's dtype.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``image`` is no map, or has other channels than the network takes, or
            is not all that it takes; no piece fits in the memory.
        TLSCError: pieces of a network that is not converted, or stays global at a site.

    Example:
        >>> import torch
        >>> from tlsc.adapters import MPRNet
        >>> model = MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1).eval()
        >>> run(model, torch.rand(1, 3, 21, 30)).shape
        torch.Size([1, 3, 21, 30])
    """
    if memory is None and pieces is None:
        if margin is not None:
            raise ArgumentValueError("margin is of pieces: give pieces or memory, too")
        return restored(model, image)
    found = Pieces(model, memory=memory, pieces=pieces, margin=margin, tolerance=tolerance, progress=progress)
    return found.run(image)

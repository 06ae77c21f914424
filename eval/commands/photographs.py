"""Photographs as tensors in the channels that a network takes, with targets or without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlsc.errors import ArgumentValueError
from tlsc.eval.telling import note, progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tlsc.eval.networks import Network

__all__ = ["images_of", "pairs_of"]


def images_of(names: list[str], network: Network) -> list[Tensor]:
    """The photographs that files and folders name, (C, H, W) each."""
    from tlsc.eval.images import read_picture, with_channels
    from tlsc.eval.restore import sources

    found = []
    for path in progress(sources(names), desc="reading", unit="image", delay=1):
        pixels = read_picture(path).pixels
        if network.channels is not None:
            pixels = with_channels(pixels, network.channels)
        found.append(_tensor(pixels))
    return found


def pairs_of(
    names: list[str], target: str | None, degrade: str | None, network: Network, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and targets: of two folders, or made from clean photographs."""
    from tlsc.eval.data.datasets import find_pairs

    if target is not None and (degrade is not None or len(names) != 1):
        raise ArgumentValueError("--target goes with one folder of degraded photographs, and without --degrade")
    folders = names if target is None else [names[0], target]
    data = find_pairs(folders, degrade, seed=seed, scale=network.scale, channels=network.channels)
    data = data.checked(lambda pairs: progress(pairs, desc="checking", unit="pair", delay=1))
    data.refuse_bad(skip=False, way_out="leave them out")
    note(f"{len(data.pairs)} pairs")
    images, targets = [], []
    for pair in data.pairs:
        given, clean = data.load(pair)
        images.append(_tensor(given))
        targets.append(_tensor(clean))
    return images, targets


def _tensor(pixels: NDArray[np.generic]) -> Tensor:
    import numpy as np
    import torch

    from tlsc.eval.images import as_float

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(as_float(pixels), 2, 0)))

"""A network on an image, whatever sizes it takes and whatever it returns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlsc._arguments import check_map
from tlsc.adapters.descriptor import Descriptor
from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["has_float64", "restored"]


@torch.no_grad()
def restored(model: nn.Module, image: Tensor, middle: tuple[int, int] | None = None) -> Tensor:
    """What :func:`tlsc.adapters.run` returns for an image, or for a part of one.

    Args:
        model, image: as there.
        middle: of a part, where the middle of the whole image lies, in rows and columns of the part; for networks
            that cut images in halves.
    """
    check_map(image, "image")
    description = getattr(model, "tlsc", None)
    if not isinstance(description, Descriptor):
        return Descriptor(type(model).__name__).result(model(image))
    if image.shape[1] != description.in_channels:
        raise ArgumentValueError(
            f"{description.architecture} takes images of {description.in_channels} channels, got shape "
            f"{tuple(image.shape)}"
        )
    if description.inputs is not None:
        raise ArgumentTypeError(f"{description.architecture} takes more than an image: call the network itself")
    height, width = image.shape[-2:]
    given = image.dtype
    if given == torch.float32 and has_float64(model):
        image = image.double()
    if not description.padding.inside:
        image = _padded(image, description.padding.padded(height, width))
    result = description.result(_called(model, image, description, middle))
    result = result.to(given) if image.dtype != given else result
    return result[..., : height * description.scale, : width * description.scale]


def _called(model: nn.Module, image: Tensor, description: Descriptor, middle: tuple[int, int] | None) -> Any:
    if description.call is not None:
        return description.call(model, image)
    return model(image) if middle is None else model(image, middle=middle)


def _padded(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirrored right and bottom as far as there is something to mirror, then repeated."""
    down, right = size[0] - image.shape[-2], size[1] - image.shape[-1]
    mirrored = min(right, image.shape[-1] - 1), min(down, image.shape[-2] - 1)
    image = F.pad(image, (0, mirrored[0], 0, mirrored[1]), mode="reflect")
    return F.pad(image, (0, right - mirrored[0], 0, down - mirrored[1]), mode="replicate")


def has_float64(model: nn.Module) -> bool:
    """Whether a network computes in float64."""
    return any(parameter.dtype == torch.float64 for parameter in model.parameters())

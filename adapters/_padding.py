"""Images continued to sizes that a network takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tlsc._internal import graphs

__all__ = ["cut", "padded"]


def padded(x: Tensor, multiple: int, mode: str = "constant", wider: Any = 0) -> Tensor:
    """``x`` (…, H, W) continued right and bottom to multiples of ``multiple``, and on the right by ``wider`` more.

    In a graph that is to hold at every size it is continued by a constant and cut back, since padding asks whether
    there is anything to pad, and a graph would hold for one answer only.

    Args:
        multiple: in pixels.
        mode: of :func:`torch.nn.functional.pad`.
        wider: at most ``multiple``.

    Example:
        >>> import torch
        >>> padded(torch.zeros(1, 3, 37, 48), 16).shape
        torch.Size([1, 3, 48, 48])
    """
    height, width = x.shape[-2:]
    # Not -height % multiple: torch.compile has no remainder for sizes that end up in floats (MPRNet's resampling).
    down, right = ((n + multiple - 1) // multiple * multiple - n for n in (height, width))
    right += wider
    if not graphs.applies():
        return F.pad(x, (0, right, 0, down), mode=mode)
    more = multiple if isinstance(wider, int) and wider == 0 else 2 * multiple
    return F.pad(x, (0, more, 0, more), mode=mode)[..., : height + down, : width + right]


def cut(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left (…, height, width) of ``x``.

    In a graph that is to hold at every size by gathering: a slice that happens to be everything has another memory
    layout than one that is not.
    """
    if not graphs.applies():
        return x[..., :height, :width]
    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    return x.index_select(-2, rows).index_select(-1, columns)

"""Images continued to sizes that a network takes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tlsc import _graph

__all__ = ["padded"]


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
    down, right = -height % multiple, -width % multiple + wider
    if not _graph.applies():
        return F.pad(x, (0, right, 0, down), mode=mode)
    more = multiple if isinstance(wider, int) and wider == 0 else 2 * multiple
    return F.pad(x, (0, more, 0, more), mode=mode)[..., : height + down, : width + right]

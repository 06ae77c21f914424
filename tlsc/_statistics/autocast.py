"""What PyTorch's automatic mixed precision does with the operations whose places ours take."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["widened"]

# Of those in "CUDA Ops that can autocast to float32" (torch.amp's documentation). CPUs keep the type of all three.
_WIDE = {"cuda": {"group_norm", "norm", "sum"}}


def widened(x: Tensor, operation: str) -> Tensor:
    """``x`` in float32 where autocast is on and has the operation in float32; otherwise as it is."""
    if x.dtype not in (torch.float16, torch.bfloat16) or operation not in _WIDE.get(x.device.type, ()):
        return x
    return x.float() if torch.is_autocast_enabled(x.device.type) else x

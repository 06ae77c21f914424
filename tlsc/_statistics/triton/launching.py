"""How a kernel is started with little work on the host.

Triton looks at every argument of every launch to find what it has compiled for arguments of that kind, which takes
longer than many a kernel runs. Numbers follow from few shapes here, so what was found once is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

__all__ = ["launch"]

# Said at every launch: Triton 3.9 warns where it is left to a default that is to change.
FUSED = {"enable_fp_fusion": True}
# From here on a compiled kernel takes all arguments of its function, in their order.
QUICK = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6)
MOST = 4096

_kept: dict[tuple[Any, ...], Any] = {}


def launch(
    function: Any,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    settings: tuple[Any, ...],
    warps: int = 4,
) -> None:
    """Start ``function(*tensors, *numbers, *settings)`` on the device of the first tensor.

    Args:
        programs: how many.
        settings: what is constant in a kernel; the first follows from the tensors' dtypes.
        warps: of a program.
    """
    x = tensors[0]
    if x is None or not (QUICK and x.is_cuda):
        function[(programs,)](*tensors, *numbers, *settings, num_warps=warps, **FUSED)
        return
    device = x.device.index
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(function, programs, tensors, numbers, settings, warps)
        return
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors]
    key = (function.__name__, device, warps, numbers, settings[1:], *kinds)
    kernel = _kept.get(key)
    if kernel is not None:
        kernel[(programs, 1, 1)](*tensors, *numbers, *settings)
        return
    if len(_kept) >= MOST:
        _kept.clear()
    _kept[key] = function[(programs,)](*tensors, *numbers, *settings, num_warps=warps, **FUSED)

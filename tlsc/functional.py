"""Local statistics: for every position, what a global layer computes on the window around it.

Window ``k' = min(k, n)`` on an axis of length ``n``; position ``i`` aggregates over ``[s, s + k')`` with
``s = clamp(i - (k' - 1)//2, 0, n - k')``: shifted to stay inside, never padded. Where the window covers the
whole map, the global operation itself is used.

Statistics are taken in float64 (on devices without it, in float32 over each window alone) whatever the input's
dtype, so that neither a large mean nor half precision spoils them; a NaN or Inf reaches exactly the positions
whose window contains it. All functions can be differentiated twice.

Source: Chu, Chen, Chen, Lu, "Improving Image Restoration by Revisiting Global Information Aggregation",
ECCV 2022, arXiv 2112.04491, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import as_pair, as_positive_int, check_channels, check_eps, check_map
from ._statistics import any_size as _graph
from ._statistics import operations as _dispatch
from ._statistics import reference as _reference
from ._statistics.autocast import widened
from ._statistics.correction import Correction
from ._windows import covers
from .errors import ArgumentValueError

__all__ = ["local_group_norm", "local_instance_norm", "local_mean", "local_var_mean"]

_HALF = (torch.float16, torch.bfloat16)


def local_mean(x: Tensor, window: int | tuple[int, int], stride: int = 1) -> Tensor:
    """Mean over the window of each position.

    Args:
        x: feature map (N, C, H, W), float16, bfloat16, float32 or float64.
        window: an int or (height, width), in pixels of ``x``.
        stride: 1 for the exact mean. With ``r > 1`` only the windows that start at 0, r, 2r, … and the last one
            are evaluated, each over its true size, and positions interpolate linearly between them.

    Returns:
        (N, C, H, W), same dtype and memory format. Where the window covers the map this is an expanded view.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``x`` is not a floating 4-D tensor with positions, ``window`` is
            not one or two positive ints, ``stride`` is not a positive int.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
        >>> local_mean(x, window=2)
        tensor([[[[1.5000, 3.0000, 6.0000, 6.0000]]]])
    """
    return _local_mean(x, as_pair(window, "window"), as_positive_int(stride, "stride"))


def local_var_mean(x: Tensor, window: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Biased variance and mean over the window of each position, in the order of :func:`torch.var_mean`.

    Args:
        x: feature map (N, C, H, W), float16, bfloat16, float32 or float64.
        window: an int or (height, width), in pixels of ``x``.

    Returns:
        variance (never negative) and mean, each (N, C, H, W) in the dtype and memory format of ``x``.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`local_mean`.

    Example:
        >>> x = torch.tensor([[[[1.0, 3.0, 3.0, 7.0]]]])
        >>> local_var_mean(x, window=(1, 2))
        (tensor([[[[1., 0., 4., 4.]]]]), tensor([[[[2., 3., 5., 5.]]]]))
    """
    check_map(x)
    size = as_pair(window, "window")
    if _graph.applies_to(x):
        return _dispatch.local_var_mean(x, size)
    if x.shape[0] == 0 or x.shape[1] == 0:
        return x.clone(), x.clone()
    if covers(size, x.shape[2:]):
        wide = x.to(torch.float32) if x.dtype in _HALF else x
        var, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        return var.to(x.dtype).expand(x.shape), mean.to(x.dtype).expand(x.shape)
    return _dispatch.local_var_mean(x, size)


def local_instance_norm(
    x: Tensor,
    window: int | tuple[int, int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Instance norm whose mean and (biased) variance are those of each position's window.

    ``(x - mean) / sqrt(max(var, 0) + eps) * weight + bias``

    Args:
        x: feature map (N, C, H, W), float16, bfloat16, float32 or float64.
        window: an int or (height, width), in pixels of ``x``.
        weight: scale (C,), or None for 1.
        bias: offset (C,), or None for 0.
        eps: added to the variance, in squared units of ``x``.

    Returns:
        (N, C, H, W), same dtype and memory format.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`local_mean`; ``weight`` or ``bias`` is not a floating
            tensor (C,) on the device of ``x``; ``eps`` is negative or not a number.

    Example:
        >>> x = torch.tensor([[[[1.0, 3.0, 3.0, 7.0]]]])
        >>> local_instance_norm(x, window=(1, 2), eps=0.25)
        tensor([[[[-0.8944,  0.0000, -0.9701,  0.9701]]]])
    """
    check_map(x)
    return _local_group_norm(x, as_pair(window, "window"), None, weight, bias, check_eps(eps))


def local_group_norm(
    x: Tensor,
    window: int | tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group norm whose mean and (biased) variance are those of each position's window, over a group's channels.

    Args:
        x: feature map (N, C, H, W), float16, bfloat16, float32 or float64.
        window: an int or (height, width), in pixels of ``x``.
        num_groups: groups into which the C channels are cut, in order; divides C.
        weight: scale (C,), or None for 1.
        bias: offset (C,), or None for 0.
        eps: added to the variance, in squared units of ``x``.

    Returns:
        (N, C, H, W), same memory format and dtype; under CUDA's autocast float32, as from PyTorch's own.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`local_instance_norm`; ``num_groups`` is not a positive
            int that divides C.

    Example:
        >>> x = torch.tensor([[[[1.0, 3.0, 3.0]], [[3.0, 1.0, 7.0]]]])
        >>> local_group_norm(x, window=(1, 2), num_groups=1, eps=0.0)[0, 0]
        tensor([[-1.0000, -0.2294, -0.2294]])
    """
    groups = as_positive_int(num_groups, "num_groups")
    return _local_group_norm(x, as_pair(window, "window"), groups, weight, bias, check_eps(eps))


def _local_mean(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> Tensor:
    check_map(x)
    if _graph.applies_to(x):
        return _dispatch.local_mean(x, window, stride, correction)
    if x.shape[0] == 0 or x.shape[1] == 0:
        return x.clone()
    if covers(window, x.shape[2:]):  # its own borders are in the statistics: nothing to correct
        return _global_mean(x).expand(x.shape)
    return _dispatch.local_mean(x, window, stride, correction)


def _local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    correction: Correction | None = None,
) -> Tensor:
    """Group norm; instance norm where ``num_groups`` is None."""
    check_map(x)
    if num_groups is not None and x.shape[1] and x.shape[1] % num_groups:
        raise ArgumentValueError(f"num_groups must divide the {x.shape[1]} channels of x, got {num_groups}")
    check_channels(weight, "weight", x)
    check_channels(bias, "bias", x)
    x = x if num_groups is None else widened(x, "group_norm")
    groups = x.shape[1] if num_groups is None else num_groups
    if _graph.applies_to(x):
        return _dispatch.local_group_norm(x, window, groups, weight, bias, eps, correction)
    if x.shape[0] == 0 or x.shape[1] == 0:
        return x.clone()
    if covers(window, x.shape[2:]) and _taken(x, num_groups, weight, bias) and x.shape[2] * x.shape[3] > 1:
        # PyTorch refuses to normalise a single position; its window is fine.
        if num_groups is None:
            return _reference._like(F.instance_norm(x, weight=weight, bias=bias, eps=eps), x)
        return F.group_norm(x, num_groups, weight, bias, eps)
    return _dispatch.local_group_norm(x, window, groups, weight, bias, eps, correction)


def _taken(x: Tensor, num_groups: int | None, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Does PyTorch's own norm take these types together? Half types with parameters in float32 are autocast's."""
    types = {p.dtype for p in (weight, bias) if p is not None}
    mixed = x.dtype in _HALF and types == {torch.float32}
    return types <= {x.dtype} or (mixed and (num_groups is None or x.device.type == "cpu"))


def _global_mean(x: Tensor) -> Tensor:
    """(N, C, 1, 1), as adaptive average pooling gives it; half types are summed in float32."""
    dtype: Any = torch.float32 if x.dtype in _HALF else None
    return x.mean((2, 3), keepdim=True, dtype=dtype).to(x.dtype)

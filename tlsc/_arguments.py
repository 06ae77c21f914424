"""Checks of arguments shared by functions, modules and surgery."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "as_pair",
    "as_positive_int",
    "check_attention",
    "check_channels",
    "check_eps",
    "check_map",
    "check_maps",
    "shown",
]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shown(value: Any) -> str:
    """A value that was refused, in a few words: a tensor by its shape, anything else cut where it is long."""
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else text[:97] + "..."


def as_positive_int(value: Any, name: str) -> int:
    """``value`` as an int ≥ 1; a bool, a float or a tensor is refused."""
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # being traced with dynamic shapes
    if isinstance(value, (bool, Tensor)):
        raise ArgumentTypeError(f"{name} must be a positive int, got {shown(value)}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{name} must be a positive int, got {shown(value)}") from None
    if number < 1:
        raise ArgumentValueError(f"{name} must be a positive int, got {shown(value)}")
    return number


def as_pair(value: Any, name: str) -> tuple[int, int]:
    """``value``, an int or a pair (height, width), as a pair of positive ints."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ArgumentValueError(
                f"{name} must be an int or a pair (height, width), got {len(value)} elements: {shown(value)}"
            )
        return as_positive_int(value[0], f"{name}[0]"), as_positive_int(value[1], f"{name}[1]")
    if not hasattr(value, "__index__") or isinstance(value, (bool, Tensor)):
        raise ArgumentTypeError(f"{name} must be an int or a pair (height, width), got {shown(value)}")
    number = as_positive_int(value, name)
    return number, number


def check_map(x: Any, name: str = "x") -> None:
    """A feature map: a real floating tensor (N, C, H, W) with at least one position."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor (N, C, H, W), got {type(x).__name__}")
    if x.layout != torch.strided:
        raise ArgumentTypeError(f"{name} must be dense, got {x.layout}: convert it with to_dense()")
    if x.dtype not in FLOATING:
        raise ArgumentTypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it first"
        )
    if x.dim() != 4:
        raise ArgumentValueError(f"{name} must have 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ArgumentValueError(f"{name} must have at least one position, got shape {tuple(x.shape)}")


def check_channels(value: Tensor | None, name: str, x: Tensor) -> None:
    """An affine parameter: None, or a floating tensor (C,) on the device of ``x``."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor or None, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {value.dtype}")
    if value.shape != (x.shape[1],):
        raise ArgumentValueError(
            f"{name} must have shape ({x.shape[1]},), one value per channel of x, got {tuple(value.shape)}"
        )
    if value.device != x.device:
        raise ArgumentValueError(f"{name} is on {value.device} but x is on {x.device}; move one of them")


def check_eps(eps: Any) -> float:
    """A finite number ≥ 0."""
    if isinstance(eps, (bool, Tensor)) or not isinstance(eps, (int, float)):
        raise ArgumentTypeError(f"eps must be a number, got {shown(eps)}")
    if not 0 <= eps < float("inf"):
        raise ArgumentValueError(f"eps must be finite and not negative, got {shown(eps)}")
    return float(eps)


def check_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """The temperature as (heads or 1, 1, 1), after a look at everything."""
    check_maps({"q": q, "k": k, "v": v}, 5, "(N, heads, c, H, W)")
    if q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ArgumentValueError(f"q, k and v must have the same shape, got {shapes}")
    if not isinstance(temperature, Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise ArgumentTypeError(f"temperature must be a number or a tensor, got {shown(temperature)}")
        temperature = torch.tensor(float(temperature), dtype=q.dtype, device=q.device)
    if temperature.numel() not in (1, q.shape[1]):
        raise ArgumentValueError(
            f"temperature must have one value, or one for each of the {q.shape[1]} heads, "
            f"got shape {tuple(temperature.shape)}"
        )
    return temperature.reshape(-1, 1, 1)


def check_maps(maps: dict[str, Any], dims: int, form: str) -> None:
    """Floating tensors of one dtype, with so many dimensions and at least one position."""
    first = next(iter(maps.values()))
    for name, x in maps.items():
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{name} must be a tensor {form}, got {type(x).__name__}")
        if x.dtype not in FLOATING:
            raise ArgumentTypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.dtype != first.dtype:
            raise ArgumentTypeError(f"{', '.join(maps)} must have the same dtype, got {first.dtype} and {x.dtype}")
        if x.dim() != dims:
            raise ArgumentValueError(f"{name} must have {dims} dimensions {form}, got shape {tuple(x.shape)}")
        if x.shape[-2] == 0 or x.shape[-1] == 0:
            raise ArgumentValueError(f"{name} must have at least one position, got shape {tuple(x.shape)}")

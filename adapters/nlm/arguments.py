"""What non-local means take, checked."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor

from tlsc._arguments import FLOATING, as_positive_int, check_map, shown
from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "as_noise",
    "as_number",
    "as_odd",
    "as_positive_strength",
    "as_strength",
    "check_choice",
    "check_image",
    "working_dtype",
]


def check_image(x: Any) -> None:
    check_map(x)
    if x.shape[1] not in (1, 3):
        raise ArgumentValueError(f"x must have 1 or 3 channels, got {x.shape[1]}: shape {tuple(x.shape)}")


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def as_odd(value: Any, name: str) -> int:
    number = as_positive_int(value, name)
    if number % 2 == 0:
        raise ArgumentValueError(f"{name} must be odd, so that it has a centre, got {number}")
    return number


def as_number(value: Any, name: str, what: str = "a number or a floating tensor") -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, (str, complex)):
        raise ArgumentTypeError(f"{name} must be {what}, got {shown(value)}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name} must be {what}, got {shown(value)}") from None


def as_positive_strength(value: Any) -> float:
    """A strength given as a number. Only a tensor, which training moves, may be negative."""
    strength = as_number(value, "h")
    if not strength >= 0:
        raise ArgumentValueError(
            f"h must be a number that is not negative, got {shown(value)}: a strength is the distance "
            "at which a weight has fallen to 1/e"
        )
    return strength


def as_noise(value: Any) -> float:
    sigma = as_number(value, "sigma", "a number")
    if not 0 <= sigma < math.inf:
        raise ArgumentValueError(f"sigma must be a standard deviation, finite and not negative, got {shown(value)}")
    return sigma


def check_choice(value: Any, name: str, choices: Any) -> None:
    names = get_args(choices)
    if value not in names:
        raise ArgumentValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {shown(value)}")


def as_strength(h: Any, x: Tensor) -> Tensor:
    """``h`` as (N, 1, 1) or (N, H, W)."""
    if not isinstance(h, Tensor):
        return torch.full((x.shape[0], 1, 1), as_positive_strength(h), dtype=working_dtype(x), device=x.device)
    if h.dtype not in FLOATING:
        raise ArgumentTypeError(f"h must be a number or a floating tensor, got {h.dtype}")
    n, _, height, width = x.shape
    if h.device != x.device:
        raise ArgumentValueError(f"h is on {h.device} but x is on {x.device}; move one of them")
    if h.shape in ((), (1,)):
        return h.reshape(1, 1, 1).expand(n, 1, 1)
    if h.shape in ((n, 1, height, width), (n, 1, 1, 1)):
        return h.squeeze(1)
    raise ArgumentValueError(
        f"h must be one number, ({n}, 1, 1, 1) or ({n}, 1, {height}, {width}) for this x, got {tuple(h.shape)}"
    )

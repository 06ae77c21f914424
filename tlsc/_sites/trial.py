"""Whether a module computes what its structure promises: tried on a copy with random parameters."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["EVERY_MAP", "computes", "is_conv"]

EVERY_MAP = (10**6, 10**6)
"""A window that covers every map."""
_TRIAL = (13, 17)  # neither side is a multiple of anything: attention in fixed partitions shows
_AGREES = 1e-5  # a forward may have a detour through float32


def is_conv(module: Any, size: int) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (size, size)
        and module.stride == (1, 1)
        and (module.groups == 1 or size > 1)
    )


def computes(module: nn.Module, build: Callable[[nn.Module], nn.Module], dim: int, maps: int) -> bool:
    """Whether ``module`` computes what ``build`` makes of it, on copies with random parameters."""
    generator = torch.Generator().manual_seed(0)
    images = [_random((1, dim, *_TRIAL), generator) for _ in range(maps)]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            trial = _randomised(module, generator, {})
            expected = trial(*images)
            if not isinstance(expected, Tensor) or expected.shape != images[0].shape:
                return False
            error = (build(trial)(*images) - expected).abs().max()
            return bool(error <= _AGREES * expected.abs().max())
    except Exception:  # it takes other arguments, or needs what a copy does not have: not what we look for
        return False


def _randomised(module: nn.Module, generator: torch.Generator, made: dict[int, nn.Module]) -> nn.Module:
    """A copy in evaluation mode without hooks, its tensors random float64 ones on the CPU."""
    if id(module) in made:
        return made[id(module)]
    new: nn.Module = module.__class__.__new__(module.__class__)
    made[id(module)] = new
    state = dict(module.__dict__)
    for name, value in state.items():
        if isinstance(value, OrderedDict) and name.endswith("_hooks"):
            state[name] = OrderedDict()
        elif isinstance(value, Tensor):
            state[name] = _stand_in(value, generator)
    state["_parameters"] = {
        name: None if value is None else nn.Parameter(_stand_in(value, generator), requires_grad=False)
        for name, value in module._parameters.items()
    }
    state["_buffers"] = {
        name: None
        if value is None
        else _stand_in(value, generator).abs() + (0.5 if value.is_floating_point() else 0)
        for name, value in module._buffers.items()
    }
    state["_modules"] = {
        name: None if child is None else _randomised(child, generator, made)
        for name, child in module._modules.items()
    }
    state["training"] = False
    state["_compiled_call_impl"] = None
    new.__dict__.update(state)
    return new


def _stand_in(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value.detach().cpu() if not value.is_meta else torch.zeros(value.shape, dtype=value.dtype)
    fan_in = max(1, math.prod(value.shape[1:]))
    return _random(tuple(value.shape), generator) * (2 / math.sqrt(fan_in))


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)

"""Layers between a statistic and the map that it meets, run on the grid of windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from .._models.slots import is_hooked
from .._statistics import reference as _reference

__all__ = ["PIECE", "in_pieces", "is_pointwise"]


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module treats the positions of a map one by one."""
    if isinstance(module, nn.Sequential) and type(module) is nn.Sequential:
        return all(is_pointwise(child) for child in module)
    if type(module) is nn.Conv2d:
        return set(module.kernel_size) == set(module.stride) == {1} and module.padding in ("valid", "same", (0, 0))
    if type(module) is nn.BatchNorm2d:
        return not module.training and module.track_running_stats
    if type(module) in _MIXING:
        return False
    return type(module).__module__ == "torch.nn.modules.activation" or type(module) in _KEEPING


_MIXING = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.RReLU)
_KEEPING = (nn.Identity, nn.Dropout, nn.Dropout2d)


# Elements of a grid that a tail works on at once: what it makes of them then stays in the cache.
PIECE = 2**18


def in_pieces(modules: tuple[nn.Module, ...], grid: Tensor) -> Tensor:
    """Modules that treat each position alike, one behind the other, on a grid (N, K, h, w), some rows at a time."""
    # Elsewhere than on the CPU there is no cache to stay in, and the device has its own precision and layouts.
    plain = grid.device.type == "cpu" and grid.dim() == 4 and grid.numel() > 0
    plain = plain and not _reference.is_traced(grid) and not torch.is_grad_enabled()
    if not plain or any(is_hooked(part) for module in modules for part in module.modules()):
        for module in modules:
            grid = module(grid)
        return grid
    rows = max(1, PIECE * grid.shape[2] // math.prod(grid.shape[1:]))
    if grid.shape[2] <= rows:
        return _through(modules, grid)
    out = None
    for n in range(grid.shape[0]):
        for start in range(0, grid.shape[2], rows):
            part = _through(modules, grid[n : n + 1, :, start : start + rows].contiguous())
            if out is None:
                out = part.new_empty((grid.shape[0], part.shape[1], *grid.shape[2:]))
            out[n, :, start : start + rows] = part[0]
    assert out is not None
    return out


def _through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The modules one behind the other; 1×1 convolutions as matrix products, which are several times faster.

    What nobody else has seen is overwritten: a piece then needs one buffer, which stays in the cache.
    """
    ours = False
    for module in _steps(modules):
        if _is_product(module) and not torch.is_autocast_enabled(x.device.type):
            x, ours = _product(module, x), True
        elif ours and type(module) in _IN_PLACE and "forward" not in module.__dict__:
            x = _IN_PLACE[type(module)](x)
        else:
            x, ours = module(x), False
    return x


_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {nn.ReLU: torch.relu_, nn.Sigmoid: torch.sigmoid_}


def _steps(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential and "forward" not in module.__dict__:
            yield from _steps(module)
        else:
            yield module


def _is_product(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(module) is nn.Conv2d and module.groups == 1 and "forward" not in module.__dict__


def _product(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    weight = convolution.weight.flatten(1).expand(x.shape[0], -1, -1)
    if convolution.bias is None:
        out = torch.bmm(weight, x.flatten(2))
    else:
        out = torch.baddbmm(convolution.bias[:, None], weight, x.flatten(2))
    return torch.unflatten(out, 2, x.shape[2:])

"""Functions of einops on recorded values: it looks for a back end by the type of what it is given, and would know
none for these."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["stubs"]


def stubs(proxy: type) -> dict[Any, Callable[..., Any]]:
    """What is called in place of einops' functions, if it has been imported; of recorded values, of type ``proxy``,
    they are made of PyTorch's operations, by einops' own recipes."""
    einops = sys.modules.get("einops.einops")
    if einops is None:
        return {}
    backend = _Recorded()

    def is_recorded(x: Any) -> bool:
        return any(isinstance(part, proxy) for part in (x if isinstance(x, (list, tuple)) else (x,)))

    def reduce(tensor: Any, pattern: str, reduction: Any, **lengths: Any) -> Any:
        if not is_recorded(tensor):
            return einops.reduce(tensor, pattern, reduction, **lengths)
        x = torch.stack(list(tensor)) if isinstance(tensor, (list, tuple)) else tensor
        recipe = einops._prepare_transformation_recipe(pattern, reduction, tuple(lengths), len(x.shape))
        return einops._apply_recipe(backend, recipe, x, reduction, tuple(lengths.items()))

    def rearrange(tensor: Any, pattern: str, **lengths: Any) -> Any:
        return reduce(tensor, pattern, "rearrange", **lengths)

    def repeat(tensor: Any, pattern: str, **lengths: Any) -> Any:
        return reduce(tensor, pattern, "repeat", **lengths)

    def einsum(*tensors_and_pattern: Any) -> Any:
        *tensors, pattern = tensors_and_pattern
        if not is_recorded(tensors):
            return einops.einsum(*tensors_and_pattern)
        return torch.einsum(einops._compactify_pattern_for_einsum(pattern), *tensors)

    return {
        einops.reduce: reduce,
        einops.rearrange: rearrange,
        einops.repeat: repeat,
        einops.einsum: einsum,
    }


class _Recorded:
    """What einops' recipes ask of a back end."""

    def shape(self, x: Any) -> list[Any]:
        """A list, which cannot be hashed, so that recorded numbers stay out of einops' caches."""
        return list(x.shape)

    def reshape(self, x: Any, shape: Any) -> Any:
        """As ``torch.reshape``."""
        return x.reshape(tuple(shape))

    def transpose(self, x: Any, axes: Any) -> Any:
        """As ``torch.permute``."""
        return x.permute(tuple(axes))

    def reduce(self, x: Any, operation: str, axes: Any) -> Any:
        """A reduction by its name."""
        axes = tuple(sorted(axes))
        if operation == "prod":
            for axis in reversed(axes):
                x = x.prod(axis)
            return x
        return getattr(x, {"min": "amin", "max": "amax"}.get(operation, operation))(axes)

    def add_axes(self, x: Any, n_axes: int, pos2len: dict[int, Any]) -> Any:
        """New axes at given places, repeated."""
        repeats = [-1] * n_axes
        for position, length in pos2len.items():
            x = x.unsqueeze(position)
            repeats[position] = length
        return x.expand(repeats)

    def is_float_type(self, x: Any) -> bool:
        """Whether a mean can be taken of it."""
        return bool(x.is_floating_point())

"""Let einops work on values that are being traced: it looks for a back end by the type of what it is given."""

from __future__ import annotations

import sys
from typing import Any

from torch import fx

__all__ = ["introduce"]


def introduce(proxy: type[fx.Proxy]) -> None:
    """Tell einops, if it has been imported, about a type of traced tensors."""
    backends = sys.modules.get("einops._backends")
    if backends is None or proxy in backends._type2backend:
        return

    class Traced(backends.AbstractBackend):  # type: ignore[misc, name-defined]
        framework_name = __name__

        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, proxy)

        def shape(self, x: Any) -> list[Any]:
            return list(x.shape)  # a list cannot be hashed, so that traced numbers stay out of einops' caches

        def reshape(self, x: Any, shape: Any) -> Any:
            return x.reshape(tuple(shape))

        def transpose(self, x: Any, axes: Any) -> Any:
            return x.permute(tuple(axes))

        def reduce(self, x: Any, operation: str, axes: Any) -> Any:
            axes = tuple(sorted(axes))
            if operation == "prod":
                for axis in reversed(axes):
                    x = x.prod(axis)
                return x
            return getattr(x, {"min": "amin", "max": "amax"}.get(operation, operation))(axes)

        def stack_on_zeroth_dimension(self, tensors: list[Any]) -> Any:
            import torch

            return torch.stack(tensors)

        def add_axes(self, x: Any, n_axes: int, pos2len: dict[int, Any]) -> Any:
            repeats = [-1] * n_axes
            for position, length in pos2len.items():
                x = x.unsqueeze(position)
                repeats[position] = length
            return x.expand(repeats)

        def tile(self, x: Any, repeats: Any) -> Any:
            return x.repeat(repeats)

        def concat(self, tensors: list[Any], axis: int) -> Any:
            import torch

            return torch.cat(tensors, axis)

        def add_axis(self, x: Any, new_position: int) -> Any:
            return x.unsqueeze(new_position)

        def is_float_type(self, x: Any) -> bool:
            return bool(x.is_floating_point())

        def einsum(self, pattern: str, *x: Any) -> Any:
            import torch

            return torch.einsum(pattern, *x)

    backends._type2backend[proxy] = Traced()

"""Models inside a description of them: what spandrel loads holds the module, and says which sizes it takes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from .._arguments import as_pair

__all__ = ["Described", "module_in", "size_taken"]


@runtime_checkable
class Described(Protocol):
    """As spandrel's descriptors: the network is an attribute, and an object says which sizes it takes."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def size_requirements(self) -> Any: ...


def module_in(model: Any) -> Any:
    """The module that a description holds; anything else as it is.

    Example:
        >>> norm = nn.InstanceNorm2d(8)
        >>> module_in(norm) is norm
        True
    """
    if isinstance(model, nn.Module) or not isinstance(model, Described):
        return model
    return model.model


def size_taken(model: Any, base_size: int | tuple[int, int]) -> int | tuple[int, int]:
    """``base_size``, (height, width), up to what a description says that its network takes, as its call pads."""
    if isinstance(model, nn.Module) or not isinstance(model, Described):
        return base_size
    height, width = as_pair(base_size, "base_size")
    right, down = model.size_requirements.get_padding(width, height)
    return height + down, width + right

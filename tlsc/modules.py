"""Thin modules over :mod:`tlsc.functional`, built from the global layers they stand in for."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from . import functional
from ._arguments import as_pair, as_positive_int, check_eps
from ._statistics import any_size as _graph
from ._statistics import reference as _reference
from ._statistics.correction import Correction
from ._windows import covers
from .errors import ArgumentTypeError, ArgumentValueError

__all__ = ["LocalAvgPool2d", "LocalGroupNorm", "LocalInstanceNorm2d"]

_Module = TypeVar("_Module", bound="_LocalModule")


class _LocalModule(nn.Module):
    """What the local modules share: a window, room for a correction, and maps without a batch dimension."""

    window: tuple[int, int]
    correction: Correction | None

    @classmethod
    def _standing_in(cls: type[_Module], module: nn.Module, window: int | tuple[int, int]) -> _Module:
        """A local module with everything that ``module`` has: the same parameters, hooks, flags, attributes.

        The containers themselves are shared, so that whatever later changes them (``load_state_dict`` with
        ``assign=True``, ``half()``, a hook's handle) changes both modules.
        """
        new = cls.__new__(cls)
        new.__dict__.update(module.__dict__)
        new.__dict__["_compiled_call_impl"] = None  # calls what ``module`` does
        new.window = as_pair(window, "window")
        new.correction = None
        return new

    def _covers(self, x: Tensor) -> bool:
        return covers(self.window, x.shape[-2:])


class LocalAvgPool2d(_LocalModule):
    """Mean over the window of each position: what ``AdaptiveAvgPool2d(1)`` is for a whole map.

    Args:
        window: an int or (height, width), in pixels of the map.
        stride: 1 for the exact mean, otherwise see :func:`tlsc.functional.local_mean`.

    Shape:
        (N, C, H, W) → (N, C, H, W), or without N. One built by :meth:`from_module` returns (N, C, 1, 1) where
        the window covers the map, exactly as the pool it stands in for.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`tlsc.functional.local_mean`.

    Example:
        >>> LocalAvgPool2d(window=2)(torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]]))
        tensor([[[[1.5000, 3.0000, 6.0000, 6.0000]]]])
    """

    stride: int
    _collapse: bool

    def __init__(self, window: int | tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        self.window = as_pair(window, "window")
        self.stride = as_positive_int(stride, "stride")
        self.correction = None
        self._collapse = False

    @classmethod
    def from_module(
        cls, pool: nn.AdaptiveAvgPool2d, window: int | tuple[int, int], stride: int = 1
    ) -> LocalAvgPool2d:
        """The local form of ``pool``, an ``AdaptiveAvgPool2d`` of output size 1.

        Raises:
            ArgumentTypeError, ArgumentValueError: ``pool`` is another module or has another output size.
        """
        if not isinstance(pool, nn.AdaptiveAvgPool2d):
            raise ArgumentTypeError(f"pool must be an AdaptiveAvgPool2d, got {type(pool).__name__}")
        if pool.output_size not in (1, (1, 1), [1, 1]):
            raise ArgumentValueError(f"pool must have output size 1 or (1, 1), got {pool.output_size!r}")
        new = cls._standing_in(pool, window)
        new.stride = as_positive_int(stride, "stride")
        new._collapse = True
        return new

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:
            return self._pool(input.unsqueeze(0)).squeeze(0)
        return self._pool(input)

    def _pool(self, x: Tensor) -> Tensor:
        if self._collapse and not _graph.applies() and self._covers(x):
            return functional._global_mean(x)
        # A view that repeats its elements would break the in-place activation of a layer behind.
        mean = functional._local_mean(x, self.window, self.stride, self.correction)
        return _reference._like(mean.contiguous(), x)

    def extra_repr(self) -> str:
        return f"window={self.window}, stride={self.stride}"


class LocalInstanceNorm2d(_LocalModule):
    """Instance norm over the window of each position: the local ``InstanceNorm2d``.

    Args:
        num_features: channels C.
        window: an int or (height, width), in pixels of the map.
        eps: added to the variance, in squared units of the input.
        affine: learn a scale and an offset per channel.

    Shape:
        (N, C, H, W) → (N, C, H, W), or without N.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`tlsc.functional.local_instance_norm`.

    Example:
        >>> LocalInstanceNorm2d(1, window=(1, 2), eps=0.25)(torch.tensor([[[[1.0, 3.0, 3.0, 7.0]]]]))
        tensor([[[[-0.8944,  0.0000, -0.9701,  0.9701]]]])
    """

    _version = 2  # the state dict layout of nn.InstanceNorm2d
    num_features: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, num_features: int, window: int | tuple[int, int], *, eps: float = 1e-5, affine: bool = False
    ) -> None:
        super().__init__()
        self.num_features = as_positive_int(num_features, "num_features")
        self.window = as_pair(window, "window")
        self.eps = check_eps(eps)
        self.affine = affine
        self.correction = None
        _register_affine(self, self.num_features, affine)

    @classmethod
    def from_module(cls, norm: nn.InstanceNorm2d, window: int | tuple[int, int]) -> LocalInstanceNorm2d:
        """The local form of ``norm``, with its own parameters.

        Raises:
            ArgumentTypeError, ArgumentValueError: ``norm`` is another module or keeps running statistics,
                and so is not global at test time.
        """
        if not isinstance(norm, nn.InstanceNorm2d):
            raise ArgumentTypeError(f"norm must be an InstanceNorm2d, got {type(norm).__name__}")
        if norm.track_running_stats:
            raise ArgumentValueError("norm has track_running_stats=True: it is not global at test time")
        return cls._standing_in(norm, window)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:
            return self._normalise(input.unsqueeze(0)).squeeze(0)
        return self._normalise(input)

    def _normalise(self, x: Tensor) -> Tensor:
        return functional._local_group_norm(x, self.window, None, self.weight, self.bias, self.eps, self.correction)

    def extra_repr(self) -> str:
        return f"{self.num_features}, window={self.window}, eps={self.eps}, affine={self.affine}"


class LocalGroupNorm(_LocalModule):
    """Group norm over the window of each position: the local ``GroupNorm``.

    Args:
        num_groups: groups into which the channels are cut; divides ``num_channels``.
        num_channels: channels C.
        window: an int or (height, width), in pixels of the map.
        eps: added to the variance, in squared units of the input.
        affine: learn a scale and an offset per channel.

    Shape:
        (N, C, H, W) → (N, C, H, W).

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`tlsc.functional.local_group_norm`.

    Example:
        >>> LocalGroupNorm(1, 2, window=(1, 2), eps=0.0, affine=False)(
        ...     torch.tensor([[[[1.0, 3.0, 3.0]], [[3.0, 1.0, 7.0]]]])
        ... )[0, 0]
        tensor([[-1.0000, -0.2294, -0.2294]])
    """

    num_groups: int
    num_channels: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        window: int | tuple[int, int],
        *,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.num_groups = as_positive_int(num_groups, "num_groups")
        self.num_channels = as_positive_int(num_channels, "num_channels")
        if self.num_channels % self.num_groups:
            raise ArgumentValueError(
                f"num_groups must divide num_channels, got {num_groups!r} and {num_channels!r}"
            )
        self.window = as_pair(window, "window")
        self.eps = check_eps(eps)
        self.affine = affine
        self.correction = None
        _register_affine(self, self.num_channels, affine)

    @classmethod
    def from_module(cls, norm: nn.GroupNorm, window: int | tuple[int, int]) -> LocalGroupNorm:
        """The local form of ``norm``, with its own parameters.

        Raises:
            ArgumentTypeError: ``norm`` is another module.
        """
        if not isinstance(norm, nn.GroupNorm):
            raise ArgumentTypeError(f"norm must be a GroupNorm, got {type(norm).__name__}")
        return cls._standing_in(norm, window)

    def forward(self, input: Tensor) -> Tensor:
        return functional._local_group_norm(
            input, self.window, self.num_groups, self.weight, self.bias, self.eps, self.correction
        )

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, window={self.window}, eps={self.eps}, affine={self.affine}"


def _register_affine(module: nn.Module, channels: int, affine: bool) -> None:
    module.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
    module.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine else None)

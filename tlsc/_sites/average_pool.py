"""``AdaptiveAvgPool2d(1)``: the mean over all positions."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from .._arguments import as_pair, as_positive_int
from .._plan import Action
from .._statistics import any_size
from .._statistics import reference as _reference
from ..errors import ArgumentTypeError, ArgumentValueError
from .kind import Kind, known
from .local_module import LocalModule
from .state import SiteState

__all__ = ["LocalAvgPool2d"]


class LocalAvgPool2d(LocalModule):
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
        >>> import torch
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
        field = self._field(x, second=False)
        if field is not None:
            return field.moments().mean.to(x.dtype)
        if self._collapse and not any_size.applies() and self._covers(x):
            return functional._global_mean(x)
        # A view that repeats its elements would break the in-place activation of a layer behind.
        mean = functional._local_mean(x, self.window, self.stride, self.correction)
        return _reference._like(mean.contiguous(), x)

    def _state(self) -> SiteState:
        return SiteState("mean", self.window, self.stride, correction=self.correction)

    def extra_repr(self) -> str:
        return f"window={self.window}, stride={self.stride}"


def _why_left(pool: nn.Module) -> tuple[Action, str] | None:
    size = pool.output_size
    if size in (1, (1, 1), [1, 1]):
        return None
    return "left global", f"output size {size!r}: only 1 and (1, 1) have a local form"


known(
    nn.AdaptiveAvgPool2d,
    Kind("AdaptiveAvgPool2d", LocalAvgPool2d.from_module, _why_left, strided=True, pools=True, sourced=True),  # type: ignore[arg-type]
)

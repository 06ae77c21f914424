"""``GroupNorm``."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from .._arguments import as_pair, as_positive_int, check_eps
from .._sources.reading import grouped, normalised
from ..errors import ArgumentTypeError, ArgumentValueError
from .kind import Kind, known
from .local_module import LocalModule, register_affine
from .state import SiteState

__all__ = ["LocalGroupNorm"]


class LocalGroupNorm(LocalModule):
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
        >>> import torch
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
        register_affine(self, self.num_channels, affine)

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
        field = None if self._tlsc_source is None else self._field(grouped(input, self.num_groups), True, self.eps)
        if field is not None:
            return normalised(input, field, self.num_groups, self.weight, self.bias, self.eps)
        return functional._local_group_norm(
            input, self.window, self.num_groups, self.weight, self.bias, self.eps, self.correction
        )

    def _state(self) -> SiteState:
        return SiteState("var_mean", self.window, eps=self.eps, groups=self.num_groups, correction=self.correction)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, window={self.window}, eps={self.eps}, affine={self.affine}"


known(
    nn.GroupNorm,
    Kind(
        "GroupNorm",
        lambda norm, window, stride: LocalGroupNorm.from_module(norm, window),  # type: ignore[arg-type]
        ranks=(4,),  # three dimensions are (N, C, L) to it
        sourced=True,
    ),
)

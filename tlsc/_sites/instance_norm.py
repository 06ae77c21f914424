"""``InstanceNorm2d`` without running statistics."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from .._arguments import as_pair, as_positive_int, check_eps
from .._plan import Action
from .._sources.reading import normalised
from ..errors import ArgumentTypeError, ArgumentValueError
from .kind import Kind, known
from .local_module import LocalModule, register_affine
from .state import SiteState

__all__ = ["LocalInstanceNorm2d"]


class LocalInstanceNorm2d(LocalModule):
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
        >>> import torch
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
        register_affine(self, self.num_features, affine)

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
        field = self._field(x, second=True, eps=self.eps)
        if field is not None:
            return normalised(x, field, None, self.weight, self.bias, self.eps)
        return functional._local_group_norm(x, self.window, None, self.weight, self.bias, self.eps, self.correction)

    def _state(self) -> SiteState:
        return SiteState("var_mean", self.window, eps=self.eps, correction=self.correction)

    def extra_repr(self) -> str:
        return f"{self.num_features}, window={self.window}, eps={self.eps}, affine={self.affine}"


def _why_left(norm: nn.Module) -> tuple[Action, str] | None:
    if not norm.track_running_stats:
        return None
    mode = " (now in training mode)" if norm.training else ""
    return "left alone", f"has running statistics: not global in eval mode{mode}"


known(
    nn.InstanceNorm2d,
    Kind(
        "InstanceNorm2d",
        lambda norm, window, stride: LocalInstanceNorm2d.from_module(norm, window),  # type: ignore[arg-type]
        _why_left,
        sourced=True,
    ),
)

"""Non-local blocks, recognised by their structure, whatever their class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .._statistics import any_size
from .._statistics.non_local import Weighting, non_local
from ..errors import ArgumentTypeError
from .kind import Kind, recogniser
from .local_module import LocalModule
from .trial import EVERY_MAP, computes, is_conv

__all__ = ["LocalNonLocalBlock", "non_local_kind"]


class LocalNonLocalBlock(LocalModule):
    """The local form of a non-local block: each position attends to its own window.

    Built by :meth:`from_module`, with the block's own parameters under their own names. Where the window covers
    the map it computes what the original does.

    Shape:
        (N, C, H, W) → (N, C, H, W).

    Example:
        >>> class NonLocalBlock(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        ...         self.W = nn.Conv2d(channels // 2, channels, 1)
        ...     def forward(self, x):
        ...         q, k, v = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        ...         weights = (q.transpose(1, 2) @ k).softmax(-1)
        ...         return x + self.W((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))
        >>> LocalNonLocalBlock.from_module(NonLocalBlock(4), window=48)
        LocalNonLocalBlock(
          window=(48, 48), weighting=softmax, scale=1
          (theta): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))
          (phi): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))
          (g): Conv2d(4, 2, kernel_size=(1, 1), stride=(1, 1))
          (W): Conv2d(2, 4, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    _block: _Block

    @classmethod
    def from_module(cls, module: nn.Module, window: int | tuple[int, int]) -> LocalNonLocalBlock:
        """The local form of ``module``, recognised by its structure.

        Raises:
            ArgumentTypeError: ``module`` does not compute a non-local block in a way that is known here.
            ArgumentValueError: ``window`` is not one or two positive ints.
        """
        block = _non_local_block(module)
        if block is None:
            raise ArgumentTypeError(f"{type(module).__name__} is not recognised as a non-local block")
        return cls._made(module, window, block)

    @classmethod
    def _made(cls, module: nn.Module, window: int | tuple[int, int], block: _Block) -> LocalNonLocalBlock:
        new = cls._standing_in(module, window)
        new._block = block
        return new

    def forward(self, x: Tensor) -> Tensor:
        block = self._block
        q, k, v = (getattr(self, name)(x) for name in block.names[:3])
        if not any_size.applies() and self._covers(x):
            scores = q.flatten(2).transpose(1, 2) @ k.flatten(2)
            scores = scores if block.scale == 1 else scores * block.scale
            weights = scores.softmax(-1) if block.weighting == "softmax" else scores / scores.shape[-1]
            mixed = (weights @ v.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        else:
            mixed = non_local(q, k, v, self.window, block.scale, block.weighting)
        out: Tensor = getattr(self, block.names[3])(mixed)
        if block.norm:
            out = getattr(self, block.norm)(out)
        return out + x if block.residual else out

    def extra_repr(self) -> str:
        return f"window={self.window}, weighting={self._block.weighting}, scale={self._block.scale:.6g}"


@recogniser
def non_local_kind(module: nn.Module) -> Kind | None:
    """How a non-local block becomes local."""
    block = _non_local_block(module)
    if block is None:
        return None
    return Kind(
        "NonLocalBlock",
        lambda module, window, stride: LocalNonLocalBlock._made(module, window, block),
        strided=True,
    )


@dataclass(frozen=True)
class _Block:
    """What a non-local block does: its parts' names (q, k, v, out), and the form of its attention."""

    names: tuple[str, str, str, str]
    norm: str
    scale: float
    weighting: Weighting
    residual: bool


_PARTS = (("theta", "phi", "g"), ("t", "p", "g"), ("query", "key", "value"), ("q", "k", "v"))
_OUTS = ("W", "w", "W_z", "z", "out", "conv_out", "out_conv", "o", "proj", "proj_out", "project_out")


def _non_local_block(module: nn.Module) -> _Block | None:
    """The form of a non-local block; None if the module is not one."""
    children = module._modules
    found = next((names for names in _PARTS if all(name in children for name in names)), None)
    outs = [name for name in _OUTS if name in children]
    if found is None or len(outs) != 1 or "forward" in module.__dict__:
        return None
    names = (*found, outs[0])
    widths = _widths(module, names)
    if widths is None:
        return None
    norm = next((name for name in ("norm", "bn") if isinstance(children.get(name), nn.BatchNorm2d)), "")
    for weighting, scale in _forms(module, *widths):
        for residual in (True, False):
            block = _Block(names, norm, scale, weighting, residual)

            def build(trial: nn.Module, block: _Block = block) -> nn.Module:
                return LocalNonLocalBlock._made(trial, EVERY_MAP, block)

            if computes(module, build, widths[0], 1):
                return block
    return None


def _widths(module: nn.Module, names: tuple[str, str, str, str]) -> tuple[int, int] | None:
    """Channels of the map and of its queries; None where the parts do not fit together."""
    convs = [_pointwise_in(module._modules[name]) for name in names]
    q, k, v, out = convs
    if q is None or k is None or v is None or out is None:
        return None
    dim = q.in_channels
    fits = {k.in_channels, v.in_channels, out.out_channels} == {dim} and q.out_channels == k.out_channels
    return (dim, q.out_channels) if fits and v.out_channels == out.in_channels else None


def _forms(module: nn.Module, dim: int, queries: int) -> list[tuple[Weighting, float]]:
    """The weightings that are tried, each with the factor of its products."""
    own = getattr(module, "scale", None)
    scales = [1.0, queries**-0.5, dim**-0.5, *([own] if isinstance(own, (int, float)) else [])]
    return [*(("softmax", scale) for scale in dict.fromkeys(float(s) for s in scales)), ("mean", 1.0)]


def _pointwise_in(module: nn.Module | None) -> nn.Conv2d | None:
    """The 1×1 convolution that a part of a non-local block is, alone or before a norm; also inside a wrapper."""
    if module is None:
        return None
    convs = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    # Any other layer with weights, or one that pools, makes it something else.
    others = [
        part
        for part in module.modules()
        if not isinstance(part, (nn.Conv2d, nn.BatchNorm2d, nn.Identity, nn.ReLU)) and not part._modules
    ]
    return convs[0] if len(convs) == 1 and is_conv(convs[0], 1) and not others else None

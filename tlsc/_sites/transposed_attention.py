"""Layers of transposed attention, recognised by their structure, whatever their class."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

from torch import Tensor, nn

from .._arguments import as_pair, check_attention, shown
from .._statistics import any_size
from .._statistics.transposed_attention import attend, default_stride, overlapping, sliding
from ..errors import ArgumentTypeError, ArgumentValueError
from .kind import Kind, recogniser
from .local_module import LocalModule
from .trial import EVERY_MAP, computes, is_conv

__all__ = ["Form", "LocalTransposedAttention", "overlap", "transposed_kind"]

Form = Literal["sliding", "overlap"]
_CROSS = ("cross", "cross, swapped")


class LocalTransposedAttention(LocalModule):
    """The local form of a transposed attention layer, with that layer's own parameters under their own names.

    Built by :meth:`from_module`. Where the window covers the map it computes what the original does.

    Shape:
        (N, C, H, W) → (N, C, H, W); cross attention takes two maps of that shape.

    Example:
        >>> import torch
        >>> from tlsc.attention import transposed_attention
        >>> class Attention(nn.Module):
        ...     def __init__(self, dim, heads):
        ...         super().__init__()
        ...         self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        ...         self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        ...         self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        ...         self.project_out = nn.Conv2d(dim, dim, 1)
        ...     def forward(self, x):
        ...         q, k, v = (y.unflatten(1, (len(self.temperature), -1))
        ...                    for y in self.qkv_dwconv(self.qkv(x)).chunk(3, 1))
        ...         out = transposed_attention(q, k, v, self.temperature)
        ...         return self.project_out(out.flatten(1, 2))
        >>> LocalTransposedAttention.from_module(Attention(8, 2), window=48)
        LocalTransposedAttention(
          window=(48, 48), form=sliding, stride=(4, 4)
          (qkv): Conv2d(8, 24, kernel_size=(1, 1), stride=(1, 1))
          (qkv_dwconv): Conv2d(24, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=24)
          (project_out): Conv2d(8, 8, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    form: Form
    stride: tuple[int, int]
    temperature: Tensor
    _layout: str

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        window: int | tuple[int, int],
        *,
        form: Form = "sliding",
        stride: int | tuple[int, int] | None = None,
    ) -> LocalTransposedAttention:
        """The local form of ``module``, recognised by its structure.

        Args:
            module: a transposed attention layer, see :func:`recognise`.
            window: an int or (height, width), in pixels of the map.
            form: "sliding", or "overlap" for the published one.
            stride: of the sliding form, see :func:`local_transposed_attention`.

        Raises:
            ArgumentTypeError: ``module`` does not compute transposed attention in a way that is known here.
            ArgumentValueError: ``form`` is neither of the two; as :func:`local_transposed_attention`.
        """
        if form not in ("sliding", "overlap"):
            raise ArgumentValueError(f'form must be "sliding" or "overlap", got {shown(form)}')
        layout = _transposed_layout(module)
        if layout is None:
            raise ArgumentTypeError(f"{type(module).__name__} is not recognised as transposed attention")
        return cls._made(module, window, layout, form, stride)

    @classmethod
    def _made(
        cls,
        module: nn.Module,
        window: int | tuple[int, int],
        layout: str,
        form: Form = "sliding",
        stride: int | tuple[int, int] | None = None,
    ) -> LocalTransposedAttention:
        new = cls._standing_in(module, window)
        new.form = form
        new.stride = default_stride(new.window) if stride is None else as_pair(stride, "stride")
        new._layout = layout
        return new

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        parts = self._qkv(x, y)
        temperature: Tensor = self.temperature
        heads = temperature.numel()
        q, k, v = (part.reshape(part.shape[0], heads, -1, *part.shape[2:]) for part in parts)
        if not any_size.applies() and self._covers(q):
            out = attend(q, k, v, temperature.reshape(-1, 1, 1))
        elif self.form == "sliding":
            out = sliding(q, k, v, check_attention(q, k, v, temperature), self.window, self.stride)
        else:
            out = overlapping(q, k, v, check_attention(q, k, v, temperature), self.window)
        return self.project_out(out.flatten(1, 2))  # type: ignore[no-any-return, operator]

    def _qkv(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        parts: Any = self
        if self._layout in _CROSS:
            if y is None:
                raise ArgumentTypeError("cross attention takes two maps, got one")
            first, second = (x, y) if self._layout == "cross" else (y, x)
            return parts.q_dwconv(parts.q(first)), *parts.kv_dwconv(parts.kv(second)).chunk(2, 1)
        if y is not None:
            raise ArgumentTypeError("self-attention takes one map, got two")
        if self._layout == "linear":
            maps = parts.qkv(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        else:
            maps = getattr(self, self._layout)(parts.qkv(x))
        return tuple(maps.chunk(3, 1))

    def extra_repr(self) -> str:
        stride = f", stride={self.stride}" if self.form == "sliding" else ""
        return f"window={self.window}, form={self.form}{stride}"


def overlap(module: nn.Module, window: tuple[int, int]) -> LocalTransposedAttention:
    """Factory for :func:`tlsc.register`: transposed attention in the published, overlapping form.

    Args:
        module: a transposed attention layer, see :func:`tlsc.attention.recognise`.
        window: (height, width), in pixels of the map.

    Raises:
        ArgumentTypeError: ``module`` is not recognised as transposed attention.

    Example:
        >>> import tlsc
        >>> class Attention(nn.Module):
        ...     '''As in Restormer.'''
        >>> tlsc.register(Attention, overlap).remove()
    """
    return LocalTransposedAttention.from_module(module, window, form="overlap")


@recogniser
def transposed_kind(module: nn.Module) -> Kind | None:
    """How a layer of transposed attention becomes local; a stride of 1 is taken as "the default".

    Every position's own window would cost too much.
    """
    layout = _transposed_layout(module)
    if layout is None:
        return None
    return Kind(
        "TransposedAttention",
        lambda module, window, stride: LocalTransposedAttention._made(
            module, window, layout, stride=None if stride == 1 else stride
        ),
        strided=True,
    )


def _transposed_layout(module: nn.Module) -> str | None:
    """How a transposed attention layer computes q, k and v; None if it is not one."""
    temperature, project_out = getattr(module, "temperature", None), getattr(module, "project_out", None)
    if not isinstance(temperature, Tensor) or not is_conv(project_out, 1) or "forward" in module.__dict__:
        return None
    dim, heads = project_out.in_channels, temperature.numel()
    if project_out.out_channels != dim or not heads or dim % heads or temperature.shape[-2:] != (1, 1):
        return None
    for layout in _layouts(module, dim):
        maps = 2 if layout in _CROSS else 1

        def build(trial: nn.Module, layout: str = layout) -> nn.Module:
            return LocalTransposedAttention._made(trial, EVERY_MAP, layout)

        if computes(module, build, dim, maps):
            return layout
    return None


def _layouts(module: nn.Module, dim: int) -> tuple[str, ...]:
    """The ways in which the layer's parts, by their names and sizes, could make q, k and v."""
    qkv = getattr(module, "qkv", None)
    if isinstance(qkv, nn.Linear) and (qkv.in_features, qkv.out_features) == (dim, 3 * dim):
        return ("linear",)
    if is_conv(qkv, 1) and (qkv.in_channels, qkv.out_channels) == (dim, 3 * dim):
        names = ("qkv_dwconv", "qkv_conv")
        return tuple(name for name in names if _is_depthwise(getattr(module, name, None), 3 * dim))
    pointwise = all(is_conv(getattr(module, name, None), 1) for name in ("q", "kv"))
    parts = (("q_dwconv", dim), ("kv_dwconv", 2 * dim))
    depthwise = all(_is_depthwise(getattr(module, name, None), width) for name, width in parts)
    return _CROSS if pointwise and depthwise else ()


def _is_depthwise(module: Any, channels: int) -> TypeGuard[nn.Conv2d]:
    return is_conv(module, 3) and module.groups == module.in_channels == module.out_channels == channels

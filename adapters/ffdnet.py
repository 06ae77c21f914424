"""FFDNet: a denoiser that works on the image reorganised to half its size, told the noise level as an input.

Source: Zhang, Zuo, Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising",
IEEE TIP 2018, arXiv 1710.04026, section III.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tlsc._arguments import shown
from tlsc.adapters._padding import cut, padded
from tlsc.adapters.architecture import Architecture, Found
from tlsc.adapters.checkpoints import Weights
from tlsc.adapters.descriptor import Descriptor
from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["FFDNet", "PixelShuffle", "PixelUnshuffle", "load_demo_ffdnet"]

Form = Literal["shuffle", "convolution"]


class _Reorganisation(nn.Module):
    kernel: Tensor | None

    def __init__(self, channels: int, form: Form = "shuffle") -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ArgumentValueError(f"channels must be a positive int, got {shown(channels)}")
        if form not in ("shuffle", "convolution"):
            raise ArgumentValueError(f"form must be 'shuffle' or 'convolution', got {shown(form)}")
        self.channels = channels
        self.form = form
        # One kernel per position of the block, repeated for each channel; not part of the state dict.
        kernel = torch.eye(4).reshape(4, 1, 2, 2).repeat(channels, 1, 1, 1) if form == "convolution" else None
        self.register_buffer("kernel", kernel, persistent=False)

    def _check(self, x: Tensor, channels: int, multiple: int) -> None:
        if x.dim() != 4 or x.shape[1] != channels:
            raise ArgumentValueError(f"input must be (N, {channels}, H, W), got shape {tuple(x.shape)}")
        if multiple > 1 and (x.shape[2] % multiple or x.shape[3] % multiple):
            raise ArgumentValueError(f"height and width must be even, got {x.shape[2]}×{x.shape[3]}: pad first")

    def extra_repr(self) -> str:
        return f"{self.channels}, form={self.form!r}"


class PixelUnshuffle(_Reorganisation):
    """Each 2×2 block becomes channels: pixels (0, 0), (0, 1), (1, 0), (1, 1) of a channel, then the next.

    Args:
        channels: C, of the input.
        form: "shuffle" uses PyTorch's operator; "convolution" a strided convolution of 0/1 kernels, for runtimes
            without space-to-depth. They agree bit for bit on finite values.

    Shape:
        (N, C, H, W) → (N, 4·C, H/2, W/2), H and W even.

    Raises:
        ArgumentValueError: an argument or the input's shape cannot be used.

    Example:
        >>> PixelUnshuffle(1, "convolution")(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).flatten()
        tensor([1., 2., 3., 4.])
    """

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, self.channels, 2)
        if self.kernel is None:
            return F.pixel_unshuffle(x, 2)
        return F.conv2d(x, self.kernel.to(x.dtype), stride=2, groups=self.channels)


class PixelShuffle(_Reorganisation):
    """The inverse of :class:`PixelUnshuffle`, exactly.

    Args:
        channels: C, of the output.
        form: "shuffle", or "convolution": a transposed convolution of 0/1 kernels.

    Shape:
        (N, 4·C, H, W) → (N, C, 2·H, 2·W).

    Raises:
        ArgumentValueError: an argument or the input's shape cannot be used.

    Example:
        >>> x = torch.rand(1, 3, 4, 6)
        >>> torch.equal(PixelShuffle(3)(PixelUnshuffle(3)(x)), x)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, 4 * self.channels, 1)
        if self.kernel is None:
            return F.pixel_shuffle(x, 2)
        return F.conv_transpose2d(x, self.kernel.to(x.dtype), stride=2, groups=self.channels)


class FFDNet(nn.Module):
    """Denoiser for a known noise level: 3×3 convolutions on the half-size map, ReLU between them.

    The 2×2 blocks of the image become channels (:class:`PixelUnshuffle`), preceded by one channel of noise
    level per image channel. Images of odd size are extended by their last row or column, and the output is cut
    back. The noise level is an input and not a statistic of the image, so the network has nothing to convert,
    and :func:`tlsc.convert` says so.

    Args:
        channels: 3 for colour, 1 for grey.
        width: channels of the hidden layers; None for the published 96 (colour) or 64 (grey).
        depth: convolutions, at least 2; None for the published 12 (colour) or 15 (grey).
        form: of the reorganisation and its inverse, see :class:`PixelUnshuffle`. The weights are the same.

    Shape:
        image (N, C, H, W), any size from 1×1, values in [0, 1]; sigma, the standard deviation of the noise in the
        same unit (25/255, not 25): a number, a tensor () or (N,), or a map (N, 1, H, W), averaged over 2×2 blocks.
        Output (N, C, H, W).

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used, also in ``forward``.

    Source: Zhang, Zuo, Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising",
    IEEE TIP 2018, arXiv 1710.04026.

    Example:
        >>> model = FFDNet(width=16, depth=4)
        >>> model(torch.rand(2, 3, 37, 50), torch.tensor([15 / 255, 50 / 255])).shape
        torch.Size([2, 3, 37, 50])
    """

    def __init__(
        self, channels: int = 3, width: int | None = None, depth: int | None = None, form: Form = "shuffle"
    ) -> None:
        super().__init__()
        self.unshuffle = PixelUnshuffle(channels, form)
        self.shuffle = PixelShuffle(channels, form)
        width = width if width is not None else (64 if channels == 1 else 96)
        depth = depth if depth is not None else (15 if channels == 1 else 12)
        if width < 1 or depth < 2:
            raise ArgumentValueError(f"width must be at least 1 and depth at least 2, got {width} and {depth}")
        self.channels = channels
        sizes = [5 * channels, *[width] * (depth - 1), 4 * channels]
        layers: list[nn.Module] = []
        for into, out in pairwise(sizes):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.tlsc = Descriptor(
            "FFDNet",
            {"channels": channels, "width": width, "depth": depth},
            task="denoising",
            in_channels=channels,
            out_channels=channels,
            inputs=partial(_inputs, channels),
        )

    def forward(self, image: Tensor, sigma: float | Tensor) -> Tensor:
        level = self._level(image, sigma)
        height, width = image.shape[-2:]
        blocks = self.unshuffle(padded(image, 2, "replicate"))
        if level.shape[-2:] != (1, 1) or image.shape[-2:] == (1, 1):
            level = F.avg_pool2d(padded(level, 2, "replicate"), 2)
        level = level.expand(image.shape[0], self.channels, *blocks.shape[-2:])
        restored = self.shuffle(self.model(torch.cat([level, blocks], dim=1)))
        return cut(restored, height, width)

    def _level(self, image: Tensor, sigma: float | Tensor) -> Tensor:
        """The noise level as (N or 1, 1, 1 or H, 1 or W)."""
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ArgumentTypeError(f"image must be a floating tensor (N, {self.channels}, H, W), got {got}")
        if image.dim() != 4 or image.shape[1] != self.channels or not (image.shape[2] and image.shape[3]):
            raise ArgumentValueError(
                f"image must be (N, {self.channels}, H, W) with pixels, got shape {tuple(image.shape)}"
            )
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float, Tensor)):
            raise ArgumentTypeError(f"sigma must be a number or a tensor, got {type(sigma).__name__}")
        if not isinstance(sigma, Tensor):
            if not 0 <= sigma < float("inf"):
                raise ArgumentValueError(f"sigma must be finite and not negative, got {shown(sigma)}")
            return image.new_full((1, 1, 1, 1), sigma)
        batch, _, height, width = image.shape
        level = sigma.to(image)
        if level.dim() == 0:
            return level.reshape(1, 1, 1, 1)
        if level.dim() == 1 and level.shape[0] == batch:
            return level.reshape(batch, 1, 1, 1)
        if (
            level.dim() == 4
            and level.shape[0] == batch
            and level.shape[1] == 1
            and level.shape[2:] == image.shape[2:]
        ):
            return level
        raise ArgumentValueError(
            f"sigma must be a number, ({batch},) or ({batch}, 1, {height}, {width}) for this image, "
            f"got shape {tuple(level.shape)}"
        )


def _inputs(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, channels, height, width), torch.full((1,), 25 / 255)


def load_demo_ffdnet(form: Form = "shuffle") -> FFDNet:
    """A small colour FFDNet with weights trained here, in evaluation mode, on the CPU.

    Args:
        form: of the reorganisation, see :class:`PixelUnshuffle`.

    Raises:
        FileNotFoundError: its weight file is missing from the installation.

    Example:
        >>> load_demo_ffdnet().training
        False
    """
    state = load_file(Path(__file__).resolve().parent / "weights" / "ffdnet.safetensors")
    convolutions = [value for name, value in state.items() if name.endswith("weight")]
    model = FFDNet(3, width=convolutions[0].shape[0], depth=len(convolutions), form=form)
    model.load_state_dict(state)
    return model.eval()


def _settings(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    kernels = _kernels(state)
    return {"channels": kernels[-1].shape[0] // 4, "width": kernels[0].shape[0], "depth": len(kernels)}


def _kernels(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The convolutions' weights, in order; none if there is anything else, or a number is missing."""
    names = [f"model.{2 * index}.{kind}" for index in range(len(state) // 2) for kind in ("weight", "bias")]
    if len(names) < 4 or set(names) != set(state) or any(state[name].dim() != 4 for name in names[::2]):
        return []
    return [state[name] for name in names[::2]]


class _FFDNets(Architecture):
    """Numbered convolutions are what many networks are: only their channels tell this one."""

    def find(self, weights: Weights) -> Iterator[Found]:
        for found in super().find(weights):
            kernels = _kernels(found.own.state)
            if kernels and (kernels[0].shape[1], kernels[-1].shape[0]) in ((5, 4), (15, 12)):
                yield found


ARCHITECTURE = _FFDNets("FFDNet", FFDNet, ("model.0.weight", "model.0.bias", "model.2.weight"), _settings)

"""HINet: two U-Nets in a row with half instance norm in their encoders.

Source: Chen, Lu, Zhang, Chu, Chen, "HINet: Half Instance Normalization Network for Image Restoration", CVPRW 2021,
arXiv 2105.06086. Wiring and parameter names are the published ones, the code is our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tlsc._arguments import as_positive_int
from tlsc.adapters._padding import cut, padded
from tlsc.adapters.architecture import Architecture, count, dimensions
from tlsc.adapters.descriptor import Descriptor, Padding
from tlsc.errors import ArgumentValueError

__all__ = ["ARCHITECTURE", "HINet"]


class HINet(nn.Module):
    """HINet as published; ``hin_position_left=3`` is what its GoPro checkpoints have.

    Level ``i`` of both U-Nets has ``wf · 2^i`` channels at ``1 / 2^i`` of the resolution. Images are padded with
    zeros right and bottom to a multiple of ``padder_size``, the outputs cut back. Where the deepest normalised map
    would have a single position, which has no variance, they are padded once more to the right.

    Args:
        in_chn: channels of the image.
        wf: channels of level 0.
        depth: number of levels.
        relu_slope: of the leaky ReLUs.
        hin_position_left, hin_position_right: first and last level whose encoder blocks normalise half of their
            channels; none where left is greater.
        padder_size: a multiple of ``2^(depth − 1)``, in pixels.

    Shape:
        (N, in_chn, H, W) → [stage 1, stage 2], each (N, in_chn, H, W). The last one is the result.

    Raises:
        ArgumentTypeError, ArgumentValueError: a setting is no positive int, ``padder_size`` does not fit ``depth``,
            or half of an odd number of channels would have to be normalised.

    Example:
        >>> stages = HINet(wf=4, depth=3)(torch.rand(1, 3, 37, 50))
        >>> [tuple(stage.shape) for stage in stages]
        [(1, 3, 37, 50), (1, 3, 37, 50)]
    """

    tlsc: Descriptor

    def __init__(
        self,
        in_chn: int = 3,
        wf: int = 64,
        depth: int = 5,
        relu_slope: float = 0.2,
        hin_position_left: int = 0,
        hin_position_right: int = 4,
        padder_size: int = 16,
    ) -> None:
        super().__init__()
        for name, value in {"in_chn": in_chn, "wf": wf, "depth": depth, "padder_size": padder_size}.items():
            as_positive_int(value, name)
        deepest = 2 ** (depth - 1)
        if padder_size % deepest:
            raise ArgumentValueError(
                f"padder_size must be a multiple of 2^(depth - 1) = {deepest}, got {padder_size} with depth {depth}"
            )
        normalised = [i for i in range(depth) if hin_position_left <= i <= hin_position_right]
        if wf % 2 and 0 in normalised:
            raise ArgumentValueError(f"wf must be even to normalise half of level 0, got {wf}")
        channels = [wf * 2**i for i in range(depth)]
        self.conv_01 = nn.Conv2d(in_chn, wf, 3, padding=1)
        self.conv_02 = nn.Conv2d(in_chn, wf, 3, padding=1)
        self.down_path_1 = _down_path(channels, normalised, relu_slope, fusion=False)
        self.down_path_2 = _down_path(channels, normalised, relu_slope, fusion=True)
        self.up_path_1, self.skip_conv_1 = _up_path(channels, relu_slope)
        self.up_path_2, self.skip_conv_2 = _up_path(channels, relu_slope)
        self.sam12 = _SupervisedAttention(wf, in_chn)
        self.cat12 = nn.Conv2d(2 * wf, wf, 1)
        self.last = nn.Conv2d(wf, in_chn, 3, padding=1)
        self.padder_size = padder_size
        # Two positions of the deepest normalised map, in pixels.
        self._least = 2 ** (max(normalised) + 1) if normalised else 1
        self.tlsc = Descriptor(
            "HINet",
            {
                "in_chn": in_chn,
                "wf": wf,
                "depth": depth,
                "relu_slope": relu_slope,
                "hin_position_left": hin_position_left,
                "hin_position_right": hin_position_right,
                "padder_size": padder_size,
            },
            in_channels=in_chn,
            out_channels=in_chn,
            padding=Padding(padder_size),
            crop=256,
            output=-1,
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[-2:]
        image = padded(image, self.padder_size, wider=self._wider(height, width))
        x = self.conv_01(image)
        encoded: list[Tensor] = []
        for block in self.down_path_1[:-1]:
            x, features = block(x)
            encoded.append(features)
        x = self.down_path_1[-1](x)
        decoded: list[Tensor] = []
        for up, skip, features in zip(self.up_path_1, self.skip_conv_1, reversed(encoded), strict=True):
            x = up(x, skip(features))
            decoded.insert(0, x)
        attended, first = self.sam12(x, image)
        x = self.cat12(torch.cat([self.conv_02(image), attended], 1))
        again: list[Tensor] = []
        for block, *fused in zip(self.down_path_2[:-1], encoded, decoded, strict=True):
            x, features = block(x, *fused)
            again.append(features)
        x = self.down_path_2[-1](x)
        for up, skip, features in zip(self.up_path_2, self.skip_conv_2, reversed(again), strict=True):
            x = up(x, skip(features))
        second = self.last(x) + image
        return [cut(stage, height, width) for stage in (first, second)]

    def _wider(self, height: int, width: int) -> int:
        """By how much more the width is padded: by ``padder_size`` where the deepest map would be 1×1."""
        if self._least <= self.padder_size:
            return 0
        unit = self.padder_size
        down, across = ((n + unit - 1) // unit for n in (height, width))
        # Without a branch, as graphs hold for every size: unit // 1 if there is one cell, else 0. ONNX Runtime 1.32
        # takes ``unit * (1 // cells)`` for ``unit // cells``, and ONNX divides negative integers towards zero.
        return unit // (unit * (down + across - 2) + 1)


def _down_path(channels: list[int], normalised: list[int], relu_slope: float, fusion: bool) -> nn.ModuleList:
    last = len(channels) - 1
    return nn.ModuleList(
        _Block(
            channels[max(i - 1, 0)],
            channels[i],
            relu_slope,
            downsample=i < last,
            fusion=fusion and i < last,
            half_norm=i in normalised,
        )
        for i in range(len(channels))
    )


def _up_path(channels: list[int], relu_slope: float) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Steps from the deepest level upwards, and the convolutions that the encoder's features pass."""
    steps = list(reversed(range(len(channels) - 1)))
    up = nn.ModuleList(_Up(channels[i + 1], channels[i], relu_slope) for i in steps)
    return up, nn.ModuleList(nn.Conv2d(channels[i], channels[i], 3, padding=1) for i in steps)


class _Block(nn.Module):
    """Two convolutions and a 1×1 beside them; the first one's result half normalised on some levels.

    With ``downsample`` it returns the halved map and the map; with ``fusion`` it takes the first U-Net's features.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        relu_slope: float,
        *,
        downsample: bool = False,
        fusion: bool = False,
        half_norm: bool = False,
    ) -> None:
        super().__init__()
        self.identity = nn.Conv2d(in_channels, channels, 1)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.relu_1 = nn.LeakyReLU(relu_slope)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu_2 = nn.LeakyReLU(relu_slope)
        self.csff_enc = nn.Conv2d(channels, channels, 3, padding=1) if fusion else None
        self.csff_dec = nn.Conv2d(channels, channels, 3, padding=1) if fusion else None
        self.norm = nn.InstanceNorm2d(channels // 2, affine=True) if half_norm else None
        self.downsample = nn.Conv2d(channels, channels, 4, stride=2, padding=1, bias=False) if downsample else None

    def forward(
        self, x: Tensor, encoded: Tensor | None = None, decoded: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        out: Tensor = self.conv_1(x)
        if self.norm is not None:
            first, second = out.chunk(2, dim=1)
            out = torch.cat([self.norm(first), second], dim=1)
        out = self.relu_2(self.conv_2(self.relu_1(out))) + self.identity(x)
        if self.csff_enc is not None and self.csff_dec is not None:
            out = out + self.csff_enc(encoded) + self.csff_dec(decoded)
        return out if self.downsample is None else (self.downsample(out), out)


class _Up(nn.Module):
    """Twice the size, beside the encoder's features, through a block."""

    def __init__(self, in_channels: int, channels: int, relu_slope: float) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.conv_block = _Block(in_channels, channels, relu_slope)

    def forward(self, x: Tensor, bridge: Tensor) -> Tensor:
        return self.conv_block(torch.cat([self.up(x), bridge], dim=1))  # type: ignore[no-any-return]


class _SupervisedAttention(nn.Module):
    """A first result, and the features weighted by what can be seen in it."""

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, image_channels, 3, padding=1)
        self.conv3 = nn.Conv2d(image_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.conv2(x) + image
        return self.conv1(x) * torch.sigmoid(self.conv3(restored)) + x, restored


def _settings(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read off names and shapes; the slope of the ReLUs leaves no trace in them and is taken as published."""
    wf, in_chn = dimensions(state, ("conv_01.weight", "conv_02.weight"), 4)[:2]
    depth = count(state, "down_path_1.{}.")
    levels = [i for i in range(depth) if f"down_path_1.{i}.norm.weight" in state]
    return {
        "in_chn": in_chn,
        "wf": wf,
        "depth": depth,
        "hin_position_left": min(levels, default=0),
        "hin_position_right": max(levels, default=-1),
        "padder_size": max(16, 2 ** (depth - 1)),
    }


ARCHITECTURE = Architecture(
    "HINet",
    HINet,
    (
        "conv_01.weight",
        "conv_02.weight",
        "down_path_1.0.conv_1.weight",
        "down_path_2.0.identity.weight",
        "sam12.conv2.weight",
        "cat12.weight",
        "last.weight",
    ),
    _settings,
)

"""A small U-Net with squeeze-excitation or half instance norm, and the networks that ``tlsc demo`` shows."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tlsc.adapters._padding import cut, padded
from tlsc.adapters.architecture import Architecture, count, dimensions
from tlsc.adapters.descriptor import Descriptor, Padding

__all__ = [
    "ARCHITECTURE",
    "DEMO_NETWORKS",
    "DemoNetwork",
    "HalfInstanceNorm",
    "SqueezeExcitation",
    "UNet",
    "load_demo_network",
]


class SqueezeExcitation(nn.Module):
    """Channel attention: a gate per channel, computed from the channels' means over the whole map.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.

    Example:
        >>> SqueezeExcitation(16)(torch.rand(2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x)
        return gated


class HalfInstanceNorm(nn.Module):
    """The first half of the channels instance-normalised, the second half as it is.

    Source: Chen et al., "HINet: Half Instance Normalization Network for Image Restoration", CVPRW 2021.

    Example:
        >>> x = torch.rand(2, 16, 5, 7)
        >>> torch.equal(HalfInstanceNorm(16)(x)[:, 8:], x[:, 8:])
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels // 2, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm.num_features
        first, second = x[:, :normalised], x[:, normalised:]
        return torch.cat([self.norm(first), second], dim=1)


class _Block(nn.Module):
    def __init__(
        self,
        in_channels: int,
        channels: int,
        squeeze_excitation: bool,
        half_norm: bool,
        padding_mode: Literal["zeros", "replicate", "reflect"],
    ) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1, padding_mode=padding_mode)
        self.norm = HalfInstanceNorm(channels) if half_norm else nn.Identity()
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding_mode)
        self.attention = SqueezeExcitation(channels) if squeeze_excitation else nn.Identity()
        self.identity = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = F.leaky_relu(self.norm(self.conv_1(x)), 0.2)
        features = self.attention(F.leaky_relu(self.conv_2(features), 0.2))
        restored: Tensor = features + self.identity(x)
        return restored


class UNet(nn.Module):
    """A U-Net that adds a correction to its input, for RGB images of any size.

    Level ``i`` has ``width · 2^i`` channels at ``1 / 2^i`` of the resolution. Images are padded right and
    bottom to a multiple of ``2^levels``, so the deepest level is at least 2×2; the output is cut back. Values are
    centred first, so that the zeros that convolutions pad with are mid-grey and spoil features near borders less.

    Args:
        width: channels of level 0.
        levels: number of resolutions.
        squeeze_excitation: levels whose encoder block ends in ``SqueezeExcitation``.
        half_norm: levels whose encoder block has ``HalfInstanceNorm`` after its first convolution.
        padding_mode: "zeros", "replicate" or "reflect", for the convolutions; the image is padded alike, but
            repeated where they mirror.

    Raises:
        ValueError: ``width`` or ``levels`` is less than 1, ``width`` is odd with ``half_norm`` on level 0, or a
            level that does not exist is named.

    Example:
        >>> UNet(8, squeeze_excitation=(1, 2))(torch.rand(1, 3, 37, 50)).shape
        torch.Size([1, 3, 37, 50])
    """

    tlsc: Descriptor

    def __init__(
        self,
        width: int = 16,
        levels: int = 3,
        squeeze_excitation: Collection[int] = (),
        half_norm: Collection[int] = (),
        padding_mode: Literal["zeros", "replicate", "reflect"] = "zeros",
    ) -> None:
        super().__init__()
        if width < 1 or levels < 1:
            raise ValueError(f"width and levels must be at least 1, got {width} and {levels}")
        if width % 2 and 0 in half_norm:
            raise ValueError(f"width must be even to normalise half of level 0, got {width}")
        if unknown := {*squeeze_excitation, *half_norm} - set(range(levels)):
            raise ValueError(f"levels are 0 to {levels - 1}, got {sorted(unknown)}")
        channels = [width * 2**level for level in range(levels)]
        steps = range(levels - 1)
        self.encoder = nn.ModuleList(
            _Block(
                channels[level] if level else 3,
                channels[level],
                level in squeeze_excitation,
                level in half_norm,
                padding_mode,
            )
            for level in range(levels)
        )
        self.down = nn.ModuleList(nn.Conv2d(channels[i], channels[i + 1], 2, stride=2) for i in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(channels[i + 1], channels[i], 2, stride=2) for i in steps)
        self.decoder = nn.ModuleList(
            _Block(2 * channels[i], channels[i], False, False, padding_mode) for i in steps
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1, padding_mode=padding_mode)
        self.padder_size = 2**levels
        # Mirroring needs an image larger than what is added; repeating takes any.
        self.padder_mode = "constant" if padding_mode == "zeros" else "replicate"
        self.tlsc = Descriptor(
            "UNet",
            {
                "width": width,
                "levels": levels,
                "squeeze_excitation": tuple(sorted(squeeze_excitation)),
                "half_norm": tuple(sorted(half_norm)),
                "padding_mode": padding_mode,
            },
            padding=Padding(self.padder_size),
        )

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        centred = padded(image - 0.5, self.padder_size, self.padder_mode)
        x = self.encoder[0](centred)
        skips = []
        for down, block in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = block(down(x))
        for up, block, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
        restored: Tensor = self.last(x) + centred + 0.5
        return cut(restored, height, width)


@dataclass(frozen=True)
class DemoNetwork:
    """A network that comes with trained weights.

    Attributes:
        name: its key in ``DEMO_NETWORKS`` and the name of its weight file.
        description: one line for tables and lists.
        settings: arguments of ``UNet``.
        crop: side of the square training crops in pixels.
        degradation: what it was trained to undo, a key of ``tlsc.eval.data.degradations.DEGRADATIONS``.
    """

    name: str
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    crop: int = 64
    degradation: str = "haze"

    @property
    def weights(self) -> Path:
        """The file of its trained weights."""
        return Path(__file__).resolve().parent / "weights" / f"{self.name}.safetensors"

    def build(self) -> UNet:
        """The network with fresh weights."""
        return UNet(**self.settings)


DEMO_NETWORKS: Mapping[str, DemoNetwork] = {
    network.name: network
    for network in (
        DemoNetwork("plain", "U-Net without global layers"),
        DemoNetwork(
            "se",
            "U-Net with squeeze-excitation on every encoder level",
            {"squeeze_excitation": (0, 1, 2)},
        ),
        DemoNetwork(
            "hin",
            "U-Net with half instance norm on the deepest level, borders replicated",
            # With zero padding the ring that it spoils takes a good part of what converting gains.
            {"half_norm": (2,), "padding_mode": "replicate"},
        ),
        DemoNetwork(
            "hin-all",
            "U-Net with half instance norm on every encoder level",
            {"half_norm": (0, 1, 2)},
            degradation="motion-blur",
        ),
    )
}


def load_demo_network(name: str) -> UNet:
    """A network of ``tlsc demo`` with its trained weights, in evaluation mode, on the CPU.

    Args:
        name: a key of ``DEMO_NETWORKS``.

    Raises:
        KeyError: there is no such network.
        FileNotFoundError: its weight file is missing from the installation.

    Example:
        >>> load_demo_network("se").training
        False
    """
    if name not in DEMO_NETWORKS:
        raise KeyError(f"no demo network {name!r}; there are {', '.join(DEMO_NETWORKS)}")
    network = DEMO_NETWORKS[name]
    model = network.build()
    model.load_state_dict(load_file(network.weights))
    return model.eval()


def _settings(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read off names and shapes; how borders are padded leaves no trace in them, the file's metadata tells."""
    levels = count(state, "encoder.{}.")
    noted = ast.literal_eval(metadata.get("settings", "{}"))
    return {
        "width": dimensions(state, ("encoder.0.conv_1.weight", "encoder.0.identity.weight"), 4)[0],
        "levels": levels,
        "squeeze_excitation": tuple(i for i in range(levels) if f"encoder.{i}.attention.gate.1.weight" in state),
        "half_norm": tuple(i for i in range(levels) if f"encoder.{i}.norm.norm.weight" in state),
        "padding_mode": noted.get("padding_mode", "zeros") if isinstance(noted, dict) else "zeros",
    }


ARCHITECTURE = Architecture(
    "UNet",
    UNet,
    (
        "encoder.0.conv_1.weight",
        "encoder.0.conv_2.weight",
        "encoder.0.identity.weight",
        "decoder.0.conv_1.weight",
        "down.0.weight",
        "up.0.weight",
        "last.weight",
    ),
    _settings,
)

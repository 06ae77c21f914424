"""MPRNet: quarters, halves and the whole image, each stage led by the one before.

Source: Zamir et al., "Multi-Stage Progressive Image Restoration", CVPR 2021, arXiv 2102.02808. Wiring and parameter
names are the published ones, the code is our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlsc._arguments import as_positive_int
from tlsc.adapters._padding import cut, padded
from tlsc.adapters.architecture import Architecture, count, dimensions
from tlsc.adapters.descriptor import Descriptor, Padding
from tlsc.errors import ArgumentValueError

__all__ = ["ARCHITECTURE", "MPRNet"]


class MPRNet(nn.Module):
    """MPRNet as published.

    Stage 1 sees the image in quarters, stage 2 in halves, stage 3 whole. Images are padded with zeros right and
    bottom to a multiple of ``padder_size``, the outputs cut back. All blocks share one PReLU: its weight appears
    in the ``state_dict`` under each.

    Args:
        in_c, out_c: channels of the image, which must agree: each stage adds a correction to the image.
        n_feat: channels of the first level, and of the image's features.
        scale_unetfeats: channels that each of the two deeper levels has more than the one above it.
        scale_orsnetfeats: channels that the last stage has more than ``n_feat``.
        num_cab: channel attention blocks in each of the three blocks of the last stage.
        kernel_size: of the convolutions, odd.
        reduction: channels per channel inside a channel attention.
        bias: of the convolutions; up- and downsampling and the ends of the last stage's blocks never have one.
        padder_size: a multiple of 8, in pixels.

    Shape:
        (N, in_c, H, W) → [stage 3, stage 2, stage 1], each (N, in_c, H, W). The first one is the result.

    Raises:
        ArgumentTypeError, ArgumentValueError: a setting is no positive int (the two scales may be 0) or does not
            fit the others.

    Example:
        >>> stages = MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1)(torch.rand(1, 3, 37, 50))
        >>> [tuple(stage.shape) for stage in stages]
        [(1, 3, 37, 50), (1, 3, 37, 50), (1, 3, 37, 50)]
    """

    tlsc: Descriptor

    def __init__(
        self,
        in_c: int = 3,
        out_c: int = 3,
        n_feat: int = 96,
        scale_unetfeats: int = 48,
        scale_orsnetfeats: int = 32,
        num_cab: int = 8,
        kernel_size: int = 3,
        reduction: int = 4,
        bias: bool = False,
        padder_size: int = 8,
    ) -> None:
        super().__init__()
        settings = {
            "in_c": in_c,
            "out_c": out_c,
            "n_feat": n_feat,
            "scale_unetfeats": scale_unetfeats,
            "scale_orsnetfeats": scale_orsnetfeats,
            "num_cab": num_cab,
            "kernel_size": kernel_size,
            "reduction": reduction,
            "bias": bias,
            "padder_size": padder_size,
        }
        _check(settings)
        kernels = _Kernels(kernel_size, reduction, bias)
        levels = [n_feat, n_feat + scale_unetfeats, n_feat + 2 * scale_unetfeats]
        last = n_feat + scale_orsnetfeats
        self.shallow_feat1, self.shallow_feat2, self.shallow_feat3 = (
            nn.Sequential(kernels.conv(in_c, n_feat), kernels.attention_block(n_feat)) for _ in range(3)
        )
        self.stage1_encoder = _Encoder(levels, kernels, fusion=False)
        self.stage1_decoder = _Decoder(levels, kernels)
        self.stage2_encoder = _Encoder(levels, kernels, fusion=True)
        self.stage2_decoder = _Decoder(levels, kernels)
        self.stage3_orsnet = _FullResolution(levels, last, num_cab, kernels)
        self.sam12 = _SupervisedAttention(n_feat, in_c, bias)
        self.sam23 = _SupervisedAttention(n_feat, in_c, bias)
        self.concat12 = kernels.conv(2 * n_feat, n_feat)
        self.concat23 = kernels.conv(2 * n_feat, last)
        self.tail = kernels.conv(last, out_c)
        self.padder_size = padder_size
        self.tlsc = Descriptor(
            "MPRNet",
            settings,
            in_channels=in_c,
            out_channels=out_c,
            padding=Padding(padder_size),
            crop=256,
            output=0,
            halves=True,
        )

    def forward(self, image: Tensor, middle: tuple[int, int] | None = None) -> list[Tensor]:
        height, width = image.shape[-2:]
        image = padded(image, self.padder_size)
        if middle is None:
            middle = image.shape[2] // 2, image.shape[3] // 2
        halves = _parts(image, middle[0], 2)

        encoded1, decoded1, attended, restored = [], [], [], []
        for half in halves:
            quarters = _parts(half, middle[1], 3)
            features = [self.stage1_encoder(self.shallow_feat1(quarter)) for quarter in quarters]
            encoded1.append([torch.cat(pair, 3) for pair in zip(*features, strict=True)])
            decoded1.append(self.stage1_decoder(encoded1[-1]))
            x, stage1 = self.sam12(decoded1[-1][0], half)
            attended.append(x)
            restored.append(stage1)
        stage1 = torch.cat(restored, 2)

        features = []
        for half, x, encoded, decoded in zip(halves, attended, encoded1, decoded1, strict=True):
            x = self.concat12(torch.cat([self.shallow_feat2(half), x], 1))
            features.append(self.stage2_encoder(x, encoded, decoded))
        del encoded1, decoded1, attended
        encoded2 = [torch.cat(pair, 2) for pair in zip(*features, strict=True)]
        del features
        decoded2 = self.stage2_decoder(encoded2)
        x, stage2 = self.sam23(decoded2[0], image)

        x = self.concat23(torch.cat([self.shallow_feat3(image), x], 1))
        stage3 = self.tail(self.stage3_orsnet(x, encoded2, decoded2)) + image
        return [cut(stage, height, width) for stage in (stage3, stage2, stage1)]


def _parts(x: Tensor, middle: Any, dim: int) -> list[Tensor]:
    """The two sides of ``middle``; all of it where that lies outside."""
    if isinstance(middle, int) and not 0 < middle < x.shape[dim]:
        return [x]
    return [x.narrow(dim, 0, middle), x.narrow(dim, middle, x.shape[dim] - middle)]


def _check(settings: dict[str, int]) -> None:
    for name, value in settings.items():
        if name == "bias" or (name.startswith("scale_") and value == 0):
            continue
        as_positive_int(value, name)
    if settings["in_c"] != settings["out_c"]:
        raise ArgumentValueError(
            f"in_c and out_c must agree, as a correction is added to the image, got {settings['in_c']} and "
            f"{settings['out_c']}"
        )
    if settings["kernel_size"] % 2 == 0:
        raise ArgumentValueError(f"kernel_size must be odd, got {settings['kernel_size']}")
    if settings["reduction"] > settings["n_feat"]:
        raise ArgumentValueError(
            f"reduction must be at most n_feat = {settings['n_feat']}, got {settings['reduction']}"
        )
    if settings["padder_size"] % 8:
        raise ArgumentValueError(
            f"padder_size must be a multiple of 8, as quarters are halved twice, got {settings['padder_size']}"
        )


class _Kernels:
    """Makes what all parts are made of, around one PReLU."""

    def __init__(self, kernel_size: int, reduction: int, bias: bool) -> None:
        self.kernel_size, self.reduction, self.bias = kernel_size, reduction, bias
        self.act = nn.PReLU()

    def conv(self, in_channels: int, channels: int, bias: bool | None = None) -> nn.Conv2d:
        bias = self.bias if bias is None else bias
        return nn.Conv2d(in_channels, channels, self.kernel_size, padding=self.kernel_size // 2, bias=bias)

    def pointwise(self, in_channels: int, channels: int) -> nn.Conv2d:
        return nn.Conv2d(in_channels, channels, 1, bias=self.bias)

    def attention_block(self, channels: int) -> _AttentionBlock:
        return _AttentionBlock(channels, self)

    def attention_blocks(self, channels: int, number: int = 2) -> nn.Sequential:
        return nn.Sequential(*(self.attention_block(channels) for _ in range(number)))


class _ChannelAttention(nn.Module):
    """A gate per channel, from the channels' means over all positions."""

    def __init__(self, channels: int, reduction: int, bias: bool) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.conv_du(self.avg_pool(x))
        return gated


class _AttentionBlock(nn.Module):
    """CAB: two convolutions and channel attention, plus the input."""

    def __init__(self, channels: int, kernels: _Kernels) -> None:
        super().__init__()
        self.CA = _ChannelAttention(channels, kernels.reduction, kernels.bias)
        self.body = nn.Sequential(kernels.conv(channels, channels), kernels.act, kernels.conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.CA(self.body(x)) + x
        return out


class _Down(nn.Module):
    """Half the size, other channels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            _Halved(),
            nn.Conv2d(in_channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x)  # type: ignore[no-any-return]


class _Halved(nn.Module):
    """Half the size. A size and not a factor is named, since graphs cannot multiply an open size by 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2] // 2, x.shape[3] // 2
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=False)


class _Up(nn.Module):
    """Twice the size, other channels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            _Doubled(),
            nn.Conv2d(in_channels, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    """Features on three levels; with ``fusion`` those of the stage before are added."""

    def __init__(self, levels: Sequence[int], kernels: _Kernels, fusion: bool) -> None:
        super().__init__()
        self.encoder_level1, self.encoder_level2, self.encoder_level3 = map(kernels.attention_blocks, levels)
        self.down12 = _Down(levels[0], levels[1])
        self.down23 = _Down(levels[1], levels[2])
        if fusion:
            self.csff_enc1, self.csff_enc2, self.csff_enc3 = (kernels.pointwise(c, c) for c in levels)
            self.csff_dec1, self.csff_dec2, self.csff_dec3 = (kernels.pointwise(c, c) for c in levels)
        self.fusion = fusion

    def forward(
        self, x: Tensor, encoded: Sequence[Tensor] | None = None, decoded: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        first = self.encoder_level1(x)
        if encoded is not None and decoded is not None:
            first = first + self.csff_enc1(encoded[0]) + self.csff_dec1(decoded[0])
        second = self.encoder_level2(self.down12(first))
        if encoded is not None and decoded is not None:
            second = second + self.csff_enc2(encoded[1]) + self.csff_dec2(decoded[1])
        third = self.encoder_level3(self.down23(second))
        if encoded is not None and decoded is not None:
            third = third + self.csff_enc3(encoded[2]) + self.csff_dec3(decoded[2])
        return [first, second, third]


class _SkipUp(_Up):
    """Twice the size, plus the encoder's features."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + skip


class _Decoder(nn.Module):
    """From three levels back to the first; returns all three."""

    def __init__(self, levels: Sequence[int], kernels: _Kernels) -> None:
        super().__init__()
        self.decoder_level1, self.decoder_level2, self.decoder_level3 = map(kernels.attention_blocks, levels)
        self.skip_attn1 = kernels.attention_block(levels[0])
        self.skip_attn2 = kernels.attention_block(levels[1])
        self.up21 = _SkipUp(levels[1], levels[0])
        self.up32 = _SkipUp(levels[2], levels[1])

    def forward(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        third = self.decoder_level3(encoded[2])
        second = self.decoder_level2(self.up32(third, self.skip_attn2(encoded[1])))
        first = self.decoder_level1(self.up21(second, self.skip_attn1(encoded[0])))
        return [first, second, third]


class _SupervisedAttention(nn.Module):
    """A first result, and the features weighted by what can be seen in it."""

    def __init__(self, channels: int, image_channels: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=bias)
        self.conv2 = nn.Conv2d(channels, image_channels, 1, bias=bias)
        self.conv3 = nn.Conv2d(image_channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.conv2(x) + image
        return self.conv1(x) * torch.sigmoid(self.conv3(restored)) + x, restored


class _OriginalResolutionBlock(nn.Module):
    """ORB: channel attention blocks and a convolution, plus the input."""

    def __init__(self, channels: int, number: int, kernels: _Kernels) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *kernels.attention_blocks(channels, number), kernels.conv(channels, channels, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + x
        return out


class _FullResolution(nn.Module):
    """ORSNet: no downsampling; the features of stage two come in from all three of its levels."""

    def __init__(self, levels: Sequence[int], channels: int, number: int, kernels: _Kernels) -> None:
        super().__init__()
        self.orb1, self.orb2, self.orb3 = (_OriginalResolutionBlock(channels, number, kernels) for _ in range(3))
        self.up_enc1, self.up_dec1 = (_Up(levels[1], levels[0]) for _ in range(2))
        self.up_enc2, self.up_dec2 = (
            nn.Sequential(_Up(levels[2], levels[1]), _Up(levels[1], levels[0])) for _ in range(2)
        )
        self.conv_enc1, self.conv_enc2, self.conv_enc3 = (kernels.pointwise(levels[0], channels) for _ in range(3))
        self.conv_dec1, self.conv_dec2, self.conv_dec3 = (kernels.pointwise(levels[0], channels) for _ in range(3))

    def forward(self, x: Tensor, encoded: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
        x = self.orb1(x)
        x = x + self.conv_enc1(encoded[0]) + self.conv_dec1(decoded[0])
        x = self.orb2(x)
        x = x + self.conv_enc2(self.up_enc1(encoded[1])) + self.conv_dec2(self.up_dec1(decoded[1]))
        x = self.orb3(x)
        out: Tensor = x + self.conv_enc3(self.up_enc2(encoded[2])) + self.conv_dec3(self.up_dec2(decoded[2]))
        return out


def _settings(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    n_feat, in_c, kernel_size, _ = dimensions(state, [f"shallow_feat{i}.0.weight" for i in (1, 2, 3)], 4)
    (second,) = dimensions(state, [f"stage{i}_encoder.encoder_level2.0.body.0.weight" for i in (1, 2)], 4)[:1]
    (last,) = dimensions(state, ("concat23.weight", "stage3_orsnet.orb1.body.0.body.0.weight"), 4)[:1]
    gates = {
        channels: dimensions(state, names, 4)[0]
        for channels, names in {
            n_feat: [f"shallow_feat{i}.1.CA.conv_du.0.weight" for i in (1, 2, 3)],
            second: [f"stage{i}_encoder.encoder_level2.0.CA.conv_du.0.weight" for i in (1, 2)],
            2 * second - n_feat: [f"stage{i}_encoder.encoder_level3.0.CA.conv_du.0.weight" for i in (1, 2)],
            last: [f"stage3_orsnet.orb{i}.body.0.CA.conv_du.0.weight" for i in (1, 2, 3)],
        }.items()
    }
    return {
        "in_c": in_c,
        "out_c": dimensions(state, ("tail.weight",), 4)[0],
        "n_feat": n_feat,
        "scale_unetfeats": second - n_feat,
        "scale_orsnetfeats": last - n_feat,
        "num_cab": count(state, "stage3_orsnet.orb1.body.{}.CA."),
        "kernel_size": kernel_size,
        "reduction": _reduction(gates),
        "bias": any(f"shallow_feat{i}.0.bias" in state for i in (1, 2, 3)),
    }


def _reduction(gates: Mapping[int, int]) -> int:
    """The reduction that makes gates of these channels this narrow.

    Several can; they describe the same network. One that divides the channels is likelier to be what was written.
    """
    fitting = [
        reduction
        for reduction in range(1, max(gates) + 1)
        if all(channels // reduction == hidden for channels, hidden in gates.items())
    ]
    exact = [reduction for reduction in fitting if all(channels % reduction == 0 for channels in gates)]
    first = next(iter(gates))
    divides = [reduction for reduction in fitting if first % reduction == 0]
    # Where none fits the shapes contradict each other, which the comparison with the built network will say.
    return next(iter([*exact, *divides, *fitting]), max(1, first // max(1, gates[first])))


ARCHITECTURE = Architecture(
    "MPRNet",
    MPRNet,
    (
        "shallow_feat1.0.weight",
        "stage1_encoder.encoder_level1.0.body.0.weight",
        "stage2_encoder.csff_enc1.weight",
        "stage2_decoder.decoder_level1.0.body.0.weight",
        "stage3_orsnet.orb1.body.0.body.0.weight",
        "concat12.weight",
        "concat23.weight",
        "tail.weight",
    ),
    _settings,
)

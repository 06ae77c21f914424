"""Small networks made for the tests of the surgery, and the naive reference that every site is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlsc import adapters

BASE = 20, 28  # height and width differ, and so do the windows on every level


def with_random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` with every parameter drawn anew, affine ones too: a fresh norm's weight of 1 hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 4
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5
            parameter.copy_(values + (1.0 if parameter.dim() == 1 else 0.0))
    return model


def image(height: int, width: int, channels: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """An image whose brightness and contrast vary from place to place, (1, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((1, channels, height, width), generator=generator, dtype=torch.float64)
    ramp = torch.linspace(0.2, 1.5, height * width, dtype=torch.float64).view(height, width)
    return (noise * ramp + 0.3 * ramp.flip(0)).to(dtype)


# ---------------------------------------------------------------------------------------------- blocks


class SequentialGate(nn.Module):
    """Squeeze-excitation whose layers stand in one ``Sequential``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class AttributeGate(nn.Module):
    """Squeeze-excitation whose layers are attributes, with output size (1, 1) and an in-place activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.reduce = nn.Conv2d(channels, channels // 2, 1)
        self.expand = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.act(self.pool(x))
        return x * torch.sigmoid(self.expand(F.relu_(self.reduce(squeezed))))


class LinearGate(nn.Module):
    """Squeeze-excitation by ``flatten`` and ``Linear``: a local pool does not fit in front of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(self.pool(x).flatten(1))[:, :, None, None]


class HalfNorm(nn.Module):
    """HINet's block: the first half of the channels is normalised, the second is not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.InstanceNorm2d(channels // 2, affine=True)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv_1(x).chunk(2, dim=1)
        return x + self.conv_2(F.leaky_relu(torch.cat([self.norm(first), second], 1), 0.2))


class Grouped(nn.Module):
    """Group norm in a residual block."""

    def __init__(self, channels: int, groups: int = 2) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.gelu(self.norm(x)))


class Block(nn.Module):
    """Convolution and a given normalisation, which other blocks may hold too."""

    def __init__(self, norm: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


# -------------------------------------------------------------------------------------------- networks


class Restorer(nn.Module):
    """3×3 in, a body at full size, 3×3 out, plus the input."""

    def __init__(self, *body: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*body)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.body(self.head(x)))


class UNet(nn.Module):
    """Two levels down and up again, by strided and transposed convolutions, one block on each level."""

    def __init__(self, first: nn.Module, second: nn.Module, third: nn.Module, up: nn.Module) -> None:
        super().__init__()
        # In the order of definition the last layer comes first: call order is another one.
        self.tail = nn.Conv2d(8, 3, 3, padding=1)
        self.up_block = up
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([first, second, third])
        self.down = nn.ModuleList([nn.Conv2d(8, 8, 4, stride=2, padding=1) for _ in range(2)])
        self.up = nn.ModuleDict({"deep": nn.ConvTranspose2d(8, 8, 2, stride=2), "high": nn.Upsample(None, 2)})

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](self.head(x))
        second = self.blocks[1](self.down[0](first))
        third = self.blocks[2](self.down[1](second))
        second = second + self.up["deep"](third)
        return x + self.tail(self.up_block(first + self.up["high"](second)))


class TwoNames(nn.Module):
    """One norm under two names, called by both."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.InstanceNorm2d(8, affine=True)
        self.second = self.first
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.second(F.relu(self.first(self.head(x))) ** 2))


class TwoScales(nn.Module):
    """One norm in two slots that see maps of different sizes: one set of parameters, two windows."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.GroupNorm(2, 8)
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.high = Block(norm)
        self.deep = Block(norm)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.high(self.head(x))
        deep = self.deep(F.avg_pool2d(x, 2))
        return self.tail(x + F.interpolate(deep, scale_factor=2))


class OneSlotTwoSizes(nn.Module):
    """One slot called on maps of two sizes: no single window serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.InstanceNorm2d(8)
        self.other = nn.InstanceNorm2d(8)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.head(x))
        return self.tail(self.other(x + F.interpolate(self.norm(F.avg_pool2d(x, 2)), scale_factor=2)))


class Classifier(nn.Module):
    """A head that needs one value per image, behind squeeze-excitation blocks that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.gates = nn.Sequential(SequentialGate(8), AttributeGate(8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.gates(self.stem(x))), 1))


def shared_block() -> nn.Module:
    block = Grouped(8)
    return Restorer(block, nn.ReLU(), block)


def siblings_share() -> nn.Module:
    norm = nn.InstanceNorm2d(8, affine=True)
    return Restorer(Block(norm), Block(norm), Block(norm))


def nested_twice() -> nn.Module:
    inner = nn.Sequential(HalfNorm(8), SequentialGate(8))
    return Restorer(inner, nn.Sequential(inner, nn.Sequential(inner)))


@dataclass(frozen=True)
class Network:
    """A network of the tests: how it is made, and whether all its global layers become local."""

    name: str
    make: Callable[[], nn.Module]
    all_local: bool = True

    def __call__(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return with_random_weights(self.make()).to(dtype).eval()

    def __str__(self) -> str:
        return self.name


NETWORKS = [
    Network("gate as Sequential", lambda: Restorer(SequentialGate(8), nn.Conv2d(8, 8, 3, padding=1))),
    Network("gate as attributes", lambda: Restorer(AttributeGate(8))),
    Network("half instance norm", lambda: Restorer(HalfNorm(8), HalfNorm(8))),
    Network("group norm", lambda: Restorer(Grouped(8), Grouped(8, 1), Grouped(8, 8))),
    Network("plain instance norm", lambda: Restorer(Block(nn.InstanceNorm2d(8)))),
    Network("U-Net", lambda: UNet(SequentialGate(8), Grouped(8), HalfNorm(8), AttributeGate(8))),
    Network("U-Net of half norms", lambda: UNet(HalfNorm(8), HalfNorm(8), HalfNorm(8), HalfNorm(8))),
    Network("one norm under two names", TwoNames),
    Network("one block twice", shared_block),
    Network("siblings share a norm", siblings_share),
    Network("one norm at two scales", TwoScales),
    Network("nested blocks used again", nested_twice),
    Network("root is an instance norm", lambda: nn.InstanceNorm2d(3, affine=True)),
    Network("root is a group norm", lambda: nn.GroupNorm(3, 3)),
    Network("one slot at two sizes", OneSlotTwoSizes, all_local=False),
    Network("gate with Linear", lambda: Restorer(LinearGate(8), SequentialGate(8), HalfNorm(8))),
    Network("classifier behind gates", Classifier, all_local=False),
    Network(
        "running statistics",
        lambda: Restorer(Block(nn.InstanceNorm2d(8, track_running_stats=True)), HalfNorm(8)),
        all_local=False,
    ),
]


# The demo's U-Nets, with random weights. Networks of later issues go here too.
NETWORKS += [
    Network("adapters.UNet, gates", lambda: adapters.UNet(8, 2, squeeze_excitation=(0, 1))),
    Network("adapters.UNet, half norm on deep levels", lambda: adapters.UNet(8, 3, half_norm=(1, 2))),
    Network("adapters.UNet, half norm everywhere", lambda: adapters.UNet(8, 2, half_norm=(0, 1))),
    Network("adapters.NLMNet", lambda: adapters.NLMNet(6, search_window=5)),
]


class Result(nn.Module):
    """A network that returns a list of stages, with its result alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.tlsc.result(self.network(x))


NETWORKS += [
    Network(
        "adapters.HINet",
        lambda: Result(adapters.HINet(wf=4, depth=3, hin_position_left=1, hin_position_right=2, padder_size=4)),
    ),
]

# Dozens of sites: it takes part in one or two tests of each invariant.
MPRNET = Network(
    "adapters.MPRNet",
    lambda: Result(adapters.MPRNet(n_feat=4, scale_unetfeats=2, scale_orsnetfeats=2, num_cab=1, reduction=2)),
)


# --------------------------------------------------------------------------------------------- oracles


def window_start(position: int, size: int, length: int) -> int:
    """First index of a position's window: ``clamp(i − (k − 1)//2, 0, n − k)`` with ``k = min(size, length)``."""
    k = min(size, length)
    return min(max(position - (k - 1) // 2, 0), length - k)


@torch.no_grad()
def reference_site(original: nn.Module, x: Tensor, window: tuple[int, int], step: int = 1) -> Tensor:
    """What a converted site means: at every position, ``original`` on the crop that is the position's window.

    With a ``step`` only every so manieth position on each axis.
    """
    height, width = x.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    out = []
    for i in range(0, height, step):
        top = window_start(i, window[0], height)
        for j in range(0, width, step):
            left = window_start(j, window[1], width)
            y = original(x[..., top : top + rows, left : left + columns])
            # A pool has one value for the window; a norm has one for the position inside it.
            pooled = y.shape[-2:] == (1, 1)
            out.append(y[..., 0, 0] if pooled else y[..., i - top, j - left])
    return torch.stack(out, -1).unflatten(-1, (len(range(0, height, step)), -1))


@contextmanager
def recorded(model: nn.Module, paths: list[str]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record what enters and leaves the modules at ``paths``."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}
    handles = []
    for path in paths:

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
            # Local modules that stand for one original share its hooks.
            if module is model.get_submodule(path):
                calls[path].append((args[0].detach().clone(), output.detach().clone()))

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()

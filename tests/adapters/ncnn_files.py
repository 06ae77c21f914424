"""Real-CUGAN's graphs in ncnn's format, written and run here without the code that reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HALF = struct.pack("<I", 0x01306B47)
_LEAKY = "9=2 -23310=1,1.000000e-01"


class Graph:
    """Lines of a ``.param``, with the numbers of channels; weights are drawn when it is written."""

    def __init__(self) -> None:
        self.lines, self.channels, self.maps = ["Input in0 0 1 in0"], {"in0": 3}, 0

    def layer(self, kind: str, inputs: list[str], settings: str, channels: int, outputs: int = 1) -> list[str]:
        names = [f"m{self.maps + k}" for k in range(outputs)]
        self.maps += outputs
        self.channels.update((name, channels) for name in names)
        place = f"{kind}_{len(self.lines)} {len(inputs)} {outputs} {' '.join([*inputs, *names])}"
        self.lines.append(f"{kind:<24} {place} {settings}".rstrip())
        return names

    def conv(self, x: str, out: int, k: int = 3, stride: int = 1, act: str = _LEAKY) -> str:
        size = out * self.channels[x] * k * k
        step = f"3={stride} " if stride > 1 else ""
        return self.layer("Convolution", [x], f"0={out} 1={k} {step}5=1 6={size} {act}", out)[0]

    def deconv(self, x: str, out: int, k: int = 2, stride: int = 2, pad: int = 0, act: str = _LEAKY) -> str:
        size = out * self.channels[x] * k * k
        return self.layer("Deconvolution", [x], f"0={out} 1={k} 3={stride} 4={pad} 5=1 6={size} {act}", out)[0]

    def two(self, x: str) -> list[str]:
        return self.layer("Split", [x], "", self.channels[x], 2)

    def gated(self, x: str) -> str:
        width = self.channels[x]
        x, y = self.two(x)
        y = self.layer("Pooling", [y], "0=1 4=1", width)[0]
        y = self.layer("InnerProduct", [y], f"0={width // 8} 1=1 2={width * width // 8} 9=1", width // 8)[0]
        y = self.layer("InnerProduct", [y], f"0={width} 1=1 2={width * width // 8} 9=4", width)[0]
        return self.layer("BinaryOp", [x, y], "0=2", width)[0]

    def crop(self, x: str, by: int) -> str:
        settings = f"-23309=2,{by},{by} -23310=2,-{by},-{by} -23311=2,-2,-1"
        return self.layer("Crop", [x], settings, self.channels[x])[0]

    def add(self, x: str, y: str) -> str:
        return self.layer("BinaryOp", [x, y], "0=0", self.channels[x])[0]

    @property
    def text(self) -> str:
        return "\n".join(["7767517", f"{len(self.lines)} {self.maps + 1}", *self.lines, ""])


def real_cugan(scale: int) -> str:
    """The ``.param`` of Real-CUGAN, as its published files have it."""
    g = Graph()
    wide = 64 if scale == 4 else 3
    a, b = g.two(g.conv(g.conv("in0", 32), 64))
    b = g.gated(g.conv(g.conv(g.conv(b, 64, 2, 2), 128), 64))
    x = g.conv(g.add(g.crop(a, 4), g.deconv(b, 64)), 64)
    x = g.deconv(x, wide, 5, 3, 2, "") if scale == 3 else g.deconv(x, wide, 4, 2, 3, "")
    first, x = g.two(x)
    a, x = g.two(g.conv(g.conv(x, 32), 64))
    b, x = g.two(g.gated(g.conv(g.conv(g.conv(x, 64, 2, 2), 64), 128)))
    x = g.gated(g.conv(g.conv(g.conv(x, 128, 2, 2), 256), 128))
    b = g.crop(b, 4)
    x = g.gated(g.conv(g.conv(g.add(b, g.deconv(x, 128)), 64), 64))
    x = g.add(g.crop(a, 16), g.deconv(x, 64))
    x = g.conv(g.conv(x, 64), wide, act="")
    x = g.add(x, g.crop(first, 20))
    if scale == 4:
        x = g.crop(g.conv(x, 12, act=""), 1)
        g.layer("PixelShuffle", [x], "0=2", 3)
    return g.text


def settings_of(line: str) -> dict[int, str]:
    return {int(key): value for key, _, value in (field.partition("=") for field in line.split() if "=" in field)}


def sizes_of(line: str) -> tuple[int, int] | None:
    """Numbers of weights and biases of a layer with both."""
    said = settings_of(line)
    if line.startswith("InnerProduct"):
        return int(said[2]), int(said[0])
    return (int(said[6]), int(said[0])) if line.startswith(("Convolution", "Deconvolution")) else None


def write(path: Path, text: str, seed: int = 0) -> Path:
    """A graph and random weights for it, in float16; returns the path of the graph."""
    random = np.random.default_rng(seed)
    content = b""
    for sizes in filter(None, map(sizes_of, text.splitlines())):
        weights = random.standard_normal(sizes[0]) * np.sqrt(2 * sizes[1] / sizes[0]) * 0.7
        content += HALF + weights.astype("<f2").tobytes() + b"\0" * (-2 * sizes[0] % 4)
        content += random.uniform(-0.1, 0.1, sizes[1]).astype("<f4").tobytes()
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(content)
    return path


def executed(path: Path, image: Tensor) -> Tensor:
    """What a graph makes of an image in float64: layer by layer, from the bytes of its files."""
    content, at = path.with_suffix(".bin").read_bytes(), 0
    maps: dict[str, Tensor] = {}
    last = ""
    for line in path.read_text().splitlines()[2:]:
        fields = line.split()
        kind, inputs, outputs = fields[0], int(fields[2]), int(fields[3])
        taken = [maps[name] for name in fields[4 : 4 + inputs]]
        said, sizes = settings_of(line), sizes_of(line)
        if sizes is not None:
            weight = torch.from_numpy(np.frombuffer(content, "<f2", sizes[0], at + 4).astype(float))
            at += 4 + 2 * sizes[0] + (-2 * sizes[0] % 4)
            bias = torch.from_numpy(np.frombuffer(content, "<f4", sizes[1], at).astype(float))
            at += 4 * sizes[1]
            result = _weighted(kind, said, taken[0], weight, bias)
        elif kind == "Input":
            result = image.double()
        elif kind == "Pooling":
            result = taken[0].mean((2, 3), keepdim=True)
        elif kind == "Crop":
            by = abs(int(said[-23309].split(",")[1]))
            result = taken[0][:, :, by:-by, by:-by]
        elif kind == "PixelShuffle":
            result = F.pixel_shuffle(taken[0], int(said[0]))
        else:
            result = (
                taken[0] if kind == "Split" else taken[0] * taken[1] if "0=2" in fields else taken[0] + taken[1]
            )
        for last in fields[4 + inputs : 4 + inputs + outputs]:
            maps[last] = result
    assert at == len(content)
    return maps[last]


def _weighted(kind: str, said: dict[int, str], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out, k = int(said[0]), 1 if kind == "InnerProduct" else int(said[1])
    weight, stride, pad = weight.reshape(out, -1, k, k), int(said.get(3, 1)), int(said.get(4, 0))
    if kind == "Deconvolution":
        y = F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride, pad)
    else:
        y = F.conv2d(x, weight, bias, stride)
    activation = said.get(9)
    if activation == "2":
        return F.leaky_relu(y, float(said[-23310].split(",")[1]))
    return y.relu() if activation == "1" else y.sigmoid() if activation == "4" else y


def encoded(state: dict[str, Tensor]) -> bytes:
    """A ``.bin`` of the weights of a network of spandrel's, in float16, in the order of the state dict given."""
    content = b""
    for key, value in state.items():
        if key.endswith(".bias"):
            content += value.numpy().astype("<f4").tobytes()
        elif key.endswith(".weight"):
            deconvolution = "_up." in key or key == "unet1.conv_bottom.weight"
            stored = value.transpose(0, 1) if deconvolution else value
            content += HALF + stored.numpy().astype("<f2").tobytes() + b"\0" * (-2 * value.numel() % 4)
    return content

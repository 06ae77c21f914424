"""Real-CUGAN's networks among ncnn's graphs: which layer is which parameter of ``spandrel``'s architecture.

Real-CUGAN (bilibili, https://github.com/bilibili/ailab/tree/main/Real-CUGAN) enlarges drawings by 2, 3 or 4 with
two U-Nets in a row, whose squeeze-excitations average over the whole image. ncnn's graphs of it have names of their
own, and no scaling or borders, which the calling program adds; so a layer is told by its place in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tlsc.adapters.ncnn import Layer, Setting

__all__ = ["weights_by_name"]

Settings = dict[int, Setting]

# ncnn's numbers for activations (with the slope of the leaky one), operators and pooling.
_RELU: Settings = {9: 1}
_SIGMOID: Settings = {9: 4}
_LEAKY: Settings = {9: 2, 10: (0.1,)}
_ADD: Settings = {0: 0}
_MULTIPLY: Settings = {0: 2}
_MEAN: Settings = {0: 1, 4: 1}

# Settings that say how large something is, or how biases are stored: shapes are compared when weights are loaded.
_SIZES = {"Convolution": (0, 5, 6), "Deconvolution": (0, 5, 6), "InnerProduct": (0, 1, 2)}
_USUAL: dict[str, Settings] = {
    "Convolution": {2: 1, 3: 1, 4: 0},
    "Deconvolution": {2: 1, 3: 1, 4: 0},
    "BinaryOp": {0: 0, 1: 0},
}


class _Graph:
    """Numbers layers by what they compute: kind, settings, and the numbers of what they take."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}
        self.names: dict[int, str] = {}
        """Of parameters, by the numbers of their layers."""

    def number(self, kind: str, settings: Mapping[int, Setting], inputs: Sequence[int], name: str = "") -> int:
        usual = _USUAL.get(kind, {})
        said = {key: value for key, value in settings.items() if usual.get(key) != value}
        for key in _SIZES.get(kind, ()):
            said.pop(key, None)
        if kind == "Crop":  # by how much follows from the sizes, and is written in several ways
            said = {}
        what = kind, tuple(sorted(said.items())), tuple(sorted(inputs))
        found = self.numbers.setdefault(what, len(self.numbers))
        if name:
            self.names[found] = name
        return found

    def conv(self, x: int, name: str, kernel: int = 3, stride: int = 1, last: bool = False) -> int:
        return self.number("Convolution", {1: kernel, 3: stride, **({} if last else _LEAKY)}, [x], name)

    def up(self, x: int, name: str) -> int:
        return self.number("Deconvolution", {1: 2, 3: 2, **_LEAKY}, [x], name)

    def pair(self, x: int, name: str) -> int:
        return self.conv(self.conv(x, f"{name}.conv.0"), f"{name}.conv.2")

    def excited(self, x: int, name: str) -> int:
        """Two convolutions and a squeeze-excitation."""
        x = self.pair(x, name)
        gate = self.number("Pooling", _MEAN, [x])
        gate = self.number("InnerProduct", _RELU, [gate], f"{name}.seblock.conv1")
        gate = self.number("InnerProduct", _SIGMOID, [gate], f"{name}.seblock.conv2")
        return self.number("BinaryOp", _MULTIPLY, [x, gate])

    def joined(self, skipped: int, x: int) -> int:
        return self.number("BinaryOp", _ADD, [self.number("Crop", {}, [skipped]), x])


def _network(graph: _Graph, scale: int) -> None:
    """Number the layers of Real-CUGAN for a scale."""
    image = graph.number("Input", {}, [])
    x1 = graph.pair(image, "unet1.conv1")
    x2 = graph.excited(graph.conv(x1, "unet1.conv1_down", 2, 2), "unet1.conv2")
    x3 = graph.conv(graph.joined(x1, graph.up(x2, "unet1.conv2_up")), "unet1.conv3")
    how: Settings = {1: 5, 3: 3, 4: 2} if scale == 3 else {1: 4, 3: 2, 4: 3}
    first = graph.number("Deconvolution", how, [x3], "unet1.conv_bottom")

    x1 = graph.pair(first, "unet2.conv1")
    x2 = graph.excited(graph.conv(x1, "unet2.conv1_down", 2, 2), "unet2.conv2")
    x3 = graph.excited(graph.conv(x2, "unet2.conv2_down", 2, 2), "unet2.conv3")
    x4 = graph.excited(graph.joined(x2, graph.up(x3, "unet2.conv3_up")), "unet2.conv4")
    x5 = graph.conv(graph.joined(x1, graph.up(x4, "unet2.conv4_up")), "unet2.conv5")
    result = graph.joined(first, graph.conv(x5, "unet2.conv_bottom", last=True))
    if scale == 4:
        result = graph.conv(result, "conv_final", last=True)
        graph.number("PixelShuffle", {0: 2}, [graph.number("Crop", {}, [result])])


def weights_by_name(layers: Sequence[Layer], path: Path) -> dict[str, Tensor] | None:
    """The weights of a graph under the names that they have in ``spandrel``, if it is Real-CUGAN's.

    Args:
        layers: of the graph.
        path: of its file. The "pro" networks, which take another range of values, are told by "pro" in its name or
            its folder's (``models-pro``): their graphs are the same.

    Returns:
        Tensors by name, in the order of the graph; None for another network.
    """
    for scale in (2, 3, 4):
        state = _told(layers, scale)
        if state is not None:
            if _is_pro(path):
                state["pro"] = torch.zeros(1)
            return state
    return None


def _told(layers: Sequence[Layer], scale: int) -> dict[str, Tensor] | None:
    graph = _Graph()
    _network(graph, scale)
    known = len(graph.numbers)
    at: dict[str, int] = {}
    state: dict[str, Tensor] = {}
    for layer in layers:
        inputs = [at[name] for name in layer.inputs]
        number = inputs[0] if layer.kind == "Split" else graph.number(layer.kind, layer.settings, inputs)
        at.update((name, number) for name in layer.outputs)
        if layer.weight is None:
            continue
        name = graph.names.get(number)
        if name is None or layer.bias is None or f"{name}.weight" in state:
            return None
        pointwise = layer.kind == "InnerProduct"
        state[f"{name}.weight"] = layer.weight[..., None, None] if pointwise else layer.weight
        state[f"{name}.bias"] = layer.bias
    whole = len(graph.numbers) == known and len(state) == 2 * len(graph.names)
    return state if whole else None


def _is_pro(path: Path) -> bool:
    return any(
        re.search(r"(^|[^a-z])pro([^a-z]|$)", name.lower()) for name in (path.stem, path.absolute().parent.name)
    )

"""Networks in ncnn's format, read without ncnn: a graph as text (``.param``) and the weights beside it (``.bin``).

A ``.bin`` has no names, sizes or checksums: the graph says which layer has how many values, and they lie in its
order. Nothing is taken from it that the graph does not account for, and nothing is left over.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tlsc.adapters.pickles import Damaged

__all__ = ["MAGIC", "Layer", "read_layers"]

MAGIC = b"7767517"
_LARGEST_GRAPH = 1 << 24

# What stands before weights, and says how they are stored.
_FLOAT16, _FLOAT32, _PLAIN, _INT8 = 0x01306B47, 0x0002C056, 0, 0x000D4B38

_SHAPES = ("Input", "Split", "Crop", "Concat", "Slice", "Flatten", "Reshape", "Interp", "PixelShuffle", "Noop")
_VALUES = ("Pooling", "Reduction", "BinaryOp", "UnaryOp", "Eltwise", "Clip", "ReLU", "Sigmoid", "Swish", "TanH")
_WITHOUT_WEIGHTS = (*_SHAPES, *_VALUES, "Dropout", "Softmax")
# For layers with weights: the settings that give the number of outputs, of weights, and whether there are biases.
_WITH_WEIGHTS = {"Convolution": (0, 6, 5), "Deconvolution": (0, 6, 5), "InnerProduct": (0, 2, 1)}
_INT8_SETTING, _DYNAMIC_SETTING, _KERNEL, _KERNEL_HEIGHT = 8, 19, 1, 11

Setting = int | float | tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """A layer of a graph.

    Attributes:
        kind: "Convolution", "Split", ...
        name: as its maker called it.
        inputs, outputs: names of the maps that it takes and gives.
        settings: numbers by their meaning's number, see ncnn's documentation of its operators.
        weight: (out, in, height, width) for convolutions, (in, out, height, width) for deconvolutions, as PyTorch
            has them; (out, in) for an inner product; None where there is none.
        bias: (out,), or None.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[int, Setting]
    weight: Tensor | None = None
    bias: Tensor | None = None


def read_layers(graph: Path, weights: Path) -> list[Layer]:
    """The layers of a network, in the order of its graph, with weights and biases in float32.

    Args:
        graph, weights: the files ``.param`` and ``.bin``.

    Raises:
        Damaged: one of them is no such file, or they do not belong together; the message says which, in one line.
        OSError: one of them cannot be read.
    """
    if graph.stat().st_size > _LARGEST_GRAPH:
        raise Damaged(f"{graph.name} is larger than any graph")
    with weights.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        layers = _graph(graph)
        declared = sum(_bytes_at_least(layer) for layer in layers)
        if declared > size:
            raise Damaged(
                f"{graph.name} declares {declared} bytes of weights or more, but {weights.name} has {size}"
            )
        reader = _Values(file.read(), weights.name)
    filled = [reader.layer(layer) for layer in layers]
    if reader.at != size:
        raise Damaged(
            f"{weights.name} has {size} bytes, of which {graph.name} accounts for {reader.at}: they do not belong "
            "together"
        )
    return filled


def _lines(path: Path) -> list[str]:
    """A line for each layer."""
    try:
        lines = [line for line in path.read_bytes().decode("ascii").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise Damaged(f"{path.name} is not text: a graph of ncnn's in its text form is needed") from error
    if not lines or lines[0].strip().encode() != MAGIC:
        raise Damaged(f"{path.name} does not start with {MAGIC.decode()}, as ncnn's graphs do")
    counts = lines[1].split() if len(lines) > 1 else []
    if len(counts) != 2 or not all(count.isdecimal() and len(count) < 7 for count in counts):
        raise Damaged(f"{path.name} has no numbers of layers and maps in its second line")
    if int(counts[0]) != len(lines) - 2:
        raise Damaged(f"{path.name} declares {counts[0]} layers and has {len(lines) - 2}")
    return lines[2:]


def _graph(path: Path) -> list[Layer]:
    known: set[str] = set()
    layers = []
    for at, line in enumerate(_lines(path)):
        layer = _layer(line, f"layer {at} of {path.name}")
        missing = next((name for name in layer.inputs if name not in known), None)
        if missing is not None:
            raise Damaged(f"layer {at} of {path.name} takes {missing[:40]!r}, which no layer before it gives")
        twice = next((name for name in layer.outputs if name in known), None)
        if twice is not None or len(set(layer.outputs)) != len(layer.outputs):
            raise Damaged(f"layer {at} of {path.name} gives {twice or layer.outputs[0]!r} a second time"[:200])
        known.update(layer.outputs)
        layers.append(layer)
    return layers


def _layer(line: str, where: str) -> Layer:
    fields = line.split()
    if len(fields) < 4 or not all(field.isdecimal() and len(field) < 6 for field in fields[2:4]):
        raise Damaged(f"{where} is not kind, name, number of inputs and of outputs")
    inputs, outputs = int(fields[2]), int(fields[3])
    names, settings = fields[4 : 4 + inputs + outputs], fields[4 + inputs + outputs :]
    names = [name for name in names if "=" not in name]
    if len(names) != inputs + outputs:
        raise Damaged(f"{where} names {len(names)} maps of {inputs + outputs}")
    return Layer(
        fields[0][:40], fields[1][:80], tuple(names[:inputs]), tuple(names[inputs:]), _settings(settings, where)
    )


def _settings(fields: list[str], where: str) -> dict[int, Setting]:
    """From ``number=value``; arrays have the number ``-23300 - number``, and their length first."""
    found: dict[int, Setting] = {}
    for field in fields:
        key, _, text = field.partition("=")
        try:
            number, values = int(key), [_number(part) for part in text.split(",")]
        except ValueError:
            raise Damaged(f"{where} has a setting that is none: {field[:40]!r}") from None
        if number <= -23300:
            number = -23300 - number
            if values[0] != len(values) - 1:
                raise Damaged(f"{where} has an array that is not as long as it says: {field[:40]!r}")
            found[number] = tuple(values[1:])
        elif len(values) == 1:
            found[number] = values[0]
        else:
            raise Damaged(f"{where} has a setting with several values: {field[:40]!r}")
    return found


def _number(text: str) -> int | float:
    if len(text) > 40:
        raise ValueError
    return float(text) if any(mark in text for mark in ".eE") else int(text)


def _size(layer: Layer, number: int, default: int = 0) -> int:
    """A setting that is a size."""
    value = layer.settings.get(number, default)
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise Damaged(f"{layer.kind} {layer.name!r} has an impossible size ({value})"[:200])
    return value


def _bytes_at_least(layer: Layer) -> int:
    if layer.kind in _WITHOUT_WEIGHTS:
        return 0
    if layer.kind not in _WITH_WEIGHTS:
        raise Damaged(
            f"its layer {layer.name!r} is a {layer.kind}, which this reader does not know: where the weights of "
            "the layers after it lie cannot be told"
        )
    if layer.settings.get(_INT8_SETTING) or layer.settings.get(_DYNAMIC_SETTING):
        raise Damaged(f"its layer {layer.name!r} has weights in 8 bits, or takes them as an input")
    outputs, weights, biased = _WITH_WEIGHTS[layer.kind]
    return 4 + 2 * _size(layer, weights) + 4 * _size(layer, outputs) * bool(_size(layer, biased))


class _Values:
    """Takes weights off a file's bytes, one layer after the other."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name, self.at = content, name, 0

    def layer(self, layer: Layer) -> Layer:
        if layer.kind not in _WITH_WEIGHTS:
            return layer
        outputs, weights, biased = (_size(layer, number) for number in _WITH_WEIGHTS[layer.kind])
        values = self.tagged(weights, layer.name)
        shape = _shape(layer, outputs, weights)
        weight = values.reshape(shape)
        bias = self.floats(outputs, layer.name) if biased else None
        if layer.kind == "Deconvolution":
            weight = weight.transpose(0, 1).contiguous()
        return Layer(layer.kind, layer.name, layer.inputs, layer.outputs, layer.settings, weight, bias)

    def tagged(self, count: int, name: str) -> Tensor:
        """Weights after the word that says how they are stored, up to the next multiple of four bytes."""
        (tag,) = struct.unpack("<I", self.take(4, name))
        if tag in (_PLAIN, _FLOAT32):
            return self.floats(count, name)
        if tag != _FLOAT16:
            how = "8 bits" if tag == _INT8 else f"a way that is not known ({tag:#010x})"
            raise Damaged(f"{self.name} stores the weights of {name!r} in {how}: float16 and float32 are read")
        halves = torch.frombuffer(bytearray(self.take(2 * count, name)) or bytearray(2), dtype=torch.float16)[
            :count
        ]
        if any(self.take(-2 * count % 4, name)):
            raise Damaged(f"{self.name} has something in the gap after the weights of {name!r}")
        return halves.float()

    def floats(self, count: int, name: str) -> Tensor:
        return torch.frombuffer(bytearray(self.take(4 * count, name)) or bytearray(4), dtype=torch.float32)[:count]

    def take(self, count: int, name: str) -> bytes:
        part = self.content[self.at : self.at + count]
        if len(part) != count:
            raise Damaged(f"{self.name} is cut off within the layer {name!r}")
        self.at += count
        return part


def _shape(layer: Layer, outputs: int, weights: int) -> tuple[int, ...]:
    width = 1 if layer.kind == "InnerProduct" else _size(layer, _KERNEL)
    height = 1 if layer.kind == "InnerProduct" else _size(layer, _KERNEL_HEIGHT, width)
    each = outputs * height * width
    if not each or weights % each or not weights:
        raise Damaged(
            f"{layer.kind} {layer.name!r} has {weights} weights for {outputs} outputs of {height}×{width}"[:200]
        )
    inputs = weights // each
    return (outputs, inputs) if layer.kind == "InnerProduct" else (outputs, inputs, height, width)

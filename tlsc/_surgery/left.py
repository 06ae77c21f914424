"""Layers that aggregate over positions and have no local form here: what is said of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .._sites.kind import Kind
from .positions.table import is_harmless

__all__ = ["scripted", "why_layer_left"]

_POOLS = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
)
_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def why_layer_left(layer: nn.Module) -> str:
    """Why a layer of PyTorch stays global; empty for one that is judged with the forward that calls it."""
    name = type(layer).__name__
    teach = f"tlsc.register({name}, factory) can give it one"
    if isinstance(layer, _RECURRENT):
        return f"{name} runs along the positions and has no local form here; {teach}"
    if isinstance(layer, _POOLS):
        way = "write a pool over a whole map as AdaptiveAvgPool2d(1), or " if name.endswith("Pool2d") else ""
        return f"{name} over all positions has no local form here; {way}{teach}"
    if isinstance(layer, _NORMS):
        return f"{name} over all positions has no local form here; {teach}"
    if isinstance(layer, (nn.Upsample, nn.Bilinear, nn.Linear, nn.CosineSimilarity, nn.PairwiseDistance)):
        return f"{name} takes positions together and has no local form here; {teach}"
    return ""


def scripted(module: nn.Module) -> Kind | None:
    """A scripted or traced module some of whose operations may be global; what is in it cannot be changed."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    try:
        graph = module.inlined_graph
    except Exception:  # one without a forward, such as a list of modules
        return None
    if all(_is_local(kind) for kind in _kinds_in(graph)):
        return None
    return Kind("ScriptModule", None, lambda module: ("left global", "scripted: convert it before scripting it"))


def _kinds_in(block: Any) -> Iterator[str]:
    """The names of the operations of a graph, and of all blocks in it."""
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds_in(inner)


def _is_local(kind: str) -> bool:
    """Whether an operation of TorchScript is harmless however it is called, or is so in every usual layer."""
    space, _, name = kind.partition("::")
    if space == "prim":
        return True
    if space != "aten":
        return False
    if name in _USUAL or is_harmless(name):
        return True
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return name.startswith("__") or name in ("format", "warn", "append", "len")  # Python's own, of numbers
    made = [getattr(packet, overload) for overload in packet.overloads()]
    return any(each.is_view or torch.Tag.pointwise in each.tags or not _takes_tensor(each) for each in made)


def _takes_tensor(operation: Any) -> bool:
    return any("Tensor" in str(argument.type) for argument in operation._schema.arguments)


_USUAL = (
    *("_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("batch_norm", "linear", "addmm", "layer_norm", "max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "__interpolate", "dropout_", "flatten"),
    *("reshape", "expand_as", "type_as", "view_as", "reshape_as", "to", "relu6", "selu", "numpy_T", "dim"),
    *("upsample_nearest1d", "upsample_nearest3d"),
)

"""Layers that aggregate over positions and have no local form here: what is said of each."""

from __future__ import annotations

import torch
from torch import nn

from .._sites.kind import Kind

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
    if not any(graph.findAllNodes(f"aten::{name}", recurse=True) for name in _SCRIPTED):  # type: ignore[attr-defined]
        return None
    return Kind("ScriptModule", None, lambda module: ("left global", "scripted: convert it before scripting it"))


_SCRIPTED = (
    *("mean", "sum", "amax", "max", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "softmax"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "scaled_dot_product_attention"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "lstm", "gru", "cumsum", "einsum"),
    *("instance_norm", "group_norm", "bmm", "matmul", "amin", "min", "prod", "sort", "topk", "median", "fft_rfft2"),
    *("fft_fft2", "fft_rfftn", "fft_fftn", "logsumexp", "log_softmax", "frobenius_norm"),
)

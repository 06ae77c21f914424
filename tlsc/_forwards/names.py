"""Names of operations: one for all spellings, and what the names alone tell."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from .opaque import Whole

__all__ = ["LAYERS", "LAYOUT", "LOCAL", "NORMS", "POINTWISE", "argument", "canonical_name", "name_of"]


def name_of(node: fx.Node, root: nn.Module) -> str:
    """The operation of a call by one name for all its spellings: ``mean`` for ``torch.mean`` and ``x.mean``."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    return canonical_name(node.op, node.target)


def canonical_name(kind: str, target: Any) -> str:
    name = str(target) if kind == "call_method" else getattr(target, "__name__", str(target))
    name = name.rstrip("_") or name
    return _SAME.get(name, name)


_SAME = {
    name: to
    for to, names in {
        "add": ("iadd", "radd"),
        "sub": ("isub", "subtract", "rsub"),
        "mul": ("imul", "rmul", "multiply"),
        "div": ("truediv", "itruediv", "divide", "true_divide"),
        "pow": ("ipow",),
        "cat": ("concat", "concatenate"),
        "view": ("reshape",),
        "transpose": ("swapaxes", "swapdims"),
        "norm": ("vector_norm", "linalg_vector_norm", "frobenius_norm"),
        "neg": ("negative",),
        "matmul": ("bmm", "rmatmul"),
        "max": ("_max",),
        "abs": ("absolute",),
        "clamp": ("clip",),
    }.items()
    for name in names
}

LAYOUT = {
    "view", "view_as", "reshape_as", "flatten", "unflatten", "permute", "transpose", "movedim", "moveaxis",
    "squeeze", "unsqueeze", "getitem", "t",
}  # fmt: skip

POINTWISE = {
    "add", "sub", "mul", "div", "floordiv", "pow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "exp2",
    "expm1", "log", "log1p", "log2", "abs", "neg", "sign", "clamp", "clamp_min", "clamp_max", "maximum",
    "minimum", "where", "lerp", "addcmul", "addcdiv", "nan_to_num", "sin", "cos", "erf", "relu", "relu6",
    "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh",
    "tanhshrink", "softplus", "softsign", "softshrink", "hardshrink", "hardtanh", "hardsigmoid", "hardswish",
    "threshold", "dropout", "dropout2d", "to", "feature_dropout", "float", "double", "half", "bfloat16",
    "type", "type_as", "contiguous", "detach", "clone", "zeros_like", "ones_like", "full_like", "gt", "ge", "lt",
    "le", "eq", "ne", "greater", "less", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or",
    "masked_fill", "remainder", "fmod", "floor", "ceil", "round", "trunc", "heaviside", "sinh", "cosh", "tan",
    "atan", "atan2", "log_sigmoid", "xlogy", "hypot", "rrelu", "isnan", "isfinite", "empty_like",
}  # fmt: skip

NORMS = ("instance_norm", "group_norm", "InstanceNorm1d", "InstanceNorm2d", "GroupNorm")

# Operations that compute a map from the neighbourhood of each position, with weights of their own, as layers do.
LAYERS = {"conv2d", "conv1d", "conv3d", "conv_transpose2d", "linear", "_convolution", "convolution", "deform_conv2d", "bilinear"}  # fmt: skip

# The same without weights, or operations that only move positions by a bounded distance or between neighbours.
LOCAL = {
    "avg_pool2d", "max_pool2d", "boolean_dispatch", "_max_pool2d", "lp_pool2d", "interpolate", "upsample", "pad",
    "_pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold", "fold", "grid_sample", "affine_grid",
    "upsample_nearest", "upsample_bilinear", "constant_pad_nd", "local_response_norm", "narrow", "select",
    "batch_norm", "avg_pool1d", "max_pool1d", "_max_pool1d", "flip", "roll", "rot90", "index_select", "repeat",
    "repeat_interleave", "tile", "im2col", "col2im", "native_batch_norm", "rrelu", "alpha_dropout",
}  # fmt: skip


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default

"""The names of operations, one for all spellings, and what some have in common."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

__all__ = ["LAYOUT", "NEW", "NORMS", "POINTWISE", "argument", "dims_of", "name_of", "spelled"]


def name_of(node: fx.Node, root: nn.Module) -> str:
    """The operation of a call by one name for all its spellings: ``mean`` for ``torch.mean`` and ``x.mean``."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    return spelled(node.op, node.target)


def spelled(kind: str, target: Any) -> str:
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

NEW = {"new_tensor", "new_ones", "new_zeros", "new_full", "new_empty"}
"""Of a tensor only its type and device are read."""

NORMS = ("instance_norm", "group_norm", "InstanceNorm1d", "InstanceNorm2d", "GroupNorm")


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def dims_of(value: Any, rank: int) -> tuple[int, ...]:
    if value is None:
        return tuple(range(rank))
    if isinstance(value, (tuple, list)):
        return tuple(sorted(operator.index(v) % rank for v in value)) or tuple(range(rank))
    return (operator.index(value) % rank,)

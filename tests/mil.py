"""The operations of CoreML's intermediate language that our networks become, one by one in PyTorch.

CoreML runs on Apple's machines only; what coremltools writes can be followed anywhere. What each operation means is
said in the documentation of coremltools ("MIL ops"), and nothing of tlsc is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATIONS", "evaluated"]

OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: torch.abs(x),
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: _tensor(x).to(
        {"int32": torch.int32, "fp32": torch.float32, "bool": torch.bool}[dtype]
    ),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "concat": lambda values, axis, interleave=False: torch.cat([_tensor(v) for v in values], int(axis)),
    "equal": lambda x, y: _tensor(x) == y,
    "expand_dims": lambda x, axes: _each(torch.unsqueeze, x, axes),
    "floor_div": lambda x, y: torch.div(_tensor(x), y, rounding_mode="floor"),
    "gather": lambda x, indices, axis, batch_dims=0, validate_indices=False: _gather(x, indices, int(axis)),
    "greater": lambda x, y: _tensor(x) > y,
    "greater_equal": lambda x, y: _tensor(x) >= y,
    "identity": lambda x: x,
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, float(alpha)),
    "less": lambda x, y: _tensor(x) < y,
    "less_equal": lambda x, y: _tensor(x) <= y,
    "logical_and": lambda x, y: _tensor(x) & y,
    "logical_not": lambda x: ~_tensor(x),
    "logical_or": lambda x, y: _tensor(x) | y,
    "maximum": lambda x, y: torch.maximum(_tensor(x), _tensor(y)),
    "minimum": lambda x, y: torch.minimum(_tensor(x), _tensor(y)),
    "mod": lambda x, y: torch.remainder(_tensor(x), y),
    "mul": lambda x, y: x * y,
    "not_equal": lambda x, y: _tensor(x) != y,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, int(downscale_factor)),
    "range_1d": lambda start, end, step: torch.arange(int(start), int(end), int(step), dtype=torch.int32),
    "real_div": lambda x, y: _tensor(x) / y,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(map(int, axes)), keepdim=bool(keep_dims)),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(tuple(map(int, axes)), keepdim=bool(keep_dims)),
    "relu": lambda x: torch.relu(x),
    "reshape": lambda x, shape: x.reshape(_ints(shape)),
    "rsqrt": lambda x, epsilon=0.0: torch.rsqrt(x + epsilon),
    "select": lambda cond, a, b: torch.where(_tensor(cond), _tensor(a), _tensor(b)),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "sigmoid": lambda x: torch.sigmoid(x),
    "sqrt": lambda x: torch.sqrt(x),
    "squeeze": lambda x, axes: _tensor(x).squeeze(tuple(map(int, axes))),
    "sub": lambda x, y: x - y,
    "tile": lambda x, reps: _tensor(x).repeat(_ints(reps)),
    "transpose": lambda x, perm: x.permute(_ints(perm)),
}


def _operation(run: Callable[..., Any]) -> Callable[..., Any]:
    OPERATIONS[run.__name__.strip("_")] = run
    return run


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _each(do: Callable[[Tensor, int], Tensor], x: Any, axes: Any) -> Tensor:
    out = _tensor(x)
    for axis in sorted(_ints(axes)):
        out = do(out, axis)
    return out


def _gather(x: Any, indices: Any, axis: int) -> Tensor:
    x, indices = _tensor(x), _tensor(indices).long()
    axis %= x.dim()
    found = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@_operation
def _conv(x, weight, strides, pad_type, pad, dilations, groups, bias=None):  # type: ignore[no-untyped-def]
    top, bottom, left, right = _ints(pad) if pad_type == "custom" else (0, 0, 0, 0)
    assert pad_type in ("custom", "valid")
    x = F.pad(x, (left, right, top, bottom))
    bias = None if bias is None else _tensor(bias)
    return F.conv2d(x, _tensor(weight), bias, _ints(strides), 0, _ints(dilations), int(groups))


@_operation
def _conv_transpose(x, weight, strides, pad_type, pad, dilations, groups, bias=None, output_shape=None):  # type: ignore[no-untyped-def]
    top, bottom, left, right = _ints(pad) if pad_type == "custom" else (0, 0, 0, 0)
    assert pad_type in ("custom", "valid")
    bias = None if bias is None else _tensor(bias)
    out = F.conv_transpose2d(x, _tensor(weight), bias, _ints(strides), 0, 0, int(groups), _ints(dilations))
    return out[..., top : out.shape[-2] - bottom, left : out.shape[-1] - right]


@_operation
def _pad(x, pad, mode="constant", constant_val=0.0):  # type: ignore[no-untyped-def]
    pairs = np.asarray(_ints(pad)).reshape(-1, 2)[::-1].ravel().tolist()
    if mode == "constant":
        return F.pad(_tensor(x), pairs, value=float(constant_val))
    assert not any(pairs[4:])
    return F.pad(x, pairs[:4], mode={"replicate": "replicate", "reflect": "reflect"}[mode])


@_operation
def _slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):  # type: ignore[no-untyped-def]
    out, squeezed = _tensor(x), []
    for axis in range(out.dim()):
        n = out.shape[axis]
        step = 1 if stride is None else int(stride[axis])
        assert step > 0
        first = 0 if begin_mask is not None and begin_mask[axis] else int(begin[axis])
        if squeeze_mask is not None and squeeze_mask[axis]:
            out = out.narrow(axis, first % n, 1)
            squeezed.append(axis)
            continue
        last = n if end_mask is not None and end_mask[axis] else int(end[axis])
        first, last = (min(max(at + n if at < 0 else at, 0), n) for at in (first, last))
        out = out[(slice(None),) * axis + (slice(first, last, step),)]
    return out.squeeze(tuple(squeezed)) if squeezed else out


@_operation
def _slice_by_size(x, begin, size):  # type: ignore[no-untyped-def]
    out = _tensor(x)
    for axis, (first, count) in enumerate(zip(_ints(begin), _ints(size), strict=True)):
        out = out.narrow(axis, first, out.shape[axis] - first if count == -1 else count)
    return out


@_operation
def _avg_pool(x, kernel_sizes, strides, pad_type, pad, exclude_padding_from_average, ceil_mode):  # type: ignore[no-untyped-def]
    assert not any(_ints(pad)) or pad_type == "valid"
    return F.avg_pool2d(x, _ints(kernel_sizes), _ints(strides), ceil_mode=bool(ceil_mode))


@_operation
def _fill(shape, value):  # type: ignore[no-untyped-def]
    return torch.full(_ints(shape), value.item() if hasattr(value, "item") else value)


def evaluated(program: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of a program's ``main`` for these inputs.

    Raises:
        KeyError: an operation that is not written down here.
    """
    main = program.functions["main"]
    values: dict[str, Any] = {}
    for name in main.inputs:
        values[name] = given[name]

    def value(var: Any) -> Any:
        if isinstance(var, (list, tuple)):
            return [value(one) for one in var]
        if var.name in values:
            return values[var.name]
        found = var.val
        return torch.as_tensor(found) if isinstance(found, np.ndarray) and found.ndim else found

    for op in main.operations:
        if op.op_type == "const":
            continue
        arguments = {name: value(var) for name, var in op.inputs.items() if var is not None}
        made = OPERATIONS[op.op_type](**arguments)
        outputs = made if isinstance(made, (list, tuple)) else [made]
        for var, one in zip(op.outputs, outputs, strict=True):
            values[var.name] = one
    return [values[var.name] for var in main.outputs]

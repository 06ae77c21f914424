"""Operations said in others that are understood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from .names import dims_of
from .proxies import Extreme, Extremes, Index, Numeral
from .values import Cannot, Gram, Map, Partial, Statistic, Weights

__all__ = ["MODULES", "SPELLINGS"]


def labels_in(x: Any) -> str:
    kind = x.node.meta.get("kind") if isinstance(x, fx.Proxy) else None
    return str(getattr(kind, "labels", "")) if isinstance(kind, (Map, Partial, Weights)) else ""


def _is_gram(x: Any) -> bool:
    return isinstance(x, fx.Proxy) and isinstance(x.node.meta["kind"], Gram)


def is_over(x: Any, dim: Any) -> bool:
    """Whether dimensions of a map are positions."""
    labels = labels_in(x)
    return bool(labels) and any(labels[d] in "HWPM" for d in dims_of(dim, len(labels)))


def _mean(
    x: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False, **_: Any
) -> Any:
    return x.tracer._mixed_sum(x, "mean", axis if dim is None else dim, keepdim or keepdims)


def _sum(
    x: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False, **_: Any
) -> Any:
    return x.tracer._mixed_sum(x, "sum", axis if dim is None else dim, keepdim or keepdims)


def _normalize(input: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if not is_over(input, dim):
        return None
    norm = input.norm(p, dim, keepdim=True)
    out = input / norm.clamp_min(eps)
    if p == 2 and eps == 1e-12 and {labels_in(input)[d] for d in dims_of(dim, input.dim())} == {"P"}:
        out.node.meta["unit_of"] = input.node, norm.node
    return out


def _max(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    fits = isinstance(dim, int) and is_over(x, dim)
    return Extreme(x.amax(dim, keepdim=keepdim), Index()) if fits else None


def _min(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    fits = isinstance(dim, int) and is_over(x, dim)
    return Extreme(x.amin(dim, keepdim=keepdim), Index()) if fits else None


def _aminmax(x: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None or not is_over(x, dim):
        return None
    return Extremes(x.amin(dim, keepdim=keepdim), x.amax(dim, keepdim=keepdim))


def _linalg_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Of two dimensions it is a matrix norm: only Frobenius' is one of the elements."""
    if dim is None or not is_over(x, dim) or dtype is not None:
        return None
    if isinstance(dim, (tuple, list)) and len(dim) > 1 and ord not in (None, "fro"):
        return None
    return x.norm(2 if ord in (None, "fro") else ord, dim, keepdim=keepdim)


def _matrix_norm(x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _linalg_norm(x, ord, dim, keepdim, dtype=dtype) if ord == "fro" else None


def _adaptive_avg_pool1d(x: Any, output_size: Any) -> Any:
    return x.mean(-1, keepdim=True) if output_size in (1, (1,), [1]) and labels_in(x) else None


def _adaptive_max_pool1d(x: Any, output_size: Any, return_indices: bool = False) -> Any:
    whole = output_size in (1, (1,), [1]) and not return_indices and labels_in(x)
    return x.amax(-1, keepdim=True) if whole else None


def _avg_pool1d(x: Any, kernel_size: Any, *args: Any, **kwargs: Any) -> Any:
    kernel = kernel_size[0] if isinstance(kernel_size, (tuple, list)) else kernel_size
    whole = isinstance(kernel, Numeral) and kernel.node.meta["value"] == x.node.meta["value"].shape[-1]
    return x.mean(-1, keepdim=True) if whole and labels_in(x) else None


def _lp_pool2d(x: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    if not labels_in(x) or not isinstance(kernel_size, (tuple, list)):
        return None
    lengths = tuple(n.node.meta["value"] if isinstance(n, Numeral) else None for n in kernel_size)
    if lengths != tuple(x.node.meta["value"].shape[-2:]):
        return None
    return x.pow(norm_type).sum((-2, -1), keepdim=True).pow(1 / norm_type)


def _layer_norm(
    x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    labels = labels_in(x)
    taken = labels[-len(normalized_shape) :]
    if not set(taken) & set("HWPM"):
        return None
    if weight is not None or bias is not None:
        raise Cannot("its layer norm has weights for each position, and so takes maps of one size only")
    if labels in ("NCHW", "NCP") and taken == labels[2:]:
        return torch.nn.functional.instance_norm(x, eps=eps)
    if labels in ("NCHW", "NCP") and taken == labels[1:]:
        return torch.nn.functional.group_norm(x, 1, None, None, eps)
    return None


def _numel(x: Any) -> Any:
    return x.numel()


def _matmul(a: Any, b: Any) -> Any:
    """Of softmax weights and features: a product, and a sum over the dimension between them."""
    weights = [isinstance(x, fx.Proxy) and isinstance(x.node.meta["kind"], Weights) for x in (a, b)]
    if not any(weights) or a.dim() < 2 or b.dim() < 2:
        return None
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _einsum(equation: Any, *operands: Any) -> Any:
    """Of statistics or softmax weights with maps, or of a map alone: products, and a sum."""
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    read = _letters(equation, len(operands))
    if read is None:
        return None
    names, output = read
    kinds = [x.node.meta.get("kind") if isinstance(x, fx.Proxy) else None for x in operands]
    gone = [letter for letter in dict.fromkeys("".join(names)) if letter not in output]
    summed = [names[0].index(letter) for letter in gone if letter in names[0]]
    there = {type(k) for k in kinds}
    if len(operands) == 2 and len(gone) == 1 and there <= {Map, Gram}:
        return _einsum_of_maps(names, output, gone[0], *operands)
    alone = len(operands) == 1 and Map in there and bool(summed) and is_over(operands[0], summed)
    if not (alone or (Map in there and there & {Statistic, Weights})):
        return None
    return _product_of(operands, names, output, gone)


def _letters(equation: Any, operands: int) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result; None where one is repeated, or left out."""
    if not isinstance(equation, str) or "." in equation:
        return None
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    repeated = any(len(set(letters)) != len(letters) for letters in (*names, output))
    return None if not arrow or len(names) != operands or repeated else (names, output)


def _product_of(operands: tuple[Any, ...], names: list[str], output: str, gone: list[str]) -> Any:
    """Everything multiplied, and summed over the letters that are gone."""
    order = [*output, *gone]
    total: Any = None
    for x, letters in zip(operands, names, strict=True):
        x = x.permute([letters.index(letter) for letter in order if letter in letters])
        for place, letter in enumerate(order):
            if letter not in letters:
                x = x.unsqueeze(place)
        total = x if total is None else total * x
    return total.sum(tuple(range(len(output), len(order)))) if gone else total


def _einsum_of_maps(names: list[str], output: str, gone: str, first: Any, second: Any) -> Any:
    """Two maps multiplied as matrices; None where it is another product."""
    if not all(gone in letters for letters in names):
        return None
    shared = [letter for letter in names[0] if letter in names[1] and letter != gone]
    own = [[letter for letter in letters if letter not in (*shared, gone)] for letters in names]
    if len(own[0]) != 1 or len(own[1]) != 1 or any(letter not in output for letter in shared):
        return None

    def laid(x: Any, letters: list[str], wanted: list[str]) -> Any:
        return x if letters == wanted else x.permute([letters.index(letter) for letter in wanted])

    product = laid(first, [*names[0]], [*shared, *own[0], gone]) @ laid(
        second, [*names[1]], [*shared, gone, *own[1]]
    )
    return laid(product, [*shared, *own[0], *own[1]], [*output])


SPELLINGS: dict[str, Callable[..., Any]] = {
    "mean": _mean,
    "sum": _sum,
    "normalize": _normalize,
    "max": _max,
    "min": _min,
    "aminmax": _aminmax,
    "linalg_norm": _linalg_norm,
    "linalg_matrix_norm": _matrix_norm,
    "adaptive_avg_pool1d": _adaptive_avg_pool1d,
    "adaptive_max_pool1d": _adaptive_max_pool1d,
    "_adaptive_max_pool1d": _adaptive_max_pool1d,
    "avg_pool1d": _avg_pool1d,
    "lp_pool2d": _lp_pool2d,
    "layer_norm": _layer_norm,
    "numel": _numel,
    "matmul": _matmul,
    "einsum": _einsum,
}
MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Softmax: lambda module, x: x.softmax(module.dim) if labels_in(x) or _is_gram(x) else None,
    nn.AdaptiveAvgPool1d: lambda module, x: _adaptive_avg_pool1d(x, module.output_size),
    nn.AdaptiveMaxPool1d: lambda module, x: _adaptive_max_pool1d(x, module.output_size, module.return_indices),
    nn.LayerNorm: lambda module, x, weight=None, bias=None: _layer_norm(
        x, module.normalized_shape, weight, bias, module.eps
    ),
}

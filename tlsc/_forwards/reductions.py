"""The calls that reduce a map, in every spelling."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from .names import argument, dims_of
from .values import Reduction

__all__ = ["keeps", "reduction_of"]


def reduction_of(node: fx.Node, name: str, root: nn.Module) -> Reduction | None:
    """The reduction that a call is, over whichever dimensions; None if it is none that has a local form."""
    base = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(base, fx.Node) or not isinstance(base.meta.get("value"), Tensor):
        return None
    rank = base.meta["value"].dim()
    positions = rank - 2, rank - 1
    if node.op == "call_module":
        kind = _pool(root.get_submodule(str(node.target)))
        return None if kind is None else Reduction(kind, base, positions, True, child=str(node.target))
    if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        if argument(node, 1, "output_size") not in _ONE:
            return None
        return Reduction("mean" if "avg" in name else "amax", base, positions, True)
    if name in ("avg_pool2d", "max_pool2d", "_max_pool2d", "boolean_dispatch"):
        if not _pools_all(node, tuple(base.meta["value"].shape[-2:])):
            return None
        return Reduction("mean" if "avg" in name else "amax", base, positions, True)
    if name in ("mean", "sum", "amax", "amin", "logsumexp"):
        dims = dims_of(argument(node, 1, "dim", node.kwargs.get("axis")), rank)
        return Reduction(name, base, dims, keeps(node, 2))
    if name in ("var", "std", "var_mean", "std_mean"):
        return _variance(node, name, base, rank)
    return _norm(node, base, rank) if name == "norm" else None


_ONE = (1, (1, 1), [1, 1])


def _pool(module: nn.Module) -> str | None:
    """What a module that pools a map to one value takes."""
    kind = {nn.AdaptiveAvgPool2d: "mean", nn.AdaptiveMaxPool2d: "amax"}.get(type(module))
    whole = kind is not None and module.output_size in _ONE and not getattr(module, "return_indices", False)
    return kind if whole else None


def _pools_all(node: fx.Node, size: tuple[int, ...]) -> bool:
    """Whether the kernel of a pool is the whole map."""
    kernel = argument(node, 1, "kernel_size")
    return _values(kernel) == size and argument(node, 3, "padding", 0) in (0, (0, 0)) and _is_whole(kernel)


def _variance(node: fx.Node, name: str, base: fx.Node, rank: int) -> Reduction:
    dim, unbiased = argument(node, 1, "dim"), node.kwargs.get("unbiased", True)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    rest = [arg for arg in node.args[2:] if isinstance(arg, bool)]
    if len(rest) == 2:
        unbiased = rest[0]
    keep = node.kwargs.get("keepdim", rest[-1] if rest else False)
    if len(rest) == 1 and "keepdim" not in node.kwargs:  # x.var(dim, unbiased): keepdim comes third
        unbiased, keep = rest[0], False
    correction: Any = node.kwargs.get("correction", 1 if unbiased else 0)
    return Reduction(
        name, base, dims_of(dim, rank), bool(keep), correction=float(1 if correction is None else correction)
    )


def _norm(node: fx.Node, base: fx.Node, rank: int) -> Reduction | None:
    order = argument(node, 1, "p", node.kwargs.get("ord", 2))
    order = 2 if order in (None, "fro") else order
    if not isinstance(order, (int, float)):
        return None
    return Reduction("norm", base, dims_of(argument(node, 2, "dim"), rank), keeps(node, 3), order=float(order))


def keeps(node: fx.Node, position: int) -> bool:
    return bool(argument(node, position, "keepdim", node.kwargs.get("keepdims", False)))


def _values(kernel: Any) -> tuple[Any, ...]:
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel, kernel)
    return tuple(item.meta["value"] if isinstance(item, fx.Node) else item for item in items)


def _is_whole(kernel: Any) -> bool:
    """Whether a kernel's size was read off the map (a constant that happens to fit is a local pool)."""
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,)
    return all(isinstance(item, fx.Node) for item in items)

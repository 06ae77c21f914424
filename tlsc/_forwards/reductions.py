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
    size = tuple(base.meta["value"].shape[-2:])
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        kind = {nn.AdaptiveAvgPool2d: "mean", nn.AdaptiveMaxPool2d: "amax"}.get(type(module))
        if (
            kind is None
            or module.output_size not in (1, (1, 1), [1, 1])
            or getattr(module, "return_indices", False)
        ):
            return None
        return Reduction(kind, base, (rank - 2, rank - 1), True, child=str(node.target))
    if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        if argument(node, 1, "output_size") not in (1, (1, 1), [1, 1]):
            return None
        return Reduction("mean" if "avg" in name else "amax", base, (rank - 2, rank - 1), True)
    if name in ("avg_pool2d", "max_pool2d", "_max_pool2d", "boolean_dispatch"):
        kernel = argument(node, 1, "kernel_size")
        lengths = _values(kernel)
        padded = argument(node, 3, "padding", 0)
        if lengths != size or padded not in (0, (0, 0)) or not _is_whole(kernel):
            return None
        return Reduction("mean" if "avg" in name else "amax", base, (rank - 2, rank - 1), True)
    if name in ("mean", "sum", "amax", "amin", "logsumexp"):
        dims = dims_of(argument(node, 1, "dim", node.kwargs.get("axis")), rank)
        return Reduction(name, base, dims, keeps(node, 2))
    if name in ("var", "std", "var_mean", "std_mean"):
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
    if name == "norm":
        order = argument(node, 1, "p", node.kwargs.get("ord", 2))
        dims = dims_of(argument(node, 2, "dim"), rank)
        if order in (None, "fro"):
            order = 2
        if not isinstance(order, (int, float)):
            return None
        return Reduction("norm", base, dims, keeps(node, 3), order=float(order))
    return None


def keeps(node: fx.Node, position: int) -> bool:
    return bool(argument(node, position, "keepdim", node.kwargs.get("keepdims", False)))


def _values(kernel: Any) -> tuple[Any, ...]:
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel, kernel)
    return tuple(item.meta["value"] if isinstance(item, fx.Node) else item for item in items)


def _is_whole(kernel: Any) -> bool:
    """Whether a kernel's size was read off the map (a constant that happens to fit is a local pool)."""
    items = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,)
    return all(isinstance(item, fx.Node) for item in items)

"""Labels of a map's dimensions after an operation that moves, joins or broadcasts them."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from .names import argument, dims_of
from .values import Map, Opaque, Space

__all__ = ["broadcast", "dropped", "laid_out"]


def dropped(kind: Map, dims: tuple[int, ...], keepdim: bool) -> Map:
    labels = "".join("1" if d in dims else label for d, label in enumerate(kind.labels) if keepdim or d not in dims)
    return replace(kind, labels=labels)


def broadcast(maps: list[fx.Node], value: Tensor) -> Any:
    """The labels of a pointwise result: on each dimension the one that is not 1."""
    rank = value.dim()
    out = ["1"] * rank
    for node in maps:
        kind: Map = node.meta["kind"]
        if kind.space is not maps[0].meta["kind"].space:
            return Opaque()
        for label, place in zip(reversed(kind.labels), range(rank - 1, -1, -1), strict=False):
            if out[place] in ("1", label):
                out[place] = label
            elif label != "1":
                return Opaque()
    out = ["C" if label == "1" and value.shape[place] != 1 else label for place, label in enumerate(out)]
    return Map("".join(out), maps[0].meta["kind"].space, any(node.meta["kind"].mixed for node in maps))


def laid_out(node: fx.Node, name: str, kind: Map) -> Any:
    """The labels after a change of layout."""
    labels, value = list(kind.labels), node.meta["value"]
    rank = len(labels)
    if name == "getitem":
        return _indexed(node, kind)
    if not isinstance(value, Tensor):
        return Opaque()
    if name in ("permute", "movedim", "moveaxis", "transpose", "t"):
        # Distinct lengths tell where each dimension went.
        probe = torch.empty(tuple(range(2, rank + 2)), device="meta")
        method = str(node.target) if node.op == "call_method" else name
        moved = getattr(probe, method.rstrip("_"))(*node.args[1:], **node.kwargs)
        return replace(kind, labels="".join(labels[length - 2] for length in moved.shape))
    if name == "unsqueeze":
        place = operator.index(argument(node, 1, "dim")) % (rank + 1)
        return replace(kind, labels="".join([*labels[:place], "1", *labels[place:]]))
    if name == "squeeze":
        given = node.args[0].meta["value"].shape  # type: ignore[union-attr]
        chosen = dims_of(argument(node, 1, "dim"), rank)
        return replace(kind, labels="".join(x for d, x in enumerate(labels) if d not in chosen or given[d] != 1))
    return _regrouped(kind, tuple(node.args[0].meta["value"].shape), tuple(value.shape))  # type: ignore[union-attr]


def _regrouped(kind: Map, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    """The labels after a view, from which lengths of the old shape multiply to which of the new one."""
    out = ""
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while a != b or not (left or right):
            if i < len(before) and (a <= b or j == len(after)):
                a, i = a * before[i], i + 1
                left.append(i - 1)
            elif j < len(after):
                b, j = b * after[j], j + 1
                right.append(j - 1)
            else:
                return Opaque()
        old = "".join(kind.labels[d] for d in left if before[d] != 1)
        new = _labels_for(old, tuple(after[d] for d in right if after[d] != 1), kind.space)
        if new is None:
            return Opaque()
        names = iter(new)
        out += "".join("1" if after[d] == 1 else next(names) for d in right)
    return replace(kind, labels=out)


def _labels_for(old: str, lengths: tuple[int, ...], space: Space) -> str | None:
    """The labels of the dimensions, of these lengths, that those labelled ``old`` have become."""
    if len(old) == len(lengths):
        return old
    if set(old) == {"C"}:
        return "C" * len(lengths)
    if old.lstrip("C") not in ("HW", "P", "M") or not lengths:
        return None
    # Channels, if any, and then positions: the last lengths tell where those are now.
    positions = math.prod(space.size)
    if lengths[-2:] == space.size:
        return "C" * (len(lengths) - 2) + "HW"
    if lengths[-1] % positions:
        return None
    return "C" * (len(lengths) - 1) + ("P" if lengths[-1] == positions else "M")


def _indexed(node: fx.Node, kind: Map) -> Any:
    base, index = node.args
    if isinstance(base.meta["value"], (tuple, list)):  # type: ignore[union-attr]
        return kind
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        place = items.index(Ellipsis)
        missing = len(kind.labels) - sum(item is not None for item in items) + 1
        items[place : place + 1] = [slice(None)] * missing
    labels, out = iter(kind.labels), ""
    for item in items:
        if item is None:
            out += "1"
            continue
        label = next(labels)
        if isinstance(item, slice):
            if label in "HWPM" and item != slice(None):
                return Opaque()
            out += label
        elif isinstance(item, int):
            if label in "HWPM":
                return Opaque()
        elif label == "C" and _chooses(item) and all(isinstance(other, slice) or other is item for other in items):
            out += label
        else:
            return Opaque()
    return replace(kind, labels=out + "".join(labels))


def _chooses(item: Any) -> bool:
    """Whether an index is a list of channels."""
    if isinstance(item, (list, tuple)):
        return all(type(n) is int for n in item)
    value = item.meta["value"] if isinstance(item, fx.Node) and item.meta["kind"] is None else None
    return isinstance(value, Tensor) and value.dim() == 1 and value.dtype in (torch.int64, torch.int32)

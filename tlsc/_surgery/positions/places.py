"""Rules: values that go to other places, which may be far away."""

from __future__ import annotations

from typing import Any

from .operation import LEAVING, Change
from .table import dims, rule, shown_if

__all__: list[str] = []


@rule("roll")
def roll(change: Change) -> str:
    """By a part of the map, such as half of it; windows are shifted by as many positions at every size."""
    return shown_if(change.grown() and change.differs("shifts"), change)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "_grid_sampler_2d_cpu_fallback")
def grid_sample(change: Change) -> str:
    """At as many places as before: the image as a whole is drawn smaller."""
    if change.large is None:
        return ""
    return shown_if(change.grown("input") - change.grown_output(), change, "grid_sample")


@rule("index_put", "_index_put_impl", "_unsafe_index_put", "put")
def index_put(change: Change) -> str:
    """Values that are added up at places that do not get more with them."""
    key = "values" if "values" in change.small.args else "source"
    if change.large is None or not change.small.args.get("accumulate"):
        return ""
    return shown_if(change.grown(key) and not change.grown_output(), change, "index_put")


@rule("nonzero", "nonzero_static", "argwhere", "masked_select", "masked_scatter")
def selected(change: Change) -> str:
    """Where a value ends up depends on all before it."""
    key: Any = "mask" if "mask" in change.small.args else "self"
    return shown_if(change.grown(key), change)


@rule(*LEAVING)
def leaving(change: Change) -> str:
    """Out of PyTorch, where nobody sees what becomes of the values."""
    return shown_if(change.grown(), change, change.small.name.strip("_"))


@rule("flip", "rot90", "fliplr", "flipud")
def flip(change: Change) -> str:
    """Told by their number: :func:`tlsc._surgery.positions.findings.findings_of`."""
    return ""


def flipped(change: Change) -> frozenset[int]:
    """The dimensions of positions that an operation turns round."""
    return dims(change, "dims") & change.grown() if change.small.name == "flip" else frozenset()

"""Trace one module's ``forward`` and tell, for every value, how it relates to the positions of a map.

A value is a *map* (its dimensions labelled N batch, C channel, H height, W width, P both flattened, M channels
and positions flattened together, 1), a *statistic* (what a reduction over all positions of a map gave, and
everything computed from that and constants alone), a number computed from sizes, or a constant. Labels come from
running the recorded operations on fake tensors as they are traced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .places import came_through
from .proxies import Keyed
from .recorder import Recorded, Recorder
from .statistics import ChannelsLast
from .values import Cannot, Space

__all__ = ["Trace", "trace"]


@dataclass
class Trace:
    """``graph``'s nodes hold ``value`` (fake), ``kind`` and, where a statistic begins, ``reduction`` in meta.

    ``unknown``: operations that took all positions together in a way that is not understood. ``elsewhere``: it is
    not at ``base_size``. ``doubtful``: operations that may take positions together, on what is not understood.
    """

    graph: fx.Graph
    root: nn.Module
    inlined: tuple[str, ...]
    reductions: list[fx.Node] = field(default_factory=list)
    norms: list[fx.Node] = field(default_factory=list)
    attentions: list[fx.Node] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    recorded: Recorded | None = None
    spaces: list[Space] = field(default_factory=list)
    elsewhere: bool = False
    doubtful: list[str] = field(default_factory=list)

    def forget(self) -> None:
        """Let go of the fake tensors: nodes outlive what refers to them, and would have to be searched for."""
        _forget(self.graph)


def _forget(graph: fx.Graph) -> None:
    for node in graph.nodes:
        node.meta.clear()


def trace(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inline: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    mode: FakeTensorMode | None = None,
    free: frozenset[tuple[str, str]] = frozenset(),
    path: tuple[bool, ...] = (),
) -> Trace:
    """Trace ``module.forward`` for arguments of the given shapes; children in ``inline`` are entered.

    Pools in ``skip`` are not taken for statistics. ``mode``: that of the module's tensors if they are fake.
    ``free``: attributes, each a path and a name, that are numbers and read anew at each call. ``path``: how the
    first comparisons of sizes are to turn out, on which the course depends.

    Raises:
        Cannot: the forward branches on values or on the size of the map, or cannot be traced.
    """
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    first: Cannot | None = None
    labels, fixed, by_size = "NCHW", False, False
    while True:
        tracer = Recorder(module, args, kwargs, inline, skip, mode)
        tracer.labels, tracer.fixed, tracer.free, tracer.path = labels, fixed, free, path
        tracer.by_size = by_size
        try:
            graph = tracer.record()
        except Exception as error:
            if hasattr(tracer, "graph"):
                _forget(tracer.graph)
            if isinstance(error, ChannelsLast) and labels == "NCHW":
                labels = "NHWC"
                continue
            if isinstance(error, Keyed) and not by_size:
                by_size = True
                continue
            first = first or _cannot(error)
            if tracer.numbers and not fixed:
                fixed = True  # the course may depend on the values of numbers
                continue
            raise first from (None if first is error else error)
        reductions = [node for node in tracer.reductions if node not in tracer.serving]
        found = reductions, tracer.norms, tracer.attentions, tracer.unknown
        made = Trace(graph, module, inline, *found, tracer.recorded(), tracer.spaces)
        made.doubtful = tracer.doubtful
        return made


def _cannot(error: Exception) -> Cannot:
    found = _reason(error)
    reason, line = str(found), found.line or came_through(error)
    if line and not found.__cause__ and "cannot be traced" not in reason:
        found.args = (f"{reason} ({line})",)
    return found


def _reason(error: Exception) -> Cannot:
    if isinstance(error, Cannot):
        return error
    if isinstance(error, ChannelsLast):
        return Cannot("it reduces over channels and rows together")
    if isinstance(error, fx.proxy.TraceError):
        return Cannot("its forward branches on values")
    if "dynamo-optimized" in str(error):
        return Cannot("a part of it is compiled: convert it before compiling it")
    lines = str(error).strip().splitlines() or [""]
    return Cannot(f"its forward cannot be traced ({type(error).__name__}: {lines[0]})")

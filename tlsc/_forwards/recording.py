"""What a traced forward is, and what the rules may ask of the tracer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx, nn

from .guards import Reads
from .values import Space

__all__ = ["ChannelsLast", "Trace", "Tracing"]


class ChannelsLast(Exception):
    """The module's maps must be (N, H, W, C): it reduces over the two middle dimensions."""


class Tracing(Protocol):
    """The tracer, as the rules see it."""

    graph: fx.Graph
    labels: str
    skip: tuple[str, ...]
    spaces: list[Space]
    reductions: list[fx.Node]
    norms: list[fx.Node]
    attentions: list[fx.Node]
    serving: set[fx.Node]
    unknown: list[str]
    unruled: list[str]

    def proxy(self, node: fx.Node) -> Any:
        """The traced value of a node."""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Record an operation and return its traced value."""

    def module_at(self, path: str) -> nn.Module:
        """The module at a path of the traced one, as it was before any conversion."""


@dataclass
class Trace:
    """A traced forward: ``graph``'s nodes have :class:`~.values.Facts`.

    ``unknown``: operations that took all positions together in a way that is not understood. ``unruled``: those
    for which there is no rule. ``serving``: norms that only an attention needs. ``reads``: what the forward read.
    """

    graph: fx.Graph
    root: Tracing
    labels: str
    reads: Reads
    reductions: list[fx.Node] = field(default_factory=list)
    norms: list[fx.Node] = field(default_factory=list)
    attentions: list[fx.Node] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unruled: list[str] = field(default_factory=list)

    def forget(self) -> None:
        """Let go of the fake tensors: nodes outlive what refers to them, and would have to be searched for."""
        for node in self.graph.nodes:
            node.meta.clear()

"""Forwards whose course depends on the size of the map: they check it, pad to a multiple, or choose.

Each course has a local form of its own, recorded on a map of a size that takes it. Its windows are those of the
course that is taken at ``base_size``: the statistics of both must be the same, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from .names import name_of
from .proxies import course
from .rewriter import rewrite
from .trace import Trace, trace
from .values import Cannot, Gram, Partial, Space, Statistic, Weights

__all__ = ["explored", "is_its_own", "with_windows_of"]

_FLIPPED = 8
_OF_STATISTICS = (Gram, Partial, Statistic, Weights)


def with_windows_of(made: Trace, base: Trace) -> Trace:
    """A trace, its windows those of another, of the same statistics, at ``base_size``.

    Raises:
        Cannot: its statistics are others, or are taken of other maps.
    """
    mine, theirs = list(_spaces(made)), list(_spaces(base))
    if _signature(made) != _signature(base) or len(mine) != len(theirs):
        raise Cannot("what it does with a statistic depends on the size of the map: no one local form serves all")
    pairs = zip(mine, theirs, strict=True)
    if len(made.spaces) == len(base.spaces):
        pairs = zip((*mine, *made.spaces), (*theirs, *base.spaces), strict=True)
    for space, other in pairs:
        if space.of_base not in (None, other.size):
            raise Cannot("which maps have one size depends on the size of the map: no one local form serves all")
        space.of_base = other.size
    return replace(made, elsewhere=True)


def explored(
    base: Trace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    skip: tuple[str, ...],
    mode: FakeTensorMode,
    stride: int,
) -> None:
    """Try other courses than the one of a trace at ``base_size``.

    Raises:
        Cannot: one of them has no local form.
    """
    assert base.recorded is not None
    outcomes = base.recorded.outcomes
    if len(outcomes) > _FLIPPED:
        raise course(frozenset("HW"))
    paths = [(*outcomes[:place], not outcomes[place]) for place in range(len(outcomes))]
    ways = [(args, kwargs, path) for path in paths]
    ways += [(*_larger(mode, args, kwargs, times), ()) for times in (2, 3) if outcomes]
    for given, named, path in ways:
        try:
            made = trace(base.root, given, named, base.inlined, skip, mode, path=path)
        except Cannot as error:
            if is_its_own(error):
                continue
            raise
        try:
            rewrite(with_windows_of(made, base), stride)
        finally:
            made.forget()


def is_its_own(error: Cannot) -> bool:
    """Whether a forward could not be recorded as it raised an error."""
    return error.__cause__ is not None and not isinstance(error.__cause__, (Cannot, fx.proxy.TraceError))


def _larger(mode: FakeTensorMode, args: Any, kwargs: Any, times: int) -> tuple[Any, Any]:
    def larger(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 4:
            return leaf
        return leaf.new_empty((*leaf.shape[:-2], *(times * n for n in leaf.shape[-2:])))

    with mode:
        return tree_map(larger, (args, kwargs))  # type: ignore[no-any-return]


def _spaces(made: Trace) -> Iterator[Space]:
    """The maps of which the statistics are taken, in order."""
    for node in (*made.reductions, *made.norms):
        yield node.meta["kind"].space
    for node in made.attentions:
        yield node.meta["attends"][1].meta["kind"].space


def _signature(made: Trace) -> list[Any]:
    """Every operation on statistics, with its constants."""
    taken = {*made.reductions, *made.norms, *made.attentions}
    out = []
    for node in made.graph.nodes:
        met = (node, *node.all_input_nodes)
        if node in taken or any(isinstance(n.meta.get("kind"), _OF_STATISTICS) for n in met):
            constants = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
            out.append((name_of(node, made.root), repr(constants)))
    return out

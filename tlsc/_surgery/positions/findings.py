"""What takes positions together, by module, from the records of a run on a small image and on a large one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor, nn

from ..._models.slots import Slot
from . import harmless, local, places, products, reductions  # noqa: F401  they register their rules
from .operation import Change, Operation, Seen
from .places import flipped
from .recording import CallRecord, operation_of
from .table import taken

__all__ = ["ATTENDING", "FORMLESS", "Finding", "decisive", "findings_of", "takes_the_map"]

ATTENDING = ("matmul", "attention")
"""Operations that make attention, of which some forms are known."""
_STATISTICS = frozenset(
    (
        *("mean", "sum", "nansum", "nanmean", "amax", "amin", "aminmax", "max", "min", "logsumexp", "any", "all"),
        *("var", "std", "var_mean", "std_mean", "norm", "argmax", "argmin", "softmax", "log_softmax"),
        *("group_norm", "layer_norm", "instance_norm", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
        *("avg_pool2d", "max_pool2d"),
    )
)


class _Formless:
    """Every name but those of statistics and attention, of which some spellings have a local form."""

    def __contains__(self, name: object) -> bool:
        return name is not None and name not in _STATISTICS and name not in ATTENDING


FORMLESS = _Formless()
"""Operations that have no local form, whatever is done with their result."""
LONGER = 1.3
"""A chain of operations longer by this factor on the large image is one along its positions."""
MOST = 3000
"""Calls of more operations are compared in order only."""


@dataclass(frozen=True)
class Finding:
    """An operation that takes positions together, and the layer of PyTorch that it is a part of."""

    operation: str
    layer: nn.Module | None = None


def findings_of(
    small: Mapping[Slot, Sequence[CallRecord]], large: Mapping[Slot, Sequence[CallRecord]] | None
) -> dict[Slot, list[Finding]]:
    """Everything that takes positions together in the own code of each module, in order.

    ``large``: the calls of the same slots in a run on a larger image. None where there is none.
    """
    out: dict[Slot, list[Finding]] = {}
    for slot, calls in small.items():
        others = () if large is None else large.get(slot, ())
        for at, call in enumerate(calls):
            other = others[at] if at < len(others) else None
            turned: list[Finding] = []
            for change in _changes(call, other):
                name = taken(change)
                if name:
                    out.setdefault(slot, []).append(Finding(name, change.small.layer))
                if flipped(change):
                    turned.append(Finding("flip", change.small.layer))
            if len(turned) % 2:  # otherwise what is turned round is turned back, as around a scan
                out.setdefault(slot, []).append(turned[-1])
            if other is not None and _is_recurrent(call, other):
                out.setdefault(slot, []).append(Finding("recurrence"))
    return out


def takes_the_map(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation as PyTorch dispatches it takes all positions of its first tensor, a map (N, C, H, W)."""
    first = args[0] if args else None
    if not isinstance(first, Tensor) or first.dim() != 4 or not first.is_floating_point():
        return False
    operation = operation_of(func, args, kwargs, lambda tensor: Seen(tuple(tensor.shape), tensor is first))
    return bool(taken(Change(operation, None, {(first.shape[2], first.shape[3])})))


def decisive(findings: Sequence[Finding]) -> str:
    """The operation that decides what can become of a module: one without a form, attention, or the first one."""
    names = [finding.operation for finding in findings]
    formless = (name for name in names if name in FORMLESS)
    attending = (name for name in names if name in ATTENDING)
    return next(formless, next(attending, names[0]))


def _changes(small: CallRecord, large: CallRecord | None) -> Iterator[Change]:
    if large is None:
        for operation in small.operations:
            yield Change(operation, None, small.maps)
        return
    for operation, other in _aligned(small.operations, large.operations):
        yield Change(operation, other, small.maps)


def _aligned(
    small: Sequence[Operation], large: Sequence[Operation]
) -> Iterator[tuple[Operation, Operation | None]]:
    """Each operation with the same one of the other run, where there is one."""
    names, others = [operation.name for operation in small], [operation.name for operation in large]
    if names == others or max(len(names), len(others)) > MOST:
        for at, operation in enumerate(small):
            same = at < len(large) and large[at].name == operation.name
            yield operation, large[at] if same else None
        return
    matched: dict[int, int] = {}
    for first, second, length in SequenceMatcher(None, names, others, autojunk=False).get_matching_blocks():
        matched.update((first + at, second + at) for at in range(length))
    for at, operation in enumerate(small):
        yield operation, large[matched[at]] if at in matched else None


def _is_recurrent(small: CallRecord, large: CallRecord) -> bool:
    """Whether operations hang one behind the other, in a chain that is longer on a larger image."""
    if len(large.operations) <= len(small.operations):
        return False
    before, after = _chain(small), _chain(large)
    return after > before + 3 and after > LONGER * before


def _chain(call: CallRecord) -> int:
    depths = [operation.depth for operation in call.operations if operation.depth > 0]
    return max(depths) - min(depths) if depths else 0

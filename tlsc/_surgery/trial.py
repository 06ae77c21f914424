"""Pools tried as local pools: whether the layers behind them can take a map."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .._models.slots import Slot
from . import probe
from .probe import Inputs, Run

__all__ = ["larger_sizes", "refused_pools"]


def larger_sizes(base_size: tuple[int, int], real: bool) -> Iterator[tuple[int, int]]:
    """Sizes larger than ``base_size``, the most telling first; ``real``: those that cost less arithmetic first."""
    factors = ((2, 2), (1, 2), (2, 1), (2, 3), (4, 4)) if real else ((2, 3), (2, 2), (4, 4), (1, 2), (2, 1))
    for rows, columns in factors:
        yield rows * base_size[0], columns * base_size[1]


def refused_pools(
    model: nn.Module, inputs: Inputs, size: tuple[int, int], whole: Run, pools: list[Slot]
) -> dict[Slot, str]:
    """Pools whose result the layers behind cannot take as a map, with the reason.

    The model runs on an input of ``size``, larger than the window, each pool returning one value per position.
    ``whole``: what it did there as it is. Where that fails, the pool reached last is taken out and the rest is
    tried again; in the end each one taken out gets a second chance.
    """

    def attempt(local: list[Slot]) -> tuple[str | None, list[Slot]]:
        reached: dict[Slot, list[tuple[int, ...]]] = {}
        try:
            run = probe.run(model, inputs, size, dict.fromkeys(local, True), reached, whole.fake)
        except Exception as error:
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else 'no message'}", list(reached)
        if run.outputs != whole.outputs:
            return "the model's output would change its shape", list(reached)
        return None, list(reached)

    local = list(pools)
    refused: dict[Slot, str] = {}
    while local:
        why, reached = attempt(local)
        if why is None:
            break
        last = next((slot for slot in reversed(reached) if slot in local), local[-1])
        local.remove(last)
        refused[last] = f"the layers behind it need one value per image, not a map ({why})"
    for slot in list(refused):
        if len(refused) > 1 and attempt([*local, slot])[0] is None:
            local.append(slot)
            del refused[slot]
    return refused

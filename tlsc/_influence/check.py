"""After converting: do far pixels still reach the output, by something that no plan can know?

An experiment. A copy of the converted model runs on an image three windows long, and on its twin (``twins.py``).
Where a module has looked far, that is tried once more on a longer image, at another place: what reaches so far on
both, from both places, at the same point of the forward, reaches everywhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .._models.copies import cloned, structure_of
from .._models.undisturbed import python_numbers_kept
from .._plan import Plan, Site
from .._surgery.probe import Inputs
from ..errors import TLSCWarning
from .result import Source
from .twins import Sight, Twins

__all__ = ["CHEAP", "far_sources", "is_cheap", "warn_of_far"]

CHEAP = 500_000_000
"""Multiplications of a forward at ``base_size`` up to which the check is made without being asked for."""
LARGE = 2048 * 2048
"""Pixels of ``base_size`` up to which it is."""
LONG, LONGER, PIXELS = 3, 6, 256
"""The image's length in windows, at first and to make sure; and then at least so many pixels."""
PLACES = 0.34, 0.66


def is_cheap(model: nn.Module, work: int, base_size: tuple[int, int]) -> bool:
    """Whether the check is to be made without being asked for. In half precision a CPU is many times slower; and
    maps of many positions take memory, however little is done with them."""
    slow = any(
        tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.bfloat16)
        for tensor in (*model.parameters(), *model.buffers())
    )
    return work <= CHEAP and math.prod(base_size) <= LARGE and not slow


def far_sources(model: nn.Module, plan: Plan, inputs: Inputs) -> Iterator[Source]:
    """The modules through which pixels farther away than a window reach the output of a converted model.

    Without any, four forward passes at three times ``base_size`` on one axis, in the model's own precision.

    Raises:
        Exception: what the model raises there.
    """
    sites: dict[str, int] = {}
    for site in plan.converted:
        for path in {site.path, site.owner or site.path}:
            sites[path] = sites.get(path, 0) + 1
    told: set[Source] = set()
    with python_numbers_kept():
        copied = structure_of(model, _shared).model
        for axis in (0, 1):
            for source in _along(copied, plan.base_size, axis, inputs, sites):
                if source not in told:
                    told.add(source)
                    yield source


def _along(
    model: nn.Module, base_size: tuple[int, int], axis: int, inputs: Inputs, sites: dict[str, int]
) -> Iterator[Source]:
    first = Twins(model, inputs, _longer(base_size, axis, LONG), PLACES[0], sites).sights()
    if not first:
        return
    times = max(LONGER, math.ceil(PIXELS / base_size[axis]))
    twins = Twins(model, inputs, _longer(base_size, axis, times), PLACES[1], sites)
    again = {sight.event: sight for sight in twins.sights()}
    told: set[Source] = set()
    for sight in first:
        other = again.get(sight.event)
        if other is not None and sight.source not in told and _same(sight, other) and twins.arrives(other):
            told.add(sight.source)
            yield sight.source


def _same(one: Sight, other: Sight) -> bool:
    """Whether two sights are one; what is a vector of the image has the same length for every size of it."""
    return one.source == other.source and one.shapes == other.shapes


def _longer(size: tuple[int, int], axis: int, times: int) -> tuple[int, int]:
    return (size[0] * times, size[1]) if axis == 0 else (size[0], size[1] * times)


def _shared(tensor: Tensor) -> Tensor:
    """Parameters share their values, without gradients; other tensors may be changed by a forward."""
    return (
        nn.Parameter(tensor.detach(), requires_grad=False) if isinstance(tensor, nn.Parameter) else cloned(tensor)
    )


def warn_of_far(model: nn.Module, plan: Plan, inputs: Inputs | None, asked: bool, stacklevel: int) -> None:
    """Warn if far pixels still reach the output of a converted model.

    ``asked``: also by what the plan says is left global, and if it cannot be tried.
    """
    source: Source | None = None
    try:
        if inputs is None or any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise ValueError("it was not run")
        sources = far_sources(model, plan, inputs)
        source = next((one for one in sources if not _is_known(one, plan, asked)), None)
    except Exception as error:
        if asked:
            lines = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            text = f"whether far pixels still reach the output could not be tried ({said})"
            warnings.warn(text, TLSCWarning, stacklevel=stacklevel + 1)
        return
    if source is None:
        return
    reasons = [site.reason for site in plan.left if _is_at(site, source)]
    taken = any(_is_at(site, source) for site in plan.converted)
    known = ", which the plan takes for local" if taken else ", which the plan does not know"
    known = f": {reasons[0]}" if reasons else known
    height, width = plan.base_size
    warnings.warn(
        f"pixels farther away than the window of {height}×{width} still reach the output, through {source}{known}. "
        "tlsc.register can give it a local form; check=False leaves this experiment out",
        TLSCWarning,
        stacklevel=stacklevel + 1,
    )


def _is_known(source: Source, plan: Plan, asked: bool) -> bool:
    """Whether the caller chose to leave it global; where he did not ask, whether the plan says so."""
    chosen = "in exclude", "not in include"
    return any(_is_at(site, source) and (not asked or site.reason in chosen) for site in plan.left)


def _is_at(site: Site, source: Source) -> bool:
    """Whether a site is in the own code of a source, or is a module that holds it; or is a scripted module that the
    source holds, as the calls of these cannot be told from their caller's code."""
    paths = (site.path, *site.aliases, *(() if site.owner is None else (site.owner,)))
    if site.operation == "ScriptModule" and any(_holds(source.path, path) for path in paths):
        return True
    return any(source.path == path or (path and _holds(path, source.path)) for path in paths)


def _holds(outer: str, inner: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")

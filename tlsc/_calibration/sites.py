"""The sites of a converted model that a correction can reach, and how the maps that come to them are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .._forwards.runtime import CORRECTIONS
from .._plan import Fit, Plan
from .._sites.local_module import state_of
from .._sites.state import SiteState
from .._statistics.correction import Correction
from .._surgery.swapping import OWN_SITES
from ..errors import ArgumentValueError
from .fit import Fitted

__all__ = ["NEVER", "Place", "places_of", "watching"]

NEVER = "takes no mean and no variance: it has no correction"


@dataclass(eq=False)
class Place:
    """A site as it is in the converted model: a module, or a statistic of a rewritten one."""

    site: int
    module: nn.Module
    number: int | None
    maps: list[Tensor] = field(default_factory=list)
    noted: SiteState | None = None
    crops: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    calls: int = 0
    fitted: Fitted | None = None
    refused: str = ""

    def set(self, correction: Correction | None) -> None:
        if self.number is None:
            self.module.correction = correction  # type: ignore[assignment]
            return
        table = self.module.__dict__[CORRECTIONS]
        if correction is None:
            table.pop(self.number, None)
        else:
            table[self.number] = correction

    def state(self) -> SiteState | None:
        """The statistic; of a rewritten module known once a map has come."""
        return state_of(self.module) if self.number is None else self.noted

    @property
    def groups(self) -> int | None:
        state = self.state()
        return None if state is None else state.groups

    @property
    def eps(self) -> float:
        state = self.state()
        return 0.0 if state is None else state.eps

    @property
    def mean_only(self) -> bool:
        state = self.state()
        return state is not None and state.moments == 1

    @property
    def takes_one(self) -> bool:
        """Whether it takes a mean or a variance."""
        state = self.state()
        return state is not None and state.moments > 0

    def expected(self) -> int | None:
        """How many channels, or groups, its correction has; None if only a run would tell."""
        if self.groups is not None or self.number is not None:
            return self.groups
        found: int | None = getattr(self.module, "num_features", None)
        return found

    def outcome(self) -> Fit:
        if self.fitted is None:
            never = NEVER if self.number is not None and self.noted is None else "not reached"
            return Fit(reason=self.refused or never)
        found = self.fitted
        rows = () if found.coefficients is None else tuple(tuple(row) for row in found.coefficients.tolist())
        return Fit(found.coefficients is not None, found.before, found.after, found.reason, rows)


def places_of(model: nn.Module, plan: Plan) -> tuple[list[Place], dict[int, str]]:
    """The sites that a correction can reach, in call order, and why the others have none."""
    places: list[Place] = []
    reasons: dict[int, str] = {}
    taken: dict[tuple[str, str | None], int] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for n, site in enumerate(plan):
        if not site.converted:
            reasons[n] = "not converted"
            continue
        module = modules.get(site.path if site.owner is None else site.owner)
        if module is None:
            raise ArgumentValueError(f"{site.path or 'the model'}: it is no longer there; convert the model again")
        if site.owner is None:
            if state_of(module) is None:
                reasons[n] = NEVER
            elif any(place.module is module for place in places):
                reasons[n] = "one module in several places: not calibrated"
            else:
                places.append(Place(n, module, None))
            continue
        children = module.__dict__.get(OWN_SITES)
        if children is None:
            raise ArgumentValueError(f"{site.owner or 'the model'}: it is no longer converted; convert it again")
        child = None if site.path == site.owner else site.path[len(site.owner) + bool(site.owner) :]
        skip = taken.get((site.owner, child), 0)
        taken[site.owner, child] = skip + 1
        number = [i for i, own in enumerate(children) if own == child][skip]
        if any(place.module is module and place.number == number for place in places):
            reasons[n] = "one module in several places: not calibrated"
        else:
            places.append(Place(n, module, number))
    return places, reasons


class _Noting(dict[int, Correction]):
    """The corrections of a rewritten module, while it is watched."""

    def __init__(self, see: dict[int, Callable[[Tensor, SiteState], None]]) -> None:
        super().__init__()
        self.see = see

    def note(self, number: int, x: Tensor, state: SiteState) -> None:
        if number in self.see:
            self.see[number](x, state)


@contextmanager
def watching(places: Sequence[Place], see: Callable[[Place, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with every map that reaches a site, before the site takes its statistics. No corrections yet."""
    owners: dict[nn.Module, dict[int, Callable[[Tensor, SiteState], None]]] = {}
    with ExitStack() as stack:
        for place in places:
            if place.number is None:

                def hook(module: nn.Module, args: tuple[Any, ...], place: Place = place) -> None:
                    if args and isinstance(args[0], Tensor):
                        see(place, args[0] if args[0].dim() == 4 else args[0].unsqueeze(0))

                stack.callback(setattr, place.module, "correction", place.module.correction)
                place.module.correction = None  # type: ignore[assignment]
                stack.callback(place.module.register_forward_pre_hook(hook).remove)
            else:

                def noted(x: Tensor, state: SiteState, place: Place = place) -> None:
                    place.noted = state
                    see(place, x)

                owners.setdefault(place.module, {})[place.number] = noted
        for module, own in owners.items():
            stack.callback(module.__dict__.__setitem__, CORRECTIONS, module.__dict__[CORRECTIONS])
            module.__dict__[CORRECTIONS] = _Noting(own)
        yield

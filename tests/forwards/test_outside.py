"""A forward that changes what outlives its call in place: never lost, never done by converting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc

CALLS = 0
KNOWN: dict[str, Any] = {}


class Settings:
    gain, calls = 1.0, 0


SETTINGS = Settings()


class _Net(nn.Module):
    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.counts = {"calls": 0}
        self.settings = Settings()


class _Appends(_Net):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(1)
        return x * x.mean((2, 3), keepdim=True) * len(self.kept)


class _Counts(_Net):
    def forward(self, x: Tensor) -> Tensor:
        self.counts["calls"] += 1
        return x * x.mean((2, 3), keepdim=True) * self.counts["calls"]


class _Default(_Net):
    def forward(self, x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
        seen.append(1)
        return x * x.mean((2, 3), keepdim=True) * len(seen)


class _Global(_Net):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return x * x.mean((2, 3), keepdim=True) * CALLS


class _Known(_Net):
    def forward(self, x: Tensor) -> Tensor:
        KNOWN["calls"] = KNOWN.get("calls", 0) + 1
        return x * x.mean((2, 3), keepdim=True) * int(KNOWN["calls"])


class _Object(_Net):
    def forward(self, x: Tensor) -> Tensor:
        self.settings.calls += 1
        return x * x.mean((2, 3), keepdim=True) * self.settings.calls


class _OfClass(_Net):
    def forward(self, x: Tensor) -> Tensor:
        _OfClass.total += 1
        return x * x.mean((2, 3), keepdim=True) * _OfClass.total


class _OfItsClass(_Net):
    def forward(self, x: Tensor) -> Tensor:
        type(self).total = self.total + 1
        return x * x.mean((2, 3), keepdim=True) * self.total


def _of_closure() -> type[nn.Module]:
    calls = 0

    class Counted(_Net):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return x * x.mean((2, 3), keepdim=True) * calls

    return Counted


KINDS: list[Callable[[], type[nn.Module]]] = [
    *(lambda kind=kind: kind for kind in (_Appends, _Counts, _Default, _Global, _Known, _Object)),
    lambda: _OfClass,
    lambda: _OfItsClass,
    _of_closure,
]


@pytest.mark.parametrize("made", KINDS)
@torch.no_grad()
def test_what_a_forward_changes_in_place_is_neither_lost_nor_changed_by_converting(
    made: Callable[[], type[nn.Module]],
) -> None:
    model, x = made()().eval(), torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    (site,) = tlsc.plan(model, 8).sites
    assert "in place" in site.reason
    with pytest.warns(tlsc.errors.TLSCWarning, match="in place"):
        tlsc.convert(model, 8)
    for call in (1, 2, 3):
        torch.testing.assert_close(model(x), x * x.mean((2, 3), keepdim=True) * call)


class _Follows(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True) * SETTINGS.gain * _Follows.total


@torch.no_grad()
def test_settings_of_objects_and_classes_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _Follows().eval(), torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    tlsc.convert(model, 8)
    local = x * tlsc.functional.local_mean(x, 8)
    for gain, total in ((2.0, 1), (3.0, 1), (3.0, 5)):
        monkeypatch.setattr(SETTINGS, "gain", gain)
        monkeypatch.setattr(_Follows, "total", total)
        torch.testing.assert_close(model(x), local * gain * total)

"""After converting, a model behaves as before in every mode (I1): what ``docs/modes.md`` shows."""

from __future__ import annotations

import copy

import pytest
import torch

from tests import modes
from tests.modes import MODES, NOT_POSSIBLE, SAME

USUAL = ("demo hin", "RCAN")


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=() if e.name in USUAL else pytest.mark.slow, id=e.name) for e in modes.entries()],
)
def test_a_converted_network_agrees_with_its_original(entry: modes.Entry) -> None:
    if entry.path.startswith("spandrel"):
        pytest.importorskip("spandrel_extra_arches" if "extra" in entry.path else "spandrel")
    found = modes.compare(entry)
    if found is None:
        pytest.skip("no site")
    other = {mode: figure for mode, figure in found.items() if figure not in (SAME, NOT_POSSIBLE)}
    if float(other.get("gradients", "1")) < 1e-14:  # sums in another order
        del other["gradients"]
    assert other == {}
    assert found["eval"] == SAME


def test_a_difference_is_seen() -> None:
    """If one network has other weights than the other."""
    entry = modes.OURS[0]
    original = entry.randomised()
    other = copy.deepcopy(original)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    x = entry.images(*entry.base)
    for mode in ("eval", "gradients"):
        found = modes._compared(MODES[mode], copy.deepcopy(original), copy.deepcopy(other), x)
        assert float(found) > 1e-6, mode

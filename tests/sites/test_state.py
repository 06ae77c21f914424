"""The state of a site: frozen, and replaced as a whole."""

import dataclasses

import pytest
import torch

from tlsc._sites.state import SiteState
from tlsc._statistics.correction import Correction


def test_a_state_is_frozen_and_replaced_as_a_whole() -> None:
    state = SiteState("mean", (3, 4), eps=0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.eps = 0.1  # type: ignore[misc]
    correction = Correction.unlimited(*torch.ones(5, 2))
    corrected = state.corrected(correction)
    assert (corrected.correction, corrected.eps, state.correction) == (correction, 0.3, None)


def test_states_with_tensors_can_be_compared_and_hashed() -> None:
    """By identity: the tensors of a correction have no truth value."""
    state = SiteState("mean", (3, 4), correction=Correction.unlimited(*torch.ones(5, 2)))
    assert state != state.watched(None)
    assert len({state, state}) == 1


@pytest.mark.parametrize(
    ("operation", "moments"), [("mean", 1), ("sum", 1), ("var_mean", 2), ("std", 2), ("amax", 0), ("norm", 0)]
)
def test_a_statistic_knows_its_moments(operation: str, moments: int) -> None:
    assert SiteState(operation, (3, 4)).moments == moments

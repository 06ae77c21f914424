"""What the tests of the evaluation share."""

import pytest


@pytest.fixture(autouse=True)
def _conversions_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment that ``convert`` makes on each network takes a third of the time of runs with small images.

    It is made on the same networks by tests of the surgery (``test_far_check.py``, I1 in ``test_invariants.py``).
    """
    monkeypatch.setattr("tlsc._convert.warn_of_far", lambda *arguments: None)

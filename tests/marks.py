"""Which of many cases the usual run takes; the others run with ``pytest -m slow``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["slow", "slow_unless"]


def slow(*case: Any) -> Any:
    """A case of ``parametrize`` that is left out of the usual run."""
    return pytest.param(*case, marks=pytest.mark.slow)


def slow_unless(usual: Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """The cases (a tuple for several arguments), all but the ``usual`` ones marked slow."""
    return [case if usual(case) else slow(*(case if isinstance(case, tuple) else (case,))) for case in cases]

"""The command line's parser: what was mistyped is answered with what may have been meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tlsc.eval.telling import suggestion

__all__ = ["Parser", "suggestion"]

STATUSES = "Exit status: 0 done; 1 failed (standard error says why); 2 not understood; 130 interrupted."


class Parser(argparse.ArgumentParser):
    """As :class:`argparse.ArgumentParser`, with suggestions; commands' parsers are of this class, too."""

    collects: str | None = None
    """Argument of ``nargs="*"`` that also gets what stands behind options, which the base class would refuse."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"epilog": STATUSES, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, Any]:
        """As in the base class, but an unknown option is refused here, by the command that has its like."""
        found, left = super().parse_known_args(args, namespace)
        unknown = [text.partition("=")[0] for text in left if text.startswith("-") and not text[1:2].isdigit()]
        if unknown:
            self.error(f"no option {unknown[0]}{suggestion(unknown[0], self._option_string_actions)}")
        if self.collects is not None and left:
            setattr(found, self.collects, [*getattr(found, self.collects), *left])
            left = []
        return found, left

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names: Sequence[str] = [str(name) for name in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"no command {value!r}{suggestion(str(value), names)}; there are {', '.join(names)}")
        raise argparse.ArgumentError(
            action, f"must be one of {', '.join(names)}, got {value!r}{suggestion(str(value), names)}"
        )

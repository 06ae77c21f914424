"""The command line's parser: what was mistyped is answered with what may have been meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Parser", "suggestion"]


class Parser(argparse.ArgumentParser):
    """As :class:`argparse.ArgumentParser`, with suggestions; commands' parsers are of this class, too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, Any]:
        """As in the base class, but an unknown option is refused here, by the command that has its like."""
        found, left = super().parse_known_args(args, namespace)
        unknown = [text.partition("=")[0] for text in left if text.startswith("--")]
        if unknown:
            self.error(f"no option {unknown[0]}{suggestion(unknown[0], self._option_string_actions)}")
        return found, left

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            names: Sequence[str] = list(action.choices)
            self.error(f"no command {value!r}{suggestion(str(value), names)}; there are {', '.join(names)}")
        super()._check_value(action, value)


def suggestion(text: str, known: Iterable[str]) -> str:
    """``" (did you mean …?)"`` where one of those known is close, else nothing.

    Example:
        >>> suggestion("insepct", ["inspect", "eval"]), suggestion("x", ["inspect"])
        (' (did you mean inspect?)', '')
    """
    close = difflib.get_close_matches(text, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""

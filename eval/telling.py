"""What commands tell while they work: results on standard output; notes, progress and errors on standard error."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

__all__ = ["detail", "hand_over", "note", "progress", "say", "strict", "suggestion", "telling", "wanted"]


@dataclass(frozen=True)
class _Wanted:
    """What the user asked for, see :func:`telling`."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False


_NOTHING = _Wanted()
_WANTED: ContextVar[_Wanted] = ContextVar("wanted", default=_NOTHING)


@contextmanager
def telling(quiet: bool = False, verbose: bool = False, json: bool = False) -> Iterator[None]:
    """How much is told inside.

    Args:
        quiet: results and errors only: neither progress nor notes.
        verbose: details, too.
        json: the result is one JSON document, and nothing else is on standard output.
    """
    token = _WANTED.set(_Wanted(quiet, verbose, json))
    try:
        yield
    finally:
        _WANTED.reset(token)


def wanted() -> _Wanted:
    """What the user asked for."""
    return _WANTED.get()


def say(text: str = "") -> None:
    """A part of the result, for people: a line on standard output, unless JSON is asked for.

    Example:
        >>> say("3 sites")
        3 sites
        >>> with telling(json=True):
        ...     say("3 sites")
        ...     hand_over({"sites": 3})
        {
         "sites": 3
        }
    """
    if not _WANTED.get().json:
        print(text, flush=True)


def hand_over(data: Any) -> None:
    """The result, for programs: a JSON document on standard output, where it is asked for."""
    if _WANTED.get().json:
        print(json.dumps(strict(data), indent=1, ensure_ascii=False, default=str), flush=True)


def strict(value: Any) -> Any:
    """Data with nothing that JSON has no word for: an infinite number is "inf", NaN null.

    Example:
        >>> strict({"psnr": (float("inf"), float("nan"), 30.5)})
        {'psnr': ['inf', None, 30.5]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def note(text: str) -> None:
    """Something to know, beside the result: a line on standard error, unless quiet is asked for."""
    if not _WANTED.get().quiet:
        print(f"tlsc: {text}", file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """A line on standard error where it is asked for (``-v``)."""
    if _WANTED.get().verbose:
        print(f"tlsc: {text}", file=sys.stderr, flush=True)


def progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of ``tqdm`` on standard error, with its arguments; none where quiet is asked for."""
    from tqdm import tqdm

    hidden = bool(options.pop("disable", False)) or _WANTED.get().quiet
    bar: Callable[..., Any] = tqdm
    return bar(items, disable=hidden, **options)


def suggestion(text: str, known: Iterable[str]) -> str:
    """``" (did you mean …?)"`` where one of those known is close, else nothing.

    Example:
        >>> suggestion("insepct", ["inspect", "eval"]), suggestion("x", ["inspect"])
        (' (did you mean inspect?)', '')
    """
    close = difflib.get_close_matches(text, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""

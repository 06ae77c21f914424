"""What can go wrong: one base class, and Python's own where a caller expects them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "BackendError",
    "ExportError",
    "MissingPackageError",
    "NoSiteError",
    "ProbeError",
    "TLSCError",
    "TLSCWarning",
]


class TLSCError(Exception):
    """Base of every exception this package raises."""


class ArgumentValueError(TLSCError, ValueError):
    """An argument has a value that cannot be used; the message names both."""


class ArgumentTypeError(TLSCError, TypeError):
    """An argument has a type that cannot be used; the message names both."""


class BackendError(TLSCError, RuntimeError):
    """A back end that was asked for by name cannot be used; the message says why."""


class ExportError(TLSCError):
    """The model could not be exported, or what was exported does not compute what the model does."""


class MissingPackageError(TLSCError, ImportError):
    """A package that is installed on demand is not there; the message says how to install it."""


class NoSiteError(TLSCError):
    """The model has no global aggregation that this package knows."""


class ProbeError(TLSCError):
    """The model could not be run at ``base_size``, so that its feature sizes are unknown."""


class TLSCWarning(UserWarning):
    """Something was left as it was that a user may have expected to change."""


def first_line(error: BaseException, *, typed: bool = True, limit: int = 300) -> str:
    """An error in one line: its type, and the first line of its message that says something.

    Args:
        error: any exception.
        typed: whether the type stands before the message; it stands alone where there is no message.
        limit: characters of the message.

    Example:
        >>> first_line(ValueError("no such thing\\nand more")), first_line(MemoryError(), typed=False)
        ('ValueError: no such thing', 'MemoryError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not typed:
        return lines[0][:limit] if lines else name
    return f"{name}: {lines[0][:limit] if lines else 'no message'}"


@contextmanager
def in_a_line(what: str, way_out: str = "") -> Iterator[None]:
    """Around calls of a user's model: whatever stops it becomes one line.

    Args:
        what: happened; begins the message.
        way_out: ends it.

    Raises:
        TLSCError: in place of any exception that is none yet.

    Example:
        >>> with in_a_line("the model fails", ": give sizes that it takes"):
        ...     raise RuntimeError("shapes differ")
        Traceback (most recent call last):
        tlsc.errors.TLSCError: the model fails (RuntimeError: shapes differ): give sizes that it takes
    """
    try:
        yield
    except TLSCError:
        raise
    except Exception as error:
        raise TLSCError(f"{what} ({first_line(error)}){way_out}") from error


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Around imports of packages that are installed on demand.

    Args:
        extra: the extra of this package that brings them.
        what: needs them; begins the message.

    Raises:
        MissingPackageError: one is not there.

    Example:
        >>> with needing("eval", "drawing"):
        ...     import no_such_package
        Traceback (most recent call last):
        tlsc.errors.MissingPackageError: drawing needs no_such_package: pip install 'tlsc[eval]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise MissingPackageError(f"{what} needs {package}: pip install 'tlsc[{extra}]'", name=package) from None

"""Processes that compute the pieces of one image together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tlsc.adapters.pieces.memory import is_shortage
from tlsc.errors import TLSCError, first_line

__all__ = ["Alone", "Crew", "computed", "everyone", "first"]

T = TypeVar("T")
P = TypeVar("P")


class Crew(Protocol):
    """The processes; each of them calls the same methods in the same order.

    Attributes:
        rank: of this one; 0 decides, and gets the result.
        size: how many there are.
    """

    rank: int
    size: int

    def share(self, value: Any) -> Any:
        """Rank 0's value, in all processes."""

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank, in all processes."""

    def collect(self, value: Any) -> list[Any] | None:
        """Everybody's value, by rank, on rank 0; None in the others."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def share(self, value: Any) -> Any:
        """The value."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def collect(self, value: Any) -> list[Any] | None:
        """The value alone."""
        return [value]


def first(crew: Crew, work: Callable[[], T]) -> T:
    """What ``work`` gives on rank 0, in all processes; where it fails there, all of them fail."""
    if crew.size == 1:
        return work()
    value, error = None, None
    if crew.rank == 0:
        try:
            value = work()
        except Exception as caught:
            error = caught
    value, told = crew.share((value, _told(error)))
    _raise(error, told)
    return value  # type: ignore[no-any-return]


def everyone(crew: Crew, work: Callable[[], T]) -> T:
    """What ``work`` gives in each process; where it fails in one, all of them fail."""
    if crew.size == 1:
        return work()
    value, error = None, None
    try:
        value = work()
    except Exception as caught:
        error = caught
    told = next((one for one in crew.gather(_told(error)) if one is not None), None)
    _raise(error, told)
    return value  # type: ignore[return-value]


def computed(crew: Crew, pieces: Sequence[P], work: Callable[[P], T]) -> Iterable[T] | None:
    """What ``work`` gives for each piece, dealt out to the processes: on rank 0, in order; None in the others.

    Where one process fails, all of them do. A process that is alone computes one when it is asked for the next.
    """
    if crew.size == 1:
        return map(work, pieces)
    mine = everyone(crew, lambda: [work(piece) for piece in pieces[crew.rank :: crew.size]])
    shares = crew.collect(mine)
    return None if shares is None else _dealt(shares, len(pieces))


def _dealt(shares: Sequence[Sequence[T]], number: int) -> Iterator[T]:
    for i in range(number):
        yield shares[i % len(shares)][i // len(shares)]


def _told(error: Exception | None) -> tuple[bool, str] | None:
    """An error in a form that every process can read."""
    return (
        None if error is None else (is_shortage(error), first_line(error, typed=not isinstance(error, TLSCError)))
    )


def _raise(error: Exception | None, told: tuple[bool, str] | None) -> None:
    if error is not None:
        raise error
    if told is not None:
        raise MemoryError(told[1]) if told[0] else TLSCError(told[1])

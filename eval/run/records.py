"""What a run has measured so far: appended as it is made, read again by a run that goes on."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tlsc.errors import ArgumentValueError
from tlsc.eval.files import make_folder, naming, refuse_existing, replacing, sealed, unsealed

__all__ = ["Record", "Records", "alone_in", "alone_with", "open_run"]

_SETTINGS, _PARTS, _LOCK = "run.json", "parts", ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; the system takes the lock from a process that was killed.

    Args:
        folder: made if it is not there.

    Raises:
        ArgumentValueError: another process writes to it.
        OSError: it cannot be written to.
    """
    make_folder(folder)
    with _locked(folder / _LOCK, folder):
        yield


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """The same for a file, in a folder that is there; the lock's own file goes at the end."""
    lock = path.with_name(f".{path.name}{_LOCK}")
    with _locked(lock, path):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it itself
                lock.unlink()


@contextmanager
def _locked(file: Path, what: Path) -> Iterator[None]:
    if file.is_dir():
        raise ArgumentValueError(f"{file} is a folder, where a lock is to be kept: name another --out")
    lock = FileLock(file)
    try:
        with naming(file):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise ArgumentValueError(
            f"another process writes to {what}: wait until it is done, or name another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


Key = tuple[str, str]
"""A cell, in words, and an image."""


@dataclass(frozen=True)
class Record:
    """One image, restored in one way.

    Attributes:
        cell: in words.
        image: name of the pair.
        status: "ok"; "as original" where the patches fit the window, so that nothing was converted; "failed"; or
            the kind of a bad pair ("unmatched", "unreadable", ...), with an empty ``cell``.
        psnr: in dB, infinite for identical images; NaN where it failed.
        ssim: NaN where the image is smaller than SSIM's window, or it failed.
        lpips: None where it was not asked for.
        seconds: for the network and the blending of its results, not for reading and comparing.
        megapixels: of the input.
        peak: bytes in use at most while it ran; None where it cannot be measured.
        mismatch: of neighbouring tiles' results, in units of the result; None for whole images.
        disparity: between training crops by themselves and within the image, likewise; None where it was not asked
            for.
        message: what went wrong.
    """

    cell: str
    image: str
    status: str = "ok"
    psnr: float = math.nan
    ssim: float = math.nan
    lpips: float | None = None
    seconds: float | None = None
    megapixels: float = 0.0
    peak: int | None = None
    message: str = ""
    mismatch: float | None = None
    disparity: float | None = None

    @property
    def key(self) -> Key:
        """What it is a record of."""
        return self.cell, self.image

    @property
    def good(self) -> bool:
        """Whether it has figures."""
        return self.status in ("ok", "as original")

    def as_original(self, cell: str) -> Record:
        """The same figures for a cell in which this image is treated as by the original."""
        return replace(self, cell=cell, status="as original" if self.good else self.status, seconds=None, peak=None)


class Records:
    """The records of one process in a file of its own: every line is whole as soon as it is written.

    Args:
        folder: of the run.
        rank: of the process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        path = folder / _PARTS / f"{rank:04d}.jsonl"
        make_folder(path.parent)
        _drop_half_a_line(path)
        self._path, self._file = path, path.open("ab", buffering=0)
        self.new: list[Record] = []

    def add(self, record: Record) -> None:
        """Write a record."""
        # One call, so that a line is never mixed with another's.
        line = (json.dumps(sealed(asdict(record))) + "\n").encode()
        with naming(self._path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.new.append(record)

    def close(self) -> None:
        """No more records."""
        self._file.close()


def _drop_half_a_line(path: Path) -> None:
    """Cut what a killed process has left behind its last whole line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)


def merged(records: Iterable[Record]) -> dict[Key, Record]:
    """One record for each key: one with figures, if there is one."""
    found: dict[Key, Record] = {}
    for record in records:
        if record.key not in found or (record.good and not found[record.key].good):
            found[record.key] = record
    return found


def read_records(folder: Path) -> list[Record]:
    """What the processes of earlier runs wrote to a folder on this machine; half a last line is left out.

    A line that is damaged, told by its checksum, is named on standard error; what it held is to be measured again.
    """
    records = []
    for path in sorted((folder / _PARTS).glob("*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            record = _read(line)
            if record is None:
                print(f"tlsc: {path}, line {number}: damaged, so it is measured again", file=sys.stderr)
            else:
                records.append(record)
    return records


def _read(line: bytes) -> Record | None:
    """The record in a line; None where it is damaged."""
    try:
        record = Record(**unsealed(json.loads(line)))
    except (ValueError, TypeError, RecursionError):
        return None
    return record if _valid(record) else None


_STATUSES = ("ok", "failed")
_WHOLE = (int, type(None))
_NUMBER = (float, int, type(None))


def _valid(record: Record) -> bool:
    """Whether fields have their types and figures a range that figures can have."""
    types = {"cell": str, "image": str, "status": str, "message": str, "psnr": float, "ssim": float}
    if not all(type(getattr(record, name)) is kind for name, kind in types.items()):
        return False
    if record.status not in _STATUSES or type(record.peak) not in _WHOLE:
        return False
    indicators = (record.mismatch, record.disparity)
    if any(type(value) not in _NUMBER for value in (record.lpips, record.seconds, record.megapixels, *indicators)):
        return False
    if record.status == "ok" and not (-1000 < record.psnr < 1000 or record.psnr == math.inf):
        return False
    return not record.ssim > 1.000001


def open_run(
    folder: Path, settings: Mapping[str, Any], resume: bool, overwrite: bool, results: Iterable[str] = ()
) -> None:
    """Make a folder ready for a run, or for one that goes on. Called by one process.

    Args:
        folder: made if it is not there.
        settings: everything that figures depend on; a run only goes on with the same.
        resume: go on with a run in the folder, if there is one.
        overwrite: throw away a run in the folder, if there is one.
        results: names of files that the run will write: of something else, where there is no run.

    Raises:
        ArgumentValueError: there is a run and neither is asked for, or its settings are others; files of
            these names are not a run's.
        OSError: the folder cannot be written to.
    """
    make_folder(folder)
    path = folder / _SETTINGS
    wanted = json.loads(json.dumps(settings))
    if path.is_dir():
        raise ArgumentValueError(f"{path} is a folder, where a run's settings are to be kept: name another --out")
    if path.exists() and not overwrite:
        if not resume:
            raise ArgumentValueError(
                f"{folder} holds a run: go on with it (--resume), throw it away (--overwrite), or name another "
                "--out"
            )
        try:
            before = unsealed(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ArgumentValueError(f"{path} is damaged: --overwrite starts again") from error
        differing = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
        if differing:
            changes = "; ".join(
                f"{key}: {_short(before.get(key))}, now {_short(wanted.get(key))}" for key in differing
            )
            raise ArgumentValueError(
                f"{folder} holds a run with other settings ({changes}): --overwrite, or another --out"
            )
        return
    parts = list((folder / _PARTS).glob("*.jsonl"))
    refuse_existing((*parts, *(folder / name for name in results)), overwrite)
    for part in parts:
        part.unlink()
    with replacing(path) as new:
        new.write_text(json.dumps(sealed(wanted), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["CHECK", "naming", "replacing", "replacing_open", "sealed", "unsealed"]

CHECK = "sha256"
"""The field that holds the checksum of all others."""


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON fields with a checksum of all of them beside them.

    Example:
        >>> unsealed(sealed({"a": 1}))
        {'a': 1}
    """
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True)
    return {**fields, CHECK: hashlib.sha256(text.encode()).hexdigest()}


def unsealed(found: Any) -> dict[str, Any]:
    """The fields that :func:`sealed` got.

    Raises:
        ValueError: something was changed, or is missing.
    """
    if not isinstance(found, dict):
        raise ValueError(f"holds {type(found).__name__}")
    fields = {name: value for name, value in found.items() if name != CHECK}
    if found.get(CHECK) != sealed(fields)[CHECK]:
        raise ValueError("its checksum is another's")
    return fields


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, moved to it at the end; on an error it is removed and ``path`` stays.

    Raises:
        OSError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as new:
        ...         _ = new.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    new = _created(path)
    try:
        with naming(path, new):
            yield new
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def replacing_open(path: Path) -> Iterator[BinaryIO]:
    """As :func:`replacing`, but open for writing; on Linux without a name until it is whole.

    So a process that is killed at once (SIGKILL, a power failure) leaves nothing behind there.

    Raises:
        OSError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing_open(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"whole")
        ...     os.listdir(folder)
        ['a.txt']
    """
    nameless = _nameless(path.parent)
    if nameless is None:
        with replacing(path) as new, new.open("wb") as file:
            yield file
        return
    with naming(path), os.fdopen(nameless, "wb") as file:
        yield file
        file.flush()
        new = _free_name(path)
        try:
            # With a folder given, the link in /proc is followed.
            os.link(f"/proc/self/fd/{nameless}", new, src_dir_fd=nameless)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _nameless(folder: Path) -> int | None:
    """A file without a name, open for writing; None where system or file system know no such thing."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        return None


@contextmanager
def naming(path: Path, new: Path | None = None) -> Iterator[None]:
    """Errors of writing say which file, and what to do where there is no room.

    Args:
        path: the file.
        new: where it is written first.

    Example:
        >>> with naming(Path("a.txt")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] No space left on device (make room, or write elsewhere): 'a.txt'
    """
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        if error.errno is None or not (full or error.filename in (None, str(new))):
            raise
        way = " (make room, or write elsewhere)" if full and "make room" not in str(error.strerror) else ""
        raise type(error)(error.errno, f"{error.strerror}{way}", str(path)) from error


_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def _created(path: Path) -> Path:
    """An empty file of a new name beside ``path``, with the permissions that any new file gets.

    The system applies the umask: it can only be read by changing it, for all threads of the process.
    """
    while True:
        new = _free_name(path)
        try:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        return new


def _free_name(path: Path) -> Path:
    """A name beside ``path`` that nothing has."""
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")

"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


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
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _created(path: Path) -> Path:
    """An empty file of a new name beside ``path``, with the permissions that any new file gets.

    The system applies the umask: it can only be read by changing it, for all threads of the process.
    """
    while True:
        new = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
        try:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        return new

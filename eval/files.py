"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from tlsc._files import naming, replacing, replacing_open, sealed, unsealed
from tlsc.errors import ArgumentValueError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "make_folder",
    "naming",
    "refuse_existing",
    "replacing",
    "replacing_open",
    "sealed",
    "unsealed",
    "write_weights",
]


def refuse_existing(paths: Iterable[Path], overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse to write where something is already; called before the work, not after it.

    Args:
        paths: files that are to be written.
        overwrite: whether the user asked for replacing them.
        sources: files that are read for it: never overwritten, whatever was asked for.

    Raises:
        ArgumentValueError: one exists and ``overwrite`` is not given, is a source, or a folder.

    Example:
        >>> refuse_existing([Path("no", "such", "file")], overwrite=False)
        >>> refuse_existing([Path(__file__)], overwrite=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tlsc.errors.ArgumentValueError: ... exists: --overwrite replaces it; or name another output
    """
    own = {source.resolve() for source in sources}
    # A link that leads nowhere is there, too.
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if path.is_dir():
            raise ArgumentValueError(f"{path} is a folder: name a file to write")
        if path.resolve() in own:
            raise ArgumentValueError(
                f"{path} is an input of this command and would be overwritten: name another output"
            )
    if there and not overwrite:
        said = f"{there[0]} exists" if len(there) == 1 else f"{len(there)} files exist, the first is {there[0]}"
        pronoun = "it" if len(there) == 1 else "them"
        raise ArgumentValueError(f"{said}: --overwrite replaces {pronoun}; or name another output")


def make_folder(path: Path) -> None:
    """Make a folder, and those it is in, if it is not there.

    Raises:
        ArgumentValueError: there is something else.
        OSError: it cannot be made.

    Example:
        >>> make_folder(Path(__file__))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tlsc.errors.ArgumentValueError: ... is no folder, and one is to be made there: name another output
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        at = next((part for part in (path, *path.parents) if os.path.lexists(part) and not part.is_dir()), path)
        raise ArgumentValueError(f"{at} is no folder, and one is to be made there: name another output") from error


def write_weights(path: Path, model: nn.Module, made: Mapping[str, str]) -> None:
    """Write a network's weights as safetensors and say how large they are.

    The file's metadata tell how they were made: ``made``, PyTorch's version and the date.
    """
    import torch
    from safetensors.torch import save_file

    metadata = {**made, "torch": torch.__version__, "date": datetime.now(timezone.utc).date().isoformat()}
    with replacing(path) as new:
        save_file(model.state_dict(), new, metadata)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

"""Where inputs and targets lie in a folder: see :mod:`tlsc.eval.data.datasets`."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from tlsc.errors import ArgumentValueError
from tlsc.eval.images import EXTENSIONS

__all__ = [
    "INPUT_ROLES",
    "SCALE",
    "TARGET_ROLES",
    "files",
    "images",
    "inside",
    "is_image",
    "listed",
    "role_folders",
    "role_of",
    "without_roles",
]


INPUT_ROLES = frozenset(
    (
        *("input", "inputs", "lq", "lr", "blur", "blurry", "blurred", "hazy", "haze", "foggy", "rain", "rainy"),
        *("noisy", "noise", "low", "degraded", "inputc", "source", "snow", "snowy", "compressed"),
    )
)
TARGET_ROLES = frozenset(
    (
        *("target", "targets", "gt", "hq", "hr", "sharp", "clear", "clean", "norain", "high", "groundtruth"),
        *("original", "originals", "reference", "ref", "truth"),
    )
)
# Words that only accompany the role in a folder's name.
_FILLERS = frozenset(("image", "images", "img", "imgs", "ground", "bicubic", "bic", "folder", "frames"))
_ROLE_WITH_SCALE = re.compile(r"(lr|lq|hr|gt|hq)(?:bic|bicubic|mod)?(?:x?\d+x?)?")
SCALE = re.compile(r"x(?:[2-9]|1[0-6])")
_SEPARATORS = re.compile(r"[-_. ]+")


def inside(path: Path, root: Path) -> str:
    """The path below ``root``, as text that every file and plot can hold: bytes that are none are escaped."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def images(root: Path) -> list[Path]:
    """All image files at and below a folder by extension, hidden ones left out, in the order of their paths."""
    return [path for path in files(root) if is_image(path)]


def is_image(path: Path) -> bool:
    """Whether a file's name ends as a picture's does."""
    return path.suffix.lower() in EXTENSIONS


def files(root: Path) -> list[Path]:
    """All files at and below a folder, hidden ones left out, in the order of their paths."""
    return sorted(
        (path for folder in _folders(root) for path in listed(folder) if path.is_file()),
        key=lambda path: path.relative_to(root).as_posix(),
    )


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, hidden files left out, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(root: Path) -> list[Path]:
    """``root`` and all folders below it; links are followed, each folder once."""
    found, seen, todo = [], set(), [root]
    while todo:
        folder = todo.pop(0)
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        found.append(folder)
        todo += [path for path in listed(folder) if path.is_dir()]
    return found


def role_folders(root: Path) -> list[tuple[Path, Path]]:
    """Pairs of folders (inputs, targets) side by side, at or below ``root``, outermost first."""
    pairs: list[tuple[Path, Path]] = []
    taken: list[Path] = []
    for parent in _folders(root):
        if any(parent == above or above in parent.parents for above in taken):
            continue
        groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for folder in (path for path in listed(parent) if path.is_dir()):
            role = role_of(folder.name)
            if role is not None:
                groups[without_roles(folder.name)][role].append(folder)
        for group in groups.values():
            inputs, targets = group["input"], group["target"]
            if not inputs or not targets:
                continue
            if len(inputs) > 1 or len(targets) > 1:
                names = ", ".join(folder.name for folder in (*inputs, *targets))
                raise ArgumentValueError(f"{parent}: several could be inputs or targets: {names}. Give two folders")
            pairs.append((inputs[0], targets[0]))
            taken += [inputs[0], targets[0]]
    return pairs


def _words(name: str) -> list[str]:
    return [word for word in _SEPARATORS.split(name.lower()) if word]


def _role_word(word: str) -> str | None:
    if word in INPUT_ROLES:
        return "input"
    if word in TARGET_ROLES:
        return "target"
    if known := _ROLE_WITH_SCALE.fullmatch(word):
        return "input" if known[1] in ("lr", "lq") else "target"
    return None


def role_of(name: str, fillers: bool = True) -> str | None:
    """ "input" or "target" where exactly one of the two is said by a name."""
    words = _words(name)
    if fillers and {"ground", "truth"} <= set(words):
        return "target"
    roles = {role for word in words if (role := _role_word(word)) is not None}
    return roles.pop() if len(roles) == 1 else None


def without_roles(name: str) -> str:
    return "_".join(
        word
        for word in _words(name)
        if _role_word(word) is None and word not in _FILLERS and not SCALE.fullmatch(word)
    )

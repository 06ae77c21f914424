"""Which input belongs to which target: see :mod:`tlsc.eval.data.datasets` for the rules."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tlsc.eval.data.layouts import SCALE, role_of, without_roles

__all__ = ["Bad", "ImagePair", "match"]


_TRAILING_SCALE = re.compile(r"[-_ ]?x(?:[2-9]|1[0-6])$")
_TRAILING_NUMBER = re.compile(r"[-_]\d+(?:\.\d+)?$")


@dataclass(frozen=True)
class ImagePair:
    """One test case.

    Attributes:
        name: unique in its data set: the input's path from the folder it was found in, with ``/``.
        target: the file of the clean image.
        input: the file of the degraded one; None where it is made on the fly.
        rule: which one matched the two.
        size: height and width of the input in pixels; set by :meth:`Dataset.checked`.
        cut: rows and columns left out at the target's bottom and right; likewise.
    """

    name: str
    target: Path
    input: Path | None
    rule: str = "name"
    size: tuple[int, int] | None = None
    cut: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Bad:
    """Something that cannot be evaluated: ``kind`` is unmatched, ambiguous, unreadable or size."""

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.reason}"


def _bare(stem: str) -> str:
    """A stem without the words that say a role; "*" where there was nothing else, "" where nothing is left."""
    return without_roles(stem) or ("*" if role_of(stem) else "")


@dataclass(frozen=True)
class _Key:
    """A file's path from its folder, lower case: the folders in between and the name."""

    folder: str
    stem: str
    suffix: str

    @classmethod
    def of(cls, inside: str) -> _Key:
        path = Path(inside.lower())
        parts = [part for part in path.parent.parts if not SCALE.fullmatch(part)]
        return cls("/".join(parts), path.stem, path.suffix)


_Index = dict[tuple[str, str], list[int]]


def match(
    inputs: Sequence[tuple[Path, str]], targets: Sequence[tuple[Path, str]], shown: tuple[str, str]
) -> tuple[list[ImagePair], list[Bad]]:
    """Pairs and what is left, by the rules in the module's description.

    Files come with their paths inside their folders; ``shown`` is put before these in what is said of bad ones.
    """
    keys = [_Key.of(inside) for _, inside in targets]
    names, stems, bare = (
        _index(keys, lambda key: key.stem + key.suffix),
        _index(keys, lambda key: key.stem),
        _index(keys, lambda key: _bare(key.stem)),
    )
    pairs: list[tuple[int, ImagePair]] = []
    bad: list[Bad] = []
    for path, inside in inputs:
        rule, hits = _partners(_Key.of(inside), names, stems, bare)
        hits = _exactly(inside, hits, targets)
        if len(hits) == 1:
            pairs.append((hits[0], ImagePair(inside, targets[hits[0]][0], path, rule)))
        elif hits:
            several = ", ".join(targets[hit][1] for hit in hits)
            bad.append(Bad(shown[0] + inside, "ambiguous", f"several targets, by {rule}: {several}"))
        else:
            bad.append(Bad(shown[0] + inside, "unmatched", "no target of that name"))
    uses = Counter(index for index, pair in pairs if pair.rule != "number")
    for index, pair in pairs:
        if pair.rule != "number" and uses[index] > 1:
            reason = f"{uses[index]} inputs have the target {targets[index][1]}"
            bad.append(Bad(shown[0] + pair.name, "ambiguous", reason))
    good = [pair for index, pair in pairs if pair.rule == "number" or uses[index] == 1]
    named = {index for index, _ in pairs} | {
        hit for _, inside in inputs for hit in _partners(_Key.of(inside), names, stems, bare)[1]
    }
    for index, (_, inside) in enumerate(targets):
        if index not in named:
            bad.append(Bad(shown[1] + inside, "unmatched", "no input of that name"))
    return good, bad


def _index(keys: Sequence[_Key], name: Callable[[_Key], str]) -> _Index:
    found: _Index = defaultdict(list)
    for index, key in enumerate(keys):
        if word := name(key):
            found[key.folder, word].append(index)
    return dict(found)


def _exactly(inside: str, hits: list[int], targets: Sequence[tuple[Path, str]]) -> list[int]:
    """Of several partners that differ in case, the one that does not."""
    same = [hit for hit in hits if targets[hit][1] == inside]
    stem = [hit for hit in hits if Path(targets[hit][1]).stem == Path(inside).stem]
    return same if len(same) == 1 else stem if len(stem) == 1 else hits


def _partners(key: _Key, names: _Index, stems: _Index, bare: _Index) -> tuple[str, list[int]]:
    """The rule that finds targets for an input, and these; ("", []) where none does."""
    if hits := names.get((key.folder, key.stem + key.suffix)):
        return "name", hits
    if hits := stems.get((key.folder, key.stem)):
        return "stem", hits
    word = _bare(key.stem)
    if word and (hits := bare.get((key.folder, word))):
        return "role", hits
    shorter = _TRAILING_SCALE.sub("", key.stem)
    if shorter != key.stem and (hits := _at(key.folder, shorter, stems, bare)):
        return "scale", hits
    stem = key.stem
    while (shorter := _TRAILING_NUMBER.sub("", stem)) not in ("", stem):
        stem = shorter
        hits = _at(key.folder, stem, stems, bare)
        if hits and not _numbered(key.folder, stem, stems):
            return "number", hits
    return "", []


def _at(folder: str, stem: str, stems: _Index, bare: _Index) -> list[int]:
    return stems.get((folder, stem)) or bare.get((folder, _bare(stem)), [])


def _numbered(folder: str, stem: str, stems: _Index) -> bool:
    """Whether targets of this stem carry a number of their own."""
    return any(
        place == folder and other != stem and other.startswith(stem) and _TRAILING_NUMBER.sub("", other) == stem
        for place, other in stems
    )

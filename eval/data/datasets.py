"""Benchmark folders as people have them: which file is the input and which the target.

Where inputs and targets lie (``find_pairs``), in this order:

1. *two folders* given by hand;
2. *one folder with a degradation*: every image in it, and below it, is a target; inputs are made on the fly;
3. *role folders*: somewhere at or below the folder, two folders side by side whose names say what they hold, as in
   ``input``/``target``, ``lq``/``gt``, ``blur``/``sharp``, ``hazy``/``GT``, ``rain``/``norain``; what else their
   names say must agree (``val_blur``/``val_sharp``). There may be many such pairs (``*/blur``, ``*/sharp``), and
   sequences in folders inside them. Upper and lower case are the same;
4. *role words in file names* (``01_hazy.png``, ``01_GT.png``), where there are no role folders.

Which input belongs to which target, rule by rule; the first rule that finds one decides, for each file by itself.
Upper and lower case are the same throughout, and folders inside must agree, up to ``x2`` … ``x16``, which say
nothing:

``name``    the same name;
``stem``    the same name up to its extension;
``role``    the same stem without words like ``blur``, ``gt``, ``hazy`` (``rain-001`` and ``norain-001``);
``scale``   the input's stem without a trailing ``x2`` … ``x16`` (``0001x4`` → ``0001``);
``number``  the input's stem without trailing ``_number`` parts, as few as do (``1400_1`` → ``1400``,
            ``0001_0.8_0.2`` → ``0001``). Not where a target of that stem carries a suffix itself: with a target
            ``0001_1``, input ``0001_2`` has no target.

Several inputs may share a target by the last rule only. What finds no partner, or more than one, is *bad*: it is
listed with the reason, never dropped in silence.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.data.synthesis import Synthesis, generator, parse_degradation, resized
from tlsc.eval.images import EXTENSIONS, Pixels, UnreadableError, as_float, read_image, with_channels

__all__ = ["INPUT_ROLES", "TARGET_ROLES", "Bad", "BadPairsError", "Dataset", "ImagePair", "find_pairs"]

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
_SCALE = re.compile(r"x(?:[2-9]|1[0-6])")
_TRAILING_SCALE = re.compile(r"[-_ ]?x(?:[2-9]|1[0-6])$")
_TRAILING_NUMBER = re.compile(r"[-_]\d+(?:\.\d+)?$")
_SEPARATORS = re.compile(r"[-_. ]+")


@dataclass(frozen=True)
class ImagePair:
    """One test case.

    Attributes:
        name: unique in its data set: the input's path from the folder it was found in, with ``/``.
        target: the file of the clean image.
        input: the file of the degraded one; None where it is made on the fly.
        rule: which one matched the two.
        size: height and width of the input in pixels; set by :meth:`Dataset.checked`.
    """

    name: str
    target: Path
    input: Path | None
    rule: str = "name"
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Bad:
    """Something that cannot be evaluated: ``kind`` is unmatched, ambiguous, unreadable or size."""

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.reason}"


class BadPairsError(TLSCError):
    """Some pairs cannot be evaluated; the message has a line for each."""


@dataclass(frozen=True)
class Dataset:
    """Pairs to evaluate on, in a fixed order, and what cannot be.

    Attributes:
        name: the folder or folders, as given.
        layout: how inputs and targets were found, in words.
        pairs: sorted by name.
        bad: likewise.
        synthesis: what makes the inputs, or None.
        seed: of ``synthesis``.
        scale: output pixels of the network per input pixel.
        channels: of the network's images, 1 or 3.
        checksum: SHA-256 over the names and contents of all files in ``pairs``; set by :meth:`checked`.
    """

    name: str
    layout: str
    pairs: tuple[ImagePair, ...]
    bad: tuple[Bad, ...]
    synthesis: Synthesis | None = None
    seed: int = 0
    scale: int = 1
    channels: int = 3
    checksum: str = ""

    def load(self, pair: ImagePair) -> tuple[Pixels, Pixels]:
        """Input and target of a pair, (height, width, channels) each; the target ``scale`` times as large.

        A target that is no multiple of the scale is cut at its right and bottom.

        Raises:
            UnreadableError: a file cannot be read, or the sizes do not fit; the message names the files.
        """
        target = with_channels(read_image(pair.target), self.channels)
        if self.synthesis is None:
            assert pair.input is not None
            given = with_channels(read_image(pair.input), self.channels)
            target = self._without_rest(given, target)
            self._check_sizes(given, target)
            return given, target
        target = self._cut(target)
        made = self.synthesis.apply(as_float(target), generator(self.seed, pair.name))
        if self.synthesis.factor > 1 and self.scale == 1:
            made = resized(made, target.shape[0], target.shape[1])
        self._check_sizes(made, target)
        return made, target

    def _without_rest(self, given: Pixels, target: Pixels) -> Pixels:
        """A target without the rows and columns beyond a multiple of the scale, as is the custom.

        B100 holds images of 321×481, whose inputs at scale 4 are 80×120: the last row and column have no input.
        """
        height, width = given.shape[0] * self.scale, given.shape[1] * self.scale
        beyond = target.shape[0] - height, target.shape[1] - width
        return target[:height, :width] if all(0 <= n < self.scale for n in beyond) else target

    def _check_sizes(self, given: Pixels, target: Pixels) -> None:
        expected = given.shape[0] * self.scale, given.shape[1] * self.scale
        if target.shape[:2] != expected:
            times = f", times {self.scale}" if self.scale > 1 else ""
            raise _SizeError(f"the input is {_size(given)} pixels{times}, the target {_size(target)}")

    def checked(self, progress: Callable[[Iterable[ImagePair]], Iterable[ImagePair]] = iter) -> Dataset:
        """The data set with every file read once: what fails moves from ``pairs`` to ``bad``.

        Args:
            progress: wraps the pairs as they are read.
        """
        good, bad = [], list(self.bad)
        digest = hashlib.sha256()
        for pair in progress(self.pairs):
            try:
                size = self._try(pair)
                for path in (pair.input, pair.target):
                    if path is not None:
                        digest.update(f"{pair.name}\0{_checksum(path)}\n".encode())
            except UnreadableError as error:
                bad.append(Bad(pair.name, "size" if isinstance(error, _SizeError) else "unreadable", str(error)))
            else:
                good.append(replace(pair, size=size))
        return replace(
            self, pairs=tuple(good), bad=tuple(sorted(bad, key=lambda b: b.name)), checksum=digest.hexdigest()
        )

    def _try(self, pair: ImagePair) -> tuple[int, int]:
        """The size of the input of a pair that can be read."""
        if self.synthesis is None:
            height, width = self.load(pair)[0].shape[:2]
            return height, width
        height, width = self._cut(read_image(pair.target)).shape[:2]
        shrinks = self.synthesis.factor if self.scale > 1 else 1
        return height // shrinks, width // shrinks

    def _cut(self, target: Pixels) -> Pixels:
        """A clean image cut to a multiple of what the degradation shrinks it by."""
        factor = 1 if self.synthesis is None else self.synthesis.factor
        height, width = (n - n % factor for n in target.shape[:2])
        if not height or not width:
            raise _SizeError(f"{_size(target)} pixels are too few to shrink {factor} times")
        return target[:height, :width]

    def refuse_bad(self, skip: bool) -> None:
        """Stop unless bad pairs are to be skipped.

        Raises:
            BadPairsError: there are bad pairs and ``skip`` is false, or nothing is left.
        """
        lines = "\n".join(f"  {bad}" for bad in self.bad)
        if self.bad and not skip:
            raise BadPairsError(
                f"{len(self.bad)} of {len(self.bad) + len(self.pairs)} cannot be evaluated "
                f"(--skip-bad leaves them out, and counts them):\n{lines}"
            )
        if not self.pairs:
            raise BadPairsError(f"{self.name}: no image to evaluate" + (f"\n{lines}" if lines else ""))


class _SizeError(UnreadableError):
    """Input and target do not have sizes that fit."""


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        if hasattr(hashlib, "file_digest"):
            return str(hashlib.file_digest(file, "sha256").hexdigest())
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
        return digest.hexdigest()


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[0]}×{pixels.shape[1]}"


# ---------------------------------------------------------------------------------------------------- finding


def find_pairs(
    folders: Sequence[Path | str],
    degradation: str | None = None,
    *,
    seed: int = 0,
    scale: int = 1,
    channels: int = 3,
    limit: int | None = None,
) -> Dataset:
    """The pairs in one folder of a known layout, in two folders, or made from one folder of clean images.

    Args:
        folders: one, or two: inputs and targets.
        degradation: see :func:`tlsc.eval.data.synthesis.parse_degradation`.
        seed: of the degradation; every image has a generator of its own, seeded with this and its name.
        scale: output pixels of the network per input pixel.
        channels: of the network's images, 1 or 3.
        limit: take this many pairs at most, the first by name.

    Raises:
        ArgumentValueError: a folder does not exist or holds no images, the layout is unknown or ambiguous, or the
            degradation does not fit the network's scale.

    Example:
        >>> from skimage.data import data_dir
        >>> data = find_pairs([data_dir], "noise:25", limit=2)
        >>> data.layout, len(data.pairs)
        ('clean images, degraded on the fly', 2)
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise ArgumentValueError(f"{root} is not a folder" if root.exists() else f"no folder {root}")
    name = " and ".join(str(folder) for folder in folders)
    if degradation is not None:
        if len(roots) != 1:
            raise ArgumentValueError(f"a degradation needs one folder of clean images, got {name}")
        synthesis = parse_degradation(degradation)
        if scale not in (1, synthesis.factor):
            raise ArgumentValueError(
                f"the network enlarges {scale} times, {degradation!r} shrinks {synthesis.factor} times"
            )
        pairs = [ImagePair(_inside(path, roots[0]), path, None) for path in _images(roots[0])]
        found = Dataset(
            name, "clean images, degraded on the fly", tuple(pairs), (), synthesis, seed, scale, channels
        )
    elif len(roots) == 2:
        found = _of_two(name, roots[0], roots[1], scale, channels)
    elif len(roots) == 1:
        found = _of_layout(roots[0], scale, channels)
    else:
        raise ArgumentValueError(f"give one folder, or two: inputs and targets; got {len(roots)}")
    if not found.pairs and not found.bad:
        raise ArgumentValueError(f"no images in {name} ({', '.join(sorted(EXTENSIONS))})")
    return found if limit is None else replace(found, pairs=found.pairs[:limit])


def _of_two(name: str, inputs: Path, targets: Path, scale: int, channels: int) -> Dataset:
    files = [(path, _inside(path, inputs)) for path in _images(inputs)]
    pairs, bad = _match(files, [(path, _inside(path, targets)) for path in _images(targets)], ("input/", "target/"))
    layout = "two folders given by hand"
    return Dataset(name, layout, tuple(pairs), tuple(bad), scale=scale, channels=channels)


def _of_layout(root: Path, scale: int, channels: int) -> Dataset:
    found = _role_folders(root)
    pairs: list[ImagePair] = []
    bad: list[Bad] = []
    for inputs, targets in found:
        above = inputs.parent.relative_to(root).as_posix()
        prefix = "" if above == "." else f"{above}/"
        several = len(found) > 1 and len({i.parent for i, _ in found}) < len(found)
        files = [(path, _inside(path, inputs)) for path in _images(inputs)]
        own, failed = _match(
            files,
            [(path, _inside(path, targets)) for path in _images(targets)],
            (f"{prefix}{inputs.name}/", f"{prefix}{targets.name}/"),
        )
        shown = f"{prefix}{inputs.name}/" if several else prefix
        pairs += [replace(pair, name=shown + pair.name) for pair in own]
        bad += failed
    if found:
        layout = ", ".join(dict.fromkeys(f"{inputs.name}/{targets.name}" for inputs, targets in found))
        if any(inputs.parent != root for inputs, _ in found):
            count = len({inputs.parent for inputs, _ in found})
            layout += f" in {count} {'folder' if count == 1 else 'folders'}"
    else:
        layout = "role words in file names"
        pairs, bad = _by_file_names(root)
    pairs.sort(key=lambda pair: pair.name)
    bad.sort(key=lambda entry: entry.name)
    return Dataset(str(root), layout, tuple(pairs), tuple(bad), scale=scale, channels=channels)


def _by_file_names(root: Path) -> tuple[list[ImagePair], list[Bad]]:
    files = [(path, _inside(path, root)) for path in _images(root)]
    inputs = [(path, key) for path, key in files if _role_of(path.stem, fillers=False) == "input"]
    targets = [(path, key) for path, key in files if _role_of(path.stem, fillers=False) == "target"]
    if not inputs or not targets:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        there = f"folders {', '.join(folders[:8])}" if folders else "no folders"
        raise ArgumentValueError(
            f"{root}: no known layout. Expected two folders such as input/target, lq/gt, blur/sharp, hazy/GT, "
            f"rain/norain, here or below; found {there} and {len(files)} images. Give two folders, or a "
            "degradation for clean images"
        )
    pairs, bad = _match(inputs, targets, ("", ""))
    rest = [key for path, key in files if _role_of(path.stem, fillers=False) is None]
    bad += [Bad(key, "unmatched", "its name does not say whether it is an input or a target") for key in rest]
    return pairs, bad


def _inside(path: Path, root: Path) -> str:
    """The path below ``root``, as text that every file and plot can hold: bytes that are none are escaped."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _images(root: Path) -> list[Path]:
    """All image files at and below a folder by extension, hidden ones left out, in the order of their paths."""
    return sorted(
        (path for folder in _folders(root) for path in _listed(folder) if _is_image(path)),
        key=lambda path: path.relative_to(root).as_posix(),
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _listed(folder: Path) -> list[Path]:
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
        todo += [path for path in _listed(folder) if path.is_dir()]
    return found


# ----------------------------------------------------------------------------------------------------- layouts


def _role_folders(root: Path) -> list[tuple[Path, Path]]:
    """Pairs of folders (inputs, targets) side by side, at or below ``root``, outermost first."""
    pairs: list[tuple[Path, Path]] = []
    taken: list[Path] = []
    for parent in _folders(root):
        if any(parent == above or above in parent.parents for above in taken):
            continue
        groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for folder in (path for path in _listed(parent) if path.is_dir()):
            role = _role_of(folder.name)
            if role is not None:
                groups[_without_roles(folder.name)][role].append(folder)
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


def _role_of(name: str, fillers: bool = True) -> str | None:
    """ "input" or "target" where exactly one of the two is said by a name."""
    words = _words(name)
    if fillers and {"ground", "truth"} <= set(words):
        return "target"
    roles = {role for word in words if (role := _role_word(word)) is not None}
    return roles.pop() if len(roles) == 1 else None


def _without_roles(name: str) -> str:
    return "_".join(
        word
        for word in _words(name)
        if _role_word(word) is None and word not in _FILLERS and not _SCALE.fullmatch(word)
    )


def _bare(stem: str) -> str:
    """A stem without the words that say a role; "*" where there was nothing else, "" where nothing is left."""
    return _without_roles(stem) or ("*" if _role_of(stem) else "")


# ---------------------------------------------------------------------------------------------------- matching


@dataclass(frozen=True)
class _Key:
    """A file's path from its folder, lower case: the folders in between and the name."""

    folder: str
    stem: str
    suffix: str

    @classmethod
    def of(cls, inside: str) -> _Key:
        path = Path(inside.lower())
        parts = [part for part in path.parent.parts if not _SCALE.fullmatch(part)]
        return cls("/".join(parts), path.stem, path.suffix)


_Index = dict[tuple[str, str], list[int]]


def _match(
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

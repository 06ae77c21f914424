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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.data.layouts import INPUT_ROLES, TARGET_ROLES, images, inside, listed, role_folders, role_of
from tlsc.eval.data.matching import Bad, ImagePair, match
from tlsc.eval.data.synthesis import Synthesis, generator, parse_degradation, resized
from tlsc.eval.images import READABLE, Pixels, UnreadableError, as_float, read_image, with_channels

__all__ = ["INPUT_ROLES", "TARGET_ROLES", "Bad", "BadPairsError", "Dataset", "ImagePair", "find_pairs"]


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
                size, cut = self._try(pair)
                for path in (pair.input, pair.target):
                    if path is not None:
                        digest.update(f"{pair.name}\0{_checksum(path)}\n".encode())
            except UnreadableError as error:
                bad.append(Bad(pair.name, "size" if isinstance(error, _SizeError) else "unreadable", str(error)))
            else:
                good.append(replace(pair, size=size, cut=cut))
        return replace(
            self, pairs=tuple(good), bad=tuple(sorted(bad, key=lambda b: b.name)), checksum=digest.hexdigest()
        )

    def _try(self, pair: ImagePair) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of the input of a pair that can be read, and how much of its target is cut."""
        target = read_image(pair.target)
        if self.synthesis is None:
            assert pair.input is not None
            given, target = (
                with_channels(read_image(pair.input), self.channels),
                with_channels(target, self.channels),
            )
            used = self._without_rest(given, target)
            self._check_sizes(given, used)
            size = given.shape[0], given.shape[1]
        else:
            used = self._cut(target)
            shrinks = self.synthesis.factor if self.scale > 1 else 1
            size = used.shape[0] // shrinks, used.shape[1] // shrinks
        return size, (target.shape[0] - used.shape[0], target.shape[1] - used.shape[1])

    def _cut(self, target: Pixels) -> Pixels:
        """A clean image cut to a multiple of what the degradation shrinks it by."""
        factor = 1 if self.synthesis is None else self.synthesis.factor
        height, width = (n - n % factor for n in target.shape[:2])
        if not height or not width:
            raise _SizeError(f"{_size(target)} pixels are too few to shrink {factor} times")
        return target[:height, :width]

    def refuse_bad(self, skip: bool, way_out: str = "--skip-bad leaves them out, and counts them") -> None:
        """Stop unless bad pairs are to be skipped.

        Args:
            skip: whether they are.
            way_out: what the user can do.

        Raises:
            BadPairsError: there are bad pairs and ``skip`` is false, or nothing is left.
        """
        lines = "\n".join(f"  {bad}" for bad in self.bad)
        if self.bad and not skip:
            raise BadPairsError(
                f"{len(self.bad)} of {len(self.bad) + len(self.pairs)} cannot be evaluated ({way_out}):\n{lines}"
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
        _refuse_blocks(root)
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
        pairs = [ImagePair(inside(path, roots[0]), path, None) for path in images(roots[0])]
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
        raise ArgumentValueError(f"no images in {name} ({', '.join(READABLE)})")
    return found if limit is None else replace(found, pairs=found.pairs[:limit])


def _refuse_blocks(root: Path) -> None:
    """Say how SIDD's validation blocks are unpacked, where a file of them is named, or nothing else is there."""
    own = [root] if root.is_file() else listed(root) if root.is_dir() else []
    blocks = [path for path in own if path.suffix.lower() == ".mat"]
    if blocks and (root.is_file() or not images(root)):
        raise ArgumentValueError(
            f"{blocks[0]} is MATLAB's, as SIDD's validation blocks are: unpack these into folders input and target "
            "by `python -m tlsc.eval.data.blocks NOISY.mat CLEAN.mat FOLDER`, and name the folder"
        )


def _of_two(name: str, inputs: Path, targets: Path, scale: int, channels: int) -> Dataset:
    files = [(path, inside(path, inputs)) for path in images(inputs)]
    pairs, bad = match(files, [(path, inside(path, targets)) for path in images(targets)], ("input/", "target/"))
    layout = "two folders given by hand"
    return Dataset(name, layout, tuple(pairs), tuple(bad), scale=scale, channels=channels)


def _of_layout(root: Path, scale: int, channels: int) -> Dataset:
    found = role_folders(root)
    pairs: list[ImagePair] = []
    bad: list[Bad] = []
    for inputs, targets in found:
        above = inputs.parent.relative_to(root).as_posix()
        prefix = "" if above == "." else f"{above}/"
        several = len(found) > 1 and len({i.parent for i, _ in found}) < len(found)
        files = [(path, inside(path, inputs)) for path in images(inputs)]
        own, failed = match(
            files,
            [(path, inside(path, targets)) for path in images(targets)],
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
    files = [(path, inside(path, root)) for path in images(root)]
    inputs = [(path, key) for path, key in files if role_of(path.stem, fillers=False) == "input"]
    targets = [(path, key) for path, key in files if role_of(path.stem, fillers=False) == "target"]
    if not inputs or not targets:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        there = f"folders {', '.join(folders[:8])}" if folders else "no folders"
        raise ArgumentValueError(
            f"{root}: no known layout. Expected two folders such as input/target, lq/gt, blur/sharp, hazy/GT, "
            f"rain/norain, here or below; found {there} and {len(files)} images. Give two folders, or a "
            "degradation for clean images"
        )
    pairs, bad = match(inputs, targets, ("", ""))
    rest = [key for path, key in files if role_of(path.stem, fillers=False) is None]
    bad += [Bad(key, "unmatched", "its name does not say whether it is an input or a target") for key in rest]
    return pairs, bad

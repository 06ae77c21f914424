"""SIDD's validation blocks, which come as two files of MATLAB's, as folders of PNG files that ``tlsc eval`` reads.

``python -m tlsc.eval.data.blocks ValidationNoisyBlocksSrgb.mat ValidationGtBlocksSrgb.mat FOLDER`` writes
``FOLDER/input/0000_00.png`` and so on, by image and block, and ``FOLDER/target`` likewise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.files import replacing

__all__ = ["main", "read_blocks", "unpack"]


def read_blocks(path: Path) -> NDArray[np.uint8]:
    """The blocks in a file of MATLAB's, (images, blocks, height, width, 3).

    Raises:
        ArgumentValueError: the file cannot be read, or does not hold one array of 8 bit blocks.
    """
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(path)
    except OSError as error:
        raise ArgumentValueError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # whatever the reader says of a damaged file
        raise ArgumentValueError(f"{path}: damaged, or not of MATLAB's formats up to 7.2: {error}") from error
    arrays = {name: value for name, value in found.items() if not name.startswith("__")}
    blocks = [value for value in arrays.values() if isinstance(value, np.ndarray) and _is_blocks(value)]
    if len(blocks) != 1:
        held = ", ".join(f"{name} {np.shape(value)}" for name, value in arrays.items()) or "nothing"
        raise ArgumentValueError(
            f"{path}: expected one array of uint8 (images, blocks, height, width, 3), found {held}"
        )
    return blocks[0]


def _is_blocks(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 5 and array.shape[-1] == 3 and array.size > 0


def unpack(noisy: Path, clean: Path, folder: Path) -> int:
    """Write the blocks of two files to ``folder/input`` and ``folder/target``; returns how many pairs.

    Raises:
        ArgumentValueError: as :func:`read_blocks`, or the two files do not have blocks of the same shape.
        OSError: the folder cannot be written to.
    """
    both = {"input": read_blocks(noisy), "target": read_blocks(clean)}
    if both["input"].shape != both["target"].shape:
        raise ArgumentValueError(f"{noisy} holds {both['input'].shape}, {clean} {both['target'].shape}")
    for role, blocks in both.items():
        (folder / role).mkdir(parents=True, exist_ok=True)
        for image, block in np.ndindex(blocks.shape[:2]):
            with replacing(folder / role / f"{image:04d}_{block:02d}.png") as new:
                PIL.Image.fromarray(np.ascontiguousarray(blocks[image, block])).save(new)
    return int(np.prod(both["input"].shape[:2]))


def main(argv: Sequence[str] | None = None) -> int:
    """Unpack; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tlsc.eval.data.blocks", description="Unpack SIDD's blocks.")
    parser.add_argument("noisy", type=Path, help="such as ValidationNoisyBlocksSrgb.mat")
    parser.add_argument("clean", type=Path, help="such as ValidationGtBlocksSrgb.mat")
    parser.add_argument("folder", type=Path, help="where input and target are made")
    args = parser.parse_args(argv)
    try:
        print(f"{unpack(args.noisy, args.clean, args.folder)} pairs in {args.folder}")
    except (TLSCError, OSError) as error:
        print(f"tlsc: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

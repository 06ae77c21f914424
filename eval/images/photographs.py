"""Photographs that come with scikit-image, divided into those to train on and those to test on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import skimage.io
from numpy.typing import NDArray

__all__ = ["TEST_PHOTOGRAPHS", "TRAINING_PHOTOGRAPHS", "Image", "load_photograph"]

Image = NDArray[np.float32]
"""(height, width, 3), RGB in [0, 1]."""

TEST_PHOTOGRAPHS = ("coffee", "chelsea", "astronaut")

# Both views of the motorcycle are one scene, so they stay on the same side.
TRAINING_PHOTOGRAPHS = (
    "motorcycle_left",
    "motorcycle_right",
    "rocket",
    "camera",
    "brick",
    "grass",
    "gravel",
    "coins",
    "ihc",
    "retina",
    "hubble_deep_field",
    "moon",
)


def load_photograph(name: str) -> Image:
    """A photograph that comes with the scikit-image package; never downloads. Grey ones are repeated to RGB.

    Args:
        name: one of ``TRAINING_PHOTOGRAPHS`` or ``TEST_PHOTOGRAPHS``.

    Raises:
        ValueError: another name.
        FileNotFoundError: this installation of scikit-image does not contain the file.

    Example:
        >>> load_photograph("coffee").shape
        (400, 600, 3)
    """
    if name not in TRAINING_PHOTOGRAPHS + TEST_PHOTOGRAPHS:
        known = ", ".join(TRAINING_PHOTOGRAPHS + TEST_PHOTOGRAPHS)
        raise ValueError(f"no photograph {name!r}; there are {known}")
    folder = Path(skimage.__file__).parent / "data"
    for path in (folder / f"{name}.png", folder / f"{name}.jpg"):
        if path.is_file():
            pixels: NDArray[Any] = skimage.io.imread(path)
            break
    else:
        raise FileNotFoundError(
            f"no photograph {name!r} in {folder}; scikit-image's wheels on PyPI do: "
            "pip install --force-reinstall scikit-image"
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if name == "retina":
        pixels = pixels[250:1150, 250:1150]  # the rest is a black surround
    return np.ascontiguousarray(pixels[..., :3], dtype=np.float32) / np.float32(255)

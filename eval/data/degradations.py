"""What the demo's networks were trained to undo. Everything is a function of the image and a seeded generator."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS, Image, load_photograph

__all__ = [
    "DEGRADATIONS",
    "Degradation",
    "Pair",
    "degrade_photograph",
    "degraded_test_photographs",
    "haze",
    "motion_blur",
    "motion_kernel",
    "smooth_field",
]

Level = float | NDArray[np.float32]


def smooth_field(height: int, width: int, rng: np.random.Generator, scale: float = 150.0) -> NDArray[np.float32]:
    """A random field that spans [0, 1] and varies slowly: Gaussian noise, blurred by ``scale`` pixels, stretched.

    Args:
        height: in pixels.
        width: in pixels.
        rng: source of the noise.
        scale: standard deviation of the blur in pixels.

    Returns:
        (height, width, 1).

    Example:
        >>> field = smooth_field(40, 60, np.random.default_rng(0), scale=20)
        >>> field.shape, float(field.min()), float(field.max())
        ((40, 60, 1), 0.0, 1.0)
    """
    margin = math.ceil(3 * scale)
    impulse = np.zeros(2 * margin + 1)
    impulse[margin] = 1
    kernel = gaussian_filter(impulse, scale, truncate=3.0)
    field = rng.standard_normal((height + 2 * margin, width + 2 * margin))
    for axis, along in enumerate((kernel[:, None], kernel[None, :])):
        field = fftconvolve(field, along, mode="valid", axes=axis)
    field = (field - field.min()) / max(np.ptp(field), np.finfo(np.float64).tiny)
    return np.asarray(field[..., None], dtype=np.float32)


def haze(image: Image, level: Level, rng: np.random.Generator) -> Image:
    """Haze in front of the scene, and a little sensor noise.

    ``image · t + 0.85 · (1 − t)`` with transmission ``t = 1 − 0.6 · level``, plus white noise of standard
    deviation 5/255, clipped to [0, 1].

    Args:
        image: (height, width, 3).
        level: density of the haze in [0, 1], a number or (height, width, 1).
        rng: source of the noise.

    Example:
        >>> black = np.zeros((64, 64, 3), np.float32)
        >>> round(float(haze(black, 1.0, np.random.default_rng(0)).mean()), 2)
        0.51
    """
    transmission = 1 - 0.6 * level
    return _with_noise(image * transmission + 0.85 * (1 - transmission), 5 / 255, rng)


def motion_kernel(length: float, angle: float) -> NDArray[np.float32]:
    """The path of a camera moved at constant speed: a line of ``length`` pixels, sums to 1, odd side.

    Args:
        length: in pixels.
        angle: in degrees, anticlockwise from the horizontal.

    Example:
        >>> (3 * motion_kernel(3, 0)[2]).round().tolist()
        [0.0, 1.0, 1.0, 1.0, 0.0]
    """
    radius = math.ceil(length / 2)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    samples = math.ceil(length) * 16
    along = ((np.arange(samples) + 0.5) / samples - 0.5) * length
    x = radius + along * math.cos(math.radians(angle))
    y = radius - along * math.sin(math.radians(angle))
    np.add.at(kernel, (np.rint(y).astype(int), np.rint(x).astype(int)), 1 / samples)
    return kernel.astype(np.float32)


def motion_blur(image: Image, level: Level, rng: np.random.Generator) -> Image:
    """Blur of a camera moved by 11 pixels at 30°, the same everywhere, and a little sensor noise.

    White noise of standard deviation 2/255, clipped to [0, 1]. Borders are mirrored. ``level`` is not used.
    """
    kernel = motion_kernel(11, 30)
    radius = _radius(kernel)
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    return _with_noise(fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)), 2 / 255, rng)


def _radius(kernel: NDArray[np.float32]) -> int:
    return len(kernel) // 2


def _with_noise(image: NDArray[Any], deviation: float, rng: np.random.Generator) -> Image:
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image + np.float32(deviation) * noise, 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Degradation:
    """A degradation with a level in [0, 1]: constant in a training crop, a smooth field over a photograph.

    Attributes:
        description: one line, with amounts.
        apply: ``(image, level, rng)`` to the degraded image.
        margin: pixels around a training crop that its degraded version depends on.
    """

    description: str
    apply: Callable[[Image, Level, np.random.Generator], Image]
    margin: int = 0


DEGRADATIONS: Mapping[str, Degradation] = {
    "haze": Degradation("haze of uneven density (transmission 1 to 0.4), noise 5/255", haze),
    "motion-blur": Degradation(
        "fixed motion blur (11 pixels at 30°), noise 2/255", motion_blur, margin=_radius(motion_kernel(11, 30))
    ),
}


@dataclass(frozen=True)
class Pair:
    """A photograph before and after its degradation."""

    name: str
    clean: Image
    degraded: Image


def degrade_photograph(name: str, degradation: str | Degradation, seed: int) -> Pair:
    """A photograph with a degradation whose level is a smooth random field; the same for the same arguments.

    Args:
        name: a photograph, see ``tlsc.eval.images.photographs``.
        degradation: a key of ``DEGRADATIONS``, or one of another kind.
        seed: of the field and the noise.

    Example:
        >>> degrade_photograph("chelsea", "haze", seed=0).degraded.shape
        (300, 451, 3)
    """
    clean = load_photograph(name)
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    level = smooth_field(clean.shape[0], clean.shape[1], rng)
    chosen = DEGRADATIONS[degradation] if isinstance(degradation, str) else degradation
    return Pair(name, clean, chosen.apply(clean, level, rng))


def degraded_test_photographs(degradation: str, seed: int) -> list[Pair]:
    """The test photographs, each degraded once."""
    return [degrade_photograph(name, degradation, seed) for name in TEST_PHOTOGRAPHS]

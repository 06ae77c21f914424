"""Degradations made on the fly from clean images, by a short specification such as ``noise:25``."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlsc.errors import ArgumentValueError
from tlsc.eval.data.degradations import DEGRADATIONS, motion_kernel, smooth_field
from tlsc.eval.telling import suggestion

__all__ = ["SPECIFICATIONS", "Synthesis", "generator", "parse_degradation", "resized"]

Image = NDArray[np.float32]
"""(height, width, channels) in [0, 1]."""

# Side in pixels of the cells whose random levels the varying noise is interpolated from.
_CELL = 96


@dataclass(frozen=True)
class Synthesis:
    """A degradation made on the fly.

    Attributes:
        specification: as it was given.
        description: one line, with amounts.
        factor: by how much it shrinks the image; 1 for all but ``bicubic``.
        apply: ``(clean, rng)`` to the degraded image, both (height, width, channels) float32.
    """

    specification: str
    description: str
    apply: Callable[[Image, np.random.Generator], Image]
    factor: int = 1


def parse_degradation(specification: str) -> Synthesis:
    """What a specification means.

    - ``noise:25``: white Gaussian noise of standard deviation 25/255, neither clipped nor rounded (as denoisers are
      commonly tested); ``noise:0-50``: the deviation varies smoothly over the image and spans the range.
    - ``blur:2``: Gaussian, of that standard deviation in pixels; ``blur:11@30``: a camera moved by 11 pixels at
      30°. Borders are mirrored.
    - ``jpeg:40``: coded by Pillow at that quality, 8 bit.
    - ``bicubic:4``: made smaller by that factor with the antialiased bicubic kernel (a = −0.5) and rounded to 8
      bit; clean images are cut to a multiple of it first.
    - ``haze``, ``motion-blur``: what the demo's networks were trained to undo.

    Raises:
        ArgumentValueError: it is none of these, or its number is out of range.

    Example:
        >>> parse_degradation("noise:0-50").description
        'Gaussian noise, standard deviation 0 to 50 (of 255), varying over the image'
    """
    kind, _, amount = specification.partition(":")
    if kind not in _PARSERS:
        raise ArgumentValueError(
            f"no degradation {specification!r}{suggestion(kind, _PARSERS)}; there are {SPECIFICATIONS}"
        )
    try:
        return _PARSERS[kind][0](specification, amount)
    except ValueError as error:
        reason = f": {error}" if isinstance(error, ArgumentValueError) else ""
        raise ArgumentValueError(f"degradation {specification!r}{reason}; expected {_expected(kind)}") from None


def generator(seed: int, name: str) -> np.random.Generator:
    """The source of randomness for one image: it depends on the seed and the image's name, not on the others.

    Example:
        >>> int(generator(0, "a.png").integers(1000)) == int(generator(0, "a.png").integers(1000))
        True
    """
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))


def _expected(kind: str) -> str:
    return " or ".join(_PARSERS[kind][1])


def _number(text: str, low: float, high: float) -> float:
    value = float(text)
    if not low <= value <= high:
        raise ArgumentValueError(f"{text} is not between {low:g} and {high:g}")
    return value


def _whole(text: str, low: int, high: int) -> int:
    return int(_number(str(int(text)), low, high))


def _noise(specification: str, amount: str) -> Synthesis:
    low, dash, high = amount.partition("-")
    if not dash:
        sigma = _number(amount, 0, 255)
        text = f"Gaussian noise, standard deviation {sigma:g} (of 255)"
        return Synthesis(specification, text, partial(_add_noise, low=sigma, high=sigma))
    levels = _number(low, 0, 255), _number(high, 0, 255)
    if levels[0] > levels[1]:
        raise ArgumentValueError(f"{low} is more than {high}")
    text = f"Gaussian noise, standard deviation {levels[0]:g} to {levels[1]:g} (of 255), varying over the image"
    return Synthesis(specification, text, partial(_add_noise, low=levels[0], high=levels[1]))


def _add_noise(clean: Image, rng: np.random.Generator, low: float, high: float) -> Image:
    sigma: Any = low / 255
    if high > low:
        sigma = (low + (high - low) * _smooth(clean.shape[0], clean.shape[1], rng)) / 255
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    return np.asarray(clean + np.asarray(sigma, dtype=np.float32) * noise, dtype=np.float32)


def _smooth(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random field that spans [0, 1] and varies over about a hundred pixels: (height, width, 1)."""
    from scipy.ndimage import map_coordinates

    coarse = rng.standard_normal((math.ceil(height / _CELL) + 3, math.ceil(width / _CELL) + 3))
    places = np.meshgrid(1 + np.arange(height) / _CELL, 1 + np.arange(width) / _CELL, indexing="ij")
    field = map_coordinates(coarse, places, order=3, mode="nearest")
    field = (field - field.min()) / max(float(np.ptp(field)), float(np.finfo(np.float64).tiny))
    return np.asarray(field[..., None], dtype=np.float32)


def _blur(specification: str, amount: str) -> Synthesis:
    length, at, angle = amount.partition("@")
    if at:
        values = _number(length, 1, 500), _number(angle, -360, 360)
        text = f"motion blur, {values[0]:g} pixels at {values[1]:g}°"
        return Synthesis(specification, text, partial(_move, length=values[0], angle=values[1]))
    sigma = _number(amount, 0, 100)
    return Synthesis(
        specification, f"Gaussian blur, standard deviation {sigma:g} pixels", partial(_soften, sigma=sigma)
    )


def _soften(clean: Image, rng: np.random.Generator, sigma: float) -> Image:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(clean, (sigma, sigma, 0), mode="reflect"), dtype=np.float32)


def _move(clean: Image, rng: np.random.Generator, length: float, angle: float) -> Image:
    from scipy.ndimage import correlate

    kernel = motion_kernel(length, angle)[::-1, ::-1, None]
    return np.asarray(correlate(clean, kernel, mode="reflect"), dtype=np.float32)


def _jpeg(specification: str, amount: str) -> Synthesis:
    quality = _whole(amount, 1, 100)
    return Synthesis(specification, f"JPEG, quality {quality} (Pillow)", partial(_compress, quality=quality))


def _compress(clean: Image, rng: np.random.Generator, quality: int) -> Image:
    from PIL import Image as PILImage

    pixels = np.rint(np.clip(clean, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    decoded = np.asarray(PILImage.open(buffer)).reshape(pixels.shape)
    return decoded.astype(np.float32) / np.float32(255)


def _bicubic(specification: str, amount: str) -> Synthesis:
    factor = _whole(amount, 2, 16)
    text = f"bicubic, {factor} times smaller, 8 bit"
    return Synthesis(specification, text, partial(_shrink, factor=factor), factor)


def _shrink(clean: Image, rng: np.random.Generator, factor: int) -> Image:
    small = resized(clean, clean.shape[0] // factor, clean.shape[1] // factor)
    return np.asarray(np.rint(np.clip(small, 0, 1) * 255) / 255, dtype=np.float32)


def resized(image: Image, height: int, width: int) -> Image:
    """``image`` at another size, by Pillow's bicubic kernel, widened where it shrinks."""
    from PIL import Image as PILImage

    planes = [
        PILImage.fromarray(np.ascontiguousarray(plane)).resize((width, height), PILImage.Resampling.BICUBIC)
        for plane in np.moveaxis(image, 2, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _of_the_demo(specification: str, amount: str) -> Synthesis:
    if amount:
        raise ArgumentValueError(f"{specification.partition(':')[0]} takes no amount")
    known = DEGRADATIONS[specification]
    return Synthesis(specification, known.description, partial(_as_the_demo, name=specification))


def _as_the_demo(clean: Image, rng: np.random.Generator, name: str) -> Image:
    return DEGRADATIONS[name].apply(clean, smooth_field(clean.shape[0], clean.shape[1], rng), rng)


# The one list of degradations: what reads a specification, and how specifications are spelled.
_PARSERS: dict[str, tuple[Callable[[str, str], Synthesis], tuple[str, ...]]] = {
    "noise": (_noise, ("noise:SIGMA", "noise:LOW-HIGH")),
    "blur": (_blur, ("blur:SIGMA", "blur:LENGTH@ANGLE")),
    "jpeg": (_jpeg, ("jpeg:QUALITY",)),
    "bicubic": (_bicubic, ("bicubic:FACTOR",)),
    **{name: (_of_the_demo, (name,)) for name in DEGRADATIONS},
}
SPECIFICATIONS = ", ".join(spelling for _, spellings in _PARSERS.values() for spelling in spellings)

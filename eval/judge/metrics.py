"""PSNR and SSIM by named protocols, in bands of rows, so that a result is never needed as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.metrics import structural_similarity

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.images import Pixels, as_float
from tlsc.eval.telling import suggestion

__all__ = [
    "PROTOCOLS",
    "Figures",
    "NotFiniteError",
    "Protocol",
    "Scorer",
    "decibels",
    "lpips_metric",
    "psnr",
    "score",
]

PROTOCOLS = {
    "rgb-uint8": "clipped and rounded to 8 bit, all channels together, data range 255",
    "rgb-float": "clipped to [0, 1], not rounded, all channels together, data range 1",
    "y-uint8": "clipped and rounded to 8 bit, then luma Y of BT.601 as MATLAB's rgb2ycbcr has it (16 to 235, "
    "float, not rounded again), data range 255",
}
_SSIM = "SSIM: Gaussian window 11×11, σ 1.5, valid positions only, mean over channels"
# Rows that are compared at once, and rows that the SSIM window reaches up and down.
_BAND, _REACH = 256, 5


class NotFiniteError(TLSCError, ValueError):
    """A result has NaN or Inf, so that it has no figures."""


@dataclass(frozen=True)
class Protocol:
    """How a result is compared with its target; print it with every figure.

    Args:
        name: a key of ``PROTOCOLS``.
        crop_border: pixels left out at each edge.

    Raises:
        ArgumentValueError: an unknown name or a negative border.

    Example:
        >>> print(Protocol("rgb-float"))
        rgb-float (clipped to [0, 1], not rounded, all channels together, data range 1), crop border 0
    """

    name: str = "rgb-uint8"
    crop_border: int = 0

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ArgumentValueError(
                f"no protocol {self.name!r}{suggestion(self.name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}"
            )
        if self.crop_border < 0:
            raise ArgumentValueError(f"crop border must be at least 0, got {self.crop_border}")

    def __str__(self) -> str:
        return f"{self.name} ({PROTOCOLS[self.name]}), crop border {self.crop_border}"

    @property
    def description(self) -> str:
        """All that a reader needs to know to get the same figures."""
        return (
            f"{self}; {_SSIM}. One figure per image, then their mean. Identical images have infinite PSNR: they "
            "are counted, and left out of the mean"
        )

    @property
    def data_range(self) -> int:
        """Largest value minus smallest."""
        return 1 if self.name == "rgb-float" else 255

    def prepared(self, pixels: Pixels) -> NDArray[Any]:
        """Rows of an image as the figures are computed from: (rows, columns, channels), 8 bit or floating point."""
        if self.name == "rgb-float":
            exact = pixels if pixels.dtype.kind == "f" else pixels / np.float64(np.iinfo(pixels.dtype).max)
            return np.clip(exact.astype(np.float64), 0, 1)
        if pixels.dtype != np.uint8:
            pixels = np.rint(np.clip(as_float(pixels), 0, 1) * np.float32(255)).astype(np.uint8)
        return _luma(pixels) if self.name == "y-uint8" else pixels


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y as BasicSR computes it (MATLAB's ``rgb2ycbcr`` before rounding), rounded to float32 where it does.

    Without these, nearly equal images would differ from BasicSR's figures by some 1e-3 dB.
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    if pixels.shape[2] == 3:
        y = (np.dot(scaled[..., ::-1], [24.966, 128.553, 65.481]) + 16.0) / 255.0
        scaled = y.astype(np.float32)[..., None]
    return np.asarray(scaled * np.float32(255), dtype=np.float64)


@dataclass(frozen=True)
class Figures:
    """PSNR in dB (infinite for equal images) and SSIM (NaN where the image is smaller than its window)."""

    psnr: float
    ssim: float


class Scorer:
    """Compares a result with its target as its rows arrive, from top to bottom.

    Args:
        protocol: how.
        height: rows of the whole image.
        width: columns.
        ssim: whether SSIM is computed, too; NaN otherwise.

    Raises:
        ArgumentValueError: the border leaves nothing of the image.

    Example:
        >>> grey = np.full((20, 20, 1), 128, np.uint8)
        >>> scorer = Scorer(Protocol(), 20, 20)
        >>> scorer.add(grey[:7], grey[:7] + 1); scorer.add(grey[7:], grey[7:] + 1)
        >>> round(scorer.figures().psnr, 2)
        48.13
    """

    def __init__(self, protocol: Protocol, height: int, width: int, ssim: bool = True) -> None:
        border = protocol.crop_border
        if 2 * border >= min(height, width):
            raise ArgumentValueError(f"crop border {border} leaves nothing of {height}×{width} pixels")
        self.protocol, self._ssim = protocol, ssim
        self._columns = slice(border, width - border)
        self._rows = range(border, height - border)
        self._seen = 0
        self._squares: float = 0.0
        self._count = 0
        self._similarity = 0.0
        self._positions = 0
        self._kept: tuple[NDArray[Any], NDArray[Any]] | None = None

    def add(self, result: Pixels, target: Pixels) -> None:
        """The next rows of both, (rows, width, channels).

        Raises:
            NotFiniteError: the result has NaN or Inf.
        """
        for top in range(0, len(result), _BAND):
            self._add(result[top : top + _BAND], target[top : top + _BAND])

    def _add(self, result: Pixels, target: Pixels) -> None:
        first, self._seen = self._seen, self._seen + len(result)
        inside = slice(max(0, self._rows.start - first), max(0, self._rows.stop - first))
        if result.dtype.kind == "f" and (bad := result.size - np.count_nonzero(np.isfinite(result))):
            raise NotFiniteError(f"the result has {bad} NaN or Inf in rows {first} to {self._seen - 1}")
        one, two = (self.protocol.prepared(rows[inside, self._columns]) for rows in (result, target))
        if not len(one):
            return
        difference = one.astype(np.float64) - two
        self._squares += float(np.square(difference).sum())
        self._count += difference.size
        if self._ssim:
            self._compare(one.astype(np.float64), two.astype(np.float64))

    def _compare(self, one: NDArray[Any], two: NDArray[Any]) -> None:
        """SSIM at the rows whose window is complete; the last rows are kept for those to come."""
        if self._kept is not None:
            one, two = np.concatenate([self._kept[0], one]), np.concatenate([self._kept[1], two])
        self._kept = one[-2 * _REACH :], two[-2 * _REACH :]
        if min(one.shape[:2]) <= 2 * _REACH:
            if len(one) <= 2 * _REACH:
                self._kept = one, two
            return
        _, full = structural_similarity(
            one,
            two,
            data_range=self.protocol.data_range,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        valid = full[_REACH:-_REACH, _REACH:-_REACH]
        self._similarity += float(valid.sum())
        self._positions += valid.size

    def figures(self) -> Figures:
        """PSNR and SSIM of all rows so far."""
        found = decibels(self._squares / self._count, self.protocol.data_range)
        return Figures(found, self._similarity / self._positions if self._positions else math.nan)


def decibels(error: float, data_range: float = 1) -> float:
    """PSNR of a mean squared error: 10·log10(range² / error), infinite for none.

    Example:
        >>> round(decibels(0.01), 6)
        20.0
    """
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def psnr(result: ArrayLike, target: ArrayLike) -> float:
    """PSNR in dB of values in [0, 1] as they are, over all elements; for arrays and tensors that are no pictures.

    Example:
        >>> round(psnr(np.zeros(4), np.full(4, 0.1)), 6)
        20.0
    """
    difference = np.asarray(result, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    return decibels(float(np.square(difference).mean()))


def score(result: Pixels, target: Pixels, protocol: Protocol | None = None) -> Figures:
    """PSNR and SSIM of a whole result.

    PSNR = 10·log10(range² / mean squared error); SSIM as in Wang et al., "Image quality assessment: from error
    visibility to structural similarity", 2004. Both equal BasicSR's ``calculate_psnr`` and ``calculate_ssim``.

    Args:
        result: (height, width, 1 or 3), floating point in [0, 1], or 8 or 16 bit.
        target: likewise.
        protocol: rgb-uint8 without border by default.

    Raises:
        ArgumentValueError: the shapes differ, or the border leaves nothing.
        NotFiniteError: the result has NaN or Inf.

    Example:
        >>> black = np.zeros((16, 16, 3), np.uint8)
        >>> score(black, black)
        Figures(psnr=inf, ssim=1.0)
    """
    if result.shape != target.shape or result.ndim != 3:
        raise ArgumentValueError(
            f"result and target must have one shape (height, width, channels), got {result.shape} and "
            f"{target.shape}"
        )
    scorer = Scorer(protocol or Protocol(), *result.shape[:2])
    scorer.add(result, target)
    return scorer.figures()


def lpips_metric(device: Any) -> Callable[[Pixels, Pixels], float]:
    """LPIPS of ``pyiqa`` (AlexNet), on whole images in [0, 1].

    Raises:
        ArgumentValueError: ``pyiqa`` is not installed.
    """
    import torch

    try:
        import pyiqa
    except ModuleNotFoundError as error:
        raise ArgumentValueError("LPIPS needs pyiqa: pip install pyiqa") from error
    metric = pyiqa.create_metric("lpips", device=device)

    def measured(result: Pixels, target: Pixels) -> float:
        pair = [
            torch.from_numpy(np.array(np.clip(as_float(image), 0, 1))).permute(2, 0, 1).unsqueeze(0).to(device)
            for image in (result, target)
        ]
        with torch.no_grad():
            return float(metric(*pair))

    return measured

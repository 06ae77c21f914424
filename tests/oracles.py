"""What the tests compare with: loops over positions in float64, slow and obvious, straight from design §3.

They are written with torch so that autograd differentiates them too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

# Largest relative error by dtype; float16 and bfloat16 results are one rounding away from the truth.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Moments = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """``actual`` has ``dtype`` (its own if None) and is ``expected`` (float64) to the tolerance of that dtype."""
    dtype = dtype or actual.dtype
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype]
    # Values that cancel are only as right as the largest around them.
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.double(), expected, rtol=tolerance, atol=tolerance * max(1.0, largest), equal_nan=True
    )


def reference_window(i: int, n: int, k: int) -> slice:
    """``[s, s + k')`` with ``k' = min(k, n)`` and ``s = clamp(i - (k' - 1)//2, 0, n - k')``."""
    k = min(k, n)
    start = i - (k - 1) // 2
    start = max(start, 0)
    start = min(start, n - k)
    return slice(start, start + k)


def outline_inside(top: int, left: int, k: tuple[int, int], height: int, width: int) -> float:
    """Of the pixels along a window's four sides, corners twice, the share of those sides that are not the map's."""
    sides = {(top > 0): k[1]}, {(top + k[0] < height): k[1]}, {(left > 0): k[0]}, {(left + k[1] < width): k[0]}
    return sum(side.get(True, 0) for side in sides) / (2 * (k[0] + k[1]))


def reference_at_every_position(
    of_window: Callable[[Tensor, int, int], Tensor], x: Tensor, window: tuple[int, int]
) -> Tensor:
    """``out[:, :, i, j] = of_window(crop, i', j')``: the crop is the position's window, and it lies at (i', j')."""
    height, width = x.shape[2:]
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            tall, wide = reference_window(i, height, window[0]), reference_window(j, width, window[1])
            row.append(of_window(x[:, :, tall, wide], i - tall.start, j - wide.start))
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def reference_on_crops(layer: Callable[[Tensor], Tensor], x: Tensor, window: tuple[int, int]) -> Tensor:
    """A global layer made local: at each position, the layer on the crop that is this position's window.

    The layer's result has the size of the crop, or one position.
    """

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        out = layer(crop)
        return out[:, :, 0, 0] if out.shape[2:] == (1, 1) else out[:, :, i, j]

    return reference_at_every_position(of_window, x, window)


def reference_local_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """``mean = sum(crop) / (number of its positions)``."""

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        return crop.sum((2, 3)) / (crop.shape[2] * crop.shape[3])

    return reference_at_every_position(of_window, x.double(), window)


def reference_local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``var = sum((crop - mean)²) / (number of its positions)``, and the mean."""

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        size = crop.shape[2] * crop.shape[3]
        mean = crop.sum((2, 3), keepdim=True) / size
        return (crop - mean).square().sum((2, 3)) / size

    return reference_at_every_position(of_window, x.double(), window), reference_local_mean(x, window)


def reference_local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correct: Moments = lambda var, mean, share: (var, mean),
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias``, moments over the crop and the channels of a group.

    ``correct`` maps a window's variance and mean, each (N, num_groups), before they are used; it is told the share
    of the window's outline that lies inside the map.
    """
    batch, channels = x.shape[:2]
    height, width = x.shape[2:]
    k = min(window[0], height), min(window[1], width)
    starts = [
        [reference_window(i, n, size).start for i in range(n)] for n, size in zip((height, width), k, strict=True)
    ]
    shares = iter([outline_inside(top, left, k, height, width) for top in starts[0] for left in starts[1]])

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        groups = crop.reshape(batch, num_groups, channels // num_groups, *crop.shape[2:])
        size = channels // num_groups * crop.shape[2] * crop.shape[3]
        mean = groups.sum((2, 3, 4)) / size
        var = (groups - mean[:, :, None, None, None]).square().sum((2, 3, 4)) / size
        var, mean = correct(var, mean, next(shares))
        here = groups[:, :, :, i, j]
        return ((here - mean[:, :, None]) / (var[:, :, None] + eps).sqrt()).reshape(batch, channels)

    out = reference_at_every_position(of_window, x.double(), window)
    if weight is not None:
        out = out * weight.double()[:, None, None]
    if bias is not None:
        out = out + bias.double()[:, None, None]
    return out


def reference_local_instance_norm(
    x: Tensor,
    window: tuple[int, int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correct: Moments = lambda var, mean, share: (var, mean),
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias``, moments over the crop."""
    return reference_local_group_norm(x, window, x.shape[1], weight, bias, eps, correct)


def reference_strided_mean(
    x: Tensor,
    window: tuple[int, int],
    stride: int,
    correct: Moments = lambda var, mean, share: (var, mean),
) -> Tensor:
    """Means of the windows that start at 0, r, 2r, … and n − k; a position, whose own window starts at ``s``,
    reads ``(1 - t)·below + t·above`` with ``t = (s - start below) / (start above - start below)``, on each axis.
    """
    x = x.double()
    height, width = x.shape[2:]
    k = min(window[0], height), min(window[1], width)

    def readings(n: int, k: int) -> list[list[tuple[int, float]]]:
        """For each position, the evaluated windows that it reads, by their start, and each one's share."""
        starts = [*range(0, n - k, stride), n - k]
        out = []
        for i in range(n):
            s = reference_window(i, n, k).start
            below = max(start for start in starts if start <= s)
            above = min(start for start in starts if start >= s)
            t = (s - below) / (above - below) if above > below else 0.0
            out.append([(start, share) for start, share in ((below, 1 - t), (above, t)) if share > 0])
        return out

    def mean_from(top: int, left: int) -> Tensor:
        mean = x[:, :, top : top + k[0], left : left + k[1]].sum((2, 3)) / (k[0] * k[1])
        return correct(mean, mean, outline_inside(top, left, k, height, width))[1]

    out = []
    for down in readings(height, k[0]):
        for across in readings(width, k[1]):
            terms = [a * b * mean_from(top, left) for top, a in down for left, b in across]
            out.append(torch.stack(terms).sum(0))
    return torch.stack(out, dim=-1).reshape(x.shape)


def reference_large_var_mean(x: np.ndarray, window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Local variance and mean of one large plane (H, W) in float64, from ``scipy.ndimage.uniform_filter``.

    scipy's window of ``k`` around ``c`` starts at ``c - k//2``, so the window that starts at ``s`` is read at
    ``s + k//2``. ``var = mean(y²) - mean(y)²`` with ``y = x - (mean of the plane)``, so that nothing cancels.
    """
    plane = x.astype(np.float64)
    centre = plane.mean()
    plane = plane - centre
    k = tuple(min(size, n) for size, n in zip(window, plane.shape, strict=True))
    read = np.ix_(
        *(
            np.array([reference_window(i, n, size).start + size // 2 for i in range(n)])
            for n, size in zip(plane.shape, k, strict=True)
        )
    )
    mean = scipy.ndimage.uniform_filter(plane, size=k)[read]
    second = scipy.ndimage.uniform_filter(plane * plane, size=k)[read]
    return second - mean * mean, mean + centre

"""Local statistics on the CPU: the host's side of the kernels, from tensors to planes and threads.

A NaN or Inf stays in a column's sum once it is in, and so shows at the end of a plane: that plane is computed again
by :mod:`tlsc._statistics.reference`.

Planes, or bands of rows where planes are few, are shared out among threads by :mod:`.threads` (the kernels
release the GIL) and not among Numba's own: those do not survive a fork, and take longer to compile. How a plane is
cut depends on its size alone, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ..._windows import Axis, Windows, before
from .. import reference as _reference
from ..correction import NOTHING, Correction
from . import kernels
from .kernels import Affine, Correcting, Readings, Size
from .threads import share_out

__all__ = [
    "grid_means",
    "grid_moments",
    "local_group_norm",
    "local_mean",
    "local_var_mean",
    "meet",
    "why_not",
    "why_unusable",
]

OPERATIONS = {"take": 0, "mul": 1, "add": 2, "sub": 3}


def why_unusable() -> str | None:
    """Why the kernels cannot run here."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined,unused-ignore]
        return "NUMBA_DISABLE_JIT is set, and without compilation Python itself would run the kernels"
    return None


def why_not(x: Tensor) -> str | None:
    """Why this tensor cannot be taken."""
    return None if x.device.type == "cpu" else f"runs on the CPU, and the tensor is on {x.device}"


# The same to the compiler as one that is wanted.
_NOT_WANTED = Correcting(False, np.array([NOTHING]), np.zeros(1), np.zeros(1))
# Elements of a staged piece.
STAGED = 2**22


def _bands(planes: int, lines: int, rows: int) -> int:
    """Bands into which a plane's lines are cut: more than one where planes are few and starting one is cheap."""
    if planes >= 12:
        return 1
    return max(1, min(-(-16 // planes), lines // 16, max(-(-4 // planes), 2 * lines // rows)))


# ------------------------------------------------------------------------------------------- from tensors to planes


def _over(
    x: Tensor, outs: list[Tensor], run: Callable[[Tensor, list[Tensor], int], list[int]], spare: Callable[..., Any]
) -> None:
    """``run(planes, outs, first)`` on all planes of (N, K, …), at once or copied piece by piece.

    Half types and maps that are not contiguous are copied. ``run`` returns the planes that are spoiled;
    ``spare(planes, first)`` gives their results.
    """
    dtype = _work_dtype(x)
    if x.dtype == dtype and x.is_contiguous() and all(o.is_contiguous() and o.dtype == dtype for o in outs):
        _on_planes(x, outs, run, spare, 0)
        return
    batch, kept = x.shape[:2]
    step = max(16 if x.stride(1) == 1 else 1, STAGED // math.prod(x.shape[2:]))
    images = max(1, step // kept)
    for n in range(0, batch, images):
        for k in range(0, kept, step):
            at = (slice(n, n + images), slice(k, min(k + step, kept)))
            results = [torch.empty(o[at].shape, dtype=dtype) for o in outs]
            _on_planes(x[at].to(dtype).contiguous(), results, run, spare, n * kept + k)
            for o, result in zip(outs, results, strict=True):
                o[at] = result


def _on_planes(
    x: Tensor,
    outs: list[Tensor],
    run: Callable[[Tensor, list[Tensor], int], list[int]],
    spare: Callable[..., Any],
    first: int,
) -> None:
    planes = x.view(-1, *x.shape[2:])
    flat = [o.view(-1, *o.shape[2:]) for o in outs]
    for p in run(planes, flat, first):
        again = spare(planes[p : p + 1], first + p)
        for o, value in zip(flat, again, strict=True):
            o[p] = value[0]


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty(x: Tensor) -> Tensor:
    """An output in the shape and memory format of ``x``."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty(
        x.shape, dtype=x.dtype, memory_format=torch.channels_last if last else torch.contiguous_format
    )


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _clipped(window: tuple[int, int], x: Tensor) -> tuple[int, int]:
    return min(window[0], x.shape[-2]), min(window[1], x.shape[-1])


def _spoiled(flags: np.ndarray, planes: int) -> list[int]:
    return np.flatnonzero(flags.reshape(planes, -1).any(1)).tolist() if flags.any() else []


def _statistics(
    x: Tensor, outs: list[Tensor], window: tuple[int, int], placed: bool, correction: Correction | None = None
) -> None:
    """Means into ``outs[0]`` and variances into ``outs[1]``, if it is there, of (N, K, H, W) or (N, K, D, H, W)."""
    rows, columns = _clipped(window, x)
    moments = len(outs) > 1

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        stack = planes.reshape(len(planes), -1, *planes.shape[-2:])
        bands = _bands(len(stack), flat[0].shape[1], rows)
        spoiled = np.zeros(len(stack) * bands, np.bool_)
        means, variances = flat[0].numpy(), flat[-1].numpy()
        own = _from_plane(correcting, first)
        args: tuple[Any, ...] = (stack.numpy(), Size(rows, columns), moments, placed, own, bands)
        results = [part.numpy() for part in flat]
        share_out(kernels.slide, (*args, means, variances, spoiled), len(spoiled), planes.numel(), results)
        return _spoiled(spoiled, len(stack))

    def spare(planes: Tensor, first: int) -> tuple[Tensor, ...]:
        maps, own = planes.unsqueeze(0), _of_plane(correction, first % x.shape[1])
        if moments:
            var, mean = _reference.grid_moments(maps, window, 1, own)
        else:
            var = mean = _reference.grid_means(maps, window, 1, own)
        if placed:
            var, mean = (_reference.place(value, window, 1, *x.shape[-2:]) for value in (var, mean))
        return (mean[0], var[0])[: len(outs)]

    correcting = _correcting(correction, x.shape[0], _sizes(x), (rows, columns), 1)
    _over(x, outs, run, spare)


def _of_plane(correction: Correction | None, channel: int) -> Correction | None:
    return None if correction is None else correction.planes(slice(channel, channel + 1))


def _correcting(
    correction: Correction | None, batch: int, sizes: tuple[int, int], window: tuple[int, int], stride: int
) -> Correcting:
    """A correction for the planes of ``batch`` images of these sizes; maybe one that is not wanted, and then
    without an entry for each of them."""
    if correction is None:
        return _NOT_WANTED
    coefficients = np.tile(correction.rows.detach().double().numpy().T, (batch, 1))
    return Correcting(True, np.ascontiguousarray(coefficients), *_weights(sizes, window, stride))


def _from_plane(correcting: Correcting, first: int) -> Correcting:
    """That of the planes from ``first`` on."""
    return correcting._replace(coefficients=correcting.coefficients[first:]) if correcting.wanted else correcting


@lru_cache(256)
def _weights(sizes: tuple[int, int], window: tuple[int, int], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract for each row of windows, and from what for each column: the outline inside the map."""
    (rows, columns), outline = window, 2 * (window[0] + window[1])
    down, across = (Axis(n, k, stride).ends() for n, k in zip(sizes, window, strict=True))
    return down * columns / outline, 1 - across * rows / outline


def _on_grid(
    x: Tensor, outs: list[Tensor], window: tuple[int, int], stride: int, correction: Correction | None = None
) -> None:
    """As :func:`_statistics`, of the windows on the grid of ``stride``."""
    rows, columns = _clipped(window, x)
    tops, lefts = _starts(x.shape[-2], rows, stride), _starts(x.shape[-1], columns, stride)
    moments = len(outs) > 1

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        stack = planes.reshape(len(planes), -1, *planes.shape[-2:])
        spoiled = np.zeros(len(stack), np.bool_)
        means, variances = flat[0].numpy(), flat[-1].numpy()
        own = _from_plane(correcting, first)
        args: tuple[Any, ...] = (stack.numpy(), tops, lefts, Size(rows, columns), moments, own)
        share_out(kernels.grid, (*args, means, variances, spoiled), len(stack), planes.numel())
        return _spoiled(spoiled, len(stack))

    def spare(planes: Tensor, first: int) -> tuple[Tensor, ...]:
        own = _of_plane(correction, first % x.shape[1])
        if moments:
            var, mean = _reference.grid_moments(planes.unsqueeze(0), window, stride, own)
            return mean[0], var[0]
        return (_reference.grid_means(planes.unsqueeze(0), window, stride, own)[0],)

    correcting = _correcting(correction, x.shape[0], _sizes(x), (rows, columns), stride)
    _over(x, outs, run, spare)


@lru_cache(256)
def _starts(n: int, k: int, stride: int) -> np.ndarray:
    """Where the evaluated windows of an axis start."""
    return np.asarray(Axis(n, k, stride).evaluated, np.int64)


@lru_cache(256)
def _readings(n: int, k: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """For each position the evaluated windows on either side of its own (n, 2), and the second one's share."""
    below, above, share = Axis(n, k, stride).between()
    return np.stack([below, above], 1), share


# --------------------------------------------------------------------------------- what the dispatcher calls


def local_mean(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.local_mean`."""
    out = _empty(x)
    if stride == 1:
        _statistics(x, [out], window, True, correction)
        return out
    grid = _new_grid(x, window, stride, _work_dtype(x))
    _on_grid(x, [grid], window, stride, correction)
    return _met(x, grid, window, stride, "take", out)


def local_var_mean(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.local_var_mean`."""
    mean, var = _empty(x), _empty(x)
    _statistics(x, [mean, var], window, True)
    return var, mean


def local_group_norm(
    x: Tensor,
    window: tuple[int, int],
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    correction: Correction | None = None,
) -> Tensor:
    """As :func:`tlsc._reference.local_group_norm`."""
    rows, columns = _clipped(window, x)
    depth = x.shape[1] // num_groups
    affine = _affine(weight, bias, num_groups, depth, eps)
    correcting = _correcting(correction, 1, _sizes(x), (rows, columns), 1)

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        bands = _bands(len(planes), planes.shape[2], rows)
        spoiled = np.zeros(len(planes) * bands, np.bool_)
        turn = first % num_groups  # a piece may begin in the middle of an image
        own, scaled = _turned(correcting, affine, turn) if turn else (correcting, affine)
        result = flat[0].numpy()
        args = (planes.numpy(), Size(rows, columns), scaled, own, bands, result, spoiled)
        share_out(kernels.norm, args, len(spoiled), planes.numel(), [result])
        return _spoiled(spoiled, len(planes))

    def spare(planes: Tensor, first: int) -> tuple[Tensor, ...]:
        group = first % num_groups
        part = slice(group * depth, (group + 1) * depth)
        scaled, moved = (None if values is None else values[part] for values in (weight, bias))
        corrected = _of_plane(correction, group)
        return (_reference.local_group_norm(planes, window, 1, scaled, moved, eps, corrected),)

    out = _empty(x)
    split, split_out = (torch.unflatten(maps, 1, (num_groups, depth)) for maps in (x, out))
    _over(split, [split_out], run, spare)
    return out


def _affine(weight: Tensor | None, bias: Tensor | None, groups: int, depth: int, eps: float) -> Affine:
    scale, offset = (
        np.full((groups, depth), default)
        if given is None
        else given.detach().double().reshape(groups, depth).contiguous().numpy()
        for given, default in ((weight, 1.0), (bias, 0.0))
    )
    return Affine(scale, offset, float(eps))


def _turned(correcting: Correcting, affine: Affine, turn: int) -> tuple[Correcting, Affine]:
    """Both for planes that begin with group ``turn``."""
    weight, bias, coefficients = (
        np.ascontiguousarray(np.roll(values, -turn, 0))
        for values in (affine.weight, affine.bias, correcting.coefficients)
    )
    own = correcting._replace(coefficients=coefficients) if correcting.wanted else correcting
    return own, affine._replace(weight=weight, bias=bias)


def grid_means(x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None) -> Tensor:
    """As :func:`tlsc._reference.grid_means`."""
    out = _new_grid(x, window, stride, x.dtype)
    if stride == 1:
        _statistics(x, [out], window, False, correction)
    else:
        _on_grid(x, [out], window, stride, correction)
    return out


def grid_moments(
    x: Tensor, window: tuple[int, int], stride: int = 1, correction: Correction | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`tlsc._reference.grid_moments`."""
    mean, var = (_new_grid(x, window, stride, x.dtype) for _ in range(2))
    if stride == 1:
        _statistics(x, [mean, var], window, False, correction)
    else:
        _on_grid(x, [mean, var], window, stride, correction)
    return var, mean


def meet(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str) -> Tensor:
    """As :func:`tlsc._reference.meet`."""
    return _met(x, grid, window, stride, operation, _empty(x))


def _new_grid(x: Tensor, window: tuple[int, int], stride: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((*x.shape[:2], *Windows.of(_sizes(x), window, stride).grid), dtype=dtype)


def _met(x: Tensor, grid: Tensor, window: tuple[int, int], stride: int, operation: str, out: Tensor) -> Tensor:
    rows, columns = _clipped(window, x)
    dtype = _work_dtype(x)
    number = np.float64 if dtype == torch.float64 else np.float32
    down, down_share = _readings(x.shape[2], rows, stride)
    across, across_share = _readings(x.shape[3], columns, stride)
    down_share, across_share = down_share.astype(number), across_share.astype(number)
    left = before(columns) if stride == 1 else -1
    readings = Readings(down, down_share, across, across_share, left)
    grid = grid.detach()
    values = grid.reshape(-1, *grid.shape[2:])

    def run(planes: Tensor, flat: list[Tensor], first: int) -> list[int]:
        part = values[first : first + len(planes)].to(dtype).contiguous()
        result = flat[0].numpy()
        args = (OPERATIONS[operation], planes.numpy(), part.numpy(), readings, result)
        share_out(kernels.meet, args, len(planes), planes.numel(), [result])
        return []

    _over(x, [out], run, lambda *_: ())
    return out

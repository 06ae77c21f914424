"""Non-local means in plain PyTorch, one shift at a time, forward and backward.

Half of the shifts only: the distance of p to p + s is the distance of p + s to p. Patches are summed by additions
alone, from sums of 1, 2, 4, … elements, so that the cost depends on the logarithm of the patch, equal patches have
distance exactly 0, and a NaN stays where it is. ``weight · (neighbour − x)`` is added up, so that a constant image
stays exactly what it is. Views are added to in place: ``x[part] += y`` would copy the part onto itself afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tlsc.adapters.nlm.geometry import over_channels

__all__ = ["backward", "forward"]

STRIP_ROWS = 128


def forward(
    x: Tensor,
    y: Tensor,
    rate: Tensor,
    search: int,
    patch: int,
    power: int,
    floor: float,
    num: Tensor,
    den: Tensor,
) -> None:
    for pair in _pairs(y, rate, search, patch, power, floor):
        step = x[pair.q] - x[pair.p]
        num[pair.p].addcmul_(pair.weight_p.unsqueeze(1), step)
        num[pair.q].addcmul_(pair.weight_q.unsqueeze(1), step, value=-1)
        den[pair.p].add_(pair.weight_p)
        den[pair.q].add_(pair.weight_q)


def backward(
    x: Tensor,
    y: Tensor,
    rate: Tensor,
    search: int,
    patch: int,
    power: int,
    floor: float,
    g: Tensor,
    g_mean: Tensor,
    needs_image: bool,
    grad_x: Tensor,
    grad_y: Tensor,
    grad_h: Tensor,
) -> None:
    half = patch // 2
    for pair in _pairs(y, rate, search, patch, power, floor):
        g_p, g_q = g[pair.p], g[pair.q]
        step = x[pair.q] - x[pair.p]
        from_p = ((g_p * step).sum(1) - g_mean[pair.p]) * pair.weight_p
        from_q = (-(g_q * step).sum(1) - g_mean[pair.q]) * pair.weight_q
        grad_h[pair.p].addcmul_(from_p, pair.measure)
        grad_h[pair.q].addcmul_(from_q, pair.measure)
        if not needs_image:
            continue
        grad_x[pair.q].addcmul_(pair.weight_p.unsqueeze(1), g_p)
        grad_x[pair.p].addcmul_(pair.weight_q.unsqueeze(1), g_q)
        flow = from_p * pair.rate_p + from_q * pair.rate_q
        # Of d^power, divided by what the luma's differences are to be multiplied by.
        flow = torch.where(pair.measure == 0, 0.0, flow / pair.measure if power == 1 else 2 * flow)
        flow = _box_sums(torch.nn.functional.pad(flow, (2 * half,) * 4), patch)
        flow = flow.unsqueeze(1)
        grad_y[pair.wide_p].addcmul_(flow, pair.difference, value=-1)
        grad_y[pair.wide_q].addcmul_(flow, pair.difference)


class _Pair(NamedTuple):
    """All positions p and their neighbours q = p + shift, for one shift: where they are, and what weighs them."""

    p: tuple[Any, ...]
    q: tuple[Any, ...]
    wide_p: tuple[Any, ...]  # the same with half a patch around them
    wide_q: tuple[Any, ...]
    difference: Tensor  # of the guide, wide_p minus wide_q
    measure: Tensor  # d^power
    rate_p: Tensor
    rate_q: Tensor
    weight_p: Tensor  # of q in the mean at p
    weight_q: Tensor  # of p in the mean at q


def _pairs(y: Tensor, rate: Tensor, search: int, patch: int, power: int, floor: float) -> Iterator[_Pair]:
    """Half of the shifts but zero. Both p and q lie inside the image, or one does, or (in corners) neither."""
    radius, half = search // 2, patch // 2
    margin = radius + half
    height, width = y.shape[2:]
    is_map = rate.shape[1:] != (1, 1)
    strip = STRIP_ROWS if y.device.type == "cpu" else height  # planes that fit the cache
    shifts = [(dy, dx) for dy in range(radius + 1) for dx in range(-radius if dy else 1, radius + 1)]
    for first in range(half, height - margin, strip):
        for dy, dx in shifts:
            low, high = max(first, margin - dy), min(first + strip, height - margin)
            if low >= high:
                continue
            box = (low, high, margin - max(dx, 0), width - margin + max(-dx, 0))
            p, q = _box(box), _box(box, dy, dx)
            wide_p, wide_q = _box(box, grow=half), _box(box, dy, dx, grow=half)
            difference = y[wide_p] - y[wide_q]
            measure = _box_sums(over_channels(difference.square()), patch)
            if floor:
                measure = measure.sub_(floor).clamp_min_(0)
            if power == 1:
                measure = measure.sqrt_()
            rate_p = rate[p] if is_map else rate
            weight_p = (measure * rate_p).neg_().exp_()
            rate_q = rate[q] if is_map else rate
            weight_q = (measure * rate_q).neg_().exp_() if is_map else weight_p
            yield _Pair(p, q, wide_p, wide_q, difference, measure, rate_p, rate_q, weight_p, weight_q)


def _box(box: tuple[int, int, int, int], dy: int = 0, dx: int = 0, grow: int = 0) -> tuple[Any, ...]:
    top, bottom, left, right = box
    return (..., slice(top + dy - grow, bottom + dy + grow), slice(left + dx - grow, right + dx + grow))


def _box_sums(x: Tensor, size: int) -> Tensor:
    """Sums over all ``size × size`` boxes inside."""
    return _window_sums(_window_sums(x, size, -2), size, -1)


def _window_sums(x: Tensor, size: int, dim: int) -> Tensor:
    """Sums over all windows of ``size`` along ``dim``, from sums of 1, 2, 4, … elements: additions alone."""
    count = x.shape[dim] - size + 1
    total, done, length = None, 0, 1
    while True:
        if size & length:
            part = x.narrow(dim, done, count)
            total = part if total is None else total + part
            done += length
        if done == size and total is not None:
            return total
        x = x.narrow(dim, 0, x.shape[dim] - length) + x.narrow(dim, length, x.shape[dim] - length)
        length *= 2

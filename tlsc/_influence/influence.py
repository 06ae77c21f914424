"""How far input pixels reach, measured on the network itself, and the module that lets them in.

Two measurements at the output's centre: the gradient with respect to every input pixel, and the change when
everything beyond a distance is replaced. Both run on a private copy in float64, so that zeros are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._arguments import as_pair, as_positive_int, shown
from ..errors import ArgumentTypeError, ArgumentValueError, ProbeError, TLSCError
from .healing import Found, find
from .network import CHANGE_ZERO, Counted, Network, in_copy, in_double, in_place
from .result import Array, Influence

__all__ = ["Influence", "influence"]

_GRADIENT_ZERO = {torch.float64: 1e-12}
"""Relative to the largest gradient: what is rounding."""
FLOAT32_ROUNDING = 1e-6


def influence(
    model: nn.Module,
    size: int | tuple[int, int],
    *,
    example_input: Any = None,
    radius: int | tuple[int, int] | None = None,
    output: int | Callable[[Any], Tensor] | None = None,
    samples: int = 2,
    seed: int = 0,
    exact: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Influence:
    """Measure how far input pixels reach, and name the module that lets them reach too far.

    The model is run on noise and its output is measured, so every dependence shows, also one that
    :func:`tlsc.plan` does not know. The model itself is not changed: a copy in float64 runs in evaluation mode
    and without hooks. (If it cannot be copied, or cannot run in float64, the original runs as it is, and is
    restored afterwards.)

    Args:
        model: a model from images to images, converted or not.
        size: of the input in pixels, an int or (height, width). Three windows are enough to name what is still
            global. Windows of successive layers add up, so a larger size may be needed to see where a converted
            network's influence ends. This takes about thirty forward passes.
        example_input: the call arguments, as for :func:`tlsc.convert`. Images in it that are not constant are
            used as they are. The first one is what distances count in.
        radius: pixels of the input, an int or (vertical, horizontal), up to which influence is in order, such as
            half the window plus the receptive field; None: up to just before the border.
        output: which output: an index among its tensors, or a function from what the model returns to a tensor
            (N, C, H, W); None: the first tensor that is a map.
        samples: random inputs, each with its own combination of output channels, so that no influence hides
            behind a cancellation or an inactive unit.
        seed: of all that is random.
        exact: measure in float64, so that zeros are exact. False: measure in the model's own precision, which
            is several times faster, and use float64 only if the responsible module is uncertain.
        progress: called after each forward pass with the number of passes done.

    Returns:
        An :class:`Influence`: arrays over distance, ``reach``, ``far``, ``culprit``; a table when printed, and
        ``draw(path)`` for a picture.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used, or the output holds no such map.
        ProbeError: the model cannot be run at ``size``, or what comes out at the centre is not finite.

    Source: the gradient by distance is the effective receptive field of Luo, Li, Urtasun, Zemel, "Understanding
    the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016, arXiv 1701.04128.

    Example:
        >>> from torch import nn
        >>> import tlsc
        >>> gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        >>> class Gated(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.gate = nn.Conv2d(3, 4, 3, padding=1), gate
        ...     def forward(self, image):
        ...         x = self.conv(image)
        ...         return x * self.gate(x)
        >>> model = Gated()
        >>> before = tlsc.influence(model, 32)
        >>> before.reach, before.far, str(before.culprit)
        (16, True, 'gate.0 (AdaptiveAvgPool2d)')
        >>> after = tlsc.influence(tlsc.convert(model, 8), 32)
        >>> after.reach, after.far, after.culprit
        (5, False, None)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ProbeError(f"{type(model).__name__} has lazy layers: run it once on an image, then measure it")
    pair = as_pair(size, "size")
    if min(pair) < 3:
        raise ArgumentValueError(f"size must be at least 3 pixels on each axis, got {pair[0]}×{pair[1]}")
    allowed = None if radius is None else as_pair(radius, "radius")
    samples = as_positive_int(samples, "samples")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentTypeError(f"seed must be an int, got {shown(seed)}")
    if not (output is None or callable(output) or (isinstance(output, int) and not isinstance(output, bool))):
        raise ArgumentTypeError(f"output must be an index or a function, got {shown(output)}")

    counted = Counted(progress)
    given = pair, example_input, output, seed, counted
    failures: list[Exception] = []
    for setting in (in_double, in_copy, in_place) if exact else (in_copy, in_double, in_place):
        with ExitStack() as stack:
            try:
                worker = stack.enter_context(setting(model))
                network = Network(worker, *given)
            except TLSCError:
                raise
            except Exception as error:
                failures.append(error)
                continue

            def in_doubt() -> Found:
                """Who looks far, in float64 and with a sample more."""
                with in_double(model) as double:
                    return find(Network(double, *given), allowed, samples + 1)

            return _measure(network, allowed, samples, None if exact else in_doubt)
    failed = failures[-1]
    lines = str(failed).strip().splitlines()
    raise ProbeError(
        f"the model failed on an input of {pair[0]}×{pair[1]} ({type(failed).__name__}: "
        f"{lines[0] if lines else 'no message'}); choose a size that it takes, or check what example_input gives "
        "it: a tensor, a tuple, or a function (height, width) -> args"
    ) from failed


def _measure(
    network: Network, radius: tuple[int, int] | None, samples: int, in_doubt: Callable[[], Found] | None
) -> Influence:
    changes = _Changes(network, samples)
    maps = [network.gradient(leaves, sample) for sample, leaves in enumerate(changes.near)]
    known = [one for one in maps if one is not None]
    gradient = sum(known, np.zeros(network.size)) / len(known) if known else np.full(network.size, np.nan)
    rows, columns = (abs(np.arange(n) - c) for n, c in zip(network.size, network.centre, strict=True))
    reach = _reach(network, gradient, (rows, columns), changes)

    rings = np.maximum(rows[:, None], columns[None, :])
    counts = np.bincount(rings.ravel())
    largest = np.zeros(len(counts))
    with np.errstate(invalid="ignore"):  # NaN where the model has no gradient
        np.maximum.at(largest, rings.ravel(), gradient.ravel())
    distances = _distances(len(counts) - 1, max(reach))

    limit = radius if radius is not None else (network.border[0] - 1, network.border[1] - 1)
    far = reach[0] > limit[0] or reach[1] > limit[1]
    change = np.asarray([changes.beyond(step, step) for step in distances])
    sources, culprit = find(network, radius, samples) if far else ((), None)
    if far and culprit is None and in_doubt is not None and (_felt(change) or _felt(largest)):
        # What cannot be copied or run in float64 is answered in its own precision.
        with suppress(Exception):
            sources, culprit = in_doubt()
    return Influence(
        size=network.size,
        centre=(network.centre[0], network.centre[1]),
        distance=np.arange(len(counts)),
        gradient_max=largest,
        gradient_mean=np.bincount(rings.ravel(), gradient.ravel()) / counts,
        gradient_map=gradient,
        change_distance=np.asarray(distances),
        change=change,
        reach_per_axis=reach,
        radius=radius,
        far=far,
        sources=sources,
        culprit=culprit,
        dtype=network.dtype,
    )


def _felt(by_distance: Array) -> bool:
    """Whether what is measured at the largest distance is more than rounding in float32; NaN: not known."""
    return not by_distance[-1] <= FLOAT32_ROUNDING * by_distance.max()


class _Changes:
    """How much the output's centre changes when all that is far is replaced."""

    def __init__(self, network: Network, samples: int) -> None:
        self.network = network
        self.near = [network.near(sample) for sample in range(samples)]
        self.base = [network.at_centre(leaves) for leaves in self.near]

    def beyond(self, vertical: int, horizontal: int) -> float:
        """The largest change, if all beyond these distances on either axis is replaced."""
        out = 0.0
        for sample, leaves in enumerate(self.near):
            other = self.network.at_centre(self.network.replaced(leaves, sample, vertical, horizontal))
            out = max(out, float((other - self.base[sample]).abs().max()))
        return out


def _reach(
    network: Network, gradient: Array, offsets: tuple[NDArray[np.int64], NDArray[np.int64]], changes: _Changes
) -> tuple[int, int]:
    """The largest distance with influence on each axis."""
    influential = gradient > _GRADIENT_ZERO.get(network.dtype, 1e-9) * gradient.max()
    reach = [int(np.max(one[influential.any(1 - axis)], initial=0)) for axis, one in enumerate(offsets)]
    least = changes.beyond(-1, -1) * CHANGE_ZERO[network.dtype]
    for axis in (0, 1):
        # Where gradients vanish (inactive units, maxima) the change tells more.
        low, high = reach[axis], network.farthest[axis]
        while low < high:
            at = (low + high) // 2 if low > reach[axis] else low
            pair = (at, network.size[1]) if axis == 0 else (network.size[0], at)
            if changes.beyond(*pair) <= least:
                high = at
            else:
                low = at + 1
        reach[axis] = high
    return reach[0], reach[1]


def _distances(farthest: int, reach: int) -> list[int]:
    """The distances that the table shows: evenly in factors, and the reach itself."""
    steps = {0, farthest - 1, *np.geomspace(1, max(1, farthest - 1), 9).round().astype(int).tolist()}
    steps |= {reach} if reach < farthest else set()
    return sorted(step for step in steps if 0 <= step < farthest)

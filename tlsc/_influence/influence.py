"""How far input pixels reach, measured on the network itself, and the module that lets them in.

Two measurements at the output's centre: the gradient with respect to every input pixel, and the change when
everything beyond a distance is replaced. Both run on a private copy in float64, so that zeros are zeros.

The module is found by *healing*. The network runs on one input, and then on another that differs only far from
the centre. In the second run the inputs and outputs of every module are put back, in a region around the centre, to
what they were in the first. What a convolution lets creep inwards is so undone before the next layer adds to it,
however deep the network is; a layer whose centre changes nevertheless has looked at the far part by itself.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .._arguments import as_pair, as_positive_int, shown
from .._models.copies import cloned, structure_of
from .._models.undisturbed import OwnNumbers, python_numbers_kept
from .._surgery import probe as _probe
from ..errors import ArgumentTypeError, ArgumentValueError, ProbeError, TLSCError, needing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Influence", "Source", "influence"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A module by which far pixels reach the centre of its map.

    Attributes:
        path: as in ``model.named_modules()``; empty for the model itself.
        operation: the name of its class.
        own_code: whether it has modules inside, so that it is its own ``forward`` that looks far, not one of them.
    """

    path: str
    operation: str
    own_code: bool

    def __str__(self) -> str:
        inside = ", in its own forward" if self.own_code else ""
        return f"{self.path or '(the model)'} ({self.operation}{inside})"


@dataclass(frozen=True, eq=False)
class Influence:
    """How the centre of a model's output depends on the input, by distance; prints as a table.

    Distances are those of the larger axis (Chebyshev), in pixels of the input, from the pixel under the centre
    of the output.

    Attributes:
        size: (height, width) of the input in pixels.
        centre: (row, column) of the input pixel from which distances count.
        distance: 0, 1, …, up to the farthest pixel.
        gradient_max, gradient_mean: over the pixels at each distance, the magnitude of the gradient, summed over
            input channels, of a random unit combination of the output's channels; mean of the samples. In units
            of the output per unit of the input. NaN where the model has no gradient.
        gradient_map: the same for every pixel, (height, width).
        change_distance: the distances of ``change``.
        change: the largest change of an output channel when everything farther away than that is replaced, in
            units of the output.
        reach_per_axis: the largest vertical and the largest horizontal distance of a pixel with influence.
        radius: (vertical, horizontal) what the caller allowed; None: anything short of the border.
        far: whether the influence goes beyond ``radius``, or to the border.
        sources: the modules that by themselves let far pixels reach the centre of their maps, in the order in
            which a forward pass reaches them; empty if not ``far``. One that cuts its map into parts may be
            listed beside the one inside it.
        culprit: the first of them from which a change arrives at the output. None if not ``far``, or if no single
            module reaches so far: then windows and receptive fields add up, and nothing global is left.
        dtype: what the measurement was done in. In float64 zeros are exact; otherwise culprits with a weak effect
            may be missed.
    """

    size: tuple[int, int]
    centre: tuple[int, int]
    distance: NDArray[np.int64]
    gradient_max: Array
    gradient_mean: Array
    gradient_map: Array
    change_distance: NDArray[np.int64]
    change: Array
    reach_per_axis: tuple[int, int]
    radius: tuple[int, int] | None
    far: bool
    sources: tuple[Source, ...]
    culprit: Source | None
    dtype: torch.dtype

    @property
    def reach(self) -> int:
        """The largest distance of a pixel with influence."""
        return max(self.reach_per_axis)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python data, ready for JSON (NaN becomes None), without the map."""

        def plain(values: NDArray[Any]) -> list[Any]:
            return [None if value != value else value for value in values.tolist()]

        return {
            "size": self.size,
            "centre": self.centre,
            "reach": self.reach,
            "reach_per_axis": self.reach_per_axis,
            "radius": self.radius,
            "far": self.far,
            "culprit": None if self.culprit is None else vars(self.culprit).copy(),
            "sources": [vars(source).copy() for source in self.sources],
            "distance": plain(self.distance),
            "gradient_max": plain(self.gradient_max),
            "gradient_mean": plain(self.gradient_mean),
            "change_distance": plain(self.change_distance),
            "change": plain(self.change),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def __str__(self) -> str:
        from tabulate import tabulate

        height, width = self.size
        rows = []
        for index, low in enumerate(self.change_distance.tolist()):
            last = index + 1 == len(self.change_distance)
            high = int(self.distance[-1]) if last else int(self.change_distance[index + 1])
            ring = slice(low + 1, high + 1)
            rows.append(
                (
                    f"> {low}",
                    _number(self.change[index]),
                    f"{low + 1}–{high}" if high > low + 1 else str(high),
                    _number(self.gradient_max[ring].max()),
                    _number(self.gradient_mean[ring].mean()),
                )
            )
        names = ["replaced, px", "change at centre", "ring, px", "gradient, largest", "gradient, mean"]
        table = tabulate(rows, headers=names, disable_numparse=True, stralign="right")
        lines = [
            f"influence on the centre of the output, input {height}×{width} pixels, "
            f"{str(self.dtype).removeprefix('torch.')}",
            self.summary(),
            "",
            *(line.rstrip() for line in table.splitlines()),
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        """One or two lines: how far, whether that is too far, and who does it."""
        vertical, horizontal = self.reach_per_axis
        text = f"reach {self.reach} pixels (rows {vertical}, columns {horizontal}): "
        if not self.far:
            return text + ("short of the border" if self.radius is None else f"within {_pair(self.radius)}")
        text += "up to the border" if self.radius is None else f"beyond {_pair(self.radius)}"
        if self.culprit is None:
            text += "\nno module by itself looks so far: windows and receptive fields add up. "
            return text + "A larger input shows where they end"
        text += f"\nfar influence first comes from {self.culprit}"
        others = [str(source) for source in self.sources if source != self.culprit]
        if others:
            more = f", and {len(others) - 4} more" if len(others) > 4 else ""
            text += "\nalso looking far: " + "; ".join(others[:4]) + more
        return text

    def draw(
        self,
        path: str | os.PathLike[str],
        *,
        before: Influence | None = None,
        labels: tuple[str, str] = ("before", "after"),
    ) -> None:
        """Write a picture: change and gradient against distance, and the gradient of every pixel.

        Args:
            path: the file; its ending says the format, PNG for instance.
            before: drawn with it, the same network before converting for instance.
            labels: what to call ``before`` and this one.

        Raises:
            MissingPackageError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        _draw(path, [(labels[0], before), (labels[1], self)] if before is not None else [("", self)])


def influence(
    model: nn.Module,
    size: int | tuple[int, int],
    *,
    example_input: Any = None,
    radius: int | tuple[int, int] | None = None,
    output: int | Callable[[Any], Tensor] | None = None,
    samples: int = 2,
    seed: int = 0,
) -> Influence:
    """Measure how far input pixels reach, and name the module that lets them reach too far.

    The model is asked, not its code: whatever aggregates over the whole image shows, also what :func:`tlsc.plan`
    does not know. The model itself is not touched: a copy in float64 runs in evaluation mode and without hooks,
    on noise. (Where it cannot be copied, or not run in float64, it runs as it is, and is put back.)

    Args:
        model: a model from images to images, converted or not.
        size: of the input in pixels, an int or (height, width). Three windows are enough to name what is still
            global; windows one behind the other add up, so it takes more to see where a converted network ends.
            The time is that of some thirty forward passes.
        example_input: the call arguments, as for :func:`tlsc.convert`. Images in it that are not constant are
            used as they are. The first one is what distances count in.
        radius: pixels of the input, an int or (vertical, horizontal), up to which influence is in order, such as
            half the window plus the receptive field; None: up to just before the border.
        output: which output: an index among its tensors, or a function from what the model returns to a tensor
            (N, C, H, W); None: the first tensor that is a map.
        samples: random inputs, each with its own combination of output channels, so that no influence hides
            behind a cancellation or an inactive unit.
        seed: of all that is random.

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

    failures: list[Exception] = []
    for setting in (_in_double, _in_copy, _in_place):
        with ExitStack() as stack:
            try:
                worker = stack.enter_context(setting(model))
                network = _Network(worker, pair, example_input, output, seed)
            except TLSCError:
                raise
            except Exception as error:
                failures.append(error)
                continue
            return _measure(network, allowed, samples)
    failed = failures[-1]
    lines = str(failed).strip().splitlines()
    raise ProbeError(
        f"the model failed on an input of {pair[0]}×{pair[1]} ({type(failed).__name__}: "
        f"{lines[0] if lines else 'no message'}); choose a size that it takes, or check what example_input gives "
        "it: a tensor, a tuple, or a function (height, width) -> args"
    ) from failed


# ------------------------------------------------------------------------------------------ a model to run


@contextmanager
def _in_double(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in float64; plain tensor attributes too, where weight norm keeps its result."""
    made = _copied(model).double()
    for module in made.modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                module.__dict__[name] = value.detach().double()
    with _probe.undisturbed(made):
        yield made


@contextmanager
def _in_copy(model: nn.Module) -> Iterator[nn.Module]:
    made = _copied(model)
    with _probe.undisturbed(made):
        yield made


@contextmanager
def _in_place(model: nn.Module) -> Iterator[nn.Module]:
    with python_numbers_kept():
        yield structure_of(model, cloned).model


def _copied(model: nn.Module) -> nn.Module:
    attributes = (value for module in model.modules() for value in module.__dict__.values())
    results = {id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and not t.is_leaf}
    made = copy.deepcopy(model, results)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


class _Network:
    """A model with its inputs: the images among them can be filled with noise, near and far."""

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        example_input: Any,
        output: int | Callable[[Any], Tensor] | None,
        seed: int,
    ) -> None:
        self.model = model
        self.output = output
        self.seed = seed
        self.dtype = _probe._first_floating(model).dtype
        if not any(tensor.is_floating_point() for tensor in (*model.parameters(), *model.buffers())):
            self.dtype = torch.float64
        failures = []
        for inputs in _probe.inputs_of(model, example_input, size):
            args = tree_map(self._cast, inputs(*size))
            try:
                self._lay_out(args, size)
                return
            except TLSCError:
                raise
            except Exception as error:
                failures.append(error)
        raise failures[0]

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(self.dtype)
        return value

    def _lay_out(self, args: _probe.Arguments, size: tuple[int, int]) -> None:
        self.leaves, self.spec = tree_flatten(args)
        self.images = [index for index, leaf in enumerate(self.leaves) if _is_image(leaf, size)]
        if not self.images:
            raise ArgumentValueError(f"example_input gives no image, a floating tensor (N, C, H, W), at {size}")
        first = self.leaves[self.images[0]]
        self.size = int(first.shape[-2]), int(first.shape[-1])
        self.batch = int(first.shape[0])
        with torch.no_grad():
            out = self._forward(self.near(0))
        rows, columns = out.shape[-2:]
        self.place = rows // 2, columns // 2
        self.centre = tuple(
            _under(at, n, m) for at, n, m in zip(self.place, (rows, columns), self.size, strict=True)
        )
        self.border = (
            min(self.centre[0], self.size[0] - 1 - self.centre[0]),
            min(self.centre[1], self.size[1] - 1 - self.centre[1]),
        )
        self.farthest = tuple(max(c, n - 1 - c) for c, n in zip(self.centre, self.size, strict=True))

    # ------------------------------------------------------------------------------------------- inputs

    def near(self, sample: int) -> list[Any]:
        """The leaves of the call's arguments, constant images filled with noise."""
        random = np.random.default_rng([self.seed % 2**32, sample, 0])
        leaves = list(self.leaves)
        for index in self.images:
            image = self.leaves[index]
            if image.min() == image.max():
                leaves[index] = _noise(image, random, 0.3, 0.25)
        return leaves

    def replaced(self, leaves: list[Any], sample: int, vertical: int, horizontal: int) -> list[Any]:
        """All that is farther away than that, on either axis, becomes brighter noise of another contrast."""
        random = np.random.default_rng([self.seed % 2**32, sample, 1])
        out = list(leaves)
        for index in self.images:
            image = leaves[index]
            low, high = float(image.min()), float(image.max())
            other = low + (high - low) * _noise(image, random, 0.7, 0.5)
            rows, columns = self._offsets(image)
            far = (abs(rows)[:, None] > vertical) | (abs(columns)[None, :] > horizontal)
            out[index] = torch.where(torch.from_numpy(far).to(image.device), other, image)
        return out

    def _offsets(self, image: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of an image, counted from the centre in pixels of the first image."""
        vertical, horizontal = (
            np.asarray([_under(at, n, m) for at in range(n)]) - c
            for n, m, c in zip(image.shape[-2:], self.size, self.centre, strict=True)
        )
        return vertical, horizontal

    # ------------------------------------------------------------------------------------------ running

    def at_centre(self, leaves: list[Any]) -> Tensor:
        """The output's channels at its centre."""
        with torch.no_grad():
            out = self._forward(leaves)[..., self.place[0], self.place[1]].clone()
        if not out.isfinite().all():
            raise ProbeError("the output at the centre is not finite on noise in [0, 1]: give an example_input")
        return out

    def gradient(self, leaves: list[Any], sample: int) -> Array | None:
        """Magnitude per pixel of the gradient of one combination of the channels at the centre."""
        random = np.random.default_rng([self.seed % 2**32, sample, 2])
        leaves = list(leaves)
        for index in self.images:
            leaves[index] = leaves[index].detach().clone().requires_grad_()
        images = [leaves[index] for index in self.images]
        try:
            with torch.enable_grad():
                # A model may change its input in place, which a leaf refuses.
                call = [leaf * 1 if index in self.images else leaf for index, leaf in enumerate(leaves)]
                value = self._forward(call)[..., self.place[0], self.place[1]]
                weights = torch.from_numpy(random.standard_normal(tuple(value.shape))).to(value)
                grads: tuple[Tensor | None, ...] = torch.autograd.grad(
                    (value * weights / weights.norm()).sum(), images, allow_unused=True
                )
        except (RuntimeError, NotImplementedError):
            return None
        total = np.zeros(self.size)
        for image, grad in zip(images, grads, strict=True):
            if grad is None:
                continue
            rows, columns = self._offsets(image)
            magnitude = grad.detach().abs().double().flatten(0, -3).sum(0).cpu().numpy()
            np.add.at(total, (rows[:, None] + self.centre[0], columns[None, :] + self.centre[1]), magnitude)
        return total

    def call(self, leaves: list[Any]) -> Any:
        with OwnNumbers(self.seed % 2**63):  # for a network that draws noise itself: the same in every run
            return _probe.called(self.model, tree_unflatten(leaves, self.spec))

    def _forward(self, leaves: list[Any]) -> Tensor:
        return self.select(self.call(leaves))

    def select(self, returned: Any) -> Tensor:
        if callable(self.output):
            chosen: Tensor | None = self.output(returned)
            if not _is_map(chosen):
                what = tuple(chosen.shape) if isinstance(chosen, Tensor) else type(chosen).__name__
                raise ArgumentValueError(f"output must choose a map (N, C, H, W), it returned {what}")
            return chosen
        tensors = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        if self.output is None:
            chosen = next((tensor for tensor in tensors if _is_map(tensor)), None)
        else:
            chosen = tensors[self.output] if -len(tensors) <= self.output < len(tensors) else None
        if not _is_map(chosen):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
            asked = "" if self.output is None else f" at output={self.output}"
            raise ArgumentValueError(
                f"the model returns no map (N, C, H, W){asked}; its tensors: {shapes}. "
                "Choose with output: an index, or a function from what it returns to a map"
            )
        return chosen


def _is_map(value: Any) -> TypeGuard[Tensor]:
    return (
        isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 3 and min(value.shape[-2:]) > 1
    )


def _is_image(value: Any, size: tuple[int, int]) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
        return False
    return (value.dim() == 4 and min(value.shape[-2:]) > 1) or (
        value.dim() in (3, 5) and tuple(value.shape[-2:]) == size
    )


def _under(at: int, n: int, m: int) -> int:
    """The position on an axis of length ``m`` that lies under the middle of position ``at`` of ``n``."""
    return min(m - 1, (2 * at + 1) * m // (2 * n))


def _noise(like: Tensor, random: np.random.Generator, mean: float, contrast: float) -> Tensor:
    """Noise in [0, 1] whose mean differs from channel to channel."""
    channels = random.uniform(mean - 0.1, mean + 0.1, (*like.shape[:-2], 1, 1))
    return torch.from_numpy(channels + contrast * (random.random(tuple(like.shape)) - 0.5)).clamp_(0, 1).to(like)


# ------------------------------------------------------------------------------------------------ measuring

# Relative to the largest. Sums that run over a map leave rounding errors where there is no influence.
_GRADIENT_ZERO = {torch.float64: 1e-12}
_CHANGE_ZERO = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def _measure(network: _Network, radius: tuple[int, int] | None, samples: int) -> Influence:
    near = [network.near(sample) for sample in range(samples)]
    base = [network.at_centre(leaves) for leaves in near]

    def change(vertical: int, horizontal: int) -> float:
        out = 0.0
        for sample, leaves in enumerate(near):
            other = network.at_centre(network.replaced(leaves, sample, vertical, horizontal))
            out = max(out, float((other - base[sample]).abs().max()))
        return out

    maps = [network.gradient(leaves, sample) for sample, leaves in enumerate(near)]
    known = [one for one in maps if one is not None]
    gradient = sum(known, np.zeros(network.size)) / len(known) if known else np.full(network.size, np.nan)
    rows, columns = (abs(np.arange(n) - c) for n, c in zip(network.size, network.centre, strict=True))
    influential = gradient > _GRADIENT_ZERO.get(network.dtype, 1e-9) * gradient.max()
    reach = [int(np.max(offsets[influential.any(axis)], initial=0)) for offsets, axis in ((rows, 1), (columns, 0))]

    least = change(-1, -1) * _CHANGE_ZERO[network.dtype]
    for axis in (0, 1):
        # Where gradients vanish (inactive units, maxima) the change tells more.
        low, high = reach[axis], network.farthest[axis]
        while low < high:
            at = (low + high) // 2 if low > reach[axis] else low
            changed = change(at, network.size[1]) if axis == 0 else change(network.size[0], at)
            if changed <= least:
                high = at
            else:
                low = at + 1
        reach[axis] = high

    rings = np.maximum(rows[:, None], columns[None, :])
    counts = np.bincount(rings.ravel())
    largest = np.zeros(len(counts))
    with np.errstate(invalid="ignore"):  # NaN where the model has no gradient
        np.maximum.at(largest, rings.ravel(), gradient.ravel())
    farthest = len(counts) - 1
    steps = {0, farthest - 1, *np.geomspace(1, max(1, farthest - 1), 9).round().astype(int).tolist()}
    steps |= {max(reach)} if max(reach) < farthest else set()
    distances = sorted(step for step in steps if 0 <= step < farthest)

    limit = radius if radius is not None else (network.border[0] - 1, network.border[1] - 1)
    far = reach[0] > limit[0] or reach[1] > limit[1]
    sources: tuple[Source, ...] = ()
    culprit = None
    if far:
        sources, culprit = _find(network, radius, samples)
    return Influence(
        size=network.size,
        centre=(network.centre[0], network.centre[1]),
        distance=np.arange(len(counts)),
        gradient_max=largest,
        gradient_mean=np.bincount(rings.ravel(), gradient.ravel()) / counts,
        gradient_map=gradient,
        change_distance=np.asarray(distances),
        change=np.asarray([change(step, step) for step in distances]),
        reach_per_axis=(reach[0], reach[1]),
        radius=radius,
        far=far,
        sources=sources,
        culprit=culprit,
        dtype=network.dtype,
    )


# --------------------------------------------------------------------------------------- finding the module


def _find(
    network: _Network, radius: tuple[int, int] | None, samples: int
) -> tuple[tuple[Source, ...], Source | None]:
    """The modules that look far, and the first whose view arrives at the output."""
    third = max(1, network.size[0] // 3), max(1, network.size[1] // 3)
    # The wider the region, the surer that a part of the image (a half, a quarter) has its middle inside.
    regions = [third] if radius is None or radius == third else [third, radius]
    for region in regions:
        for sample in range(samples):
            near = network.near(sample)
            far = network.replaced(near, sample, *region)
            healer = _Healer(network, region)
            before = healer.record(near)
            found = healer.heal(far)

            def arrives(source: Source, whole: bool, healer: _Healer = healer, near: list[Any] = near) -> bool:
                return healer.differs(before, healer.inject(near, *found[source], whole))  # noqa: B023

            for source in found:
                if arrives(source, whole=False):
                    # Of a map cut into parts, the middle of a part need not be what the output's centre sees.
                    inner = [one for one in found if one.path.startswith(f"{source.path}.".lstrip("."))]
                    inside = (one for one in inner if one != source and arrives(one, whole=True))
                    return tuple(found), next(inside, source)
    return (), None


@dataclass
class _Seen:
    """What a tensor was in the first run: near the centre, and in the middle of that."""

    region: Tensor
    middle: Tensor


class _Healer:
    """Runs a network with an eye on what goes into and comes out of every module.

    Each entry to a module and each return from it is an event; they come in the same order in every run.
    """

    def __init__(self, network: _Network, region: tuple[int, int]) -> None:
        self.network = network
        self.region = region
        self.zero = _CHANGE_ZERO[network.dtype]
        self.events: list[tuple[nn.Module, list[_Seen | None]]] = []
        self.paths: dict[int, list[str]] = {}
        for path, module in network.model.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), []).append(path)

    def record(self, leaves: list[Any]) -> Tensor:
        """The first run; returns the output at the centre."""

        def look(module: nn.Module, values: Any) -> Any:
            self.events.append((module, [self._seen(leaf) for leaf in tree_leaves(values)]))
            return values

        return self._run(leaves, look, look)

    def heal(self, leaves: list[Any]) -> dict[Source, tuple[int, list[Any]]]:
        """The second run. Returns who looked far: at which event first, and what there was then."""
        stack: list[tuple[nn.Module, str]] = []
        found: dict[Source, tuple[int, list[Any]]] = {}
        count = 0

        def put_back(module: nn.Module, values: Any, blamed: tuple[nn.Module, str] | None) -> Any:
            nonlocal count
            event, count = count, count + 1
            flat, spec = tree_flatten(values)
            if event >= len(self.events) or self.events[event][0] is not module:
                return values  # the run took another way than the first
            seen = self.events[event][1]
            if len(seen) != len(flat):
                return values
            now = [self._seen(leaf) for leaf in flat]
            changed = any(map(self._changed, seen, now))
            if changed and blamed is not None:
                at, path = blamed
                source = Source(path, _name(at), next(at.children(), None) is not None)
                if source not in found:
                    found[source] = event, [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
            flat = [
                leaf if was is None or one is None else self._with(leaf, was.region)
                for leaf, was, one in zip(flat, seen, now, strict=True)
            ]
            return tree_unflatten(flat, spec)

        def enter(module: nn.Module, values: Any) -> Any:
            caller = stack[-1] if stack else None
            values = put_back(module, values, caller)
            stack.append((module, self._path(module, caller)))
            return values

        def leave(module: nn.Module, values: Any) -> Any:
            while stack and stack[-1][0] is not module:  # left by an exception that someone caught
                stack.pop()
            return put_back(module, values, stack.pop() if stack else None)

        self._run(leaves, enter, leave)
        return found

    def inject(self, leaves: list[Any], event: int, others: list[Any], whole: bool) -> Tensor:
        """The output at the centre of a run that is the first one but for the values at one event.

        ``whole``: these are all of ``others``; else what is near the centre in them.
        """
        count = 0

        def change(module: nn.Module, values: Any) -> Any:
            nonlocal count
            count += 1
            flat, spec = tree_flatten(values)
            if count - 1 != event or len(flat) != len(others):
                return values
            if whole:
                return tree_unflatten([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in others], spec)
            seen = [self._seen(leaf) for leaf in others]
            pairs = zip(flat, seen, strict=True)
            return tree_unflatten(
                [leaf if new is None else self._with(leaf, new.region) for leaf, new in pairs], spec
            )

        return self._run(leaves, change, change)

    def differs(self, one: Tensor, other: Tensor) -> bool:
        """Whether values differ by more than rounding."""
        if one.shape != other.shape:
            return True
        if not (one.is_floating_point() or one.is_complex()):
            return not torch.equal(one, other)
        if one.numel() == 0:
            return False
        return bool((one - other).abs().max() > self.zero * torch.maximum(one.abs().max(), other.abs().max()))

    def _run(
        self,
        leaves: list[Any],
        enter: Callable[[nn.Module, Any], Any],
        leave: Callable[[nn.Module, Any], Any],
    ) -> Tensor:
        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return enter(module, (args, kwargs))

        def after(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> Any:
            return leave(module, returned)

        handles = []
        try:
            for module in self.network.model.modules():
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
            with torch.no_grad():
                copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                returned = self.network.call(copies)
        finally:
            for handle in handles:
                handle.remove()
        row, column = self.network.place
        return self.network.select(returned)[..., row, column].clone()

    def _path(self, module: nn.Module, caller: tuple[nn.Module, str] | None) -> str:
        """Of a module with several paths, the one under its caller."""
        paths = self.paths.get(id(module), ["?"])
        under = f"{caller[1]}." if caller is not None and caller[1] else ""
        return next((path for path in paths if path.startswith(under)), paths[0])

    # ------------------------------------------------------------------------------ tensors and their positions

    def _seen(self, leaf: Any) -> _Seen | None:
        found = self._positions(leaf)
        if found is None:
            return None
        view, region, middle = found
        return _Seen(view[region].clone(), view[middle].clone())

    def _changed(self, was: _Seen | None, now: _Seen | None) -> bool:
        """Whether the middle has; where positions cannot be told, it has not."""
        return was is not None and now is not None and self.differs(was.middle, now.middle)

    def _with(self, leaf: Tensor, region: Tensor) -> Tensor:
        """A tensor with another central region, in place where that can be."""
        view, index, _ = self._positions(leaf)  # type: ignore[misc]
        if view[index].shape != region.shape or torch.equal(view[index], region):
            return leaf
        try:
            view[index] = region
        except RuntimeError:  # elements that share memory
            leaf = leaf.clone(memory_format=torch.contiguous_format)
            view, index, _ = self._positions(leaf)  # type: ignore[misc]
            view[index] = region
        return leaf

    def _positions(self, leaf: Any) -> tuple[Tensor, Any, Any] | None:
        """A view of a tensor with the indices of its central region and of the middle of that.

        Where there are no positions (a gate, a vector) both are everything. None where it is not clear which axes
        are positions: such a tensor passes unseen, and the next one tells.
        """
        if not isinstance(leaf, Tensor) or leaf.numel() == 0 or leaf.layout != torch.strided:
            return None
        shape, batch = leaf.shape, self.network.batch
        height, width = self.network.size
        everything = leaf, (...,), (...,)
        view = leaf
        if leaf.dim() < 2:
            return everything if leaf.numel() <= 1 or shape[0] == batch else None
        if leaf.dim() == 2:
            return everything if shape[0] == batch else None
        if leaf.dim() == 3:
            for axis in sorted((1, 2), key=lambda axis: -shape[axis]):
                grid = self._grid(shape[axis]) if shape[0] == batch else None
                if grid is not None:
                    view = leaf.view(*shape[:axis], *grid, *shape[axis + 1 :])
                    first = axis
                    break
            else:
                if self._fits(shape[1], shape[2]) and min(shape[1:]) > 1:
                    first = 1
                else:
                    return everything if shape[0] == batch else None
        elif leaf.dim() == 4:
            first = 1 if self._fits(shape[1], shape[2]) and not self._fits(shape[2], shape[3]) else 2
            if shape[2] == shape[3] == 1:
                return everything if shape[0] == batch else None
            area = shape[first] * shape[first + 1]
            if shape[0] != batch and shape[0] * area <= batch * height * width:
                return None  # an image cut into windows, which went to the batch
        elif leaf.dim() == 5 and self._fits(shape[3], shape[4]) and min(shape[3:]) > 1:
            first = 3
        else:
            return None
        region, middle = [], []
        for n, m, c, reach in zip(
            view.shape[first : first + 2], self.network.size, self.network.centre, self.region, strict=True
        ):
            at = _under(c, m, n)
            spread = min(reach * n // m, at - 1, n - 2 - at)  # the outermost positions stay as they are
            spread = max(0, spread)
            region.append(slice(at - spread, at + spread + 1))
            inner = min(1, spread // 2)
            middle.append(slice(at - inner, at + inner + 1))
        before = (slice(None),) * first
        return view, (*before, *region), (*before, *middle)

    def _fits(self, rows: int, columns: int) -> bool:
        """Whether a map of this size has the shape of the image, but for rounding."""
        height, width = self.network.size
        return abs(rows * width - columns * height) <= 2 * max(height, width)

    def _grid(self, length: int) -> tuple[int, int] | None:
        """The map whose positions, one after the other, have this length: the image scaled down evenly."""
        height, width = self.network.size
        rows = round((length * height / width) ** 0.5)
        if rows < 2 or length % rows or length // rows < 2:
            return None
        exact = rows * width == (length // rows) * height and height % rows == 0
        return (rows, length // rows) if exact else None


def _name(module: nn.Module) -> str:
    return str(getattr(module, "original_name", type(module).__name__))


# ------------------------------------------------------------------------------------------------- showing


def _number(value: float) -> str:
    if value != value:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def _pair(pair: tuple[int, int]) -> str:
    return f"{pair[0]} pixels" if pair[0] == pair[1] else f"{pair[0]} rows and {pair[1]} columns"


_COLOURS = ("#b5482a", "#0b6fb8")


def _draw(path: str | os.PathLike[str], shown: list[tuple[str, Influence]]) -> None:
    with needing("eval", "a picture of the influence"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(6.2 + 3.6 * (1 + len(shown)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 + len(shown), width_ratios=[1.25, 1.25, *[1] * len(shown)])
    colours = _COLOURS[-len(shown) :]
    for colour, (label, one) in zip(colours, shown, strict=True):
        name = f"{label}: reach {one.reach}".removeprefix(": ")
        _curve(panels[0], one.change_distance, one.change, colour, name, one, "o")
        _curve(panels[1], one.distance, one.gradient_mean, colour, f"{label} mean".strip(), one, "")
        panels[1].plot(one.distance, _positive(one.gradient_max), color=colour, linewidth=0.9, linestyle=":")
    panels[0].set_ylabel("largest change at the centre, units of the output")
    panels[0].set_title("everything farther away replaced", fontsize=10)
    panels[1].set_ylabel("gradient magnitude, output per input unit")
    panels[1].set_title("gradient: mean (dotted: largest) of each ring", fontsize=10)
    for axes in panels[:2]:
        axes.set_yscale("log")
        axes.set_xlabel("distance from the centre, pixels")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.where(one.gradient_map > 0, np.log10(one.gradient_map), np.nan) for _, one in shown]
    finite = [float(np.nanmax(log)) for log in logs if np.isfinite(log).any()]
    top = max(finite, default=0.0)
    picture: Any = None
    for axes, (label, one), log in zip(panels[2:], shown, logs, strict=True):
        axes.set_facecolor("#dddddd")
        rows, columns = one.centre
        height, width = one.size
        extent = (-columns - 0.5, width - columns - 0.5, height - rows - 0.5, -rows - 0.5)
        picture = axes.imshow(log, vmin=top - 9, vmax=top, cmap="magma", extent=extent, interpolation="nearest")
        axes.set_title(f"{label} (grey: none)".strip(), fontsize=10)
        axes.set_xlabel("columns from the centre, pixels")
    panels[2].set_ylabel("rows from the centre, pixels")
    figure.colorbar(picture, ax=list(panels[2:]), label="log10 of the gradient's magnitude", shrink=0.8)
    height, width = shown[0][1].size
    said = [f"{label}: {one.culprit}".removeprefix(": ") for label, one in shown if one.culprit is not None]
    note = f"; far influence from {'; '.join(said)}" if said else ""
    figure.suptitle(f"Influence on the centre of the output, input {height}×{width} pixels{note}", fontsize=11)
    figure.savefig(path, dpi=110)


def _curve(
    axes: Axes, x: NDArray[np.int64], y: Array, colour: str, label: str, one: Influence, marker: str
) -> None:
    axes.plot(x, _positive(y), color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)
    axes.axvline(one.reach, color=colour, linestyle="--", linewidth=1)


def _positive(values: Array) -> Array:
    """What a logarithmic axis can show: zeros and rounding errors become gaps."""
    top = np.nanmax(values, initial=0.0)
    return np.where(values > 1e-12 * top, values, np.nan)

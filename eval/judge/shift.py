"""``tlsc shift``: how far the statistics at a network's sites move from training crops to whole images.

This is the paper's explanation of why results get worse on whole images (Chu et al., ECCV 2022, section 3),
measured on the user's own network and images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tlsc
from tlsc._internal.statistics import corrected_mean, corrected_var, takes_the_map
from tlsc.errors import ArgumentValueError
from tlsc.eval.run.cells import calibrated

if TYPE_CHECKING:
    from tlsc import Plan, Site
    from tlsc._plan import Fit
    from tlsc.eval.data.datasets import Dataset
    from tlsc.eval.networks import Network

__all__ = ["CALIBRATED", "CONDITIONS", "Samples", "Shift", "distance", "measure", "shifts", "site_name", "watching"]

CONDITIONS = ("crops", "whole, global", "whole, local")
"""Crops of the training size; whole images as the network as trained sees them; as the converted one does."""
CALIBRATED = "whole, calibrated"
"""As :func:`tlsc.calibrate` corrects them."""
_GRID = 4
"""Windows on each axis that stand for all windows of a whole image."""


@dataclass
class Samples:
    """Statistics at a site: (samples, channels) each.

    Attributes:
        mean: over a map, or a window of it.
        std: biased, likewise.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """How far one statistic of one site is from what it is on training crops.

    Attributes:
        site: its path; sites at one path are numbered.
        statistic: "mean" or "standard deviation".
        whole: distance on whole images, as trained.
        local: distance on whole images, converted.
        noise: distance between two halves of the crops: what is left where nothing differs.
        calibrated: distance on whole images, converted and calibrated; None if that was not asked for.
    """

    site: str
    statistic: str
    whole: float
    local: float
    noise: float
    calibrated: float | None = None


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Wasserstein distance of each channel's samples, in standard deviations of ``one``, averaged over channels.

    Args:
        one: (samples, channels), the reference.
        other: (samples, channels).

    Example:
        >>> crops = np.random.default_rng(0).normal(size=(500, 2))
        >>> round(distance(crops, crops + 3 * crops.std(0)), 6)
        3.0
    """
    from scipy.stats import wasserstein_distance

    found = []
    for a, b in zip(one.T, other.T, strict=True):
        spread = float(a.std())
        moved = float(wasserstein_distance(a, b))
        # A channel that never varies on crops has no unit; its own size is the next best.
        found.append(moved / (spread or abs(float(a.mean())) or 1.0))
    return float(np.mean(found))


# -------------------------------------------------------------------------------------------------- what is seen


class _Maps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the maps of which a statistic over all positions is taken."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if takes_the_map(func, args, kwargs):
            self.seen.append(args[0])
        return func(*args, **kwargs)


@contextmanager
def watching(
    model: nn.Module, plan: Plan, classes: dict[str, type[nn.Module]]
) -> Iterator[dict[int, list[Tensor]]]:
    """The maps that reach the sites of a plan while the model runs, by the site's number in the plan.

    A site that is a module of its own is watched. One inside a ``forward`` that was rewritten is seen by running
    the original ``forward`` beside it, on the same arguments.

    Args:
        model: as trained or converted.
        plan: of the model.
        classes: the owners' classes before the model was converted, by path.
    """
    maps: dict[int, list[Tensor]] = defaultdict(list)
    own: dict[str, list[int]] = defaultdict(list)
    called: dict[str, list[tuple[nn.Module, Any]]] = defaultdict(list)
    with ExitStack() as stack:
        for number, site in enumerate(plan):
            if not site.converted:
                continue
            if site.owner is not None:
                own[site.owner].append(number)
            if site.owner != site.path:
                module = model.get_submodule(site.path)
                if site.owner is not None and type(model.get_submodule(site.owner)) is not classes[site.owner]:
                    called[site.owner].append((module, _keep(maps[number])))  # by the original forward alone
                else:
                    stack.callback(module.register_forward_pre_hook(_keep(maps[number])).remove)
        for path, numbers in own.items():
            inside = [maps[number] for number in numbers if plan[number].path == path]
            module = model.get_submodule(path)
            replayed = type(module) is not classes[path]
            if inside or replayed:
                hook = _replay(classes[path], inside, called[path])
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield maps


def _keep(maps: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim() == 4:
            maps.append(args[0])

    return hook


def _replay(original: type[nn.Module], inside: list[list[Tensor]], called: list[tuple[nn.Module, Any]]) -> Any:
    """Runs the original ``forward``, whose modules have hooks meanwhile: a local form takes none of those."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _Maps() as seen, ExitStack() as stack:
            for part, keep in called:
                stack.callback(part.register_forward_pre_hook(keep).remove)
            original.forward(module, *args, **kwargs)
        # In the order of the calls, which is the plan's.
        for maps, found in zip(inside, seen.seen, strict=False):
            maps.append(found)

    return hook


def _statistics(x: Tensor, window: tuple[int, int] | None, fit: Fit | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased standard deviation over a map, or over windows evenly spread over it: (samples, channels).

    ``fit``: the correction that they pass through, where it has one for each channel.
    """
    parts = [x]
    share = torch.ones(1, 1)
    if window is not None:
        k = [min(n, size) for n, size in zip(window, x.shape[2:], strict=True)]
        starts = [
            sorted({round(i * (n - size) / (_GRID - 1)) for i in range(_GRID)})
            for n, size in zip(x.shape[2:], k, strict=True)
        ]
        parts = [x[..., top : top + k[0], left : left + k[1]] for top in starts[0] for left in starts[1]]
        ends = [
            [(start == 0) + (start == n - size) for start in own]
            for own, n, size in zip(starts, x.shape[2:], k, strict=True)
        ]
        touched = [k[1] * down + k[0] * across for down in ends[0] for across in ends[1]]
        share = 1 - torch.tensor(touched).repeat_interleave(len(x)).unsqueeze(1) / (2 * (k[0] + k[1]))
    found = [torch.var_mean(part.double(), dim=(2, 3), correction=0) for part in parts]
    variance, mean = (torch.cat(values).cpu() for values in zip(*found, strict=True))
    if fit is not None and fit.kept and len(fit.coefficients[0]) == mean.shape[1]:
        rows = torch.tensor(fit.coefficients, dtype=torch.float64)
        mean, variance = corrected_mean(torch, rows, mean, share), corrected_var(torch, rows, variance, mean, share)
    return mean, variance.sqrt()


def measure(
    network: Network,
    data: Dataset,
    base_size: Any,
    crop: int,
    crops: int = 8,
    seed: int = 0,
    progress: Any = iter,
    calibrate: bool = False,
) -> tuple[Plan, dict[int, dict[str, Samples]]]:
    """The statistics at all sites that become local, under each of ``CONDITIONS``, by the site's number.

    Args:
        network: as trained; it is converted and reverted.
        data: the inputs of its pairs are used.
        base_size: window at the input in pixels.
        crop: side of the training crops in pixels.
        crops: how many of them from each image, at random.
        seed: of their places.
        progress: wraps the pairs, which are gone through twice, or three times.
        calibrate: also after calibrating on the first four inputs: a fourth condition, ``CALIBRATED``.

    Raises:
        ArgumentValueError: nothing becomes local.
    """
    model = network.model
    plan = tlsc.plan(model, base_size)
    if not plan.converted:
        raise ArgumentValueError(f"{network.name}: no site becomes local, so there is nothing to compare")
    owners = {site.owner for site in plan if site.owner is not None}
    classes = {path: type(model.get_submodule(path)) for path in owners}
    found: dict[int, dict[str, list[tuple[Tensor, Tensor]]]] = defaultdict(lambda: defaultdict(list))
    with torch.no_grad(), watching(model, plan, classes) as maps:
        for pair in progress(data.pairs):
            image = _tensor(data, pair)
            for top, left in _places(image, crop, crops, seed, pair.name):
                network(image[..., top : top + crop, left : left + crop])
                _collect(found, maps, "crops", None)
            network(image)
            _collect(found, maps, "whole, global", None)
    with torch.no_grad(), tlsc.converted(model, base_size), watching(model, plan, classes) as maps:
        for pair in progress(data.pairs):
            network(_tensor(data, pair))
            _collect(found, maps, "whole, local", plan)
    if calibrate:
        images = [_tensor(data, pair) for pair in data.pairs[:4]]
        with torch.no_grad(), tlsc.converted(model, base_size):
            plan = calibrated(network, images, crop, seed)
            with watching(model, plan, classes) as maps:
                for pair in progress(data.pairs):
                    network(_tensor(data, pair))
                    _collect(found, maps, CALIBRATED, plan)
    samples = {n: {name: _joined(values) for name, values in own.items()} for n, own in sorted(found.items())}
    return plan, samples


def _tensor(data: Dataset, pair: Any) -> Tensor:
    from tlsc.eval.images import as_float

    given, _ = data.load(pair)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(as_float(given), 2, 0))).unsqueeze(0)


def _places(image: Tensor, crop: int, crops: int, seed: int, name: str) -> list[tuple[int, int]]:
    from tlsc.eval.data.synthesis import generator

    rng = generator(seed, f"crops of {name}")
    high, wide = (max(0, n - crop) for n in image.shape[2:])
    return [(int(rng.integers(high + 1)), int(rng.integers(wide + 1))) for _ in range(crops)]


def _collect(found: Any, maps: dict[int, list[Tensor]], condition: str, plan: Plan | None) -> None:
    for number, seen in maps.items():
        site = None if plan is None else plan[number]
        for x in seen:
            found[number][condition].append(
                _statistics(x, None, None) if site is None else _statistics(x, site.window, site.fit)
            )
        seen.clear()


def _joined(values: Sequence[tuple[Tensor, Tensor]]) -> Samples:
    mean, std = (torch.cat(parts).numpy() for parts in zip(*values, strict=True))
    return Samples(mean, std)


def shifts(plan: Plan, samples: dict[int, dict[str, Samples]]) -> list[Shift]:
    """Distances from the training crops, two for each site."""
    found = []
    for number, own in samples.items():
        crops = own["crops"]
        for statistic, name in (("mean", "mean"), ("std", "standard deviation")):
            reference, whole, local = (getattr(own[condition], statistic) for condition in CONDITIONS)
            noise = distance(reference[::2], reference[1::2]) if len(crops.mean) > 3 else float("nan")
            moved = distance(reference, whole), distance(reference, local)
            corrected = distance(reference, getattr(own[CALIBRATED], statistic)) if CALIBRATED in own else None
            found.append(Shift(site_name(plan, number), name, *moved, noise, corrected))
    return found


def site_name(plan: Plan, number: int) -> str:
    site: Site = plan[number]
    same = [n for n, other in enumerate(plan) if other.path == site.path]
    path = site.path or "(the model)"
    return path if len(same) == 1 else f"{path} #{same.index(number) + 1}"

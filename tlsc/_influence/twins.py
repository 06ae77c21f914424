"""A network runs on an image, and on its twin that differs far from one place. Who looked far?

In the twin's run the values around the place are put back before and after every module, so that neighbourhoods and
windows do not add up. What has changed at the place nevertheless was fetched from far away by the code between: the
own code of one module. Only what is for certain a map of the whole image, or a vector of it, is put back and
judged. A module in whose call other tensors went by (windows, parts of the image) is judged only if it is small and
holds no local statistic.

The image is long in one direction. So a part of it, or a window, hardly has its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .._models.undisturbed import OwnNumbers
from .._sites.local_module import LocalModule
from .._surgery import probe as _probe
from ..errors import ProbeError
from .network import is_image, noise, to_watch
from .result import Source

__all__ = ["Sight", "Twins"]

KEPT = 0.29
"""Half the length of what is put back around the place, as a share of the long axis."""
CHANGED = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Changes up to this share of the largest value are rounding, or what rounding becomes behind a norm."""
SMALL = 12
"""Layers of a module whose reach is a matter of pixels, not of images."""
VECTOR, UNKNOWN, NOTHING = -1, -2, -3


@dataclass(frozen=True)
class Sight:
    """A look far away: by whom, at which event of the run, and what tensors were around the place then."""

    source: Source
    event: int
    shapes: tuple[tuple[int, ...] | None, ...]
    values: tuple[Tensor | None, ...]


@dataclass
class _Call:
    """A module that runs. ``certain``: nothing went by in its own code that could not be put back."""

    module: nn.Module
    path: str
    certain: bool = True


@dataclass(frozen=True)
class _Kept:
    """What was around the place in the first run; ``most``: the largest value of the tensor."""

    values: Tensor
    most: float


class Twins:
    """Runs a copy of a network on an image and on its twin.

    Args:
        model: the copy.
        inputs: (height, width) -> the arguments of a call.
        size: of the image, (height, width).
        place: where to look, as a share of the longer axis.
        sites: by the path of a module, how many local statistics its own code takes.
    """

    def __init__(
        self, model: nn.Module, inputs: _probe.Inputs, size: tuple[int, int], place: float, sites: Mapping[str, int]
    ) -> None:
        self.model, self.size, self.place, self.sites = model, size, place, sites
        self.long = int(size[1] > size[0])
        self.leaves, self.spec = tree_flatten(tree_map(_detached, inputs(*size)))
        self.images = [at for at, leaf in enumerate(self.leaves) if is_image(leaf, size)]
        if not self.images:
            raise ProbeError(f"example_input gives no image, a floating tensor (N, C, H, W), at {size}")
        first = self.leaves[self.images[0]]
        if tuple(first.shape[-2:]) != size:
            raise ProbeError(f"example_input gives an image of {tuple(first.shape[-2:])}, asked for {size}")
        self.batch = int(first.shape[0])
        self.events: list[tuple[nn.Module, list[_Kept | None]]] = []
        self.paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), []).append(path)
        self.own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    # ------------------------------------------------------------------------------------------- the three runs

    def sights(self) -> list[Sight]:
        """Who looked far, in order."""
        image = self._image()
        self.outputs = self._run(image, self._record)
        self.found: list[Sight] = []
        self._run(self._twin(image), self._heal)
        return self.found

    def arrives(self, sight: Sight) -> bool:
        """Whether anything of the output changes with what was there at a sight, and with nothing else."""

        def inject(event: int, module: nn.Module, values: Any, blamed: _Call | None) -> Any:
            flat, spec = tree_flatten(values)
            if event != sight.event or len(flat) != len(sight.values):
                return values
            pairs = zip(flat, sight.values, strict=True)
            return tree_unflatten([leaf if new is None else self._with(leaf, new) for leaf, new in pairs], spec)

        after = self._run(self._image(), inject)
        return len(after) != len(self.outputs) or any(map(_differ, after, self.outputs))

    def _image(self) -> list[Any]:
        """The leaves of the call's arguments, constant images filled with noise."""
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        for at in self.images:
            if leaves[at].min() == leaves[at].max():
                leaves[at] = noise(leaves[at], np.random.default_rng([at, 0]), 0.3, 0.25)
        return leaves

    def _twin(self, image: list[Any]) -> list[Any]:
        """All that is far from the place becomes brighter noise of another contrast."""
        leaves = list(image)
        for at in self.images:
            one = image[at]
            other = one.min() + (one.max() - one.min()) * noise(one, np.random.default_rng([at, 1]), 0.7, 0.5)
            kept = self._around(one.dim() - 2, one.shape)
            other[kept] = one[kept]
            leaves[at] = other
        return leaves

    def _run(self, leaves: list[Any], event: Callable[[int, nn.Module, Any, _Call | None], Any]) -> list[Tensor]:
        """Run with ``event(number, module, values, whose code was running)`` at every entry and every return."""
        calls: list[_Call] = []
        self.calls = calls
        count = -1

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            nonlocal count
            count += 1
            caller = calls[-1] if calls else None
            values = event(count, module, (args, kwargs), caller)
            calls.append(_Call(module, self._path(module, caller)))
            calls[-1].certain = not any(self._axis(leaf) == UNKNOWN for leaf in tree_leaves(values))
            return values

        def after(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> Any:
            nonlocal count
            count += 1
            while calls and calls[-1].module is not module:  # left by an exception that someone caught
                calls.pop()
            returned = event(count, module, returned, calls[-1] if calls else None)
            if calls:
                calls.pop()
            if calls and any(self._axis(leaf) == UNKNOWN for leaf in tree_leaves(returned)):
                calls[-1].certain = False
            return returned

        handles = []
        try:
            for module in to_watch(self.model):
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
            given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            with OwnNumbers():  # in the caller's mode of gradients, which rewritten forwards are recorded for
                returned = _probe.called(self.model, tree_unflatten(given, self.spec))
        finally:
            for handle in handles:
                handle.remove()
        return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    # ------------------------------------------------------------------------------------------- at one event

    def _record(self, event: int, module: nn.Module, values: Any, blamed: _Call | None) -> Any:
        self.events.append((module, [self._kept(leaf) for leaf in tree_leaves(values)]))
        return values

    def _heal(self, event: int, module: nn.Module, values: Any, blamed: _Call | None) -> Any:
        flat, spec = tree_flatten(values)
        if event >= len(self.events) or self.events[event][0] is not module:
            return self._lost(values)  # the run took another way than the first
        kept = self.events[event][1]
        if len(kept) != len(flat):
            return self._lost(values)
        changed = any(map(self._changed, kept, flat))
        if blamed is not None and any(self._axis(leaf) == UNKNOWN for leaf in flat):
            blamed.certain = False
        if changed and blamed is not None and self._is_judged(blamed, flat):
            self.found.append(self._sight(blamed, event, flat))
        pairs = zip(flat, kept, strict=True)
        return tree_unflatten([leaf if was is None else self._with(leaf, was.values) for leaf, was in pairs], spec)

    def _lost(self, values: Any) -> Any:
        for call in self.calls:
            call.certain = False
        return values

    def _sight(self, call: _Call, event: int, flat: list[Any]) -> Sight:
        name = str(getattr(call.module, "original_name", type(call.module).__name__))
        source = Source(call.path, name, next(call.module.children(), None) is not None)
        shapes, values = [], []
        for leaf in flat:
            kept = self._kept(leaf)
            shapes.append(tuple(leaf.shape) if self._axis(leaf) == VECTOR else None)
            values.append(None if kept is None else kept.values)
        return Sight(source, event, tuple(shapes), tuple(values))

    def _is_judged(self, call: _Call, flat: list[Any]) -> bool:
        """Whether only a look far away can have changed what is around the place."""
        if isinstance(call.module, (LocalModule, nn.modules.conv._ConvNd)):
            return False  # local, whatever the size of their window or kernel in pixels of a small map
        own = self.sites.get(call.path, 0)
        if call.certain:
            return own <= 3 or any(self._axis(leaf) == VECTOR for leaf in flat)  # windows of one code add up
        inside = [module for module in call.module.modules() if not module._modules]
        local = any(path == call.path or path.startswith(f"{call.path}.") for path in self.sites)
        return call.path != "" and not local and len(inside) <= SMALL

    def _changed(self, was: _Kept | None, leaf: Any) -> bool:
        """Whether what is at the place is another than in the first run; where that cannot be told, it is not."""
        now = self._kept(leaf)
        if was is None or now is None or now.values.shape != was.values.shape:
            return False
        first = self._seen(leaf)[1]
        one, other = (self._middle(kept.values, first) for kept in (was, now))
        if torch.equal(one, other):
            return False
        change = float((one - other).abs().max())
        return change > CHANGED.get(leaf.dtype, 1e-4) * max(was.most, now.most)

    # ------------------------------------------------------------------------------ tensors and their positions

    def _seen(self, leaf: Any) -> tuple[Tensor | None, int]:
        """A view of a tensor, and its first axis of positions, or VECTOR, or UNKNOWN; or NOTHING to see."""
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() == 0:
            return None, NOTHING
        if id(leaf) in self.own or id(leaf._base) in self.own:
            return None, NOTHING
        shape = tuple(leaf.shape)
        if leaf.layout != torch.strided:
            return leaf, UNKNOWN
        if leaf.numel() == 1 or (shape[0] == self.batch and _is_vector(shape)):
            return leaf, VECTOR
        for first in (leaf.dim() - 2, 1) if leaf.dim() in (3, 4) else (leaf.dim() - 2,):
            if first > 0 and self._fits(shape[first], shape[first + 1]):
                return leaf, first
        if leaf.dim() == 3 and shape[0] == self.batch:
            for axis in (1, 2):
                grid = self._grid(shape[axis])
                if grid is not None:
                    return leaf.view(*shape[:axis], *grid, *shape[axis + 1 :]), axis
        return leaf, UNKNOWN

    def _fits(self, rows: int, columns: int) -> bool:
        """Whether a map of this size has the shape of the image, but for rounding."""
        if min(rows, columns) < 2:
            return False
        short, length = (rows, columns) if self.long else (columns, rows)
        return abs(length - short * max(self.size) / min(self.size)) <= 1

    def _grid(self, length: int) -> tuple[int, int] | None:
        """The map whose positions, one after the other, have this length."""
        rows = round((length * self.size[0] / self.size[1]) ** 0.5)
        if rows < 2 or length % rows or rows * self.size[1] != length // rows * self.size[0]:
            return None
        return rows, length // rows

    def _around(self, first: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The index of what is put back."""
        n = shape[first + self.long]
        low, high = round((self.place - KEPT) * n), round((self.place + KEPT) * n)
        return (*(slice(None),) * (first + self.long), slice(max(0, low), min(n, high)))

    def _middle(self, around: Tensor, first: int) -> Tensor:
        """Of what is put back, the middle on the long axis."""
        if first == VECTOR:
            return around
        axis = first + self.long
        return around.narrow(axis, around.shape[axis] // 2, 1)

    def _kept(self, leaf: Any) -> _Kept | None:
        view, first = self._seen(leaf)
        if view is None or first == UNKNOWN:
            return None
        around = view if first == VECTOR else view[self._around(first, tuple(view.shape))]
        if 0 in around.shape:
            return None
        return _Kept(around.detach().clone(), float(view.abs().max()))

    def _with(self, leaf: Any, values: Tensor) -> Any:
        """A tensor with other values around the place; the tensor itself may be somebody else's, and stays."""
        view, first = self._seen(leaf)
        if view is None or first == UNKNOWN:
            return leaf
        now = view if first == VECTOR else view[self._around(first, tuple(view.shape))]
        if now.shape != values.shape or torch.equal(now, values):
            return leaf
        new = leaf.detach().clone()
        view, first = self._seen(new)
        assert view is not None
        view[... if first == VECTOR else self._around(first, tuple(view.shape))] = values
        return new

    def _axis(self, leaf: Any) -> int:
        return self._seen(leaf)[1]

    def _path(self, module: nn.Module, caller: _Call | None) -> str:
        """Of a module with several paths, the one under its caller."""
        paths = self.paths.get(id(module), ["?"])
        under = f"{caller.path}." if caller is not None and caller.path else ""
        return next((path for path in paths if path.startswith(under)), paths[0])


def _is_vector(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has values per image and channel at most, and none per position."""
    return sum(n > 1 for n in shape[1:]) <= 1


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether outputs differ by more than rounding."""
    if one.shape != other.shape:
        return True
    return one.numel() > 0 and float((one - other).abs().max()) > 1e-6 * float(other.abs().max())

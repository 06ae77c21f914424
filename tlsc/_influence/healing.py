"""Finding the module that lets far pixels in, by *healing*.

The network runs on one input, and then on another that differs only far from the centre. In the second run the
inputs and outputs of every module are put back, in a region around the centre, to what they were in the first. What
a convolution lets creep inwards is so undone before the next layer adds to it, however deep the network is; a layer
whose centre changes nevertheless has looked at the far part by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .network import CHANGE_ZERO, Network, to_watch
from .result import Source

__all__ = ["Found", "find"]

Found = tuple[tuple[Source, ...], Source | None]
"""The modules that look far, and the first whose view arrives at the output."""


def find(network: Network, radius: tuple[int, int] | None, samples: int) -> Found:
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

    def __init__(self, network: Network, region: tuple[int, int]) -> None:
        self.network = network
        self.region = region
        self.zero = CHANGE_ZERO[network.dtype]
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
            for module in to_watch(self.network.model):
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
        found = self.network.layout.places(leaf, self.region)
        return None if found is None else _Seen(found.view[found.region].clone(), found.view[found.middle].clone())

    def _changed(self, was: _Seen | None, now: _Seen | None) -> bool:
        """Whether the middle has; where positions cannot be told, it has not."""
        return was is not None and now is not None and self.differs(was.middle, now.middle)

    def _with(self, leaf: Tensor, region: Tensor) -> Tensor:
        """A tensor with another central region, in place where that can be."""
        found = self.network.layout.places(leaf, self.region)
        assert found is not None
        if found.view[found.region].shape != region.shape or torch.equal(found.view[found.region], region):
            return leaf
        try:
            found.view[found.region] = region
        except RuntimeError:  # elements that share memory
            leaf = leaf.clone(memory_format=torch.contiguous_format)
            found = self.network.layout.places(leaf, self.region)
            assert found is not None
            found.view[found.region] = region
        return leaf


def _name(module: nn.Module) -> str:
    return str(getattr(module, "original_name", type(module).__name__))

"""The passes of a converted model whose statistics come from a source: over tiles, where the source asks for it,
then over the image. Hooks of the model's outermost call begin and end them; its sites find the call they are in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from .._statistics import any_size
from .._windows import covers
from ..errors import ExportError, TLSCError
from .reading import Field
from .source import Pair, Source, View
from .tiles import Moments, Tiles, measured

__all__ = ["AT", "PASSES", "At", "Passes", "install", "refuse_passes", "remove"]

PASSES = "_tlsc_passes"  # of a converted model: its passes
AT = "_tlsc_source"  # of a local module: its way to the source

Tables = dict[Any, list[list[Moments]]]


@dataclass(eq=False)
class _Call:
    """A call of the model: the statistics of its first pass, and how often each site was reached in this one.

    ``tiles``: of the image, as the first pass saw them; None while it runs, and where the image is no larger than
    the window.
    """

    passes: Passes
    collecting: bool
    tiles: Tiles | None = None
    tables: Tables = field(default_factory=dict)
    reached: dict[Any, int] = field(default_factory=dict)
    token: Any = None

    def number(self, key: Any) -> int:
        """How often the site was reached before."""
        self.reached[key] = self.reached.get(key, -1) + 1
        return self.reached[key]


_CALL: ContextVar[_Call | None] = ContextVar("tlsc_call", default=None)


@dataclass(eq=False)
class Passes:
    """What the sites of one conversion share: the source, the window and the crop at the input, what is kept."""

    source: Source
    base_size: Pair
    crop: Pair
    kept: tuple[Any, Tiles, Tables] | None = None
    of_tlsc: ClassVar[bool] = True  # its hooks are no user's

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's outermost call: the first pass."""
        if self._inside() or PASSES not in model.__dict__ or not self._converted(model):
            return
        _refuse_graphs(self.source)
        image = _image_of((args, kwargs))
        shape: Pair = (image.shape[-2], image.shape[-1])
        call = _Call(self, collecting=False)
        if not covers(self.base_size, shape):
            call.tiles, call.tables = self._first(model, args, kwargs, tuple(image.shape))
        call.token = _CALL.set(call)

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """After it, also where it failed."""
        call = _CALL.get()
        if call is not None and call.passes is self and not call.collecting and call.token is not None:
            _CALL.reset(call.token)

    def _inside(self) -> bool:
        call = _CALL.get()
        return call is not None and call.passes is self

    def _converted(self, model: nn.Module) -> bool:
        """Whether the sites are there: while a model is reverted for some time, its hooks stay."""
        found = (module.__dict__.get(AT) for module in model.modules())
        return any(at is not None and at.passes is self for at in found)

    def _first(self, model: nn.Module, args: Any, kwargs: Any, shape: tuple[int, ...]) -> tuple[Tiles, Tables]:
        if self.kept is not None and self.kept[0] == shape:
            return self.kept[1:]
        size: Pair = (shape[-2], shape[-1])
        tables: Tables = {}
        for view in self.source.views(size, self.crop):
            call = _Call(self, collecting=True, tables=tables)
            seen_args, seen_kwargs = _seen((args, kwargs), view, size)
            with _calling(call), torch.no_grad():
                model(*seen_args, **seen_kwargs)
        tiles = self.source.tiles(size, self.crop)
        if self.source.keep:
            self.kept = shape, tiles, tables
        return tiles, tables


@contextmanager
def _calling(call: _Call) -> Iterator[None]:
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def _image_of(arguments: Any) -> Tensor:
    """The first image among the arguments of a call."""
    tensors = [value for value in tree.tree_leaves(arguments) if isinstance(value, Tensor)]
    images = [value for value in tensors if value.dim() >= 4] or [value for value in tensors if value.dim() == 3]
    if not images:
        raise TLSCError("a model whose statistics come from a source is called on images (N, C, H, W), got none")
    return images[0]


def _seen(arguments: Any, view: View, shape: Pair) -> Any:
    """The arguments as the first pass sees them: images, and maps that lie beside them at another scale."""

    def of(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 3:
            return value
        rows, columns = value.shape[-2:]
        alike = (rows, columns) == shape or (value.dim() >= 4 and rows * shape[1] == columns * shape[0])
        return view(value, shape) if alike else value

    return tree.tree_map(of, arguments)


def _refuse_graphs(source: Source) -> None:
    if any_size.leaves():
        raise _not_for_graphs(source)


def _not_for_graphs(source: Source) -> ExportError:
    return ExportError(
        f"statistics from source {source.name!r} are for PyTorch alone: convert with source='window'"
    )


@dataclass(frozen=True, eq=False)
class At:
    """A site's way to its source."""

    passes: Passes
    key: Any
    path: str

    def field(self, x: Tensor, window: Pair, second: bool, eps: float = 0.0) -> Field | None:
        """The moments of every position of ``x``, (N, K, H, W) or (N, K, D, H, W) with D taken together; None where
        they are those of the whole map, because it is no larger than the window or is a tile's.

        Args:
            x: the map that reached the site.
            window: the site's, (height, width) in pixels of its map.
            second: whether variances are needed.
            eps: what the site adds to a variance.
        """
        source = self.passes.source
        _refuse_graphs(source)
        shape: Pair = (x.shape[-2], x.shape[-1])
        if not source.own_padding:
            if covers(window, shape):
                return None
            tiles = source.tiles(shape, self._tile(window))
            return Field.of(source, tiles.measured(x, second), tiles, shape, eps)
        call = _CALL.get()
        if call is None or call.passes is not self.passes:
            raise TLSCError(
                f"{self.path or '(the model)'}: its statistics come from a first pass ({source}) over the input "
                "of the whole model: call the model that was converted, not a part of it"
            )
        number = call.number(self.key)
        if call.collecting:
            found = call.tables.setdefault(self.key, [])
            if len(found) <= number:
                found.append([])
            found[number].append(measured(x, second))
            return None
        if call.tiles is None:
            return None
        found = call.tables.get(self.key, [])
        if len(found) <= number or len(found[number]) != len(call.tiles.boxes):
            raise TLSCError(
                f"{self.path or '(the model)'}: it is reached more often on this image than on its tiles "
                f"({source}): leave it out (exclude=…) or take source='window'"
            )
        return Field.of(source, call.tiles.table(found[number]), call.tiles, shape, eps)

    def _tile(self, window: Pair) -> Pair:
        """A tile of the map: the window, less as the crop is less than ``base_size``."""
        rows, columns = (
            max(1, round(k * c / b))
            for k, c, b in zip(window, self.passes.crop, self.passes.base_size, strict=True)
        )
        return rows, columns


def refuse_passes(model: nn.Module) -> None:
    """Refuse to export a model whose statistics come from a source other than the window.

    Raises:
        ExportError: they do.
    """
    for module in model.modules():
        passes = module.__dict__.get(PASSES)
        if passes is not None:
            raise _not_for_graphs(passes.source)


def install(model: nn.Module, passes: Passes) -> None:
    """Begin and end the passes with each call of a model."""
    if passes.source.own_padding:
        model.register_forward_pre_hook(passes.before, prepend=True, with_kwargs=True)
        model.register_forward_hook(passes.after, always_call=True)


def remove(model: nn.Module, passes: Passes) -> None:
    """Undo :func:`install`."""
    for hooks, beside in (
        (model._forward_pre_hooks, (model._forward_pre_hooks_with_kwargs,)),
        (model._forward_hooks, (model._forward_hooks_with_kwargs, model._forward_hooks_always_called)),
    ):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is passes]:
            del hooks[key]
            for flags in beside:
                flags.pop(key, None)

"""What the local modules share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .._arguments import as_pair
from .._sources.passes import At
from .._sources.reading import Field
from .._statistics.correction import Correction
from .._windows import covers
from .state import SiteState

__all__ = ["LocalModule", "register_affine", "state_of"]

_Module = TypeVar("_Module", bound="LocalModule")


class LocalModule(nn.Module):
    """What the local modules share: a window, room for a correction, and maps without a batch dimension."""

    window: tuple[int, int]
    correction: Correction | None
    _tlsc_source: At | None = None  # where the statistic comes from; None: the window

    @classmethod
    def _standing_in(cls: type[_Module], module: nn.Module, window: int | tuple[int, int]) -> _Module:
        """A local module with everything that ``module`` has: the same parameters, hooks, flags, attributes.

        The containers themselves are shared, so that whatever later changes them (``load_state_dict`` with
        ``assign=True``, ``half()``, a hook's handle) changes both modules.
        """
        new = cls.__new__(cls)
        new.__dict__.update(module.__dict__)
        new.__dict__["_compiled_call_impl"] = None  # calls what ``module`` does
        new.window = as_pair(window, "window")
        new.correction = None
        return new

    def _covers(self, x: Tensor) -> bool:
        return covers(self.window, x.shape[-2:])

    def _field(self, x: Tensor, second: bool, eps: float = 0.0) -> Field | None:
        """The moments of every position of a map where they come from a source other than the window."""
        at = self._tlsc_source
        return None if at is None else at.field(x, self.window, second, eps)

    def _state(self) -> SiteState | None:
        return None


def state_of(module: nn.Module) -> SiteState | None:
    """The statistic that a local module takes, as it is now; None if it takes none that a correction is for."""
    return module._state() if isinstance(module, LocalModule) else None


def register_affine(module: nn.Module, channels: int, affine: bool) -> None:
    module.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
    module.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine else None)

"""The contract of a kind of site, and the register of all kinds. Each kind is a file beside this one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._arguments import shown
from .._plan import Action
from ..errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Build", "Kind", "Recogniser", "Registration", "kind_of", "known", "recogniser", "register"]

Build = Callable[[nn.Module, "tuple[int, int]", int], nn.Module]
Recogniser = Callable[[nn.Module], "Kind | None"]


@dataclass(frozen=True)
class Kind:
    """How modules of one type are treated.

    ``build(module, window, stride)`` makes the local module. ``why_left(module)`` says why a module of this
    type is left ("left global" or "left alone", and the reason), or returns None.
    """

    operation: str
    build: Build | None
    why_left: Callable[[nn.Module], tuple[Action, str] | None] = lambda module: None
    strided: bool = False
    pools: bool = False  # its result has one position, which becomes one per position of its input
    own_forward: bool = False  # a subclass of a known type: its forward is traced, like that of any module
    needs_owner: Callable[[nn.Module], bool] = lambda module: False  # only with the layers behind it
    ranks: tuple[int, ...] = (3, 4)  # of the tensors that it takes as maps
    sourced: bool = False  # its statistic may come from elsewhere than the window: its module asks ``_field``


_KINDS: dict[type[nn.Module], Kind] = {}
_RECOGNISERS: list[Recogniser] = []


def known(module_type: type[nn.Module], kind: Kind) -> Registration:
    """Make modules of exactly this type sites of a kind; one that was known before is replaced."""
    before = _KINDS.get(module_type)
    _KINDS[module_type] = kind
    return Registration(module_type, kind, before)


def recogniser(function: Recogniser) -> Recogniser:
    """Ask ``function`` too, of modules whose type is not known: it says of which kind a module is, or None."""
    _RECOGNISERS.append(function)
    return function


class Registration:
    """Handle of :func:`register`: ``remove()`` takes the registration back."""

    def __init__(self, module_type: type[nn.Module], kind: Kind, before: Kind | None) -> None:
        self._type, self._kind, self._before = module_type, kind, before

    def remove(self) -> None:
        """Forget the registration; does nothing if it is no longer in force."""
        if _KINDS.get(self._type) is not self._kind:
            return
        if self._before is None:
            del _KINDS[self._type]
        else:
            _KINDS[self._type] = self._before


def register(module_type: type[nn.Module], factory: Callable[..., nn.Module]) -> Registration:
    """Teach the surgery a module type.

    Every module of exactly this type is replaced by what ``factory(module, window, stride)`` returns. A factory
    may omit ``stride`` if it has no strided form. Modules inside the replaced one are not treated separately.

    Args:
        module_type: a subclass of ``torch.nn.Module``. Registering a type again, also a built-in one, replaces
            what was known about it.
        factory: takes the module, its window (height, width) in pixels of its first input, a map
            (N, C, H, W), and the stride given to :func:`tlsc.convert`; returns a module with the same
            ``state_dict`` (pass the parameters on, do not copy them).

    Returns:
        A handle whose ``remove()`` takes the registration back.

    Raises:
        ArgumentTypeError: ``module_type`` is not a module type or ``factory`` is not callable.
        ArgumentValueError: ``factory`` takes neither (module, window) nor (module, window, stride).

    Example:
        >>> import torch, tlsc
        >>> from torch import nn
        >>> class Centre(nn.Module):
        ...     def forward(self, x):
        ...         return x - x.mean((2, 3), keepdim=True)
        >>> class LocalCentre(nn.Module):
        ...     def __init__(self, window):
        ...         super().__init__()
        ...         self.window = window
        ...     def forward(self, x):
        ...         return x - tlsc.functional.local_mean(x, self.window)
        >>> handle = tlsc.register(Centre, lambda module, window: LocalCentre(window))
        >>> tlsc.convert(nn.Sequential(Centre()), 32)
        Sequential(
          (0): LocalCentre()
        )
        >>> handle.remove()
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise ArgumentTypeError(f"module_type must be a subclass of torch.nn.Module, got {shown(module_type)}")
    if not callable(factory):
        raise ArgumentTypeError(f"factory must be callable, got {shown(factory)}")
    positional, keyword = _takes(factory, 0, 1, 2), _takes(factory, 0, 1, stride=2)
    if not (positional or keyword or _takes(factory, 0, 1)):
        raise ArgumentValueError(
            f"factory must take (module, window) or (module, window, stride), got {shown(factory)}"
        )

    def build(module: nn.Module, window: tuple[int, int], stride: int) -> nn.Module:
        if keyword:
            return factory(module, window, stride=stride)
        return factory(module, window, stride) if positional else factory(module, window)

    return known(module_type, Kind(module_type.__name__, build, strided=positional or keyword))


def kind_of(module: nn.Module) -> Kind | None:
    """How ``module`` is treated; None if it is not known to aggregate over positions."""
    kind = _KINDS.get(type(module))
    if kind is None:
        return _recognised(module) or _derived(module)
    if "forward" in module.__dict__ and kind.build is not None:
        return Kind(
            kind.operation, None, lambda module: ("left global", "its forward was replaced on the instance")
        )
    return kind


def _recognised(module: nn.Module) -> Kind | None:
    return next((kind for kind in (ask(module) for ask in _RECOGNISERS) if kind is not None), None)


def _derived(module: nn.Module) -> Kind | None:
    """A subclass of a known type is another layer."""
    base = next((base for base in _KINDS if isinstance(module, base)), None)
    if base is None:
        return None
    why = f"a subclass of {base.__name__}, and so another layer: teach it with tlsc.register"
    return Kind(type(module).__name__, None, lambda module: ("left global", why), own_forward=True)


def _takes(function: Callable[..., Any], *args: int, **kwargs: int) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature: give it all
        return len(args) == 3
    return True

"""Which implementation answers: the one place where device, dtype and size decide, and say why not.

========  ==============================  =================================================
back end  in ``auto``                     by name
========  ==============================  =================================================
torch     everything else                 everything
numba     CPU, from 4096 elements on      CPU
triton    NVIDIA GPU, not float64         NVIDIA GPU; the CPU where Triton's interpreter
                                          runs (``TRITON_INTERPRET=1``)
========  ==============================  =================================================

A back end that fails where ``auto`` takes it (no compiler, a kernel that does not compile or launch; on a GPU also
one that is not installed) is named in one warning, and PyTorch's path answers from then on. Asked for by name, it
raises.

The choice is read where values are there to compute with, never while a graph is recorded: a compiled model asks
when it runs.
"""

from __future__ import annotations

import importlib
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._arguments import shown
from ..errors import ArgumentTypeError, ArgumentValueError, BackendError, TLSCError, TLSCWarning, first_line
from . import reference

__all__ = ["BackEnd", "Status", "answer", "backend", "backends", "choose", "instead", "named", "why_not"]

NAMES = ("auto", "torch", "numba", "triton")
# Below this many elements the first call's compilation would never be paid back.
FEW = 2**12

Result = TypeVar("Result")

_named: ContextVar[str] = ContextVar("tlsc back end", default="auto")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose what computes local statistics inside a ``with`` block, in this thread (or asyncio task) alone.

    Args:
        name: "torch", plain PyTorch; "numba", compiled for the CPU; "triton", for NVIDIA GPUs; "auto", the fastest
            that is there, which is also what is used outside of any block.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``name`` is none of these.
        BackendError: the back end is not installed or cannot run here; and, when an operation is called inside, it
            cannot take the operation's tensor, or its kernel fails.

    Example:
        >>> import torch, tlsc
        >>> with tlsc.backend("torch"):
        ...     tlsc.functional.local_mean(torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]]), window=2)
        tensor([[[[1.5000, 3.0000, 6.0000, 6.0000]]]])
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name must be one of {', '.join(NAMES)}, got {shown(name)}")
    if name not in NAMES:
        raise ArgumentValueError(f"name must be one of {', '.join(NAMES)}, got {shown(name)}")
    if name in BACK_ENDS:
        why = BACK_ENDS[name].why_unusable()
        if why is not None:
            raise BackendError(f"the {name} back end cannot run here: {why}; 'auto' takes what is there")
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)


def named() -> str:
    """The name that is chosen in this thread; "auto" while a graph is recorded, which asks again when it runs."""
    return "auto" if torch.compiler.is_compiling() else _named.get()


# -------------------------------------------------------------------------------- what a back end can be used for


@dataclass
class BackEnd:
    """Kernels for one kind of device: what they can do here, and what they failed at."""

    name: str
    device: str
    """The kind of device whose tensors ``auto`` gives to it."""
    takes: Callable[[Tensor], bool]
    """Whether ``auto`` prefers it to PyTorch for a tensor on that device."""
    failures: dict[str, str] = field(default_factory=dict)
    """Operations that failed, with the error's first line."""
    warned: bool = False
    _module: Any = None

    def module(self) -> Any:
        """The module with the kernels' host code, or a sentence why there is none."""
        if self._module is None:
            try:
                self._module = importlib.import_module(f"tlsc._statistics.{self.name}.planes")
            except Exception as error:
                # Not only ImportError: numba refuses versions of numpy, and Triton machines, in their own ways.
                self._module = f"{self.name} cannot be imported ({type(error).__name__}: {error})"
        return self._module

    def why_unusable(self) -> str | None:
        """Why it cannot be used on this machine; None where it can."""
        module = self.module()
        why: str | None = module if isinstance(module, str) else module.why_unusable()
        return why

    def why_not(self, x: Tensor) -> str | None:
        """Why it cannot take this tensor; None where it can."""
        why = self.why_unusable()
        return f"cannot run here: {why}" if why is not None else self.module().why_not(x)

    def named_once(self, why: str) -> None:
        """Warn, the first time, that PyTorch's path does this back end's work."""
        with _lock:
            first, self.warned = not self.warned, True
        if first:
            warnings.warn(
                f"the {self.name} back end {why}. PyTorch's own operations answer instead: the result is the same, "
                f"only slower. {_WAYS_OUT[self.name]} tlsc.backends() shows what can be used here",
                TLSCWarning,
                stacklevel=4,
            )


_lock = threading.Lock()
_WAYS_OUT = {
    "numba": "Try another version of numba, or choose tlsc.backend('torch') to say no more.",
    "triton": "Install the triton that belongs to this PyTorch and a driver that knows the GPU, or choose "
    "tlsc.backend('torch') to say no more.",
}

BACK_ENDS = {
    "numba": BackEnd("numba", "cpu", lambda x: x.numel() >= FEW),
    "triton": BackEnd("triton", "cuda", lambda x: x.dtype != torch.float64),
}


def why_not(name: str, x: Tensor) -> str | None:
    """Why the back end of this name cannot take ``x``; None where it can, as PyTorch's always can."""
    return BACK_ENDS[name].why_not(x) if name in BACK_ENDS else None


def device_type(x: Tensor) -> str:
    """What decides in ``auto``."""
    return x.device.type


def choose(operation: str, x: Tensor) -> BackEnd | None:
    """The back end that is to compute ``operation`` on ``x``, a tensor with values; None for PyTorch's own.

    Raises:
        BackendError: one is named that cannot.
    """
    name = _named.get()
    if name == "torch":
        return None
    if name != "auto":
        own = BACK_ENDS[name]
        why = own.why_not(x)
        if why is not None:
            raise BackendError(f"the {name} back end {why}; leave the choice to 'auto', or use 'torch'")
        return own
    device = device_type(x)
    for own in BACK_ENDS.values():
        if own.device == device and own.takes(x):
            if operation in own.failures:
                return None
            why = own.why_unusable()
            if why is None:
                return own
            if device == "cuda":  # a GPU would be left to a path many times slower
                own.named_once(f"cannot run here: {why}")
    return None


def answer(operation: str, x: Tensor, compute: Callable[[Any], Any]) -> Any:
    """``compute(module)`` with the module whose functions are to be called on ``x``, a tensor with values.

    In ``auto`` PyTorch's path answers where a back end fails, and directly from then on.

    Raises:
        BackendError: a back end is named that cannot take ``x``, or that fails.
    """
    own = choose(operation, x)
    if own is None:
        return compute(reference)
    try:
        return compute(own.module())
    except (TLSCError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return instead(own, operation, error, _named.get() == "auto", lambda: compute(reference))


def instead(
    own: BackEnd, operation: str, error: Exception, automatic: bool, compute: Callable[[], Result]
) -> Result:
    """What PyTorch's path computes, in place of a back end that failed at ``operation`` with ``error``.

    The failure is remembered, and named in a warning the first time.

    Args:
        automatic: whether nobody named the back end.

    Raises:
        BackendError: somebody named it.
    """
    why = first_line(error, limit=200)
    if not automatic:
        raise BackendError(
            f"the {own.name} back end fails at {operation} ({why}); leave the choice to 'auto', or use 'torch'"
        ) from error
    out = compute()  # where this fails too, the fault is not the back end's
    own.failures[operation] = why
    own.named_once(f"fails at {operation} ({why})")
    return out


# ----------------------------------------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Status:
    """One back end on this machine.

    Attributes:
        name: as :func:`tlsc.backend` takes it.
        usable: whether it can be used here.
        reason: why not, or which operations failed and are left to PyTorch; "" where there is nothing to say.
        version: of the package that compiles it; "" where it is not installed.
        device: what it runs on.
    """

    name: str
    usable: bool
    reason: str
    version: str
    device: str


class Statuses(tuple[Status, ...]):
    """All back ends; printed as a table."""

    def __str__(self) -> str:
        rows = [
            (own.name, "usable" if own.usable else "not usable", own.version or "-", own.device, own.reason)
            for own in self
        ]
        widths = [max(len(row[n]) for row in rows) for n in range(4)]
        lines = ["  ".join([*(row[n].ljust(widths[n]) for n in range(4)), row[4]]).rstrip() for row in rows]
        return "\n".join(lines)

    __repr__ = __str__


def backends() -> Statuses:
    """What can compute local statistics on this machine, and why not.

    Returns:
        one entry for each back end with ``name``, ``usable``, ``reason``, ``version`` and ``device``; printed as a
        table. It is looked up anew at each call.

    Example:
        >>> import tlsc
        >>> [own.name for own in tlsc.backends()]
        ['torch', 'numba', 'triton']
        >>> tlsc.backends()[0].usable
        True
    """
    graphics = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    gpus = ", ".join(dict.fromkeys(graphics))
    processor = f"CPU ({platform.machine()})"
    found = [Status("torch", True, "", torch.__version__, f"any; here {processor}{gpus and ', ' + gpus}")]
    for own in BACK_ENDS.values():
        why = own.why_unusable()
        reasons = [why] if why else [f"{operation} is left to torch: {e}" for operation, e in own.failures.items()]
        try:
            release = version(own.name)
        except PackageNotFoundError:
            release = ""
        device = processor if own.device == "cpu" else gpus or "no NVIDIA GPU"
        found.append(Status(own.name, why is None, "; ".join(reasons), release, device))
    return Statuses(found)

"""How much memory a network needs for an image of a size, by trying."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tlsc._arguments import shown
from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "Model",
    "as_bytes",
    "beside_converting",
    "free",
    "is_shortage",
    "kernels",
    "measured",
    "readable",
    "trimmed",
    "used",
]

T = TypeVar("T")

# What a process needs at its peak beside the tensors that are counted, as a factor.
_UNSEEN = 2.0
# What Numba, oneDNN and their code need, whatever the size of an image, if they are loaded only now.
_KERNELS = 144 * 10**6
# What converting was measured to take of a fresh process, and readers and writers of pictures with it.
_CONVERTING = 400 * 10**6
_LEAST = 256 * 10**6
# What an allocator's holes were measured to add beyond that factor where maps are small.
_HOLES = 64 * 10**6
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def as_bytes(memory: int | str, device: torch.device) -> int:
    """A number of bytes: as it is, or written as "4GiB", "500 MB", "free".

    Raises:
        ArgumentTypeError, ArgumentValueError: it is none, or not positive.

    Example:
        >>> as_bytes("4GiB", torch.device("cpu")), as_bytes("256 MB", torch.device("cpu"))
        (4294967296, 256000000)
    """
    if isinstance(memory, bool) or not isinstance(memory, (int, str)):
        raise ArgumentTypeError(f"memory must be bytes or a text such as '4GiB', got {type(memory).__name__}")
    if isinstance(memory, int):
        found = memory
    elif memory.strip().lower() == "free":
        found = free(device)
    else:
        parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", memory.lower())
        if parts is None or (parts[3] and not parts[2]):
            raise ArgumentValueError(
                f"memory must be a number of bytes such as '4GiB', '500MB' or 'free', got {shown(memory)}"
            )
        found = int(float(parts[1]) * (_BINARY if parts[3] else _UNITS)[parts[2]])
    if found < 1:
        raise ArgumentValueError(f"memory must be positive, got {shown(memory)}")
    return found


def free(device: torch.device) -> int:
    """Bytes that a device has free; three quarters of them on the CPU, where others live, too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024 * 3 // 4
    except (OSError, StopIteration, ValueError):  # not Linux
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 2**31


def beside_converting(memory: int | str, device: torch.device) -> int:
    """What a limit above the loaded network leaves for pieces: converting it takes memory, too, on the CPU.

    A number that does not depend on the process, so that several cut alike. Of small limits nothing is taken.

    Args:
        memory: as :func:`as_bytes` takes it.
        device: where pieces are computed.

    Example:
        >>> readable(beside_converting("1GB", torch.device("cpu")))
        '572.2 MiB'
    """
    size = as_bytes(memory, device)
    if device.type != "cpu" or str(memory).strip().lower() == "free":
        return size
    return max(size - _CONVERTING, min(size, _LEAST))


def readable(size: float) -> str:
    """Bytes as people write them.

    Example:
        >>> readable(3 * 2**30), readable(5e6)
        ('3.0 GiB', '4.8 MiB')
    """
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


@dataclass(frozen=True)
class Model:
    """Peak memory above the start against an extent's pixels, as a line through two measurements.

    Attributes:
        fixed: bytes whatever the size, such as compiled kernels.
        each: bytes per pixel.
    """

    fixed: float
    each: float

    def bytes(self, pixels: float) -> int:
        """What an extent of so many pixels needs."""
        return int(self.fixed + self.each * pixels)

    def pixels(self, size: float) -> float:
        """The most pixels that fit."""
        return max(0.0, (size - self.fixed) / self.each)

    @classmethod
    def through(cls, small: tuple[int, int], large: tuple[int, int], least: float = 0.0) -> Model:
        """The line through two measured (pixels, bytes); never falling, and never below either.

        Args:
            small, large: the measurements; the same for an image that is no larger.
            least: bytes whatever the size that were not measured.
        """
        each = max(large[1] / large[0] * 0.1, 1.0)
        if large[0] > small[0]:
            each = max(each, (large[1] - small[1]) / (large[0] - small[0]))
        elif small[1]:
            each = max(each, small[1] / small[0])
        return cls(max(0.0, small[1] - each * small[0], large[1] - each * large[0]) + least, each)


def measured(run: Callable[[], T], device: torch.device) -> tuple[int, T]:
    """The memory that a call needs at its peak, in bytes above the start, and what it returns.

    On CUDA what the allocator had handed out at most. Elsewhere the tensors that were alive together, times what
    kernels' own buffers and an allocator's holes were measured to add (1.5 to 1.8); not the process's memory, so
    that the same network is cut in the same way each time.

    Args:
        run: what to call.
        device: where it computes.
    """
    if device.type == "cuda":
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        return torch.cuda.max_memory_allocated(device) - start, result
    with _Counting() as counted:
        result = run()
    return int(counted.peak * _UNSEEN), result


def kernels(device: torch.device, before: int) -> int:
    """Bytes beside an image's tensors: an allocator's holes, and compiled kernels if they were loaded only now.

    Converting loads them as a rule. One of two numbers in most cases, so that a network is cut alike each time.

    Args:
        device: where it computes.
        before: what :func:`used` said before it ran.
    """
    if device.type == "cuda":
        return 0
    trimmed(device)  # what the heap keeps of the trials' own maps is no code
    loaded = used(device) - before
    return _HOLES + (max(_KERNELS, loaded) if loaded > _HOLES else 0)


def trimmed(device: torch.device) -> None:
    """Give pages that hold nothing back to the system (glibc only): converting leaves some 90 MB of them."""
    if device.type == "cpu" and sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def used(device: torch.device) -> int:
    """Bytes that the process has in memory; 0 where they are not known, and on CUDA, where others count."""
    if device.type == "cuda":
        return 0
    try:
        with open("/proc/self/statm", encoding="ascii") as line:
            return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all tensors that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                place = storage.data_ptr()
                if place and place not in self._known and place not in given:  # no view of the caller's image
                    self._known[place] = storage.nbytes()
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._gone, place)
        self.peak = max(self.peak, self._now)
        return out

    def _gone(self, place: int) -> None:
        self._now -= self._known.pop(place, 0)

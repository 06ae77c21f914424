"""How much memory a network needs for an image of a size, by trying."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Model", "as_bytes", "free", "is_shortage", "measured", "readable", "used"]

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
                f"memory must be a number of bytes such as '4GiB', '500MB' or 'free', got {memory!r}"
            )
        found = int(float(parts[1]) * (_BINARY if parts[3] else _UNITS)[parts[2]])
    if found < 1:
        raise ArgumentValueError(f"memory must be positive, got {memory!r}")
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
    def through(cls, small: tuple[int, int], large: tuple[int, int]) -> Model:
        """The line through two measured (pixels, bytes); never falling, and never below either."""
        each = max((large[1] - small[1]) / (large[0] - small[0]), large[1] / large[0] * 0.1, 1.0)
        return cls(max(0.0, small[1] - each * small[0], large[1] - each * large[0]), each)


def measured(run: Callable[[], Any], device: torch.device, since: int | None = None) -> int:
    """The peak memory of a call, in bytes above the start.

    On CUDA what the allocator had handed out at most; on Linux the process's resident memory, read every
    millisecond; elsewhere the tensors that the call makes.

    Args:
        run: what to call.
        device: where it computes.
        since: what :func:`used` said before an earlier call, to measure from there.
    """
    start = used(device) if since is None else since
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - start
    if start == 0:
        with _Counting() as counted:
            run()
        return int(counted.peak * 1.5)  # kernels' own buffers are not seen
    with _Watched() as watched:
        run()
    return max(0, watched.peak - start)


def used(device: torch.device) -> int:
    """Where :func:`measured` starts: bytes in use now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident()


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as line:
            return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


class _Watched:
    """Resident memory, read by a thread as long as the block lasts."""

    def __enter__(self) -> _Watched:
        self.peak, self._done = _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, _resident())


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all tensors that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                place = storage.data_ptr()
                if place and place not in self._known:
                    self._known[place] = storage.nbytes()
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._gone, place)
        self.peak = max(self.peak, self._now)
        return out

    def _gone(self, place: int) -> None:
        self._now -= self._known.pop(place, 0)

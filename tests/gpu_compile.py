"""Compile Triton kernels to a GPU's machine code where there is no GPU.

A stand-in driver names the GPU that is not there, and every launch becomes a warm-up: the project's own host code
runs on CPU tensors, and each kernel that it asks for is compiled, specialised exactly as the GPU would be asked
for it, and never run::

    with compiling(90) as seen:
        planes.local_mean(torch.zeros(1, 3, 40, 50), (8, 8))
    seen.launches       # what was launched, in order, with its grid
    seen.operations     # PyTorch's own operations in between that would cost a launch, or a wait for the GPU
    seen.compiled       # one entry per specialisation: registers, spills, widths of loads and stores

The values in the tensors that come back are arbitrary. Nothing here works in a process in which Triton was imported
with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import atexit
import os
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TARGETS", "Compiled", "Launch", "Seen", "compiling", "keep_in"]

TARGETS = (80, 90)
# The most blocks that CUDA takes along each axis of a grid.
GRID = (2**31 - 1, 65535, 65535)
# Shared memory that a block may have, in bytes, by compute capability.
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}

# Operations of PyTorch's that start nothing on a GPU: they make room, or look at it in another way.
_FREE = re.compile(
    r"^aten\.(empty|empty_like|empty_strided|new_empty|new_empty_strided|view|_unsafe_view|_reshape_alias|expand"
    r"|as_strided|alias|permute|transpose|t|select|slice|split|unbind|squeeze|unsqueeze|unfold|detach|narrow"
    r"|split_with_sizes|chunk)\."
)


@dataclass(frozen=True)
class Compiled:
    """One kernel as one target's machine code."""

    kernel: str
    target: int
    specialisation: str
    registers: int
    spilled: int  # bytes of local memory per thread; 0: everything fits into registers
    shared: int  # bytes per block
    warps: int
    loads: tuple[tuple[int, int], ...]  # (bytes at once, how many such instructions), widest first
    stores: tuple[tuple[int, int], ...]
    ptx: str = field(repr=False, compare=False, hash=False)

    @property
    def widest_load(self) -> int:
        return self.loads[0][0] if self.loads else 0

    def __str__(self) -> str:
        widths = ", ".join(f"{count}×{width} B" for width, count in self.loads)
        return (
            f"{self.kernel:24} sm_{self.target} {self.registers:3} registers, {self.spilled:3} B spilled, "
            f"{self.shared:6} B shared, {self.warps} warps, loads {widths}"
        )


@dataclass(frozen=True)
class Launch:
    """One launch: which kernel, and over how many programs."""

    kernel: str
    grid: tuple[int, ...]
    compiled: Compiled


@dataclass
class Seen:
    """What host code asked for."""

    launches: list[Launch] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)

    @property
    def compiled(self) -> set[Compiled]:
        return {launch.compiled for launch in self.launches}


@contextmanager
def compiling(target: int) -> Iterator[Seen]:
    """Inside, launches compile for compute capability ``target`` (80, 90, …) and run nothing.

    Raises:
        whatever Triton raises where a kernel does not compile; ValueError for a grid that CUDA would refuse.
    """
    import triton

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("Triton was imported as an interpreter: unset TRITON_INTERPRET")
    seen = Seen()
    function = triton.JITFunction
    run = function.run
    known: dict[int, Compiled] = {}

    def warm_up(self: Any, *args: Any, grid: Any, warmup: bool = True, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        if id(kernel) not in known:
            known[id(kernel)] = _described(kernel, target)
        sizes = tuple(int(n) for n in grid) if isinstance(grid, (tuple, list)) else ()
        if any(not 1 <= n <= most for n, most in zip(sizes, GRID, strict=False)):
            raise ValueError(f"{known[id(kernel)].kernel}: CUDA takes no grid of {sizes}")
        seen.launches.append(Launch(known[id(kernel)].kernel, sizes, known[id(kernel)]))
        return kernel

    driver = triton.runtime.driver
    # Its name in Triton 3.2; read without asking for a driver, which there is none of.
    holder = "_active" if "_active" in vars(driver) else "active"
    before, cache = vars(driver)[holder], os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = _cache()
    driver.set_active(_StandIn(target))
    function.run = warm_up
    try:
        with _Watching(seen):
            yield seen
    finally:
        function.run = run
        setattr(driver, holder, before)
        if cache is None:
            del os.environ["TRITON_CACHE_DIR"]
        else:
            os.environ["TRITON_CACHE_DIR"] = cache


class _StandIn:
    """A driver that answers for a GPU which is not there; each target is a device of its own to Triton's caches."""

    def __init__(self, target: int) -> None:
        self.capability = target
        self.utils = self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.capability, 10)

    def get_device_properties(self, device: int) -> dict[str, int]:
        # An H100's, and an A100's.
        processors = 132 if self.capability >= 90 else 108
        return {"max_shared_mem": SHARED[self.capability], "multiprocessor_count": processors}

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, *_: Any) -> Any:
        raise AssertionError("a kernel was to be launched")

    def load_binary(self, *_: Any) -> Any:
        raise AssertionError("a kernel was to be loaded")


class _Watching(TorchDispatchMode):
    """Notes PyTorch's operations that are more than room or another view."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _FREE.match(f"{func}."):
            self.seen.operations.append(str(func))
        return func(*args, **(kwargs or {}))


_directory: list[str] = []


def keep_in(directory: str) -> None:
    """Keep what is compiled in this directory, which other processes may share."""
    _directory[:] = [directory]


def _cache() -> str:
    """Where Triton keeps what it compiled; unless told otherwise for this process alone: all is really compiled."""
    if not _directory:
        own = tempfile.TemporaryDirectory(prefix="tlsc-triton-")
        atexit.register(own.cleanup)
        keep_in(own.name)
    return _directory[0]


# ------------------------------------------------------------------------------------------- what was compiled


def _described(kernel: Any, target: int) -> Compiled:
    metadata = kernel.metadata
    registers, spilled = _resources(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    if metadata.shared > SHARED[target]:
        raise ValueError(f"{metadata.name}: {metadata.shared} bytes of shared memory are more than sm_{target} has")
    return Compiled(
        metadata.name,
        target,
        str(metadata.hash),
        registers,
        spilled,
        int(metadata.shared),
        int(metadata.num_warps),
        _widths("ld", ptx),
        _widths("st", ptx),
        ptx,
    )


def _widths(instruction: str, ptx: str) -> tuple[tuple[int, int], ...]:
    """Accesses to the GPU's memory in the assembly, by the bytes that one thread moves at once."""
    found: Counter[int] = Counter()
    pattern = rf"\b{instruction}\.(?:volatile\.|relaxed\.\w+\.)?global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b"
    for count, bits in re.findall(pattern, ptx):
        found[int(count or 1) * int(bits) // 8] += 1
    return tuple(sorted(found.items(), reverse=True))


# Attributes of a kernel in the sections ``.nv.info*`` of a cubin, and how their entries are told apart.
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
_SIZED = 0x04


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, from the ELF file that is the machine code."""
    sections, names = struct.unpack_from("<Q", cubin, 0x28)[0], struct.unpack_from("<HHH", cubin, 0x3A)
    size, count, strings = names
    headers = [struct.unpack_from("<IIQQQQII", cubin, sections + i * size) for i in range(count)]
    text = headers[strings][4]
    registers = spilled = 0
    for header in headers:
        name = cubin[text + header[0] : cubin.index(b"\0", text + header[0])].decode()
        if not name.startswith(".nv.info"):
            continue
        at, end = header[4], header[4] + header[5]
        while at < end:
            form, attribute, value = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if form != _SIZED:
                continue
            if attribute in (_FRAME_SIZE, _REGISTERS) and value == 8:
                amount = struct.unpack_from("<II", cubin, at)[1]
                if attribute == _REGISTERS:
                    registers = max(registers, amount)
                else:
                    spilled = max(spilled, amount)
            at += value
    return registers, spilled

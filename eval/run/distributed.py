"""The processes of a run: one, or those that ``torchrun`` started, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from tlsc.errors import ArgumentValueError

__all__ = ["Team", "team"]

# A process that has finished its share waits for the slowest. One that dies ends the others through torchrun.
_PATIENCE = timedelta(days=30)


@dataclass
class Team:
    """The processes that share a run.

    Attributes:
        rank: of this one; 0 prints and writes the final files.
        size: how many there are.
        store: counts what all of them have done; None where there is one.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    _done: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes the final files."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Rank 0's value, in all processes."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank, in all processes."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def collect(self, value: Any) -> list[Any] | None:
        """Everybody's value, by rank, on rank 0; None in the others."""
        if self.size == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, boxes, dst=0)
        return boxes

    def count(self, more: int) -> int:
        """Add to what all processes have done together; returns the sum so far."""
        if self.store is None:
            self._done += more
            return self._done
        return int(self.store.add("done", more))


@contextmanager
def team(device: str = "cpu", backend: str | None = None) -> Iterator[Team]:
    """The processes that ``torchrun`` started, or this one alone.

    Args:
        device: what the networks run on; "cuda" becomes this process's own GPU.
        backend: "gloo" or "nccl"; by default nccl where every process of a machine has a GPU of its own.

    Raises:
        ArgumentValueError: the backend is unknown or not built into this PyTorch.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Team()
        return
    cuda = device.startswith("cuda")
    here, local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local % max(1, torch.cuda.device_count()))
    if backend is None:
        own_gpu = cuda and torch.cuda.device_count() >= here and dist.is_nccl_available()
        backend = "nccl" if own_gpu else "gloo"
    if not dist.is_available() or backend not in ("gloo", "nccl"):
        raise ArgumentValueError(f"backend must be gloo or nccl, got {backend!r}")
    if not (dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()):
        raise ArgumentValueError(f"this PyTorch has no backend {backend}")
    store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))  # type: ignore[attr-defined]
    store.set_timeout(_PATIENCE)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Team(rank, size, PrefixStore("tlsc", store))
    finally:
        dist.destroy_process_group()
